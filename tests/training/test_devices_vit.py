"""With a ViT, too, one device and eight compute the same step, and eight share the work.

As tests/training/test_devices.py has it for convolutions, of which MAE has its ViT there already.
A VAE's decoder mirrors the maps of a convolutional network.
"""

import functools

import jax
import numpy as np
import pytest
from quick_compilation import quick
from support import tree_distance
from test_devices import DEVICES, without_keys
from tiny import METHODS, Run, config_for

from configs.common import vit_group
from jaxssl.distributed import data_mesh, global_batch
from jaxssl.training.state import traced_scalars
from jaxssl.training.step import compile_step

pytestmark = pytest.mark.usefixtures("quickly_compiled")
# With fewer images a device, XLA computes the error function of GELU again in several fusions, a
# tenth of all FLOPs of SwAV, which has nothing to do with devices.
BATCH = 1024
EACH_METHOD = pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[pytest.mark.slow, pytest.mark.xdist_group(f"vit_{name}")])
        for name in METHODS
        if name not in ("mae", "vae")
    ],
)


def run_of(method: str) -> Run:
    config = config_for(method, "float64", epochs=9.0)
    with config.unlocked():
        size = config.views.global_crops.size
        # Cells of dense methods are few, for all pairs of them are compared.
        config.encoder = vit_group("nano", size, size // 2 if "dense_head" in config.method else 2)
        config.encoder.update(width=8, depth=2, heads=2, stages=(1, 2), dtype="float64")
        config.batch_size = BATCH // 4 if "dense_head" in config.method else BATCH
        if "queue_size" in config.method:
            config.method.queue_size = 2 * config.batch_size
    return Run(config)


@functools.cache
def stepped(method: str, num_devices: int) -> dict:
    """Of one step: its loss, the FLOPs a device, and the state before it and after it."""
    with jax.enable_x64(True):
        run = run_of(method)
        mesh, hyper = data_mesh(num_devices), traced_scalars(run.config)
        state, batch = run.start(mesh), global_batch(mesh, run.batch(0))
        step = compile_step(run.step(), mesh).lower(state, batch, hyper).compile(quick())
        before = jax.device_get(without_keys(state))
        state, metrics = step(state, batch, hyper)
        return {
            "loss": float(metrics["loss"]),
            "flops": step.cost_analysis()["flops"],
            "before": before,
            "after": jax.device_get(without_keys(state)),
        }


@EACH_METHOD
def test_loss_gradient_and_carried_state(method):
    one, many = (stepped(method, devices) for devices in DEVICES)
    assert abs(many["loss"] - one["loss"]) <= 1e-9 * abs(one["loss"])
    for leaf in jax.tree.leaves(one["after"].params):
        assert leaf.dtype == np.float64
    # SGD's momentum after one step is the gradient and the decay of weights that are the same.
    assert tree_distance(many["after"].optimizer.trace, one["after"].optimizer.trace) <= 1e-9
    for part in ("params", "rest"):
        assert tree_distance(getattr(many["after"], part), getattr(one["after"], part)) <= 1e-9
    assert tree_distance(one["after"].params, one["before"].params) > 1e-6


@EACH_METHOD
def test_work_is_shared(method):
    flops = {devices: stepped(method, devices)["flops"] for devices in DEVICES}
    assert flops[8] <= 1.1 * flops[1] / 8, flops
