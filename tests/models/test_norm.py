"""BatchNorm against its formula in float64, over groups, and on 1, 2 and 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from quick_compilation import quick, quick_jit

from jaxssl.errors import UserError
from jaxssl.models.norm import BatchNorm

MOMENTUM, EPSILON = 0.9, 1e-5


def make(features=3, groups=1, **kwargs):
    return BatchNorm(features, momentum=MOMENTUM, epsilon=EPSILON, groups=groups, **kwargs)


def activations(batch=16, side=3, features=3, seed=0):
    """Rows that differ in mean and spread, so that no two parts of the batch look alike."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, side, side, features))
    return (
        x * np.linspace(0.5, 3, batch)[:, None, None, None] + np.arange(batch)[:, None, None, None]
    )


def reference(x, gamma, beta):
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    return (x - mean) / np.sqrt(var + EPSILON) * gamma + beta, mean, var


def randomise(norm, seed=1):
    rng = np.random.default_rng(seed)
    for variable in (norm.scale, norm.bias):
        variable[...] = jnp.asarray(rng.normal(size=variable.shape), variable.dtype)


def test_training_follows_the_formula_and_moves_the_biased_running_statistics():
    with jax.enable_x64(True):
        norm = make(param_dtype=jnp.float64)
        randomise(norm)
        x = activations()
        expected, mean, var = reference(x, np.asarray(norm.scale[...]), np.asarray(norm.bias[...]))
        np.testing.assert_allclose(norm(jnp.asarray(x), True), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-12)
        np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * var, rtol=1e-12)
        norm(jnp.asarray(x), True)
        np.testing.assert_allclose(norm.mean[...], 0.19 * mean, rtol=1e-12)


def test_gradient_agrees_with_finite_differences_of_the_reference():
    with jax.enable_x64(True):
        norm = make(param_dtype=jnp.float64)
        randomise(norm)
        gamma, beta = np.asarray(norm.scale[...]), np.asarray(norm.bias[...])
        x = activations(batch=4, side=2)
        weights = np.random.default_rng(2).normal(size=x.shape)
        graph, state = nnx.split(norm)

        def loss(x):
            return jnp.sum(nnx.merge(graph, state, copy=True)(x, True) * weights)

        gradient = np.asarray(quick_jit(jax.grad(loss))(jnp.asarray(x)))
        step = 1e-6
        for index in [(0, 0, 0, 0), (1, 1, 0, 2), (3, 0, 1, 1)]:
            up, down = x.copy(), x.copy()
            up[index] += step
            down[index] -= step
            slope = np.sum(
                (reference(up, gamma, beta)[0] - reference(down, gamma, beta)[0]) * weights
            ) / (2 * step)
            np.testing.assert_allclose(gradient[index], slope, rtol=1e-6)


def test_evaluation_uses_the_running_statistics_and_leaves_them():
    norm = make()
    randomise(norm)
    norm.mean[...] = jnp.asarray([1.0, 2.0, 3.0])
    norm.var[...] = jnp.asarray([4.0, 1.0, 0.25])
    x = activations().astype(np.float32)
    expected = (x - [1, 2, 3]) / np.sqrt(np.array([4, 1, 0.25]) + EPSILON)
    expected = expected * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])
    np.testing.assert_allclose(norm(jnp.asarray(x), False), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(norm.mean[...], [1, 2, 3])
    np.testing.assert_array_equal(norm.var[...], [4, 1, 0.25])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_cut_the_images_and_hold_all_views_of_them(groups):
    """SimCLR stacks view 2 after view 1: a device of many has both views of its own images."""
    with jax.enable_x64(True):
        norm = make(groups=groups, param_dtype=jnp.float64)
        first, second = np.split(activations(), 2)
        parts = [
            np.concatenate(p)
            for p in zip(*(np.split(x, groups) for x in (first, second)), strict=True)
        ]
        expected = [np.split(reference(part, 1.0, 0.0)[0], 2) for part in parts]
        y = norm(jnp.asarray(np.concatenate([first, second])), True, views=2)
        stacked = [np.concatenate([halves[view] for halves in expected]) for view in (0, 1)]
        np.testing.assert_allclose(y, np.concatenate(stacked), atol=1e-12)
        means = [reference(part, 1.0, 0.0)[1] for part in parts]
        np.testing.assert_allclose(norm.mean[...], 0.1 * np.mean(means, 0))


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_groups_are_contiguous_parts_each_with_statistics_of_its_own(groups):
    with jax.enable_x64(True):
        norm = make(groups=groups, param_dtype=jnp.float64)
        x = activations()
        parts = [reference(part, 1.0, 0.0) for part in np.split(x, groups)]
        y = norm(jnp.asarray(x), True)
        np.testing.assert_allclose(y, np.concatenate([p[0] for p in parts]), atol=1e-12)
        np.testing.assert_allclose(norm.mean[...], 0.1 * np.mean([p[1] for p in parts], 0))
        np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * np.mean([p[2] for p in parts], 0))
        assert np.abs(np.asarray(y) - reference(x, 1.0, 0.0)[0]).max() > 0.5


