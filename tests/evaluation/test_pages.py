"""Pages and plots of cards that are plain dictionaries."""

import os
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxssl.corruptions.apply import corruption_group
from jaxssl.evaluation import probe
from jaxssl.evaluation.card import Card
from jaxssl.evaluation.html import svg_of
from jaxssl.evaluation.pages import card_page, run_names
from jaxssl.evaluation.plots import confusion_plot, fingerprint_plot, reliability_plot
from jaxssl.evaluation.sections import Predictions

CELL = {"value": 0.5, "low": 0.4, "high": 0.6}
ROW = {"accuracy": CELL, "uniformity": CELL, "cosine": CELL}


def card_of(run, sections, settings=None, corruption="none"):
    config = ConfigDict({"corruption": corruption_group()})
    config.corruption.name = corruption
    content = {
        "run": run,
        "method": "simclr",
        "step": 6,
        "settings": (settings or probe.default_config()).to_dict(),
        "examples": {"test": 20},
        "data": {"name": "digits", "sha256": "0" * 64},
        "encoder_sha256": "0" * 64,
        "commit": None,
        "device_count": 1,
        "device_kind": "cpu",
        "versions": {},
        "sections": sections,
    }
    predictions = Predictions(np.arange(20), np.zeros(20, int))
    return Card(content, predictions, config, pathlib.Path("card"), {})


def sections_of(conditions, protocols, shots):
    return {
        "fingerprint": {"trained": dict.fromkeys(conditions, ROW)},
        "knn": {
            "trained": {how: dict.fromkeys(protocols, 0.5) for how in ("as_is", "standardised")}
        },
        "few_shot": {"trained": {shot: {"top1": CELL} for shot in shots}},
    }


def test_runs_on_sets_of_other_sizes_stand_side_by_side():
    """As many conditions, protocols and numbers of labels as any of them has."""
    small = card_of("a", sections_of(("clean", "global 2"), ("dino",), ("1",)))
    large = card_of("b", sections_of(("clean", "global 8"), ("dino", "moco"), ("1", "5")))
    for cards in ([small, large], [large, small]):
        page = card_page(cards)
        for said in ("global 2", "global 8", "<th>moco</th>", "<th>5 a class</th>"):
            assert said in page
        assert "<tr><td>global 8</td><td>-</td><td>-</td><td>-</td><td>-</td><td>-</td></tr>" in (
            page
        )


def test_a_run_called_like_a_baseline_keeps_its_row():
    networks = {"trained": {"sgd": {"interval": CELL}}, "pixels": {"sgd": {"interval": ROW}}}
    networks["pixels"] = {"sgd": {"interval": {**CELL, "value": 0.125}}}
    page = card_page([card_of(run, {"linear": networks}) for run in ("x/pixels", "x/other")])
    assert "<tr><td>run pixels</td><td>50.0 [" in page
    assert "<tr><td>pixels</td><td>12.5 [" in page


def test_the_page_says_what_was_changed_and_how_the_run_was_corrupted():
    settings = probe.default_config()
    settings.sgd.epochs, settings.lbfgs.l2_grid, settings.test_corruption.name = 1, (1.0,), "none"
    linear = {"linear": {"trained": {"sgd": {"interval": CELL}}}}
    page = card_page([card_of("a", linear, settings, "grayscale")])
    assert "<th>SGD, 1 epoch</th>" in page
    assert "corruption of the run: grayscale; test images: none" in page
    assert "settings lbfgs.l2_grid=(1.0,), sgd.epochs=1\n" in page
    plain = card_page([card_of("a", linear)])
    assert "corruption of the run: none; test images: likewise" in plain
    assert "settings all as by default" in plain


NAMES = ("_hidden", r"a$\frac$b", "c$x^2$", "begin" + 60 * "x" + "end")


@pytest.mark.parametrize(
    "plot",
    [
        lambda: fingerprint_plot({name: {"clean": ROW} for name in NAMES}),
        lambda: reliability_plot(
            {name: [{"accuracy": 0.5, "confidence": 0.5, "share": 1.0}] for name in NAMES}
        ),
        lambda: confusion_plot(np.eye(4, dtype=int).tolist(), NAMES),
    ],
)
def test_any_name_is_drawn_as_it_is(plot):
    drawn = svg_of(plot(), "salt")
    for name in NAMES[:3]:
        assert f">{name}<" in drawn
    assert "begin" + 14 * "x" + "…" + 17 * "x" + "end" in drawn


def test_a_run_is_named_by_the_end_of_its_whole_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run_names(["a", "../a"]) == {
        "a": f"{tmp_path.name}/a",
        "../a": f"{tmp_path.parent.name}/a",
    }
    assert run_names(["."]) == {".": tmp_path.name}
    assert run_names(["x/", "./x"]) == {"x/": "x", "./x": "x"}
    assert run_names([os.sep]) == {os.sep: "run"}
    found = run_names(["gs://one/a", "gs://two/a", "/a", "a"])
    assert len(set(found.values())) == 4
    assert not any(name.startswith("/") or ".." in name.split("/") for name in found.values())
