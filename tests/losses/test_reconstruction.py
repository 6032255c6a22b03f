"""Reconstructions against their formulas, and against SciPy's distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from quick_compilation import AtOnce, at_once

import jaxssl.losses

losses = AtOnce(jaxssl.losses)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("normalize_target", [True, False])
def test_masked_reconstruction_is_the_formula(normalize_target):
    with jax.enable_x64(True):
        prediction, target = draw(3, 4, 5), 3 + draw(3, 4, 5, seed=1)
        mask = draw(3, 4, seed=2) > 0.3
        goal = target
        if normalize_target:
            variance = target.var(-1, ddof=1, keepdims=True)
            goal = (target - target.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-6)
        errors = [
            np.mean((prediction[b, p] - goal[b, p]) ** 2)
            for b, p in zip(*mask.nonzero(), strict=True)
        ]
        ours = losses.masked_reconstruction(
            *map(jnp.asarray, (prediction, target, mask)), normalize_target=normalize_target
        )
        np.testing.assert_allclose(ours, np.mean(errors), rtol=1e-12)


def test_visible_patches_have_no_gradient():
    mask = jnp.array([[True, False, False]])
    prediction, target = jnp.float32(draw(1, 3, 4)), jnp.float32(draw(1, 3, 4, seed=1))
    gradient = at_once(jax.grad(losses.masked_reconstruction))
    slope = np.asarray(gradient(prediction, target, mask, normalize_target=False))
    np.testing.assert_array_equal(slope[:, 1:], 0)
    assert np.all(slope[:, 0] != 0)


def test_nothing_masked_is_no_loss():
    prediction, target = jnp.float32(draw(1, 3, 4)), jnp.float32(draw(1, 3, 4, seed=1))
    mask = jnp.zeros((1, 3), bool)
    assert losses.masked_reconstruction(prediction, target, mask, normalize_target=False) == 0


def test_one_value_a_patch_is_refused():
    x = jnp.ones((1, 3, 1))
    with pytest.raises(ValueError, match="no variance"):
        losses.masked_reconstruction(x, x, jnp.ones((1, 3), bool), normalize_target=True)


def test_bernoulli_nll_is_scipys_where_pixels_are_bits():
    logits = 3 * draw(4, 2, 3, 2)
    bits = (draw(4, 2, 3, 2, seed=1) > 0).astype(np.float64)
    expected = -scipy.stats.bernoulli.logpmf(bits, 1 / (1 + np.exp(-logits))).sum((1, 2, 3)).mean()
    with jax.enable_x64(True):
        ours = losses.bernoulli_nll(jnp.asarray(logits), jnp.asarray(bits))
        np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_grey_pixels_count_as_probabilities():
    """The cross-entropy is least where the predicted probability is the grey value."""
    grey = jnp.full((1, 1, 1, 1), 0.3)
    slope = at_once(jax.grad(losses.bernoulli_nll))
    np.testing.assert_allclose(slope(jnp.log(grey / (1 - grey)), grey), 0, atol=1e-7)
    with_confidence = [losses.bernoulli_nll(jnp.full_like(grey, x), grey) for x in (50.0, -50.0)]
    np.testing.assert_allclose(with_confidence, [35, 15], rtol=1e-6)  # finite: no log of 0


def test_gaussian_kl_is_the_integral():
    mean, deviation = 0.7, 1.6
    x = np.linspace(-30, 30, 200_001)
    p, q = scipy.stats.norm(mean, deviation), scipy.stats.norm()
    expected = np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x)
    with jax.enable_x64(True):
        means, log_variances = jnp.array([[mean, 0.0]]), jnp.array([[2 * np.log(deviation), 0.0]])
        ours = losses.gaussian_kl(means, log_variances)
        np.testing.assert_allclose(ours, expected, rtol=1e-9)
        both = losses.gaussian_kl(jnp.repeat(means, 3, 0), jnp.repeat(log_variances, 3, 0))
        np.testing.assert_allclose(both, expected, rtol=1e-9)
