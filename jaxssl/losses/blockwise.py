"""Row-wise logsumexp over all pairs, in memory linear in the number of rows.

The plain form builds the matrix of logits. The blockwise form visits it tile by tile, keeps a
running maximum and sum for each row, and in the backward pass computes each tile again: exact
first-order gradients, no temperature at which it overflows, no tile kept.

Two choices serve sharded batches under plain ``jax.jit``. A tile takes rows at equal strides, so
that every tile has rows of every device and all of them work on each tile; contiguous tiles would
give one device's rows to all. And where rows and keys are the same array, the gradient of a row
gathers what the row does as an anchor and as a key, so that nothing is summed over devices.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxssl.losses.collectives import AxisName, gather, varying_like

Allowed = Callable[[Int[Array, "r t"], Int[Array, "k t"]], Bool[Array, "r k"]]

# Above this many logits the matrix no longer fits a cache and tiles win.
PLAIN_LOGITS = 1024 * 1024
DEFAULT_BLOCK = 1024
# Exponents that far apart may be added to one another without losing float32's last digits.
NEAR = 16.0


def everything(rows: Int[Array, "r t"], keys: Int[Array, "k t"]) -> Bool[Array, "r k"]:
    """Every pair."""
    return jnp.ones((rows.shape[0], keys.shape[0]), bool)


def other_group(rows: Int[Array, "r t"], keys: Int[Array, "k t"]) -> Bool[Array, "r k"]:
    """Pairs whose first tags differ."""
    return rows[:, None, 0] != keys[None, :, 0]


def same_class(rows: Int[Array, "r t"], keys: Int[Array, "k t"]) -> Bool[Array, "r k"]:
    """Pairs whose first tags differ (the row itself is no partner) and whose second agree."""
    return other_group(rows, keys) & (rows[:, None, 1] == keys[None, :, 1])


def self_logsumexp(
    z: Float[Array, "r d"],
    tags: Int[Array, "r t"],
    *,
    scale: Float[Array, ""],
    allowed: Allowed,
    axis_name: AxisName,
    block_size: int | None,
) -> Float[Array, " r"]:
    """``log sum_j exp(scale z_i . z_j)`` over the rows j of the global batch allowed for row i.

    Args:
      z: this shard's rows.
      tags: integers of each row that ``allowed`` compares; unique in the global batch where they
        number rows.
      scale: inverse temperature, above 0.
      allowed: which pairs count; a symmetric relation of tags.
      axis_name: axis that the rows are sharded over, if mapped.
      block_size: side of a tile. None chooses by size; as many as there are rows or more is the
        plain form, which can be differentiated any number of times.
    """
    if axis_name is not None or _is_plain(z.shape[0], z.shape[0], block_size):
        keys, key_tags = gather(z, axis_name), gather(tags, axis_name)
        return cross_logsumexp(scale * z, keys, tags, key_tags, allowed, block_size)
    block = block_size or DEFAULT_BLOCK
    return _self_blockwise(allowed, block, z, varying_like(scale, z), tags)


def cross_logsumexp(
    rows: Float[Array, "r d"],
    keys: Float[Array, "k d"],
    row_tags: Int[Array, "r t"],
    key_tags: Int[Array, "k t"],
    allowed: Allowed,
    block_size: int | None,
) -> Float[Array, " r"]:
    """``log sum_j exp(rows_i . keys_j)`` over the keys j allowed for row i.

    ``block_size`` as for ``self_logsumexp``. A scale goes into ``rows``.
    """
    if _is_plain(rows.shape[0], keys.shape[0], block_size):
        logits = jnp.where(allowed(row_tags, key_tags), _dot(rows, keys.T), -jnp.inf)
        return jax.nn.logsumexp(logits, axis=1)
    rows, keys = varying_like(rows, keys), varying_like(keys, rows)
    return _cross_blockwise(allowed, block_size or DEFAULT_BLOCK, rows, keys, row_tags, key_tags)


def same_class_sums(
    keys: Float[Array, "k d"],
    row_tags: Int[Array, "r t"],
    key_tags: Int[Array, "k t"],
    block_size: int | None,
) -> tuple[Float[Array, "r d"], Int[Array, " r"]]:
    """Sum of the keys that ``same_class`` allows for each row, and their number."""
    if _is_plain(row_tags.shape[0], keys.shape[0], block_size):
        mask = same_class(row_tags, key_tags)
        return _dot(mask.astype(keys.dtype), keys), jnp.sum(mask, axis=1)
    block = block_size or DEFAULT_BLOCK
    key_tiles = (*_tiles((keys, key_tags), block), _valid(keys.shape[0], block))

    # Without the checkpoint the backward pass would keep every tile of the mask.
    @jax.checkpoint
    def add_tile(tags: Array, carry: tuple, tile: tuple) -> tuple[tuple, None]:
        tile_keys, tile_tags, valid = tile
        mask = same_class(tags, tile_tags) & valid
        sums, counts = carry
        sums = sums + _dot(mask.astype(keys.dtype), tile_keys)
        return (sums, counts + jnp.sum(mask, axis=1)), None

    def sweep(tags: Array) -> tuple[Array, Array]:
        zeros = jnp.zeros((tags.shape[0], keys.shape[1]), keys.dtype)
        start = (varying_like(zeros, keys), varying_like(jnp.zeros(tags.shape[0], int), keys))
        return jax.lax.scan(partial(add_tile, tags), start, key_tiles)[0]

    (row_tiles,) = _tiles((row_tags,), block)
    sums, counts = jax.lax.map(sweep, row_tiles)
    return _untile(sums, row_tags.shape[0]), _untile(counts, row_tags.shape[0])


def _is_plain(rows: int, keys: int, block_size: int | None) -> bool:
    if block_size is None:
        return rows * keys <= PLAIN_LOGITS
    if block_size < 1:
        raise ValueError(f"block_size={block_size}: give a positive number of rows, or None.")
    return block_size >= max(rows, keys)


def _dot(a: Float[Array, "m k"], b: Float[Array, "k n"]) -> Float[Array, "m n"]:
    # Accelerators would else round to fewer bits, which a temperature of .01 multiplies by 100.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _tile_count(rows: int, block: int) -> int:
    return -(-rows // block)


def _tiles(arrays: tuple, block: int, fill: float = 0) -> tuple:
    """Each array [n, ...] as [tiles, rows of a tile, ...], rows at strides, padded at the end."""

    def split(x: Shaped[Array, " n *rest"]) -> Shaped[Array, " tiles size *rest"]:
        count = _tile_count(x.shape[0], block)
        size = _tile_count(x.shape[0], count)
        padding = [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
        x = jnp.pad(x, padding, constant_values=fill)
        return jnp.swapaxes(x.reshape(size, count, *x.shape[1:]), 0, 1)

    return tuple(split(x) for x in arrays)


def _untile(x: Shaped[Array, " tiles size *rest"], rows: int) -> Shaped[Array, " n *rest"]:
    """The inverse of ``_tiles``, without its padding."""
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[:rows]


def _valid(rows: int, block: int) -> Bool[Array, "tiles size"]:
    return _tiles((jnp.ones(rows, bool),), block)[0]


def _forward(
    allowed: Allowed, block: int, rows: Array, keys: Array, row_tags: Array, key_tags: Array
) -> tuple[Float[Array, " r"], Float[Array, " r"]]:
    """Each row's largest logit and its sum of exponentials above that."""
    key_tiles = (*_tiles((keys, key_tags), block), _valid(keys.shape[0], block))

    def sweep(row_tile: tuple) -> tuple[Array, Array]:
        x, tags = row_tile

        def add_tile(carry: tuple, tile: tuple) -> tuple[tuple, None]:
            y, tile_tags, valid = tile
            largest, total = carry
            logits = jnp.where(allowed(tags, tile_tags) & valid, _dot(x, y.T), -jnp.inf)
            new = jnp.maximum(largest, jnp.max(logits, axis=1))
            added = jnp.sum(jnp.exp(logits - new[:, None]), axis=1)
            return (new, total * jnp.exp(largest - new) + added), None

        # The lowest number, for minus infinity less itself is no number.
        lowest = varying_like(jnp.full(x.shape[0], jnp.finfo(x.dtype).min, x.dtype), x)
        start = (lowest, varying_like(jnp.zeros(x.shape[0], x.dtype), x))
        return jax.lax.scan(add_tile, start, key_tiles)[0]

    largest, total = jax.lax.map(sweep, _tiles((rows, row_tags), block))
    return _untile(largest, rows.shape[0]), _untile(total, rows.shape[0])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _self_blockwise(
    allowed: Allowed, block: int, z: Array, scale: Array, tags: Array
) -> Float[Array, " r"]:
    """``log sum_j exp(scale z_i . z_j)`` over the j that a symmetric ``allowed`` lets row i see."""
    return _self_forward(allowed, block, z, scale, tags)[0]


