"""The probe program: reads only the encoder, changes nothing, chooses nothing on the test split."""

import json
import pathlib

import jax
import numpy as np
import pytest
from tiny import config_for

from jaxssl.augment.policies import make_clean_view
from jaxssl.checkpoint import CheckpointReader
from jaxssl.data import sources
from jaxssl.distributed import data_mesh
from jaxssl.errors import UserError
from jaxssl.evaluation import probe
from jaxssl.evaluation.features import extract
from jaxssl.evaluation.frozen import (
    Network,
    fresh_encoder,
    make_cropped_view,
    raw_pixels,
    restored_encoder,
)
from jaxssl.linear_probe import linear_probe, print_card
from jaxssl.pretrain import pretrain, resolve
from jaxssl.run_directory import read_config


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """A run of MoCo, whose checkpoint holds a second encoder that must not be read."""
    workdir = tmp_path_factory.mktemp("probe") / "run"
    config = config_for("moco_v2")
    with config.unlocked():
        config.run.stop_step = 20
        config.run.num_devices = 2
        config.evals.knn.every = 0.0
        config.evals.knn.protocol = "dino"
    pretrain(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def settings():
    chosen = probe.default_config()
    chosen.sgd.epochs = 2
    chosen.lbfgs.l2_grid = (1e-3, 1e-1)
    return chosen


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels_per_class": 200}, "labels_per_class=200 but a class has only 1[0-9][0-9] train"),
        ({"labels_per_class": 0}, "labels_per_class=0 cannot be: give 1 or more"),
        ({"sgd.epochs": -1}, "sgd.epochs=-1 cannot be"),
        ({"seed": -1}, "probe.seed=-1 is out of range"),
        ({"lbfgs.l2_grid": ()}, r"l2_grid=\(\) cannot be"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_words(run, settings, change, sentence):
    told = settings.copy_and_resolve_references()
    told.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=sentence):
        linear_probe(run, None, told, baselines=False)


def test_any_batch_of_features_serves_any_number_of_devices(run, settings):
    told = settings.copy_and_resolve_references()
    told.update_from_flattened_dict({"feature_batch_size": 100, "sgd.epochs": 0})  # 8 devices
    card, _ = linear_probe(run, None, told, baselines=False)
    assert card["examples"]["test"] == 360


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_card(run, settings, capsys):
    before = files(run / "checkpoints") | files(run / "tensorboard")
    card, path = linear_probe(run, None, settings, baselines=True)
    assert files(run / "checkpoints") | files(run / "tensorboard") == before
    assert path == run / "evaluations" / "linear_probe-20" / "card.json"
    assert json.loads(path.read_text())["results"] == card["results"]
    assert card["encoder_sha256"]["before"] == card["encoder_sha256"]["after"]
    assert card["examples"] == {"train": 1294, "validation": 143, "test": 360}
    for scores in card["results"].values():
        for fit in ("lbfgs", "lbfgs_few", "sgd"):
            assert 0.1 < scores[fit]["top1"] <= scores[fit]["top5"] <= 1
        assert 0.1 < scores["knn"] <= 1
    print_card(card)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert f"{100 * card['results']['trained']['lbfgs']['top1']:.2f} %" in shown


def test_restores_the_students_encoder_on_any_mesh(run):
    config = read_config(run)
    reader = CheckpointReader(run / "checkpoints")
    digests = {restored_encoder(reader, 20, config, 1, data_mesh(n))[0].digest() for n in (1, 2, 8)}
    assert len(digests) == 1
    assert digests != {fresh_encoder(config, 1, data_mesh(1)).digest()}


def test_the_untrained_encoder_is_the_one_the_run_began_with(tmp_path):
    config = config_for("moco_v2")
    with config.unlocked():
        config.run.stop_step = 1
        config.hyper.learning_rate = 0.0
        config.evals.knn.every = 0.0
    pretrain(config, tmp_path / "still")
    config = read_config(tmp_path / "still")
    reader = CheckpointReader(tmp_path / "still" / "checkpoints")
    still = restored_encoder(reader, None, config, 1, data_mesh(1))[0]
    fresh = fresh_encoder(config, 1, data_mesh(1))
    for a, b in zip(
        jax.tree.leaves(still.arrays[0]), jax.tree.leaves(fresh.arrays[0]), strict=True
    ):
        assert a.tobytes() == b.tobytes()


def test_nothing_is_chosen_on_the_test_split(run, settings):
    """Scrambled test labels change no choice and no fit, only the accuracies."""
    honest, _ = linear_probe(run, None, settings, baselines=False)
    data = read_config(run).data
    given = {split: sources.load(data, split) for split in ("train", "validation", "test")}
    labels = given["test"].targets["label"]
    labels[:] = np.random.default_rng(0).permutation(labels)
    blind, _ = linear_probe(run, None, settings, baselines=False, sources=given)
    for fit in ("lbfgs", "lbfgs_few"):
        mine, other = blind["results"]["trained"][fit], honest["results"]["trained"][fit]
        for key in ("l2", "validation_top1", "iterations", "gradient"):
            assert mine[key] == other[key]
    assert blind["results"]["trained"]["lbfgs"]["top1"] < 0.3
    assert honest["results"]["trained"]["lbfgs"]["top1"] > 0.5


def test_features_are_those_of_each_image_in_order():
    config = resolve(config_for("simclr"))
    source = sources.load(config.data, "validation")
    mesh = data_mesh(8)
    pixels = raw_pixels()
    got = extract(pixels.through(make_clean_view(config)), source, mesh=mesh, batch_size=64)
    np.testing.assert_allclose(
        got.features, source.images.reshape(len(source), -1) / 255.0, atol=1e-6
    )
    assert (got.labels == source.targets["label"]).all()
    cropped = pixels.through(make_cropped_view(config))
    embeds = [
        lambda batch, e=epoch: cropped(batch, np.uint32(0), np.int32(e)) for epoch in (0, 0, 1)
    ]
    first, again, later = (
        extract(embed, source, mesh=mesh, batch_size=64).features for embed in embeds
    )
    assert (first == again).all()
    assert np.abs(first - later).max() > 0.1
    assert isinstance(pixels, Network)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("no run", "is not a run directory"),
        ("no checkpoints", "holds no checkpoint"),
        ("wrong step", "has no step 7"),
        ("other encoder", "holds another state"),
    ],
)
def test_refusals(run, settings, tmp_path, damage, sentence):
    copy = tmp_path / "run"
    step = None
    if damage != "no run":
        copy.mkdir()
        text = (run / "config.json").read_text()
        if damage == "other encoder":
            text = text.replace('"width": 4', '"width": 6')
        (copy / "config.json").write_text(text)
        if damage != "no checkpoints":
            (copy / "checkpoints").symlink_to(run / "checkpoints")
        if damage == "wrong step":
            step = 7
    with pytest.raises(UserError, match=sentence):
        linear_probe(copy, step, settings, baselines=False)
