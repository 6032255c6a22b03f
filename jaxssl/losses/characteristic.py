"""Sliced test of normality by the characteristic function (Epps and Pulley; LeJEPA's SIGReg).

Source: Balestriero and LeCun, arXiv:2511.08544, in the form of the authors' minimal code.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxssl.losses.arrays import check_features, normalize, promote
from jaxssl.losses.collectives import AxisName, axis_size, mean_over_shards

LAST_KNOT = 3.0


def sliced_characteristic(
    h: Float[Array, "b d"],
    *,
    key: Key[Array, ""],
    num_projections: int = 256,
    num_knots: int = 17,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """How far a batch is from a standard normal distribution, direction by direction.

    ``key`` draws unit vectors a. With ``x = h a`` and the window ``w(t) = exp(-t^2 / 2)``, which is
    the characteristic function of a standard normal x too, the mean over the directions of

        B * integral of w(t) [ (mean_i cos(t x_i) - w(t))^2 + (mean_i sin(t x_i))^2 ]

    over t from -3 to 3, by the trapezoid rule on knots of [0, 3], counted twice. A sample of the
    normal itself has 1.06 on average, whatever B.

    Args:
      h: features, [B, D], taken as they are: not normalised.
      key: randomness of this call; the same on every shard.
      num_projections: directions, at least 1; there may be more than D.
      num_knots: knots of the integral, at least 2.
      axis_name: mapped axis that the batch is sharded over.

    Raises:
      ValueError: if ``h`` is not [B, D] or empty, or a number is too small.

    >>> import jax, jax.numpy as jnp
    >>> collapsed = jnp.zeros((256, 64))
    >>> value = sliced_characteristic(collapsed, key=jax.random.key(0))
    >>> print(f"{value / 256:.2f}")  # the integral of w (1 - w)^2 from -3 to 3
    0.40
    """
    check_features(h=h)
    if num_projections < 1 or num_knots < 2:
        raise ValueError(
            f"num_projections={num_projections}, num_knots={num_knots}: give at least 1 and 2."
        )
    h = promote(h)
    directions = unit_directions(key, h.shape[1], num_projections, h.dtype)
    x = jnp.matmul(h, directions, precision=jax.lax.Precision.HIGHEST)
    knots = jnp.linspace(0, LAST_KNOT, num_knots, dtype=h.dtype)[:, None, None]
    window = jnp.exp(-(knots[:, 0] ** 2) / 2)
    step = LAST_KNOT / (num_knots - 1)
    ends = jnp.array([0, -1])
    weights = jnp.full_like(window, 2 * step).at[ends].set(step) * window
    real = mean_over_shards(jnp.mean(jnp.cos(knots * x), axis=1), axis_name)
    imaginary = mean_over_shards(jnp.mean(jnp.sin(knots * x), axis=1), axis_name)
    integral = jnp.sum(weights * ((real - window) ** 2 + imaginary**2), axis=0)
    return h.shape[0] * axis_size(axis_name) * jnp.mean(integral)


def unit_directions(
    key: Key[Array, ""], dimension: int, count: int, dtype: jnp.dtype
) -> Float[Array, "d p"]:
    """``count`` columns uniform on the unit sphere, independent of one another."""
    return normalize(jax.random.normal(key, (count, dimension), dtype)).T
