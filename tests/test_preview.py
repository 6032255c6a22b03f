"""The gallery shows what a run would see: its images, its draws, its boxes, to the pixel."""

import dataclasses
import io
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict
from support import unchecked

from configs.common import view_group
from configs.quickstart import get_config
from jaxssl.analysis.gallery import Outline, Panel, draw, to_png
from jaxssl.augment import bits
from jaxssl.augment.augmentation import Augmentation
from jaxssl.data.examples import array_source
from jaxssl.data.pipeline import training_rows
from jaxssl.errors import UserError
from jaxssl.plan import policy_of, resolve, splits_of
from jaxssl.preview import POLICIES, _main, _write, describe, preview
from jaxssl.randomness import Split
from jaxssl.training.state import traced_scalars

N, SIDE = 40, 8
TARGETS = {
    "label": np.arange(N) % 3,
    "boxes": np.tile(np.array([[1, 2, 6, 5], [0, 0, 0, 0]], np.float32), (N, 1, 1)),
    "box_labels": np.tile(np.array([1, -1]), (N, 1)),
    "mask": np.tile(np.repeat(np.array([3, 255], np.uint8), SIDE // 2), (N, SIDE, 1)),
}


def source_of(channels: int, targets: dict | None = None):
    images = np.random.default_rng(channels).integers(0, 256, (N, SIDE, SIDE, channels), np.uint8)
    known = {"num_classes": 3, "class_names": ("ant", "bee", "cat")} if targets else {}
    return array_source("noise", Split.TRAIN, images, targets or {}, **known)


@pytest.fixture
def config() -> ConfigDict:
    config = get_config("canvas=8,size=8").copy_and_resolve_references()
    config.unlock()
    config.views.global_crops.flip_p = 0.5
    return config


def trained_on(config, source, images, epoch=0):
    """The first images of an epoch with their views, as pretraining gets them."""
    config = resolve(config)
    seen = splits_of(config, {"train": source})["pretrain"]
    rows, epochs = training_rows(epoch, N, N, config.data_seed)
    batch = seen.gather(rows[:images], epochs[:images])
    return batch, jax.jit(policy_of(config))(batch, traced_scalars(config))


def columns(figure, images):
    """The axes of each column of a gallery, without the strips of bits."""
    panels = [axes for axes in figure.axes if axes.get_xlim()[0] == 0]
    return np.array(panels).reshape(images, -1).T


def shown(axes):
    return np.asarray(axes.images[0].get_array())


def words(figure):
    return [text.get_text() for text in figure.texts]


def test_shows_what_training_sees(config):
    source = source_of(1, TARGETS)
    figure = preview(config, images=6, epoch=2, sources={"train": source})
    batch, views = trained_on(config, source, 6, epoch=2)
    original, crops, *shown_views = columns(figure, 6)
    assert len(shown_views) == 2
    for i in range(6):
        assert np.array_equal(shown(original[i]), batch["image"][i, ..., 0] / np.float32(255))
        assert np.array_equal(shown(crops[i]), shown(original[i]))
        for view, column in enumerate(shown_views):
            assert np.array_equal(shown(column[i]), views.images[view][i, ..., 0])
            drawn = crops[i].patches[view].get_bbox()
            found = (drawn.y0, drawn.x0, drawn.y1, drawn.x1)
            np.testing.assert_allclose(found, views.boxes[view][i], atol=1e-5)
            colors = crops[i].patches[view].get_edgecolor(), column[i].spines["top"].get_edgecolor()
            assert colors[0] == colors[1]
        (target,) = original[i].patches
        assert target.get_bbox().bounds == (2, 1, 3, 5)
        overlay = np.asarray(original[i].images[1].get_array())
        assert np.all(overlay[:, :4, 3] > 0.5)
        assert np.all(overlay[:, 4:, 3] == 0)  # 255 is no class
        assert len(crops[i].images) == 1
    said = words(figure)
    assert said.count("flipped") == sum(int(flags.sum()) for flags in views.flipped)
    assert [word for word in said if word.isdigit()] == [str(k) for k in batch["index"]]
    names = [f"label: {('ant', 'bee', 'cat')[k]}" for k in batch["targets"]["label"]]
    assert [word for word in said if word.startswith("label")] == names
    assert said.count("boxes: 1") == 6  # the names are the label's


def test_same_command_same_bytes(config, tmp_path):
    sources = {"train": source_of(3, TARGETS)}
    first, second = (to_png(preview(config, images=2, sources=sources)) for _ in range(2))
    assert first == second
    config.data_seed = 1
    assert to_png(preview(config, images=2, sources=sources)) != first
    assert PIL.Image.open(io.BytesIO(first)).info.keys() <= {"dpi"}


def test_overlap_is_written(config):
    config.views.policy = "overlap"
    config.hyper.overlap = 0.25
    said = words(preview(config, images=4, sources={"train": source_of(1)}))
    assert said.count("overlap 0.25") == 4
    assert any("overlap (overlap 0.25)" in word for word in said)


@pytest.mark.parametrize("order", ["aug_corrupt", "no_aug"])
def test_corrupted_column(config, order):
    config.corruption.name = "global_shuffle"
    config.corruption.patches = 2
    config.corruption.order = order
    source = source_of(3)
    figure = preview(config, images=2, sources={"train": source})
    batch, views = trained_on(config, source, 2)
    original, *rest = columns(figure, 2)
    assert len(rest) == (3 if order == "aug_corrupt" else 4)
    unchanged = source.images[batch["index"]] / np.float32(255)
    for i in range(2):
        assert np.array_equal(shown(original[i]), unchanged[i])
        assert np.array_equal(shown(rest[0][i]), batch["image"][i] / np.float32(255))
        assert np.array_equal(shown(rest[-1][i]), views.images[1][i])
    assert np.array_equal(batch["image"] / np.float32(255), unchanged) == (order == "aug_corrupt")


def test_normalisation_is_undone_and_bits_are_apart(config):
    source = source_of(3)
    plain = columns(preview(config, images=2, sources={"train": source}), 2)
    config.normalize.mean = (0.1, 0.5, 0.4)
    config.normalize.std = (0.2, 0.3, 0.4)
    config.randbit.num_bits = 5
    figure = preview(config, images=2, sources={"train": source})
    for before, after in zip(plain.flat, columns(figure, 2).flat, strict=True):
        np.testing.assert_allclose(shown(before), shown(after), atol=1e-6)
    batch, _ = trained_on(config, source, 2)
    integers = bits.image_integers(
        *(jnp.asarray(batch[name]) for name in ("split", "index", "epoch")),
        seed=config.randbit.seed,
        num_bits=5,
        fresh_per_epoch=False,
    )
    strips = [axes for axes in figure.axes if axes.get_xlim()[0] != 0]
    assert len(strips) == 4
    for strip, integer in zip(strips, np.repeat(integers, 2), strict=True):
        assert np.array_equal(shown(strip)[0], [int(integer) >> b & 1 for b in range(5)])
    written = [int(word.split("integer ")[1]) for word in words(figure) if "integer" in word]
    assert written == np.repeat(integers, 2).tolist()


def test_views_of_several_sizes_and_many_channels(config):
    large = Augmentation(size=8, crop_scale=(0.5, 1.0))
    small = dataclasses.replace(large, size=4)
    config.views = view_group((large, large, small, small, small))
    figure = preview(config, images=2, sources={"train": source_of(5)})
    by_column = columns(figure, 2)
    assert len(by_column) == 7
    width = [column[0].get_position().width for column in by_column]
    np.testing.assert_allclose(np.array(width) / width[0], [1, 1, 1, 1, 0.5, 0.5, 0.5])
    assert all(len(axes.images) == 5 for axes in by_column.flat)
    assert len(by_column[1][0].patches) == 5 * 5


def test_sweep_of_corruption(config):
    source = source_of(3)
    figure = preview(config, images=2, sweep="corruption", sources={"train": source})
    settings = [("none", {})]
    settings += [("global_shuffle", {"patches": n}) for n in (4, 8)]
    settings += [("local_shuffle", {"patches": n}) for n in (4, 8)]
    settings += [("gamma", {"exponent": x}) for x in (0.2, 2.5)]
    settings += [(name, {}) for name in ("shot_noise", "defocus_blur", "jpeg")]
    by_column = columns(figure, 2)
    assert len(by_column) == len(settings)
    for column, (name, values) in zip(by_column, settings, strict=True):
        config.corruption.update({"name": name, **values})
        rows, _ = training_rows(0, N, N, 0)
        whole = splits_of(config, {"train": source})["pretrain"].gather(rows[:2])
        for i in range(2):
            assert np.array_equal(shown(column[i]), whole["image"][i] / np.float32(255)), name
    config.corruption.constants = "imagenet"
    figure = preview(config, images=1, sweep="corruption", sources={"train": source})
    assert "global 4" in words(figure)
    assert "noise, pretrain, epoch 0 · corruptions, constants of imagenet" in words(figure)
    assert "global 16" not in words(figure)  # does not divide 8 pixels


@pytest.mark.slow
def test_sweep_of_policies(config):
    figure = preview(config, images=1, sweep="policy", sources={"train": source_of(1)})
    crops, *views = (row for row in np.array(figure.axes).reshape(3, -1))
    assert len(crops) == len(POLICIES)
    assert all(len(axes.patches) == 2 for axes in crops)
    said = words(figure)
    for head in ("overlap 0.1", "overlap 0.9", "patch 0.3", "exclusive 0.1", "cutout 0.3"):
        assert head in said
    # The heading and the measured share of each overlap agree.
    assert [said.count(f"overlap {share}") for share in ("0.10", "0.50", "0.90")] == [1, 1, 1]
    assert "overlap 0.00" in said
    cutout = [head for head, *_ in POLICIES].index("cutout")
    full = crops[cutout].patches[0].get_bbox()
    assert full.bounds == (0, 0, SIDE, SIDE)
    assert np.sum(shown(views[0][cutout]) < 1e-3) >= 9  # the black square, 19 pixels large


def test_box_is_drawn_around_its_pixels():
    box = (4.0, 8.0, 12.0, 18.0)
    panel = Panel(np.zeros((20, 20, 3), np.float32), outlines=(Outline(box, "#ff0000"),))
    figure = draw([[panel]], title="t", column_names=["c"], row_names=["r"])
    picture = np.asarray(PIL.Image.open(io.BytesIO(to_png(figure))).convert("RGB"))
    height, width = picture.shape[:2]
    place = figure.axes[0].get_position()
    unit = place.width * width / 20
    red = np.argwhere((picture[..., 0] > 200) & (picture[..., 1] < 60))
    found = [red[:, 0].min(), red[:, 1].min(), red[:, 0].max() + 1, red[:, 1].max() + 1]
    corner = np.array([(1 - place.y1) * height, place.x0 * width] * 2)
    line = 1.4 * 200 / 72 / 2
    outer = corner + np.array(box) * unit + line * np.array([-1, -1, 1, 1])
    assert unit > 15
    np.testing.assert_allclose(found, outer, atol=2)  # lines snap to the picture's pixels


def test_targets_in_words():
    names = ("zero", "one", "two")
    targets = {
        "presence": np.array([1, 0, 1]),
        "slots": np.array([2, 0, 2]),
        "digit": np.int32(7),
        "box_labels": np.array([1, 2, 1, -1]),
    }
    lines = "present: zero, two\nslots: 2 0 2\ndigit: 7\nboxes: one ×2, two"
    assert describe(targets, names) == lines
    assert describe({"label": np.int32(2)}, None) == "label: 2"
    both = {"label": np.int32(2), "box_labels": np.array([1])}
    assert describe(both, names) == "label: two\nboxes: 1"
    assert describe({"box_labels": np.array([-1])}, names) == "boxes: none"
    assert describe({}, names) == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"images": 0}, "--images=0 .* must be 1 to 40"),
        ({"images": 41}, "--images=41 .* must be 1 to 40"),
        ({"sweep": "colour"}, "--sweep=colour is unknown: choose one of corruption, policy"),
        ({"epoch": -1}, "epoch=-1"),
        ({"split": "test"}, "'test'"),
    ],
)
def test_refusals(config, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        preview(config, sources={"train": source_of(1)}, **arguments)


def test_program_writes(tmp_path, capsys):
    out = tmp_path / "gallery.png"
    config = get_config("canvas=8,size=8").copy_and_resolve_references()
    values = {"config": config, "images": 2, "split": "pretrain", "epoch": 0, "sweep": None}
    unchecked(_main)(types.SimpleNamespace(out=str(out), **values))
    said = capsys.readouterr().out.splitlines()
    assert said == [f"drawing what simclr would see into {out}", f"gallery: {out}"]
    with PIL.Image.open(out) as picture:
        assert picture.width > 800
    (tmp_path / "folder.png").mkdir()
    for name, sentence in (
        ("none/gallery.png", "lies in no folder: make"),
        ("gallery.pdf", "is no PNG"),
        ("folder.png", "is no PNG"),
    ):
        with pytest.raises(UserError, match=sentence):
            unchecked(_main)(types.SimpleNamespace(out=str(tmp_path / name), **values))
    with pytest.raises(UserError, match="cannot be written"):
        _write(tmp_path / "none" / "gallery.png", b"")


def test_a_split_that_is_none_is_refused(config):
    with pytest.raises(UserError, match="--split=tset is unknown: choose one of pretrain, test"):
        preview(config, split="tset", sources={"train": source_of(1)})


def test_program_refuses_in_one_sentence(tmp_path):
    command = [sys.executable, "-m", "jaxssl.preview", "--config", "configs/quickstart.py"]
    command += ["--out", str(tmp_path / "gallery.png"), "--sweep=colour"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == ("error: --sweep=colour is unknown: choose one of corruption, policy.\n")
