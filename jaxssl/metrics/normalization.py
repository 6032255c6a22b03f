"""Features on the unit sphere, as metrics compare them."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def unit_rows(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Rows over their Euclidean norms, at least float32; a zero row stays zero, a NaN a NaN.

    Each row is divided by its largest entry first, so that no square over- or underflows.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    x = x / jnp.where(largest == 0, 1, largest)
    norm = jnp.linalg.norm(x, axis=1, keepdims=True)
    return x / jnp.where(norm == 0, 1, norm)
