"""The evaluation program on a small run: its card, its page, what it keeps and what it leaves."""

import copy
import dataclasses
import errno
import html.parser
import json
import re
import shutil
import time

import numpy as np
import pytest
from old_run import copied
from test_linear_probe import data_with, files, settings_with

from jaxssl import evaluate as program
from jaxssl.corruptions.apply import Corruptor
from jaxssl.data.examples import array_source
from jaxssl.distributed import data_mesh
from jaxssl.errors import UserError
from jaxssl.evaluate import Asked, evaluate, print_card, print_comparison, summary_line, watch
from jaxssl.evaluation import opened as opened_runs
from jaxssl.evaluation import probe
from jaxssl.evaluation.card import ALL, Card, Wanted, chosen_sections, flag_names, make_card
from jaxssl.evaluation.comparison import compare
from jaxssl.evaluation.conditions import conditions
from jaxssl.evaluation.opened import open_run
from jaxssl.evaluation.pages import card_page
from jaxssl.evaluation.probe_data import WHERE_TRAINED
from jaxssl.evaluation.sections import Predictions
from jaxssl.evaluation.store import FeatureStore
from jaxssl.linear_probe import probe_run
from jaxssl.randomness import Split


def asked(sections=ALL, *, wanted=None, supervised=None, baselines=True, **changes):
    settings = settings_with(**{"lbfgs.max_iterations": 20, **changes})
    wanted = wanted or Wanted(sections)
    return Asked(wanted, settings, data_with(), WHERE_TRAINED, baselines, supervised)


NETWORKS = ("trained", "untrained", "pixels")


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
    for section, found in content["sections"].items():
        # Raw pixels are no map of features.
        networks = {"trained", "untrained"} if section == "dense" else set(NETWORKS)
        assert found.keys() == networks
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


@pytest.fixture(scope="module")
def refitted(run, card, tmp_path_factory):
    """The same with a supervised run beside it, and classifiers of each condition's own."""
    supervised = copied("supervised", tmp_path_factory.mktemp("beside"))
    wanted = Wanted(("fingerprint", "alignment"), refit=True)
    return evaluate(run, None, asked(wanted=wanted, supervised=supervised, baselines=False))


def test_a_supervised_run_stands_beside_on_the_same_images(card, refitted):
    found = refitted.content["sections"]
    for networks in found.values():
        assert list(networks) == ["trained", "supervised"]
    assert list(found["fingerprint"]["supervised"]) == list(found["fingerprint"]["trained"])
    digests = refitted.content["networks_sha256"]
    assert digests["trained"] != digests["supervised"]
    clean = found["fingerprint"]["trained"]["clean"]
    before = card.content["sections"]["fingerprint"]["trained"]["clean"]
    assert clean["accuracy"] == before["accuracy"]
    assert re.search(r"-refit-no_baselines-supervised=[0-9a-f]{8}$", refitted.folder.name)
    page = (refitted.folder / "card.html").read_text()
    assert Page(page).tags.count("svg") == 1
    assert page.count("fitted anew on training images under each condition") == 2


def test_a_supervised_run_itself_says_the_same(refitted, tmp_path):
    own = copied("supervised", tmp_path)
    alone = evaluate(own, None, asked(("fingerprint",), baselines=False))
    for name, row in alone.content["sections"]["fingerprint"]["trained"].items():
        beside = refitted.content["sections"]["fingerprint"]["supervised"][name]
        for kind in ("accuracy", "uniformity"):
            assert beside[kind]["value"] == pytest.approx(row[kind]["value"], rel=1e-6)


def test_refitting_is_a_probe_of_images_under_the_condition(run, refitted):
    """As the linear probe of a run whose training images were corrupted too, but for the images
    that the encoder was trained on."""
    rows = refitted.content["sections"]["fingerprint"]["trained"]
    assert "refitted" not in rows["clean"]
    clean = rows["clean"]["accuracy"]["value"]
    for name in ("global 2", "gamma 0.2"):
        anew = rows[name]["refitted"]
        drop = (clean - anew["accuracy"]["value"]) / clean
        assert anew["delta_a"]["value"] == pytest.approx(drop)
        assert anew["delta_a"]["low"] <= drop <= anew["delta_a"]["high"]
    assert reference_refit(run, "global 2") == pytest.approx(
        rows["global 2"]["refitted"]["accuracy"]["value"]
    )
    # A permutation of four parts, for whose sake pixels lie elsewhere and are not lost.
    assert rows["global 2"]["refitted"]["accuracy"]["value"] > (
        rows["global 2"]["accuracy"]["value"] + 0.1
    )


