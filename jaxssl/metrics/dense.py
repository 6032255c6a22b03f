"""Alignment and uniformity of the cells of two maps an image (Moon, Kim and Choi, BMVC 2022)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxssl.metrics.geometry import paired_cosine
from jaxssl.metrics.uniformity import row_sums

PAIRS = ("same_index", "all_cells")


class OfImages(NamedTuple):
    """A mean over images or their pairs, and what each image adds to it.

    Attributes:
      value: the mean.
      influence: [n], of mean 0: how the value would move if there were more images like this one.
    """

    value: Float[Array, ""]
    influence: Float[Array, " n"]


def dense_alignment(
    h1: Float[Array | np.ndarray, "n p d"], h2: Float[Array | np.ndarray, "n p d"]
) -> OfImages:
    """L_a: minus the mean cosine between cells of the same index in two views of each image.

    Args:
      h1: maps of the first views, n and p >= 1, cells L2-normalised here.
      h2: maps of the second views.

    Returns:
      value in [-1, 1], the smaller the better aligned; at least float32.

    Raises:
      ValueError: no cell.
    """
    _check(h1, 1)
    n, cells, _ = h1.shape
    flat = (jnp.asarray(h).reshape(n * cells, -1) for h in (h1, h2))
    of_image = -paired_cosine(*flat).reshape(n, cells).mean(axis=1)
    value = of_image.mean()
    return OfImages(value, of_image - value)


def dense_uniformity(
    h1: Float[Array | np.ndarray, "n p d"],
    h2: Float[Array | np.ndarray, "n p d"],
    t: float = 2.0,
    *,
    pairs: str = "same_index",
    block_size: int = 1024,
) -> OfImages:
    """L_u: logarithm of the mean of exp(-t ||x - y||^2) over cells of different images.

    Args:
      h1: maps of the first views, n >= 2, p >= 1, cells L2-normalised here; zero cells stay zero.
      h2: maps of the second views; x and y are of either view.
      t: sharpness, > 0; the paper prints 1, Wang and Isola (arXiv:2005.10242) take 2.
      pairs: "same_index" compares cells of one index, as printed; "all_cells" any two.
      block_size: side of the tiles in which pairs are compared; memory is its square in floats.

    Returns:
      value in [-4 t, 0], the smaller the more even; at least float32.

    Raises:
      ValueError: fewer than two images, no cell, t not above 0, or no such ``pairs``.
    """
    _check(h1, 2)
    if not t > 0:
        raise ValueError(f"t={t} must be above 0.")
    if pairs not in PAIRS:
        raise ValueError(f"pairs={pairs!r} is unknown: choose one of {', '.join(PAIRS)}.")
    z = jnp.stack([jnp.asarray(h1), jnp.asarray(h2)], axis=1)
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    n, views, cells, features = z.shape
    if pairs == "same_index":
        groups = jnp.moveaxis(z, 2, 0).reshape(cells, n * views, features)
    else:
        groups = z.reshape(1, n * views * cells, features)
    rows = groups.shape[1]
    return _uniformity(groups, jnp.asarray(t, z.dtype), rows // n, block_size=min(block_size, rows))


@functools.partial(jax.jit, static_argnames=("rows_an_image", "block_size"))
def _uniformity(
    groups: Float[Array, "g r d"], t: Float[Array, ""], rows_an_image: int, *, block_size: int
) -> OfImages:
    """Pairs within each group alone; all groups have rows of the same images."""
    count, rows, _ = groups.shape

    def of_group(rows_of_group: Float[Array, "r d"]) -> tuple[Array, Array]:
        found = row_sums(rows_of_group, t, block_size, once=False, rows_an_image=rows_an_image)
        largest, sums = (part.reshape(-1)[:rows] for part in found)
        return largest, sums

    largest, sums = jax.lax.map(of_group, groups)
    # Relative to the largest exponent: the sums would underflow where t is large.
    top = jnp.max(largest)
    mean_of_row = sums * jnp.exp(largest - top) / (rows - rows_an_image)
    of_image = mean_of_row.reshape(count, -1, rows_an_image).mean(axis=(0, 2))
    mean = of_image.mean()
    return OfImages(top + jnp.log(mean), 2 * (of_image / mean - 1))


def _check(maps: Array | np.ndarray, fewest: int) -> None:
    images, cells, _ = maps.shape
    if images < fewest or cells == 0:
        raise ValueError(
            f"There are {images} images of {cells} cells: give at least {fewest} of at least 1."
        )
