"""Random resized crop: one image [H, W, C], float in [0, 1], to [size, size, C].

A box is (y0, x0, y1, x1) in pixels, edges and not centres: pixel j covers [j, j + 1), the whole
image is (0, 0, H, W). Boxes may be fractional.
"""

import functools
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

Filter = Literal["bilinear", "bicubic"]
FILTERS: tuple[Filter, ...] = get_args(Filter)

# Half width of each filter, in output pixels when shrinking and input pixels when enlarging.
_SUPPORT: dict[str, int] = {"bilinear": 1, "bicubic": 2}
# A box edge this close to a pixel's edge (pixels) lies on it: float32 boxes that were meant to be
# whole, or to touch, must not reach one pixel further.
_EDGE_TOLERANCE = 1e-3
# Random fractional boxes are whole multiples of 1 / GRID pixel.
GRID = 128
# Pixels of a result that are made together by one matrix product: fewer and the products are too
# small to be fast, more and they multiply more zeros. Measured on a CPU for 224 pixels.
BLOCK = 32


def resized_crop(
    image: Float[Array, "h w c"],
    box: Float[Array, "4"],
    size: int,
    *,
    filter: Filter,
    antialias: bool,
) -> Float[Array, "{size} {size} c"]:
    """Cuts ``box`` out and resizes it to ``size`` x ``size``.

    Only pixels that the box overlaps are read and their weights are renormalised, so a whole-pixel
    box gives what cropping first and resizing then gives, and nothing outside the box leaks in.

    Args:
      image: float in [0, 1], any number of channels.
      box: (y0, x0, y1, x1), pixels, inside the image, fractional or not.
      size: side of the result, pixels.
      filter: "bilinear" (triangle) or "bicubic" (Keys, a = -1/2).
      antialias: whether the filter widens when the box is larger than ``size``, as Pillow's does;
        otherwise it interpolates between neighbouring pixels, as TensorFlow's does by default.

    Returns:
      Float in [0, 1]: what bicubic overshoots is clipped.
    """
    height, width, channels = image.shape
    rows, weights = _taps(box[0], box[2], height, size, filter, antialias)
    # Down the columns a few gathers of whole rows: a matrix product does 20 times the arithmetic at
    # 256 -> 224.
    lines = image.reshape(height, width * channels)  # XLA does not vectorise loops over 3 channels
    taps = [weights[:, k, None] * lines[rows[:, k]] for k in range(rows.shape[1])]
    image = functools.reduce(jnp.add, taps).reshape(size, width, channels)
    columns, weights = _taps(box[1], box[3], width, size, filter, antialias)
    image = _weigh_columns(image, columns, weights)
    return jnp.clip(image, 0.0, 1.0)


def _weigh_columns(
    image: Float[Array, "h w c"], columns: Int[Array, "size k"], weights: Float[Array, "size k"]
) -> Float[Array, "h size c"]:
    """The weighted sum of k columns for each column of the result; both go from left to right."""
    # Gathers are slow along any axis but the first, and XLA computes again for every tap whatever
    # made the image; a product it does not. Neighbours read nearly the same columns: one matrix for
    # a block of them is small, where one for all would be nearly empty.
    height, width, channels = image.shape
    size, k = columns.shape
    blocks = in_blocks(size)
    reach = min(math.ceil((blocks.shape[1] - 1) * width / size) + k + 1, width)
    start = jnp.minimum(columns[blocks[:, 0], 0], width - reach)
    read = jnp.arange(reach)
    place = columns[blocks] - start[:, None, None]
    taps = [
        jnp.where(place[..., tap, None] == read, weights[blocks, tap, None], 0.0)
        for tap in range(k)
    ]
    matrices = functools.reduce(jnp.add, taps)
    # What is in reach but under no tap: times 0 it could still be NaN.
    source = jnp.arange(width)
    under = (source >= columns[0, 0]) & (source <= columns[-1, -1])
    image = jnp.where(under[:, None], image, 0.0)
    windows = image[:, start[:, None] + read]
    blocked = jnp.einsum("nxl,ynlc->ynxc", matrices, windows, precision="highest")
    return blocked.reshape(height, -1, channels)[:, :size]


