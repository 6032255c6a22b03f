"""Where features lie on the sphere: distances within and between classes, pairs, norms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxssl.metrics.normalization import unit_rows
from jaxssl.metrics.uniformity import uniformity


def drop_rate(clean: float, corrupted: float) -> float:
    """(clean - corrupted) / clean: Delta_A and Delta_U of arXiv:2206.05259; NaN where clean is 0.

    Args:
      clean: an accuracy or a uniformity.
      corrupted: the same under a corruption.
    """
    return (clean - corrupted) / clean if clean else float("nan")


def alignment(
    f1: Float[Array | np.ndarray, "n d"],
    f2: Float[Array | np.ndarray, "n d"],
    *,
    alpha: float = 2.0,
) -> Float[Array, ""]:
    """Mean of ||f1 - f2||^alpha over pairs of one image: Wang & Isola (arXiv:2005.10242).

    Args:
      f1: features of one view of each image, n >= 1, L2-normalised here.
      f2: of another view.
      alpha: power of the distance, > 0.

    Raises:
      ValueError: no pair, or alpha not above 0.
    """
    if f1.shape[0] == 0:
        raise ValueError("There is no pair: alignment needs at least one.")
    if not alpha > 0:
        raise ValueError(f"alpha={alpha} must be above 0.")
    return jnp.mean(paired_squares(f1, f2) ** (alpha / 2))


def paired_squares(
    f1: Float[Array | np.ndarray, "n d"], f2: Float[Array | np.ndarray, "n d"]
) -> Float[Array, " n"]:
    """Squared distance, in [0, 4], between two features of each image, L2-normalised here."""
    return jnp.sum((unit_rows(jnp.asarray(f1)) - unit_rows(jnp.asarray(f2))) ** 2, axis=1)


def paired_cosine(
    f1: Float[Array | np.ndarray, "n d"], f2: Float[Array | np.ndarray, "n d"]
) -> Float[Array, " n"]:
    """Cosine between two features of each image, in [-1, 1]; 0 where one of them is zero."""
    return jnp.sum(unit_rows(jnp.asarray(f1)) * unit_rows(jnp.asarray(f2)), axis=1)


def feature_distance(
    f_i: Float[Array | np.ndarray, "n d"], f_j: Float[Array | np.ndarray, "m d"] | None = None
) -> Float[Array, ""]:
    """Mean squared distance between two sets of features, or within one: arXiv:2206.05259, 3.3.

    E ||x - y||^2 over x in f_i and y in f_j, exactly, from the two means alone.

    Args:
      f_i: features of one set, n >= 1, L2-normalised here.
      f_j: of another; None: within f_i, over pairs of different images (n >= 2), which is twice
        its variance.

    Returns:
      scalar in [0, 4].

    Raises:
      ValueError: no pair.
    """
    first = unit_rows(jnp.asarray(f_i))
    if f_j is None:
        n = first.shape[0]
        if n < 2:
            raise ValueError(f"There is no pair within {n} features: give at least 2.")
        # The pairs of an image with itself add nothing to the sum, only to their number.
        return _mean_square(first, first) * n / (n - 1)
    if min(first.shape[0], f_j.shape[0]) == 0:
        raise ValueError("There is no pair: each set needs at least one feature.")
    return _mean_square(first, unit_rows(jnp.asarray(f_j)))


def _mean_square(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, ""]:
    # About the mean of the first: a small distance is no difference of large numbers.
    center = x.mean(axis=0)
    x, y = x - center, y - center
    apart = jnp.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
    return _spread(x) + _spread(y) + apart


def _spread(x: Float[Array, "n d"]) -> Float[Array, ""]:
    return jnp.mean(jnp.sum((x - x.mean(axis=0)) ** 2, axis=1))


class ByClass(NamedTuple):
    """A measure of each class that occurs.

    Attributes:
      classes: [K], ascending.
      values: [K], or [K, K] of pairs of classes; NaN for a class with too few images.
    """

    classes: Int[np.ndarray, " k"]
    values: Float[np.ndarray, " *k"]


def classwise_uniformity(
    f: Float[Array | np.ndarray, "n d"], labels: Int[np.ndarray, " n"], t: float = 2.0
) -> ByClass:
    """`uniformity` among the images of each class; NaN for a class of one image.

    Args:
      f: features, L2-normalised here.
      labels: classes.
      t: sharpness of the potential, > 0.
    """
    f, labels = np.asarray(f), np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    found = [
        float(uniformity(f[labels == label], t)) if count > 1 else float("nan")
        for label, count in zip(classes, counts, strict=True)
    ]
    return ByClass(classes, np.array(found))


def class_distances(f: Float[Array | np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> ByClass:
    """`feature_distance` of every pair of classes, and within each on the diagonal.

    Args:
      f: features, L2-normalised here.
      labels: classes.

    Returns:
      symmetric; NaN on the diagonal for a class of one image.
    """
    labels = np.asarray(labels)
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    found = _distances(unit_rows(jnp.asarray(f)), jnp.asarray(inverse), len(classes))
    values = np.array(found, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        within = np.diagonal(values) * counts / (counts - 1)
    np.fill_diagonal(values, within)
    return ByClass(classes, values)


def _distances(f: Float[Array, "n d"], labels: Int[Array, " n"], count: int) -> Float[Array, "k k"]:
    sizes = jax.ops.segment_sum(jnp.ones(len(f), f.dtype), labels, count)[:, None]
    means = jax.ops.segment_sum(f, labels, count) / sizes
    spread = jax.ops.segment_sum(jnp.sum((f - means[labels]) ** 2, axis=1), labels, count)
    spread = spread / sizes[:, 0]
    apart = jnp.sum((means[:, None] - means[None]) ** 2, axis=2)
    return apart + spread[:, None] + spread[None]


def norms(f: Float[Array | np.ndarray, "n d"]) -> Float[Array, " n"]:
    """Euclidean lengths of features as they are, at least float32."""
    f = jnp.asarray(f, jnp.promote_types(f.dtype, jnp.float32))
    return jnp.linalg.norm(f, axis=1)
