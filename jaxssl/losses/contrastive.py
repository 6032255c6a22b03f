"""Instance contrastive losses: NT-Xent and its kin, InfoNCE with a queue.

Features come un-normalised, one row a sample, in bfloat16, float16, float32 or float64; they are
promoted to at least float32, L2-normalised, and the loss is the mean over anchors. A temperature is
a positive number, or a traced scalar, which may be differentiated.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike

from jaxssl.losses.arrays import (
    check_choice,
    check_features,
    check_floating,
    check_positive,
    check_rank,
    cosine,
    interleave,
    normalize,
)
from jaxssl.losses.blockwise import others_logsumexp
from jaxssl.losses.collectives import (
    AxisName,
    axis_size,
    gather,
    mean_over_shards,
    row_numbers,
)


def nt_xent(
    z1: Float[Array, "b d"],
    z2: Float[Array, "b d"],
    *,
    temperature: ScalarLike,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """NT-Xent."""
    check_features(z1=z1, z2=z2)
    check_positive(temperature=temperature)
    z = interleave(normalize(z1), normalize(z2))
    scale = jnp.asarray(1 / temperature, z.dtype)
    rows = row_numbers(len(z), axis_name)
    spread = others_logsumexp(z, rows, scale=scale, axis_name=axis_name, block_size=block_size)
    return mean_over_shards(jnp.mean(spread) - scale * jnp.mean(cosine(z1, z2)), axis_name)


def info_nce(
    q: Float[Array, "b d"],
    k: Float[Array, "b d"],
    negatives: Float[Array, "K d"],
    *,
    temperature: ScalarLike,
) -> Float[Array, ""]:
    """InfoNCE."""
    check_features(q=q, k=k)
    check_positive(temperature=temperature)
    positive = cosine(q, k)[:, None]
    negative = normalize(q) @ normalize(negatives).T
    logits = jnp.concatenate([positive, negative], axis=1) / temperature
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[:, 0])


def supcon(
    z1: Float[Array, "b d"],
    z2: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    temperature: ScalarLike,
    positives: str = "outside",
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """SupCon."""
    check_features(z1=z1, z2=z2)
    check_positive(temperature=temperature)
    check_choice("positives", positives, ("outside", "inside"))
    z = interleave(normalize(z1), normalize(z2))
    keys = gather(z, axis_name)
    own = jnp.repeat(labels, 2)
    rows = row_numbers(len(z), axis_name)
    others = rows[:, None] != jnp.arange(len(keys))
    same = others & (own[:, None] == gather(own, axis_name))
    logits = z @ keys.T / temperature
    spread = jax.nn.logsumexp(logits, axis=1, where=others)
    count = jnp.sum(same, axis=1)
    if positives == "outside":
        attraction = jnp.sum(jnp.where(same, logits, 0), axis=1) / count
    else:
        attraction = jax.nn.logsumexp(logits, axis=1, where=same) - jnp.log(count)
    return mean_over_shards(jnp.mean(spread - attraction), axis_name)
