"""The probe program: changes nothing, chooses nothing on the test split, fits once."""

import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from old_run import copied
from tiny import config_for

import jaxssl.evaluate
import jaxssl.linear_probe
from jaxssl.data import sources
from jaxssl.data.examples import array_source
from jaxssl.data.splits import Splits
from jaxssl.distributed import check_launched, data_mesh
from jaxssl.errors import UserError
from jaxssl.evaluate import Asked, evaluate
from jaxssl.evaluation import fits, probe
from jaxssl.evaluation.card import Wanted, settings_names
from jaxssl.evaluation.classifier import LinearClassifier
from jaxssl.evaluation.features import extract
from jaxssl.evaluation.frozen import make_test_view, restored_method
from jaxssl.evaluation.probe_data import (
    Part,
    Place,
    check_probeable,
    data_settings,
    flags_of,
    open_splits,
    protocol_of,
    same_data,
    with_data,
)
from jaxssl.linear_probe import linear_probe, print_card, probe_run
from jaxssl.randomness import Split
from jaxssl.run_directory import read_config

HOUSE = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """A run of MoCo on the digits, whose method holds more than an encoder."""
    return copied("moco_v2", tmp_path_factory.mktemp("probe"))


def settings_with(**changes):
    chosen = probe.default_config()
    chosen.sgd.epochs = 0
    chosen.lbfgs.l2_grid = (1e-3, 1e-1)
    chosen.update_from_flattened_dict(changes)
    return chosen