def reference_refit(run, condition):
    """From the run's own splits, corrupted one by one, and the probe's fit on their features."""
    settings = asked().settings
    opened = open_run(
        run, None, settings, False, None, data_with(), WHERE_TRAINED, reuse_classifiers=False
    )
    (probed,) = opened.probes.values()
    corruption = dict(conditions((8, 8, 1)))[condition]
    corruptor = Corruptor.from_config(corruption)
    embed = probed.network.through(opened.parts["test"].view, "pooled")
    found = {}
    for name in ("train", "validation", "test"):
        batch = opened.parts[name].source.gather(np.arange(len(opened.parts[name].source)))
        batch = batch | {"image": corruptor.on_host(batch)}
        found[name] = np.asarray(embed(batch)), batch["targets"]["label"]
    how = {"max_iterations": 20, "tolerance": settings.lbfgs.tolerance}
    l2, _ = probe.select_l2(
        found["train"], found["validation"], 10, grid=settings.lbfgs.l2_grid, **how
    )
    fit = probe.fit_lbfgs(*found["train"], 10, l2=l2, **how)
    features, labels = found["test"]
    return np.mean(fit.classifier.logits(features).argmax(axis=1) == labels)


def test_a_run_on_other_images_is_refused_beside_another(run, card, tmp_path, monkeypatch):
    other = copied("supervised", tmp_path)
    content = json.loads((other / "config.json").read_text())
    content["config"]["data"]["test_fraction"] = 0.0
    content["config"]["data"] |= {"name": "npy", "data_dir": str(npy_digits(tmp_path / "npy"))}
    (other / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"--supervised=.* would be tested on other images"):
        evaluate(run, None, asked(("knn",), supervised=other))
    monkeypatch.setattr("jaxssl.evaluate.make_card", lambda *_: pytest.fail("cost"))
    with pytest.raises(UserError, match=rf"{other} would be tested on other images than {run}: "):
        evaluate(other, None, asked(("knn",)), first=card)


