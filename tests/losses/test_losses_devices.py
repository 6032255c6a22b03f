"""One loss and one gradient, whatever the number of devices and the way they are used.

Compilations are shared: every way of using 8 devices is one program of all losses in float64, and
one of each loss in a large batch counts FLOPs. Fewer devices are in the tests of processes.
"""

import jax
import losses_on_devices as devices
import numpy as np
import pytest
from quick_compilation import once, quick_jit
from support import tree_distance

from jaxssl.losses import dense

TILE = 5  # divides neither a shard's rows nor the global batch's
TOLERANCE = 1e-12  # in float64, which shows what float32 would hide on few devices

# Losses whose tiles are a code of their own: rows among themselves, rows and keys, pairs of a
# class, pairs summed at once, cells. The others call the same functions.
TILED = ("nt_xent", "cross_view", "supcon_outside", "supcon_inside", "align_uniform", "queue")
TILED += ("dense_uniformity_same_index",)
# One for every collective and every gradient that is written by hand: what JAX transposes in other
# ways where what varies is not checked (pmap is such a shard_map), and where the gradient is taken
# of the mapped function and not inside it.
TRANSPOSED = ("nt_xent", "cross_view", "supcon_inside", "align_uniform", "queue", "swd_normal")
TRANSPOSED += ("swd_few", "barlow", "sinkhorn", "prototypes", "reconstruction", "multi_crop")
TRANSPOSED += ("dense_set_exact", "lejepa", "vicreg")
TRANSPOSED += tuple(f"{name} in tiles" for name in ("nt_xent", "supcon_inside", "align_uniform"))
OTHER_FORMS = ("pmap", "outside_shard_map")
FORMS = ("jit", "shard_map", *OTHER_FORMS)
SLOW = pytest.mark.slow


def chosen_for(form):
    """The losses that run in that form: plain, and in tiles."""
    tiles = devices.cases(TILE)
    chosen = devices.cases(None) | {f"{name} in tiles": tiles[name] for name in TILED}
    if form is None:
        return devices.cases(None)
    if form in OTHER_FORMS:
        return {name: chosen[name] for name in TRANSPOSED}
    return chosen


@once
def results(form):
    """All losses of a form at once: one compilation, on 8 devices or, without form, on one."""
    with jax.enable_x64(True):
        return devices.run(form, 8, chosen_for(form), "float64")


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=() if form == "jit" else SLOW) for form in FORMS]
)
def test_value_and_gradient_equal_one_device(form):
    for name in chosen_for(form):
        ours, our_gradient = results(form)[name]
        value, gradient = results(None)[name.removesuffix(" in tiles")]
        assert value.dtype == ours.dtype == "float64"
        np.testing.assert_allclose(ours, value, rtol=TOLERANCE, err_msg=name)
        # A loss that reached no parameter would agree with anything.
        assert np.linalg.norm(gradient["w"]) > 1e-3, name
        assert tree_distance(our_gradient, gradient) < TOLERANCE, name


def test_dense_uniformity_one_cell_after_the_other(monkeypatch, large):
    """What a large batch does: the same number and gradient, and the work still shared."""
    loss = only("dense_uniformity_same_index", None)
    ((value, gradient),) = devices.run(None, 1, loss, "float32").values()
    monkeypatch.setattr(dense, "PLAIN_LOGITS", 0)
    one_device = devices.compiled(None, 1, loss).cost_analysis()["flops"]
    for form in ("jit", "shard_map"):
        program = devices.compiled(form, 8, loss)
        ((ours, our_gradient),) = devices.results(program, form, 8, "float32").values()
        np.testing.assert_allclose(ours, value, rtol=1e-6)
        assert tree_distance(our_gradient, gradient) < 1e-6
        assert one_device / program.cost_analysis()["flops"] > 7


