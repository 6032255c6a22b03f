"""Shot noise, defocus blur and JPEG of Hendrycks and Dietterich (arXiv:1903.12261).

Their code casts with ``np.uint8``, that is, cuts the fraction off; so do these for uint8 images.
"""

import functools
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from jaxssl.corruptions.arrays import (
    AnyArray,
    Images,
    Real,
    look_up,
    namespace,
    nearest_levels,
    require_images,
    require_positive,
)
from jaxssl.corruptions.draws import UNIFORM_BITS

_ROW_SHIFT = UNIFORM_BITS + 1  # where the level stands above them; one bit more for 1.0 itself
# Levels (of 255) by which a blurred value may fall short of the whole number it stands for: far
# above what float32 loses (1e-4), so that a flat region keeps its level, and far below one.
_SLACK = 1e-3


@dataclass(frozen=True)
class Severities:
    """The constants of severities 1 to 5.

    Attributes:
      shot_noise: photons of a pixel at full brightness.
      defocus_blur: radius of the disk and standard deviation of the blur against its jagged rim,
        both in pixels.
      jpeg: quality, 1 to 100.
    """

    shot_noise: tuple[int, ...]
    defocus_blur: tuple[tuple[float, float], ...]
    jpeg: tuple[int, ...]


# arXiv:1903.12261, the constants of the code that made CIFAR-10-C and ImageNet-C.
CIFAR_C = Severities(
    shot_noise=(500, 250, 100, 75, 50),
    defocus_blur=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
    jpeg=(80, 65, 58, 50, 40),
)
IMAGENET_C = Severities(
    shot_noise=(60, 25, 12, 5, 3),
    defocus_blur=((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)),
    jpeg=(25, 18, 15, 10, 7),
)
CONSTANTS = {"cifar": CIFAR_C, "imagenet": IMAGENET_C}


def shot_noise(images: Images, uniforms: Float[AnyArray, "*b h w c"], photons: Real) -> Images:
    """``clip(n / photons, 0, 1)`` with n ~ Poisson(photons * x) counted in each channel.

    n is the quantile of the count's distribution at the pixel's uniform (the least n with
    P(count <= n) > uniform), found in a table, so that NumPy and JAX agree to the bit. A float
    image is taken at the nearest of its 256 levels, which are all that ImageNet-C knows; the result
    stays a multiple of 1 / photons. A uint8 result is cut off as in its code (arXiv:1903.12261).

    Args:
      images: [..., H, W, C].
      uniforms: in [0, 1), the shape of ``images``; 23 bits of them count.
      photons: expected count at full brightness, > 0; the table has 256 times as many entries.

    Raises:
      ValueError: if the shapes differ or ``photons`` is not positive and finite.
    """
    require_images(images)
    require_positive("photons", photons)
    if uniforms.shape != images.shape:
        raise ValueError(
            f"uniforms of shape {uniforms.shape} do not suit images of shape {images.shape}: "
            "shot noise takes one a pixel and channel."
        )
    xp = namespace(images)
    thresholds = _poisson_thresholds(photons)
    columns = thresholds.size // 256
    level = nearest_levels(images).astype(np.uint32)
    bits = (xp.asarray(uniforms) * 2.0**UNIFORM_BITS).astype(np.uint32)
    found = xp.searchsorted(thresholds, (level << _ROW_SHIFT) | bits, side="right")
    count = found.astype(np.int32) - (level * columns).astype(np.int32)
    brightness = np.clip(np.arange(columns + 1) / photons, 0, 1)
    return look_up(brightness * 255, count, images.dtype)


@functools.cache
def _poisson_thresholds(photons: Real) -> np.ndarray:
    """uint32, sorted: for each level P(count <= n), n < photons, in 2**-23, rows one after another.

    Counts from ``photons`` on are all white, so nothing beyond need be told apart. One sorted table
    for all levels makes the look-up one `searchsorted`, which a compiler can shard.
    """
    rate = photons * np.arange(256)[:, None] / 255
    count = np.arange(math.ceil(photons))
    log_factorial = np.array([math.lgamma(n + 1) for n in count])
    with np.errstate(divide="ignore", invalid="ignore"):
        log_power = np.where(count == 0, 0.0, count * np.log(rate))
    cdf = np.cumsum(np.exp(log_power - rate - log_factorial), axis=1)
    threshold = np.ceil(np.minimum(cdf, 1) * 2**UNIFORM_BITS).astype(np.uint32)
    return ((np.arange(256, dtype=np.uint32)[:, None] << _ROW_SHIFT) + threshold).reshape(-1)


