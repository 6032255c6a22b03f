"""Corruptions of a data set: patch shuffling, gamma, grayscale, and three of ImageNet-C.

Images are ``[..., H, W, C]`` with any number of channels, NumPy or JAX arrays, uint8 in [0, 255] or
float in [0, 1]; what comes out has the shape, the dtype and the kind of array of what went in. On
JAX arrays everything but `jpeg` works under ``jit`` and ``vmap`` and keeps a sharded batch sharded.

Nothing here holds a seed: what is random is drawn by `Corruption.draw` from raw 64-bit words, or
handed over by the caller, so that the same draws give the same image on the host and on a device.

Shot noise, defocus blur and JPEG are those of Hendrycks & Dietterich (arXiv:1903.12261), whose code
casts with ``np.uint8``, that is, cuts the fraction off; so does this module for uint8 images.
"""

import functools
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8, UInt64
from PIL import Image

AnyArray = Array | np.ndarray
Images = UInt8[AnyArray, "*b h w c"] | Float[AnyArray, "*b h w c"]
Real = float | int
SomeArray = TypeVar("SomeArray", Array, np.ndarray)
Words = Callable[[int], UInt64[np.ndarray, " n"]]  # so many words, as np.random.Philox.random_raw

_UNIFORM_BITS = 23  # what float32 uniforms in [0, 1) hold, JAX's as well as those drawn here
_ROW_SHIFT = _UNIFORM_BITS + 1  # where the level stands above them; one bit more for 1.0 itself
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


def draw_permutation(words: Words, n: int) -> Int[np.ndarray, " n"]:
    """A permutation of ``range(n)`` as int32, uniform over all but the identity if n > 1.

    A corruption that does nothing would be an experiment without an intervention. Two equal words
    keep their order; that happens once in 2**64 / n**2 draws.
    """
    unmoved = np.arange(n)
    while True:
        sigma = np.argsort(words(n), kind="stable")
        if n == 1 or np.any(sigma != unmoved):
            return sigma.astype(np.int32)


