"""Spherical k-means: clusters of unit vectors by their cosines."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxssl.distributed import row_shards, shard_rows
from jaxssl.losses.arrays import normalize


def spherical_kmeans(
    features: Float[Array, "n d"],
    key: Key[Array, ""],
    *,
    count: int,
    iterations: int,
) -> tuple[Float[Array, "k d"], Int[Array, " n"]]:
    """Centroids of unit length and the one that each vector is nearest to.

    As in DeepCluster-v2's code (arXiv:2006.09882, appendix A.3): centroids start as ``count``
    vectors drawn without replacement; in each round a centroid becomes the normalised sum of the
    vectors nearest to it, and stays where there are none.

    Devices share the work and count by the same rule, so the result does not depend on their
    number, up to the order of sums. A device holds [N / devices, K] cosines.

    Args:
      features: unit vectors; rows of zeros stand for vectors that are missing.
      key: of the first centroids.
      count: K, at most N. Of more than there are vectors that are not missing, the rest repeat
        others, and nothing is nearest to them.
      iterations: rounds, 0 or more.

    Returns:
      Centroids [K, D], and [N] which of them is nearest; -1 where the vector is missing.

    Raises:
      ValueError: ``count`` is above N.
    """
    if count > len(features):
        raise ValueError(f"count={count} must be at most the {len(features)} vectors.")
    known: Bool[Array, " n"] = jnp.any(features != 0, axis=1)
    order = jnp.where(known, jax.random.uniform(key, known.shape), -1)
    # Missing rows come last; a centroid of zeros would win where all cosines are negative.
    drawn = jax.lax.top_k(order, count)[1]
    centroids = features[drawn[jnp.arange(count) % jnp.maximum(known.sum(), 1)]]
    size = len(features)
    features = shard_rows(jnp.pad(features, ((0, -size % row_shards()), (0, 0))))
    precision = jax.lax.Precision.HIGHEST

    def nearest(centroids: Float[Array, "k d"]) -> Int[Array, " n"]:
        return jnp.argmax(jnp.dot(features, centroids.T, precision=precision), axis=1)

    def update(_: Int[Array, ""], centroids: Float[Array, "k d"]) -> Float[Array, "k d"]:
        # A product and no scatter, whose order of sums changes from run to run on a GPU.
        members = jax.nn.one_hot(nearest(centroids), count, dtype=features.dtype)
        sums = jnp.dot(members.T, features, precision=precision)
        return jnp.where(jnp.any(sums != 0, axis=1, keepdims=True), normalize(sums), centroids)

    centroids = jax.lax.fori_loop(0, iterations, update, centroids)
    labels = nearest(centroids)[:size].astype(jnp.int32)
    return centroids, jnp.where(known, labels, -1)