def _self_forward(
    allowed: Allowed, block: int, z: Array, scale: Array, tags: Array
) -> tuple[Array, tuple]:
    largest, total = _forward(allowed, block, scale * z, z, tags, tags)
    # The pair is kept, not its logsumexp: at low temperatures that has lost the sum's last digits.
    return largest + jnp.log(total), (z, scale, tags, largest, total)


def _self_backward(allowed: Allowed, block: int, residuals: tuple, cotangent: Array) -> tuple:
    """With p_ij = exp(s_ij - l_i): dz_i = scale sum_j (g_i p_ij + g_j p_ji) z_j."""
    z, scale, tags, largest, total = residuals
    gain = cotangent / total
    lowest = jnp.min(largest)

    def gather_rows(weigh: Callable, gain: Array) -> Array:
        # A padded row's exponentials vanish above an infinite maximum.
        tiled = (*_tiles((z, tags, gain), block), *_tiles((largest,), block, fill=jnp.inf))
        key_tiles = (*tiled, _valid(z.shape[0], block))

        def sweep(row_tile: tuple) -> Array:
            own, own_tags, own_gain, own_largest = row_tile

            def add_tile(gathered: Array, tile: tuple) -> tuple[Array, None]:
                y, tile_tags, tile_gain, tile_largest, valid = tile
                logits = _dot(scale * own, y.T)
                weights = weigh(logits, own_gain, own_largest, tile_gain, tile_largest)
                weights = jnp.where(allowed(own_tags, tile_tags) & valid, weights, 0)
                return gathered + _dot(weights, y), None

            return jax.lax.scan(add_tile, jnp.zeros_like(own), key_tiles)[0]

        return _untile(jax.lax.map(sweep, tiled), z.shape[0])

    def two_exponentials(s: Array, g: Array, m: Array, tile_g: Array, tile_m: Array) -> Array:
        return g[:, None] * jnp.exp(s - m[:, None]) + tile_g * jnp.exp(s - tile_m)

    def one_exponential(s: Array, g: Array, m: Array, tile_g: Array, tile_m: Array) -> Array:
        return jnp.exp(s - lowest) * (g[:, None] + tile_g)

    # Rows with maxima near one another, as at all but low temperatures, share one exponential.
    gathered = jax.lax.cond(
        jnp.max(largest) - lowest < NEAR,
        lambda: gather_rows(one_exponential, gain * jnp.exp(lowest - largest)),
        lambda: gather_rows(two_exponentials, gain),
    )
    # Each pair stands in the gathered rows once from either side.
    return scale * gathered, jnp.sum(z * gathered) / 2, None


