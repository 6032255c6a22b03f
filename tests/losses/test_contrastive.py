"""Instance contrastive losses against NumPy written from the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick_compilation import AtOnce, quick_jit

import jaxssl.losses

losses = AtOnce(jaxssl.losses)
TEMPERATURES = (0.05, 0.5, 2.0)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def log_sum(x):
    return np.log(np.sum(np.exp(x - x.max()))) + x.max()


def reference_nt_xent(z1, z2, temperature):
    """SimCLR Eq. 1, one anchor at a time."""
    z = unit(np.concatenate([z1, z2]))
    n = len(z1)
    total = 0.0
    for i in range(2 * n):
        others = [k for k in range(2 * n) if k != i]
        logits = np.array([z[i] @ z[k] / temperature for k in others])
        total += log_sum(logits) - z[i] @ z[(i + n) % (2 * n)] / temperature
    return total / (2 * n)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nt_xent_is_the_formula(temperature):
    with jax.enable_x64(True):
        z1, z2 = draw(6, 4), draw(6, 4, seed=1)
        ours = losses.nt_xent(jnp.asarray(z1), jnp.asarray(z2), temperature=temperature)
        np.testing.assert_allclose(ours, reference_nt_xent(z1, z2, temperature), rtol=1e-12)


def test_nt_xent_equals_optax():
    z1, z2 = jnp.float32(draw(6, 4)), jnp.float32(draw(6, 4, seed=1))

    def theirs(z1, z2):
        z = jnp.concatenate([z1, z2])
        z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
        return optax.losses.ntxent(z, jnp.tile(jnp.arange(6), 2), 0.3)

    ours = quick_jit(jax.grad(PAIRS["nt_xent"], (0, 1)))(z1, z2)
    np.testing.assert_allclose(ours, quick_jit(jax.grad(theirs, (0, 1)))(z1, z2), atol=2e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.1, 0.5, 1.0, 10.0])
def test_nt_xent_of_orthogonal_classes(temperature):
    """Aligned pairs, all others orthogonal: log(1 + (2n - 2) exp(-1 / temperature))."""
    z = jnp.eye(8)
    golden = np.log1p(14 * np.exp(-1 / temperature))
    # At .01 that is 5e-43, below float32: a difference of large numbers would leave 1e-6.
    np.testing.assert_allclose(
        losses.nt_xent(z, z, temperature=temperature), golden, rtol=1e-6, atol=1e-37
    )


def test_nt_xent_of_collapsed_features():
    z = jnp.ones((8, 3))
    ours = losses.nt_xent(z, z, temperature=0.1)
    np.testing.assert_allclose(ours, np.log(15), rtol=1e-6)


def test_decoupled_is_eq_4():
    with jax.enable_x64(True):
        z1, z2 = draw(6, 4), draw(6, 4, seed=1)
        z = unit(np.concatenate([z1, z2]))
        attraction = np.mean(np.sum(unit(z1) * unit(z2), axis=1))
        logits = z @ z.T / 0.4
        spread = np.mean([log_sum(np.delete(logits[i], i)) for i in range(12)])
        ours = losses.decoupled_nt_xent(
            jnp.asarray(z1), jnp.asarray(z2), temperature=0.4, weight=0.3
        )
        np.testing.assert_allclose(ours, 0.3 * spread - attraction, rtol=1e-12)


def test_decoupled_with_its_temperature_as_weight_is_nt_xent():
    z1, z2 = jnp.float32(draw(6, 4)), jnp.float32(draw(6, 4, seed=1))
    ours = losses.decoupled_nt_xent(z1, z2, temperature=0.4, weight=0.4)
    np.testing.assert_allclose(ours, 0.4 * losses.nt_xent(z1, z2, temperature=0.4), rtol=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_cross_view_is_rows_and_columns(temperature):
    with jax.enable_x64(True):
        z1, z2 = draw(6, 4), draw(6, 4, seed=1)
        logits = unit(z1) @ unit(z2).T / temperature
        rows = np.mean([log_sum(logits[i]) - logits[i, i] for i in range(6)])
        columns = np.mean([log_sum(logits[:, i]) - logits[i, i] for i in range(6)])
        ours = losses.cross_view_nt_xent(jnp.asarray(z1), jnp.asarray(z2), temperature=temperature)
        np.testing.assert_allclose(ours, (rows + columns) / 2, rtol=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_info_nce_is_the_cross_entropy(temperature):
    with jax.enable_x64(True):
        q, k, negatives = draw(5, 4), draw(5, 4, seed=1), draw(9, 4, seed=2)
        positive = np.sum(unit(q) * unit(k), axis=1, keepdims=True)
        logits = np.concatenate([positive, unit(q) @ unit(negatives).T], axis=1) / temperature
        golden = np.mean([log_sum(row) - row[0] for row in logits])
        ours = losses.info_nce(*map(jnp.asarray, (q, k, negatives)), temperature=temperature)
        np.testing.assert_allclose(ours, golden, rtol=1e-12)


def reference_supcon(z1, z2, labels, temperature, positives):
    """Equations 2 and 3 of arXiv:2004.11362, one anchor at a time."""
    z, labels = unit(np.concatenate([z1, z2])), np.tile(labels, 2)
    total = 0.0
    for i in range(len(z)):
        others = [k for k in range(len(z)) if k != i]
        spread = log_sum(np.array([z[i] @ z[k] / temperature for k in others]))
        alike = np.array([z[i] @ z[k] / temperature for k in others if labels[k] == labels[i]])
        if positives == "outside":
            total += spread - np.mean(alike)
        else:
            total += spread - np.log(np.mean(np.exp(alike)))
    return total / len(z)


@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("positives", ["outside", "inside"])
def test_supcon_is_the_formula(positives, block_size):
    with jax.enable_x64(True):
        z1, z2 = draw(6, 4), draw(6, 4, seed=1)
        labels = np.array([3, -7, 3, 100000, 3, -7])
        ours = losses.supcon(
            *map(jnp.asarray, (z1, z2, labels)),
            temperature=0.4,
            positives=positives,
            block_size=block_size,
        )
        golden = reference_supcon(z1, z2, labels, 0.4, positives)
        np.testing.assert_allclose(ours, golden, rtol=1e-12)


@pytest.mark.parametrize("positives", ["outside", "inside"])
def test_supcon_with_every_label_once_is_nt_xent(positives):
    z1, z2 = jnp.float32(draw(6, 4)), jnp.float32(draw(6, 4, seed=1))
    ours = losses.supcon(z1, z2, jnp.arange(6), temperature=0.4, positives=positives)
    np.testing.assert_allclose(ours, losses.nt_xent(z1, z2, temperature=0.4), rtol=1e-6)


def test_supcon_of_one_class_collapsed():
    """All positives at cosine 1: the loss is the log of their number."""
    z = jnp.ones((4, 3))
    ours = losses.supcon(z, z, jnp.zeros(4, int), temperature=0.1)
    np.testing.assert_allclose(ours, np.log(7), rtol=1e-6)


PAIRS = {
    "nt_xent": lambda a, b: losses.nt_xent(a, b, temperature=0.3),
    "decoupled": lambda a, b: losses.decoupled_nt_xent(a, b, temperature=0.3, weight=0.2),
    "cross_view": lambda a, b: losses.cross_view_nt_xent(a, b, temperature=0.3),
    "supcon": lambda a, b: losses.supcon(a, b, jnp.zeros(6, int), temperature=0.3),
}


@pytest.mark.parametrize("name", PAIRS)
def test_invariances(name):
    """Swapping the views, permuting the images and scaling each feature vector change nothing."""
    loss = quick_jit(PAIRS[name])
    z1, z2 = jnp.float32(draw(6, 4)), jnp.float32(draw(6, 4, seed=1))
    value = loss(z1, z2)
    order = np.array([3, 1, 5, 0, 2, 4])
    scales = jnp.float32(10.0 ** np.arange(-20, 10, 5))[:, None]
    np.testing.assert_allclose(loss(z2, z1), value, rtol=1e-6)
    np.testing.assert_allclose(loss(z1[order], z2[order]), value, rtol=1e-6)
    np.testing.assert_allclose(loss(scales * z1, z2), value, rtol=1e-6)
    if name != "supcon":  # there, with one label, any image may pair with any
        assert abs(loss(z1, z2[order]) - value) > 1e-2


def test_a_dead_feature_vector_keeps_the_gradient_finite():
    z1, z2 = jnp.float32(draw(4, 3)).at[1].set(0), jnp.float32(draw(4, 3, seed=1))
    slope = quick_jit(jax.grad(PAIRS["nt_xent"]))(z1, z2)
    assert np.all(np.isfinite(slope))
    np.testing.assert_array_equal(slope[1], 0)


def test_bad_arguments():
    z = jnp.float32(draw(4, 3))
    labels = jnp.arange(4)
    with pytest.raises(ValueError, match="positives='both' is unknown: choose one of outside"):
        losses.supcon(z, z, labels, temperature=0.1, positives="both")
    with pytest.raises(ValueError, match="block_size=0"):
        losses.nt_xent(z, z, temperature=0.1, block_size=0)
