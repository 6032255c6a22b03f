"""Losses on prototype scores: SwAV, DeepCluster-v2, DINO.

Scores are [B, K] for K prototypes, promoted to at least float32. No gradient reaches assignments,
teachers or centres. Temperatures are positive numbers or traced scalars.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike

from jaxssl.losses.arrays import (
    check_features,
    check_floating,
    check_matching,
    check_positive,
    check_rank,
    inverse,
    promote,
)
from jaxssl.losses.collectives import AxisName, axis_size, mean_over_shards, sum_over_shards
from jaxssl.losses.contrastive import check_labels


def sinkhorn_knopp(
    scores: Float[Array, "b k"],
    *,
    epsilon: ScalarLike,
    iterations: int | Int[Array, ""],
    axis_name: AxisName = None,
) -> Float[Array, "b k"]:
    """Assignments of samples to equally used prototypes (SwAV, arXiv:2006.09882, Eqs. 3 to 5).

    ``exp(scores / epsilon)``, scaled in turn so that every prototype has the same mass over the
    global batch and that every sample's row sums to 1, in that order. Computed on logarithms: no
    score overflows. Without gradient.

    Args:
      scores: cosines of features and prototypes, [B, K].
      epsilon: entropic regularisation, above 0; SwAV's is .05.
      iterations: rounds of the two scalings, 1 or more; SwAV's are 3.
      axis_name: mapped axis that the batch is sharded over.

    Returns:
      Assignments, [B, K]; each row sums to 1.

    Raises:
      ValueError: if ``scores`` is not [B, K] or empty, for a known epsilon that is not above 0, or
        fewer than 1 iterations.

    >>> import jax.numpy as jnp
    >>> scores = jnp.array([[1.0, 0.9], [1.0, 0.1]])  # both prefer prototype 0, one by less
    >>> print(sinkhorn_knopp(scores, epsilon=0.05, iterations=3).argmax(axis=1))
    [1 0]
    """
    check_features(scores=scores)
    check_positive(epsilon=epsilon, iterations=iterations)
    log_mass = promote(scores)
    # Before the loop: JAX does not differentiate a loop of traced length in reverse mode.
    log_mass = jax.lax.stop_gradient(log_mass * inverse(epsilon, log_mass))
    largest = jnp.max(log_mass, axis=0)
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    log_mass = log_mass - largest

    def scale(_: Int[Array, ""], log_mass: Float[Array, "b k"]) -> Float[Array, "b k"]:
        column = sum_over_shards(jnp.sum(jnp.exp(log_mass), axis=0), axis_name)
        log_mass = log_mass - jnp.log(column)
        return jax.nn.log_softmax(log_mass, axis=1)

    # Not rolled where the count is known: on many devices that share a few cores, a collective in a
    # loop can hang beside an independent one.
    unroll = isinstance(iterations, int)
    return jnp.exp(jax.lax.fori_loop(0, iterations, scale, log_mass, unroll=unroll))


def cross_view_entropy(
    scores: Float[Array, "v b k"],
    targets: Float[Array, "g b k"],
    *,
    temperature: ScalarLike,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Each view predicts the targets of all other views: the loss that SwAV and DINO share.

    Mean over images and over the pairs of a target g and a view v != g of the cross-entropy of
    ``softmax(scores_v / temperature)`` against target g. The targets have no gradient:
    ``jax.lax.stop_gradient`` is applied to them.

    Args:
      scores: scores of all V views, [V, B, K]; the G views that the targets come from are first.
      targets: target g of view g, [G, B, K], rows that sum to 1.
      temperature: above 0.
      axis_name: mapped axis that the batch is sharded over.

    Raises:
      ValueError: for shapes other than these, G above V, V below 2 (no pair of different views), or
        a known temperature that is not above 0.

    >>> import jax.numpy as jnp
    >>> scores, targets = jnp.zeros((5, 3, 4)), jnp.full((2, 3, 4), 0.25)
    >>> print(f"{cross_view_entropy(scores, targets, temperature=0.1):.4f}")  # log 4
    1.3863
    """
    _check_views(scores=scores, targets=targets)
    check_positive(temperature=temperature)
    logits, targets = promote(scores), promote(jax.lax.stop_gradient(targets))
    log_probability = jax.nn.log_softmax(logits * inverse(temperature, logits), axis=-1)
    precision = jax.lax.Precision.HIGHEST
    agreement = jnp.einsum("gbk,vbk->gv", targets, log_probability, precision=precision)
    views, batch, _ = scores.shape
    different = jnp.arange(targets.shape[0])[:, None] != jnp.arange(views)
    pairs = targets.shape[0] * (views - 1)
    loss = -jnp.sum(jnp.where(different, agreement, 0)) / (pairs * batch)
    return mean_over_shards(loss, axis_name)


