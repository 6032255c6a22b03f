"""The plots of an evaluation card, from its JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np

from jaxssl.evaluation.html import COLOURS, new_figure

Rows = Mapping[str, Mapping[str, Any]]


def fingerprint_plot(networks: Mapping[str, Rows]) -> matplotlib.figure.Figure:
    """Accuracy, uniformity and cosine under each condition, with intervals, one colour a network.

    Hollow: the accuracy of a classifier that was fitted under the condition.
    """
    names = list(next(iter(networks.values())))
    step = min(0.16, 0.8 / len(networks))
    figure = new_figure(8.5, 1.2 + 0.36 * len(names))
    axes = figure.subplots(1, 3, sharey=True)
    kinds = (
        ("accuracy", "accuracy, %", 100.0),
        ("uniformity", "uniformity U", 1.0),
        ("cosine", "cosine to clean", 1.0),
    )
    for axis, (kind, said, scale) in zip(axes, kinds, strict=True):
        for number, (network, rows) in enumerate(networks.items()):
            places = np.arange(len(names)) + step * (number - (len(networks) - 1) / 2)
            known = [rows.get(name, {}) for name in names]
            look = {"color": COLOURS[number % len(COLOURS)], "label": network}
            _dots(axis, places, [row.get(kind) for row in known], scale, look)
            anew = [row.get("refitted", {}).get(kind) for row in known]
            _dots(axis, places, anew, scale, {**look, "label": "", "markerfacecolor": "none"})
        axis.set_xlabel(said)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(np.arange(len(names)), names)
    axes[0].invert_yaxis()
    if len(networks) > 1:
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False
        )
    return figure


def _dots(
    axis: Any, places: Any, cells: Sequence[Any], scale: float, look: Mapping[str, Any]
) -> None:
    known = [(place, cell) for place, cell in zip(places, cells, strict=True) if cell]
    if not known:
        return
    values = scale * np.array([cell["value"] for _, cell in known], float)
    ends = scale * np.array([[cell["low"], cell["high"]] for _, cell in known], float).T
    axis.errorbar(
        values,
        [place for place, _ in known],
        xerr=np.abs(ends - values),
        fmt="o",
        markersize=4,
        linewidth=1.5,
        **look,
    )


def reliability_plot(
    networks: Mapping[str, Sequence[Mapping[str, Any]]],
) -> matplotlib.figure.Figure:
    """Accuracy against confidence; the size of a dot is the share of the predictions."""
    figure = new_figure(4.2, 3.8)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="#000000", linewidth=0.8, alpha=0.5)
    for number, (network, bins) in enumerate(networks.items()):
        known = [one for one in bins if one["accuracy"] is not None]
        axis.scatter(
            [one["confidence"] for one in known],
            [one["accuracy"] for one in known],
            s=[10 + 200 * one["share"] for one in known],
            color=COLOURS[number % len(COLOURS)],
            alpha=0.8,
            label=network,
        )
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    if len(networks) > 1:
        axis.legend(frameon=False)  # whose ground is white, whatever the page's
    return figure


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
        axis.set_xticks(range(len(counts)), names, rotation=90)
        axis.set_yticks(range(len(counts)), names)
    axis.set(xlabel="taken for", ylabel="true class")
    figure.colorbar(shown, ax=axis, shrink=0.8)
    return figure
