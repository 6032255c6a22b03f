"""Instance contrastive losses: NT-Xent and its kin, SupCon, InfoNCE with a queue.

Features come un-normalised, one row a sample, in bfloat16, float16, float32 or float64; they are
promoted to at least float32 and L2-normalised, and the loss is the mean over anchors. ``s(x, y)``
is the cosine. A temperature is a positive number or a traced scalar, which may be differentiated.

``axis_name`` is the mapped axis that the batch is sharded over inside ``jax.pmap`` or
``jax.shard_map``; under plain ``jax.jit`` leave it None, sharded batch or not. ``block_size`` is
the side of the tiles in which pairs are visited, so that memory is linear in the batch: None
chooses by size, a number forces tiles (with first-order gradients only), and one no smaller than
the number of embeddings forces the full matrix.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike

from jaxssl.losses.arrays import (
    check_choice,
    check_features,
    check_positive,
    check_rank,
    cosine,
    interleave,
    inverse,
    normalize,
)
from jaxssl.losses.blockwise import (
    cross_logsumexp,
    everything,
    other_group,
    same_class,
    same_class_sums,
    self_logsumexp,
)
from jaxssl.losses.collectives import (
    AxisName,
    check_negatives,
    gather,
    mean_over_shards,
    row_numbers,
)


def nt_xent(
    z1: Float[Array, "b d"],
    z2: Float[Array, "b d"],
    *,
    temperature: ScalarLike,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """NT-Xent, the loss of SimCLR (arXiv:2002.05709, Eq. 1).

    Mean over the 2B anchors i, with j the other view of i's image, of
    ``-log(exp(s(i, j) / temperature) / sum_{k != i} exp(s(i, k) / temperature))``. The reference
    code and Eq. 1 of arXiv:2011.02803 print twice this number.

    Args:
      z1: first views, [B, D], row i showing image i.
      z2: second views, [B, D].
      temperature: above 0.
      axis_name: mapped axis that the batch is sharded over.
      block_size: side of the tiles of pairs.

    Returns:
      The loss, at least 0.

    Raises:
      ValueError: for shapes that are not one [B, D], a global batch below 2 (no negative), or a
        known temperature that is not above 0.

    >>> import jax.numpy as jnp
    >>> z = jnp.eye(4)
    >>> print(f"{nt_xent(z, z, temperature=0.5):.4f}")  # log(1 + 6 exp(-2))
    0.5944
    """
    check_features(z1=z1, z2=z2)
    check_positive(temperature=temperature)
    check_negatives(z1.shape[0], axis_name)
    z1, z2 = normalize(z1), normalize(z2)
    z = interleave(z1, z2)
    scale = inverse(temperature, z)
    images = jnp.repeat(row_numbers(z1.shape[0], axis_name), 2)[:, None]
    negative = self_logsumexp(
        z,
        images,
        scale=scale,
        allowed=other_group,
        axis_name=axis_name,
        block_size=block_size,
    )
    positive = jnp.repeat(scale * jnp.sum(z1 * z2, axis=1), 2)
    # log(1 + exp(x)), not the difference of two large numbers: it keeps its digits at any
    # temperature.
    return mean_over_shards(jnp.mean(jax.nn.softplus(negative - positive)), axis_name)


def decoupled_nt_xent(
    z1: Float[Array, "b d"],
    z2: Float[Array, "b d"],
    *,
    temperature: ScalarLike,
    weight: ScalarLike,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """NT-Xent with a weight of its own on the distribution term (arXiv:2011.02803, Eq. 4).

    ``-mean_i s(i, j) + weight * mean_i log sum_{k != i} exp(s(i, k) / temperature)`` over the 2B
    anchors i. At ``weight = temperature`` it is temperature times ``nt_xent``.

    Args:
      z1: first views, [B, D].
      z2: second views, [B, D].
      temperature: above 0.
      weight: the paper's lambda, of the distribution term.
      axis_name: mapped axis that the batch is sharded over.
      block_size: side of the tiles of pairs.

    Raises:
      ValueError: as ``nt_xent``.

    >>> import jax.numpy as jnp
    >>> z = jnp.eye(4)
    >>> print(f"{decoupled_nt_xent(z, z, temperature=0.5, weight=0.5) / 0.5:.4f}")
    0.5944
    """
    check_features(z1=z1, z2=z2)
    check_positive(temperature=temperature)
    check_negatives(z1.shape[0], axis_name)
    z1, z2 = normalize(z1), normalize(z2)
    z = interleave(z1, z2)
    spread = self_logsumexp(
        z,
        row_numbers(z.shape[0], axis_name)[:, None],
        scale=inverse(temperature, z),
        allowed=other_group,
        axis_name=axis_name,
        block_size=block_size,
    )
    loss = jnp.asarray(weight, z.dtype) * jnp.mean(spread) - jnp.mean(jnp.sum(z1 * z2, axis=1))
    return mean_over_shards(loss, axis_name)


def cross_view_nt_xent(
    z1: Float[Array, "b d"],
    z2: Float[Array, "b d"],
    *,
    temperature: ScalarLike,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """Symmetric InfoNCE whose negatives are in the other view only.

    Cross-entropy of the rows of ``z1 z2' / temperature`` and of its columns, each row's own index
    being its target; mean over the 2B anchors. The reference code of the random-bit experiments of
    arXiv:2011.02803 adds the two, and so prints twice this.

    Args:
      z1: first views, [B, D].
      z2: second views, [B, D].
      temperature: above 0.
      axis_name: mapped axis that the batch is sharded over.
      block_size: side of the tiles of pairs.

    Raises:
      ValueError: as ``nt_xent``.

    >>> import jax.numpy as jnp
    >>> z = jnp.eye(4)
    >>> print(f"{cross_view_nt_xent(z, z, temperature=0.5):.4f}")  # log(1 + 3 exp(-2))
    0.3408
    """
    check_features(z1=z1, z2=z2)
    options: dict[str, Any] = {
        "temperature": temperature,
        "axis_name": axis_name,
        "block_size": block_size,
    }
    return (in_batch_info_nce(z1, z2, **options) + in_batch_info_nce(z2, z1, **options)) / 2


def in_batch_info_nce(
    q: Float[Array, "b d"],
    k: Float[Array, "b d"],
    *,
    temperature: ScalarLike,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """InfoNCE whose negatives are the keys of the other images (MoCo-v3, arXiv:2104.02057).

    Cross-entropy of the rows of ``q k' / temperature``, each row's own index being its target; mean
    over the B queries. Gradients reach both inputs: whoever holds keys fixed stops them.

    Args:
      q: queries, [B, D].
      k: the key of each query, [B, D].
      temperature: above 0.
      axis_name: mapped axis that the batch is sharded over.
      block_size: side of the tiles of pairs.

    Raises:
      ValueError: as ``nt_xent``.

    >>> import jax.numpy as jnp
    >>> z = jnp.eye(4)
    >>> print(f"{in_batch_info_nce(z, z, temperature=0.5):.4f}")  # log(1 + 3 exp(-2))
    0.3408
    """
    check_features(q=q, k=k)
    check_positive(temperature=temperature)
    check_negatives(q.shape[0], axis_name)
    q, k = normalize(q), normalize(k)
    scale = inverse(temperature, q)
    images = row_numbers(q.shape[0], axis_name)[:, None]
    keys, key_images = gather(k, axis_name), gather(images, axis_name)
    negative = cross_logsumexp(scale * q, keys, images, key_images, other_group, block_size)
    positive = scale * jnp.sum(q * k, axis=1)
    return mean_over_shards(jnp.mean(jax.nn.softplus(negative - positive)), axis_name)


def info_nce(
    q: Float[Array, "b d"],
    k: Float[Array, "b d"],
    negatives: Float[Array, "K d"],
    *,
    temperature: ScalarLike,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """InfoNCE against a set of negatives, such as a queue (MoCo, arXiv:1911.05722, Eq. 1).

    Mean over the queries of the cross-entropy of ``[q.k, q.negatives] / temperature`` against the
    first entry. Gradients reach all three inputs: whoever holds keys fixed stops them. Samples do
    not meet one another, so a mapped caller takes ``lax.pmean`` of it.

    Args:
      q: queries, [B, D].
      k: the positive key of each query, [B, D].
      negatives: negative keys of all queries, [K, D].
      temperature: above 0.
      block_size: side of the tiles of pairs.

    Raises:
      ValueError: for shapes other than these, an empty batch or an empty set of negatives, or a
        known temperature that is not above 0.

    >>> import jax.numpy as jnp
    >>> q = jnp.array([[1.0, 0.0]])
    >>> print(f"{info_nce(q, q, jnp.array([[0.0, 1.0]]), temperature=1.0):.4f}")  # log(1 + 1/e)
    0.3133
    """
    check_features(q=q, k=k)
    check_features(negatives=negatives)
    if negatives.shape[1] != q.shape[1]:
        raise ValueError(
            f"negatives {negatives.shape} and q {q.shape} differ in features: give one D."
        )
    check_positive(temperature=temperature)
    q, keys = normalize(q), normalize(negatives)
    scale = inverse(temperature, q)
    tags = jnp.zeros((q.shape[0], 1), int), jnp.zeros((keys.shape[0], 1), int)
    negative = cross_logsumexp(scale * q, keys, *tags, everything, block_size)
    return jnp.mean(jax.nn.softplus(negative - scale * cosine(q, k)))


def supcon(
    z1: Float[Array, "b d"],
    z2: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    temperature: ScalarLike,
    positives: str = "outside",
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """Supervised contrastive loss (arXiv:2004.11362).

    Every other embedding of the same label is a positive. With P(i) the positives of anchor i, and
    ``p(i, k)`` the softmax of ``s(i, k) / temperature`` over k != i, the mean over the 2B anchors
    of

    - ``positives="outside"`` (Eq. 2): ``-mean_{k in P(i)} log p(i, k)``;
    - ``positives="inside"`` (Eq. 3): ``-log mean_{k in P(i)} p(i, k)``. Libraries that take the sum
      inside instead of the mean print ``log |P(i)|`` less, with the same gradient.

    The reference code's factor temperature / base temperature is left out.

    Args:
      z1: first views, [B, D].
      z2: second views, [B, D].
      labels: class of each image, [B], any integers.
      temperature: above 0.
      positives: where the mean over positives stands, "outside" or "inside" the logarithm.
      axis_name: mapped axis that the batch is sharded over.
      block_size: side of the tiles of pairs.

    Raises:
      ValueError: as ``nt_xent``, for labels of another shape or dtype, or an unknown ``positives``.

    >>> import jax.numpy as jnp
    >>> z, labels = jnp.eye(4), jnp.arange(4)  # every class once: NT-Xent
    >>> print(f"{supcon(z, z, labels, temperature=0.5):.4f}")
    0.5944
    """
    check_features(z1=z1, z2=z2)
    check_labels(labels, z1.shape[0])
    check_positive(temperature=temperature)
    check_choice("positives", positives, ("outside", "inside"))
    check_negatives(z1.shape[0], axis_name)
    z = interleave(normalize(z1), normalize(z2))
    scale = inverse(temperature, z)
    rows = row_numbers(z.shape[0], axis_name)
    tags = jnp.stack([rows, jnp.repeat(labels, 2).astype(rows.dtype)], axis=1)
    logsumexp = partial(
        self_logsumexp, z, tags, scale=scale, axis_name=axis_name, block_size=block_size
    )
    spread = logsumexp(allowed=other_group)
    sums, counts = same_class_sums(gather(z, axis_name), tags, gather(tags, axis_name), block_size)
    if positives == "outside":
        attraction = scale * jnp.sum(z * sums, axis=1) / counts
    else:
        attraction = logsumexp(allowed=same_class) - jnp.log(counts)
    return mean_over_shards(jnp.mean(spread - attraction), axis_name)


def check_labels(labels: Int[Array, " b"], batch: int) -> None:
    """One integer label an image.

    Raises:
      ValueError: naming the shape or the dtype.
    """
    check_rank(1, f"one label an image, [{batch}]", labels=labels)
    if labels.shape[0] != batch:
        raise ValueError(f"labels {labels.shape} for {batch} images: give one label an image.")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels have dtype {labels.dtype}: give integers.")
