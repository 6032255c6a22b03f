"""The evaluation program on a small run: its card, its page, what it keeps and what it leaves."""

import html.parser
import json
import re

import numpy as np
import pytest
from old_run import copied
from test_linear_probe import data_with, files, settings_with

from jaxssl.distributed import data_mesh
from jaxssl.errors import UserError
from jaxssl.evaluate import Asked, evaluate, print_cards, summary_line
from jaxssl.evaluation.card import ALL, chosen_sections, flag_names
from jaxssl.evaluation.comparison import compare
from jaxssl.evaluation.conditions import conditions
from jaxssl.evaluation.pages import card_page
from jaxssl.evaluation.probe_data import WHERE_TRAINED
from jaxssl.linear_probe import probe_run


def asked(sections=ALL, **changes):
    settings = settings_with(**{"lbfgs.max_iterations": 20, **changes})
    return Asked(sections, settings, data_with(), WHERE_TRAINED)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return copied("simclr", tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def card(run):
    return evaluate(run, None, asked())


def test_the_card_has_every_section_of_every_network(card):
    content = json.loads((card.folder / "card.json").read_text())
    assert content == json.loads(json.dumps(card.content))
    assert content["sections"].keys() == set(ALL)
    for found in content["sections"].values():
        assert found.keys() == {"trained", "untrained", "pixels"}
    rows = content["sections"]["fingerprint"]["trained"]
    assert list(rows) == [name for name, _ in conditions((8, 8, 1))]
    for name, row in rows.items():
        assert ("delta_a" in row) == (name != "clean")
        for cell in (row[kind] for kind in ("accuracy", "uniformity", "delta_a") if kind in row):
            assert cell["low"] <= cell["value"] <= cell["high"]
    linear = content["sections"]["linear"]["trained"]["lbfgs"]
    assert rows["clean"]["accuracy"]["value"] == pytest.approx(linear["top1"])


def test_the_numbers_are_the_linear_probes(run, card):
    probed = probe_run(run, None, card_settings(), baselines=False).card["results"]["trained"]
    found = card.content["sections"]["linear"]["trained"]
    assert found["lbfgs"]["top1"] == probed["lbfgs"]["top1"]
    assert found["lbfgs_few"]["top1"] == probed["lbfgs_few"]["top1"]


def card_settings():
    return settings_with(**{"lbfgs.max_iterations": 20, "protocol": "none"})


class Page(html.parser.HTMLParser):
    """Tags, and whatever an attribute points to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]


def test_the_page_stands_alone(card):
    text = (card.folder / "card.html").read_text()
    page = Page(text)
    assert page.tags.count("table") >= 7
    assert page.tags.count("svg") == 3
    assert "script" not in page.tags
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not re.search(r"https?://|url\((?!#)|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert "#000000" not in text
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names))


def test_the_run_is_left_as_it_was(run, card):
    before = files(run)
    evaluate(run, None, asked(("knn",)))
    after = files(run)
    changed = {name for name in after if after[name] != before.get(name)}
    assert all("/evaluations/evaluate-" in name for name in changed)


def test_features_are_computed_once(run, card, monkeypatch):
    from jaxssl.evaluation import fits

    monkeypatch.setattr(fits, "extract", lambda *args, **kwargs: pytest.fail("computed again"))
    again = evaluate(run, None, asked(("knn", "geometry")))
    for section in ("knn", "geometry"):
        assert again.content["sections"][section] == card.content["sections"][section]


def test_a_damaged_copy_of_features_is_made_again(run, card):
    for path in (run / "evaluations" / "features").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    again = evaluate(run, None, asked(("geometry",)))
    assert again.content["sections"]["geometry"] == card.content["sections"]["geometry"]


@pytest.mark.parametrize(("devices", "batch"), [(1, 1000), (2, 7), (8, 64)])
def test_padding_and_devices_change_no_number(run, card, monkeypatch, devices, batch):
    from jaxssl import distributed

    monkeypatch.setattr(distributed, "data_mesh", lambda: data_mesh(devices))
    again = evaluate(
        run,
        None,
        Asked(
            ("geometry", "knn"),
            settings_with(feature_batch_size=batch),
            data_with(),
            WHERE_TRAINED,
            keep_features=False,
        ),
    )
    for network, found in again.content["sections"]["geometry"].items():
        before = card.content["sections"]["geometry"][network]
        np.testing.assert_allclose(
            found["uniformity"]["value"], before["uniformity"]["value"], rtol=1e-5
        )
        np.testing.assert_allclose(found["rankme"], before["rankme"], rtol=1e-4)
        np.testing.assert_array_equal(
            again.predictions.right(network, "knn dino"),
            card.predictions.right(network, "knn dino"),
        )


def test_two_runs_side_by_side(card, capsys):
    rows = compare([card, card])
    assert rows == []  # one group: the same config
    page = Page(card_page([card, card], rows))
    assert page.tags.count("svg") == 3
    print_cards([card], rows)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 120
    assert "global 4" in shown
    assert summary_line(card).startswith("step ")


def test_a_card_of_some_sections_replaces_no_whole_one(card):
    assert card.folder.name.startswith("evaluate-6-settings=")
    assert flag_names(ALL, every_severity=False, baselines=True) == []
    assert flag_names(("knn",), every_severity=True, baselines=True) == ["sections=knn"]
    assert flag_names(ALL, every_severity=True, baselines=False) == ["all", "no_baselines"]


def test_unknown_sections_and_layers_are_refused(run):
    with pytest.raises(UserError, match="--sections=fingerprnt is unknown"):
        chosen_sections(["fingerprnt"])
    with pytest.raises(UserError, match=r"--probe\.layer=stage9 is unknown"):
        evaluate(run, None, asked(("knn",), layer="stage9"))
