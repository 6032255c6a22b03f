"""The plots of an evaluation card, from its JSON."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib import rc_context

from jaxssl.evaluation.html import COLOURS, PLAIN, new_figure

Rows = Mapping[str, Mapping[str, Any]]
LONGEST = 40
"""Letters of a name in a plot; of a longer one both ends are shown."""


def all_keys(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """All keys in their order: runs on other images have other conditions, protocols and shots."""
    return list(dict.fromkeys(key for one in found for key in one))


@rc_context(PLAIN)
def fingerprint_plot(networks: Mapping[str, Rows]) -> matplotlib.figure.Figure:
    """Accuracy, uniformity and cosine under each condition, with intervals, one colour a network.

    Hollow: the accuracy of a classifier that was fitted under the condition.
    """
    names = all_keys(networks.values())
    step = min(0.16, 0.8 / len(networks))
    figure = new_figure(8.5, 1.2 + 0.36 * len(names))
    axes = figure.subplots(1, 3, sharey=True)
    kinds = (
        ("accuracy", "accuracy, %", 100.0),
        ("uniformity", "uniformity U", 1.0),
        ("cosine", "cosine to clean", 1.0),
    )
    shown: dict[str, Any] = {}
    for axis, (kind, said, scale) in zip(axes, kinds, strict=True):
        for number, (network, rows) in enumerate(networks.items()):
            places = np.arange(len(names)) + step * (number - (len(networks) - 1) / 2)
            known = [rows.get(name, {}) for name in names]
            look = {"color": COLOURS[number % len(COLOURS)]}
            dots = _dots(axis, places, [row.get(kind) for row in known], scale, look)
            if dots is not None:
                shown.setdefault(network, dots)
            anew = [row.get("refitted", {}).get(kind) for row in known]
            _dots(axis, places, anew, scale, {**look, "markerfacecolor": "none"})
        axis.set_xlabel(said)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(np.arange(len(names)), names)
    axes[0].invert_yaxis()
    if len(networks) > 1:
        _legend(figure, shown, loc="outside upper center", ncols=6)
    return figure


def _legend(place: Any, shown: Mapping[str, Any], **how: Any) -> None:
    """Of what was drawn by its name; matplotlib itself leaves out one that begins with ``_``."""
    numbers = [str(number) for number in range(len(shown))]
    # The frame would be filled with white, whatever the page's ground.
    legend = place.legend(list(shown.values()), numbers, frameon=False, **how)
    for text, name in zip(legend.get_texts(), shown, strict=True):
        text.set_text(shortened(name))


def shortened(name: str) -> str:
    """A name of `LONGEST` letters at most."""
    if len(name) <= LONGEST:
        return name
    begin = (LONGEST - 1) // 2
    return f"{name[:begin]}…{name[begin + 1 - LONGEST :]}"


def _dots(
    axis: Any, places: Any, cells: Sequence[Any], scale: float, look: Mapping[str, Any]
) -> Any:
    known = [(place, cell) for place, cell in zip(places, cells, strict=True) if cell]
    if not known:
        return None
    values = scale * np.array([cell["value"] for _, cell in known], float)
    ends = scale * np.array([[cell["low"], cell["high"]] for _, cell in known], float).T
    return axis.errorbar(
        values,
        [place for place, _ in known],
        xerr=np.abs(ends - values),
        fmt="o",
        markersize=4,
        linewidth=1.5,
        **look,
    )


@rc_context(PLAIN)
def reliability_plot(
    networks: Mapping[str, Sequence[Mapping[str, Any]]],
) -> matplotlib.figure.Figure:
    """Accuracy against confidence; the size of a dot is the share of the predictions."""
    figure = new_figure(4.2, 3.8)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="#000000", linewidth=0.8, alpha=0.5)
    shown: dict[str, Any] = {}
    for number, (network, bins) in enumerate(networks.items()):
        known = [one for one in bins if one["accuracy"] is not None]
        shown[network] = axis.scatter(
            [one["confidence"] for one in known],
            [one["accuracy"] for one in known],
            s=[10 + 200 * one["share"] for one in known],
            color=COLOURS[number % len(COLOURS)],
            alpha=0.8,
        )
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    if len(networks) > 1:
        _legend(axis, shown)
    return figure


@rc_context(PLAIN)
def confusion_plot(
    confusion: Sequence[Sequence[int]], names: Sequence[str]
) -> matplotlib.figure.Figure:
    """Share of each true class (rows) that is taken for each class."""
    counts = np.array(confusion, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(3 + 0.28 * len(counts), 9)
    figure = new_figure(side + 0.6, side)
    axis = figure.subplots()
    shown = axis.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    if len(counts) <= 30:
        classes = [shortened(name) for name in names]
        axis.set_xticks(range(len(counts)), classes, rotation=90)
        axis.set_yticks(range(len(counts)), classes)
    axis.set(xlabel="taken for", ylabel="true class")
    figure.colorbar(shown, ax=axis, shrink=0.8)
    return figure
