"""Row-wise logsumexp over all pairs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxssl.losses.collectives import AxisName, gather


def others_logsumexp(
    z: Float[Array, "r d"],
    groups: Int[Array, " r"],
    *,
    scale: Float[Array, ""],
    axis_name: AxisName,
    block_size: int | None,
) -> Float[Array, " r"]:
    """``log sum_j exp(scale * z_i . z_j)`` over all j of other groups than i's."""
    keys, key_groups = gather(z, axis_name), gather(groups, axis_name)
    logits = scale * z @ keys.T
    return jax.nn.logsumexp(logits, axis=1, where=groups[:, None] != key_groups)
