"""A ring of past embeddings: MoCo's negatives, SwAV's further rows for the assignment."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from jaxssl.errors import UserError
from jaxssl.methods.method import Bank


class Queue(nnx.Module):
    """Unit vectors, the oldest of which make room for the newest.

    Attributes:
      rows: [K, D], of length 1; random at first.
      position: int32, where the next ones go.
    """

    def __init__(self, size: int, dim: int, key: Key[Array, ""], dtype: DTypeLike = float):
        """K = ``size`` random directions of ``dim`` components."""
        rows = jax.random.normal(key, (size, dim), dtype)
        self.rows = Bank(rows / jnp.linalg.norm(rows, axis=1, keepdims=True))
        self.position = Bank(jnp.zeros((), jnp.int32))

    def push(self, new: Float[Array, "b d"]) -> None:
        """Takes the normalised rows of ``new`` in, which get no gradient.

        Raises:
          UserError: unless their number divides K.
        """
        rows, position = self.rows[...], self.position[...]
        if len(rows) % len(new):
            fits = max(len(rows) // len(new), 1) * len(new)
            raise UserError(
                f"--config.method.queue_size={len(rows)} must be a multiple of the {len(new)} keys "
                f"of a step, such as {fits}."
            )
        new = jax.lax.stop_gradient(new)
        new = new / jnp.maximum(jnp.linalg.norm(new, axis=1, keepdims=True), 1e-12)
        start = (position, jnp.zeros_like(position))
        self.rows[...] = jax.lax.dynamic_update_slice(rows, new.astype(rows.dtype), start)
        self.position[...] = (position + len(new)) % len(rows)
