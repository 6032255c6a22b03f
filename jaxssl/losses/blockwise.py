"""Row-wise logsumexp over all pairs, in memory linear in the number of rows.

The plain form builds the matrix of logits. The blockwise form visits it tile by tile, keeps a
running maximum and sum for each row, and in the backward pass computes each tile again: exact
first-order gradients, no temperature at which it overflows, no tile kept.

Two choices serve sharded batches under plain ``jax.jit``. A tile takes rows at equal strides, so
that every tile has rows of every device and all of them work on each tile; contiguous tiles would
give one device's rows to all. And where rows and keys are the same array, the gradient of a row
gathers what the row does as an anchor and as a key, so that nothing is summed over devices.

For that the side of a tile has to divide the rows and the devices the side: the default looks for
such a side. If no side near it divides the rows (as for twice a large prime), or the devices divide
none that does, every device computes everything: the same result, but the work is not shared. Then
change the batch size or pass a ``block_size``. The number of devices is assumed to be a power of 2.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxssl.losses.collectives import AxisName, gather, varying_like

Allowed = Callable[[Int[Array, "r t"], Int[Array, "k t"]], Bool[Array, "r k"]]

# With more logits than this the matrix does not fit a cache, and tiles are faster.
PLAIN_LOGITS = 1024 * 1024
# Smaller tiles cost more time than the memory that they save is worth.
SMALLEST_BLOCK = 512
# Maxima no further apart than this can share one exponential without losing float32's digits.
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
    if axis_name is not None or is_plain(z.shape[0], z.shape[0], block_size):
        keys, key_tags = gather(z, axis_name), gather(tags, axis_name)
        return cross_logsumexp(scale * z, keys, tags, key_tags, allowed, block_size)
    block = block_size or _default_block(z.shape[0], *z.shape)
    vectors, tags, valid = _tiles(z, tags, block)
    found = _self_blockwise(allowed, vectors, varying_like(scale, z), tags, valid)
    return _untile(found.T, z.shape[0])


def pair_logsumexp(
    z: Float[Array, "r d"],
    tags: Int[Array, "r t"],
    *,
    scale: Float[Array, ""],
    allowed: Allowed,
    axis_name: AxisName,
    block_size: int | None,
) -> Float[Array, ""]:
    """``log sum_ij exp(scale z_i . z_j)`` over all allowed ordered pairs of the global batch.

    Arguments as for ``self_logsumexp``, whose logsumexp over rows it is. Blockwise, the gradient is
    gathered along with the sum, so that no tile is computed again in the backward pass.
    """
    if axis_name is not None or is_plain(z.shape[0], z.shape[0], block_size):
        rows = self_logsumexp(
            z, tags, scale=scale, allowed=allowed, axis_name=axis_name, block_size=block_size
        )
        return jax.nn.logsumexp(gather(rows, axis_name))
    block = block_size or _default_block(z.shape[0], *z.shape)
    vectors, tags, valid = _tiles(z, tags, block)
    return _pairs_blockwise(allowed, vectors, varying_like(scale, z), tags, valid)


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
    if is_plain(rows.shape[0], keys.shape[0], block_size):
        logits = jnp.where(allowed(row_tags, key_tags), _dot(rows, keys.T), -jnp.inf)
        return jax.nn.logsumexp(logits, axis=1)
    rows, keys = varying_like(rows, keys), varying_like(keys, rows)
    most, features = max(rows.shape[0], keys.shape[0]), keys.shape[1]
    row_block = block_size or _default_block(rows.shape[0], most, features)
    key_block = block_size or _default_block(keys.shape[0], most, features)
    row_tiles, key_tiles = _tiles(rows, row_tags, row_block), _tiles(keys, key_tags, key_block)
    found = _cross_blockwise(allowed, *row_tiles[:2], *key_tiles)
    return _untile(found.T, rows.shape[0])


def same_class_sums(
    keys: Float[Array, "k d"],
    row_tags: Int[Array, "r t"],
    key_tags: Int[Array, "k t"],
    block_size: int | None,
) -> tuple[Float[Array, "r d"], Float[Array, " r"]]:
    """Sum of the keys that ``same_class`` allows for each row, and their number."""
    if is_plain(row_tags.shape[0], keys.shape[0], block_size):
        mask = same_class(row_tags, key_tags).astype(keys.dtype)
        return _dot(mask, keys), jnp.sum(mask, axis=1)
    rows, most = row_tags.shape[0], max(row_tags.shape[0], keys.shape[0])
    row_block = block_size or _default_block(rows, most, keys.shape[1])
    key_block = block_size or _default_block(keys.shape[0], most, keys.shape[1])
    row_tiles = _by_tile(row_tags, row_block), _by_tile(jnp.ones(rows, bool), row_block)
    sums, counts = _same_class_blockwise(*row_tiles, *_tiles(keys, key_tags, key_block))
    return _untile(sums, rows), _untile(counts.T, rows)


def is_plain(rows: int, keys: int, block_size: int | None) -> bool:
    """Whether the matrix of these rows and keys is built whole."""
    if block_size is None:
        return rows * keys <= PLAIN_LOGITS
    if block_size < 1:
        raise ValueError(f"block_size={block_size}: give a positive number of rows, or None.")
    return block_size >= max(rows, keys)


def _dot(a: Float[Array, "m k"], b: Float[Array, "k n"]) -> Float[Array, "m n"]:
    # By default accelerators round the inputs to fewer bits: a temperature of .01 multiplies that
    # error by 100.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _default_block(rows: int, most: int, features: int) -> int:
    """Side of the tiles that ``rows`` are cut into, for an array of ``most`` rows at most.

    About a power of two whose tile takes no more than half the memory of those: so both the memory
    and the number of tiles are linear in the rows. Of the sides near it that divide the rows, which
    are then not padded, it is the one with the most factors two, which a power of two of devices
    can share, and of equal ones the nearest.
    """
    block = max(SMALLEST_BLOCK, 2 ** int(math.log2(math.isqrt(most * features // 2))))
    # As large as the plain form may be, or half again where tiles are larger than that.
    largest = max(math.isqrt(PLAIN_LOGITS), 3 * block // 2)
    sides = [side for side in range(block // 2, largest + 1) if rows % side == 0]
    return max(
        sides or [block],
        key=lambda side: (math.gcd(side, block), -abs(math.log2(side / block))),
    )


def _strided(x: Shaped[Array, " n *rest"], block: int) -> Shaped[Array, " size tiles *rest"]:
    """Entry [i, j] is row i of tile j: a view of the rows, padded at the end."""
    count = -(-x.shape[0] // block)
    size = -(-x.shape[0] // count)
    padding = [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding).reshape(size, count, *x.shape[1:])


def _by_tile(x: Shaped[Array, " n *rest"], block: int) -> Shaped[Array, " tiles size *rest"]:
    """A copy, for what is small and read once for each logit: strides would slow that down."""
    return jnp.swapaxes(_strided(x, block), 0, 1)


def _tiles(
    vectors: Float[Array, "n d"], tags: Int[Array, "n t"], block: int
) -> tuple[Float[Array, "size tiles d"], Int[Array, "tiles size t"], Bool[Array, "tiles size"]]:
    """Vectors, their tags, and which are no padding."""
    valid = jnp.ones(vectors.shape[0], bool)
    return _strided(vectors, block), _by_tile(tags, block), _by_tile(valid, block)


def _untile(x: Shaped[Array, " size tiles *rest"], rows: int) -> Shaped[Array, " n *rest"]:
    """The inverse of ``_strided``."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[:rows]


