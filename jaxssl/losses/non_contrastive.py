"""Losses without negatives: SimSiam's cosine, BYOL's regression, Barlow Twins, VICReg.

Features come un-normalised, one row a sample, and are promoted to at least float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from jaxssl.losses.arrays import check_features, cosine, promote
from jaxssl.losses.collectives import AxisName, axis_size, check_negatives, mean_over_shards


def negative_cosine(
    p: Float[Array, "b d"],
    z: Float[Array, "b d"],
    *,
    margin: ScalarLike | Float[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Mean of ``max(-cos(p, z), -1 + margin)``, without gradient to z.

    Without a margin, SimSiam's loss (arXiv:2011.10566, Eq. 1, one direction); with one, a pair that
    is closer than the margin asks has no gradient (Jha and Tuytelaars 2024, Eq. 1). Samples do not
    meet one another, so a mapped caller takes ``lax.pmean`` of it.

    Args:
      p: predictions, [B, D].
      z: targets, [B, D].
      margin: how far short of 1 the cosine may stay, 0 to 2: one for all or one a pair, [B].

    Raises:
      ValueError: for shapes other than these.

    >>> import jax.numpy as jnp
    >>> p, z = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[2.0, 0.0], [0.0, 2.0]])
    >>> print(negative_cosine(p, z), negative_cosine(p, z, margin=0.5))
    -0.5 -0.25
    """
    check_features(p=p, z=z)
    distance = -cosine(p, jax.lax.stop_gradient(z))
    if margin is None:
        return jnp.mean(distance)
    if jnp.shape(margin) not in ((), distance.shape):
        raise ValueError(
            f"margin has shape {jnp.shape(margin)}: give one number, or one a pair, "
            f"{distance.shape}."
        )
    floor = jnp.asarray(margin, distance.dtype) - 1
    outside = (distance > floor) | jnp.isnan(distance)
    return jnp.mean(jnp.where(outside, distance, floor))


def byol_regression(p: Float[Array, "b d"], z: Float[Array, "b d"]) -> Float[Array, ""]:
    """Mean of ``2 - 2 cos(p, z)``, without gradient to z (BYOL, arXiv:2006.07733, Eq. 2).

    One direction: BYOL adds the other. Samples do not meet one another, so a mapped caller takes
    ``lax.pmean`` of it.

    Args:
      p: predictions, [B, D].
      z: targets, [B, D].

    Raises:
      ValueError: for shapes that are not one [B, D].

    >>> import jax.numpy as jnp
    >>> print(byol_regression(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]])))
    2.0
    """
    check_features(p=p, z=z)
    return jnp.mean(2 - 2 * cosine(p, jax.lax.stop_gradient(z)))


