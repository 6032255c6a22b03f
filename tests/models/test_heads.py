"""Projection heads as the papers have them, against dense layers written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from jaxssl.errors import UserError
from jaxssl.models import build_encoder, build_head
from jaxssl.models.heads import ProjectionHead
from jaxssl.models.layers import LayerSettings

EPSILON = 1e-5

SIMCLR = {
    "num_layers": 3,
    "hidden_dim": 0,
    "out_dim": 5,
    "hidden_norm": True,
    "hidden_bias": False,
    "output_norm": "bn_no_center",
    "output_bias": False,
    "init": "normal_0.01",
}
MOCO_DEMO = {
    **SIMCLR,
    "num_layers": 1,
    "hidden_norm": False,
    "hidden_bias": True,
    "output_norm": "none",
    "output_bias": True,
    "init": "fan_in_uniform",
}
MOCO_V2 = {**MOCO_DEMO, "num_layers": 2}
BYOL = {
    **MOCO_V2,
    "hidden_dim": 12,
    "hidden_norm": True,
    "output_bias": False,
    "init": "fan_in_truncated_normal",
}
SIMSIAM = {**SIMCLR, "hidden_dim": 7, "output_norm": "bn_no_affine", "init": "fan_in_uniform"}
BARLOW = {**SIMSIAM, "output_norm": "none"}
FOUR_LAYERS = {**SIMCLR, "num_layers": 4, "output_norm": "bn"}
PRESETS = {
    "simclr": SIMCLR,
    "moco_v2": MOCO_V2,
    "moco_demo": MOCO_DEMO,
    "byol": BYOL,
    "simsiam": SIMSIAM,
    "barlow": BARLOW,
    "four_layers": FOUR_LAYERS,
}


def make(fields, in_dim=6, dtype="float32", seed=0):
    settings = LayerSettings(bn_momentum=0.9, bn_epsilon=EPSILON, bn_groups=1, dtype=dtype)
    return ProjectionHead(
        in_dim=in_dim, settings=settings, rngs=nnx.Rngs(params=jax.random.key(seed)), **fields
    )


def randomise(head):
    rng = np.random.default_rng(1)
    state = nnx.state(head, nnx.Param)
    nnx.update(head, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state))


def np_norm(x, weights):
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON)
    return x * weights.get("scale", 1.0) + weights.get("bias", 0.0)


def np_dense(x, weights):
    return x @ weights["kernel"] + weights.get("bias", 0.0)


def np_head(weights, x, fields):
    for layer in range(fields["num_layers"] - 1):
        x = np_dense(x, weights["hidden"][layer])
        if fields["hidden_norm"]:
            x = np_norm(x, weights["hidden_norms"][layer])
        x = np.maximum(x, 0)
    x = np_dense(x, weights["output"])
    return x if fields["output_norm"] == "none" else np_norm(x, weights.get("output_norm", {}))


@pytest.mark.parametrize("name", PRESETS)
def test_heads_follow_their_definition(name):
    fields = PRESETS[name]
    with jax.enable_x64(True):
        head = make(fields, dtype="float64")
        randomise(head)
        x = np.random.default_rng(0).normal(size=(8, 6))
        weights = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(head, nnx.Param)))
        np.testing.assert_allclose(
            head(jnp.asarray(x), True), np_head(weights, x, fields), atol=1e-11
        )


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        # in_dim 6, out_dim 5; hidden 6 where hidden_dim is 0
        ("simclr", {(6, 6): 2, (6, 5): 1, (6,): 4, (5,): 1}),  # last: gamma without beta
        ("moco_v2", {(6, 6): 1, (6, 5): 1, (6,): 1, (5,): 1}),
        ("moco_demo", {(6, 5): 1, (5,): 1}),
        ("byol", {(6, 12): 1, (12, 5): 1, (12,): 3}),  # bias, gamma, beta
        ("simsiam", {(6, 7): 1, (7, 7): 1, (7, 5): 1, (7,): 4}),
        ("barlow", {(6, 7): 1, (7, 7): 1, (7, 5): 1, (7,): 4}),
    ],
)
def test_heads_have_exactly_the_published_parameters(name, shapes):
    leaves = jax.tree.leaves(nnx.state(make(PRESETS[name]), nnx.Param))
    found: dict[tuple[int, ...], int] = {}
    for leaf in leaves:
        found[leaf.shape] = found.get(leaf.shape, 0) + 1
    assert found == shapes


def test_initial_values():
    kernels = {}
    for name in ("simclr", "moco_v2", "byol"):
        head = make({**PRESETS[name], "hidden_dim": 0}, in_dim=400)
        kernels[name] = np.asarray(head.hidden[0].kernel[...])
    np.testing.assert_allclose(kernels["simclr"].std(), 0.01, rtol=0.02)
    np.testing.assert_allclose(np.abs(kernels["moco_v2"]).max(), 1 / 20, rtol=1e-3)
    np.testing.assert_allclose(kernels["moco_v2"].std(), 1 / 20 / np.sqrt(3), rtol=0.02)
    np.testing.assert_allclose(kernels["byol"].std(), 1 / 20, rtol=0.02)
    bias = np.asarray(make(MOCO_V2, in_dim=400).hidden[0].bias[...])
    np.testing.assert_allclose(bias.std(), 1 / 20 / np.sqrt(3), rtol=0.1)
    assert not make(BYOL).hidden[0].bias[...].any()


def test_bfloat16_computes_low_and_returns_float32():
    head, exact = (make(MOCO_V2, dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(head))} == {jnp.dtype("float32")}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)
    z, expected = head(x, True), exact(x, True)
    assert z.dtype == jnp.float32
    error = float(jnp.linalg.norm(z - expected) / jnp.linalg.norm(expected))
    assert 1e-5 < error < 0.02


def test_evaluation_treats_rows_alone_and_training_does_not():
    head = make(SIMCLR)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)
    np.testing.assert_allclose(head(x, False)[:1], head(x[:1], False), rtol=1e-5)
    assert np.abs(head(x, True)[:4] - head(x[:4], True)).max() > 1e-2


def test_build_head_stands_on_an_encoder():
    encoder_config = {
        "name": "convn",
        "image_size": 8,
        "padding": "same",
        "width": 2,
        "kernel_init": "fan_in_truncated_normal",
        "bn_momentum": 0.8,
        "bn_epsilon": 1e-3,
        "bn_groups": 2,
        "dtype": "bfloat16",
    }

    def build():
        rngs = nnx.Rngs(params=jax.random.key(0))
        encoder = build_encoder(ConfigDict(encoder_config), 1, rngs)
        return build_head(ConfigDict(SIMCLR), encoder, rngs)

    head = nnx.eval_shape(build)
    assert (head.in_dim, head.out_dim) == (8, 5)
    norm = head.hidden_norms[0]
    assert (norm.momentum, norm.epsilon, norm.groups) == (0.8, 1e-3, 2)
    assert head.compute_dtype == jnp.bfloat16


def test_impossible_heads_are_refused():
    with pytest.raises(UserError, match=r"head.init='zeros' is unknown"):
        make({**SIMCLR, "init": "zeros"})
    with pytest.raises(UserError, match=r"head.output_norm='ln' is unknown"):
        make({**SIMCLR, "output_norm": "ln"})
    with pytest.raises(ValueError, match="num_layers, in_dim, out_dim >= 1"):
        make({**SIMCLR, "num_layers": 0})
