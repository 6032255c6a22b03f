"""The program as a user meets it: what it refuses, resumes, and leaves behind."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest
from tiny import six_steps as short

from jaxssl import distributed
from jaxssl.compilation import known_cpu_options
from jaxssl.data.canonical import Canonical
from jaxssl.data.examples import array_source
from jaxssl.data.splits import check_sources
from jaxssl.errors import UserError
from jaxssl.evaluation import evals, probe
from jaxssl.evaluation.probe_data import Part, check_target
from jaxssl.linear_probe import linear_probe
from jaxssl.plan import check_letterbox, differing, make_plan, resolve
from jaxssl.pretrain import pretrain
from jaxssl.randomness import Split
from jaxssl.reporting import read_metrics
from jaxssl.run_directory import claim, read_config, read_info

HOUSE = pathlib.Path(__file__).parent.parent
DATA = {"name": "some", "examples": 3}
SPEC = {"num_examples": 3}


def test_an_evaluation_is_tried_before_training_also_where_xla_is_given_options(monkeypatch):
    monkeypatch.setattr(evals, "compiler_options", lambda mesh: known_cpu_options())
    config = short(**{"evals.knn.every": 0.2, "evals.knn.protocol": "dino"})
    assert known_cpu_options()
    assert list(make_plan(resolve(config), None).evals) == ["knn"]


def test_run_directory_and_finished_run(tmp_path, capsys):
    workdir = tmp_path / "run"
    config = short(**{"evals.knn.every": 0.2, "evals.knn.protocol": "dino"})
    state = pretrain(config, workdir)
    assert int(state.step) == 6
    content = json.loads((workdir / "config.json").read_text())
    assert content["config"]["data_seed"] == 0
    assert {"commit", "versions", "device_kind"} <= content.keys()
    rows = read_metrics(workdir)
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == [2, 4, 6]
    watched = [row for row in rows if "knn" in row]
    assert [row["step"] for row in watched] == [5, 6]
    assert 0.3 < watched[-1]["knn"] <= 1
    assert 0 < watched[-1]["knn_feature_std"] <= 1
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["3", "6"]
    assert list((workdir / "tensorboard").iterdir())
    capsys.readouterr()
    again = pretrain(config, workdir)
    assert int(again.step) == 6
    assert "is finished: step 6 of 6" in capsys.readouterr().out
    assert read_metrics(workdir) == rows


def test_resumes_where_it_stopped_and_says_so(tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain(short(), whole)
    held_out = "data: train 1,294 images, 10 classes; validation 143 (cut from train); test 360\n"
    assert held_out in capsys.readouterr().out  # though nothing is evaluated
    pretrain(short(**{"run.stop_step": 4}), parts)
    capsys.readouterr()
    pretrain(short(), parts)
    assert f"resuming {parts} from step 4 of 6" in capsys.readouterr().out
    ends = [[row["loss"] for row in read_metrics(d) if row["step"] == 6] for d in (whole, parts)]
    assert ends[0] == ends[1]


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, capsys):
    workdir = tmp_path / "run"
    pretrain(short(**{"run.stop_step": 4}), workdir)
    rows = read_metrics(workdir)
    largest = max((workdir / "checkpoints" / "4").rglob("*"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-7])
    capsys.readouterr()
    pretrain(short(), workdir)
    assert f"resuming {workdir} from step 3 of 6" in capsys.readouterr().out
    again = read_metrics(workdir)
    losses = [[row["loss"] for row in r if row["step"] == 4] for r in (rows, again)]
    assert losses[0] == losses[1]
    steps = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    assert steps == ["3", "4.damaged", "6"]


def test_a_run_without_its_checkpoints_says_that_it_starts_again(tmp_path, capsys, monkeypatch):
    """Somebody may have deleted them to save room."""
    monkeypatch.setattr("jaxssl.pretrain._run", lambda *given: given[3])
    pretrain(short(), tmp_path / "run")
    assert "starting again" not in capsys.readouterr().out
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
    pretrain(short(), tmp_path / "run")
    said = "has no checkpoint: starting again from step 0, without the 2 rows of metrics.jsonl up "
    assert f"{said}to step 4\n" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["evals.knn.every", "evals.linear.every", "online.learning_rate"])
def test_what_tells_classes_apart_is_refused_of_one_class(flag, tmp_path):
    """Its accuracy would be 100 %, and only that of geometry says something."""
    images = np.zeros((64, 8, 8, 1), np.uint8)
    sources = {
        name: array_source("mine", split, images, {"label": np.zeros(64, np.int64)}, num_classes=1)
        for name, split in (("train", Split.TRAIN), ("validation", Split.VALIDATION))
    }
    config = short(**{flag: 0.1})
    with pytest.raises(UserError, match=rf"has one.*: give --config\.{re.escape(flag)}=0\.$"):
        pretrain(config, tmp_path / "run", sources)
    part = Part(sources["train"], lambda batch: batch["image"])
    with pytest.raises(UserError, match="mine has one class, so that every probe is right"):
        check_target(part, "label")


def test_refuses_another_config_but_for_the_run_group(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / ".config.json.tmp").write_text('{"comm')  # killed while it was written
    config = resolve(short())
    assert claim(workdir, config, DATA, SPEC) == []
    with config.unlocked():
        config.run.log_every_steps = 1
        config.data.data_dir = "/elsewhere"
    assert claim(workdir, config, DATA, SPEC) == []
    with config.unlocked():
        config.hyper.temperature = 0.3
        config.batch_size = 32
    with pytest.raises(UserError, match=r"batch_size: 64 -> 32; hyper.temperature: 0.5 -> 0.3"):
        claim(workdir, config, DATA, SPEC)


def test_refuses_other_data(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 8, 8, 1), np.uint8)
    labels = {"label": np.arange(200) % 10}
    own = {"train": array_source("mine", Split.TRAIN, images, labels, num_classes=10)}
    config = short(**{"run.stop_step": 3, "evals.knn.every": 0.0})
    pretrain(config, tmp_path / "run", own)
    other = {"train": array_source("mine", Split.TRAIN, images[::-1], labels, num_classes=10)}
    for sources, difference in (
        (
            None,
            r"\(200 images before any cut then, 1,437 images .* now; .* from Python then",
        ),
        ({"train": own["train"].take(np.arange(150))}, r"\(200 images then, 150 images now\): cho"),
        (other, r"\(the images' content is not the same\): choose another --workdir"),
    ):
        with pytest.raises(UserError, match=f"holds a run on other data {difference}"):
            pretrain(config, tmp_path / "run", sources)
    with pytest.raises(UserError, match="data that came from Python"):
        linear_probe(tmp_path / "run", None, probe.default_config(), baselines=False)


def test_config_json_remembers_what_began_the_run_and_what_went_on(tmp_path):
    workdir = tmp_path / "run"
    pretrain(short(**{"run.stop_step": 3}), workdir)
    path = workdir / "config.json"
    path.write_text(path.read_text().replace('"platform": "cpu"', '"platform": "abacus"'))
    pretrain(short(**{"run.stop_step": 3}), workdir)  # finished
    assert read_info(workdir)["platform"] == "abacus"
    assert "resumed" not in read_info(workdir)
    pretrain(short(), workdir)
    info = read_info(workdir)
    assert info["platform"] == "abacus"
    assert [(entry["step"], entry["platform"]) for entry in info["resumed"]] == [(3, "cpu")]
    assert read_config(workdir).run.stop_step == 6


def test_refuses_a_foreign_directory(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty and no run of jaxssl"):
        pretrain(short(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hyper.temperature": 0.0}, r"--config.hyper.temperature=0.0 must be from 1e-06 to 1e"),
        ({"hyper.temperature": 1e-40}, r"--config.hyper.temperature=1e-40 must be"),
        ({"hyper.temperature": 1e39}, r"--config.hyper.temperature=1e\+39 must be"),
        ({"hyper.weight_decay": 1e39}, r"--config.hyper.weight_decay=1e\+39 must be"),
        ({"optimizer.momentum": float("nan")}, r"--config.optimizer.momentum=nan must be from 0"),
        ({"optimizer.groups": (("(", 1.0, True, 1.0, True),)}, r"is no regular expression"),
        (
            {"optimizer.groups": ((".*", "a", True, 1.0, True),)},
            r"numbers of a row of --config.optimizer",
        ),
        ({"optimizer.groups": (0.5,)}, r"a row of --config.optimizer.groups is 0.5: give \(patt"),
        ({"normalize.std": (float("nan"),)}, r"--config.normalize.std=\(nan,\) must be a tuple"),
        ({"normalize.mean": ("a",)}, r"--config.normalize.mean=\('a',\) must be a tuple"),
        (
            {"views.global_crops.brightness": -1.0},
            r"brightness=-1.0 must be at least 0",
        ),
        (
            {"views.global_crops.blur_sigma": (2.0, 0.1)},
            r"sigma=\(2.0, 0.1\) must be two numb",
        ),
        (
            {"views.global_crops.crop_ratio": (1.0, float("inf"))},
            r"ratio=.* must be a tuple of 2",
        ),
        ({"views.global_crops.count": 3}, r"simclr takes 2 views and the config makes 3"),
        ({"encoder.bn_momentum": 1.0}, r"--config.encoder.bn_momentum=1.0 must be from 0"),
        ({"batch_size": 1}, r"--config.batch_size=1 must be at least 2"),
        ({"evals.knn.split": "tset"}, r"--config.evals.knn.split=tset is unknown: choose one of t"),
        ({"epochs": 1e12}, r"--config.epochs=1e\+12 of 1,294 images are 2.02e\+13 steps"),
        ({"hyper.learning_rate.value": float("nan")}, r"hyper.learning_rate.value=nan must be"),
        ({"hyper.learning_rate.end": -1.0}, r"hyper.learning_rate.end=-1.0 must be"),
        ({"batch_size": 0}, r"--config.batch_size=0 must be at least 2"),
        (
            {"batch_size": 1288, "epochs": 0.5},
            r"--config.batch_size=1288 leaves no step in --config.epochs=0.5 of 1",
        ),
        (
            {"batch_size": 100_000},
            r"--config.batch_size=100000 is more than digits has, 1,29",
        ),
        ({"batch_size": 63, "run.num_devices": 2}, r"batch_size=63 does not divide over 2 dev"),
        ({"run.num_devices": 99}, r"--config.run.num_devices=99 of 8 that are visible"),
        ({"data_seed": 2**32}, r"data_seed=4294967296 is out of range"),
        (
            {"method.name": "simclr2"},
            r"--config.method.name=simclr2 is unknown: .*moco_v3, simclr, sim",
        ),
        ({"views.policy": "zoom"}, r"--config.views.policy=zoom is unknown"),
        ({"data.name": "no_such_set"}, r"no_such_set"),
        (
            {"evals.knn.layer": "logits"},
            r"--config.evals.knn.layer=logits is unknown.*head1, pooled, proj",
        ),
        (
            {"hyper.learning_rate.warmup_epochs": 9.0},
            r"rate.warmup_epochs=9.0 must be at least 0 and",
        ),
        ({"optimizer.name": "sgdd"}, r"optimizer.name"),
        ({"encoder.name": "resnet99"}, r"encoder.name"),
        ({"encoder.name": "resnet18"}, r"config.encoder has no 'stem', which its name='resnet18'"),
        ({"optimizer.name": "adamw"}, r"config.optimizer has no 'b1', which is read"),
        (
            {"method.name": "moco_v2"},
            r"config.hyper has no ema, which --config.method.name=moco_v2",
        ),
        (
            {"encoder.width": 10**12},
            r"the optimizer keeps of them take [\d,]+ GB and a cpu has [\d,]+ GB: make the encoder",
        ),
        ({"encoder.width": 0}, r"--config.encoder.width=0 must be at least 1"),
        ({"encoder.bn_groups": 3}, r"64 images cannot make 3 equal BatchNorm groups"),
        (
            {"encoder.image_size": 20},
            r"built for images \[B, 20, 20, 1\], got .*: give --config\.encoder\.image_size=8, or",
        ),
        (
            {"views.global_crops.size": 10},
            r"built for images \[B, 8, 8, 1\], got .* \(--config\.views\.global_crops\.size=8\)",
        ),
        ({"method.head.num_layers": 0}, r"--config.method.head.num_layers=0 must be at least 1"),
        ({"epochs": float("inf")}, r"--config.epochs=inf must be"),
        ({"evals.knn.protocol": "imagenet"}, r"--config.evals.knn.protocol=imagenet is unknown"),
        (
            {"data.train_examples": 150, "evals.knn.protocol": "moco"},
            r"protocol=moco asks for 200 neighbours of 150 training .*knn.protocol=dino",
        ),
        ({"run.keep_last": 0}, r"--config.run.keep_last=0 must be at least 1"),
        ({"run.prefetch": -1}, r"--config.run.prefetch=-1 must be at least 0"),
        ({"run.stop_step": -1}, r"--config.run.stop_step=-1 must be at least 0"),
        ({"seed": -1}, r"--config.seed=-1 is out of range"),
    ],
)
def test_bad_values_are_refused_in_one_sentence_and_leave_nothing(tmp_path, change, sentence):
    workdir = tmp_path / "run"
    if {"evals.knn.layer", "evals.knn.protocol", "evals.knn.split", "data.train_examples"} & set(
        change
    ):
        change = change | {"evals.knn.every": 1.0}
    with pytest.raises(UserError, match=sentence) as caught:
        pretrain(short(**change), workdir)
    assert "\n" not in str(caught.value)
    assert not workdir.exists()


def test_processes_that_were_told_otherwise_are_refused(tmp_path, monkeypatch):
    """Each would train on, with a temperature or with data of its own."""
    asked = []

    def check_equal(what, value, differences=None):
        asked.append((what, value))

    monkeypatch.setattr(distributed, "check_equal", check_equal)
    images = np.zeros((200, 8, 8, 1), np.uint8)
    labels = {"label": np.arange(200) % 10}
    for number, (temperature, level) in enumerate([(0.5, 0), (0.9, 0), (0.5, 1), (0.5, 0)]):
        own = {"train": array_source("mine", Split.TRAIN, images + level, labels, num_classes=10)}
        config = short(**{"run.stop_step": 1, "hyper.temperature": temperature})
        pretrain(config, tmp_path / str(number), own)
    first, warm, other, again = (value for what, value in asked if what == "config and data")
    assert first == again
    assert differing(first, warm) == ["hyper.temperature: 0.5 -> 0.9"]
    assert differing(first, other) == ["the images' content is not the same"]


def test_squares_of_a_share_of_the_picture_are_refused_where_pictures_may_be_long():
    images = np.zeros((9, 8, 8, 1), np.uint8)
    whole = array_source("mine", Split.TRAIN, images, {})
    long = dataclasses.replace(
        whole,
        canonical=Canonical(
            size=(8, 8), fit="letterbox", background=(0, 0, 0), scale=(), margin=0.0
        ),
    )
    check_letterbox("overlap", long)
    check_letterbox("patch", whole)
    for policy in ("patch", "cutout", "cutout_blur"):
        with pytest.raises(UserError, match=rf"policy={policy} cuts a square .*fit=crop"):
            check_letterbox(policy, long)


def test_a_nan_loss_ends_the_run_and_keeps_the_checkpoints(tmp_path):
    workdir = tmp_path / "run"
    pretrain(short(**{"run.stop_step": 3}), workdir)
    blown = short(**{"hyper.learning_rate.value": 1e30})
    # The same directory with a rate that must fail, as if the fault came later.
    (workdir / "config.json").write_text(
        (workdir / "config.json").read_text().replace('"value": 0.12', '"value": 1e+30')
    )
    with pytest.raises(UserError, match=r"at step \d+|not finite"):
        pretrain(blown, workdir)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["3"]


def test_same_seed_same_run(tmp_path):
    losses = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pretrain(short(seed=seed), tmp_path / name)
        losses.append([row["loss"] for row in read_metrics(tmp_path / name) if "loss" in row])
    assert losses[0] == losses[1]
    assert np.abs(np.subtract(losses[0], losses[2])).max() > 1e-3


def source_of(*shape):
    return array_source("mine", Split.TRAIN, np.zeros(shape, np.uint8), {})


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([source_of(2, 4, 4, 1)], r"^sources is a list: pass a dict of sources by the name"),
        (
            {"train": np.zeros((2, 4, 4, 1), np.uint8)},
            r"^sources\['train'\] is a ndarray and no sou",
        ),
        (
            {"train": source_of(2, 0, 4, 1)},
            r"^sources\['train'\] has images of shape \[2, 0, 4, 1\]",
        ),
        (
            {"train": source_of(0, 4, 4, 1)},
            r"^sources\['train'\] has images of shape \[0, 4, 4, 1\]",
        ),
    ],
)
def test_what_is_no_source_is_refused_in_words(sources, said):
    with pytest.raises(UserError, match=said):
        check_sources(sources)
    check_sources({"train": source_of(2, 4, 4, 1)})
