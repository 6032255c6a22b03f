"""What the evaluation program waits for, refuses and names, before it computes anything."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from old_run import FORMAT1
from test_evaluate import asked

from jaxssl import evaluate as program
from jaxssl.errors import UserError
from jaxssl.evaluate import evaluate
from jaxssl.evaluation.card import Card
from jaxssl.evaluation.sections import Predictions

RUN = FORMAT1 / "simclr"


def card_of(run):
    content = {"run": run, "sections": {}}
    nothing = Predictions(np.arange(0), np.arange(0))
    return Card(content, nothing, ConfigDict(), pathlib.Path(run, "evaluate-6"), {})


def test_a_run_that_has_not_begun_is_waited_for(tmp_path, monkeypatch, capsys):
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            (tmp_path / "later").mkdir()
            shutil.copy(RUN / "config.json", tmp_path / "later" / "config.json")

    monkeypatch.setattr(program.time, "sleep", wait)
    program.wait_for_start(tmp_path / "later")
    assert waits == [program.SECONDS_BETWEEN_LOOKS] * 2
    program.wait_for_start(RUN)
    assert len(waits) == 2
    said = "".join(capsys.readouterr())
    assert said.count("waiting for") == 1


def test_comparisons_in_one_folder_replace_none(tmp_path):
    def folder(*runs, out=tmp_path):
        return program._folder_of_comparison([card_of(run) for run in runs], out)

    assert folder("x/a", "x/b") == tmp_path / "comparison-a+b" / "evaluate-6"
    long = ["x/" + letter * 60 for letter in "abc"]
    alike = ("x/a", "y/a"), ("x/a", "z/a")
    others = [folder(*runs) for runs in (("x/a", "x/c"), long[:2], long[1:], *alike)]
    assert len(set(others)) == 5
    assert all(path.parent.parent == tmp_path and len(path.parent.name) < 100 for path in others)
    assert folder("x/a", "x/b", out=None) == pathlib.Path("x/a/evaluate-6/comparison")


def test_runs_whose_names_end_alike_have_folders_of_their_own(tmp_path):
    folder = tmp_path / "a"
    assert program._own_folder(folder, ["x/a"]) == folder
    (folder / "evaluate-6").mkdir(parents=True)
    (folder / "evaluate-6" / "card.json").write_text(json.dumps({"run": "x/a"}))
    (folder / "evaluate-7").mkdir()
    (folder / "evaluate-7" / "card.json").write_text("{")
    assert program._own_folder(folder, ["./x/a/"]) == folder
    others = {program._own_folder(folder, runs) for runs in (["y/a"], ["z/a"], ["x/a", "y/a"])}
    assert len(others) == 3
    assert all(other.parent == tmp_path and other.name.startswith("a-") for other in others)


def test_a_run_that_takes_no_card_is_refused_before_anything_is_computed(tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    shutil.copy(RUN / "config.json", copy / "config.json")
    program._check([copy, tmp_path / "none"], asked())
    (copy / "evaluations").touch()
    with pytest.raises(UserError, match=rf"--run={copy} takes no card, .* give --out with a dir"):
        program._check([copy], asked())
    program._check([copy], dataclasses.replace(asked(), out=tmp_path / "out"))


@pytest.mark.parametrize(("key", "value"), [("protocol", "dino"), ("knn_k", 5)])
def test_settings_of_one_protocol_are_refused(key, value):
    with pytest.raises(UserError, match=rf"--probe\.{key}={value} has no effect .*linear_probe\."):
        evaluate(RUN, None, asked(("knn",), **{key: value}))
