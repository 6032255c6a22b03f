"""Runs that older code left behind go on, and say what computes otherwise since."""

import dataclasses
import fractions
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from tiny import RECIPES, Run

from configs.quickstart import get_config as quickstart
from jaxssl.distributed import data_mesh, global_batch
from jaxssl.errors import UserError
from jaxssl.plan import resolve
from jaxssl.pretrain import pretrain
from jaxssl.reporting import read_metrics
from jaxssl.run_directory import config_differences, read_config, read_info
from jaxssl.training.state import traced_scalars
from jaxssl.training.step import compile_step
from jaxssl.upgrade import FORMAT, changes, saved_names, upgrade_config

OLD = pathlib.Path(__file__).parent / "old_runs" / "format1"
EXPECTED = json.loads((OLD / "expected.json").read_text())
METHODS = ("moco_v2", "simclr", "supervised")  # that there were then


def recipe_of_today(method):
    """What these runs were started with, in the words of today's recipes."""
    config = quickstart("batch=64,width=4,canvas=8,size=8,epochs=4")
    recipe = RECIPES[method].get_config()
    with config.unlocked():
        config.method = recipe.method
        config.hyper = recipe.hyper
        config.hyper.learning_rate.granularity = "step"
        config.evals.knn.every = 0.2
        config.run.update(
            stop_step=6, checkpoint_every_steps=6, log_every_steps=2, num_devices=1, keep_last=1
        )
        if method == "moco_v2":
            config.method.queue_size = 128
            config.method.head.out_dim = 16
            config.method.head.bn_groups = 8  # its encoder's: a head had no norm of its own
            config.encoder.bn_groups = 8
    return resolve(config)


@pytest.mark.parametrize("method", METHODS)
def test_an_old_config_means_what_a_recipe_of_today_says(method):
    assert read_info(OLD / method)["format"] == 1
    assert config_differences(read_config(OLD / method), recipe_of_today(method)) == []


