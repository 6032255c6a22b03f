"""Vectors of any images: from the command line, and in three lines of Python."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from old_run import FORMAT1, copied
from tiny import config_for

import jaxssl
from jaxssl.data.examples import array_source
from jaxssl.data.sources import load
from jaxssl.embed import default_config, embed, embed_data_settings
from jaxssl.errors import UserError
from jaxssl.pretrain import pretrain
from jaxssl.randomness import Split

OLD = FORMAT1 / "simclr"


def settings_with(**changes):
    chosen = default_config()
    chosen.update(changes)
    return chosen


def data_with(**changes):
    chosen = embed_data_settings()
    chosen.update(changes)
    return chosen


def digits() -> np.ndarray:
    """The first 40 test digits, uint8 [40, 8, 8, 1]."""
    data = config_for("simclr").data
    return load(data, "test").images[:40]


def test_three_lines_give_the_features_of_a_run():
    encoder = jaxssl.load(OLD)
    found = encoder.features(digits())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.load(FORMAT1 / "simclr_features.npy"), atol=1e-6)
    expected = json.loads((FORMAT1 / "expected.json").read_text())["simclr"]
    assert (encoder.step, encoder.digest) == (expected["step"], expected["encoder_sha256"])
    # In batches that do not divide the set, and of one size each compiled once.
    np.testing.assert_allclose(encoder.features(digits(), batch_size=16), found, atol=1e-5)
    assert encoder._embed is encoder._embed


def test_images_are_brought_to_the_runs_size():
    encoder = jaxssl.load(str(OLD), 6, "projection")
    large = np.repeat(np.repeat(digits()[:8], 3, axis=1), 3, axis=2)
    wide = np.pad(large, ((0, 0), (0, 0), (5, 5), (0, 0)))
    found = encoder.features(wide)
    assert found.shape == (8, encoder.features(digits()[:8]).shape[1])
    np.testing.assert_allclose(found, encoder.features(large), atol=1e-5)  # the central square


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (
            np.zeros((2, 8, 8, 3), np.uint8),
            r"uint8 \[2, 8, 8, 3\] and must be uint8 \[N, H, W, 1\]",
        ),
        (np.zeros((2, 8, 8, 1)), r"float64 \[2, 8, 8, 1\] and must be uint8"),
        (np.zeros((8, 8, 1), np.uint8), r"must be uint8 \[N, H, W, 1\]"),
        (
            [np.zeros((8, 8, 1)), np.zeros((7, 8, 1))],
            r"images differ in size and must be one uint8",
        ),
        (
            np.zeros((0, 8, 8, 1), np.uint8),
            r"images have shape \[0, 8, 8, 1\] .*: give at least one",
        ),
        (np.zeros((2, 0, 8, 1), np.uint8), r"images have shape \[2, 0, 8, 1\] .* least one pixel"),
    ],
)
def test_images_of_another_kind_are_refused(images, said):
    encoder = jaxssl.load(OLD)
    with pytest.raises(UserError, match=said):
        type(encoder).features.__wrapped__(encoder, images)


def test_no_batch_is_refused():
    with pytest.raises(UserError, match=r"^batch_size=0 must be at least 1"):
        jaxssl.load(OLD).features(digits(), batch_size=0)


def test_a_layer_that_there_is_not_is_refused():
    with pytest.raises(UserError, match=r"^layer=teacher is unknown: choose one of head1, pooled"):
        jaxssl.load(OLD, layer="teacher")


def test_the_package_imports_nothing_heavy():
    code = "import sys, jaxssl; print(jaxssl.load.__name__, 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["load", "False"]


@pytest.fixture(scope="module")
def colour_run(tmp_path_factory) -> pathlib.Path:
    """A step on 3-channel images that came from Python."""
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
    config = config_for("simclr", epochs=1.0)
    with config.unlocked():
        config.evals.knn.every = 0.0
        config.run.num_devices = 1
    workdir = tmp_path_factory.mktemp("colours") / "run"
    pretrain(config, workdir, {"train": array_source("mine", Split.TRAIN, images, {})})
    return workdir


def test_a_folder_is_embedded_with_the_names_of_its_files(colour_run, tmp_path, capsys):
    rng = np.random.default_rng(1)
    (tmp_path / "b").mkdir()
    pictures = {}
    for name in ("b/z.png", "a.png", "b/c.png"):
        pictures[name] = rng.integers(0, 256, (8, 8, 3), np.uint8)
        PIL.Image.fromarray(pictures[name]).save(tmp_path / name)
    data = data_with(name="images", data_dir=str(tmp_path))
    made = embed(colour_run, None, settings_with(layer="projection"), data)
    assert set(made["files"]) == set(pictures)
    np.testing.assert_array_equal(made["index"], np.arange(3))
    assert "labels" not in made
    assert (made["layer"], made["step"]) == ("projection", 1)
    encoder = jaxssl.load(colour_run, layer="projection")
    assert made["encoder_sha256"] == encoder.digest
    for name, vector in zip(made["files"], made["features"], strict=True):
        np.testing.assert_allclose(vector, encoder.features(pictures[name][None])[0], atol=1e-5)
    (tmp_path / "b" / "c.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"it is empty\): .* out with --data\.unreadable=skip\.$"):
        embed(colour_run, None, settings_with(), data)
    with pytest.raises(UserError, match=r"came from Python: name a set by --data.name"):
        embed(colour_run, None, settings_with(), data_with())


def test_a_split_of_the_runs_own_data_comes_with_its_labels():
    made = embed(OLD, None, settings_with(split="test"), data_with())
    assert made["features"].shape[0] == len(made["labels"]) == 360
    assert made["class_names"] == tuple(str(digit) for digit in range(10))
    found = made["features"][:40]
    np.testing.assert_allclose(found, np.load(FORMAT1 / "simclr_features.npy"), atol=1e-6)
    assert json.loads(made["data"])["name"] == "digits"


@pytest.mark.parametrize(
    ("change", "data", "said"),
    [
        ({"split": "tset"}, {}, "--embed.split=tset is unknown: choose one of pretrain, test"),
        ({"layer": "top"}, {}, r"--embed.layer=top is unknown: choose one of head1"),
        ({"batch_size": 0}, {}, r"--embed.batch_size=0 must be at least 1"),
        ({}, {"name": "folder"}, r"give it with --data.data_dir"),
        ({}, {"train_examples": 5}, r"--data.train_examples=5 is of another set"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change, data, said):
    with pytest.raises(UserError, match=said):
        embed(OLD, None, settings_with(**change), data_with(**data))


@pytest.mark.slow
def test_the_program_writes_a_file_that_numpy_reads(tmp_path):
    run = copied("simclr", tmp_path)
    arguments = ["--run", str(run), "--embed.split=test", "--out"]
    command = [sys.executable, "-m", "jaxssl.embed", *arguments]
    house = pathlib.Path(__file__).parent.parent
    how = {"capture_output": True, "text": True, "cwd": house, "timeout": 300}
    done = subprocess.run([*command, str(tmp_path / "new" / "x.npz")], **how)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "new" / "x.npz") as file:
        assert file["features"].shape == (360, 16)
        assert file["class_names"].tolist() == [str(digit) for digit in range(10)]
        assert (str(file["layer"]), int(file["step"])) == ("pooled", 6)
    done = subprocess.run([*command, str(tmp_path / "x.csv")], **how)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: --out={tmp_path / 'x.csv'} must be a file whose name ends in .npz.\n"
    )