def barlow_twins(
    z1: Float[Array, "b d"],
    z2: Float[Array, "b d"],
    *,
    off_diagonal_weight: ScalarLike,
    epsilon: ScalarLike = 0.0,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """``sum_i (C_ii - 1)^2 + off_diagonal_weight * sum_{i != j} C_ij^2`` (arXiv:2103.03230, Eq. 1).

    C, [D, D], is the cross-correlation of the two views over the global batch: ``z1' z2 / B`` of
    features with zero mean and unit (biased) standard deviation in each dimension. A dimension that
    is constant, or whose standard deviation is within the rounding of its largest number,
    correlates with nothing.

    Args:
      z1: first views, [B, D].
      z2: second views, [B, D].
      off_diagonal_weight: the paper's lambda, .0051 there.
      epsilon: added to the variances; the reference code's BatchNorm adds 1e-5.
      axis_name: mapped axis that the batch is sharded over.

    Raises:
      ValueError: for shapes that are not one [B, D], or a global batch below 2.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 1.0], [-1.0, -1.0]])  # two copies of one feature
    >>> print(barlow_twins(z, z, off_diagonal_weight=0.5))
    1.0
    """
    check_features(z1=z1, z2=z2)
    check_negatives(z1.shape[0], axis_name)

    def standardize(z: Float[Array, "b d"]) -> Float[Array, "b d"]:
        z = promote(z)
        bounds = jax.lax.stop_gradient(jnp.stack([jnp.max(z, axis=0), jnp.max(-z, axis=0)]))
        if axis_name is not None:
            bounds = jax.lax.pmax(bounds, axis_name)
        # The mean of equal numbers is rounded, so a constant dimension would seem to vary; their
        # differences from the largest are exactly zero.
        z = z - bounds[0]
        centered = z - mean_over_shards(jnp.mean(z, axis=0), axis_name)
        variance = mean_over_shards(jnp.mean(centered**2, axis=0), axis_name)
        variance = variance + jnp.asarray(epsilon, z.dtype)
        rounding = 8 * jnp.finfo(z.dtype).eps * jnp.max(jnp.abs(bounds), axis=0)
        varies = ~(variance <= rounding**2)  # true of NaN: it must reach the loss
        return jnp.where(varies, centered * jax.lax.rsqrt(jnp.where(varies, variance, 1)), 0)

    product = jnp.matmul(standardize(z1).T, standardize(z2), precision=jax.lax.Precision.HIGHEST)
    correlation = mean_over_shards(product / z1.shape[0], axis_name)
    on_diagonal = jnp.eye(correlation.shape[0], dtype=bool)
    off_diagonal = jnp.sum(jnp.where(on_diagonal, 0, correlation) ** 2)
    attraction = jnp.sum((jnp.diagonal(correlation) - 1) ** 2)
    return attraction + jnp.asarray(off_diagonal_weight, correlation.dtype) * off_diagonal


def vicreg(
    z1: Float[Array, "b d"],
    z2: Float[Array, "b d"],
    *,
    invariance_weight: ScalarLike,
    variance_weight: ScalarLike,
    covariance_weight: ScalarLike,
    epsilon: ScalarLike = 1e-4,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Invariance, variance and covariance (VICReg, arXiv:2105.04906, Eq. 6, in its code's form).

    The weighted sum, over features that are not normalised, of

    - invariance: the mean over batch and dimensions of ``(z1 - z2)^2``;
    - variance: the mean over views and dimensions of ``max(0, 1 - sqrt(Var + epsilon))``;
    - covariance: the sum over views of ``sum_{i != j} Cov_ij^2 / D``.

    Variances and covariances are the unbiased ones of the global batch. The paper prints the sum of
    the views' variance terms, its code and this take half of that.

    Args:
      z1: first views, [B, D].
      z2: second views, [B, D].
      invariance_weight: the paper's lambda, 25 there.
      variance_weight: the paper's mu, 25 there.
      covariance_weight: the paper's nu, 1 there.
      epsilon: added to the variances.
      axis_name: mapped axis that the batch is sharded over.

    Raises:
      ValueError: for shapes that are not one [B, D], or a global batch below 2.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[0.5, 0.5], [-0.5, -0.5]])  # variances and covariance 1/2
    >>> weights = {"invariance_weight": 1.0, "variance_weight": 1.0, "covariance_weight": 1.0}
    >>> print(f"{vicreg(z, z, epsilon=0.0, **weights):.4f}")  # 0 + (1 - sqrt(1/2)) + 1/2
    0.7929
    """
    check_features(z1=z1, z2=z2)
    check_negatives(z1.shape[0], axis_name)
    z1, z2 = promote(z1), promote(z2)
    count = z1.shape[0] * axis_size(axis_name)
    unbiased = count / (count - 1)
    on_diagonal = jnp.eye(z1.shape[1], dtype=bool)

    def spread(z: Float[Array, "b d"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        centered = z - mean_over_shards(jnp.mean(z, axis=0), axis_name)
        variance = unbiased * mean_over_shards(jnp.mean(centered**2, axis=0), axis_name)
        hinge = jnp.mean(jax.nn.relu(1 - jnp.sqrt(variance + jnp.asarray(epsilon, z.dtype))))
        product = jnp.matmul(centered.T, centered, precision=jax.lax.Precision.HIGHEST)
        covariance = unbiased * mean_over_shards(product / z.shape[0], axis_name)
        off_diagonal = jnp.sum(jnp.where(on_diagonal, 0, covariance) ** 2)
        return hinge, off_diagonal / z.shape[1]

    invariance = mean_over_shards(jnp.mean((z1 - z2) ** 2), axis_name)
    (hinge1, covariance1), (hinge2, covariance2) = spread(z1), spread(z2)
    terms = jnp.stack([invariance, (hinge1 + hinge2) / 2, covariance1 + covariance2])
    weights = invariance_weight, variance_weight, covariance_weight
    return jnp.sum(terms * jnp.stack([jnp.asarray(weight, z1.dtype) for weight in weights]))