def in_blocks(length: int) -> Int[np.ndarray, "n m"]:
    """0 to length - 1 in blocks of about `BLOCK`; the last is filled up with length - 1."""
    blocks = max(length // BLOCK, 1)
    return np.minimum(np.arange(-(-length // blocks) * blocks), length - 1).reshape(blocks, -1)


def _taps(
    start: Float[Array, ""],
    stop: Float[Array, ""],
    length: int,
    size: int,
    filter: Filter,
    antialias: bool,
) -> tuple[Int[Array, "{size} k"], Float[Array, "{size} k"]]:
    """The input pixels that each output pixel of one axis reads, and their weights."""
    support = _SUPPORT[filter]
    # The largest box is the image, so this many pixels suffice under any box.
    k = min(math.ceil(2 * support * (max(length / size, 1) if antialias else 1)), length)
    # The outermost pixels that the box overlaps; never fewer than one.
    first = jnp.clip(jnp.floor(start + _EDGE_TOLERANCE), 0, length - 1)
    last = jnp.clip(jnp.ceil(stop - _EDGE_TOLERANCE) - 1, first, length - 1)

    # Lengths in units of 1 / (2 size) pixel, in which all but the division is exact for boxes on a
    # grid of 1 / GRID pixel: the weights must not depend on how XLA rounds for another batch.
    side = stop - start
    stretched = jnp.maximum(side, size) if antialias else jnp.full_like(side, size)
    centre = 2 * size * start + (2 * jnp.arange(size) + 1) * side
    # Taps start at the first pixel within the filter's reach, or where k of them end with the last.
    reached = jnp.ceil((centre - 2 * support * stretched - size) / (2 * size))
    reached = jnp.clip(reached, first, jnp.maximum(last - k + 1, first))
    pixels = reached[:, None] + jnp.arange(k)
    distance = ((2 * pixels + 1) * size - centre[:, None]) / (2 * stretched)
    weights = jnp.where(pixels <= last, _KERNELS[filter](distance), 0.0)
    weights = weights / jnp.sum(weights, axis=1, keepdims=True)
    return jnp.minimum(pixels, last).astype(jnp.int32), weights


def _triangle(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.maximum(1.0 - jnp.abs(x), 0.0)


def _keys_cubic(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Keys' cubic convolution with a = -1/2, as Pillow and TensorFlow; PyTorch has -3/4 too."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return jnp.where(x < 1.0, near, jnp.where(x < 2.0, far, 0.0))


_KERNELS = {"bilinear": _triangle, "bicubic": _keys_cubic}


def random_crop_box(
    key: Key[Array, ""],
    height: Int[Array, ""] | int,
    width: Int[Array, ""] | int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    attempts: int = 10,
    subpixel: bool,
) -> Float[Array, "4"]:
    """Draws a box as torchvision's ``RandomResizedCrop`` does, without a branch.

    The area is uniform and the aspect log-uniform; the first of ``attempts`` draws that fits into
    the image is taken and placed uniformly. If none fits: the largest central box whose aspect is
    within ``ratio``.

    Args:
      key: what the box depends on.
      height: of the image, pixels; may be traced, as the width may.
      width: of the image, pixels.
      scale: smallest and largest area of the box as a fraction of the image's, in (0, 1].
      ratio: smallest and largest width / height.
      attempts: how many draws are made.
      subpixel: sides and corners are multiples of 1 / `GRID` pixel; otherwise whole pixels, as
        torchvision's are.

    Returns:
      (y0, x0, y1, x1), float32, pixels, inside the image.
    """
    grid = GRID if subpixel else 1

    def rounded(x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.round(x * grid) / grid

    draws = jax.random.uniform(key, (attempts + 1, 2), dtype=jnp.float32)
    shape, place = draws[:attempts], draws[attempts]

    area = height * width * (scale[0] + (scale[1] - scale[0]) * shape[:, 0])
    log_ratio = math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * shape[:, 1]
    aspect = jnp.exp(log_ratio)
    sides = rounded(jnp.sqrt(jnp.stack([area / aspect, area * aspect], axis=1)))
    image = jnp.array([height, width], dtype=jnp.float32)
    fits = jnp.all((sides > 0) & (sides <= image), axis=1)
    side = sides[jnp.argmax(fits)]
    room = image - side
    # floor(u (n + 1)), as torchvision's randint: each of the n + 1 corners is equally likely.
    corner = jnp.minimum(jnp.floor(place * (room * grid + 1)) / grid, room)

    across = image[::-1] * jnp.array([1 / ratio[0], ratio[1]], dtype=jnp.float32)
    central = jnp.maximum(rounded(jnp.minimum(image, across)), 1 / grid)
    margin = jnp.floor(grid * (image - central) / 2) / grid
    any_fits = jnp.any(fits)
    side = jnp.where(any_fits, side, central)
    corner = jnp.where(any_fits, corner, margin)
    return jnp.concatenate([corner, corner + side])
