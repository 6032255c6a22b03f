"""The recipe of one view, and those that papers publish."""

import dataclasses
from typing import Any

from jaxssl.augment.ops import HUE_SPACES, HueSpace
from jaxssl.augment.resample import FILTERS, Filter
from jaxssl.errors import UserError
from jaxssl.ranges import NON_NEGATIVE, SHARE, check_numbers


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The recipe of one view, in the order in which it is applied; ``p`` are probabilities.

    The colour operations (jitter, grayscale) need 3 channels.
    """

    size: int  # side of the view, pixels
    crop_scale: tuple[float, float]  # area of the crop, fraction of the image's
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the crop
    crop_filter: Filter = "bicubic"
    crop_antialias: bool = True  # widen the filter where the crop shrinks
    crop_subpixel: bool = False  # fractional crop boxes; torchvision's are whole pixels
    flip_p: float = 0.5  # mirror left and right
    jitter_p: float = 0.0  # brightness, contrast, saturation and hue, in random order
    brightness: float = 0.0  # factor uniform in [max(0, 1 - x), 1 + x]
    contrast: float = 0.0  # likewise
    saturation: float = 0.0  # likewise
    hue: float = 0.0  # shift uniform in [-x, x], fraction of the circle, at most 1/2
    hue_space: HueSpace = "hsv"  # the circle is HSV's, or the one of YIQ: cheaper, other colours
    grayscale_p: float = 0.0  # luma in all three channels
    blur_p: float = 0.0  # Gaussian blur
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation, pixels of the view
    blur_kernel_size: int = 23  # taps along an axis, odd
    solarize_p: float = 0.0  # invert what is bright
    solarize_threshold: float = 0.5  # from here on, in [0, 1]

    def __post_init__(self) -> None:
        """Refuses what no operation can do.

        Raises:
          UserError: naming the field.
        """
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            check_numbers(name, getattr(self, name), NON_NEGATIVE, 2)
        low, high = self.crop_scale
        taps = self.blur_kernel_size
        jitter = ("brightness", "contrast", "saturation")
        probabilities = ("flip_p", "jitter_p", "grayscale_p", "blur_p", "solarize_p")
        rules = [(name, 0 <= getattr(self, name) <= 1, "from 0 to 1") for name in probabilities]
        rules += [
            ("size", isinstance(self.size, int) and self.size > 0, "a whole number above 0"),
            ("blur_sigma", self.blur_sigma[0] <= self.blur_sigma[1], "two numbers in order"),
            *(
                (name, NON_NEGATIVE.holds(getattr(self, name)), str(NON_NEGATIVE))
                for name in jitter
            ),
            ("solarize_threshold", SHARE.holds(self.solarize_threshold), str(SHARE)),
            ("crop_scale", 0 < low <= high <= 1, "two fractions above 0 and up to 1, in order"),
            (
                "crop_ratio",
                1e-6 <= self.crop_ratio[0] <= self.crop_ratio[1] <= 1e6,
                "two numbers from 1e-6 to 1e6, in order",
            ),
            ("crop_filter", self.crop_filter in FILTERS, f"one of {', '.join(FILTERS)}"),
            ("hue", 0 <= self.hue <= 0.5, "from 0 to 1/2"),
            ("hue_space", self.hue_space in HUE_SPACES, f"one of {', '.join(HUE_SPACES)}"),
            ("blur_kernel_size", taps > 0 and taps % 2 == 1, "positive and odd"),
            (
                "blur_kernel_size",
                self.blur_p == 0 or taps < 2 * self.size,
                f"at most {2 * self.size - 1}, what the border of a view of {self.size} mirrors",
            ),
        ]
        rules += [(name, NON_NEGATIVE.holds(getattr(self, name)), "at least 0") for name in jitter]
        for name, holds, rule in rules:
            if not holds:
                raise UserError(f"{name}={getattr(self, name)!r} must be {rule}.")


def simclr_imagenet(size: int) -> tuple[Augmentation, ...]:
    """SimCLR (arXiv:2002.05709) on ImageNet: colour strength 1, blur over a tenth of the side.

    Boxes are torchvision's (log-uniform aspect), where the authors' TensorFlow code has its own.
    """
    # The authors' rule, 23 taps at 224.
    kernel_size = 2 * ((size // 10) // 2) + 1
    view = dataclasses.replace(
        _simclr(size, strength=1.0), blur_p=0.5, blur_kernel_size=kernel_size
    )
    return (view, view)


def simclr_cifar(size: int) -> tuple[Augmentation, ...]:
    """SimCLR (arXiv:2002.05709, B.9) on CIFAR-10: colour strength 1/2, no blur."""
    view = _simclr(size, strength=0.5)
    return (view, view)


def lightly_cifar(size: int) -> tuple[Augmentation, ...]:
    """The CIFAR-10 benchmark of lightly: SimCLR's for CIFAR-10, resized as torchvision does."""
    view = dataclasses.replace(simclr_cifar(size)[0], crop_filter="bilinear")
    return (view, view)


