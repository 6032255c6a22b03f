"""From raw 64-bit words to what corruptions take: permutations and uniforms, the same anywhere."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int, UInt64

Words = Callable[[int], UInt64[np.ndarray, " n"]]  # so many words, as np.random.Philox.random_raw

UNIFORM_BITS = 23  # what float32 uniforms in [0, 1) hold, JAX's as well as those drawn here


def draw_permutation(words: Words, n: int) -> Int[np.ndarray, " n"]:
    """A permutation of ``range(n)`` as int32, uniform over all but the identity if n > 1.

    A corruption that does nothing would be an experiment without an intervention. Two equal words
    keep their order; that happens once in 2**64 / n**2 draws.
    """
    unmoved = np.arange(n)
    while True:
        sigma = np.argsort(words(n), kind="stable")
        if n == 1 or np.any(sigma != unmoved):
            return sigma.astype(np.int32)


def draw_uniforms(words: Words, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    """Uniforms in [0, 1), multiples of 2**-23 as `jax.random.uniform` makes them; two a word."""
    n = math.prod(shape)
    raw = words((n + 1) // 2)
    halves = np.stack([raw >> 32, raw & 0xFFFFFFFF], axis=-1).reshape(-1)[:n]
    bits = halves >> (32 - UNIFORM_BITS)
    return (bits.astype(np.float32) * 2.0**-UNIFORM_BITS).reshape(shape)
