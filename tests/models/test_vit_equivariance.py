"""What a ViT can absorb of patch shuffling by its weights alone .

A corruption that moves whole patches of the network is undone by other positions, one that moves
pixels inside them by another embedding. Nothing else about it is told to the network: exact to
1e-12, in both directions of the proof, for shuffles coarser and finer than the patches.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_support import filled, jitted_forward
from quick_compilation import once

from configs.common import vit_group
from jaxssl.corruptions import draw_permutation, global_shuffle, local_shuffle
from jaxssl.models import build_encoder
from jaxssl.models.vit import patches_of

SIDE, PATCH = 16, 4
GRID = SIDE // PATCH


@once
def parts(pool):
    cfg = vit_group("nano", SIDE, PATCH)
    cfg.update(width=8, depth=2, heads=2, stages=(1, 2), pool=pool, dtype="float64")
    return filled(lambda rngs: build_encoder(cfg, 3, rngs))


def encode(pool, params, x):
    graph, _, rest = parts(pool)
    return jitted_forward(graph, params, rest, x, False)[0]


def images():
    return np.random.default_rng(1).uniform(size=(3, SIDE, SIDE, 3))


def sigma_of(count):
    return draw_permutation(np.random.Philox(7).random_raw, count)


def changed(params, change):
    """The parameters with one of them replaced."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: change(path[0].key, leaf), params)


def distance(a, b):
    return max(
        np.abs(x - y).max() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("pieces", [GRID, GRID // 2])
@pytest.mark.parametrize("pool", ["class", "mean"])
def test_global_shuffles_are_permuted_positions(pool, pieces):
    with jax.enable_x64(True):
        _, params, _ = parts(pool)
        sigma = sigma_of(pieces**2)
        # Which patch comes to each place, from an image of the patches' numbers.
        numbers = np.arange(GRID**2, dtype=float).reshape(GRID, GRID)
        numbered = np.kron(numbers, np.ones((PATCH, PATCH)))[None, ..., None]
        source = patches_of(jnp.asarray(global_shuffle(numbered, sigma, pieces)), PATCH)
        source = np.asarray(source[0, :, 0, 0, 0]).astype(int)
        prefix = int(pool == "class")

        def moved(name, leaf):
            if name != "positions":
                return leaf
            return leaf.at[:, prefix + source].set(leaf[:, prefix:])

        shuffled = encode(pool, params, global_shuffle(images(), sigma, pieces))
        absorbed = encode(pool, changed(params, moved), images())
        np.testing.assert_allclose(shuffled.pooled, absorbed.pooled, atol=1e-12)
        for ours, theirs in zip(shuffled.stages, absorbed.stages, strict=True):
            flat = theirs.reshape(len(theirs), GRID**2, -1)[:, source]
            np.testing.assert_allclose(ours.reshape(flat.shape), flat, atol=1e-12)
        assert distance(shuffled.pooled, encode(pool, params, images()).pooled) > 1e-3


@pytest.mark.parametrize("pieces", [GRID, 2 * GRID])
def test_local_shuffles_are_a_permuted_embedding(pieces):
    with jax.enable_x64(True):
        _, params, _ = parts("class")
        sigma = sigma_of((SIDE // pieces) ** 2)
        # Which pixel comes to each place of a patch, from an image of the pixels' numbers.
        numbers = np.tile(np.arange(PATCH**2, dtype=float).reshape(PATCH, PATCH), (GRID, GRID))
        source = patches_of(
            jnp.asarray(local_shuffle(numbers[None, ..., None], sigma, pieces)), PATCH
        )
        source = np.asarray(source[0, 0]).ravel().astype(int)

        def moved(name, leaf):
            if name != "embedding" or leaf.ndim == 1:
                return leaf
            flat = leaf.reshape(PATCH**2, *leaf.shape[2:])
            return flat.at[source].set(flat).reshape(leaf.shape)

        shuffled = encode("class", params, local_shuffle(images(), sigma, pieces))
        absorbed = encode("class", changed(params, moved), images())
        assert distance(shuffled, absorbed) < 1e-12
        assert distance(shuffled.pooled, encode("class", params, images()).pooled) > 1e-3


def test_pieces_smaller_than_patches_are_no_permutation_of_positions():
    """000's Table 7: Global 8 on 32 pixels hurts a ViT of patch 8, Global 4 does not."""
    with jax.enable_x64(True):
        _, params, _ = parts("mean")
        without = changed(params, lambda name, leaf: 0 * leaf if name == "positions" else leaf)

        def pooled(pieces):
            x = global_shuffle(images(), sigma_of(pieces**2), pieces)
            return encode("mean", without, x).pooled

        # Without positions whatever moves whole patches is not seen at all.
        straight = encode("mean", without, images()).pooled
        assert distance(pooled(GRID), straight) < 1e-12
        assert distance(pooled(2 * GRID), straight) > 1e-3