def swapped_prediction(
    scores1: Float[Array, "b k"],
    scores2: Float[Array, "b k"],
    assignments1: Float[Array, "b k"],
    assignments2: Float[Array, "b k"],
    *,
    temperature: ScalarLike,
) -> Float[Array, ""]:
    """Each of two views predicts the other's assignment (SwAV, arXiv:2006.09882, Eqs. 1 and 2).

    ``cross_view_entropy`` of two views; multi-crop calls that. Samples do not meet one another, so
    a mapped caller takes ``lax.pmean`` of it.

    Args:
      scores1: scores of the first views, [B, K].
      scores2: scores of the second views, [B, K].
      assignments1: targets from the first views, [B, K], rows that sum to 1; without gradient.
      assignments2: targets from the second views, likewise.
      temperature: above 0; SwAV's is .1.

    Raises:
      ValueError: for shapes that are not one [B, K], or a known temperature that is not above 0.

    >>> import jax.numpy as jnp
    >>> scores, assignments = jnp.zeros((2, 4)), jnp.eye(4)[:2]
    >>> loss = swapped_prediction(scores, scores, assignments, assignments, temperature=0.1)
    >>> print(f"{loss:.4f}")  # log 4
    1.3863
    """
    check_features(scores1=scores1, scores2=scores2)
    check_matching(scores1=scores1, assignments1=assignments1, assignments2=assignments2)
    check_floating(assignments1=assignments1, assignments2=assignments2)
    scores, targets = jnp.stack([scores1, scores2]), jnp.stack([assignments1, assignments2])
    return cross_view_entropy(scores, targets, temperature=temperature)


