"""The effective rank against NumPy's singular values, and what blocks and few digits may not do."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxssl.metrics import rankme


def draw(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def reference(z):
    values = np.linalg.svd(np.float64(z), compute_uv=False)
    shares = values / values.sum()
    return np.exp(-sum(p * np.log(p) for p in shares if p > 0))


@pytest.mark.parametrize(("n", "d"), [(50, 8), (7, 32), (1, 5), (9, 1)])
@pytest.mark.parametrize("block_size", [1, 6, 50])
def test_it_is_the_formula_whatever_the_blocks(n, d, block_size):
    z = 3 * draw(n, d) + 0.7
    np.testing.assert_allclose(rankme(z, block_size=block_size), reference(z), rtol=1e-12)


@pytest.mark.parametrize("kind", [np.float16, np.float32, jnp.float32, jnp.bfloat16])
def test_features_of_few_digits_are_taken_as_they_are(kind):
    z = jnp.asarray(draw(40, 16), kind) if kind in (jnp.float32, jnp.bfloat16) else draw(40, 16)
    z = z if kind in (jnp.float32, jnp.bfloat16) else z.astype(kind)
    np.testing.assert_allclose(rankme(z), reference(np.asarray(z, np.float64)), rtol=1e-12)


def test_small_singular_values_keep_their_digits():
    """As squares in a covariance, even of float64, they would be lost: 1e-9 of the largest."""
    left, _ = np.linalg.qr(draw(400, 6))
    right, _ = np.linalg.qr(draw(6, 6, seed=1))
    values = np.array([1.0, *[1e-9] * 5])
    z = left * values @ right
    shares = values / values.sum()
    above_one = np.exp(-np.sum(shares * np.log(shares))) - 1
    np.testing.assert_allclose(rankme(z, block_size=37) - 1, above_one, rtol=1e-4)
    eigenvalues = np.linalg.eigvalsh(z.T @ z)
    by_covariance = np.sqrt(np.maximum(eigenvalues, 0))
    by_covariance = by_covariance[by_covariance > 0] / by_covariance.sum()
    wrong = np.exp(-np.sum(by_covariance * np.log(by_covariance))) - 1
    assert abs(wrong / above_one - 1) > 0.1


@pytest.mark.parametrize("scale", [1e-22, 1e20])
def test_the_scale_of_the_features_is_none_of_its_business(scale):
    z = draw(50, 8) + 0.3
    np.testing.assert_allclose(rankme(np.float32(scale * z)), reference(z), rtol=1e-6)


def test_closed_forms():
    axes = np.concatenate([np.eye(6), -np.eye(6)])
    np.testing.assert_allclose(rankme(axes), 6.0, rtol=1e-12)
    orthogonal = np.diag([3.0, 1, 1, 1, 0, 0])
    shares = np.array([3, 1, 1, 1]) / 6
    np.testing.assert_allclose(
        rankme(orthogonal), np.exp(-(shares * np.log(shares)).sum()), rtol=1e-12
    )
    plane = np.float32(draw(2000, 2) @ draw(2, 32, seed=1))
    assert 1.5 < rankme(plane) < 2.001
    assert rankme(draw(2000, 32)) > 31


def test_zero_and_what_is_no_number():
    assert rankme(np.zeros((4, 3))) == 0
    for bad in (np.nan, np.inf):
        z = draw(9, 4)
        z[7, 1] = bad
        assert np.isnan(rankme(z, block_size=5))
    with pytest.raises(ValueError, match=r"block_size=0: give at least 1"):
        rankme(draw(9, 4), block_size=0)
