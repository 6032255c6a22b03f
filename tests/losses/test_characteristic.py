"""The sliced characteristic test against its definition, an integral, and LeJEPA's own loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from quick_compilation import AtOnce

import jaxssl.losses

losses = AtOnce(jaxssl.losses)
KEY = 7


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def directions(count, dimension):
    """The function's own, [count, D]."""
    a = np.asarray(jax.random.normal(jax.random.key(KEY), (count, dimension), "float64"))
    return a / np.linalg.norm(a, axis=1, keepdims=True)


def statistic(h, a, num_knots=17):
    """LeJEPA's SIGReg of one view, direction by direction and knot by knot."""
    knots, step = np.linspace(0, 3, num_knots, retstep=True)
    total = 0.0
    for direction in a:
        for number, t in enumerate(knots):
            x, phi = t * (h @ direction), np.exp(-(t**2) / 2)
            error = (np.cos(x).mean() - phi) ** 2 + np.sin(x).mean() ** 2
            total += step * (1 if number in (0, num_knots - 1) else 2) * phi * error
    return len(h) * total / len(a)


def test_it_is_the_formula():
    with jax.enable_x64(True):
        h = 1.5 * draw(9, 4) + 0.3
        ours = losses.sliced_characteristic(jnp.asarray(h), key=jax.random.key(KEY))
        np.testing.assert_allclose(ours, statistic(h, directions(256, 4)), rtol=1e-12)


def test_knots_are_dense_enough_for_the_integral():
    with jax.enable_x64(True):
        h = 1.5 * draw(9, 4) + 0.3
        (a,) = directions(1, 4)

        def integrand(t):
            x, phi = t * (h @ a), np.exp(-(t**2) / 2)
            return phi * ((np.cos(x).mean() - phi) ** 2 + np.sin(x).mean() ** 2)

        golden = 9 * scipy.integrate.quad(integrand, -3, 3)[0]
        ours = losses.sliced_characteristic(
            jnp.asarray(h), key=jax.random.key(KEY), num_projections=1
        )
        np.testing.assert_allclose(ours, golden, rtol=1e-2)
        dense = losses.sliced_characteristic(
            jnp.asarray(h), key=jax.random.key(KEY), num_projections=1, num_knots=1001
        )
        np.testing.assert_allclose(dense, golden, rtol=1e-5)


@pytest.mark.parametrize("rows", [64, 1024])
def test_a_normal_sample_has_a_value_of_its_own_whatever_its_size(rows):
    """sqrt(2 pi) (1 - 1 / sqrt(3)) over the whole line."""
    h = np.float32(draw(rows, 16))
    ours = losses.sliced_characteristic(h, key=jax.random.key(KEY))
    assert abs(ours - np.sqrt(2 * np.pi) * (1 - 3**-0.5)) < 0.25
    assert losses.sliced_characteristic(2 * h, key=jax.random.key(KEY)) > 2.5
    assert losses.sliced_characteristic(h + 1, key=jax.random.key(KEY)) > 2.5


@pytest.mark.parametrize("count", [2, 4])
def test_lejepas_own_loss_is_a_setting(count):
    """lambda SIGReg + (1 - lambda) invariance, every view apart, as the authors' code has it."""
    weight = 0.02
    with jax.enable_x64(True):
        views = [draw(9, 5, seed=seed) for seed in range(count)]
        a = directions(256, 5)
        sigreg = np.mean([statistic(h, a) for h in views])
        invariance = np.mean((np.mean(views, axis=0) - np.stack(views)) ** 2)
        scale = (1 - weight) * (count - 1) / count
        ours = losses.generalized_contrastive(
            *(jnp.asarray(h) for h in views),
            key=jax.random.key(KEY),
            distribution="characteristic",
            weight=weight / scale,
            scale=scale,
            normalize=False,
            views_together=False,
        )
        golden = weight * sigreg + (1 - weight) * invariance
        np.testing.assert_allclose(ours, golden, rtol=1e-12)


def test_what_cannot_be(own_errors):
    h = jnp.ones((4, 3))
    for numbers in ({"num_projections": 0}, {"num_knots": 1}):
        with pytest.raises(ValueError, match=r"give at least 1 and 2"):
            jaxssl.losses.sliced_characteristic(h, key=jax.random.key(0), **numbers)
    with pytest.raises(ValueError, match=r"give normalize=False"):
        jaxssl.losses.generalized_contrastive(
            h, h, key=jax.random.key(0), distribution="characteristic", weight=1.0
        )
