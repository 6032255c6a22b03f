"""Convolution of images in a form that suits the platform it is traced for.

Elsewhere than on a CPU, that is `jax.lax.conv_general_dilated`. On a CPU it is the same with what
XLA needs to compute the gradients at the speed of the products they are: everything here is made of
operations that JAX differentiates, forward and backward and as often as asked.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxssl.compilation import target


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c k"],
    strides: tuple[int, int],
    padding: Any,
    **options: Any,
) -> Float[Array, "b new_h new_w k"]:
    """`jax.lax.conv_general_dilated`, in which ``nnx.Conv`` takes its place; arguments as there."""
    if target() != "cpu":
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    # For the kernel's gradient XLA transposes x and the output's gradient, and without a barrier
    # computes all that led to them again, element by element, inside that strided copy. The barrier
    # after the convolution is one before its gradients.
    x = jax.lax.optimization_barrier(x)
    if kernel.shape[:2] == (1, 1) and not np.any(padding):
        taken = x[:, :: strides[0], :: strides[1]]
        y = jnp.matmul(taken, kernel[0, 0], precision=options["precision"])
    else:
        y = jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    return jax.lax.optimization_barrier(y)
