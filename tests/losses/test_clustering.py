"""Prototype losses against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxssl import losses


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
    ours = losses.sinkhorn_knopp(scores, epsilon=0.01, iterations=100)
    golden = reference_sinkhorn(np.array([[0, -0.1], [0, -1.0]]), 0.01, 100)
    np.testing.assert_allclose(ours, golden, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(ours.argmax(1), [1, 0])


def test_sinkhorn_scales_rows_last_and_takes_a_traced_count():
    scores = jnp.float32(draw(12, 4))

    def run(iterations):
        return losses.sinkhorn_knopp(scores, epsilon=0.3, iterations=iterations)

    np.testing.assert_allclose(jax.jit(run)(3), run(3), rtol=1e-6)
    with pytest.raises(ValueError, match="iterations=0"):
        run(0)


def test_sinkhorn_of_a_traced_count_takes_part_in_a_gradient():
    """Reverse mode does not pass a loop of traced length, so nothing may ask it to."""

    def loss(scores, epsilon, iterations):
        return losses.sinkhorn_knopp(scores, epsilon=epsilon, iterations=iterations)[0, 0]

    slopes = jax.jit(jax.grad(loss, (0, 1)))(jnp.float32(draw(12, 4)), 0.3, 3)
    for slope in slopes:
        np.testing.assert_array_equal(slope, 0)


def test_swapped_prediction_swaps():
    with jax.enable_x64(True):
        s1, s2 = draw(5, 4), draw(5, 4, seed=1)
        q1, q2 = softmax(draw(5, 4, seed=2)), softmax(draw(5, 4, seed=3))
        golden = [-np.mean(np.sum(q2 * np.log(softmax(s1 / 0.2)), axis=1))]
        golden += [-np.mean(np.sum(q1 * np.log(softmax(s2 / 0.2)), axis=1))]
        ours = losses.swapped_prediction(*map(jnp.asarray, (s1, s2, q1, q2)), temperature=0.2)
        np.testing.assert_allclose(ours, np.mean(golden), rtol=1e-12)
        other_way = losses.swapped_prediction(*map(jnp.asarray, (s2, s1, q2, q1)), temperature=0.2)
        np.testing.assert_allclose(other_way, ours, rtol=1e-12)


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
    loss = jax.value_and_grad(losses.prototype_cross_entropy)
    value, slope = loss(jnp.float32(draw(5, 4)), jnp.full(5, -1), temperature=0.2)
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize(("views", "global_views"), [(2, 2), (5, 2), (3, 1)])
def test_dino_is_the_mean_over_pairs_of_different_views(views, global_views):
    with jax.enable_x64(True):
        student, teacher = draw(views, 3, 4), draw(global_views, 3, 4, seed=1)
        center = draw(4, seed=2)
        target = softmax((teacher - center) / 0.07)
        log_probability = np.log(softmax(student / 0.1))
        terms = [
            -np.mean(np.sum(target[g] * log_probability[v], axis=1))
            for g in range(global_views)
            for v in range(views)
            if g != v
        ]
        ours = losses.dino(
            jnp.asarray(student),
            jnp.asarray(teacher),
            center=jnp.asarray(center),
            student_temperature=0.1,
            teacher_temperature=0.07,
        )
        np.testing.assert_allclose(ours, np.mean(terms), rtol=1e-12)


def test_dino_needs_a_pair_of_different_views():
    temperatures = {"student_temperature": 0.1, "teacher_temperature": 0.07}
    for views, global_views in ((1, 1), (2, 3)):
        student, teacher = jnp.ones((views, 3, 4)), jnp.ones((global_views, 3, 4))
        with pytest.raises(ValueError, match="give the student at least two"):
            losses.dino(student, teacher, center=jnp.zeros(4), **temperatures)


def test_dino_center_is_the_running_mean():
    center, teacher = draw(4), draw(2, 3, 4, seed=1)
    ours = losses.dino_center(jnp.float32(center), jnp.float32(teacher), momentum=0.9)
    np.testing.assert_allclose(ours, 0.9 * center + 0.1 * teacher.mean((0, 1)), rtol=1e-5)