def prototype_cross_entropy(
    scores: Float[Array, "b k"],
    assignments: Int[Array, " b"],
    *,
    temperature: ScalarLike,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Cross-entropy against hard cluster assignments (DeepCluster-v2, arXiv:2006.09882, App. A.3).

    Mean over the samples that have an assignment; 0 if none has.

    Args:
      scores: cosines of features and prototypes, [B, K].
      assignments: prototype of each sample, [B], 0 to K - 1; a negative one means none yet.
      temperature: above 0; DeepCluster-v2's is .1.
      axis_name: mapped axis that the batch is sharded over.

    Raises:
      ValueError: for shapes other than these, assignments that are not integers, or a known
        temperature that is not above 0.

    >>> import jax.numpy as jnp
    >>> scores, assignments = jnp.zeros((3, 4)), jnp.array([0, 3, -1])
    >>> print(f"{prototype_cross_entropy(scores, assignments, temperature=0.1):.4f}")  # log 4
    1.3863
    """
    check_features(scores=scores)
    check_labels(assignments, scores.shape[0])
    check_positive(temperature=temperature)
    logits = promote(scores)
    log_probability = jax.nn.log_softmax(logits * inverse(temperature, logits), axis=1)
    assigned = assignments >= 0
    index = jnp.maximum(assignments, 0)[:, None]
    chosen = jnp.take_along_axis(log_probability, index, axis=1)[:, 0]
    number = sum_over_shards(jnp.sum(assigned), axis_name)
    total = -jnp.sum(jnp.where(assigned, chosen, 0)) * axis_size(axis_name)
    return mean_over_shards(total / jnp.maximum(number, 1), axis_name)


def dino(
    student: Float[Array, "v b k"],
    teacher: Float[Array, "g b k"],
    *,
    center: Float[Array, " k"],
    student_temperature: ScalarLike,
    teacher_temperature: ScalarLike,
) -> Float[Array, ""]:
    """Self-distillation of the teacher's global views (DINO, arXiv:2104.14294, Algorithm 1).

    ``cross_view_entropy`` of the student against ``softmax((teacher - center) /
    teacher_temperature)``, which has no gradient: the mean over samples and over pairs of a
    teacher's view and a *different* student's view. Samples do not meet one another, so a mapped
    caller takes ``lax.pmean`` of it.

    Args:
      student: outputs for all V views, [V, B, K]; the first G are those the teacher saw.
      teacher: outputs for the G global views, [G, B, K].
      center: running mean of the teacher's outputs, [K], as it was before this step.
      student_temperature: above 0; the reference's is .1.
      teacher_temperature: above 0; the reference's is .04 to .07.

    Raises:
      ValueError: for shapes other than these, G above V, no pair of different views, or a known
        temperature that is not above 0.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.zeros((3, 5, 4)), jnp.ones((2, 5, 4))
    >>> loss = dino(
    ...     student, teacher, center=jnp.zeros(4), student_temperature=0.1, teacher_temperature=0.04
    ... )
    >>> print(f"{loss:.4f}")  # log 4
    1.3863
    """
    _check_views(student=student, teacher=teacher)
    check_floating(center=center)
    check_matching(center=center, outputs=student[0, 0])
    check_positive(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    teacher = promote(teacher)
    target = jax.nn.softmax((teacher - center) * inverse(teacher_temperature, teacher), axis=-1)
    return cross_view_entropy(student, target, temperature=student_temperature)


def dino_center(
    center: Float[Array, " k"],
    teacher: Float[Array, "g b k"],
    *,
    momentum: ScalarLike,
    axis_name: AxisName = None,
) -> Float[Array, " k"]:
    """The centre after a step: ``momentum * center + (1 - momentum) * mean of the outputs``.

    The mean is over the teacher's views and the global batch (arXiv:2104.14294, Eq. 4). Update
    after the loss has used the centre. Without gradient.

    Args:
      center: the centre that the loss used, [K].
      teacher: the teacher's outputs of this step, [G, B, K].
      momentum: 0 to 1; the reference's is .9.
      axis_name: mapped axis that the batch is sharded over.

    Raises:
      ValueError: for shapes other than these.

    >>> import jax.numpy as jnp
    >>> print(dino_center(jnp.zeros(2), jnp.ones((2, 3, 2)), momentum=0.5))
    [0.5 0.5]
    """
    check_rank(3, "[views, B, K]", teacher=teacher)
    check_floating(teacher=teacher, center=center)
    check_matching(teacher=teacher)
    check_matching(center=center, outputs=teacher[0, 0])
    center, teacher = promote(center), promote(teacher)
    mean = mean_over_shards(jnp.mean(teacher, axis=(0, 1)), axis_name)
    momentum = jnp.asarray(momentum, mean.dtype)
    return jax.lax.stop_gradient(momentum * center + (1 - momentum) * mean)


def _check_views(**views: Array) -> None:
    """Two named arrays [V, B, K] and [G, B, K], with 1 <= G <= V and 2 <= V.

    Raises:
      ValueError: naming the arrays and what is wrong.
    """
    check_rank(3, "[views, B, K]", **views)
    check_floating(**views)
    for name, array in views.items():
        check_matching(**{name: array})
    check_matching(**{name: array[0] for name, array in views.items()})
    (predicting, count), (target, targets) = ((name, len(array)) for name, array in views.items())
    if count < 2 or targets > count:
        raise ValueError(
            f"{predicting} has {count} views and {target} {targets}: {predicting} must have two or "
            f"more, those of {target} first."
        )
