"""Differences between runs: over the same images, and over seeds where there are several."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxssl.errors import UserError
from jaxssl.evaluation.card import Card
from jaxssl.evaluation.comparison import compare
from jaxssl.evaluation.sections.predictions import Predictions
from jaxssl.storage import as_path

IMAGES = 400


def card(name, accuracy, *, seed=0, rate=0.1, luck=None, index=None, labels=None):
    """A run whose classifier is right where the luck of an image is below an accuracy."""
    rng = np.random.default_rng(1000 + seed)
    labels = np.zeros(IMAGES, int) if labels is None else labels
    index = np.arange(IMAGES) if index is None else index
    luck = rng.random(IMAGES) if luck is None else luck
    predictions = Predictions(index, labels)
    predictions.add("trained", "linear lbfgs", np.where(luck < accuracy, labels, labels + 1))
    config = ConfigDict({"seed": seed, "init_seed": seed, "data_seed": seed, "rate": rate})
    config.run, config.evals = ConfigDict(), ConfigDict()
    return Card({"run": name, "sections": {}}, predictions, config, as_path("unused", "--run"), {})


def differing(cards):
    return compare(cards).differences


def test_two_runs_are_compared_image_by_image():
    luck = np.random.default_rng(0).random(IMAGES)
    (row,) = differing([card("a", 0.8, luck=luck), card("b", 0.7, rate=0.2, luck=luck)])
    first, second = ((luck < share).mean() for share in (0.8, 0.7))
    assert row["accuracy"] == [first, second]
    assert row["difference"]["value"] == pytest.approx(second - first)
    assert row["difference"]["high"] < 0
    assert row["p_value"] < 1e-6
    # Of images with a luck of their own the same difference is hardly one.
    (apart,) = differing([card("a", 0.8), card("b", 0.7, rate=0.2, luck=luck)])
    paired, unpaired = (
        one["difference"]["high"] - one["difference"]["low"] for one in (row, apart)
    )
    assert paired < 0.6 * unpaired


def test_runs_that_differ_in_their_seeds_alone_are_one_group():
    lucks = np.random.default_rng(1).random((4, IMAGES))
    groups = [
        [card(f"{name}{s}", share, seed=s, rate=rate, luck=lucks[s]) for s in order]
        for name, share, rate, order in (("a", 0.8, 0.1, range(4)), ("b", 0.75, 0.2, (3, 1, 0, 2)))
    ]
    (row,) = differing([groups[0][0], *groups[1], *groups[0][1:]])
    assert row["first"] == ["a0", "a1", "a2", "a3"]
    assert row["seeds"] == 4
    # Paired by seed, whatever the order on the command line.
    assert row["variance_removed"] > 0.5
    assert 2 <= row["seeds_needed"]["0.01"] <= row["seeds_needed"]["0.005"]
    assert row["difference"]["low"] < -0.05 < row["difference"]["high"]


def test_only_seeds_that_both_sides_have_are_paired(capsys):
    """Two methods that are the same seed by seed, and seeds that differ much."""
    lucks, shares = np.random.default_rng(1).random((3, IMAGES)), (0.4, 0.6, 0.9)

    def group(name, rate, seeds):
        return [card(f"{name}{s}", shares[s], seed=s, rate=rate, luck=lucks[s]) for s in seeds]

    (row,) = differing([*group("a", 0.1, (0, 1, 2)), *group("b", 0.2, (1, 2))])
    assert (row["first"], row["second"], row["seeds"]) == (["a1", "a2"], ["b1", "b2"], 2)
    assert row["difference"]["value"] == 0
    assert row["accuracy"][0] == row["accuracy"][1]
    assert "no such seed: a0" in capsys.readouterr().out
    (row,) = differing([*group("a", 0.1, (0, 1, 2)), *group("b", 0.2, (2,))])
    assert (row["first"], row["second"]) == (["a2"], ["b2"])
    assert (row["difference"]["value"], row["p_value"]) == (0, 1)
    assert differing([*group("a", 0.1, (0, 1)), *group("b", 0.2, (2,))]) == []
    # The same run twice is one.
    one = group("a", 0.1, (0,))
    (row,) = differing([*one, *one, *group("b", 0.2, (0,))])
    assert row["first"] == ["a0"]


def test_where_data_lie_makes_no_other_group():
    cards = [card(f"a{s}", 0.8, seed=s) for s in (0, 1)]
    for number, one in enumerate(cards):
        one.config.data = ConfigDict({"name": "cifar10", "data_dir": f"place{number}"})
    assert differing(cards) == []


def test_other_images_and_other_labels_are_refused():
    first = card("a", 0.8)
    with pytest.raises(UserError, match="different test images"):
        compare([first, card("b", 0.8, index=np.arange(IMAGES) + 1)])
    with pytest.raises(UserError, match="labels of the test images differ"):
        compare([first, card("b", 0.8, labels=np.ones(IMAGES, int))])


def test_predictions_survive_their_file(tmp_path):
    predictions = card("a", 0.5).predictions
    predictions.save(tmp_path / "p.npz")
    found = Predictions.load(tmp_path / "p.npz")
    assert found.of("trained") == ["linear lbfgs"]
    np.testing.assert_array_equal(
        found.right("trained", "linear lbfgs"), predictions.right("trained", "linear lbfgs")
    )
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match="holds no predictions"):
        Predictions.load(tmp_path / "bad.npz")
