"""Alignment and uniformity against the definitions and known limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from quick_compilation import AtOnce, at_once

import jaxssl.losses
from jaxssl import metrics

losses = AtOnce(jaxssl.losses)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference_uniformity(z, t):
    z = unit(z)
    pairs = [(i, j) for j in range(len(z)) for i in range(j)]
    return np.log(np.mean([np.exp(-t * np.sum((z[i] - z[j]) ** 2)) for i, j in pairs]))


@pytest.mark.parametrize("alpha", [0.5, 1, 2, 3])
def test_alignment_is_the_formula(alpha):
    with jax.enable_x64(True):
        z1, z2 = draw(6, 4), draw(6, 4, seed=1)
        golden = np.mean(np.linalg.norm(unit(z1) - unit(z2), axis=1) ** alpha)
        ours = losses.alignment(jnp.asarray(z1), jnp.asarray(z2), alpha=alpha)
        np.testing.assert_allclose(ours, golden, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alignment_of_equal_views_has_no_value_and_no_gradient(alpha):
    z = jnp.float32(draw(6, 4))
    value, slope = at_once(jax.value_and_grad(losses.alignment))(z, z, alpha=alpha)
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("t", [0.5, 2, 30])
def test_uniformity_is_the_formula(t, block_size):
    with jax.enable_x64(True):
        z = draw(8, 4)
        ours = losses.uniformity(jnp.asarray(z), t=t, block_size=block_size)
        np.testing.assert_allclose(ours, reference_uniformity(z, t), rtol=1e-12)


@pytest.mark.parametrize("dimension", [3, 64, 512])
def test_uniformity_of_the_uniform_sphere(dimension):
    """Closed form: log 0F1(; d/2; t^2) - 2 t."""
    z = jax.random.normal(jax.random.key(0), (4096, dimension))
    golden = np.log(scipy.special.hyp0f1(dimension / 2, 4.0)) - 4
    np.testing.assert_allclose(losses.uniformity(z), golden, atol=3e-3)


def test_uniformity_of_ten_collapsed_classes_in_a_simplex():
    """Unit vectors of pairwise cosine -1/9: log(.1 + .9 exp(-40/9)) = -2.202 but for self-pairs."""
    corners = np.eye(10) - 0.1
    z = jnp.float32(np.repeat(corners, 200, axis=0))
    same = 200 * 199 / 2 * 10
    different = 200 * 200 * 45
    golden = np.log((same + different * np.exp(-40 / 9)) / (same + different))
    np.testing.assert_allclose(losses.uniformity(z), golden, rtol=1e-5)
    np.testing.assert_allclose(golden, -2.202, atol=5e-3)


def test_self_pairs_do_not_count():
    """With 128 points on a large sphere they would move -3.9 to -3.6."""
    z = jax.random.normal(jax.random.key(0), (128, 128))
    assert losses.uniformity(z) < -3.9


def test_training_loss_averages_the_views():
    with jax.enable_x64(True):
        z1, z2 = draw(6, 4), draw(6, 4, seed=1)
        attraction = np.mean(np.sum((unit(z1) - unit(z2)) ** 2, axis=1))
        spread = (reference_uniformity(z1, 3.0) + reference_uniformity(z2, 3.0)) / 2
        ours = losses.alignment_and_uniformity(
            jnp.asarray(z1), jnp.asarray(z2), alignment_weight=0.7, uniformity_weight=1.2, t=3.0
        )
        np.testing.assert_allclose(ours, 0.7 * attraction + 1.2 * spread, rtol=1e-12)


@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("batch", [1, 4])
def test_queue_form_is_the_formula(batch, block_size):
    with jax.enable_x64(True):
        q, k, queue = draw(batch, 4), draw(batch, 4, seed=1), draw(7, 4, seed=2)
        squares = np.sum((unit(q)[:, None] - unit(queue)) ** 2, axis=2).ravel()
        within = [np.sum((unit(q)[i] - unit(q)[j]) ** 2) for j in range(batch) for i in range(j)]
        spread = np.log(np.mean(np.exp(-3 * np.concatenate([squares, within]))))
        attraction = np.mean(2 - 2 * np.sum(unit(q) * unit(k), axis=1))
        ours = losses.queue_alignment_and_uniformity(
            *map(jnp.asarray, (q, k, queue)),
            alignment_weight=3.0,
            uniformity_weight=1.0,
            t=3.0,
            block_size=block_size,
        )
        np.testing.assert_allclose(ours, 3 * attraction + spread, rtol=1e-12)


def test_invariances():
    z = jnp.float32(draw(8, 4))
    value = losses.uniformity(z)
    np.testing.assert_allclose(losses.uniformity(z[::-1]), value, rtol=1e-6)
    scales = jnp.float32([1, 2, 3, 4, 5, 6, 7, 8])[:, None]
    np.testing.assert_allclose(losses.uniformity(scales * z), value, rtol=1e-6)
    rotation = np.linalg.qr(draw(4, 4, seed=3))[0]
    np.testing.assert_allclose(losses.uniformity(z @ jnp.float32(rotation)), value, rtol=1e-5)


def test_a_zero_vector_is_at_squared_distance_2_from_all_others():
    """The metric takes its true distance to a unit vector, 1, and to another zero, 0."""
    z = jnp.float32([[0, 0], [1, 0], [1, 0]])
    golden = np.log((2 * np.exp(-4) + 1) / 3)
    np.testing.assert_allclose(losses.uniformity(z), golden, rtol=1e-6)
    np.testing.assert_allclose(losses.uniformity(jnp.zeros((3, 2))), -4, rtol=1e-6)
    np.testing.assert_allclose(losses.queue_uniformity(z[:1], z), -4, rtol=1e-6)
    maps = z[:, None]
    dense = np.log((8 * np.exp(-4) + 4) / 12)
    # Of 12 pairs of different images' views 8 have the zero vector.
    np.testing.assert_allclose(losses.dense_uniformity(maps, maps), dense, rtol=1e-6)
    metric = -np.log((2 * np.exp(-2) + 1) / 3)
    np.testing.assert_allclose(metrics.uniformity(z), metric, rtol=1e-6)
    np.testing.assert_allclose(metrics.uniformity(jnp.zeros((3, 2))), 0, atol=1e-6)


def count_queue(z):
    return losses.queue_uniformity(z, z)


def count_cells(pairs):
    def loss(z):
        h = z.reshape(-1, 2, z.shape[1])
        return losses.dense_uniformity(h, h, pairs=pairs)

    return loss


def count_projections(z):
    key = jax.random.key(0)
    return losses.sliced_wasserstein(z, key=key, prior="hypercube", num_projections=z.shape[1])


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (losses.uniformity, (2**17, 8)),
        (count_queue, (2**17, 8)),
        (count_cells("same_index"), (2**17, 8)),
        (count_cells("all_cells"), (2**17, 8)),
        (count_projections, (2**21, 1024)),
    ],
)
def test_more_pairs_than_an_int32_counts(loss, shape):
    z = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert jax.eval_shape(jax.grad(loss), z).shape == shape