def lightly_swav(size: int) -> tuple[Augmentation, ...]:
    """SwAV's in the CIFAR-10 benchmark of lightly: `lightly_cifar` from .14, no small crops."""
    view = dataclasses.replace(lightly_cifar(size)[0], crop_scale=(0.14, 1.0))
    return (view, view)


def lightly_dino(size: int) -> tuple[Augmentation, ...]:
    """DINO's in the CIFAR-10 benchmark of lightly: BYOL's from .4, no blur, no small crops."""
    both: dict[str, Any] = {"crop_scale": (0.4, 1.0), "crop_filter": "bilinear", "blur_p": 0.0}
    first, second = (dataclasses.replace(view, **both) for view in byol(size))
    return (first, second)


def solo_symmetric(size: int) -> tuple[Augmentation, ...]:
    """``symmetric.yaml`` of solo-learn for CIFAR: colour strength 1, blur."""
    view = dataclasses.replace(
        _simclr(size, strength=1.0), blur_p=0.5, blur_kernel_size=min(23, 2 * size - 1)
    )
    return (view, view)


def solo_symmetric_weak(size: int) -> tuple[Augmentation, ...]:
    """``symmetric_weak.yaml`` of solo-learn for CIFAR: half the colour strength."""
    weak: dict[str, Any] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    view = dataclasses.replace(solo_symmetric(size)[0], **weak)
    return (view, view)


def solo_asymmetric(size: int) -> tuple[Augmentation, ...]:
    """``asymmetric.yaml`` of solo-learn for CIFAR: BYOL's without blur."""
    first, second = byol(size)
    return (dataclasses.replace(first, blur_p=0.0), dataclasses.replace(second, blur_p=0.0))


def _simclr(size: int, strength: float) -> Augmentation:
    return Augmentation(
        size=size,
        crop_scale=(0.08, 1.0),
        jitter_p=0.8,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        grayscale_p=0.2,
    )


def moco_v2(size: int) -> tuple[Augmentation, ...]:
    """MoCo v2 (arXiv:2003.04297) on ImageNet; bilinear, as torchvision's default is."""
    view = Augmentation(
        size=size,
        crop_scale=(0.2, 1.0),
        crop_filter="bilinear",
        jitter_p=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        grayscale_p=0.2,
        blur_p=0.5,
    )
    return (view, view)


def moco_cifar(size: int) -> tuple[Augmentation, ...]:
    """The MoCo authors' CIFAR-10 demo: crops from .08, no blur."""
    view = dataclasses.replace(moco_v2(size)[0], crop_scale=(0.08, 1.0), blur_p=0.0)
    return (view, view)


def align_uniform(size: int) -> tuple[Augmentation, ...]:
    """Wang & Isola (arXiv:2005.10242) on STL-10: jitter always, with a large shift of hue."""
    view = Augmentation(
        size=size,
        crop_scale=(0.08, 1.0),
        crop_filter="bilinear",
        jitter_p=1.0,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.4,
        grayscale_p=0.2,
    )
    return (view, view)


def byol(size: int) -> tuple[Augmentation, ...]:
    """BYOL (arXiv:2006.07733, table 6): two views that differ in blur and solarization."""
    view = Augmentation(
        size=size,
        crop_scale=(0.08, 1.0),
        jitter_p=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        grayscale_p=0.2,
    )
    return (
        dataclasses.replace(view, blur_p=1.0),
        dataclasses.replace(view, blur_p=0.1, solarize_p=0.2),
    )


