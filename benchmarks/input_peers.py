"""The view recipes in Pillow (as torchvision computes them), albumentations and kornia.

Each takes the fields of `jaxssl.augment.augmentation.Augmentation` and stays as close to them as
the library goes; what differs is said at each. Peers that are not installed are None.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
# Or PyTorch's threads go on spinning while the next contestant is timed.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
try:
    import albumentations
    import cv2
except ModuleNotFoundError:
    albumentations = cv2 = None
try:
    import kornia.augmentation as kornia
    import torch
except ModuleNotFoundError:
    kornia = torch = None

Recipe = Mapping[str, Any]
View = Callable[[np.ndarray], np.ndarray]  # uint8 [H, W, 3] to float32 in [0, 1]


def versions() -> dict[str, str | None]:
    """Of the peers; None for one that is not installed."""
    return {
        "pillow": Image.__version__,
        "albumentations": albumentations and albumentations.__version__,
        "opencv": cv2 and cv2.__version__,
        "kornia": kornia and __import__("kornia").__version__,
        "torch": torch and torch.__version__,
    }


def _jitter_range(strength: float) -> tuple[float, float]:
    return max(0.0, 1.0 - strength), 1.0 + strength


def _crop_box(rng: np.random.Generator, side: int, recipe: Recipe) -> tuple[int, int, int, int]:
    low, high = np.log(recipe["crop_ratio"])
    for _ in range(10):
        area = side * side * rng.uniform(*recipe["crop_scale"])
        aspect = math.exp(rng.uniform(low, high))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= side and 0 < height <= side:
            x, y = rng.integers(0, side - width + 1), rng.integers(0, side - height + 1)
            return int(x), int(y), int(x + width), int(y + height)
    return 0, 0, side, side


def _turn_hue(image: Image.Image, shift: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(round(shift * 255) % 256)  # wraps round
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def pillow_view(r: Recipe) -> View:
    """What torchvision does to a PIL image, the blur being the papers' own ``ImageFilter``."""
    rng = np.random.default_rng(0)
    resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    enhancers = (
        (ImageEnhance.Brightness, _jitter_range(r["brightness"])),
        (ImageEnhance.Contrast, _jitter_range(r["contrast"])),
        (ImageEnhance.Color, _jitter_range(r["saturation"])),
    )

    def view(array: np.ndarray) -> np.ndarray:
        image = Image.fromarray(array)
        image = image.crop(_crop_box(rng, image.width, r))
        image = image.resize((r["size"], r["size"]), resample[r["crop_filter"]])
        if rng.random() < r["flip_p"]:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < r["jitter_p"]:
            for number in rng.permutation(4):
                if number == 3:
                    image = _turn_hue(image, rng.uniform(-r["hue"], r["hue"]))
                else:
                    enhance, limits = enhancers[number]
                    image = enhance(image).enhance(rng.uniform(*limits))
        if rng.random() < r["grayscale_p"]:
            image = image.convert("L").convert("RGB")
        if rng.random() < r["blur_p"]:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*r["blur_sigma"])))
        if rng.random() < r["solarize_p"]:
            image = ImageOps.solarize(image, 128)
        return np.asarray(image, np.float32) / 255

    return view


def albumentations_view(r: Recipe) -> View:
    """On uint8 by OpenCV; its interpolation is not antialiased."""
    filters = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR}
    size, kernel = (r["size"], r["size"]), (r["blur_kernel_size"], r["blur_kernel_size"])
    operations = [
        albumentations.RandomResizedCrop(
            size, r["crop_scale"], r["crop_ratio"], interpolation=filters[r["crop_filter"]]
        ),
        albumentations.HorizontalFlip(p=r["flip_p"]),
        albumentations.ColorJitter(
            _jitter_range(r["brightness"]),
            _jitter_range(r["contrast"]),
            _jitter_range(r["saturation"]),
            (-r["hue"], r["hue"]),
            p=r["jitter_p"],
        ),
        albumentations.ToGray(p=r["grayscale_p"]),
        albumentations.GaussianBlur(kernel, tuple(r["blur_sigma"]), p=r["blur_p"]),
        albumentations.Solarize(p=r["solarize_p"]),
    ]
    operations = [operation for operation in operations if operation.p > 0]
    compose = albumentations.Compose(operations, seed=0)
    return lambda image: compose(image=image)["image"].astype(np.float32) / 255


def kornia_views(r: Recipe) -> Callable[[np.ndarray], Any]:
    """On a batch of floats; the order of the jitter is drawn once a batch, no antialiasing."""
    size, kernel = (r["size"], r["size"]), (r["blur_kernel_size"], r["blur_kernel_size"])
    operations = [
        kornia.RandomResizedCrop(
            size, r["crop_scale"], r["crop_ratio"], r["crop_filter"], cropping_mode="resample"
        ),
        kornia.RandomHorizontalFlip(r["flip_p"]),
        kornia.ColorJitter(
            r["brightness"], r["contrast"], r["saturation"], r["hue"], p=r["jitter_p"]
        ),
        kornia.RandomGrayscale(p=r["grayscale_p"]),
        kornia.RandomGaussianBlur(kernel, tuple(r["blur_sigma"]), p=r["blur_p"]),
        kornia.RandomSolarize(0.0, 0.0, p=r["solarize_p"]),
    ]
    sequence = torch.nn.Sequential(*(operation for operation in operations if operation.p > 0))

    @torch.inference_mode()
    def views(images: np.ndarray) -> Any:
        return sequence(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)

    return views


PER_IMAGE = {"Pillow": pillow_view, "albumentations": albumentations_view}

_images: dict[str, np.ndarray] = {}
_recipes: dict[str, tuple[Recipe, ...]] = {}
_built: dict[tuple[str, str], list[View]] = {}


def start_worker(images: dict[str, np.ndarray], recipes: dict[str, tuple[Recipe, ...]]) -> None:
    """Hands a worker process what it works on; both by policy."""
    _images.update(images)
    _recipes.update(recipes)
    if cv2 is not None:
        cv2.setNumThreads(1)


def work(peer: str, policy: str, start: int, stop: int) -> float:
    """Makes all views of some images, drops them, and returns the CPU seconds that took."""
    if (peer, policy) not in _built:
        _built[peer, policy] = [PER_IMAGE[peer](recipe) for recipe in _recipes[policy]]
    before = time.process_time()
    for image in _images[policy][start:stop]:
        for view in _built[peer, policy]:
            view(image)
    return time.process_time() - before
