"""ViT against its definition in float64 NumPy, published sizes, kept patches, frozen embedding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from model_support import (
    abstract,
    check_that_devices_share_the_work,
    filled,
    forward,
    jitted_forward,
    weights_of,
)
from quick_compilation import once, quick_jit
from scipy.special import erf
from support import tree_distance, unchecked

from configs.common import adamw_group, vit_group
from jaxssl.errors import UserError
from jaxssl.methods.method import Teacher, follow, make_teacher
from jaxssl.models import build_encoder
from jaxssl.models.transformer import TRANSFORMER_INITS
from jaxssl.models.vit import Frozen, patches_of, resized_positions, sincos_positions
from jaxssl.training.optim import assign_groups, parameter_paths

SIDE, PATCH, WIDTH, HEADS = 8, 2, 8, 2


def config(**changes):
    tiny = {"width": WIDTH, "depth": 2, "heads": HEADS, "stages": (1, 2), "mlp_ratio": 2.0}
    return ConfigDict({**vit_group("nano", SIDE, PATCH), **tiny, **changes})


def builder(channels=3, **changes):
    return lambda rngs: build_encoder(config(**changes), channels, rngs)


def images(batch=4, height=SIDE, width=SIDE, seed=0):
    return np.random.default_rng(seed).uniform(size=(batch, height, width, 3))


def keep_of(batch=4, kept=5, patches=16, seed=3):
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(patches)[:kept] for _ in range(batch)])


def tokens(graph, params, rest, x, keep):
    return nnx.merge(graph, params, rest, copy=True).tokens(x, keep, True)


jitted_tokens = quick_jit(tokens, static_argnums=0)


# --- the reference: every token by itself, a head at a time ---------------------------------------


def np_norm(weights, x):
    mean = x.mean(-1, keepdims=True)
    x = (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6)
    return x * weights["scale"] + weights["bias"]


def np_dense(weights, x):
    return x @ weights["kernel"] + weights["bias"]


def np_attention(weights, x, heads):
    size = x.shape[-1] // heads
    q, k, v = np.split(np_dense(weights["qkv"], x), 3, axis=-1)
    mixed = []
    for h in range(heads):
        part = np.s_[..., h * size : (h + 1) * size]
        scores = np.exp(q[part] @ np.swapaxes(k[part], -1, -2) / np.sqrt(size))
        mixed.append(scores / scores.sum(-1, keepdims=True) @ v[part])
    return np_dense(weights["output"], np.concatenate(mixed, axis=-1))


def np_vit(weights, x, keep, fixed, heads=HEADS, patch=PATCH):
    """Tokens after each block, through the last norm; ``fixed`` positions or None."""
    kernel = weights["embedding"]["kernel"]
    rows, columns = x.shape[1] // patch, x.shape[2] // patch
    embedded = np.zeros((len(x), rows * columns, kernel.shape[-1]))
    for r in range(rows):
        for c in range(columns):
            cut = x[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
            embedded[:, r * columns + c] = np.tensordot(cut, kernel, 3)
    embedded = embedded + weights["embedding"]["bias"]
    prefix = "class_token" in weights
    learned = fixed is None
    embedded = embedded + (weights["positions"][0, int(prefix) :] if learned else fixed)
    if keep is not None:
        embedded = np.stack([row[chosen] for row, chosen in zip(embedded, keep, strict=True)])
    if prefix:
        first = weights["class_token"][0] + (weights["positions"][0, :1] if learned else 0)
        embedded = np.concatenate([np.repeat(first[None], len(x), 0), embedded], axis=1)
    y, outputs = embedded, []
    for block in weights["blocks"].values():
        y = y + np_attention(block["attention"], np_norm(block["norm1"], y), heads)
        hidden = np_dense(block["hidden"], np_norm(block["norm2"], y))
        y = y + np_dense(block["output"], hidden * (1 + erf(hidden / np.sqrt(2))) / 2)
        outputs.append(np_norm(weights["norm"], y))
    return outputs


def np_sincos(rows, columns, dim):
    """One number at a time."""
    table = np.zeros((rows * columns, dim))
    for r in range(rows):
        for c in range(columns):
            for j in range(dim // 4):
                frequency = 10_000.0 ** (-4 * j / dim)
                angles = [f(t * frequency) for t in (r, c) for f in (np.sin, np.cos)]
                table[r * columns + c, j :: dim // 4] = angles
    return table


@once
def float64_parts(positions, pool):
    with jax.enable_x64(True):
        return filled(builder(positions=positions, pool=pool, dtype="float64"))


@pytest.mark.parametrize(("positions", "pool"), [("learned", "class"), ("sincos", "mean")])
def test_forward_agrees_with_its_definition(positions, pool):
    with jax.enable_x64(True):
        graph, params, rest = float64_parts(positions, pool)
        features, _ = jitted_forward(graph, params, rest, images(), True)
        fixed = np_sincos(4, 4, WIDTH) if positions == "sincos" else None
        expected = np_vit(weights_of(params), images(), None, fixed)
        prefix = int(pool == "class")
        assert len(features.stages) == 2
        for ours, theirs in zip(features.stages, expected, strict=True):
            assert ours.shape == (4, 4, 4, WIDTH)
            np.testing.assert_allclose(ours.reshape(4, 16, -1), theirs[:, prefix:], atol=1e-12)
        pooled = expected[-1][:, 0] if prefix else expected[-1].mean(1)
        np.testing.assert_allclose(features.pooled, pooled, atol=1e-12)


@pytest.mark.parametrize(("positions", "pool"), [("learned", "class"), ("sincos", "mean")])
def test_tokens_of_kept_patches_know_of_no_others(positions, pool):
    with jax.enable_x64(True):
        parts = float64_parts(positions, pool)
        keep = keep_of()
        fixed = np_sincos(4, 4, WIDTH) if positions == "sincos" else None
        expected = np_vit(weights_of(parts[1]), images(), keep, fixed)[-1]
        ours = jitted_tokens(*parts, images(), keep)
        assert ours.shape == (4, int(pool == "class") + 5, WIDTH)
        np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_flops_fall_with_the_share_that_is_kept():
    parts = abstract(lambda rngs: build_encoder(vit_group("tiny", 64, 4), 3, rngs))
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)

    def flops(kept):
        keep = jax.ShapeDtypeStruct((2, kept), jnp.int32)
        step = jax.jit(functools.partial(tokens, parts[0]))
        return step.lower(*parts[1:], x, keep).cost_analysis()["flops"]

    # Attention falls by the square, all else in proportion.
    assert flops(64) < flops(256) / 4


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "count"), [("tiny", 5_524_416), ("small", 21_665_664), ("base", 85_798_656)]
)
def test_parameter_counts_are_timms_without_the_classifier(variant, count):
    params = abstract(lambda rngs: build_encoder(vit_group(variant, 224, 16), 3, rngs))[1]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    ("variant", "patch", "shape", "maps", "dim"),
    [
        ("nano", 4, (32, 32), (8, 8), 64),
        ("tiny", 8, (96, 64), (12, 8), 192),
        ("small", 16, (224, 224), (14, 14), 384),
    ],
)
def test_shapes_of_the_stages(variant, patch, shape, maps, dim):
    cfg = vit_group(variant, 224, patch)
    graph, params, rest = abstract(lambda rngs: build_encoder(cfg, 3, rngs))
    x = jax.ShapeDtypeStruct((2, *shape, 3), jnp.float32)
    features, _ = jax.eval_shape(functools.partial(forward, graph, train=False), params, rest, x)
    assert [stage.shape for stage in features.stages] == [(2, *maps, dim)] * 4
    assert features.pooled.shape == (2, dim)
    assert nnx.merge(graph, params, rest).feature_dim == dim
    assert cfg.stages == ((1, 2, 3, 4) if variant == "nano" else (3, 6, 9, 12))


def test_positions_of_another_size_are_interpolated():
    # Bicubic interpolation has no error on a plane, away from the rim.
    rows, columns = np.mgrid[:6, :6]
    plane = np.stack([1.0 * rows, 2.0 * columns, rows + columns], axis=-1).reshape(1, 36, 3)
    finer = np.asarray(resized_positions(jnp.asarray(plane, jnp.float32), (6, 6), (12, 12)))
    places = (np.arange(12) + 0.5) / 2 - 0.5
    r, c = np.meshgrid(places, places, indexing="ij")
    expected = np.stack([r, 2 * c, r + c], axis=-1)
    inside = np.s_[3:9, 3:9]
    np.testing.assert_allclose(finer.reshape(12, 12, 3)[inside], expected[inside], atol=1e-5)
    # Sines and cosines are the same functions at those places: a third of the grid, its middle.
    np.testing.assert_allclose(sincos_positions((3, 5), 16), np_sincos(3, 5, 16), atol=1e-12)
    middle = sincos_positions((1, 1), 16, native=(3, 5))
    np.testing.assert_allclose(middle[0], np_sincos(3, 5, 16)[1 * 5 + 2], atol=1e-12)


# --- what is trained and what is not --------------------------------------------------------------


def test_a_frozen_embedding_is_no_parameter_and_no_teacher_follows_it():
    cfg = config(frozen_patches=True)
    encoder = build_encoder(cfg, 3, nnx.Rngs(params=jax.random.key(0)))
    frozen = nnx.state(encoder, Frozen)
    assert parameter_paths(frozen) == ["embedding/bias", "embedding/kernel"]
    trained = parameter_paths(nnx.state(encoder, nnx.Param))
    assert not any("embedding" in path for path in trained)
    assert {"class_token", "positions", "norm/scale"} <= set(trained)
    teacher = make_teacher(encoder)
    encoder.norm.bias[...] += 1.0
    follow(teacher, encoder, jnp.float32(0.5))
    np.testing.assert_array_equal(teacher.norm.bias[...], 0.5)
    np.testing.assert_array_equal(teacher.embedding.kernel[...], encoder.embedding.kernel[...])
    assert parameter_paths(nnx.state(teacher, Teacher)) == trained


def test_no_decay_for_biases_norms_class_token_and_positions():
    params = {"encoder": nnx.to_pure_dict(abstract(builder())[1])}
    groups = assign_groups(adamw_group().groups, params)
    decayed = {path for path, group in groups.items() if group.weight_decay}
    assert decayed == {path for path in groups if path.endswith("/kernel")}
    assert groups["encoder/class_token"].trust is False
    assert groups["encoder/positions"].trust is False


def test_gradients_are_finite_and_reach_every_parameter():
    graph, params, rest = filled(builder())
    x, keep = jnp.asarray(images(), jnp.float32), jnp.asarray(keep_of())

    @quick_jit
    def gradient(params):
        return jax.grad(lambda p: jnp.sum(tokens(graph, p, rest, x, keep) ** 3))(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert np.isfinite(leaf).all(), path
        assert np.any(leaf), path


def dtypes_of(jaxpr, name):
    """Of the inputs of every operation of a name, inner programs included."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            found |= {str(var.aval.dtype) for var in equation.invars}
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", None)
            if inner is not None:
                found |= dtypes_of(inner, name)
    return found