def _tile(x: Float[Array, "size tiles d"], number: Int[Array, ""]) -> Float[Array, "size d"]:
    return jax.lax.dynamic_index_in_dim(x, number, 1, keepdims=False)


def _put(
    x: Float[Array, "size tiles d"], tile: Float[Array, "size d"], number: Int[Array, ""]
) -> Float[Array, "size tiles d"]:
    """The array with that tile replaced."""
    return jax.lax.dynamic_update_index_in_dim(x, tile, number, 1)


def _forward(
    allowed: Allowed,
    scale: Array,
    rows: Array,
    row_tags: Array,
    keys: Array,
    key_tags: Array,
    valid: Array,
) -> tuple[Float[Array, "tiles size"], Float[Array, "tiles size"]]:
    """Each row's largest logit and its sum of exponentials above that."""

    def sweep(number: Array) -> tuple[Array, Array]:
        x, tags = scale * _tile(rows, number), row_tags[number]

        def add_tile(number: Array, carry: tuple) -> tuple:
            largest, total = carry
            counted = allowed(tags, key_tags[number]) & valid[number]
            logits = jnp.where(counted, _dot(x, _tile(keys, number).T), -jnp.inf)
            new = jnp.maximum(largest, jnp.max(logits, axis=1))
            added = jnp.sum(jnp.exp(logits - new[:, None]), axis=1)
            return new, total * jnp.exp(largest - new) + added

        # The lowest number, not -inf: -inf - (-inf) is NaN.
        lowest = varying_like(jnp.full(x.shape[0], jnp.finfo(x.dtype).min, x.dtype), x)
        start = (lowest, varying_like(jnp.zeros(x.shape[0], x.dtype), x))
        return jax.lax.fori_loop(0, keys.shape[1], add_tile, start)

    return jax.lax.map(sweep, jnp.arange(rows.shape[1]))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _self_blockwise(
    allowed: Allowed, z: Array, scale: Array, tags: Array, valid: Array
) -> Float[Array, "tiles size"]:
    """``log sum_j exp(scale z_i . z_j)`` over the j that a symmetric ``allowed`` lets row i see."""
    return _self_forward(allowed, z, scale, tags, valid)[0]


