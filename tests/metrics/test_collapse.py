import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compilation import at_once

from jaxssl.metrics import collapse

feature_std = at_once(collapse.feature_std)


def sphere(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def reference_std(z):
    z = np.float64(z) / np.linalg.norm(z, axis=1, keepdims=True)
    return np.sqrt(z.shape[1]) * z.std(axis=0).mean()


@pytest.mark.parametrize(("n", "d"), [(50, 8), (7, 32)])
def test_formulas(n, d):
    z = np.float32(3 * sphere(n, d) + 0.7)
    np.testing.assert_allclose(feature_std(z), reference_std(z), rtol=2e-6)
    with jax.enable_x64(True):
        z = jnp.asarray(z, jnp.float64)
        assert feature_std(z).dtype == jnp.float64
        np.testing.assert_allclose(feature_std(z), reference_std(z), rtol=1e-13)


@pytest.mark.parametrize("scale", [1e-22, 1e20])
def test_the_scale_of_the_features_is_none_of_their_business(scale):
    z = sphere(50, 8) + 0.3
    scaled = np.float32(scale * z)
    np.testing.assert_allclose(feature_std(scaled), reference_std(z), rtol=1e-5)


def test_a_nan_stays_one():
    z = np.float32(sphere(9, 4))
    z[2, 1] = np.nan
    assert np.isnan(feature_std(z))


def test_half_precision_is_computed_in_float32():
    z = jnp.asarray(sphere(40, 16), jnp.bfloat16)
    assert feature_std(z).dtype == jnp.float32
    np.testing.assert_allclose(feature_std(z), reference_std(np.asarray(z, np.float32)), rtol=2e-6)


def test_closed_forms():
    # 1 for an even spread: all signed axes, each component with variance 1/d
    axes = np.float32(np.concatenate([np.eye(6), -np.eye(6)]))
    np.testing.assert_allclose(feature_std(axes), 1.0, rtol=1e-6)
    np.testing.assert_allclose(feature_std(5 * axes), 1.0, rtol=1e-6)
    # only the length differs: collapsed
    np.testing.assert_allclose(
        feature_std(np.arange(1.0, 9, dtype=np.float32)[:, None] * axes[:1]), 0
    )


def test_collapse_is_told_from_none():
    spread = np.float32(sphere(2000, 32))
    assert feature_std(spread) > 0.98
    shifted = np.float32(0.01 * spread + 1)
    assert feature_std(shifted) < 0.02
    plane = np.float32(sphere(2000, 2) @ sphere(2, 32, seed=1))
    assert feature_std(plane) > 0.8  # what the effective rank sees


def test_all_zero_is_no_nan():
    zero = np.zeros((4, 3), np.float32)
    assert feature_std(zero) == 0
