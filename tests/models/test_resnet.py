"""ResNet against an independent float64 NumPy network, published sizes, and its arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from model_support import abstract, filled, forward, jitted_forward, weights_of
from quick_compilation import quick, quick_jit
from support import tree_distance

from jaxssl.errors import UserError
from jaxssl.models import build_encoder
from jaxssl.models.layers import KERNEL_INITS, LayerSettings
from jaxssl.models.resnet import ResidualBlock

EPSILON = 1e-3


def config(**changes):
    base = {
        "name": "resnet18",
        "width": 4,
        "stem": "cifar",
        "stem_padding": "same",
        "shortcut": "projection_always",
        "zero_init_residual": False,
        "bn_momentum": 0.9,
        "bn_epsilon": EPSILON,
        "bn_groups": 1,
        "kernel_init": "fan_in_truncated_normal",
        "dtype": "float32",
    }
    return ConfigDict({**base, **changes})


def builder(cfg, channels=3):
    return lambda rngs: build_encoder(cfg, channels, rngs)


def images(batch=4, side=8, channels=3, seed=0):
    return np.random.default_rng(seed).uniform(size=(batch, side, side, channels))


def size(state):
    return sum(leaf.size for leaf in jax.tree.leaves(state))


# --- the reference: its own convolution, pooling, BatchNorm and wiring ---------------------------


def np_pool_or_convolve(x, kernel_size, stride, low, high, fill, reduce):
    x = np.pad(x, ((0, 0), (low, high), (low, high), (0, 0)), constant_values=fill)
    out = (x.shape[1] - kernel_size) // stride + 1
    return reduce(
        {
            (i, j): x[:, i::stride, j::stride][:, :out, :out]
            for i in range(kernel_size)
            for j in range(kernel_size)
        }
    )


def np_conv_norm(weights, x, stride, pad):
    kernel = weights["conv"]["kernel"]
    y = np_pool_or_convolve(
        x, len(kernel), stride, pad, pad, 0.0, lambda p: sum(v @ kernel[ij] for ij, v in p.items())
    )
    norm = weights["norm"]
    mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
    return (y - mean) / np.sqrt(var + EPSILON) * norm["scale"] + norm["bias"]


# Pixels that the max-pooling pads before and after; TensorFlow's "SAME" on an even side pads after.
POOLS = {"cifar": None, "imagenet": (1, 1), "imagenet_same_pool": (0, 1)}


def np_resnet(weights, x, bottleneck, pool):
    x = np.maximum(np_conv_norm(weights["stem"], x, *((2, 3) if pool else (1, 1))), 0)
    if pool:
        x = np_pool_or_convolve(x, 3, 2, *pool, -np.inf, lambda p: np.max(list(p.values()), 0))
    maps = []
    for s, stage in weights["stages"].items():
        for b, block in stage.items():
            stride = 2 if s > 0 and b == 0 else 1
            branch, y = block["branch"], x
            if bottleneck:
                y = np.maximum(np_conv_norm(branch[0], y, 1, 0), 0)
                y = np.maximum(np_conv_norm(branch[1], y, stride, 1), 0)
                y = np_conv_norm(branch[2], y, 1, 0)
            else:
                y = np.maximum(np_conv_norm(branch[0], y, stride, 1), 0)
                y = np_conv_norm(branch[1], y, 1, 1)
            short = np_conv_norm(block["shortcut"], x, stride, 0) if "shortcut" in block else x
            x = np.maximum(y + short, 0)
        maps.append(x)
    return maps


@pytest.mark.parametrize(
    ("changes", "side"),
    [
        ({}, 8),
        ({"stem": "imagenet", "shortcut": "projection_on_change"}, 33),
        ({"stem": "imagenet_same_pool"}, 32),
        ({"name": "resnet50", "shortcut": "projection_on_change"}, 8),
    ],
)
def test_forward_agrees_with_an_independent_network(changes, side):
    with jax.enable_x64(True):
        cfg = config(dtype="float64", **changes)
        graph, params, rest = filled(builder(cfg))
        x = images(side=side)
        features, _ = jitted_forward(graph, params, rest, x, True)
        weights = weights_of(params)
        maps = np_resnet(weights, x, cfg.name == "resnet50", POOLS[cfg.stem])
        assert len(features.stages) == 4
        for ours, expected in zip(features.stages, maps, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(features.pooled, maps[-1].mean((1, 2)), rtol=0, atol=1e-10)


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 11_176_512), ("resnet34", 21_284_672), ("resnet50", 23_508_032)],
)
def test_parameter_counts_are_torchvisions_without_the_classifier(name, count):
    cfg = config(name=name, width=64, stem="imagenet", shortcut="projection_on_change")
    assert size(abstract(builder(cfg))[1]) == count


def test_parameter_count_of_simclrs_cifar_resnet18():
    # torchvision's, with a 3x3 stem for the 7x7 one, and a projection in the first stage.
    expected = 11_176_512 - 3 * 64 * (49 - 9) + (64 * 64 + 2 * 64)
    assert size(abstract(builder(config(width=64)))[1]) == expected


@pytest.mark.parametrize(
    ("changes", "side", "sides", "dims"),
    [
        ({}, 32, (32, 16, 8, 4), (64, 128, 256, 512)),
        ({"stem_padding": 2}, 32, (34, 17, 9, 5), (64, 128, 256, 512)),
        ({"stem": "imagenet"}, 224, (56, 28, 14, 7), (64, 128, 256, 512)),
        ({"stem": "imagenet_same_pool"}, 224, (56, 28, 14, 7), (64, 128, 256, 512)),
        ({"name": "resnet50", "stem": "imagenet"}, 224, (56, 28, 14, 7), (256, 512, 1024, 2048)),
        ({"name": "resnet50", "width": 128}, 32, (32, 16, 8, 4), (512, 1024, 2048, 4096)),
    ],
)
def test_shapes_of_the_stages(changes, side, sides, dims):
    cfg = config(**{"width": 64, **changes})
    graph, params, rest = abstract(builder(cfg))
    x = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    call = functools.partial(forward, graph, train=False)
    features, _ = jax.eval_shape(call, params, rest, x)
    shapes = [(2, s, s, d) for s, d in zip(sides, dims, strict=True)]
    assert [stage.shape for stage in features.stages] == shapes
    assert features.pooled.shape == (2, dims[-1])
    assert nnx.merge(graph, params, rest).feature_dim == dims[-1]


# --- behaviour -----------------------------------------------------------------------------------


def settings(dtype="float32"):
    return LayerSettings(bn_momentum=0.9, bn_epsilon=EPSILON, bn_groups=1, dtype=dtype)


def block(in_channels, *, zero_init_residual, project, bottleneck=False):
    return ResidualBlock(
        in_channels,
        4,
        stride=1,
        bottleneck=bottleneck,
        project=project,
        zero_init_residual=zero_init_residual,
        kernel_init="fan_out_normal",
        settings=settings(),
        rngs=nnx.Rngs(params=jax.random.key(0)),
    )


@pytest.mark.parametrize(("bottleneck", "in_channels"), [(False, 4), (True, 16)])
def test_zero_init_makes_a_block_its_shortcut(bottleneck, in_channels):
    x = jnp.asarray(images(channels=in_channels) - 0.5, jnp.float32)
    zero = block(in_channels, zero_init_residual=True, project=False, bottleneck=bottleneck)
    np.testing.assert_array_equal(zero(x, True), np.maximum(x, 0))
    other = block(in_channels, zero_init_residual=False, project=False, bottleneck=bottleneck)
    assert np.abs(np.asarray(other(x, True)) - np.maximum(x, 0)).max() > 0.1


def test_one_jitted_init_with_zero_gamma_in_the_last_norm_of_each_branch_alone():
    @quick_jit
    def init(key):
        model = build_encoder(config(zero_init_residual=True), 3, nnx.Rngs(params=key))
        # Without the kernels, whose draws take most of the compilation.
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if path[-2].key == "scale" else 0, nnx.state(model, nnx.Param)
        )

    params = init(jax.random.key(0))
    weights = weights_of(params)
    for stage in weights["stages"].values():
        for part in stage.values():
            assert not part["branch"][1]["norm"]["scale"].any()
            assert part["branch"][0]["norm"]["scale"].all()
            assert "shortcut" not in part or part["shortcut"]["norm"]["scale"].all()


def test_training_moves_the_statistics_and_evaluation_looks_at_one_image_alone():
    graph, params, rest = filled(builder(config()))
    step = jitted_forward
    x = jnp.asarray(images(), jnp.float32)
    _, moved = step(graph, params, rest, x, True)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), moved, rest)
    assert all(jax.tree.leaves(changed))

    whole, kept = step(graph, params, moved, x, False)
    jax.tree.map(np.testing.assert_array_equal, kept, moved)
    other = x.at[1:].set(0.5 * x[1:] ** 2)
    alone, _ = step(graph, params, moved, other, False)
    np.testing.assert_array_equal(alone.pooled[0], whole.pooled[0])
    mixed, _ = step(graph, params, moved, other, True)
    trained, _ = step(graph, params, moved, x, True)
    assert np.abs(mixed.pooled[0] - trained.pooled[0]).max() > 1e-3


def convolution_dtypes(jaxpr):
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            found |= {str(var.aval.dtype) for var in equation.invars}
        for sub in jaxprs_in_params(equation.params):
            found |= convolution_dtypes(sub)
    return found


def test_bfloat16_is_the_dtype_of_convolutions_and_of_nothing_kept():
    graph, params, rest = filled(builder(config(dtype="bfloat16")))
    graph32 = abstract(builder(config()))[0]
    x = jnp.asarray(images(), jnp.float32)
    features, moved = jitted_forward(graph, params, rest, x, True)
    kept = jax.tree.leaves((params, moved, features))
    assert {leaf.dtype for leaf in kept} == {jnp.dtype("float32")}
    jaxpr = jax.make_jaxpr(forward, static_argnums=(0, 4))(graph, params, rest, x, True)
    assert convolution_dtypes(jaxpr.jaxpr) == {"bfloat16"}
    exact, _ = jitted_forward(graph32, params, rest, x, True)
    difference = tree_distance(features.pooled, exact.pooled)
    assert 1e-4 < difference < 0.1  # other dtype, same network


def test_any_number_of_channels_trains_with_finite_gradients():
    graph, params, rest = filled(builder(config(), channels=5))
    x = jnp.asarray(images(channels=5), jnp.float32)

    @quick_jit
    def gradient(params):
        def loss(params):
            return jnp.sum(forward(graph, params, rest, x, True)[0].pooled ** 2)

        return jax.grad(loss)(params)

    leaves = jax.tree.leaves(gradient(params))
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in leaves)


def test_wrong_input_and_wrong_names_are_named():
    graph, params, rest = abstract(builder(config()))
    x = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
    with pytest.raises(UserError, match=r"built for images \[B, H, W, 3\], got \(2, 8, 8, 4\)"):
        jax.eval_shape(functools.partial(forward, graph, train=True), params, rest, x)
    for field in ("name", "stem", "shortcut", "kernel_init", "dtype"):
        with pytest.raises(UserError, match=f"encoder.{field}=alexnet is unknown"):
            abstract(builder(config(**{field: "alexnet"})))
    with pytest.raises(UserError, match=r"encoder.width=0 must be at least 1"):
        abstract(builder(config(width=0)))


@pytest.mark.parametrize(
    ("name", "std"),
    [("fan_in_truncated_normal", (1 / (9 * 32)) ** 0.5), ("fan_out_normal", (2 / (9 * 64)) ** 0.5)],
)
def test_kernel_initialisers(name, std):
    kernel = np.asarray(KERNEL_INITS[name](jax.random.key(0), (3, 3, 32, 64), jnp.float32))
    np.testing.assert_allclose(kernel.std(), std, rtol=0.02)
    truncated = np.abs(kernel).max() < 2.3 * std  # two deviations of the parent normal, / .8796
    assert truncated == (name == "fan_in_truncated_normal")


def gradient_on_devices(count, groups):
    mesh = jax.make_mesh(
        (count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )
    rows = NamedSharding(mesh, PartitionSpec("data"))
    replicated = NamedSharding(mesh, PartitionSpec())
    graph, params, rest = filled(builder(config(dtype="float64", bn_groups=groups)))
    x = images(batch=16) * np.linspace(0.2, 1.0, 16)[:, None, None, None]
    direction = np.random.default_rng(5).normal(size=(16, 32))

    def loss(params, rest, x, direction):
        features, moved = forward(graph, params, rest, x, True)
        return jnp.mean(jnp.sum(features.pooled * direction, 1) ** 2), moved

    step = jax.jit(
        jax.value_and_grad(loss, has_aux=True), in_shardings=(replicated, replicated, rows, rows)
    )
    arguments = jax.device_put((params, rest, x, direction), (replicated, replicated, rows, rows))
    compiled = step.lower(*arguments).compile(compiler_options=quick())
    return jax.tree.map(np.asarray, compiled(*arguments)), compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_loss_gradient_and_statistics_do_not_depend_on_the_device_count(groups):
    with jax.enable_x64(True):
        ((loss, rest), gradient), flops = gradient_on_devices(1, groups)
        ((loss_n, rest_n), gradient_n), flops_n = gradient_on_devices(8, groups)
        np.testing.assert_allclose(loss_n, loss, rtol=1e-11)
        assert tree_distance(gradient_n, gradient) < 1e-10
        assert tree_distance(rest_n, rest) < 1e-11
        # At two tiny images a device, what is done once a channel weighs an eighth.
        assert flops_n * 8 < 1.25 * flops
