"""One device and eight compute the same step, and eight share the work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tree_distance
from tiny import BATCH, METHODS, Run, config_for

from jaxssl.distributed import data_mesh, global_batch, on_mesh, replicated, sharded
from jaxssl.training.state import traced_scalars
from jaxssl.training.step import compile_step, loss_and_gradient, make_step

DEVICES = (1, 2, 8)


def without_keys(tree):
    """Typed keys as the integers behind them."""
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )


def gradient_on(run: Run, num_devices: int):
    """Loss, gradient and new variables of one step from the same state and the same views."""
    mesh = data_mesh(num_devices)
    state = run.blueprint.create(run.config.init_seed, mesh)
    views = run.views(0)
    rows = jax.tree.map(lambda x: jax.device_put(x, sharded(mesh)), views)

    def gradient(state, views, hyper):
        return loss_and_gradient(run.blueprint.graph, state, views, hyper)

    whole = replicated(mesh)
    jitted = jax.jit(
        on_mesh(gradient, mesh), in_shardings=(whole, sharded(mesh), whole), out_shardings=whole
    )
    loss, _, gradient, rest = jitted(state, rows, traced_scalars(run.config))
    return jax.device_get((loss, gradient, without_keys(rest)))


@pytest.mark.parametrize("method", METHODS)
def test_shards_are_not_identical(method):
    """The tests below would prove nothing if the devices held copies of one shard."""
    first = Run(config_for(method)).views(0).images[0].reshape(8, BATCH // 8, -1)
    differences = np.abs(first[:, None] - first[None]).max(axis=(2, 3))
    assert (differences + np.eye(8) > 0.1).all()


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradient_in_float64(method):
    with jax.enable_x64(True):
        run = Run(config_for(method, "float64"))
        one_loss, one_gradient, one_rest = gradient_on(run, 1)
        for leaf in jax.tree.leaves(one_gradient):
            assert leaf.dtype == np.float64
        for num_devices in DEVICES[1:]:
            loss, gradient, rest = gradient_on(run, num_devices)
            assert abs(loss - one_loss) <= 1e-9 * abs(one_loss)
            assert tree_distance(gradient, one_gradient) <= 1e-9
            assert tree_distance(rest, one_rest) <= 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradient_in_float32(method):
    run = Run(config_for(method))
    one_loss, one_gradient, _ = gradient_on(run, 1)
    for num_devices in DEVICES[1:]:
        loss, gradient, _ = gradient_on(run, num_devices)
        assert abs(loss - one_loss) <= 1e-5 * abs(one_loss)
        assert tree_distance(gradient, one_gradient) <= 1e-4


def compiled(run: Run, num_devices: int):
    mesh = data_mesh(num_devices)
    state = run.blueprint.create(run.config.init_seed, mesh)
    step = compile_step(make_step(run.blueprint, run.policy), mesh)
    return step, mesh, state


@pytest.mark.parametrize("method", METHODS)
def test_work_is_shared(method):
    """Wrong sharding gives right numbers slowly: FLOPs a device must fall as 1 / devices."""
    config = config_for(method)
    with config.unlocked():
        # Large enough for what every device does alone (optimizer, teacher) to be a few percent.
        config.batch_size = 512
        config.encoder.width = 16
        if method == "moco_v2":
            config.method.queue_size = 512
    run = Run(config)
    flops = {}
    for num_devices in DEVICES:
        mesh = data_mesh(num_devices)
        step = compile_step(make_step(run.blueprint, run.policy), mesh)
        batch = global_batch(mesh, run.batch(0))
        lowered = step.lower(run.blueprint.abstract(mesh), batch, traced_scalars(run.config))
        flops[num_devices] = lowered.compile().cost_analysis()["flops"]
    for num_devices in DEVICES[1:]:
        assert flops[num_devices] <= 1.1 * flops[1] / num_devices, flops


@pytest.mark.parametrize("method", METHODS)
def test_state_after_twenty_steps(method):
    """Parameters, optimizer, queue and teacher stay together.

    In float64: in float32 a single ReLU whose input is within rounding of zero falls on another
    side sooner or later, which for so small a net moves the next gradient by a tenth.
    """
    ends = {}
    with jax.enable_x64(True):
        run = Run(config_for(method, "float64"))
        for num_devices in DEVICES:
            step, mesh, state = compiled(run, num_devices)
            start = jax.device_get(state.params)
            for number in range(20):
                batch = global_batch(mesh, run.batch(number))
                state, _ = step(state, batch, traced_scalars(run.config))
            assert int(state.step) == 20
            ends[num_devices] = jax.device_get(
                (state.params, state.optimizer, without_keys(state.rest))
            )
            assert tree_distance(ends[num_devices][0], start) > 0.05  # it has moved far more
    for num_devices in DEVICES[1:]:
        for mine, other in zip(ends[num_devices], ends[1], strict=True):
            assert tree_distance(mine, other) <= 1e-8