def on_devices(count, groups):
    """Output, gradients, statistics and FLOPs a device of one training call, in float64."""
    mesh = jax.make_mesh(
        (count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )
    rows = NamedSharding(mesh, PartitionSpec("data"))
    replicated = NamedSharding(mesh, PartitionSpec())
    norm = make(groups=groups, param_dtype=jnp.float64)
    randomise(norm)
    graph, params, rest = nnx.split(norm, nnx.Param, ...)
    x = activations(batch=64)
    weights = np.random.default_rng(3).normal(size=x.shape)

    def loss(params, x, weights):
        module = nnx.merge(graph, params, rest, copy=True)
        y = module(x, True)
        return jnp.sum(jnp.tanh(y) * weights), (y, nnx.state(module, nnx.BatchStat))

    step = jax.jit(
        jax.grad(loss, argnums=(0, 1), has_aux=True), in_shardings=(replicated, rows, rows)
    )
    compiled = step.lower(params, x, weights).compile(compiler_options=quick())
    arrays = (jax.device_put(params, replicated), *jax.device_put((x, weights), rows))
    return jax.tree.map(np.asarray, compiled(*arrays)), compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_device_count_changes_neither_mathematics_nor_total_work(groups):
    with jax.enable_x64(True):
        one, flops_of_one = on_devices(1, groups)
        many, flops_of_many = on_devices(8, groups)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), many, one
        )
        # XLA fuses elementwise work otherwise around a collective, at most half of it twice.
        assert flops_of_many * 8 < 1.6 * flops_of_one


def test_bfloat16_activations_are_normalised_by_float32_statistics():
    # 4096 values near 20: summed in bfloat16 they would stop growing at about 4096.
    x = jnp.asarray(20 + activations(batch=64, side=8), jnp.bfloat16)
    norm = make()
    y = norm(x, True)
    expected, mean, _ = reference(np.asarray(x, np.float64), 1.0, 0.0)
    assert y.dtype == jnp.bfloat16
    assert norm.mean[...].dtype == norm.scale[...].dtype == jnp.float32
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5)
    assert np.abs(np.asarray(y, np.float64) - expected).max() < 2**-8 * np.abs(expected).max()


def test_a_mean_far_above_the_deviation_does_not_cancel():
    x = (3000 + activations() / 100).astype(np.float32)  # E[x^2] - E[x]^2 would have no digit left
    norm = make()
    norm.mean[...] = jnp.full(3, 2999.0)
    expected, _, var = reference(x.astype(np.float64), 1.0, 0.0)
    np.testing.assert_allclose(norm(jnp.asarray(x), True), expected, atol=2e-3)
    np.testing.assert_allclose(norm.var[...] - 0.9, 0.1 * var, rtol=2e-3, atol=1e-6)
    assert np.abs((x**2).mean((0, 1, 2)) - x.mean((0, 1, 2)) ** 2 - var).max() > var.max()


def test_a_constant_channel_gives_beta_and_finite_gradients():
    graph, state = nnx.split(make())
    x = jnp.full((4, 2, 2, 3), 7.3)

    def loss(x):
        y = nnx.merge(graph, state, copy=True)(x, True)
        return jnp.sum(y**3 + y), y

    gradient, y = quick_jit(jax.grad(loss, has_aux=True))(x)
    np.testing.assert_allclose(y, 0.0, atol=1e-2)
    assert np.isfinite(gradient).all()


def test_scale_and_bias_are_optional_and_scale_can_start_at_zero():
    names = {
        (): {"scale", "bias"},
        ("use_bias",): {"scale"},
        ("use_scale", "use_bias"): set(),
    }
    for absent, present in names.items():
        norm = make(**dict.fromkeys(absent, False))
        assert set(nnx.state(norm, nnx.Param)) == present
    x = jnp.asarray(activations(), jnp.float32)
    np.testing.assert_array_equal(make(zero_scale=True)(x, True), 0.0)


def test_bad_sizes_are_refused_in_one_sentence():
    with pytest.raises(UserError, match=r"16 images cannot make 3 equal"):
        make(groups=3)(jnp.asarray(activations(), jnp.float32), True)
    with pytest.raises(ValueError, match=r"of 4 features was given 3"):
        make(features=4)(jnp.asarray(activations(), jnp.float32), True)
    with pytest.raises(UserError, match=r"bn_groups=0 .* must be"):
        make(groups=0)
    with pytest.raises(ValueError, match="16 rows are not 3 views"):
        make()(jnp.asarray(activations(), jnp.float32), True, views=3)


def test_evaluation_ignores_groups():
    x = jnp.asarray(activations(batch=5), jnp.float32)
    np.testing.assert_array_equal(make(groups=8)(x, False), make()(x, False))