def _self_forward(
    allowed: Allowed, z: Array, scale: Array, tags: Array, valid: Array
) -> tuple[Array, tuple]:
    largest, total = _forward(allowed, scale, z, tags, z, tags, valid)
    # Maximum and sum are kept, not their logsumexp: at low temperatures it loses the last digits.
    return largest + jnp.log(total), (z, scale, tags, valid, largest, total)


def _self_backward(allowed: Allowed, residuals: tuple, cotangent: Array) -> tuple:
    """With p_ij = exp(s_ij - l_i): dz_i = scale sum_j (g_i p_ij + g_j p_ji) z_j."""
    z, scale, tags, valid, largest, total = residuals
    # A padded row has no say: its exponentials vanish above an infinite maximum.
    gain = jnp.where(valid, cotangent / total, 0)
    lowest = jnp.min(jnp.where(valid, largest, jnp.inf))
    spread = jnp.max(jnp.where(valid, largest, -jnp.inf)) - lowest
    largest = jnp.where(valid, largest, jnp.inf)

    def gather_rows(weigh: Callable, gain: Array) -> tuple[Array, Array]:
        def sweep(number: Array, carry: tuple) -> tuple:
            own, own_tags = _tile(z, number), tags[number]
            rows, own_gain, own_largest = scale * own, gain[number], largest[number]

            def add_tile(number: Array, gathered: Array) -> Array:
                keys = _tile(z, number)
                logits = _dot(rows, keys.T)
                weights = weigh(logits, own_gain, own_largest, gain[number], largest[number])
                counted = allowed(own_tags, tags[number]) & valid[number]
                return gathered + _dot(jnp.where(counted, weights, 0), keys)

            gathered = jax.lax.fori_loop(0, z.shape[1], add_tile, jnp.zeros_like(own))
            slope, product = carry
            return _put(slope, scale * gathered, number), product + jnp.sum(own * gathered)

        start = jnp.zeros_like(z), jnp.zeros_like(scale)
        return jax.lax.fori_loop(0, z.shape[1], sweep, start)

    def two_exponentials(s: Array, g: Array, m: Array, tile_g: Array, tile_m: Array) -> Array:
        return g[:, None] * jnp.exp(s - m[:, None]) + tile_g * jnp.exp(s - tile_m)

    def one_exponential(s: Array, g: Array, m: Array, tile_g: Array, tile_m: Array) -> Array:
        return jnp.exp(s - lowest) * (g[:, None] + tile_g)

    # If the maxima of all rows are near one another (not at low temperatures), one exponential a
    # pair serves both rows.
    slope, product = jax.lax.cond(
        spread < NEAR,
        lambda: gather_rows(one_exponential, gain * jnp.exp(lowest - largest)),
        lambda: gather_rows(two_exponentials, gain),
    )
    # Each pair is in the gathered rows twice, once from either side.
    return slope, product / 2, None, None