def data_with(**changes):
    chosen = data_settings()
    chosen.update(changes)
    return chosen


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"labels_per_class": 200},
            "--probe.labels_per_class=200 but a class has only 1[0-9][0-9]",
        ),
        ({"labels_per_class": 0}, "--probe.labels_per_class=0 must be at least 1"),
        ({"sgd.epochs": -1}, "--probe.sgd.epochs=-1 must be at least 0"),
        ({"seed": -1}, "--probe.seed=-1 is out of range"),
        ({"lbfgs.l2_grid": ()}, r"--probe.lbfgs.l2_grid=\(\) holds no number"),
        ({"lbfgs.l2_grid": (1e-3, 1e39)}, r"--probe.lbfgs.l2_grid=.* tuple of numbers, each at"),
        ({"lbfgs.tolerance": 1e39}, "--probe.lbfgs.tolerance=1e.39 must be at least 0 and at"),
        ({"sgd.learning_rate": -1.0}, "--probe.sgd.learning_rate=-1.0 must be at least 0"),
        ({"sgd.weight_decay": float("nan")}, "--probe.sgd.weight_decay=nan must be at least 0"),
        ({"test_fraction": float("nan")}, "--probe.test_fraction=nan must be a share below 1"),
        (
            {"layer": "taecher"},
            r"--probe.layer=taecher is unknown: choose one of pooled, proj.*tea",
        ),
        ({"protocol": "dyno"}, "--probe.protocol=dyno is unknown: choose one of dino, moco"),
        ({"protocol": "none", "knn_k": 3}, "--probe.knn_k=3 has no meaning"),
        ({"test_fraction": 1.5}, "--probe.test_fraction=1.5 must be a share below 1"),
        ({"test_fraction": 0.2}, "test_fraction=0.2 would be ignored, for digits has a test split"),
        (
            {"test_corruption.name": "gamma", "test_corruption.exponent": 0.0},
            "--probe.test_corruption.exponent=0.0 is out of range",
        ),
        ({"target": "presence"}, "has no target 'presence' to probe: it has label"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_words(run, change, sentence):
    with pytest.raises(UserError, match=sentence):
        linear_probe(run, None, settings_with(**change), baselines=False)


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_card_and_classifiers(run, capsys):
    before = files(run)
    settings = settings_with(**{"sgd.epochs": 2, "feature_batch_size": 100})  # 8 devices
    card, path = linear_probe(run, None, settings, baselines=True)
    after = files(run)
    assert {name: after[name] for name in before} == before
    assert path.parent.parent == run / "evaluations"
    assert re.fullmatch(r"linear_probe-6-settings=[0-9a-f]{8}-baselines", path.parent.name)
    assert json.loads(path.read_text())["results"] == card["results"]
    assert card["encoder_sha256"]["before"] == card["encoder_sha256"]["after"]
    assert card["examples"] == {"train": 1294, "validation": 143, "test": 360}
    assert card["knn_protocol"] == "dino"  # of the run's first evaluation
    assert card["knn"]["k"] == 20
    assert card["data"]["of_the_run"]
    assert card["data"]["test"]["name"] == "digits"
    for scores in card["results"].values():
        for fit in ("lbfgs", "lbfgs_few", "sgd"):
            assert 0.1 < scores[fit]["top1"] <= scores[fit]["top5"] <= 1
            by_class = scores[fit]["by_class"]
            assert [row["name"] for row in by_class] == [str(digit) for digit in range(10)]
            mean = np.mean([row["top1"] for row in by_class])
            assert scores[fit]["balanced"] == pytest.approx(mean)
        assert 0.1 < scores["knn"] <= 1
        # ten labels a class are ten: of the 143 held-out images at most a hundred choose
        assert scores["lbfgs"]["validation_images"] == 143
        assert scores["lbfgs_few"]["validation_images"] <= 100
    print_card(card)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert f"{100 * card['results']['trained']['lbfgs']['top1']:.2f} %" in shown

    classifier, about = LinearClassifier.load(path.parent / "classifier.npz")
    assert (about.layer, about.target) == ("pooled", "label")
    assert about.encoder_sha256 == card["encoder_sha256"]["before"]
    assert about.class_names == tuple(str(digit) for digit in range(10))
    mesh = data_mesh(1)
    restored = restored_method(run, None, mesh)
    digits = sources.load(restored.config.data, "test")
    embed = restored.network.through(make_test_view(restored.config), about.layer)
    test = extract(embed, digits, mesh=mesh, batch_size=360)
    top1 = float(np.mean(classifier.logits(test.features).argmax(axis=1) == test.labels))
    assert top1 == pytest.approx(card["results"]["trained"]["lbfgs"]["top1"], abs=2 / 360)
    assert {p.name for p in path.parent.iterdir()} == {"card.json"} | {
        f"classifier{name}.npz"
        for name in (
            *("", "-lbfgs_few", "-sgd"),
            *(f"-{net}-{fit}" for net in ("untrained", "pixels") for fit in fits.FITS),
        )
    }


def test_another_layer_has_a_card_of_its_own(run):
    settings = settings_with(layer="teacher_projection", protocol="none")
    card, path = linear_probe(run, None, settings, baselines=True)
    assert path.parent.name.startswith("linear_probe-6-layer=teacher_projection-settings=")
    assert set(card["results"]) == {"trained", "untrained", "pixels"}
    assert card["results"]["trained"]["knn"] is None
    assert LinearClassifier.load(path.parent / "classifier.npz")[1].layer == "teacher_projection"


def test_a_classifier_is_fitted_once_for_all_test_corruptions(tmp_path, monkeypatch, capsys):
    run = copied("simclr", tmp_path)
    fitted = []
    for name, fit in list(fits.FITS.items()):

        def counted(probed, name=name, fit=fit):
            fitted.append(name)
            return fit(probed)

        monkeypatch.setitem(fits.FITS, name, counted)
    quick = {"lbfgs.l2_grid": (1e-2,), "protocol": "none"}
    gamma = {"test_corruption.name": "gamma"}
    _, first = linear_probe(run, None, settings_with(**quick, **gamma), baselines=False)
    assert fitted == ["lbfgs", "lbfgs_few"]
    assert (first.parent / "classifier.npz").exists()
    shuffled = settings_with(**quick, **{"test_corruption.name": "global_shuffle"})
    card, path = linear_probe(run, None, shuffled, baselines=False)
    assert fitted == ["lbfgs", "lbfgs_few"]
    assert f"lbfgs: scoring {first.parent / 'classifier.npz'}" in capsys.readouterr().out
    assert card["classifiers"]["classifier.npz"] == str(first.parent / "classifier.npz")
    assert [p.name for p in path.parent.iterdir()] == ["card.json"]
    shuffled.refit = True
    again, _ = linear_probe(run, None, shuffled, baselines=False)
    assert fitted == ["lbfgs", "lbfgs_few"] * 2
    assert again["results"] == card["results"]

    # What a fit depends on is compared; a file that is none is passed over.
    del fitted[:]
    (run / "evaluations" / "broken").mkdir()
    (run / "evaluations" / "broken" / "classifier.npz").write_bytes(b"PK")
    other = {
        "labels_per_class": 9,  # of the one fit alone
        "test_corruption.exponent": 2.5,
        **gamma,
    }
    linear_probe(run, None, settings_with(**quick, **other), baselines=False)
    assert fitted == ["lbfgs_few"]
    del fitted[:]
    linear_probe(run, None, settings_with(**quick, **gamma, validation_fraction=0.2), False)
    assert fitted == ["lbfgs", "lbfgs_few"]


def test_nothing_is_chosen_on_the_test_split(run):
    """Scrambled test labels change no choice and no fit, only the accuracies."""
    settings = settings_with(protocol="none")
    honest, own = linear_probe(run, None, settings, baselines=False)
    data = read_config(run).data
    given = {split: sources.load(data, split) for split in ("train", "validation", "test")}
    labels = given["test"].targets["label"]
    labels[:] = np.random.default_rng(0).permutation(labels)
    blind, path = linear_probe(run, None, settings, baselines=False, sources=given)
    assert path == own  # trained on the same images
    for fit in ("lbfgs", "lbfgs_few"):
        mine, other = blind["results"]["trained"][fit], honest["results"]["trained"][fit]
        for key in ("l2", "validation_top1", "iterations", "gradient"):
            assert mine[key] == other[key]
    assert blind["results"]["trained"]["lbfgs"]["top1"] < 0.3
    assert honest["results"]["trained"]["lbfgs"]["top1"] > 0.5


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("no run", "is not a run directory"),
        ("no checkpoints", "holds no checkpoint"),
        ("wrong step", "--step=7 is not in"),
        ("other encoder", "holds another state"),
    ],
)
def test_refusals(run, tmp_path, damage, sentence):
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
        linear_probe(copy, step, settings_with(), baselines=False)