def npy_digits(folder):
    """Fewer test images than the digits have."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 300), ("test", 50)):
        np.save(folder / f"{split}_images.npy", rng.integers(0, 256, (count, 8, 8, 1), np.uint8))
        np.save(folder / f"{split}_labels.npy", np.arange(count) % 10)
    return folder


@pytest.mark.slow
def test_classes_that_training_lacks_and_classes_of_one_image(run):
    """Every number is one, or missing where there is none to give; JSON has no NaN."""
    rng = np.random.default_rng(0)
    labels = {
        "train": np.arange(60) % 6,
        "validation": np.arange(12) % 6,
        "test": np.array([7, 7, 3] + [0, 1, 2] * 6),
    }
    sources = {
        name: array_source(
            "odd",
            split,
            rng.integers(0, 256, (len(labels[name]), 8, 8, 1), np.uint8),
            {"label": labels[name]},
            num_classes=10,
        )
        for name, split in (
            ("train", Split.TRAIN),
            ("validation", Split.VALIDATION),
            ("test", Split.TEST),
        )
    }
    settings = asked(labels_per_class=2).settings
    opened = open_run(
        run, None, settings, False, sources, data_with(), WHERE_TRAINED, reuse_classifiers=False
    )
    before = {name: probed.network.digest() for name, probed in opened.probes.items()}
    card = make_card(opened, Wanted(ALL), settings)
    after = {name: probed.network.digest() for name, probed in opened.probes.items()}
    assert before == after == card.content["networks_sha256"]
    json.dumps(card.content, allow_nan=False)
    assert Page(card_page([card])).tags.count("svg") == 3
    rows = card.content["sections"]["linear"]["trained"]["lbfgs"]["by_class"]
    assert {row["class"]: row["top1"] for row in rows}[7] == 0.0
    found = card.content["sections"]["geometry"]["trained"]["by_class"]
    assert {row["class"]: row["uniformity"] is None for row in found}[3]
    sources["test"] = sources["test"].take(np.arange(1))
    opened = open_run(
        run, None, settings, False, sources, data_with(), WHERE_TRAINED, reuse_classifiers=False
    )
    with pytest.raises(UserError, match=r"odd has one test image, which is no set"):
        make_card(opened, Wanted(("geometry",)), settings)


def test_the_cost_is_said_before_it_is_paid(run, capsys, monkeypatch):
    monkeypatch.setattr("jaxssl.evaluation.card._results", lambda *_: pytest.fail("cost"))
    with pytest.raises(pytest.fail.Exception):
        evaluate(run, None, asked(wanted=Wanted(ALL, refit=True)))
    said = capsys.readouterr().out
    assert "fingerprint: 9 conditions x 3 networks x 360 test images = 9,720 images" in said
    assert "--refit: 24 fits more, each on 1,437 images of its own = 34,488 images" in said


def test_checkpoints_are_evaluated_as_they_land_and_those_lost_passed_over(
    run, tmp_path, monkeypatch, capsys
):
    growing = tmp_path / "run"
    shutil.copytree(run, growing, ignore=shutil.ignore_patterns("evaluations"))
    steps = growing / "checkpoints"
    content = json.loads((growing / "config.json").read_text())
    content["config"]["run"]["stop_step"] = 8
    (growing / "config.json").write_text(json.dumps(content))
    waits, sleep = [], time.sleep

    def wait(seconds):
        if seconds != program.SECONDS_BETWEEN_LOOKS:  # of a library's thread
            sleep(seconds)
            return
        waits.append(seconds)
        land({1: 7, 2: 8}[len(waits)])
        if len(waits) == 2:
            land(1)  # which the run then removes
            removed.add(1)

    def land(step):
        shutil.copytree(steps / "6", steps / str(step))
        manifest = json.loads((steps / str(step) / "manifest.json").read_text())
        (steps / str(step) / "manifest.json").write_text(json.dumps(manifest | {"step": step}))

    removed = set()
    real = program.evaluate

    def evaluate_or_find_gone(run, step, asked):
        if step in removed:
            shutil.rmtree(steps / str(step))
        return real(run, step, asked)

    monkeypatch.setattr(program, "evaluate", evaluate_or_find_gone)
    monkeypatch.setattr(program.time, "sleep", wait)
    assert watch(growing, asked(("geometry",), baselines=False)) == [6, 7, 8]
    assert len(waits) == 2
    cards = {path.name.partition("-settings")[0] for path in (growing / "evaluations").iterdir()}
    assert {"evaluate-6", "evaluate-7", "evaluate-8"} <= cards
    (steps / "6" / "manifest.json").write_text("{")
    capsys.readouterr()
    assert watch(growing, asked(("geometry",), baselines=False)) == [7, 8]
    said = capsys.readouterr().out
    assert f"step 6 of {growing} is passed over: its checkpoint is damaged (manifest" in said


def test_three_runs_say_whether_the_losses_order_them(card):
    """Accuracies that fall with the loss: tau is -1, whatever the other numbers are."""
    cards = []
    for number in range(4):
        content = copy.deepcopy(card.content)
        for section in ("alignment", "dense"):
            for name in ("l_a", "l_u"):
                content["sections"][section]["trained"][name]["value"] = float(number)
        predictions = Predictions(card.predictions.index, card.predictions.labels)
        wrong = np.arange(len(predictions.labels)) < 10 * number
        predictions.add("trained", "linear lbfgs", (predictions.labels + wrong) % 10)
        cards.append(dataclasses.replace(card, content=content, predictions=predictions))
    assert compare(cards[:2]).correlations == []
    comparison = compare(cards)
    assert [row["section"] for row in comparison.correlations] == ["alignment", "dense"]
    for row in comparison.correlations:
        assert row["runs"] == 4
        assert row["tau"]["value"] == pytest.approx(-1)
    assert "Kendall" in card_page(cards, comparison)


def card_settings():
    return settings_with(**{"lbfgs.max_iterations": 20, "protocol": "none"})


class Page(html.parser.HTMLParser):
    """Tags, all of them closed in their order, and whatever an attribute points to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag != "meta":  # which has no end
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone(card):
    text = (card.folder / "card.html").read_text()
    page = Page(text)
    assert page.tags.count("table") >= 9
    assert page.tags.count("svg") == 3
    assert "script" not in page.tags
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not re.search(r"https?://|url\((?!#)|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert "#000000" not in text
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names))


def test_a_plot_can_be_read_on_dark_ground_and_on_a_telephone(card):
    """What matplotlib fills with white of its own would hide the page's light words."""
    text = (card.folder / "card.html").read_text()
    filled = re.findall(r'style="[^"]*fill: (#[0-9a-f]{6})', text) + re.findall(
        r'\bfill="(#[0-9a-f]{6})"', text
    )
    assert filled
    assert "#ffffff" not in filled
    assert text.count('class="wide broad"') == 2  # the fingerprint, and the confusion matrix
    assert "-0.0," not in text
    assert " -0.0]" not in text


