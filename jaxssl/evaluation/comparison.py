"""Runs side by side: differences over the same test images, and over seeds where there are several.

Runs that differ in their seeds alone are one group. A group of one is compared image by image
(McNemar's exact test and the paired bootstrap); groups of several are paired seed by seed too, over
the seeds that both have, and the interval is that of crossed random effects, seeds by images.

Over three runs or more, seeds included, the losses of alignment and uniformity are ranked against
the accuracy (Moon, Kim and Choi, BMVC 2022).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxssl.distributed import say
from jaxssl.errors import UserError
from jaxssl.evaluation.card import Card
from jaxssl.evaluation.opened import Opened, are_other_images
from jaxssl.evaluation.sections.predictions import interval_json
from jaxssl.metrics.paired import (
    crossed_interval,
    difference,
    image_bootstrap,
    mcnemar,
    seeds_needed,
    variance_removed,
)
from jaxssl.metrics.rank_correlation import kendall_interval
from jaxssl.run_directory import MAY_CHANGE

_SEEDS = ("seed", "init_seed", "data_seed")


HALF_WIDTHS = (0.01, 0.005)  # of a difference of accuracies, for which seeds are counted
FEWEST_TO_RANK = 3  # two runs are in order or not, which says nothing


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What several cards say together.

    Attributes:
      differences: see `differences`.
      correlations: see `correlations`.
    """

    differences: Sequence[Mapping[str, Any]] = ()
    correlations: Sequence[Mapping[str, Any]] = ()


def compare(cards: Sequence[Card], *, seed: int = 0) -> Comparison:
    """All that is to be said of several cards together; `seed` is that of the bootstraps.

    Raises:
      UserError: if the cards are not of the same test images.
    """
    return Comparison(differences(cards, seed), correlations(cards, seed))


def correlations(cards: Sequence[Card], seed: int) -> list[dict[str, Any]]:
    """Kendall's tau of L_a + L_u, each between 0 and 1 over the runs, and linear accuracy.

    Args:
      cards: one a run.
      seed: of the bootstrap over runs.

    Returns:
      rows: ``section``, ``by`` (whose accuracy), ``runs``, ``tau``, an interval: negative where
      the runs of a smaller loss are better. None for fewer than `FEWEST_TO_RANK` runs.
    """
    rows = []
    by = "linear lbfgs"
    for section in ("alignment", "dense"):
        known = [
            (found[section]["trained"], float(card.predictions.right("trained", by).mean()))
            for card in cards
            if "trained" in (found := card.content["sections"]).get(section, {})
            and by in card.predictions.of("trained")
        ]
        if len(known) >= FEWEST_TO_RANK:
            l_a, l_u = (
                np.array([losses[name]["value"] for losses, _ in known]) for name in ("l_a", "l_u")
            )
            accuracy = np.array([accuracy for _, accuracy in known])
            tau = interval_json(kendall_interval(l_a, l_u, accuracy, seed=seed))
            rows.append({"section": section, "by": by, "runs": len(known), "tau": tau})
    return rows


def differences(cards: Sequence[Card], seed: int) -> list[dict[str, Any]]:
    """Each group of runs against the first one, for everything that was predicted in both.

    Args:
      cards: in the order given; the first one's group is the reference.
      seed: of the bootstrap.

    Returns:
      rows: ``first`` and ``second`` (the runs that are paired), ``by``, the ``accuracy`` of
      either, ``difference`` (second minus first, an interval), and ``p_value`` or, of several
      seeds, ``seeds``, ``variance_removed``, ``components`` and ``seeds_needed`` by half-width.

    Raises:
      UserError: if the cards are not of the same test images.
    """
    first = cards[0]
    for card in cards[1:]:
        _check_same_images(first, card)
    groups: dict[str, list[Card]] = {}
    for card in cards:
        groups.setdefault(_without_seeds(card.config), []).append(card)
    reference, *others = groups.values()
    return [
        _row(*pair, by, seed)
        for other in others
        if (pair := _paired(reference, other)) is not None
        for by in first.predictions.of("trained")
        if all(by in card.predictions.of("trained") for side in pair for card in side)
    ]


def _row(first: Sequence[Card], second: Sequence[Card], by: str, seed: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "first": [card.content["run"] for card in first],
        "second": [card.content["run"] for card in second],
        "by": by,
    }
    one, two = (
        np.stack([card.predictions.right("trained", by) for card in side])
        for side in (first, second)
    )
    row["accuracy"] = [float(one.mean()), float(two.mean())]
    if len(one) > 1:
        one, two = (side.astype(np.float64) for side in (one, two))
        found = crossed_interval(two - one)
        return row | {
            "difference": interval_json(found.interval),
            "seeds": len(one),
            "variance_removed": variance_removed(two, one),
            "components": found.components._asdict(),
            "seeds_needed": {
                str(width): seeds_needed(found.components, one.shape[1], width)
                for width in HALF_WIDTHS
            },
        }
    pair = np.stack([two[0], one[0]], axis=1)
    return row | {
        "difference": interval_json(image_bootstrap(pair, difference, seed=seed)),
        "p_value": mcnemar(one[0], two[0]).p_value,
    }


def _paired(
    first: Sequence[Card], second: Sequence[Card]
) -> tuple[Sequence[Card], Sequence[Card]] | None:
    """The runs of two groups that have their seeds in common, in one order; None: there are none.

    Two single runs are a pair whatever their seeds: over the images alone.
    """
    ones, twos = (
        {tuple(int(card.config[key]) for key in _SEEDS): card for card in reversed(group)}
        for group in (first, second)
    )
    common = sorted({*ones} & {*twos})
    used = [*(ones[seeds] for seeds in common), *(twos[seeds] for seeds in common)]
    if not common and len(ones) == len(twos) == 1:
        return first[:1], second[:1]
    unused = [card.content["run"] for card in (*first, *second) if card not in used]
    if unused:
        say(f"left out of a comparison, whose other side has no such seed: {', '.join(unused)}")
    return (used[: len(common)], used[len(common) :]) if common else None


def _without_seeds(config: ConfigDict) -> str:
    """What makes runs one group: all of the config that is a run's identity, but its seeds."""
    content = config.to_dict()
    for key in (*_SEEDS, *MAY_CHANGE):
        *groups, last = key.split(".")
        group = content
        for name in groups:
            group = group.get(name, {})
        group.pop(last, None)
    return json.dumps(content, sort_keys=True, default=str)


def check_same_images(first: Card, opened: Opened) -> None:
    """Raises UserError, before anything is computed, if a run has other test images than a card."""
    if are_other_images(first.content["data"]["test"], opened.parts["test"].identity):
        raise UserError(
            f"{opened.run} would be tested on other images than {first.content['run']}: name a set "
            "for both by --data.name, or evaluate them one by one."
        )


def _check_same_images(first: Card, other: Card) -> None:
    one, two = first.predictions, other.predictions
    if len(one.index) != len(two.index) or (one.index != two.index).any():
        raise UserError(
            f"{first.content['run']} and {other.content['run']} were evaluated on different test "
            f"images ({len(one.index)} and {len(two.index)}): evaluate both on one set by "
            "--data.name."
        )
    if (one.labels != two.labels).any():
        raise UserError(
            f"the labels of the test images differ between {first.content['run']} and "
            f"{other.content['run']}: evaluate both on one set by --data.name."
        )