def draw_uniforms(words: Words, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    """Uniforms in [0, 1), multiples of 2**-23 as `jax.random.uniform` makes them; two a word."""
    n = math.prod(shape)
    raw = words((n + 1) // 2)
    halves = np.stack([raw >> 32, raw & 0xFFFFFFFF], axis=-1).reshape(-1)[:n]
    bits = halves >> (32 - _UNIFORM_BITS)
    return (bits.astype(np.float32) * 2.0**-_UNIFORM_BITS).reshape(shape)


def inverse(sigma: Int[AnyArray, "*s n"]) -> Int[AnyArray, "*s n"]:
    """The permutation that undoes ``sigma``, whichever of the two shuffles it is given to."""
    return _namespace(sigma).argsort(sigma, axis=-1).astype(sigma.dtype)


def global_shuffle(images: Images, sigma: Int[AnyArray, "*s n"], patches: int) -> Images:
    """Moves whole patches: patch k of the result is patch sigma(k) of the image.

    Args:
      images: [..., H, W, C].
      sigma: permutation of the patches in row-major order, [patches**2] for all images or
        [..., patches**2] for each.
      patches: patches a side (the paper's N), a divisor of H and of W.

    Raises:
      ValueError: if the image cannot be cut so, or ``sigma`` is of another length.
    """
    _require_images(images)
    height, width = _patch_size(images.shape, patches)
    _require_permutations(sigma, images, patches**2)
    rows, columns = np.indices(images.shape[-3:-1], dtype=np.int32, sparse=True)
    source = sigma[..., (rows // height) * patches + columns // width]
    row = (source // patches) * height + rows % height
    column = (source % patches) * width + columns % width
    return _gather_pixels(images, row * images.shape[-2] + column)


def local_shuffle(images: Images, sigma: Int[AnyArray, "*s n"], patches: int) -> Images:
    """Moves the pixels inside each patch: pixel p of a patch is what was pixel sigma(p) of it.

    Args:
      images: [..., H, W, C].
      sigma: permutation of the positions in a patch, in row-major order, the same for all patches:
        [H W / patches**2] for all images or [..., H W / patches**2] for each.
      patches: patches a side (the paper's N), a divisor of H and of W.

    Raises:
      ValueError: if the image cannot be cut so, or ``sigma`` is of another length.
    """
    _require_images(images)
    height, width = _patch_size(images.shape, patches)
    _require_permutations(sigma, images, height * width)
    rows, columns = np.indices(images.shape[-3:-1], dtype=np.int32, sparse=True)
    source = sigma[..., (rows % height) * width + columns % width]
    row = (rows // height) * height + source // width
    column = (columns // width) * width + source % width
    return _gather_pixels(images, row * images.shape[-2] + column)


def _patch_size(shape: tuple[int, ...], patches: int) -> tuple[int, int]:
    """Height and width of a patch of images [..., H, W, C]."""
    height, width = shape[-3:-1]
    if patches < 1 or height % patches or width % patches:
        common = math.gcd(height, width)
        divisors = [str(n) for n in range(1, common + 1) if common % n == 0]
        raise ValueError(
            f"patches={patches} a side do not divide images of {height}x{width} pixels: choose one "
            f"of {', '.join(divisors)}."
        )
    return height // patches, width // patches


def _require_permutations(sigma: Any, images: Any, n: int) -> None:
    if sigma.shape not in {(n,), (*images.shape[:-3], n)}:
        raise ValueError(
            f"permutations of shape {sigma.shape} cannot shuffle images of shape {images.shape}: "
            f"with so many patches they take one of {n}, or one of {n} an image."
        )


def _gather_pixels(images: Any, positions: Any) -> Any:
    """Pixel ``positions`` (int [..., H, W], row-major) of the image at each place."""
    xp = _namespace(images)
    height, width, channels = images.shape[-3:]
    flat = images.reshape(*images.shape[:-3], height * width, channels)
    index = positions.reshape(*positions.shape[:-2], height * width)
    if index.ndim == 1:
        moved = xp.take(flat, index, axis=-2)
    else:
        moved = xp.take_along_axis(flat, index[..., None], axis=-2)
    return moved.reshape(images.shape)


def gamma(images: Images, exponent: Real) -> Images:
    """``x ** exponent``, rounded to the 256 levels of a stored image.

    Rounding is the corruption: the power alone could be undone. A float image is taken at the
    nearest of its 256 levels and comes out on them. Computed through a table, so that NumPy and JAX
    agree to the bit.

    Args:
      images: [..., H, W, C].
      exponent: > 0; below 1 it brightens.

    Raises:
      ValueError: if the exponent is not positive and finite.
    """
    _require_images(images)
    _require_positive("exponent", exponent)
    levels = np.rint(255 * (np.arange(256) / 255) ** exponent)
    return _look_up(levels, _levels(images), images.dtype)


def grayscale(images: Images) -> Images:
    """Takes colour away: every channel becomes the luma of ITU-R 601, as Pillow rounds it.

    A float image is taken at the nearest of its 256 levels. In integers, so that NumPy and JAX
    agree to the bit.

    Args:
      images: [..., H, W, 3].

    Raises:
      ValueError: if the images have no three channels.
    """
    _require_images(images)
    if images.shape[-1] != 3:
        raise ValueError(
            f"images of {images.shape[-1]} channels have no colour to take away: grayscale is for "
            "images of 3."
        )
    xp = _namespace(images)
    red, green, blue = (_levels(images)[..., c].astype(np.int32) for c in range(3))
    luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    levels = xp.broadcast_to(luma[..., None], images.shape)
    return _look_up(np.arange(256.0), levels, images.dtype)


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
    _require_images(images)
    _require_positive("photons", photons)
    if uniforms.shape != images.shape:
        raise ValueError(
            f"uniforms of shape {uniforms.shape} do not suit images of shape {images.shape}: "
            "shot noise takes one a pixel and channel."
        )
    xp = _namespace(images)
    thresholds = _poisson_thresholds(photons)
    columns = thresholds.size // 256
    level = _levels(images).astype(np.uint32)
    bits = (xp.asarray(uniforms) * 2.0**_UNIFORM_BITS).astype(np.uint32)
    found = xp.searchsorted(thresholds, (level << _ROW_SHIFT) | bits, side="right")
    count = found.astype(np.int32) - (level * columns).astype(np.int32)
    brightness = np.clip(np.arange(columns + 1) / photons, 0, 1)
    return _look_up(brightness * 255, count, images.dtype)


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
    threshold = np.ceil(np.minimum(cdf, 1) * 2**_UNIFORM_BITS).astype(np.uint32)
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
    _require_images(images)
    xp = _namespace(images)
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
    _require_positive("radius", radius)
    _require_positive("alias", alias)
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
    _require_images(images)
    if images.shape[-1] not in (1, 3):
        raise ValueError(
            f"JPEG compression takes gray or RGB images, 1 or 3 channels, not {images.shape[-1]}."
        )
    if not 1 <= quality <= 100:
        raise ValueError(f"quality={quality} is no JPEG quality: choose one from 1 to 100.")
    stack = _levels(images).reshape(-1, *images.shape[-3:])
    coded = np.empty_like(stack)
    for image, decoded in zip(stack, coded, strict=True):
        stream = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
            stream, "JPEG", quality=quality
        )
        with Image.open(stream) as picture:
            decoded[:] = np.asarray(picture).reshape(image.shape)
    return _look_up(np.arange(256.0), coded.reshape(images.shape), images.dtype)


def _namespace(array: Any) -> Any:
    """`numpy` or `jax.numpy`, whichever the array belongs to."""
    return array.__array_namespace__()


def _levels(images: Any) -> Any:
    """The nearest of the levels 0 to 255, uint8."""
    if images.dtype == np.uint8:
        return images
    xp = _namespace(images)
    return xp.rint(xp.clip(images.astype(np.float32), 0, 1) * 255).astype(np.uint8)


def _look_up(levels: np.ndarray, index: Any, dtype: Any) -> Any:
    """``levels[index]``, float64 in [0, 255]: cut off for uint8, over 255 for a float ``dtype``."""
    # Divided here and not on the device, whose compiler may multiply by the inverse instead.
    table = levels.astype(dtype) if dtype == np.uint8 else (levels / 255).astype(dtype)
    return _namespace(index).take(table, index, axis=0)


def _require_images(images: Any) -> None:
    floating = jnp.issubdtype(images.dtype, jnp.floating)
    if images.ndim < 3 or not (floating or images.dtype == np.uint8):
        raise ValueError(
            f"images of shape {images.shape} and type {images.dtype} cannot be corrupted: they "
            "have to be [..., height, width, channels], uint8 or float."
        )


def _require_positive(name: str, value: Real) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value} is out of range: it has to be positive and finite.")


@dataclass(frozen=True)
class Corruption:
    """What is done to every image of a data set.

    Attributes:
      apply: from images [..., H, W, C] and what was drawn to corrupted images, shape, dtype and
        kind of array kept.
      drawn: "nothing"; "once", one draw for all images of all splits; "image", one for each image;
        "pixel", a number for each value of each image, which a device may draw for itself.
      draw: from raw words and the shape [H, W, C] of an image to what is random, as NumPy array, or
        to None if nothing is; ValueError if images of this shape cannot be corrupted so.
      on_device: whether it takes JAX arrays.
    """

    apply: Callable[[Any, Any], Any]
    drawn: Literal["nothing", "once", "image", "pixel"] = "nothing"
    draw: Callable[[Words, tuple[int, ...]], np.ndarray | None] = lambda words, image_shape: None
    on_device: bool = True

    def __call__(self, images: SomeArray, drawn: AnyArray | None) -> SomeArray:
        """The corrupted images.

        Args:
          images: [..., H, W, C], uint8 in [0, 255] or float in [0, 1].
          drawn: what `draw` gave: one draw, or one an image along the leading axes of ``images``;
            None if nothing is drawn.

        Raises:
          ValueError: if the images do not suit the corruption or ``drawn`` the images.
        """
        if drawn is None and self.drawn != "nothing":
            raise ValueError("this corruption is random: give it what its draw() returns.")
        return self.apply(images, drawn)


def _severity(settings: Any) -> tuple[Severities, int]:
    """The constants that the settings name and where in them their severity is."""
    if settings.constants not in CONSTANTS:
        raise ValueError(
            f"constants={settings.constants!r} is unknown: choose {' or '.join(CONSTANTS)}."
        )
    if settings.severity not in range(1, 6):
        raise ValueError(f"severity={settings.severity} is out of range: choose 1, 2, 3, 4 or 5.")
    return CONSTANTS[settings.constants], settings.severity - 1


def _build_none(settings: Any) -> Corruption:
    return Corruption(lambda images, drawn: images)


def _build_shuffle(
    shuffle: Callable[..., Any], length: Callable[[tuple[int, ...], int], int], settings: Any
) -> Corruption:
    patches = settings.patches
    if patches < 1:
        raise ValueError(f"patches={patches} cuts no image: choose 1 or more.")
    return Corruption(
        lambda images, sigma: shuffle(images, sigma, patches),
        "image" if settings.per_image else "once",
        lambda words, image_shape: draw_permutation(words, length(image_shape, patches)),
    )


def _build_gamma(settings: Any) -> Corruption:
    exponent = settings.exponent
    _require_positive("exponent", exponent)
    return Corruption(lambda images, drawn: gamma(images, exponent))


def _build_grayscale(settings: Any) -> Corruption:
    return Corruption(lambda images, drawn: grayscale(images))


def _build_shot_noise(settings: Any) -> Corruption:
    constants, i = _severity(settings)
    photons = constants.shot_noise[i]
    return Corruption(
        lambda images, uniforms: shot_noise(images, uniforms, photons), "pixel", draw_uniforms
    )


def _build_defocus_blur(settings: Any) -> Corruption:
    constants, i = _severity(settings)
    radius, alias = constants.defocus_blur[i]
    return Corruption(lambda images, drawn: defocus_blur(images, radius, alias))


def _build_jpeg(settings: Any) -> Corruption:
    constants, i = _severity(settings)
    quality = constants.jpeg[i]
    return Corruption(lambda images, drawn: jpeg(images, quality), on_device=False)


# Each reads what it needs of a config's `corruption` group: patches, per_image, exponent, severity
# (1 to 5), constants ("cifar" or "imagenet"); ValueError if a value is out of range.
CORRUPTIONS: dict[str, Callable[[Any], Corruption]] = {
    "none": _build_none,
    "global_shuffle": functools.partial(_build_shuffle, global_shuffle, lambda shape, n: n**2),
    "local_shuffle": functools.partial(
        _build_shuffle, local_shuffle, lambda shape, n: math.prod(_patch_size(shape, n))
    ),
    "gamma": _build_gamma,
    "grayscale": _build_grayscale,
    "shot_noise": _build_shot_noise,
    "defocus_blur": _build_defocus_blur,
    "jpeg": _build_jpeg,
}
