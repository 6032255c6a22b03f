"""How evenly features cover the sphere."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxssl.metrics.normalization import unit_rows


def uniformity(
    f: Float[Array | np.ndarray, "n d"], t: float = 2.0, *, block_size: int = 1024
) -> Float[Array, ""]:
    """Minus the logarithm of the mean Gaussian potential of all pairs; larger is more even.

    -log E exp(-t ||x - y||^2) over unordered pairs of different images: Wang & Isola
    (arXiv:2005.10242) with the sign turned. An even spread over the sphere gives
    2 t - log 0F1(d / 2; t^2): 3.94 at d = 128, t = 2.

    Args:
      f: features, n >= 2, L2-normalised here; a zero row stays zero.
      t: sharpness of the potential, > 0.
      block_size: side of the tiles in which pairs are compared; memory is its square in floats.

    Returns:
      scalar in [0, 4 t]; at least float32. Its expectation does not depend on n.

    Raises:
      ValueError: fewer than two features, or t not above 0.
    """
    features, sharpness = _checked(f, t)
    return _uniformity(features, sharpness, block_size=min(block_size, f.shape[0]))


class PerImage(NamedTuple):
    """Uniformity, and what each image adds to it.

    Attributes:
      value: as `uniformity` gives it.
      influence: [n], of mean 0: how the value would move if there were more images like this one.
        Over n independent images the value has about the variance mean(influence^2) / n.
    """

    value: Float[Array, ""]
    influence: Float[Array, " n"]


def uniformity_per_image(
    f: Float[Array | np.ndarray, "n d"], t: float = 2.0, *, block_size: int = 1024
) -> PerImage:
    """`uniformity` and the influence of each image, for intervals and paired differences.

    With K the mean potential of all pairs and K_i that of the pairs with image i, the first-order
    influence on -log K is -2 (K_i - K) / K (Hoeffding, Ann. Math. Statist. 1948). The pairs are
    computed twice, which `uniformity` alone spares.

    Args and errors as of `uniformity`.
    """
    features, sharpness = _checked(f, t)
    return _per_image(features, sharpness, block_size=min(block_size, f.shape[0]))


def _checked(f: Array | np.ndarray, t: float) -> tuple[Array, Array]:
    if f.shape[0] < 2:
        raise ValueError(f"uniformity needs at least 2 features: there are {f.shape[0]}.")
    if not t > 0:
        raise ValueError(f"t={t} must be above 0.")
    f = jnp.asarray(f, jnp.promote_types(f.dtype, jnp.float32))
    return f, jnp.asarray(t, f.dtype)


@functools.partial(jax.jit, static_argnames="block_size")
def _uniformity(
    f: Float[Array, "n d"], t: Float[Array, ""], *, block_size: int
) -> Float[Array, ""]:
    n = f.shape[0]
    largest, sums = row_sums(f, t, block_size, once=True)
    # Relative to the largest exponent: the sums would underflow where t is large.
    top = jnp.max(largest)
    sums = sums * jnp.exp(largest - top)
    return -top - jnp.log(jnp.sum(sums / (n - 1)) * (2 / n))


@functools.partial(jax.jit, static_argnames="block_size")
def _per_image(f: Float[Array, "n d"], t: Float[Array, ""], *, block_size: int) -> PerImage:
    n = f.shape[0]
    largest, sums = row_sums(f, t, block_size, once=False)
    largest, sums = largest.reshape(-1)[:n], sums.reshape(-1)[:n]
    top = jnp.max(largest)
    of_image = sums * jnp.exp(largest - top) / (n - 1)
    mean = of_image.mean()
    return PerImage(-top - jnp.log(mean), -2 * (of_image / mean - 1))


def row_sums(
    f: Float[Array, "n d"],
    t: Float[Array, ""],
    block_size: int,
    *,
    once: bool,
    rows_an_image: int = 1,
) -> tuple[Float[Array, "c b"], Float[Array, "c b"]]:
    """For each row, in blocks, the largest exponent of its pairs and the sum relative to it.

    Args:
      f: features, L2-normalised here.
      t: sharpness.
      block_size: rows a block, b; the last block is filled with rows that have no pair.
      once: each unordered pair at the earlier of its rows alone, and not at both.
      rows_an_image: so many rows in a row are of one image, and no pairs.
    """
    n = f.shape[0]
    f = unit_rows(f)
    count = -(-n // block_size)
    f = jnp.pad(f, ((0, count * block_size - n), (0, 0))).reshape(count, block_size, -1)
    square = jnp.sum(f**2, axis=2)  # 1, or 0 for a zero row
    number = jnp.arange(count * block_size).reshape(count, block_size)

    def tiles_of_rows(i: Array) -> tuple[Array, Array]:
        def add_tile(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            largest, total = carry
            # Accelerators otherwise round the inputs of a product to fewer bits.
            cosine = jnp.matmul(f[i], f[j].T, precision=jax.lax.Precision.HIGHEST)
            distance = jnp.maximum(square[i][:, None] + square[j] - 2 * cosine, 0)
            row = number[i][:, None]
            apart = row // rows_an_image != number[j] // rows_an_image
            pair = apart & (number[j] < n) & ((row < number[j]) | (not once))
            exponents = jnp.where(pair, -t * distance, -jnp.inf)
            new = jnp.maximum(largest, jnp.max(exponents, axis=1))
            added = jnp.sum(jnp.exp(exponents - new[:, None]), axis=1)
            return new, total * jnp.exp(largest - new) + added

        # The lowest number, not -inf: -inf - (-inf) is NaN.
        lowest = jnp.full(block_size, jnp.finfo(f.dtype).min, f.dtype)
        # Each unordered pair once: the tiles before the diagonal hold the same pairs again.
        first = i if once else 0
        return jax.lax.fori_loop(first, count, add_tile, (lowest, jnp.zeros_like(lowest)))

    return jax.lax.map(tiles_of_rows, jnp.arange(count))
