"""ConvN: the sizes of the paper's code, small images, and its definition in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from model_support import abstract, filled, forward, jitted_forward, weights_of

from jaxssl.errors import UserError
from jaxssl.models import build_encoder

EPSILON = 1e-3


def config(**changes):
    base = {
        "name": "convn",
        "image_size": 28,
        "padding": "valid",
        "width": 32,
        "kernel_init": "fan_in_truncated_normal",
        "bn_momentum": 0.99,
        "bn_epsilon": EPSILON,
        "bn_groups": 1,
        "dtype": "float32",
    }
    return ConfigDict({**base, **changes})


def builder(channels=1, **changes):
    return lambda rngs: build_encoder(config(**changes), channels, rngs)


def shapes(side, **changes):
    parts = abstract(builder(image_size=side, **changes))
    x = jax.ShapeDtypeStruct((2, side, side, 1), jnp.float32)
    features, _ = jax.eval_shape(functools.partial(forward, parts[0], train=True), *parts[1:], x)
    return [stage.shape[1] for stage in features.stages], features.pooled.shape


def test_sizes_of_the_papers_code():
    assert shapes(28) == ([13, 6, 2], (2, 128))
    params = abstract(builder(channels=11))[1]
    kernels = 9 * (11 * 32 + 32 * 64 + 64 * 64) + 256 * 128
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == kernels + 2 * (32 + 64 + 64 + 128)


def test_small_images_need_padding():
    assert shapes(8, padding="same") == ([4, 2, 1], (2, 128))
    assert shapes(16, padding="same", width=8) == ([8, 4, 2], (2, 32))
    assert shapes(15)[0] == [7, 3, 1]
    with pytest.raises(UserError, match=r"14 pixels are too small .*padding=valid"):
        shapes(14)


@pytest.mark.parametrize(("padding", "side"), [("valid", 15), ("same", 8)])
def test_forward_agrees_with_its_definition(padding, side):
    with jax.enable_x64(True):
        build = builder(2, image_size=side, padding=padding, width=2, dtype="float64")
        graph, params, rest = filled(build)
        x = np.random.default_rng(0).normal(size=(6, side, side, 2))
        features, _ = jitted_forward(graph, params, rest, x, True)
        weights = weights_of(params)

        def norm(y, affine):
            axes = tuple(range(y.ndim - 1))
            y = (y - y.mean(axes)) / np.sqrt(y.var(axes) + EPSILON)
            return np.maximum(y * affine["scale"] + affine["bias"], 0)

        for layer, ours in enumerate(features.stages):
            conv = weights["convs"][layer]
            kernel = conv["conv"]["kernel"]
            if padding == "same":
                x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            out = (x.shape[1] - 3) // 2 + 1
            taps = [
                x[:, i::2, j::2][:, :out, :out] @ kernel[i, j] for i in range(3) for j in range(3)
            ]
            x = norm(sum(taps), conv["norm"])
            np.testing.assert_allclose(ours, x, atol=1e-12)
        pooled = norm(x.reshape(6, -1) @ weights["dense"]["kernel"], weights["norm"])
        np.testing.assert_allclose(features.pooled, pooled, atol=1e-12)


def test_images_of_another_size_are_refused():
    graph, params, rest = abstract(builder(image_size=8, padding="same", width=2))
    x = jax.ShapeDtypeStruct((2, 16, 16, 1), jnp.float32)
    with pytest.raises(UserError, match=r"built for images \[B, 8, 8, 1\], got \(2, 16, 16, 1\)"):
        jax.eval_shape(functools.partial(forward, graph, train=True), params, rest, x)
