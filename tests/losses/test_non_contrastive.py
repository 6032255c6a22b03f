"""Losses without negatives against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compilation import AtOnce, at_once

import jaxssl.losses

losses = AtOnce(jaxssl.losses)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def cosines(p, z):
    return np.sum(p * z, axis=1) / np.linalg.norm(p, axis=1) / np.linalg.norm(z, axis=1)


@pytest.mark.parametrize("margin", [None, 0.0, 0.6, np.linspace(0, 2, 9)])
def test_negative_cosine_is_the_formula(margin):
    with jax.enable_x64(True):
        p, z = draw(9, 4), draw(9, 4, seed=1)
        golden = -cosines(p, z)
        if margin is not None:
            golden = np.maximum(golden, np.asarray(margin) - 1)
        ours = losses.negative_cosine(
            jnp.asarray(p),
            jnp.asarray(z),
            margin=jnp.asarray(margin) if isinstance(margin, np.ndarray) else margin,
        )
        np.testing.assert_allclose(ours, golden.mean(), rtol=1e-12)


def test_no_gradient_inside_the_margin():
    p, z = jnp.float32(draw(50, 4)), jnp.float32(draw(50, 4, seed=1))
    margin = np.linspace(0, 2, 50, dtype=np.float32)
    gradient = at_once(jax.grad(losses.negative_cosine))
    # No margin by the same program: another one would round in other ways.
    slope, free = (np.asarray(gradient(p, z, margin=m)) for m in (margin, np.zeros_like(margin)))
    inside = np.asarray(-cosines(p, z) < np.asarray(margin) - 1)
    assert 10 < inside.sum() < 40
    np.testing.assert_array_equal(slope[inside], 0)
    np.testing.assert_array_equal(slope[~inside], free[~inside])


def test_a_margin_a_pair_must_fit(own_errors):
    z = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"margin has shape \(3,\)"):
        losses.negative_cosine(z, z, margin=np.ones(3))


def test_byol_regression_is_the_squared_distance_of_unit_vectors():
    with jax.enable_x64(True):
        p, z = draw(9, 4), draw(9, 4, seed=1)
        ours = losses.byol_regression(jnp.asarray(p), jnp.asarray(z))
        np.testing.assert_allclose(ours, np.mean(2 - 2 * cosines(p, z)), rtol=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_barlow_twins_is_the_formula(epsilon):
    with jax.enable_x64(True):
        z1, z2 = 3 + draw(9, 4), 5 * draw(9, 4, seed=1) - 1
        s1, s2 = ((z - z.mean(0)) / np.sqrt(z.var(0, ddof=0) + epsilon) for z in (z1, z2))
        golden = 0.0
        for i in range(4):
            for j in range(4):
                c = np.mean(s1[:, i] * s2[:, j])
                golden += (c - 1) ** 2 if i == j else 0.0051 * c**2
        ours = losses.barlow_twins(
            jnp.asarray(z1), jnp.asarray(z2), off_diagonal_weight=0.0051, epsilon=epsilon
        )
        np.testing.assert_allclose(ours, golden, rtol=1e-12)


def test_barlow_twins_of_decorrelated_equal_views_is_zero():
    """The columns of a Hadamard matrix are orthogonal, centred and of unit variance."""
    z = jnp.float32([[1, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]])
    np.testing.assert_allclose(losses.barlow_twins(z, z, off_diagonal_weight=1.0), 0, atol=1e-12)
    np.testing.assert_allclose(losses.barlow_twins(z, -z, off_diagonal_weight=1.0), 12, rtol=1e-6)


def test_barlow_twins_invariances():
    loss = losses.barlow_twins
    z1, z2 = jnp.float32(draw(9, 4)), jnp.float32(draw(9, 4, seed=1))
    value = loss(z1, z2, off_diagonal_weight=0.3)
    np.testing.assert_allclose(loss(z2, z1, off_diagonal_weight=0.3), value, rtol=1e-5)
    np.testing.assert_allclose(loss(2 * z1 + 5, z2, off_diagonal_weight=0.3), value, rtol=1e-5)
    np.testing.assert_allclose(loss(z1[::-1], z2[::-1], off_diagonal_weight=0.3), value, rtol=1e-5)


def test_a_constant_dimension_counts_as_uncorrelated():
    z1, z2 = jnp.float32(draw(9, 3)).at[:, 1].set(4.0), jnp.float32(draw(9, 3, seed=1))
    loss = at_once(jax.value_and_grad(losses.barlow_twins))
    value, slope = loss(z1, z2, off_diagonal_weight=0.1)
    kept = np.array([0, 2])
    rest = losses.barlow_twins(z1[:, kept], z2[:, kept], off_diagonal_weight=0.1)
    cross = np.corrcoef(np.concatenate([z1[:, kept], z2], axis=1).T)[:2, 3]
    np.testing.assert_allclose(value, rest + 1 + 0.1 * np.sum(cross**2), rtol=1e-5)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("rows", [256, 50_000])
@pytest.mark.parametrize("level", [0.1, 0.3, 0.7])
def test_a_constant_dimension_is_none_at_any_level(level, rows):
    """The mean of ``rows`` such numbers is not the number, so that something is left over."""
    collapsed = np.full((rows, 3), level, np.float32)
    spread = np.float32(draw(rows, 3))
    constant, zero = spread.copy(), spread.copy()
    constant[:, 1], zero[:, 1] = level, 0
    loss = jax.value_and_grad(jaxssl.losses.barlow_twins, argnums=(0, 1))
    # Operation by operation too: there the mean is rounded in another order.
    for form in (at_once(loss), loss) if rows == 50_000 else (at_once(loss),):
        value, slopes = form(collapsed, collapsed, off_diagonal_weight=0.0)
        assert value == 3
        jax.tree.map(lambda slope: np.testing.assert_array_equal(slope, 0), slopes)
        ours = form(constant, spread, off_diagonal_weight=0.1)
        zeroed = form(zero, spread, off_diagonal_weight=0.1)
        jax.tree.map(np.testing.assert_array_equal, ours, zeroed)


def test_a_dimension_within_rounding_of_a_constant_is_none():
    z = jnp.float32(0.1) * (1 + jnp.float32(2.0**-23) * (jnp.arange(256) % 2))[:, None]
    assert losses.barlow_twins(z, z, off_diagonal_weight=0.0) == 1
    assert losses.barlow_twins(z, z, off_diagonal_weight=0.0, epsilon=1e-5) > 0.99


def test_a_margin_that_is_no_number_reaches_the_loss():
    z = jnp.float32(draw(4, 3))
    assert jnp.isnan(losses.negative_cosine(z, z, margin=jnp.nan))


@pytest.mark.parametrize("epsilon", [1e-4, 0.2])
def test_vicreg_is_the_formula(epsilon):
    with jax.enable_x64(True):
        z1, z2 = 3 + 0.6 * draw(9, 4), 1.2 * draw(9, 4, seed=1) - 1
        variance, covariance = 0.0, 0.0
        for z in (z1, z2):
            c = np.cov(z.T)
            variance += np.mean(np.maximum(0, 1 - np.sqrt(np.diag(c) + epsilon))) / 2
            covariance += (np.sum(c**2) - np.sum(np.diag(c) ** 2)) / 4
        ours = losses.vicreg(
            jnp.asarray(z1),
            jnp.asarray(z2),
            invariance_weight=25.0,
            variance_weight=20.0,
            covariance_weight=1.5,
            epsilon=epsilon,
        )
        golden = 25 * np.mean((z1 - z2) ** 2) + 20 * variance + 1.5 * covariance
        assert variance > 0.1
        np.testing.assert_allclose(ours, golden, rtol=1e-12)


def test_vicreg_of_a_collapsed_batch_has_a_finite_gradient():
    weights = {"invariance_weight": 25.0, "variance_weight": 25.0, "covariance_weight": 1.0}
    z = jnp.full((8, 3), 0.7)
    value, slope = at_once(jax.value_and_grad(jaxssl.losses.vicreg))(z, z, **weights)
    np.testing.assert_allclose(value, 25 * 0.99, rtol=1e-5)
    assert np.all(np.isfinite(slope))