def defocus_blur(images: Images, radius: Real, alias: Real) -> Images:
    """Correlates each channel with a disk, mirrored at the border, and clips (arXiv:1903.12261).

    The border is mirrored about its outermost pixel (OpenCV's reflect-101), again and again where
    the disk is larger than the image. NumPy and JAX agree to 1e-6 in float32. A uint8 result is cut
    off, as in the authors' code, but 1e-3 of a level later: of whole numbers, which there fall to
    the level below as rounding errors have it, none does here.

    Args:
      images: [..., H, W, C].
      radius: of the disk in pixels, > 0; whole if above 8.
      alias: standard deviation in pixels of the Gaussian that softens its rim, > 0.

    Raises:
      ValueError: if the radius or ``alias`` is not positive and finite.
    """
    require_images(images)
    xp = namespace(images)
    white = 255 if images.dtype == np.uint8 else 1
    precision = np.float64 if images.dtype == np.float64 else np.float32
    correlate: Callable[..., Any] = _correlate_fft if xp is np else _correlate_matrices
    blurred = correlate(images.astype(precision), defocus_kernel(radius, alias))
    blurred = xp.clip(blurred, 0, white)
    if images.dtype == np.uint8:
        blurred = xp.floor(blurred + _SLACK)
    return blurred.astype(images.dtype)


@functools.cache
def defocus_kernel(radius: Real, alias: Real) -> Float[np.ndarray, "k k"]:
    """The softened disk, float64, k odd, without rows and columns of zeros.

    The disk stands on a grid of 17 pixels a side, one of 2 radius + 1 if the radius is above 8, and
    is softened on that grid with its border mirrored: for radii 8 and 10, whose disk touches the
    border, the weights add up to 1.013 and 1.011, as they do in ImageNet-C.

    Raises:
      ValueError: if the radius or ``alias`` is not positive and finite.
    """
    require_positive("radius", radius)
    require_positive("alias", alias)
    reach, half = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    grid = np.arange(-reach, reach + 1)
    disk = (grid[:, None] ** 2 + grid[None, :] ** 2 <= radius**2).astype(np.float64)
    gaussian = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * alias**2))
    soften = _mirror_matrix(gaussian / gaussian.sum(), len(grid))
    kernel = soften @ (disk / disk.sum()) @ soften.T
    used = np.flatnonzero(kernel.max(axis=0) > 1e-12)[0]  # far below what float32 can tell
    return kernel[used : len(grid) - used, used : len(grid) - used]


def _mirror_matrix(taps: np.ndarray, length: int) -> np.ndarray:
    """Correlation of a line with ``taps``, its ends mirrored, as a matrix [length, length]."""
    source = np.pad(np.arange(length), len(taps) // 2, mode="reflect")
    matrix = np.zeros((length, length))
    for offset, tap in enumerate(taps):
        np.add.at(matrix, (np.arange(length), source[offset : offset + length]), tap)
    return matrix


def _correlate_fft(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """On the host, where matrix products would take threads that data workers need."""
    from scipy.fft import next_fast_len  # here, since it takes as long to import as Flax

    height, width = images.shape[-3:-1]
    reach = len(kernel) // 2
    border = [(0, 0)] * (images.ndim - 3) + [(reach, reach), (reach, reach), (0, 0)]
    padded = np.pad(images, border, mode="reflect")
    shape = [next_fast_len(n, real=True) for n in padded.shape[-3:-1]]
    response = np.conj(np.fft.rfft2(kernel.astype(images.dtype), shape))[..., None]
    spectrum = np.fft.rfft2(padded, shape, axes=(-3, -2)) * response
    return np.fft.irfft2(spectrum, shape, axes=(-3, -2))[..., :height, :width, :]


def _correlate_matrices(images: Array, kernel: np.ndarray) -> Array:
    """On a device, where a Fourier transform would gather a sharded batch: r separable kernels."""
    left, weight, right = np.linalg.svd(kernel)
    planes = jnp.moveaxis(images, -1, -3)
    blurred = jnp.zeros_like(planes)
    for r in np.flatnonzero(weight > 1e-10 * weight[0]):
        rows = _mirror_matrix(weight[r] * left[:, r], planes.shape[-2])
        columns = _mirror_matrix(right[r], planes.shape[-1])
        half = jnp.matmul(rows.astype(images.dtype), planes, precision="highest")
        blurred += jnp.matmul(half, columns.T.astype(images.dtype), precision="highest")
    return jnp.moveaxis(blurred, -3, -1)


def jpeg(images: Images, quality: int) -> Images:
    """Pillow's JPEG at ``quality`` and back, on the host only.

    Args:
      images: NumPy array [..., H, W, C] with C = 1 (gray) or 3 (RGB); a float image is taken at the
        nearest of its 256 levels.
      quality: 1 to 100.

    Raises:
      ValueError: for a JAX array, another number of channels or a quality out of range.
    """
    if not isinstance(images, np.ndarray):
        raise ValueError(
            "JPEG compression runs on the host alone: give it NumPy arrays, before augmentation."
        )
    require_images(images)
    if images.shape[-1] not in (1, 3):
        raise ValueError(
            f"JPEG compression takes gray or RGB images, 1 or 3 channels, not {images.shape[-1]}."
        )
    if not 1 <= quality <= 100:
        raise ValueError(f"quality={quality} is no JPEG quality: choose one from 1 to 100.")
    stack = nearest_levels(images).reshape(-1, *images.shape[-3:])
    coded = np.empty_like(stack)
    for image, decoded in zip(stack, coded, strict=True):
        stream = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
            stream, "JPEG", quality=quality
        )
        with Image.open(stream) as picture:
            decoded[:] = np.asarray(picture).reshape(image.shape)
    return look_up(np.arange(256.0), coded.reshape(images.shape), images.dtype)