# MoCo's has all that was renamed or is computed otherwise.
@pytest.mark.parametrize(
    "method", [m if m == "moco_v2" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_an_old_run_goes_on_and_says_what_computes_otherwise(method, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(OLD / method, workdir)
    config = recipe_of_today(method)
    with config.unlocked():
        config.run.stop_step = 12
    pretrain(config, workdir)
    said = capsys.readouterr().out
    assert f"resuming {workdir} from step 6 of 12" in said
    for clause in changes(1):
        assert f"computed otherwise than before: {clause}" in said
    info = read_info(workdir)
    assert (info["format"], info["resumed"][0]["format"]) == (FORMAT, 1)
    assert {"content_sha256", "steps_per_epoch"} & {*info["data"], *info["spec"]}
    ours = {row["step"]: row["loss"] for row in read_metrics(workdir) if "loss" in row}
    theirs = dict(EXPECTED[method]["losses"])
    assert [ours[step] for step in (2, 4, 6)] == [theirs[step] for step in (2, 4, 6)]
    # The weights are the old ones: only what `changes` names moves the next losses, and of MoCo's
    # 64 images in 8 groups another permutation makes other groups.
    assert abs(ours[8] - theirs[8]) < (0.15 if method == "moco_v2" else 1e-2)

    # From the second resumption on there is nothing to say.
    with config.unlocked():
        config.run.stop_step = 13
    pretrain(config, workdir)
    assert "computed otherwise" not in capsys.readouterr().out


def test_a_run_of_format_2_decodes_jpegs_in_full(tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(OLD.parent / "format2" / "simclr", workdir)
    assert read_info(workdir)["format"] == 2
    before = read_metrics(workdir)
    config = recipe_of_today("simclr")
    with config.unlocked():
        config.data.jpeg_margin = 2.0
    with pytest.raises(UserError, match=r"data\.jpeg_margin: 0\.0 -> 2\.0"):
        pretrain(config, workdir)
    with config.unlocked():
        config.data.jpeg_margin = 0.0
        config.run.stop_step = 7
    assert config_differences(read_config(workdir), config) == []
    pretrain(config, workdir)
    assert read_metrics(workdir)[: len(before)] == before
    assert read_info(workdir)["format"] == FORMAT


def test_a_run_of_format_3_takes_a_classifier_beside_it(tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(OLD.parent / "format3" / "simclr", workdir)
    assert read_info(workdir)["format"] == 3
    before = read_metrics(workdir)
    config = recipe_of_today("simclr")
    assert config_differences(read_config(workdir), config) == []
    with config.unlocked():
        config.online.learning_rate = 0.1
        config.evals.online.every = 0.05
        config.run.stop_step = 7
    pretrain(config, workdir)
    said = capsys.readouterr().out
    assert "the classifier beside the method begins at step 6" in said
    assert "computed otherwise" not in said
    rows = read_metrics(workdir)
    assert rows[: len(before)] == before
    # Owed at the step that the run goes on from, and due after the next.
    assert [row["step"] for row in rows if "online" in row] == [6, 7]
    assert read_info(workdir)["format"] == FORMAT


def test_an_old_run_keeps_its_identity(tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(OLD / "simclr", workdir)
    config = recipe_of_today("simclr")
    with config.unlocked():
        config.data.train_examples = 1000
        config.hyper.temperature = 0.3
    with pytest.raises(UserError, match=r"examples: 0 -> 1000; hyper\.temperature: 0\.5 -> 0\.3"):
        pretrain(config, workdir)


def test_views_that_differ_and_numbers_of_a_policy_survive():
    content = json.loads((OLD / "simclr" / "config.json").read_text())
    content["config"]["views"] |= {"policy": "exclusive"}
    content["config"]["views"]["view2"] |= {"blur_p": 0.1}
    content["config"]["schedule"] |= {"warmup_epochs": 1.5, "final": 0.25}
    new = upgrade_config(content)["config"]
    assert new["views"]["global_crops"]["second"] == {"blur_p": 0.1}
    assert new["views"]["global_crops"]["count"] == 2
    assert {"gap", "min_side"} <= set(new["hyper"])
    assert "overlap" not in new["hyper"]
    rate = new["hyper"]["learning_rate"]
    assert rate["end"] == pytest.approx(0.25 * rate["value"])
    assert (rate["warmup_epochs"], rate["shape"]) == (1.5, "cosine")
    assert content["config"]["views"]["view2"]["blur_p"] == 0.1  # the old one is left as it is


def test_names_of_a_state_in_each_format():
    names = ["rest/queue/rows/value", "params/head/output/kernel/value"]
    assert list(saved_names(1, names).values()) == ["rest/queue/value", names[1]]
    assert list(saved_names(FORMAT, names).values()) == names


def small_config_of_then(method):
    config = quickstart("batch=64,width=4,canvas=8,size=8,epochs=4")
    recipe = RECIPES[method].get_config()
    with config.unlocked():
        config.method = recipe.method
        config.hyper = recipe.hyper
        config.hyper.learning_rate.granularity = "step"
        config.encoder.dtype = "float64"
        if method == "moco_v2":
            config.method.update(queue_size=128, shuffle=False)
            config.method.head.out_dim = 16
            config.encoder.bn_groups = 8
    return config


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_first_twenty_losses_are_those_of_format_1(method, monkeypatch):
    """In float64, with the horizon as it was counted then and without MoCo's permutation.

    And compiled as then: the views are float32, and other options round them otherwise; so do other
    processors. On one machine the code of then and of now agree to the last bit.
    """
    monkeypatch.setattr("jaxssl.training.step.compiler_options", lambda mesh: {})
    with jax.enable_x64(True):
        run = Run(small_config_of_then(method))
        per_epoch = fractions.Fraction(run.blueprint.spec.total_steps) / 4
        run.schedules = dataclasses.replace(run.schedules, steps_per_epoch=per_epoch)
        mesh, hyper = data_mesh(1), traced_scalars(run.config)
        state = run.blueprint.create(run.config.init_seed, mesh)
        step = compile_step(run.step(), mesh)
        losses = []
        for number in range(20):
            state, metrics = step(state, global_batch(mesh, run.batch(number)), hyper)
            losses.append(float(metrics["loss"]))
    golden = json.loads((OLD.parent / "first_losses.json").read_text())[method]
    np.testing.assert_allclose(losses, golden, rtol=1e-5)
