"""What every loss does to its inputs first: check them, promote them, put them on the sphere."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, ScalarLike, Shaped


def check_matching(**arrays: Shaped[Array, "..."]) -> None:
    """Two or more named arrays have one shape, and nothing in it is empty.

    Raises:
      ValueError: naming the arrays and their shapes.
    """
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {listed}; give one row a sample in each.")
    if 0 in next(iter(shapes.values())):
        raise ValueError(f"nothing to average over: {listed}; give at least one sample.")


def check_rank(rank: int, dimensions: str, **arrays: Shaped[Array, "..."]) -> None:
    """Each named array has ``rank`` axes; ``dimensions`` says which in the error.

    Raises:
      ValueError: naming the array and its shape.
    """
    for name, array in arrays.items():
        if jnp.ndim(array) != rank:
            raise ValueError(f"{name} has shape {jnp.shape(array)}: give {dimensions}.")


def check_floating(**arrays: Shaped[Array, "..."]) -> None:
    """Each named array holds real floating point numbers.

    Raises:
      ValueError: naming the array and its dtype.
    """
    for name, array in arrays.items():
        dtype = jnp.result_type(array)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"{name} has dtype {dtype}: give floating point numbers.")


def check_features(**features: Shaped[Array, "..."]) -> None:
    """Each named array is a batch of feature vectors [B, D], all of one shape.

    Raises:
      ValueError: naming what is wrong.
    """
    check_rank(2, "[B, D]", **features)
    check_floating(**features)
    check_matching(**features)


def check_positive(**scalars: ScalarLike) -> None:
    """Each named scalar is above zero, wherever its value is known; a traced one passes.

    Raises:
      ValueError: naming the scalar and its value.
    """
    for name, value in scalars.items():
        if not isinstance(value, jax.core.Tracer) and not np.greater(value, 0):
            raise ValueError(f"{name}={value}: give a number above 0.")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """``value`` is one of ``choices``.

    Raises:
      ValueError: naming the argument, its value and the choices.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown: choose one of {', '.join(choices)}.")


def promote(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """float32, or float64 if ``x`` is: losses accumulate in no less."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def normalize(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """``x`` over its Euclidean norm along the last axis, promoted; a zero vector stays zero.

    One with a NaN or an infinity becomes NaN. Exact for norms whose square would over- or
    underflow; the gradient at a zero vector is zero.
    """
    x = promote(x)
    # The result does not depend on the scale, so its gradient through the scale is exactly zero.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    nonzero = largest != 0  # true of NaN: it must reach the loss
    x = jnp.where(nonzero, x / jnp.where(nonzero, largest, 1), 0)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(nonzero, square, 1))


def inverse(temperature: ScalarLike, like: Float[Array, "..."]) -> Float[Array, ""]:
    """``1 / temperature`` in the dtype of ``like``."""
    return 1 / jnp.asarray(temperature, like.dtype)


def cosine(x: Float[Array, "*batch d"], y: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """Cosine of the angle between corresponding vectors."""
    return jnp.sum(normalize(x) * normalize(y), axis=-1)


def interleave(*views: Float[Array, "b d"]) -> Float[Array, "n d"]:
    """V views of image i as rows V i, V i + 1 ... of one array.

    Concatenating would move half of the rows to other devices when the batch is sharded; this
    leaves every row where it is, and no loss depends on the order.
    """
    z = jnp.stack(views, axis=1)
    return z.reshape(-1, z.shape[2])


def masked_mean(
    values: Float[Array, "*shape"], mask: Bool[Array, "*shape"], axis: int
) -> Float[Array, "..."]:
    """Mean along ``axis`` of the entries that ``mask`` allows; 0 where it allows none."""
    count = jnp.sum(mask, axis=axis)
    return jnp.sum(jnp.where(mask, values, 0), axis=axis) / jnp.maximum(count, 1)