def test_bfloat16_is_the_dtype_of_products_and_of_nothing_kept():
    graph, params, rest = filled(builder(dtype="bfloat16"))
    x = jnp.asarray(images(), jnp.float32)
    features, _ = jitted_forward(graph, params, rest, x, True)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, features))} == {jnp.dtype("float32")}
    jaxpr = jax.make_jaxpr(forward, static_argnums=(0, 4))(graph, params, rest, x, True).jaxpr
    assert dtypes_of(jaxpr, "dot_general") == {"bfloat16"}
    assert dtypes_of(jaxpr, "exp") == {"float32"}  # of the softmax
    assert dtypes_of(jaxpr, "rsqrt") == {"float32"}  # of the norms
    exact, _ = jitted_forward(abstract(builder())[0], params, rest, x, True)
    assert 1e-4 < tree_distance(features.pooled, exact.pooled) < 0.1  # other dtype, same network


@pytest.mark.parametrize("name", TRANSFORMER_INITS)
def test_initial_values(name):
    init = TRANSFORMER_INITS[name]
    key = jax.random.key(0)
    dense, qkv = (
        np.asarray(f(key, (64, n), jnp.float32)) for f, n in ((init.dense, 256), (init.qkv, 192))
    )
    if name == "normal_0.02":
        np.testing.assert_allclose([dense.std(), qkv.std()], 0.02, rtol=0.03)
    else:
        # Uniform within sqrt(6 / (in + out)); queries, keys and values are three of [64, 64].
        limits = np.sqrt([6 / (64 + 256), 6 / (64 + 64)])
        np.testing.assert_allclose([np.abs(dense).max(), np.abs(qkv).max()], limits, rtol=0.01)


