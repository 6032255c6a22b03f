"""Losses without negatives."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from jaxssl.losses.arrays import check_features, cosine


def negative_cosine(
    p: Float[Array, "b d"],
    z: Float[Array, "b d"],
    *,
    margin: ScalarLike | Float[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Mean max(-cos, -1 + margin)."""
    check_features(p=p, z=z)
    distance = -cosine(p, jax.lax.stop_gradient(z))
    if margin is None:
        return jnp.mean(distance)
    floor = jnp.asarray(margin, distance.dtype) - 1
    return jnp.mean(jnp.where(distance > floor, distance, floor))


def byol_regression(p: Float[Array, "b d"], z: Float[Array, "b d"]) -> Float[Array, ""]:
    """Mean 2 - 2 cos."""
    check_features(p=p, z=z)
    return jnp.mean(2 - 2 * cosine(p, jax.lax.stop_gradient(z)))
