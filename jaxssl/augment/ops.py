"""Pure operations on one image [H, W, C], float in [0, 1] in and out; ``jax.vmap`` for a batch.

Each random operation is two functions: a draw, from a key to parameters, and the operation proper,
from an image and parameters to an image. ``random_x(key, image, ...)`` is one after the other.
The colour operations follow Pillow's definitions, as torchvision does, in floating point.
"""

import itertools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxssl.augment.resample import in_blocks

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_ORDERS = tuple(itertools.permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE)))
_NO_BLUR = 1e-3  # a standard deviation (pixels) at which the neighbours' weights underflow to 0
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode "L"
# From RGB; FCC 1953, 47 CFR 73.682. Y is the luma, I and Q are 0 for gray.
_YIQ = np.array([_LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])

HueSpace = Literal["hsv", "yiq"]


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
    # `luma` by a product, which XLA computes once; the sum it computes again for each channel, with
    # all that made the image.
    gray = jnp.einsum("hwc,c->hw", image, jnp.array(_LUMA, image.dtype), precision="highest")
    return jnp.broadcast_to(gray[..., None], image.shape)


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


def adjust_hue_yiq(
    image: Float[Array, "h w 3"], shift: Float[Array, ""] | float
) -> Float[Array, "h w 3"]:
    """Turns the hue of YIQ by ``shift``, a fraction of the circle; 1 is the whole circle.

    With t = 2 pi shift: I' = I cos t + Q sin t, Q' = Q cos t - I sin t, clipped to [0, 1] in RGB.
    (I, Q) is turned clockwise, red to green to blue, as in HSV. One 3x3 matrix an image, where
    `adjust_hue` has a case distinction a pixel; it keeps the luma, HSV the largest channel.

    It is another operation, not an approximation of `adjust_hue`: at shifts of -.1 and .1 the two
    differ by .031 on average over the pixels and channels of 100 photographs of Imagenette, where
    HSV's moves them by .027 and this by .034 (by .046, .039 and .055 on scikit-learn's two).

    Raises:
      ValueError: unless the image has 3 channels.
    """
    _require_rgb(image, "hue")
    cos, sin = jnp.cos(2.0 * math.pi * shift), jnp.sin(2.0 * math.pi * shift)
    # RGB to YIQ, one entry of the turn, and back.
    keep, along, across = (
        jnp.array(np.linalg.inv(_YIQ) @ np.array(turn) @ _YIQ, image.dtype)
        for turn in (
            [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
            [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
            [[0, 0, 0], [0, 0, 1], [0, -1, 0]],
        )
    )
    matrix = keep + cos * along + sin * across
    # Not a matrix product, which XLA would not fuse with the blends around it.
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    channels = [row[0] * red + row[1] * green + row[2] * blue for row in matrix]
    return jnp.clip(jnp.stack(channels, axis=-1), 0.0, 1.0)


HUE_SPACES: dict[HueSpace, Callable[..., Float[Array, "h w 3"]]] = {
    "hsv": adjust_hue,
    "yiq": adjust_hue_yiq,
}


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
        return between(max(0.0, 1.0 - strength), 1.0 + strength, u)

    return ColorJitter(
        brightness=factor(unit[BRIGHTNESS], brightness),
        contrast=factor(unit[CONTRAST], contrast),
        saturation=factor(unit[SATURATION], saturation),
        hue=hue * (2.0 * unit[HUE] - 1.0),
        order=jnp.array(_ORDERS, jnp.int32)[jax.random.randint(order_key, (), 0, len(_ORDERS))],
    )


def color_jitter(
    image: Float[Array, "h w 3"], jitter: ColorJitter, hue_space: HueSpace = "hsv"
) -> Float[Array, "h w 3"]:
    """Brightness, contrast, saturation and hue in the order drawn, clipped to [0, 1] after each.

    Args:
      image: RGB.
      jitter: what was drawn.
      hue_space: in what the hue is turned: `adjust_hue` or `adjust_hue_yiq`.

    Raises:
      ValueError: unless the image has 3 channels.
    """
    _require_rgb(image, "color_jitter")
    # Under vmap a branch costs all its branches, so four rounds of any of four operations would be
    # sixteen. Three of the four are one blend with different targets. Hue is the expensive one, so
    # it runs once: up to three blends before it, then hue, then up to three after it. A blend with
    # factor 1 changes no bit, so those that are not due get factor 1.
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
    image = HUE_SPACES[hue_space](image, jitter.hue)
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
    hue_space: HueSpace = "hsv",
) -> Float[Array, "h w 3"]:
    """`color_jitter` with parameters from `draw_color_jitter`."""
    jitter = draw_color_jitter(
        key, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
    )
    return color_jitter(image, jitter, hue_space)


def draw_sigma(key: Key[Array, ""], sigma: tuple[float, float]) -> Float[Array, ""]:
    """The blur's standard deviation, pixels, uniform between the two of ``sigma``."""
    return between(*sigma, jax.random.uniform(key, dtype=jnp.float32))


def between(
    low: Float[Array, ""] | float, high: Float[Array, ""] | float, u: Float[Array, ""]
) -> Float[Array, ""]:
    """The share ``u`` of the way from ``low`` to ``high``, the same bits in every program."""
    return low + product(high - low, u)


def product(x: Float[Array, "..."] | float, y: Float[Array, "..."]) -> Float[Array, "..."]:
    """The product in float32, the same bits in every program, whatever it is added to."""
    # By itself XLA fuses product and sum in some programs and not in others, and so rounds once
    # or twice. One bit less than float32's keeps it from dropping this as idle.
    return jax.lax.reduce_precision(x * y, exponent_bits=8, mantissa_bits=22)


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
    height, width, channels = image.shape
    lines = _blur_lines(image.reshape(1, height, width * channels), sigma, radius)
    lines = _blur_lines(lines.reshape(image.shape), sigma, radius)
    return jnp.clip(lines, 0.0, 1.0)


def _blur_lines(
    lines: Float[Array, "a n b"], sigma: Float[Array, ""] | float, radius: int
) -> Float[Array, "a n b"]:
    """Blurs along the middle axis."""
    # Blocks of pixels times one banded matrix. Not a convolution: one kernel a sample makes grouped
    # convolutions, 70 times slower on a CPU. Not a sum of shifted slices: they are slower, and XLA
    # computes again for every tap whatever made the image. The border is in the gather of the
    # blocks, not from `jnp.pad`, which makes XLA compute that once for each of the pieces it joins.
    length = lines.shape[1]
    block = in_blocks(length).shape[1]
    mirrored = np.pad(np.arange(length), radius, mode="reflect")
    starts = np.arange(0, length, block)
    windows = np.minimum(starts[:, None] + np.arange(block + 2 * radius), len(mirrored) - 1)
    offsets = jnp.arange(block + 2 * radius) - radius - jnp.arange(block)[:, None]
    weights = jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, _NO_BLUR)) ** 2)
    weights = jnp.where(jnp.abs(offsets) <= radius, weights, 0.0)
    weights = weights / jnp.sum(weights, axis=1, keepdims=True)
    blurred = jnp.einsum("xl,anlb->anxb", weights, lines[:, mirrored[windows]], precision="highest")
    return blurred.reshape(lines.shape[0], -1, lines.shape[2])[:, :length]


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
