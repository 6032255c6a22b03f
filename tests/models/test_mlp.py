"""The MLP for images of one pixel against its definition in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_support import (
    abstract,
    check_that_devices_share_the_work,
    filled,
    forward,
    jitted_forward,
    weights_of,
)

from configs.common import mlp_group
from jaxssl.errors import UserError
from jaxssl.models import build_encoder


def builder(**changes):
    cfg = mlp_group(6)
    cfg.update({"depth": 3, **changes})
    return lambda rngs: build_encoder(cfg, 5, rngs)


def test_forward_agrees_with_its_definition():
    with jax.enable_x64(True):
        graph, params, rest = filled(builder(dtype="float64"))
        x = np.random.default_rng(0).normal(size=(8, 1, 1, 5))
        features, _ = jitted_forward(graph, params, rest, x, True)
        weights = weights_of(params)
        assert [stage.shape for stage in features.stages] == [(8, 1, 1, 6)] * 3
        y = x[:, 0, 0]
        for layer, ours in enumerate(features.stages):
            y = y @ weights["dense"][layer]["kernel"]
            y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
            affine = weights["norms"][layer]
            y = np.maximum(y * affine["scale"] + affine["bias"], 0)
            np.testing.assert_allclose(ours[:, 0, 0], y, atol=1e-12)
        np.testing.assert_allclose(features.pooled, y, atol=1e-12)


def test_devices_share_the_work():
    x = np.random.default_rng(0).normal(size=(2048, 1, 1, 5))
    build = builder(dtype="float64")
    check_that_devices_share_the_work(build, lambda net, x: net(x, True).pooled, x)


def test_other_images_are_refused():
    graph, params, rest = abstract(builder())
    x = jax.ShapeDtypeStruct((2, 2, 2, 5), jnp.float32)
    with pytest.raises(UserError, match=r"images \[B, 1, 1, 5\], got \(2, 2, 2, 5\): .* one pixel"):
        jax.eval_shape(functools.partial(forward, graph, train=True), params, rest, x)
    with pytest.raises(UserError, match=r"--config.encoder.depth=0 must be at least 1"):
        abstract(builder(depth=0))
