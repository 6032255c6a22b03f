"""ConvN: the sizes of the paper's code, small images, and its definition in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

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


def make(channels=1, **changes):
    return build_encoder(config(**changes), channels, nnx.Rngs(params=jax.random.key(0)))


def shapes(side, **changes):
    x = jax.ShapeDtypeStruct((2, side, side, 1), jnp.float32)
    features = nnx.eval_shape(lambda x: make(image_size=side, **changes)(x, False), x)
    return [stage.shape[1] for stage in features.stages], features.pooled.shape


def test_sizes_of_the_papers_code():
    assert shapes(28) == ([13, 6, 2], (2, 128))
    params = nnx.state(nnx.eval_shape(lambda: make(channels=11)), nnx.Param)
    kernels = 9 * (11 * 32 + 32 * 64 + 64 * 64) + 256 * 128
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == kernels + 2 * (32 + 64 + 64 + 128)


def test_small_images_need_padding():
    assert shapes(8, padding="same") == ([4, 2, 1], (2, 128))
    assert shapes(16, padding="same", width=8) == ([8, 4, 2], (2, 32))
    assert shapes(15)[0] == [7, 3, 1]
    with pytest.raises(ValueError, match=r"14 pixels are too small .* 'valid' padding"):
        shapes(14)


@pytest.mark.parametrize(("padding", "side"), [("valid", 15), ("same", 8)])
def test_forward_agrees_with_its_definition(padding, side):
    with jax.enable_x64(True):
        model = make(2, image_size=side, padding=padding, width=2, dtype="float64")
        x = np.random.default_rng(0).normal(size=(6, side, side, 2))
        features = model(jnp.asarray(x), True)
        weights = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))

        def norm(y):  # gamma 1 and beta 0, as initialised
            axes = tuple(range(y.ndim - 1))
            return np.maximum((y - y.mean(axes)) / np.sqrt(y.var(axes) + EPSILON), 0)

        for layer, ours in enumerate(features.stages):
            kernel = weights["convs"][layer]["conv"]["kernel"]
            if padding == "same":
                x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            out = (x.shape[1] - 3) // 2 + 1
            x = norm(
                sum(
                    x[:, i::2, j::2][:, :out, :out] @ kernel[i, j]
                    for i in range(3)
                    for j in range(3)
                )
            )
            np.testing.assert_allclose(ours, x, atol=1e-12)
        pooled = norm(x.reshape(6, -1) @ weights["dense"]["kernel"])
        np.testing.assert_allclose(features.pooled, pooled, atol=1e-12)


def test_images_of_another_size_are_refused():
    model = make(image_size=8, padding="same", width=2)
    with pytest.raises(ValueError, match=r"built for images \[B, 8, 8, 1\], got \(2, 16, 16, 1\)"):
        model(jnp.zeros((2, 16, 16, 1)), True)
