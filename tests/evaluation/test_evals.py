"""Sections during training: when they run, and that they say what the program says afterwards."""

import re

import jax
import numpy as np
import pytest
from test_pretrain import short

from configs.common import SECTIONS
from jaxssl.distributed import data_mesh
from jaxssl.errors import UserError
from jaxssl.evaluate import Asked, evaluate
from jaxssl.evaluation import evals
from jaxssl.evaluation.card import Wanted
from jaxssl.evaluation.evals import LOGGED, MAKERS, check_neighbours
from jaxssl.evaluation.probe import default_config
from jaxssl.evaluation.probe_data import WHERE_TRAINED, data_settings
from jaxssl.metrics import KnnProtocol, knn_predict
from jaxssl.plan import make_plan, resolve
from jaxssl.pretrain import pretrain
from jaxssl.reporting import read_metrics

ALL = tuple(LOGGED)


def watched(workdir, sections):
    """The rows of a run of five steps with these sections on the test images, but for losses."""
    changes = {
        "run.stop_step": 5,
        "run.checkpoint_every_steps": 5,
        **{f"evals.{name}.every": 0.1 for name in sections},
        **{f"evals.{name}.split": "test" for name in sections},
        "evals.dense.layer": "stage2",
    }
    pretrain(short(**changes), workdir)
    return [row for row in read_metrics(workdir) if "loss" not in row]


def test_every_section_of_the_config_can_be_run():
    assert set(MAKERS) == {"knn", *SECTIONS}
    config = short()
    assert {group.section for group in config.evals.values()} == set(MAKERS)
    assert [name for name, group in config.evals.items() if group.every] == []


def test_sections_run_at_the_steps_that_complete_their_epochs(tmp_path):
    """A tenth of 20.2 steps: the third completes it, and the fifth the next."""
    rows = watched(tmp_path / "run", ("geometry",))
    assert [row["step"] for row in rows if "geometry" in row] == [3, 5]
    first, second = (row for row in rows if "geometry" in row)
    assert first["geometry"] != second["geometry"]  # nothing of a state is compiled in


@pytest.mark.parametrize(
    ("protocol", "images", "remedy"),
    [
        ("moco", 199, "give --config.evals.knn.protocol=dino, or --config.evals.knn.every=0."),
        ("dino", 19, "use more images, or give --config.evals.knn.every=0."),
    ],
)
def test_what_mends_too_few_images_is_not_what_was_asked_for(protocol, images, remedy):
    check_neighbours("--config.evals.knn", protocol, images + 1)
    with pytest.raises(UserError, match=re.escape(remedy)):
        check_neighbours("--config.evals.knn", protocol, images)


@pytest.mark.slow
def test_a_section_says_what_the_program_says_of_the_same_checkpoint(tmp_path):
    """Every section: a program for each, in the run and in the evaluation."""
    run = tmp_path / "run"
    rows = watched(run, ALL)
    for name in ALL:
        assert [row["step"] for row in rows if name in row] == [3, 5]
    settings = default_config()
    settings.sgd.epochs = 0
    asked = Asked(Wanted(ALL), settings, data_settings(), WHERE_TRAINED, baselines=False)
    found = {
        section: networks["trained"]
        for section, networks in evaluate(run, None, asked).content["sections"].items()
    }
    logged = {name: value for row in rows if row["step"] == 5 for name, value in row.items()}
    expected = {
        "linear": found["linear"]["lbfgs"]["top1"],
        "few_shot": found["few_shot"]["25"]["top1"]["value"],
        "few_shot_5": found["few_shot"]["5"]["top1"]["value"],
        "geometry": found["geometry"]["uniformity"]["value"],
        "geometry_rankme": found["geometry"]["rankme"],
        "alignment": found["alignment"]["sum"]["value"],
        "alignment_l_a": found["alignment"]["l_a"]["value"],
        "calibration": found["calibration"]["ece"],
        "fingerprint": np.mean(
            [row["delta_a"]["value"] for row in list(found["fingerprint"].values())[1:]]
        ),
        "fingerprint_global_2": found["fingerprint"]["global 2"]["accuracy"]["value"],
    }
    for name, value in expected.items():
        assert logged[name] == pytest.approx(value, rel=1e-3, abs=0.006), name
    # Of another map than the program's, which takes the encoder's last.
    assert found["dense"]["layer"] == "stage3"
    assert logged["dense"] != pytest.approx(found["dense"]["sum"]["value"], rel=1e-3)


def test_nothing_is_chosen_on_the_images_that_are_looked_at():
    config = resolve(short(**{"evals.linear.every": 1.0}))
    setting = plan_setting(config)
    probed = evals._probed("linear", config.evals.linear, setting)
    train, held, looked = (
        set(probed.parts[name].source.positions.tolist())
        for name in ("train", "validation", "test")
    )
    assert len(train | held) == 1294
    assert len(held) == 129
    assert len(train | held | looked) == 1294 + 143
    assert looked == set(setting.opening.part("validation").source.positions.tolist())


def plan_setting(config):
    """What `make_plan` hands to the evaluations."""
    handed = []

    def keep(groups, setting, images):
        handed.append(setting)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxssl.plan.make_evals", keep)
        make_plan(config, None)
    return handed[0]


def test_neighbours_are_the_same_however_the_queries_are_cut(monkeypatch):
    config = resolve(short(**{"evals.knn.every": 1.0, "evals.knn.protocol": "dino"}))
    setting = plan_setting(config)
    state = setting.blueprint.create(0, data_mesh(1))
    whole, cut, looks = {}, {}, []
    for found, size in ((whole, 2048), (cut, 50)):
        monkeypatch.setattr(evals, "QUERIES", size)
        knn = evals._knn("knn", config.evals.knn, setting)
        found.update(knn(state, lambda: looks.append(len(looks))))
    assert whole == cut  # 143 queries, the last part of them padded
    batches = -(-1294 // 64) + -(-143 // 64)
    assert len(looks) == 2 * batches + 1 + 3  # so that a request to stop is heard of in between


def test_padding_of_queries_is_what_knn_predicts_anyway():
    rng = np.random.default_rng(0)
    bank, queries = (np.float32(rng.normal(size=(count, 4))) for count in (40, 9))
    labels = np.int32(rng.integers(0, 3, 40))
    protocol = KnnProtocol(5, 0.1)
    alone = [int(knn_predict(bank, labels, q[None], protocol=protocol)[0]) for q in queries]
    assert jax.device_get(knn_predict(bank, labels, queries, protocol=protocol)).tolist() == alone


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"evals.linear.section": "linaer"}, r"--config.evals.linear.section=linaer is unknown"),
        ({"evals.linear.split": "tset"}, r"--config.evals.linear.split=tset is unknown"),
        ({"evals.linear.layer": "pol"}, r"--config.evals.linear.layer=pol is unknown: .*pooled"),
        ({"evals.linear.every": -1.0}, r"--config.evals.linear.every=-1.0 must be at least 0"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        pretrain(short(**{"evals.linear.every": 1.0} | changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