def vicreg(size: int) -> tuple[Augmentation, ...]:
    """VICReg (arXiv:2105.04906) on ImageNet: BYOL's colours, both views blurred and solarized."""
    view = dataclasses.replace(byol(size)[0], blur_p=0.5, solarize_p=0.1)
    return (view, view)


def solo_vicreg(size: int) -> tuple[Augmentation, ...]:
    """VICReg's in solo-learn's script for CIFAR: crops from .2, no blur."""
    view = dataclasses.replace(vicreg(size)[0], crop_scale=(0.2, 1.0), blur_p=0.0)
    return (view, view)


def supcon(size: int) -> tuple[Augmentation, ...]:
    """SupCon (arXiv:2004.11362) in the authors' code for CIFAR: MoCo v2's without blur."""
    view = dataclasses.replace(moco_v2(size)[0], blur_p=0.0)
    return (view, view)


def deepcluster_imagenet(size: int) -> tuple[Augmentation, ...]:
    """DeepCluster-v2's two views in SwAV's code (arXiv:2006.09882): SimCLR's, but bilinear."""
    view = dataclasses.replace(simclr_imagenet(size)[0], crop_filter="bilinear")
    return (view, view)


def swav_multi_crop(size: int) -> tuple[Augmentation, ...]:
    """SwAV's multi-crop (arXiv:2006.09882) on ImageNet: two views of ``size`` and six of 3/7 of it.

    224 and 96 pixels in the paper; SimCLR's colours, the small crops of area .05 to .14; bilinear,
    as torchvision's default is.
    """
    large = dataclasses.replace(deepcluster_imagenet(size)[0], crop_scale=(0.14, 1.0))
    side = round(size * 96 / 224)
    small = dataclasses.replace(deepcluster_imagenet(side)[0], crop_scale=(0.05, 0.14))
    return (large,) * 2 + (small,) * 6


def solo_swav_multi_crop(size: int) -> tuple[Augmentation, ...]:
    """SwAV's multi-crop of solo-learn for CIFAR: two views of ``size`` and six of 9/16 of it.

    32 and 18 pixels there; the second large view is solarized now and then, the small ones blurred
    too.
    """
    large = dataclasses.replace(_simclr(size, strength=0.75), crop_scale=(0.2, 1.0), hue=0.2)
    side = round(size * 18 / 32)
    small = dataclasses.replace(
        _simclr(side, strength=1.0),
        crop_scale=(0.08, 0.5),
        blur_p=0.1,
        blur_kernel_size=min(23, 2 * side - 1),
        solarize_p=0.1,
    )
    return (large, dataclasses.replace(large, solarize_p=0.2)) + (small,) * 6


def dino_multi_crop(size: int) -> tuple[Augmentation, ...]:
    """DINO's multi-crop (arXiv:2104.14294): BYOL's two views, from area .4, and eight small ones.

    224 and 96 pixels in the paper; the small crops of area .05 to .4, blurred half the time.
    """
    first, second = (dataclasses.replace(view, crop_scale=(0.4, 1.0)) for view in byol(size))
    side = round(size * 96 / 224)
    small = dataclasses.replace(
        first,
        size=side,
        crop_scale=(0.05, 0.4),
        blur_p=0.5,
        blur_kernel_size=min(first.blur_kernel_size, 2 * side - 1),  # what a border can mirror
    )
    return (first, second) + (small,) * 8


def lejepa(size: int) -> tuple[Augmentation, ...]:
    """LeJEPA's four views (arXiv:2511.08544), as in the authors' minimal example."""
    view = dataclasses.replace(
        _simclr(size, strength=1.0),
        crop_filter="bilinear",
        blur_p=0.5,
        blur_kernel_size=7,
        solarize_p=0.2,
    )
    return (view,) * 4


def crop_flip(size: int) -> tuple[Augmentation, ...]:
    """One view, cropped and mirrored: what a linear probe is trained on."""
    return (Augmentation(size=size, crop_scale=(0.08, 1.0)),)
