"""What methods keep of past batches: a ring of the newest rows, or a bank with a row an image."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from jaxssl.errors import UserError
from jaxssl.methods.method import Bank


class Queue(nnx.Module):
    """Unit vectors, the oldest of which make room for the newest: MoCo's negatives, SwAV's queue.

    Attributes:
      rows: [K, D], of length 1; random at first.
      position: int32, where the next ones go.
    """

    def __init__(self, size: int, dim: int, key: Key[Array, ""], dtype: DTypeLike):
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


def put_rows(
    bank: Shaped[Array, "n ..."], index: Int[Array, " b"], rows: Shaped[Array, "b ..."]
) -> Shaped[Array, "n ..."]:
    """A bank whose row ``index[i]`` is ``rows[i]``, without gradient.

    A batch that straddles two epochs may hold an image twice: the later row of the batch stays, on
    any number of devices. A scatter alone would leave it to the hardware.

    Args:
      bank: one row an image of the original split, [N, ...].
      index: ``views.index``, in [0, N).
      rows: what to put there, [B, ...], cast to the bank's dtype.
    """
    kept = jnp.where(is_last(index, len(bank)), index, len(bank))
    return bank.at[kept].set(jax.lax.stop_gradient(rows).astype(bank.dtype), mode="drop")


def is_last(index: Int[Array, " b"], size: int) -> Bool[Array, " b"]:
    """Whether no later row of the batch has the same index, which lies in [0, ``size``)."""
    number = jnp.arange(len(index))
    return jnp.full(size, -1).at[index].max(number)[index] == number
