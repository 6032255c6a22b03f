"""RandBit (arXiv:2011.02803, section 5.2): channels that hold an integer of the image's own.

The integer is shared by all views of an image and says nothing of what it shows: a feature that is
as easy as its number of bits is small, and that competes with the image for the loss.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from jaxssl.randomness import Purpose, sample_keys

MAX_BITS = 32


def image_integers(
    split: Int[Array, " b"],
    index: Int[Array, " b"],
    epoch: Int[Array, " b"],
    *,
    seed: int,
    num_bits: int,
    fresh_per_epoch: bool,
) -> UInt[Array, " b"]:
    """One integer an image, uniform in [0, 2**num_bits), uint32.

    A function of (seed, split, index), and of the epoch where ``fresh_per_epoch``. Different images
    may draw the same integer: of 60,000 with 20 bits about 2**15.83 are distinct.

    Args:
      split: number of the original split of each image.
      index: position in it.
      epoch: epoch of each image.
      seed: of the bits, an unsigned 32-bit integer.
      num_bits: k, from 1 to 32.
      fresh_per_epoch: whether an image gets another integer in each epoch.

    Raises:
      ValueError: for another number of bits.
    """
    if not 1 <= num_bits <= MAX_BITS:
        raise ValueError(f"num_bits={num_bits} must be 1 to {MAX_BITS}, or 0 for none.")
    epoch = epoch if fresh_per_epoch else jnp.zeros_like(epoch)
    keys = sample_keys(seed, Purpose.BITS, split, epoch, index, 0)
    words = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(keys)
    return words >> (MAX_BITS - num_bits)


def bit_channels(integers: UInt[Array, " b"], num_bits: int) -> Float[Array, "b {num_bits}"]:
    """The bits of each integer as float32 0 or 1, least significant first."""
    places = jnp.arange(num_bits, dtype=jnp.uint32)
    return ((integers[:, None] >> places) & 1).astype(jnp.float32)


def append_channels(
    images: Float[Array, "b h w c"], values: Float[Array, "b k"]
) -> Float[Array, "b h w d"]:
    """The images with k channels more, each constant over the pixels."""
    constant = jnp.broadcast_to(values[:, None, None, :], (*images.shape[:3], values.shape[1]))
    return jnp.concatenate([images, constant.astype(images.dtype)], axis=-1)