_self_blockwise.defvjp(_self_forward, _self_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pairs_blockwise(
    allowed: Allowed, z: Array, scale: Array, tags: Array, valid: Array
) -> Float[Array, ""]:
    """``log sum_ij exp(scale z_i . z_j)`` over the pairs of a symmetric ``allowed``."""
    rows = _self_blockwise(allowed, z, scale, tags, valid)
    return jax.nn.logsumexp(jnp.where(valid, rows, -jnp.inf))


def _pairs_forward(
    allowed: Allowed, z: Array, scale: Array, tags: Array, valid: Array
) -> tuple[Array, tuple]:
    """With p_ij = exp(s_ij - l): the value l, and sum_j p_ij z_j of each row i."""

    def sweep(gathered: Array, number: Array) -> tuple[Array, tuple]:
        own, own_tags = scale * _tile(z, number), tags[number]

        def add_tile(number: Array, carry: tuple) -> tuple:
            largest, total, sums = carry
            keys = _tile(z, number)
            counted = allowed(own_tags, tags[number]) & valid[number]
            logits = jnp.where(counted, _dot(own, keys.T), -jnp.inf)
            new = jnp.maximum(largest, jnp.max(logits, axis=1))
            weights, shrink = jnp.exp(logits - new[:, None]), jnp.exp(largest - new)
            total = shrink * total + jnp.sum(weights, axis=1)
            return new, total, shrink[:, None] * sums + _dot(weights, keys)

        lowest = jnp.full_like(own[:, 0], jnp.finfo(own.dtype).min)
        start = lowest, jnp.zeros_like(own[:, 0]), jnp.zeros_like(own)
        largest, total, sums = jax.lax.fori_loop(0, z.shape[1], add_tile, start)
        return _put(gathered, sums, number), (largest, total)

    steps = jnp.arange(z.shape[1])
    gathered, (largest, total) = jax.lax.scan(sweep, jnp.zeros_like(z), steps)
    # Not from the rows' logsumexps: at low temperatures those have lost the sums' last digits.
    largest = jnp.where(valid, largest, -jnp.inf)
    top = jnp.max(largest)
    share = jnp.exp(largest - top)
    mass = jnp.sum(share * total)
    gathered = (share / mass).T[:, :, None] * gathered
    return top + jnp.log(mass), (scale, gathered, jnp.sum(z * gathered))


def _pairs_backward(allowed: Allowed, residuals: tuple, cotangent: Array) -> tuple:
    """dl/dz_i = 2 scale sum_j p_ij z_j: each row is an anchor and a key."""
    scale, gathered, product = residuals
    return 2 * scale * cotangent * gathered, cotangent * product, None, None


_pairs_blockwise.defvjp(_pairs_forward, _pairs_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_blockwise(
    allowed: Allowed, rows: Array, row_tags: Array, keys: Array, key_tags: Array, valid: Array
) -> Float[Array, "tiles size"]:
    """``log sum_j exp(rows_i . keys_j)`` over the allowed j."""
    return _cross_forward(allowed, rows, row_tags, keys, key_tags, valid)[0]


def _cross_forward(allowed: Allowed, *tiles: Array) -> tuple[Array, tuple]:
    largest, total = _forward(allowed, jnp.ones((), tiles[0].dtype), *tiles)
    return largest + jnp.log(total), (*tiles, largest, total)


def _cross_backward(allowed: Allowed, residuals: tuple, cotangent: Array) -> tuple:
    """With p_ij = g_i exp(s_ij - l_i): drows = p keys, dkeys = p' rows."""
    rows, row_tags, keys, key_tags, valid, largest, total = residuals
    # Only padded rows have no cotangent; their total may be 0.
    gain = jnp.where(cotangent == 0, 0, cotangent / total)

    def sweep(number: Array, slopes: tuple[Array, Array]) -> tuple[Array, Array]:
        x, tags = _tile(rows, number), row_tags[number]
        row_gain, highest = gain[number][:, None], largest[number][:, None]

        def add_tile(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            gathered, key_slope = carry
            y = _tile(keys, number)
            counted = allowed(tags, key_tags[number]) & valid[number]
            weights = jnp.where(counted, row_gain * jnp.exp(_dot(x, y.T) - highest), 0)
            tile_slope = _tile(key_slope, number) + _dot(weights.T, x)
            return gathered + _dot(weights, y), _put(key_slope, tile_slope, number)

        start = jnp.zeros_like(x), slopes[1]
        gathered, key_slope = jax.lax.fori_loop(0, keys.shape[1], add_tile, start)
        return _put(slopes[0], gathered, number), key_slope

    start = jnp.zeros_like(rows), jnp.zeros_like(keys)
    row_slope, key_slope = jax.lax.fori_loop(0, rows.shape[1], sweep, start)
    return row_slope, None, key_slope, None, None


_cross_blockwise.defvjp(_cross_forward, _cross_backward)


@jax.custom_vjp
def _same_class_blockwise(
    row_tags: Array, row_valid: Array, keys: Array, key_tags: Array, valid: Array
) -> tuple[Float[Array, "size tiles d"], Float[Array, "tiles size"]]:
    """Sum and number of the keys of each row's class."""
    count, size, _ = row_tags.shape

    def sweep(sums: Array, number: Array) -> tuple[Array, Array]:
        tags = row_tags[number]

        def add_tile(number: Array, carry: tuple) -> tuple:
            counted = same_class(tags, key_tags[number]) & valid[number]
            mask = counted.astype(keys.dtype)
            return carry[0] + _dot(mask, _tile(keys, number)), carry[1] + jnp.sum(mask, axis=1)

        start = jnp.zeros_like(sums[:, 0]), varying_like(jnp.zeros(size, keys.dtype), keys)
        tile_sums, counts = jax.lax.fori_loop(0, keys.shape[1], add_tile, start)
        return _put(sums, tile_sums, number), counts

    start = varying_like(jnp.zeros((size, count, keys.shape[2]), keys.dtype), keys)
    return jax.lax.scan(sweep, start, jnp.arange(count))


def _same_class_forward(*tiles: Array) -> tuple[tuple[Array, Array], tuple]:
    row_tags, row_valid, _, key_tags, valid = tiles
    return _same_class_blockwise(*tiles), (row_tags, row_valid, key_tags, valid)


def _same_class_backward(residuals: tuple, cotangents: tuple[Array, Array]) -> tuple:
    """The relation is symmetric: a key gathers from the rows of its class."""
    row_tags, row_valid, key_tags, valid = residuals
    slope, _ = _same_class_blockwise(key_tags, valid, cotangents[0], row_tags, row_valid)
    return None, None, slope, None, None


_same_class_blockwise.defvjp(_same_class_forward, _same_class_backward)