def colours(count: int, seed: int = 0):
    """Images of 12 x 12 pixels whose class is their brightest channel."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = (
        rng.integers(0, 128, (count, 12, 12, 3)) + 120 * np.eye(3, dtype=int)[labels][:, None, None]
    )
    return images.astype(np.uint8), labels


def write_folder(root: pathlib.Path, counts: dict[str, int]) -> pathlib.Path:
    for number, (split, count) in enumerate(counts.items()):
        images, labels = colours(count, seed=number)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / split / "rgb"[label]
            folder.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(image).save(folder / f"{i:03}.png")
    return root


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"refit": True, "distributed": True, "feature_batch_size": 7}, []),
        ({"seed": 1, "labels_per_class": 20}, ["labels_per_class=20", "seed=1"]),
        ({"knn_k": 5, "protocol": "dino"}, ["knn_k=5", "protocol=dino"]),
        ({"sgd.epochs": 0, "lbfgs.tolerance": 1e-6}, ["lbfgs.tolerance=1e-06", "sgd.epochs=0"]),
        ({"layer": "stage2", "target": "digit"}, ["layer=stage2", "digit"]),
        ({"test_corruption.name": "gamma", "seed": 1}, ["gamma", "seed=1"]),
    ],
)
def test_a_card_is_named_after_what_differs_from_the_defaults(changes, names):
    settings = probe.default_config()
    settings.update_from_flattened_dict(changes)
    assert settings_names(settings) == names


def test_many_settings_and_tuples_are_named_by_a_digest():
    found = set()
    for grid, epochs in itertools.product([(1e-3,), (1e-3, 1e-2)], [0, 1]):
        settings = probe.default_config()
        settings.update_from_flattened_dict({"lbfgs.l2_grid": grid, "sgd.epochs": epochs})
        (name,) = settings_names(settings)
        assert re.fullmatch("settings=[0-9a-f]{8}", name)
        found.add(name)
    assert len(found) == 4
    many = {"seed": 1, "knn_k": 5, "sgd.epochs": 1, "sgd.momentum": 0.5}
    settings = probe.default_config()
    settings.update_from_flattened_dict(many)
    (name,) = settings_names(settings)
    assert name.startswith("settings=")


def test_other_data_have_a_card_of_their_own(run):
    """The same digits, cut otherwise; named in card and file by content."""
    settings = settings_with(protocol="none", labels_per_class=2, **{"lbfgs.l2_grid": (1e-2,)})
    data = data_with(name="digits", train_examples=400)
    card, path = linear_probe(run, None, settings, baselines=False, data=data)
    assert not card["data"]["of_the_run"]
    named = f"linear_probe-6-data=digits-{card['data']['sha256'][:8]}-settings="
    assert path.parent.name.startswith(named)
    assert card["examples"]["train"] == 400
    fewer = data_with(name="digits", train_examples=399)
    assert linear_probe(run, None, settings, False, data=fewer)[1] != path
    # The run's own data under their name are its own.
    own = probe_run(run, None, settings, False, data=data_with(name="digits"))
    assert own.card["data"]["of_the_run"]
    assert own.folder.name.startswith("linear_probe-6-settings=")


def test_data_of_other_channels_are_refused(run, tmp_path):
    root = write_folder(tmp_path / "set", {"train": 9, "test": 3})
    data = data_with(name="folder", data_dir=str(root), validation_fraction=0.34)
    with pytest.raises(UserError, match=r"have 3 channels and the run was trained on images of 1"):
        linear_probe(run, None, settings_with(), False, data=data)
    data.image_size = 7
    with pytest.raises(UserError, match=r"set --data.image_size to at least 8"):
        linear_probe(run, None, settings_with(), False, data=data)
    images, labels = colours(9)
    given = {"train": array_source("mine", Split.TRAIN, images, {"label": labels}, num_classes=3)}
    with pytest.raises(UserError, match=r"give either sources or --data.name=folder"):
        linear_probe(run, None, settings_with(), False, given, data)
    with pytest.raises(UserError, match="have no 'validation' split"):
        linear_probe(run, None, settings_with(), False, given)


@pytest.mark.parametrize(
    ("asked", "place", "sentence"),
    [
        ({"data_dir": "x"}, {}, r"--data.data_dir=x is of another set .* or give --data_dir"),
        ({"test_fraction": 0.2}, {}, r"--data.test_fraction=0.2 is of another set"),
        ({"name": "folder"}, {"data_dir": "x"}, r"--data_dir is where the run's own data lie"),
        ({}, {"digits_dir": "x"}, r"--digits_dir=x is for runs on digit_on_image"),
    ],
)
def test_flags_of_two_sets_are_not_mixed(asked, place, sentence):
    with pytest.raises(UserError, match=sentence):
        with_data(config_for("simclr"), data_with(**asked), Place(**place))


def test_data_that_were_moved_are_found_by_one_flag(tmp_path):
    """What is there now is compared with what the run noted, wherever it lies."""
    root = write_folder(tmp_path / "before", {"train": 12, "test": 6})
    config = config_for("simclr")
    config.data.update({"name": "folder", "data_dir": str(root), "image_size": 12})
    config.data.validation_fraction = 0.25
    noted = Part(
        Splits(config.data, config.corruption, 8)["train"], make_test_view(config)
    ).identity
    root.rename(tmp_path / "after")
    with (
        pytest.raises(UserError, match=r"correct --data_dir"),
        flags_of({"data_dir": "--data_dir"}),
    ):
        open_splits(config, settings_with(), None)
    moved = with_data(config, data_with(), Place(data_dir=str(tmp_path / "after")))
    assert same_data(noted, open_splits(moved, settings_with(), None)["train"])
    (tmp_path / "after" / "train" / "r" / "000.png").rename(tmp_path / "after/train/g/900.png")
    assert not same_data(noted, open_splits(moved, settings_with(), None)["train"])
    # Another set is made as large as the run's images, and no smaller than its views.
    other = with_data(config, data_with(name="folder", data_dir=str(tmp_path / "after"))).data
    assert (other.image_size, other.validation_fraction) == (12, 0.1)
    config.data.image_size = 4
    assert with_data(config, data_with(name="folder")).data.image_size == 8


def test_what_a_probe_will_need_is_said_at_the_start_of_a_run(tmp_path):
    config = config_for("simclr")
    own = Splits(config.data, config.corruption, 8)
    assert check_probeable(config, own) == []
    root = write_folder(tmp_path / "set", {"train": 12})
    config.data.update({"name": "folder", "data_dir": str(root), "image_size": 12})
    config.data.validation_fraction = 0.0
    said = check_probeable(config, Splits(config.data, config.corruption, 8))
    assert len(said) == 3
    assert "validation split (or --probe.validation_fraction then)" in said[0]
    assert "test split (or --probe.test_fraction then)" in said[1]
    assert "will need 20 training images and has 12: it can be told --probe.knn_k=12" in said[2]
    # ... and each of those flags mends it.
    mended = settings_with(validation_fraction=0.25, test_fraction=0.25, knn_k=100)
    parts = open_splits(config, mended, None)
    assert {name: len(part.source) for name, part in parts.items()} == {
        "train": 7,
        "validation": 2,
        "test": 3,
    }
    assert protocol_of(config, mended, 7).k == 7
    assert protocol_of(config, settings_with(protocol="none"), 7) is None
    with pytest.raises(
        UserError, match=r"asks for 20 neighbours of 7 training images: .*--probe.knn_k=7"
    ):
        protocol_of(config, settings_with(), 7)
    with (
        pytest.raises(UserError, match=r"set --probe.test_fraction"),
        flags_of({"test_fraction": "--probe.test_fraction"}),
    ):
        open_splits(config, settings_with(validation_fraction=0.25), None)
    config.data.name = "images"
    (said,) = check_probeable(config, Splits(config.data, config.corruption, 8))
    assert "has no labels: a probe will need another set, by --data.name" in said


@pytest.mark.parametrize(
    ("text", "own", "told"),
    [
        ("set --config.data.fit=crop now", None, "set --config.data.fit=crop now"),
        ("set --config.data.classes or data.scale.", None, "set --data.classes or --data.scale."),
        ("in /x/data.name: --config.data.name", None, "in /x/data.name: --data.name"),
        ("set --config.data.data_dir", {"data_dir": "--data_dir"}, "set --data_dir"),
        ("set --config.data.name", {"data_dir": "--data_dir"}, "set --config.data.name"),
        (
            "set --config.data.unreadable.",
            {"data_dir": "--data_dir"},
            "set --data.unreadable (with --data.name and --data.data_dir, as of another set).",
        ),
    ],
)
def test_errors_name_the_flags_of_the_program(text, own, told):
    with pytest.raises(UserError) as caught, flags_of(own):
        raise UserError(text)
    assert str(caught.value) == told


@pytest.mark.parametrize("name", ["", "digits"])
def test_files_that_are_decoded_late_are_refused_by_the_same_flags(run, name, monkeypatch):
    """Those of a set that does not fit into memory."""

    def decode(*_):
        raise UserError("x is broken: give --config.data.unreadable=skip.")

    monkeypatch.setattr(jaxssl.linear_probe, "probe_network", decode)
    monkeypatch.setattr(jaxssl.evaluate, "make_card", decode)
    said = r"x is broken: give --data\.unreadable=skip" + (r"\.$" if name else r" \(with --data")
    with pytest.raises(UserError, match=said):
        probe_run(run, None, settings_with(), False, data=data_with(name=name))
    asked = Asked(Wanted(("knn",)), settings_with(), data_with(name=name), Place(), False)
    with pytest.raises(UserError, match=said):
        evaluate(run, None, asked)


def test_several_processes_that_were_not_told_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(UserError, match=r"2 processes were started .* add --probe.distributed"):
        check_launched(False, "--probe.distributed")


@pytest.mark.slow
def test_the_table_comes_before_a_directory_that_takes_no_card(tmp_path):
    run = copied("supervised", tmp_path)
    (run / "evaluations").touch()
    command = "-m jaxssl.linear_probe --probe.sgd.epochs=0 --probe.layer=logits --run"
    done = subprocess.run(
        [sys.executable, *command.split(), str(run), "--probe.lbfgs.l2_grid=(1e-2,)"],
        cwd=HOUSE,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert "Top-1 on 360 test images, step 6, layer logits" in done.stdout
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
