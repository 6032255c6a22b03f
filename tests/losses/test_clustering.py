"""Prototype losses against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compilation import AtOnce, at_once, once, quick_jit

import jaxssl.losses

losses = AtOnce(jaxssl.losses)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference_sinkhorn(scores, epsilon, iterations):
    """Listing 2 of arXiv:2006.09882: Q is [K, B]."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * k
        q /= q.sum(axis=0, keepdims=True) * b
    return (q * b).T


@pytest.mark.parametrize("iterations", [1, 3, 50])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_sinkhorn_is_the_listing(epsilon, iterations):
    with jax.enable_x64(True):
        scores = np.tanh(draw(12, 4))
        ours = losses.sinkhorn_knopp(jnp.asarray(scores), epsilon=epsilon, iterations=iterations)
        golden = reference_sinkhorn(scores, epsilon, iterations)
        np.testing.assert_allclose(ours, golden, rtol=1e-10)
        np.testing.assert_allclose(ours.sum(1), 1, rtol=1e-12)
        if (epsilon, iterations) == (0.5, 50):
            np.testing.assert_allclose(ours.sum(0), 12 / 4, rtol=1e-6)


def test_sinkhorn_does_not_overflow():
    """exp(1000) is beyond any float; both prefer prototype 0, the second by more."""
    scores = jnp.array([[10.0, 9.9], [10.0, 9.0]])
    ours = losses.sinkhorn_knopp(scores, epsilon=0.01, iterations=20)
    golden = reference_sinkhorn(np.array([[0, -0.1], [0, -1.0]]), 0.01, 20)
    np.testing.assert_allclose(ours, golden, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(ours.argmax(1), [1, 0])


def test_sinkhorn_scales_rows_last_and_takes_a_traced_count():
    scores = jnp.float32(draw(12, 4))

    def run(iterations):
        return losses.sinkhorn_knopp(scores, epsilon=0.3, iterations=iterations)

    np.testing.assert_allclose(quick_jit(run)(3), run(3), rtol=3e-6)
    with pytest.raises(ValueError, match="iterations=0"):
        run(0)


def test_sinkhorn_of_a_traced_count_takes_part_in_a_gradient():
    """Reverse mode does not pass a loop of traced length, so nothing may ask it to."""

    def loss(scores, epsilon, iterations):
        return losses.sinkhorn_knopp(scores, epsilon=epsilon, iterations=iterations)[0, 0]

    slopes = quick_jit(jax.grad(loss, (0, 1)))(jnp.float32(draw(12, 4)), 0.3, 3)
    for slope in slopes:
        np.testing.assert_array_equal(slope, 0)


def reference_cross_view(scores, targets, temperature):
    """Value and gradient to the scores, one pair of a target and another view at a time."""
    probability = softmax(scores / temperature)
    pairs = [(g, v) for g in range(len(targets)) for v in range(len(scores)) if v != g]
    terms, slope = [], np.zeros_like(scores)
    for g, v in pairs:
        terms += [-np.sum(targets[g] * np.log(probability[v]), axis=1)]
        slope[v] += (probability[v] - targets[g]) / temperature
    return np.mean(terms), slope / np.size(terms)


# Views of the scores and of the targets: two views, multi-crop, one target.
VIEWS = ((2, 2), (5, 2), (3, 1))
CENTER = draw(4, seed=2)


def views_of(views, global_views):
    """Scores [V, B, K] and the outputs that make the targets [G, B, K]."""
    return draw(views, 3, 4), draw(global_views, 3, 4, seed=1)


@once
def clustering():
    """(loss, views, targets) -> its value and its gradients, all in one compilation."""

    def cross_view(scores, targets):
        return losses.cross_view_entropy(scores, targets, temperature=0.2)

    def swapped(scores, targets):
        return losses.swapped_prediction(*scores, *targets, temperature=0.2)

    def dino(student, teacher):
        return losses.dino(
            student,
            teacher,
            center=jnp.asarray(CENTER),
            student_temperature=0.2,
            teacher_temperature=0.07,
        )

    cases = {("cross_view", *views): cross_view for views in VIEWS}
    cases |= {("dino", *views): dino for views in VIEWS}
    cases["swapped", 2, 2] = swapped

    def inputs(name, views, global_views):
        scores, outputs = views_of(views, global_views)
        return scores, outputs if name == "dino" else softmax(outputs)

    with jax.enable_x64(True):
        given = {case: tuple(map(jnp.asarray, inputs(*case))) for case in cases}

        def run(given):
            return {
                case: jax.value_and_grad(loss, argnums=(0, 1))(*given[case])
                for case, loss in cases.items()
            }

        return jax.tree.map(np.asarray, quick_jit(run)(given))


@pytest.mark.parametrize(
    ("name", "views", "global_views"),
    [(name, *views) for name in ("cross_view", "dino") for views in VIEWS] + [("swapped", 2, 2)],
)
def test_cross_view_losses_are_the_mean_over_pairs_of_different_views(name, views, global_views):
    scores, outputs = views_of(views, global_views)
    targets = softmax((outputs - CENTER) / 0.07) if name == "dino" else softmax(outputs)
    golden, golden_slope = reference_cross_view(scores, targets, 0.2)
    value, (slope, target_slope) = clustering()[name, views, global_views]
    np.testing.assert_allclose(value, golden, rtol=1e-12)
    np.testing.assert_allclose(slope, golden_slope, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(target_slope, 0)


def test_prototype_cross_entropy_ignores_the_unassigned():
    with jax.enable_x64(True):
        scores = draw(5, 4)
        assignments = np.array([2, -1, 0, -100, 3])
        log_probability = np.log(softmax(scores / 0.2))
        golden = -np.mean([log_probability[i, assignments[i]] for i in (0, 2, 4)])
        ours = losses.prototype_cross_entropy(
            jnp.asarray(scores), jnp.asarray(assignments), temperature=0.2
        )
        np.testing.assert_allclose(ours, golden, rtol=1e-12)


def test_prototype_cross_entropy_without_any_assignment():
    loss = at_once(jax.value_and_grad(losses.prototype_cross_entropy))
    value, slope = loss(jnp.float32(draw(5, 4)), jnp.full(5, -1), temperature=0.2)
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


def test_a_pair_of_different_views_is_needed(own_errors):
    temperatures = {"student_temperature": 0.1, "teacher_temperature": 0.07}
    for views, targets in ((1, 1), (2, 3)):
        scores, given = jnp.ones((views, 3, 4)), jnp.ones((targets, 3, 4))
        message = f"{{}} has {views} views and {{}} {targets}: {{}} must have two or more"
        with pytest.raises(ValueError, match=message.format("student", "teacher", "student")):
            losses.dino(scores, given, center=jnp.zeros(4), **temperatures)
        with pytest.raises(ValueError, match=message.format("scores", "targets", "scores")):
            losses.cross_view_entropy(scores, given, temperature=0.1)


def test_dino_center_is_the_running_mean():
    center, teacher = draw(4), draw(2, 3, 4, seed=1)
    ours = losses.dino_center(jnp.float32(center), jnp.float32(teacher), momentum=0.9)
    np.testing.assert_allclose(ours, 0.9 * center + 0.1 * teacher.mean((0, 1)), rtol=1e-5)
