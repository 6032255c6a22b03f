"""Alignment and uniformity of maps against the formulas pair by pair, and against the losses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import unchecked

from jaxssl import losses
from jaxssl.metrics import dense_alignment, dense_uniformity, uniformity
from jaxssl.metrics.dense import PAIRS

IMAGES, CELLS = 9, 3


def maps(seed=0, n=IMAGES, p=CELLS, d=5):
    return np.float32(np.random.default_rng(seed).normal(size=(n, p, d)) + 0.5)


def unit(h):
    return np.float64(h) / np.linalg.norm(np.float64(h), axis=-1, keepdims=True)


def potentials(h1, h2, t, pairs):
    """By the two images of each pair of cells."""
    found = {}
    views = [unit(h1), unit(h2)]
    for i, j in itertools.combinations(range(len(h1)), 2):
        found[i, j] = [
            np.exp(-t * np.sum((x[i, p] - y[j, q]) ** 2))
            for x, y in itertools.product(views, repeat=2)
            for p, q in itertools.product(range(h1.shape[1]), repeat=2)
            if pairs == "all_cells" or p == q
        ]
    return found


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize(("t", "block_size"), [(1.0, 4), (2.0, 1024)])
def test_uniformity_is_the_mean_over_pairs_of_different_images(pairs, t, block_size):
    h1, h2 = maps(0), maps(1)
    by_pair = potentials(h1, h2, t, pairs)
    mean = np.mean(list(by_pair.values()))
    found = dense_uniformity(h1, h2, t, pairs=pairs, block_size=block_size)
    np.testing.assert_allclose(found.value, np.log(mean), rtol=1e-5)
    of_image = [
        np.mean([values for images, values in by_pair.items() if i in images])
        for i in range(IMAGES)
    ]
    np.testing.assert_allclose(
        found.influence, 2 * (np.array(of_image) / mean - 1), rtol=1e-3, atol=1e-5
    )
    with jax.enable_x64(True):
        exact = dense_uniformity(np.float64(h1), np.float64(h2), t, pairs=pairs)
        np.testing.assert_allclose(exact.value, np.log(mean), rtol=1e-12)
    loss = losses.dense_uniformity(jnp.asarray(h1), jnp.asarray(h2), t=t, pairs=pairs)
    np.testing.assert_allclose(found.value, loss, rtol=1e-5)


def test_alignment_is_the_mean_cosine():
    h1, h2 = maps(0), maps(1)
    of_image = -np.sum(unit(h1) * unit(h2), axis=-1).mean(axis=1)
    found = dense_alignment(h1, h2)
    np.testing.assert_allclose(found.value, of_image.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.influence, of_image - of_image.mean(), atol=1e-6)
    np.testing.assert_allclose(dense_alignment(h1, 3 * h1).value, -1, rtol=1e-6)


def test_one_cell_and_equal_views_are_the_uniformity_of_vectors():
    """Each pair of images is then counted four times, which a mean does not see."""
    h = maps(n=20, p=1)
    for pairs in PAIRS:
        found = dense_uniformity(h, h, pairs=pairs)
        np.testing.assert_allclose(found.value, -uniformity(h[:, 0]), rtol=1e-5)


def test_degenerate_maps():
    same = np.ones((4, 2, 3), np.float32)
    assert float(dense_uniformity(same, same).value) == 0
    assert float(dense_alignment(same, same).value) == pytest.approx(-1)
    opposite = same * np.float32([1, -1, 1, -1])[:, None, None]
    sharp = dense_uniformity(opposite[:2], opposite[:2], 40.0)
    np.testing.assert_allclose(sharp.value, -160, rtol=1e-6)  # exp(-160) is 0 in float32
    zero = np.zeros((3, 2, 3), np.float32)
    assert float(dense_uniformity(zero, zero).value) == 0
    assert float(dense_alignment(zero, zero).value) == 0
    bad = maps()
    bad[2, 1, 0] = np.nan
    assert np.isnan(dense_uniformity(bad, maps(1)).value)
    assert np.isnan(dense_alignment(bad, maps(1)).value)


def test_what_is_no_pair_is_refused():
    h = maps()
    dense = unchecked(dense_uniformity)
    with pytest.raises(ValueError, match="1 images of 3 cells: give at least 2"):
        dense(h[:1], h[:1])
    with pytest.raises(ValueError, match="9 images of 0 cells"):
        unchecked(dense_alignment)(h[:, :0], h[:, :0])
    with pytest.raises(ValueError, match="t=0"):
        dense(h, h, 0.0)
    with pytest.raises(ValueError, match="pairs='all' is unknown: choose one of same_index"):
        dense(h, h, pairs="all")