def test_the_run_is_left_as_it_was(run, card):
    before = files(run)
    evaluate(run, None, asked(("knn",)))
    after = files(run)
    changed = {name for name in after if after[name] != before.get(name)}
    assert all("/evaluations/evaluate-" in name for name in changed)


def test_cards_and_features_go_where_they_are_asked_to(run, card, tmp_path):
    before = files(run)
    wanted = dataclasses.replace(asked(("knn",), baselines=False), out=tmp_path / "cards")
    there = evaluate(run, None, wanted)
    assert there.folder.parent == tmp_path / "cards" / run.name
    assert (there.folder / "card.html").exists()
    assert list((tmp_path / "cards" / "features").iterdir())
    assert files(run) == before
    assert there.content["sections"]["knn"]["trained"] == card.content["sections"]["knn"]["trained"]


def test_what_was_found_is_shown_before_it_is_written(run, card, capsys, monkeypatch):
    """The directory may be read-only, or the disk full, after hours of work."""

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system", "evaluations")

    monkeypatch.setattr(Card, "write", refuse)
    with pytest.raises(OSError, match="Read-only"):
        evaluate(run, None, asked(("knn",)))
    accuracy = card.content["sections"]["knn"]["trained"]["as_is"]["dino"]
    assert f"kNN dino {100 * accuracy:.1f} %" in capsys.readouterr().out


def test_no_features_are_kept_of_either_run_if_none_are_wanted(run, tmp_path, monkeypatch):
    other, folders = copied("supervised", tmp_path), []

    class Noted(FeatureStore):
        def __init__(self, folder):
            super().__init__(folder)
            folders.append(folder)

    for module in (program, opened_runs):
        monkeypatch.setattr(module, "FeatureStore", Noted)
    monkeypatch.setattr(program, "make_card", lambda *_: pytest.fail("opened"))
    wanted = dataclasses.replace(asked(("knn",), supervised=other), keep_features=False)
    with pytest.raises(pytest.fail.Exception, match="opened"):
        evaluate(run, None, wanted)
    assert folders == [None, None]


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


@pytest.mark.parametrize(
    ("devices", "batch"),
    [
        pytest.param(1, 1000, marks=pytest.mark.slow),
        (2, 7),
        pytest.param(8, 64, marks=pytest.mark.slow),
    ],
)
def test_padding_and_devices_change_no_number(run, card, monkeypatch, devices, batch):
    from jaxssl import distributed

    monkeypatch.setattr(distributed, "data_mesh", lambda: data_mesh(devices))
    again = evaluate(
        run,
        None,
        Asked(
            Wanted(("geometry", "knn", "alignment", "dense")),
            settings_with(feature_batch_size=batch),
            data_with(),
            WHERE_TRAINED,
            baselines=False,
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

    for section in ("alignment", "dense"):
        for network, found in again.content["sections"][section].items():
            before = card.content["sections"][section][network]
            for name in ("l_a", "l_u"):
                np.testing.assert_allclose(
                    list(found[name].values()), list(before[name].values()), rtol=1e-4, atol=1e-5
                )


def test_two_runs_side_by_side(card, capsys):
    comparison = compare([card, card])
    assert comparison.differences == []  # one group: the same config
    page = Page(card_page([card, card], comparison))
    assert page.tags.count("svg") == 3
    print_card(card)
    print_comparison([card, card], comparison)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 120
    assert "global 4" in shown
    assert summary_line(card).startswith("step ")


def test_a_card_of_some_sections_replaces_no_whole_one(card):
    assert card.folder.name.startswith("evaluate-6-settings=")
    assert flag_names(Wanted(ALL), True, "") == []
    assert flag_names(Wanted(("knn",), every_severity=True), True, "") == ["sections=knn"]
    assert flag_names(Wanted(ALL, every_severity=True), False, "") == ["all", "no_baselines"]
    assert flag_names(Wanted(ALL, refit=True), True, "12345678ab") == [
        "refit",
        "supervised=12345678",
    ]


def test_unknown_sections_and_layers_are_refused(run):
    with pytest.raises(UserError, match="--sections=fingerprnt is unknown"):
        chosen_sections(["fingerprnt"])
    with pytest.raises(UserError, match=r"--probe\.layer=stage9 is unknown"):
        evaluate(run, None, asked(("knn",), layer="stage9"))
