"""One loss and one gradient, whatever the number of devices and the way they are used."""

import functools

import jax
import losses_on_devices as devices
import numpy as np
import pytest
from quick_compilation import quick_jit
from support import tree_distance

from jaxssl.losses import dense

TILE = 5  # divides neither a shard's rows nor the global batch's
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
# A compilation each: every way of running on 8 devices; more digits, which would show on fewer
# devices what float32 hides; tiles.
RUNS = [(form, 8, None, "float32") for form in devices.FORMS]
RUNS += [("jit", 2, None, "float32")]
RUNS += [(form, 8, None, "float64") for form in ("jit", "pmap", "shard_map")]
RUNS += [(form, 2, None, "float64") for form in ("jit", "pmap", "shard_map")]
RUNS += [(form, 1, None, "float64") for form in ("pmap", "shard_map")]
RUNS += [(form, 8, TILE, "float32") for form in ("jit", "shard_map", "outside_shard_map")]
RUNS += [(form, 8, TILE, "float64") for form in ("jit", "pmap")]


@functools.cache
def results(form, count, block_size, dtype):
    """All losses of a form at once: one compilation."""
    with jax.enable_x64(dtype == "float64"):
        return jax.tree.map(np.asarray, devices.run(form, count, devices.cases(block_size), dtype))


@pytest.mark.parametrize(("form", "count", "block_size", "dtype"), RUNS)
def test_value_and_gradient_equal_one_device(form, count, block_size, dtype):
    alone = results(None, 1, block_size, dtype)
    shared = results(form, count, block_size, dtype)
    tolerance = TOLERANCE[dtype]
    for name, (value, gradient) in alone.items():
        ours, our_gradient = shared[name]
        assert value.dtype == ours.dtype == dtype
        np.testing.assert_allclose(ours, value, rtol=tolerance, err_msg=name)
        # A loss that reached no parameter would agree with anything.
        assert np.linalg.norm(gradient["w"]) > 1e-3, name
        assert tree_distance(our_gradient, gradient) < tolerance, name


@pytest.mark.parametrize("form", ["jit", "shard_map"])
def test_dense_uniformity_one_cell_after_the_other(form, monkeypatch, large):
    """What a large batch does: the same number and gradient, and the work still shared."""
    loss = only("dense_uniformity_same_index", None)
    (value, gradient), *_ = devices.run(None, 1, loss, "float32").values()
    monkeypatch.setattr(dense, "PLAIN_LOGITS", 0)
    (ours, our_gradient), *_ = devices.run(form, 8, loss, "float32").values()
    np.testing.assert_allclose(ours, value, rtol=1e-6)
    assert tree_distance(our_gradient, gradient) < 1e-6
    assert flops(form, 1, loss) / flops(form, 8, loss) > 7


def test_shards_are_not_identical():
    """A wrong gradient on like shards can look right: a mean of local losses must not pass."""
    cases = devices.cases(None)
    chosen = {name: cases[name] for name in ("nt_xent", "swd_normal", "barlow", "dense_index")}
    parameters, batch = devices.inputs(None, 1, "float32")
    halves = [
        jax.tree.map(lambda x, part=part: x[part], batch) for part in (slice(8), slice(8, 16))
    ]
    local = quick_jit(devices.value_and_gradients(chosen, None))
    mean = jax.tree.map(lambda *parts: sum(parts) / 2, *(local(parameters, x) for x in halves))
    alone = results(None, 1, None, "float32")
    for name in chosen:
        assert tree_distance(mean[name][1], alone[name][1]) > 1e-2


@pytest.fixture
def large(monkeypatch):
    """Sizes at which the loss outweighs what every device does alike."""
    for name, value in {"BATCH": 256, "FEATURES": 32, "CELLS": 4, "CLASSES": 16}.items():
        monkeypatch.setattr(devices, name, value)


def only(name, block_size):
    """That loss, with tiles where it has any."""
    return {name: {**devices.cases(None), **devices.cases(block_size)}[name]}


def flops(form, count, chosen):
    return devices.compiled(form, count, chosen).cost_analysis()["flops"]


SHARED = ("nt_xent", "supcon_outside", "align_uniform", "dense_index", "swd_normal", "barlow")


@pytest.mark.parametrize("block_size", [4096, 64])
@pytest.mark.parametrize("name", SHARED)
def test_flops_a_device_fall_with_devices_under_jit(name, block_size, large, monkeypatch):
    if name == "swd_normal":
        monkeypatch.setattr(devices, "BATCH", 1024)
    one, eight = (flops("jit", count, only(name, block_size)) for count in (1, 8))
    # What is not shared: the directions of the sliced distance and what follows a sum over devices.
    assert one / eight > (5.5 if name == "swd_normal" else 7)


def test_flops_fall_for_a_batch_of_an_awkward_size(monkeypatch, large):
    """2064 embeddings, 16 times 3 times 43: tiles of 512 would need padding."""
    monkeypatch.setattr(devices, "BATCH", 1032)
    one, eight = (flops("jit", count, only("nt_xent", None)) for count in (1, 8))
    assert one / eight > 7


@pytest.mark.parametrize("name", [name for name in SHARED if name != "swd_normal"])
def test_flops_a_device_fall_with_devices_under_shard_map(name, large):
    one, eight = (flops("shard_map", count, only(name, 4096)) for count in (1, 8))
    assert one / eight > 7


def test_each_device_sorts_its_share_of_the_projections(large):
    loss = only("swd_normal", None)
    projections = devices.CELLS * devices.CLASSES
    for form in ("jit", "shard_map"):
        text = devices.compiled(form, 8, loss).as_text()
        assert f"s32[{projections // 8},{2 * devices.BATCH}]" in text
        assert f"s32[{projections},{2 * devices.BATCH}]{{1,0}} sort(" not in text


def test_blockwise_under_jit_holds_no_more_than_tiles_on_a_device(large):
    """No device gathers the global batch, nor a row of the matrix of pairs."""
    text = devices.compiled("jit", 8, only("nt_xent", 64)).as_text()
    rows, features = 2 * devices.BATCH, devices.CELLS * devices.CLASSES
    assert f"f32[64,{features}]" in text  # a gathered tile of keys
    assert f"f32[{rows},{features}]" not in text
    assert f"f32[{rows // 8},{rows}]" not in text
