"""Masked reconstruction against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