_self_blockwise.defvjp(_self_forward, _self_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_blockwise(
    allowed: Allowed, block: int, rows: Array, keys: Array, row_tags: Array, key_tags: Array
) -> Float[Array, " r"]:
    """``log sum_j exp(rows_i . keys_j)`` over the allowed j."""
    return _cross_forward(allowed, block, rows, keys, row_tags, key_tags)[0]


def _cross_forward(
    allowed: Allowed, block: int, rows: Array, keys: Array, row_tags: Array, key_tags: Array
) -> tuple[Array, tuple]:
    largest, total = _forward(allowed, block, rows, keys, row_tags, key_tags)
    return largest + jnp.log(total), (rows, keys, row_tags, key_tags, largest, total)


def _cross_backward(allowed: Allowed, block: int, residuals: tuple, cotangent: Array) -> tuple:
    """With p_ij = g_i exp(s_ij - l_i): drows = p keys, dkeys = p' rows."""
    rows, keys, row_tags, key_tags, largest, total = residuals
    row_tiles = (
        *_tiles((rows, row_tags, cotangent / total), block),
        *_tiles((largest,), block, fill=jnp.inf),
    )
    key_tiles = (*_tiles((keys, key_tags), block), _valid(keys.shape[0], block))

    def sweep(key_gradient: Array, row_tile: tuple) -> tuple[Array, Array]:
        x, tags, gain, highest = row_tile

        def add_tile(row_gradient: Array, tile: tuple) -> tuple[Array, Array]:
            y, tile_tags, valid, gradient = tile
            weights = gain[:, None] * jnp.exp(_dot(x, y.T) - highest[:, None])
            weights = jnp.where(allowed(tags, tile_tags) & valid, weights, 0)
            return row_gradient + _dot(weights, y), gradient + _dot(weights.T, x)

        tiles = (*key_tiles, key_gradient)
        row_gradient, key_gradient = jax.lax.scan(add_tile, jnp.zeros_like(x), tiles)
        return key_gradient, row_gradient

    key_gradient, row_gradient = jax.lax.scan(sweep, jnp.zeros_like(key_tiles[0]), row_tiles)
    gradients = _untile(row_gradient, rows.shape[0]), _untile(key_gradient, keys.shape[0])
    return *gradients, None, None


_cross_blockwise.defvjp(_cross_forward, _cross_backward)