def test_shards_are_not_identical():
    """A wrong gradient on like shards can look right: a mean of local losses must not pass."""
    cases = devices.cases(None)
    chosen = {name: cases[name] for name in ("nt_xent", "swd_normal", "barlow", "dense_index")}
    with jax.enable_x64(True):
        parameters, batch = devices.inputs(None, 1, "float64")
        local = quick_jit(devices.value_and_gradients(chosen, None))
        halves = [
            jax.tree.map(np.asarray, local(parameters, jax.tree.map(lambda x, p=p: x[p], batch)))
            for p in (slice(8), slice(8, 16))
        ]
    mean = jax.tree.map(lambda *parts: sum(parts) / 2, *halves)
    for name in chosen:
        assert tree_distance(mean[name][1], results(None)[name][1]) > 1e-2


LARGE = {"BATCH": 256, "FEATURES": 32, "CELLS": 4, "CLASSES": 16}


@pytest.fixture
def large(monkeypatch):
    """Sizes at which the loss outweighs what every device does alike."""
    for name, value in LARGE.items():
        monkeypatch.setattr(devices, name, value)


def only(name, block_size):
    """That loss, with tiles where it has any."""
    return {name: {**devices.cases(None), **devices.cases(block_size)}[name]}


@once
def large_program(form, name, block_size, batch=LARGE["BATCH"]):
    """Of one loss, on 8 devices or, without form, on one; call with the sizes of ``large``."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {**LARGE, "BATCH": batch}.items():
            patch.setattr(devices, key, value)
        return devices.compiled(form, 8, only(name, block_size))


def shared_flops(form, *loss):
    """FLOPs of one device alone over those of each of eight."""
    one, eight = (large_program(where, *loss).cost_analysis() for where in (None, form))
    return one["flops"] / eight["flops"]


# A sliced distance outweighs the directions, which are not shared, in a batch of 1024 alone.
SHARED = {
    "nt_xent": ("nt_xent", 4096),
    "supcon": ("supcon_outside", 4096),
    "align_uniform": ("align_uniform", 4096),
    "dense": ("dense_index", 4096),
    "barlow": ("barlow", 4096),
    "vicreg": ("vicreg", 4096),
    "lejepa": ("lejepa", 4096),
    "multi_crop": ("multi_crop", 4096),
    "swd": ("swd_normal", 4096, 1024),
    "nt_xent in tiles": ("nt_xent", 64),
    "supcon in tiles": ("supcon_outside", 64),
    "align_uniform in tiles": ("align_uniform", 64),
    "dense in tiles": ("dense_index", 64),
    # 2064 embeddings, 16 times 3 times 43: tiles of 512 would need padding.
    "nt_xent of an awkward size": ("nt_xent", None, 1032),
}


@pytest.mark.parametrize("loss", SHARED)
def test_flops_a_device_fall_with_devices_under_jit(loss):
    # What is not shared: the directions of the sliced distance and what follows a sum over devices.
    least = {"swd": 5.5, "lejepa": 6.5}.get(loss, 7)
    assert shared_flops("jit", *SHARED[loss]) > least


@pytest.mark.parametrize("loss", ["nt_xent", "supcon", "align_uniform", "dense", "barlow"])
def test_flops_a_device_fall_with_devices_under_shard_map(loss):
    assert shared_flops("shard_map", *SHARED[loss]) > 7


@pytest.mark.parametrize(("form", "batch"), [("jit", 1024), ("shard_map", 256)])
def test_each_device_sorts_its_share_of_the_projections(form, batch):
    projections = LARGE["CELLS"] * LARGE["CLASSES"]
    text = large_program(form, "swd_normal", 4096, batch).as_text()
    assert f"s32[{projections // 8},{2 * batch}]" in text
    assert f"s32[{projections},{2 * batch}]{{1,0}} sort(" not in text


def test_blockwise_under_jit_holds_no_more_than_tiles_on_a_device():
    """No device gathers the global batch, nor a row of the matrix of pairs."""
    text = large_program("jit", "nt_xent", 64).as_text()
    rows, features = 2 * LARGE["BATCH"], LARGE["CELLS"] * LARGE["CLASSES"]
    assert f"f32[64,{features}]" in text  # a gathered tile of keys
    assert f"f32[{rows},{features}]" not in text
    assert f"f32[{rows // 8},{rows}]" not in text
