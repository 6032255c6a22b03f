"""Named layers of a checkpoint; runs of format 1 give the features that the old code gave."""

import hashlib
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Run, config_for

from configs.common import schedule
from configs.quickstart import get_config as quickstart
from jaxssl.data.sources import load
from jaxssl.distributed import data_mesh
from jaxssl.errors import UserError
from jaxssl.evaluation.features import extract
from jaxssl.evaluation.frozen import (
    check_layer,
    computed_by,
    fresh_method,
    make_cropped_view,
    make_pair_views,
    make_test_view,
    raw_pixels,
    restored_method,
)
from jaxssl.methods import Spec
from jaxssl.plan import make_spec, policy_of, resolve
from jaxssl.run_directory import read_config
from jaxssl.training.state import traced_scalars

OLD = pathlib.Path(__file__).parent.parent / "old_runs" / "format1"
EXPECTED = json.loads((OLD / "expected.json").read_text())
METHODS = sorted(EXPECTED)
ENCODER = {"pooled", "stage1", "stage2", "stage3"}
LAYERS = {
    "simclr": ENCODER | {"head1", "projection"},
    "moco_v2": ENCODER | {"projection", "teacher", "teacher_projection"},
    "supervised": ENCODER | {"logits"},
}


def files(folder: pathlib.Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_digits(config, count):
    return load(config.data, "test").take(np.arange(count))


test_digits.__test__ = False


@pytest.mark.parametrize("method", METHODS)
def test_an_old_run_has_the_features_it_had(method, tmp_path):
    run = tmp_path / method
    shutil.copytree(OLD / method, run)
    before = files(run)
    mesh = data_mesh(2)
    restored = restored_method(run, None, mesh)
    assert restored.step == EXPECTED[method]["step"]
    assert restored.network.encoder_digest() == EXPECTED[method]["encoder_sha256"]
    view, digits = make_test_view(restored.config), test_digits(restored.config, 40)
    embed = restored.network.through(view, "pooled")
    found = extract(embed, digits, mesh=mesh, batch_size=40).features
    np.testing.assert_allclose(found, np.load(OLD / f"{method}_features.npy"), atol=1e-6)
    names = restored.network.layers(view, digits.gather(np.arange(1)))
    assert set(names) == LAYERS[method]
    assert files(run) == before


@pytest.mark.parametrize("method", METHODS)
def test_the_spec_of_an_old_run_is_what_the_run_would_note_today(method):
    spec = restored_method(OLD / method, None, data_mesh(1)).spec
    expected = Spec(
        num_examples=1437,
        num_classes=10 if method == "supervised" else None,
        channels=1,
        image_size=(8, 8),
        total_steps=4 * 1294 // 64,
        steps_per_epoch=1294 / 64,
    )
    assert spec == expected


def test_layers_are_the_methods_own_and_maps_are_averaged():
    mesh = data_mesh(1)
    restored = restored_method(OLD / "moco_v2", None, mesh)
    view, digits = make_test_view(restored.config), test_digits(restored.config, 16)
    rows = digits.gather(np.arange(16))
    found = {
        layer: np.asarray(restored.network.through(view, layer)(rows))
        for layer in ("pooled", "stage2", "projection", "teacher", "teacher_projection")
    }
    assert {name: values.shape for name, values in found.items()} == {
        "pooled": (16, 16),
        "stage2": (16, 8),
        "projection": (16, 16),
        "teacher": (16, 16),
        "teacher_projection": (16, 16),
    }
    params, rest = restored.network.arrays
    head = params["head"]["output"]
    projected = found["pooled"] @ head["kernel"][...] + head["bias"][...]
    np.testing.assert_allclose(found["projection"], projected, atol=1e-5)
    head = rest["teacher_head"]["output"]
    projected = found["teacher"] @ head["kernel"][...] + head["bias"][...]
    np.testing.assert_allclose(found["teacher_projection"], projected, atol=1e-5)
    assert np.abs(found["teacher"] - found["pooled"]).max() > 0.01


def test_an_unknown_layer_is_refused_with_the_list():
    with pytest.raises(UserError, match=r"--probe.layer=poled is unknown: choose one of a, pooled"):
        check_layer("--probe.layer", "poled", ("pooled", "a"))


def test_a_checkpoint_is_the_same_on_any_mesh():
    networks = [restored_method(OLD / "moco_v2", 6, data_mesh(n)).network for n in (1, 8)]
    assert len({network.digest() for network in networks}) == 1
    restored = restored_method(OLD / "moco_v2", 6, data_mesh(1))
    fresh = fresh_method(restored.config, restored.spec, data_mesh(1))
    assert fresh.digest() != networks[0].digest()
    # The whole method is hashed, not the encoder alone: the teacher is probed too.
    rest = restored.network.arrays[1]
    rest["teacher_head"]["output"]["bias"][...] += 1
    assert restored.network.digest() != networks[0].digest()
    assert restored.network.encoder_digest() == networks[0].encoder_digest()


def test_what_a_network_computes_is_told_apart_by_config_and_own_files(tmp_path, monkeypatch):
    config = read_config(OLD / "simclr").copy_and_resolve_references()
    assert computed_by(config) == computed_by(config.copy_and_resolve_references())
    half = config.copy_and_resolve_references()
    with half.unlocked():
        half.encoder.dtype = "bfloat16"
    assert computed_by(half) != computed_by(config)
    (tmp_path / "own_network.py").write_text("Net = None  # mean\n")
    monkeypatch.syspath_prepend(tmp_path)
    with config.unlocked():
        config.encoder.name = "own_network:Net"
    before = computed_by(config)
    (tmp_path / "own_network.py").write_text("Net = None  # max\n")
    assert computed_by(config) != before


def test_the_untrained_method_is_the_one_the_run_began_with():
    run, mesh = Run(config_for("moco_v2")), data_mesh(1)
    began = run.blueprint.create(run.config.init_seed, mesh)
    fresh = fresh_method(run.config, run.blueprint.spec, mesh)
    for tree, expected in zip(fresh.arrays, (began.params, began.rest), strict=True):
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
            assert a.tobytes() == b.tobytes()


def test_features_are_those_of_each_image_in_order():
    config = resolve(config_for("simclr"))
    source = load(config.data, "validation")
    mesh = data_mesh(8)
    pixels = raw_pixels()
    embed = pixels.through(make_test_view(config), "pixels")
    got = extract(embed, source, mesh=mesh, batch_size=64)
    np.testing.assert_allclose(
        got.features, source.images.reshape(len(source), -1) / 255.0, atol=1e-6
    )
    assert (got.labels == source.targets["label"]).all()
    cropped = pixels.through(make_cropped_view(config), "pixels")
    first, again, later = (
        extract(
            lambda batch, e=epoch: cropped(batch, np.uint32(0), np.int32(e)),
            source,
            mesh=mesh,
            batch_size=64,
        ).features
        for epoch in (0, 0, 1)
    )
    assert (first == again).all()
    assert np.abs(first - later).max() > 0.1


def pair_images(config, seed, batch):
    spec = make_spec(config, load(config.data, "train"), policy_of(config))
    return [jax.jit(view)(batch) for view in make_pair_views(config, spec, seed)]


@pytest.mark.parametrize("policy", ["multi_view", pytest.param("overlap", marks=pytest.mark.slow)])
def test_pair_views_are_the_policys_own_under_another_seed(policy):
    config = resolve(quickstart(f"batch=64,width=4,canvas=8,size=8,epochs=4,policy={policy}"))
    batch = load(config.data, "test").gather(np.arange(12))
    found = pair_images(config, 7, batch)
    hyper = {**traced_scalars(config), "data_seed": jnp.uint32(7)}
    made = jax.jit(policy_of(config))(batch, hyper).images
    for ours, policys in zip(found, made, strict=True):
        np.testing.assert_allclose(ours, policys, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 0.1
    assert np.abs(found[0] - pair_images(config, 8, batch)[0]).max() > 0.1


@pytest.mark.slow
def test_a_pair_is_of_the_end_of_the_schedules_and_of_two_global_crops():
    config = resolve(quickstart("batch=64,width=4,canvas=8,size=8,epochs=4,policy=overlap"))
    batch = load(config.data, "test").gather(np.arange(12))
    expected = pair_images(config, 0, batch)
    with config.unlocked():
        end = config.hyper.overlap
        del config.hyper["overlap"]  # a number, which a schedule does not fit
        config.hyper.overlap = schedule(0.9, shape="linear", end=end)
    for ours, wanted in zip(pair_images(config, 0, batch), expected, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-5)
    config = resolve(quickstart("batch=64,width=4,canvas=8,size=8,epochs=4"))
    expected = pair_images(config, 0, batch)
    with config.unlocked():
        config.views.global_crops.count = 1  # as of MAE, and with what DINO has besides
        config.views.local_crops = {**config.views.global_crops, "size": 6, "count": 2}
    for ours, wanted in zip(pair_images(config, 0, batch), expected, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-6)
