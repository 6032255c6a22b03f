"""Pure operations on one image [H, W, C], float in [0, 1] in and out; ``jax.vmap`` for a batch.

Each random operation is two functions: a draw, from a key to parameters, and the operation proper,
from an image and parameters to an image. ``random_x(key, image, ...)`` is one after the other.
The colour operations follow Pillow's definitions, as torchvision does, in floating point.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_ORDERS = tuple(itertools.permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE)))
_NO_BLUR = 1e-3  # a standard deviation (pixels) at which the neighbours' weights underflow to 0
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode "L"


def draw_applied(key: Key[Array, ""], p: float) -> Bool[Array, ""]:
    """True with probability ``p``: whether an operation is applied to this image."""
    return jax.random.uniform(key, dtype=jnp.float32) < p


def flip(image: Float[Array, "h w c"], flipped: Bool[Array, ""]) -> Float[Array, "h w c"]:
    """Mirrors left and right where ``flipped``."""
    # A gather: XLA fuses a reversal into the crop before it, and computes that twice.
    columns = jnp.arange(image.shape[1])
    return image[:, jnp.where(flipped, columns[::-1], columns)]


def random_flip(
    key: Key[Array, ""], image: Float[Array, "h w c"], p: float
) -> Float[Array, "h w c"]:
    """Mirrors left and right with probability ``p``."""
    return flip(image, draw_applied(key, p))


def luma(image: Float[Array, "h w 3"]) -> Float[Array, "h w 1"]:
    """0.299 R + 0.587 G + 0.114 B."""
    _require_rgb(image, "luma")
    red, green, blue = _LUMA
    return red * image[..., 0:1] + green * image[..., 1:2] + blue * image[..., 2:3]


def grayscale(image: Float[Array, "h w 3"]) -> Float[Array, "h w 3"]:
    """The luma in all three channels.

    Raises:
      ValueError: unless the image has 3 channels.
    """
    _require_rgb(image, "grayscale")
    return jnp.broadcast_to(luma(image), image.shape)


def adjust_brightness(
    image: Float[Array, "h w 3"], factor: Float[Array, ""] | float
) -> Float[Array, "h w 3"]:
    """``factor`` times the image: 0 is black, 1 changes nothing.

    Raises:
      ValueError: unless the image has 3 channels.
    """
    _require_rgb(image, "brightness")
    return _blend(image, 0.0, factor)


def adjust_contrast(
    image: Float[Array, "h w 3"], factor: Float[Array, ""] | float
) -> Float[Array, "h w 3"]:
    """Blends with the mean of the luma: 0 is uniformly gray, 1 changes nothing.

    (TensorFlow's contrast takes the mean of each channel instead.)

    Raises:
      ValueError: unless the image has 3 channels.
    """
    _require_rgb(image, "contrast")
    return _blend(image, jnp.mean(luma(image)), factor)


def adjust_saturation(
    image: Float[Array, "h w 3"], factor: Float[Array, ""] | float
) -> Float[Array, "h w 3"]:
    """Blends with the luma: 0 is grayscale, 1 changes nothing.

    (TensorFlow's saturation scales S in HSV instead.)

    Raises:
      ValueError: unless the image has 3 channels.
    """
    _require_rgb(image, "saturation")
    return _blend(image, luma(image), factor)


def adjust_hue(
    image: Float[Array, "h w 3"], shift: Float[Array, ""] | float
) -> Float[Array, "h w 3"]:
    """Turns the hue of HSV by ``shift``, a fraction of the circle; 1 is the whole circle.

    Raises:
      ValueError: unless the image has 3 channels.
    """
    _require_rgb(image, "hue")
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    # Hue in sixths of the circle; a gray pixel has none, and any will do as its chroma is 0.
    is_red, is_green = value == red, value == green
    difference = jnp.where(is_red, green - blue, jnp.where(is_green, blue - red, red - green))
    sector = jnp.where(is_red, 0.0, jnp.where(is_green, 2.0, 4.0))
    hue = sector + difference / jnp.where(chroma > 0, chroma, 1.0) + 6.0 * shift
    # Channel n of the colour of that hue is V - C * trapezoid, with trapezoid a function of the
    # hue alone, turned by a third of the circle from channel to channel.
    turned = [hue + offset for offset in (5.0, 3.0, 1.0)]
    turned = [t - 6.0 * jnp.floor(t / 6.0) for t in turned]  # jnp.mod is 3 times slower on a CPU
    channels = [value - chroma * jnp.clip(jnp.minimum(t, 4.0 - t), 0.0, 1.0) for t in turned]
    return jnp.clip(jnp.stack(channels, axis=-1), 0.0, 1.0)


class ColorJitter(NamedTuple):
    """What one image's colour jitter draws.

    Attributes:
      brightness, contrast, saturation: factors, float32 >= 0; 1 changes nothing.
      hue: shift, float32, fraction of the circle.
      order: int32, a permutation of (BRIGHTNESS, CONTRAST, SATURATION, HUE), first one first.
    """

    brightness: Float[Array, ""]
    contrast: Float[Array, ""]
    saturation: Float[Array, ""]
    hue: Float[Array, ""]
    order: Int[Array, "4"]


def draw_color_jitter(
    key: Key[Array, ""], *, brightness: float, contrast: float, saturation: float, hue: float
) -> ColorJitter:
    """Draws uniform factors in [max(0, 1 - x), 1 + x], a shift in [-hue, hue], a uniform order."""
    factor_key, order_key = jax.random.split(key)
    unit = jax.random.uniform(factor_key, (4,), dtype=jnp.float32)

    def factor(u: Float[Array, ""], strength: float) -> Float[Array, ""]:
        lowest = max(0.0, 1.0 - strength)
        return lowest + (1.0 + strength - lowest) * u

    return ColorJitter(
        brightness=factor(unit[BRIGHTNESS], brightness),
        contrast=factor(unit[CONTRAST], contrast),
        saturation=factor(unit[SATURATION], saturation),
        hue=hue * (2.0 * unit[HUE] - 1.0),
        order=jnp.array(_ORDERS, jnp.int32)[jax.random.randint(order_key, (), 0, len(_ORDERS))],
    )


def color_jitter(image: Float[Array, "h w 3"], jitter: ColorJitter) -> Float[Array, "h w 3"]:
    """Brightness, contrast, saturation and hue in the order drawn, clipped to [0, 1] after each.

    Raises:
      ValueError: unless the image has 3 channels.
    """
    _require_rgb(image, "color_jitter")
    # Under vmap a branch costs all its branches, so four rounds of any of four operations would be
    # sixteen. Three of the four are one blend with different targets and hue, the dear one, comes
    # once: up to three blends before it, itself, up to three after it. A blend with factor 1
    # changes no bit, so those that are not due are given factor 1.
    factors = jnp.stack([jitter.brightness, jitter.contrast, jitter.saturation])
    hue_at = jnp.argmax(jitter.order == HUE)
    turns = jnp.arange(3)
    blends = jitter.order[turns + (turns >= hue_at)]

    def blend(image: Float[Array, "h w 3"], turn: int, due: Bool[Array, ""]) -> Array:
        gray = luma(image)
        kind = blends[turn]
        target = jnp.where(kind == CONTRAST, jnp.mean(gray), gray)
        target = jnp.where(kind == BRIGHTNESS, 0.0, target)
        return _blend(image, target, jnp.where(due, factors[kind], 1.0))

    for turn in range(3):
        image = blend(image, turn, turn < hue_at)
    image = adjust_hue(image, jitter.hue)
    for turn in range(3):
        image = blend(image, turn, turn >= hue_at)
    return image


def random_color_jitter(
    key: Key[Array, ""],
    image: Float[Array, "h w 3"],
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> Float[Array, "h w 3"]:
    """`color_jitter` with parameters from `draw_color_jitter`."""
    jitter = draw_color_jitter(
        key, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
    )
    return color_jitter(image, jitter)


def draw_sigma(key: Key[Array, ""], sigma: tuple[float, float]) -> Float[Array, ""]:
    """The blur's standard deviation, pixels, uniform between the two of ``sigma``."""
    u = jax.random.uniform(key, dtype=jnp.float32)
    return sigma[0] + (sigma[1] - sigma[0]) * u


def gaussian_blur(
    image: Float[Array, "h w c"], sigma: Float[Array, ""] | float, kernel_size: int
) -> Float[Array, "h w c"]:
    """Gaussian blur, the borders reflected (edge pixel not repeated), as torchvision's.

    Args:
      image: any number of channels, each side longer than ``kernel_size // 2``.
      sigma: standard deviation, pixels; 0 changes no bit.
      kernel_size: taps along each axis, odd.

    Raises:
      ValueError: if ``kernel_size`` is even, or too large for the image to be reflected.
    """
    radius = kernel_size // 2
    if kernel_size % 2 == 0 or radius >= min(image.shape[:2]):
        raise ValueError(
            f"a blur kernel of {kernel_size} does not suit an image of {image.shape[:2]}: "
            "it must be odd and reach less far than either side (kernel_size // 2 < side)."
        )
    offsets = jnp.arange(-radius, radius + 1)
    weights = jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, _NO_BLUR)) ** 2)
    weights = weights / jnp.sum(weights)
    # Shifted slices, not a convolution: one kernel a sample makes grouped convolutions, 70 times
    # slower on a CPU. The border by a gather, not `jnp.pad`: XLA computes whatever made the image
    # once for each of the pieces that a pad joins, and the whole pipeline takes 6 times as long.
    for axis in (0, 1):
        length = image.shape[axis]
        mirrored = np.pad(np.arange(length), radius, mode="reflect")
        padded = image[mirrored] if axis == 0 else image[:, mirrored]
        taps = [
            weights[k] * jax.lax.slice_in_dim(padded, k, k + length, axis=axis)
            for k in range(kernel_size)
        ]
        image = functools.reduce(jnp.add, taps)
    return jnp.clip(image, 0.0, 1.0)


def random_gaussian_blur(
    key: Key[Array, ""],
    image: Float[Array, "h w c"],
    *,
    sigma: tuple[float, float],
    kernel_size: int,
) -> Float[Array, "h w c"]:
    """`gaussian_blur` with one sigma from `draw_sigma`."""
    return gaussian_blur(image, draw_sigma(key, sigma), kernel_size)


def solarize(image: Float[Array, "h w c"], threshold: float) -> Float[Array, "h w c"]:
    """Inverts what is not below ``threshold``."""
    return jnp.where(image < threshold, image, 1.0 - image)


def _blend(
    image: Float[Array, "h w 3"],
    target: Float[Array, "..."] | float,
    factor: Float[Array, ""] | float,
) -> Float[Array, "h w 3"]:
    return jnp.clip(factor * image + (1.0 - factor) * target, 0.0, 1.0)


def _require_rgb(image: Float[Array, "h w c"], operation: str) -> None:
    if image.shape[-1] != 3:
        raise ValueError(
            f"{operation} needs RGB images, 3 channels, and got {image.shape[-1]}: switch the "
            "colour operations off (jitter_p=0, grayscale_p=0)."
        )
