import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
from quick_compilation import at_once
from support import unchecked

import jaxssl.metrics

uniformity = at_once(jaxssl.metrics.uniformity)


def reference(f, t):
    f = np.float64(f) / np.linalg.norm(np.float64(f), axis=1, keepdims=True)
    return -np.log(np.mean(np.exp(-t * scipy.spatial.distance.pdist(f, "sqeuclidean"))))


@pytest.mark.parametrize("t", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("block_size", [1, 7, 33, 500])
def test_formula_in_any_block_size(t, block_size):
    f = np.float32(4 * np.random.default_rng(0).normal(size=(33, 5)) + 1)
    found = uniformity(f, t, block_size=block_size)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, reference(f, t), rtol=1e-6)
    with jax.enable_x64(True):
        found = uniformity(jnp.asarray(f, jnp.float64), t, block_size=block_size)
        np.testing.assert_allclose(found, reference(f, t), rtol=1e-13)


def test_a_sharp_potential_does_not_vanish():
    """exp(-120) is below what float32 holds."""
    opposite = np.float32([[1, 0], [-1, 0]])
    np.testing.assert_allclose(uniformity(opposite, 30.0), 120, rtol=1e-6)
    # Ten pairs far apart, and rows of which some are nearer than others.
    f = np.float32(np.concatenate([np.eye(5), -np.eye(5)]) + 0.1 * np.eye(10, 5))
    for block_size in (1, 3, 10):
        found = uniformity(f, 30.0, block_size=block_size)
        np.testing.assert_allclose(found, reference(f, 30.0), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-22, 1e20])
def test_the_scale_of_the_features_is_none_of_its_business(scale):
    f = np.random.default_rng(0).normal(size=(33, 5))
    np.testing.assert_allclose(uniformity(np.float32(scale * f)), reference(f, 2), rtol=1e-5)


def test_a_nan_stays_one():
    f = np.float32(np.random.default_rng(0).normal(size=(9, 5)))
    for row in (0, 4, 8):
        bad = f.copy()
        bad[row, 1] = np.nan
        assert np.isnan(uniformity(bad, block_size=4))


@pytest.mark.parametrize("d", [3, 128])
def test_an_even_spread_reaches_the_closed_form(d):
    f = np.float32(np.random.default_rng(1).normal(size=(3000, d)))
    limit = 4 - np.log(scipy.special.hyp0f1(d / 2, 4.0))
    np.testing.assert_allclose(limit, {3: 2.080, 128: 3.9375}[d], atol=1e-3)
    np.testing.assert_allclose(uniformity(f), limit, atol=0.005)


def test_collapsed_classes_reach_theirs():
    """Ten classes on a simplex, each one point: -log(.1 + .9 exp(-40 / 9)), for many images."""
    simplex = np.float32(np.eye(10) - 0.1)
    labels = np.arange(4000) % 10
    same = (400 - 1) / (4000 - 1)
    expected = -np.log(same + (1 - same) * np.exp(-40 / 9))
    np.testing.assert_allclose(uniformity(simplex[labels]), expected, rtol=1e-5)
    assert abs(expected - 2.202) < 0.003


def test_one_point_is_zero_and_self_pairs_do_not_count():
    np.testing.assert_allclose(uniformity(np.float32(np.ones((5, 3)))), 0.0, atol=1e-5)
    np.testing.assert_allclose(uniformity(np.float32([[1, 0], [-1, 0]])), 8.0, rtol=1e-6)
    assert np.isfinite(uniformity(np.float32([[0, 0], [-1, 0]])))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        unchecked(jaxssl.metrics.uniformity)(np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match="t=0"):
        uniformity(np.ones((2, 3), np.float32), 0.0)
