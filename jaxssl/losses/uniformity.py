"""Alignment and uniformity on the hypersphere (Wang and Isola, arXiv:2005.10242).

Features come un-normalised, one row a sample; they are promoted to at least float32 and
L2-normalised. ``axis_name`` and ``block_size`` are as in ``nt_xent``.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from jaxssl.losses.arrays import check_features, check_positive, normalize
from jaxssl.losses.blockwise import cross_logsumexp, everything, other_group, pair_logsumexp
from jaxssl.losses.collectives import (
    AxisName,
    axis_size,
    check_negatives,
    gather,
    mean_over_shards,
    row_numbers,
)


def alignment(
    z1: Float[Array, "b d"], z2: Float[Array, "b d"], *, alpha: ScalarLike = 2
) -> Float[Array, ""]:
    """Mean over the batch of ``|z1 - z2|^alpha`` between unit vectors.

    Samples do not meet one another, so a mapped caller takes ``lax.pmean`` of it.

    Args:
      z1: first views, [B, D].
      z2: second views, [B, D].
      alpha: exponent, above 0. The gradient between equal vectors is zero.

    Raises:
      ValueError: for shapes that are not one [B, D], or a known alpha that is not above 0.

    >>> import jax.numpy as jnp
    >>> print(alignment(jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 3.0]])))
    2.0
    """
    check_features(z1=z1, z2=z2)
    check_positive(alpha=alpha)
    square = jnp.sum((normalize(z1) - normalize(z2)) ** 2, axis=1)
    # At distance 0 a power below 2 has an infinite slope. NaN counts as apart: it must reach the
    # loss.
    apart = square != 0
    power = jnp.where(apart, square, 1) ** (jnp.asarray(alpha, square.dtype) / 2)
    return jnp.mean(jnp.where(apart, power, 0))


def uniformity(
    z: Float[Array, "b d"],
    *,
    t: ScalarLike = 2,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """Logarithm of the mean Gaussian potential of pairs: ``log mean_{i<j} exp(-t |z_i - z_j|^2)``.

    Between ``-4 t`` and 0; lower is more uniform. For t = 2 the uniform distribution on a sphere of
    many dimensions has about -4. Normalisation leaves a zero vector zero: its squared distance to
    all others counts as 2 - 2 x.y = 2, where ``metrics.uniformity`` takes the true distance.

    Args:
      z: features, [B, D].
      t: inverse width of the potential, above 0.
      axis_name: mapped axis that the batch is sharded over.
      block_size: side of the tiles of pairs.

    Raises:
      ValueError: if ``z`` is not [B, D], for a global batch below 2, or a known t that is not
        above 0.

    >>> import jax.numpy as jnp
    >>> print(uniformity(jnp.array([[1.0, 0.0], [0.0, 1.0]])))  # -2 * 2
    -4.0
    """
    check_features(z=z)
    check_positive(t=t)
    check_negatives(z.shape[0], axis_name)
    potential, pairs = _within(normalize(z), t, axis_name, block_size)
    return mean_over_shards(potential - math.log(pairs), axis_name)


def alignment_and_uniformity(
    z1: Float[Array, "b d"],
    z2: Float[Array, "b d"],
    *,
    alignment_weight: ScalarLike,
    uniformity_weight: ScalarLike,
    alpha: ScalarLike = 2,
    t: ScalarLike = 2,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """The training loss: weighted alignment plus the mean of the two views' weighted uniformity.

    Args:
      z1: first views, [B, D].
      z2: second views, [B, D].
      alignment_weight: factor of ``alignment``; the reference code's default is 1.
      uniformity_weight: factor of ``uniformity``; the reference code's default is 1.
      alpha: exponent of the alignment, above 0.
      t: inverse width of the potential, above 0.
      axis_name: mapped axis that the batch is sharded over.
      block_size: side of the tiles of pairs.

    Raises:
      ValueError: as ``alignment`` and ``uniformity``.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(alignment_and_uniformity(z, z, alignment_weight=1.0, uniformity_weight=0.5))
    -2.0
    """
    attraction = mean_over_shards(alignment(z1, z2, alpha=alpha), axis_name)
    spread = [uniformity(z, t=t, axis_name=axis_name, block_size=block_size) for z in (z1, z2)]
    weights = (jnp.asarray(w, attraction.dtype) for w in (alignment_weight, uniformity_weight))
    alignment_factor, uniformity_factor = weights
    return alignment_factor * attraction + uniformity_factor * (spread[0] + spread[1]) / 2


def queue_uniformity(
    q: Float[Array, "b d"],
    queue: Float[Array, "K d"],
    *,
    t: ScalarLike = 2,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """Uniformity of queries among themselves and against a queue (the authors' MoCo variant).

    ``log mean exp(-t |x - y|^2)`` over the B K pairs of a query and a queued key and the
    B (B - 1) / 2 pairs of queries together. No gradient reaches the queue. The squared
    distance of a zero vector to all others counts as 2, as in ``uniformity``.

    Args:
      q: queries, [B, D].
      queue: past keys, [K, D], the same on every shard.
      t: inverse width of the potential, above 0; that variant's default is 3.
      axis_name: mapped axis that the queries are sharded over.
      block_size: side of the tiles of pairs.

    Raises:
      ValueError: for shapes other than these, or a known t that is not above 0.

    >>> import jax.numpy as jnp
    >>> q, queue = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> print(queue_uniformity(q, queue))
    -4.0
    """
    check_features(q=q)
    check_features(queue=queue)
    if q.shape[1] != queue.shape[1]:
        raise ValueError(f"q {q.shape} and queue {queue.shape} differ in features: give one D.")
    check_positive(t=t)
    q = normalize(q)
    keys = jax.lax.stop_gradient(normalize(queue)).astype(q.dtype)
    slope = 2 * jnp.asarray(t, q.dtype)
    tags = jnp.zeros((q.shape[0], 1), int), jnp.zeros((keys.shape[0], 1), int)
    rows = cross_logsumexp(slope * q, keys, *tags, everything, block_size)
    potential = jax.nn.logsumexp(gather(rows, axis_name)) - slope
    batch = q.shape[0] * axis_size(axis_name)
    pairs = batch * keys.shape[0]
    if batch > 1:
        within, number = _within(q, t, axis_name, block_size)
        potential = jnp.logaddexp(potential, within)
        pairs += number
    return mean_over_shards(potential - math.log(pairs), axis_name)


def queue_alignment_and_uniformity(
    q: Float[Array, "b d"],
    k: Float[Array, "b d"],
    queue: Float[Array, "K d"],
    *,
    alignment_weight: ScalarLike,
    uniformity_weight: ScalarLike,
    t: ScalarLike = 2,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """The MoCo variant's training loss: weighted ``2 - 2 cos(q, k)`` and ``queue_uniformity``.

    No gradient reaches the keys or the queue.

    Args:
      q: queries, [B, D].
      k: the positive key of each query, [B, D].
      queue: past keys, [K, D], the same on every shard.
      alignment_weight: factor of the alignment; that variant's default is 3.
      uniformity_weight: factor of the uniformity; that variant's default is 1.
      t: inverse width of the potential, above 0; that variant's default is 3.
      axis_name: mapped axis that the batch is sharded over.
      block_size: side of the tiles of pairs.

    Raises:
      ValueError: for shapes other than these, or a known t that is not above 0.

    >>> import jax.numpy as jnp
    >>> q, queue = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> loss = queue_alignment_and_uniformity(
    ...     q, q, queue, alignment_weight=3.0, uniformity_weight=1.0, t=3.0
    ... )
    >>> print(loss)
    -6.0
    """
    attraction = mean_over_shards(alignment(q, jax.lax.stop_gradient(k)), axis_name)
    spread = queue_uniformity(q, queue, t=t, axis_name=axis_name, block_size=block_size)
    weights = (jnp.asarray(w, attraction.dtype) for w in (alignment_weight, uniformity_weight))
    alignment_factor, uniformity_factor = weights
    return alignment_factor * attraction + uniformity_factor * spread


def _within(
    z: Float[Array, "b d"], t: ScalarLike, axis_name: AxisName, block_size: int | None
) -> tuple[Float[Array, ""], int]:
    """Log of the summed potential of the pairs i < j of the global batch, and their number."""
    slope = 2 * jnp.asarray(t, z.dtype)
    potential = pair_logsumexp(
        z,
        row_numbers(z.shape[0], axis_name)[:, None],
        scale=slope,
        allowed=other_group,
        axis_name=axis_name,
        block_size=block_size,
    )
    batch = z.shape[0] * axis_size(axis_name)
    # Every pair was met twice; |x - y|^2 = 2 - 2 x.y.
    return potential - slope - math.log(2), batch * (batch - 1) // 2
