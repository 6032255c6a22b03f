"""One device and eight compute the same steps, and eight share the work.

One float64 program a method and number of devices serves all that is asked here: the loss, the
gradient, the state after one step and after three, and the FLOPs. In float64, because in float32 a
single ReLU whose input is within rounding of zero falls on another side sooner or later.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tree_distance
from tiny import METHODS, Run, config_for

from jaxssl.distributed import data_mesh, global_batch
from jaxssl.training.state import TrainState, traced_scalars
from jaxssl.training.step import compile_step

DEVICES = (1, 8)
BATCH, STEPS = 256, 3
# As users compile, these three stand for all: it takes minutes each.
SHIPPED = ("simclr", "moco_v2", "supervised")


def _marks(method: str) -> list[pytest.MarkDecorator]:
    """The tests of a method share its programs, so they stay in one of the suite's processes."""
    group = pytest.mark.xdist_group(method)
    return [group, pytest.mark.shipped] if method in SHIPPED else [group]


EACH_METHOD = pytest.mark.parametrize(
    "method", [pytest.param(name, marks=_marks(name)) for name in METHODS]
)


def run_of(method: str) -> Run:
    config = config_for(method, "float64", epochs=9.0)
    with config.unlocked():
        # Large enough for what every device does alone (optimizer, teacher) to be a few percent.
        # All pairs of cells cost 16 times as much as all pairs of images.
        config.batch_size = BATCH // 4 if "dense_head" in config.method else BATCH
        config.encoder.width = 8
        if "queue_size" in config.method:
            config.method.queue_size = 2 * config.batch_size
    return Run(config)


def without_keys(tree):
    """Typed keys as the integers behind them."""
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )


@functools.cache
def created(method: str) -> tuple[Run, TrainState]:
    """On one device, for all: how many devices there are has no part in it."""
    with jax.enable_x64(True):
        run = run_of(method)
        return run, run.blueprint.create(run.config.init_seed, data_mesh(1))


@functools.cache
def trained(method: str, num_devices: int) -> dict:
    """What a run leaves: losses, FLOPs a device, and the state at its start, after 1 and all."""
    with jax.enable_x64(True):
        run, state = created(method)
        mesh, hyper = data_mesh(num_devices), traced_scalars(run.config)
        state = run.start(mesh, state)
        lowered = compile_step(run.step(), mesh).lower(
            state, global_batch(mesh, run.batch(0)), hyper
        )
        step = lowered.compile()
        states, losses = {0: jax.device_get(without_keys(state))}, []
        for number in range(STEPS):
            state, metrics = step(state, global_batch(mesh, run.batch(number)), hyper)
            losses.append(float(metrics["loss"]))
            if number in (0, STEPS - 1):
                states[number + 1] = jax.device_get(without_keys(state))
        return {"flops": step.cost_analysis()["flops"], "losses": losses, "states": states}


def gradient_of(method: str, num_devices: int):
    """SGD's momentum after one step is the gradient and the decay of weights that are the same."""
    states = trained(method, num_devices)["states"]
    trace, weights = states[1].optimizer.trace, states[0].params
    decay = config_for(method).hyper.weight_decay
    return jax.tree.map(lambda v, w: v - np.float32(decay) * w, trace, weights)


@EACH_METHOD
def test_shards_are_not_identical(method):
    """The tests below would prove nothing if the devices held copies of one shard."""
    run = created(method)[0]
    first = np.float64(run.batch(0)["image"]).reshape(8, -1) / 255
    differences = np.abs(first[:, None] - first[None]).max(axis=2)
    assert (differences + np.eye(8) > 0.1).all()


@EACH_METHOD
def test_loss_and_gradient(method):
    one, many = (trained(method, devices) for devices in DEVICES)
    assert abs(many["losses"][0] - one["losses"][0]) <= 1e-9 * abs(one["losses"][0])
    for leaf in jax.tree.leaves(one["states"][1].params):
        assert leaf.dtype == np.float64
    assert tree_distance(gradient_of(method, 8), gradient_of(method, 1)) <= 1e-9
    assert tree_distance(many["states"][1].rest, one["states"][1].rest) <= 1e-9


@EACH_METHOD
def test_state_after_a_few_steps(method):
    """Parameters, optimizer, queue and teacher stay together."""
    one, many = (trained(method, devices)["states"] for devices in DEVICES)
    assert int(one[STEPS].step) == STEPS
    for part in ("params", "optimizer", "rest"):
        assert tree_distance(getattr(many[STEPS], part), getattr(one[STEPS], part)) <= 1e-8
    assert tree_distance(one[STEPS].params, one[0].params) > 1e-3  # it has moved far more


@EACH_METHOD
def test_work_is_shared(method):
    """Wrong sharding gives right numbers slowly: FLOPs a device must fall as 1 / devices."""
    flops = {devices: trained(method, devices)["flops"] for devices in DEVICES}
    assert flops[8] <= 1.1 * flops[1] / 8, flops
