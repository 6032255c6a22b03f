"""Projection heads as the papers have them, against dense layers written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from model_support import abstract, filled, jitted_forward, weights_of
from support import tree_distance

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


def builder(fields, in_dim=6, dtype="float32"):
    settings = LayerSettings(bn_momentum=0.9, bn_epsilon=EPSILON, bn_groups=1, dtype=dtype)
    return lambda rngs: ProjectionHead(in_dim=in_dim, settings=settings, rngs=rngs, **fields)


def features(batch=8):
    return np.random.default_rng(0).normal(size=(batch, 6))


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
        graph, params, rest = filled(builder(fields, dtype="float64"))
        z, _ = jitted_forward(graph, params, rest, features(), True)
        expected = np_head(weights_of(params), features(), fields)
        np.testing.assert_allclose(z, expected, atol=1e-11)


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
    leaves = jax.tree.leaves(abstract(builder(PRESETS[name]))[1])
    found: dict[tuple[int, ...], int] = {}
    for leaf in leaves:
        found[leaf.shape] = found.get(leaf.shape, 0) + 1
    assert found == shapes


def test_initial_values():
    @jax.jit
    def init(key):
        heads = {}
        for name in ("simclr", "moco_v2", "byol"):
            build = builder({**PRESETS[name], "hidden_dim": 0}, in_dim=400)
            heads[name] = nnx.to_pure_dict(nnx.state(build(nnx.Rngs(params=key)), nnx.Param))
        return heads

    heads = jax.tree.map(np.asarray, init(jax.random.key(0)))
    hidden = {name: head["hidden"][0] for name, head in heads.items()}
    np.testing.assert_allclose(hidden["simclr"]["kernel"].std(), 0.01, rtol=0.02)
    np.testing.assert_allclose(hidden["byol"]["kernel"].std(), 1 / 20, rtol=0.02)
    assert not hidden["byol"]["bias"].any()
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(hidden["moco_v2"][name].std(), 1 / 20 / 3**0.5, rtol=0.1)
        assert 0.98 / 20 < np.abs(hidden["moco_v2"][name]).max() <= 1 / 20


def test_bfloat16_computes_low_and_returns_float32():
    graph, params, rest = filled(builder(MOCO_V2, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, rest))} == {jnp.dtype("float32")}
    x = jnp.asarray(features(), jnp.float32)
    z, _ = jitted_forward(graph, params, rest, x, True)
    assert z.dtype == jnp.float32
    assert 1e-5 < tree_distance(z, np_head(weights_of(params), features(), MOCO_V2)) < 0.02


def test_evaluation_treats_rows_alone_and_training_does_not():
    parts = filled(builder(SIMCLR))
    x = jnp.asarray(features(), jnp.float32)
    other = x.at[1:].multiply(-0.5)

    def change_of_the_first_row(train):
        a, b = (jitted_forward(*parts, images, train)[0] for images in (x, other))
        return np.abs(a[0] - b[0]).max()

    assert change_of_the_first_row(train=False) == 0.0
    assert change_of_the_first_row(train=True) > 1e-2


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
        norms = {"bn_momentum": 0.7, "bn_epsilon": 1e-4, "bn_groups": 4}
        return build_head(
            ConfigDict({**SIMCLR, **norms}), encoder.feature_dim, encoder.dtype, rngs, "method.top"
        )

    head = nnx.eval_shape(build)
    assert (head.in_dim, head.out_dim) == (8, 5)
    norm = head.hidden_norms[0]
    assert (norm.momentum, norm.epsilon, norm.groups) == (0.7, 1e-4, 4)
    assert head.compute_dtype == jnp.bfloat16


def test_impossible_heads_are_refused():
    with pytest.raises(UserError, match=r"head.init=zeros is unknown"):
        abstract(builder({**SIMCLR, "init": "zeros"}))
    with pytest.raises(UserError, match=r"head.output_norm=ln is unknown"):
        abstract(builder({**SIMCLR, "output_norm": "ln"}))
    with pytest.raises(UserError, match="a head with num_layers=0"):
        abstract(builder({**SIMCLR, "num_layers": 0}))
