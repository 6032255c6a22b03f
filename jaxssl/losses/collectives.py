"""One loss over shards of a batch: what ``axis_name`` means inside ``jax.pmap`` and ``shard_map``.

Every loss gathers (differentiably) what its rows are compared with, computes its own rows, and ends
in ``lax.pmean``. So each device holds the number of the global batch, and ``lax.pmean`` of the
parameter gradient is the gradient of that number, whether ``jax.grad`` was taken inside or outside
the mapped function and with or without ``check_vma``. Devices hold equally many rows.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

AxisName = str | tuple[str, ...] | None


def axis_size(axis_name: AxisName) -> int:
    """Number of shards: 1 without an axis."""
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def gather(x: Shaped[Array, " b *rest"], axis_name: AxisName) -> Shaped[Array, " n *rest"]:
    """The rows of all shards, in the order of the global batch."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def mean_over_shards(x: Float[Array, "*shape"], axis_name: AxisName) -> Float[Array, "*shape"]:
    """Mean of the shards' values, the same on each."""
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def sum_over_shards(x: Shaped[Array, "*shape"], axis_name: AxisName) -> Shaped[Array, "*shape"]:
    """Sum of the shards' values, the same on each."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def row_numbers(count: int, axis_name: AxisName) -> Int[Array, " b"]:
    """Positions in the global batch of this shard's ``count`` rows."""
    rows = jnp.arange(count)
    return rows if axis_name is None else rows + count * jax.lax.axis_index(axis_name)


def varying_like(
    x: Shaped[Array, "*shape"], other: Shaped[Array, "..."]
) -> Shaped[Array, "*shape"]:
    """``x`` as varying over the mapped axes that ``other`` varies over.

    ``shard_map`` wants a loop to start from the type that it ends with, and a cotangent to have the
    type of its primal. Adding a zero made like ``other`` casts; XLA removes it.
    """
    return x + jnp.zeros_like(other, dtype=x.dtype, shape=())


def check_negatives(count: int, axis_name: AxisName) -> None:
    """The global batch has two images at least: an image alone has no negative.

    Raises:
      ValueError: naming the batch.
    """
    batch = count * axis_size(axis_name)
    if batch < 2:
        raise ValueError(f"a batch of {batch} image has no negatives: give two or more.")