# --- devices --------------------------------------------------------------------------------------


def test_loss_and_gradient_do_not_depend_on_the_device_count_and_work_is_shared():
    def embed(vit, x, keep):
        return vit(x, True).pooled + vit.tokens(x, keep, True).mean(1)

    x = images(32) * np.linspace(0.2, 1.0, 32)[:, None, None, None]
    check_that_devices_share_the_work(builder(dtype="float64"), embed, x, keep_of(32))


# --- wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"patch": 3}, r"--config.encoder.patch=3 does not divide .*image_size=8"),
        ({"heads": 3}, r"--config.encoder.heads=3 does not divide .*width=8"),
        ({"width": 6, "positions": "sincos"}, r"width=6 must be a multiple of 4"),
        ({"stages": (1,)}, r"--config.encoder.stages=\(1,\) must be .*depth=2"),
        ({"stages": (2, 1, 2)}, r"stages=\(2, 1, 2\) must be"),
        ({"stages": (0, 2)}, r"stages=\(0, 2\) must be"),
        ({"stages": ()}, r"stages=\(\) must be"),
        ({"positions": "rotary"}, r"--config.encoder.positions=rotary is unknown"),
        ({"pool": "max"}, r"--config.encoder.pool=max is unknown"),
        ({"kernel_init": "zeros"}, r"--config.encoder.kernel_init=zeros is unknown"),
        ({"depth": 0}, r"--config.encoder.depth=0 must be at least 1"),
        ({"mlp_ratio": 0.0}, r"--config.encoder.mlp_ratio=0.0 must be"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        abstract(builder(**changes))


def test_images_that_do_not_fit_are_named():
    graph, params, rest = abstract(builder())

    def shape(*x):
        images = jax.ShapeDtypeStruct(x, jnp.float32)
        return jax.eval_shape(functools.partial(forward, graph, train=True), params, rest, images)

    with pytest.raises(UserError, match=r"views of 8x9 pixels do not split into patches of .*=2"):
        shape(2, 8, 9, 3)
    with pytest.raises(UserError, match=r"built for images \[B, H, W, 3\], got \(2, 8, 8, 4\)"):
        shape(2, 8, 8, 4)
    with pytest.raises(ValueError, match=r"8x9 pixels do not split into patches of 2"):
        unchecked(patches_of)(jnp.zeros((1, 8, 9, 3)), 2)
    with pytest.raises(ValueError, match="dim=6 to be divisible by 4"):
        sincos_positions((2, 2), 6)
