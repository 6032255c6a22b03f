"""Evaluation cards and comparisons as pages and terminal tables."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxssl.corruptions.apply import setting_name
from jaxssl.evaluation.card import Card, changed_settings
from jaxssl.evaluation.comparison import Comparison
from jaxssl.evaluation.html import Part, Plot, Table, Text, page
from jaxssl.evaluation.plots import (
    all_keys,
    confusion_plot,
    fingerprint_plot,
    reliability_plot,
)
from jaxssl.evaluation.probe import AS_TRAINED
from jaxssl.evaluation.sections.fingerprint import mean_drop
from jaxssl.words import counted

Cell = Mapping[str, float | None] | None
ALONE = Comparison()
"""One card, which is compared with none."""


def percent(number: float | None) -> str:
    """A share in percent, one digit; a dash for none."""
    return "-" if number is None else _digits(100 * number, 1)


def with_interval(cell: Cell, scale: float = 100.0, digits: int = 1) -> str:
    """A value and its interval; a dash for none."""
    if cell is None or cell["value"] is None:
        return "-"
    numbers = [cell[key] for key in ("value", "low", "high")]
    value, *ends = ("" if n is None else _digits(scale * n, digits) for n in numbers)
    return f"{value} [{', '.join(ends)}]" if all(ends) else value


def plus_minus(cell: Cell, scale: float = 100.0, digits: int = 1) -> str:
    """A value and half the width of its interval, for a terminal; a dash for none."""
    if cell is None or cell["value"] is None:
        return "-"
    value, low, high = cell["value"], cell["low"], cell["high"]
    said = _digits(scale * value, digits)
    return said if low is None or high is None else f"{said} ±{scale * (high - low) / 2:.{digits}f}"


def card_page(cards: Sequence[Card], comparison: Comparison = ALONE) -> str:
    """One page for one run, or for several side by side."""
    names = run_names([card.content["run"] for card in cards])
    heading = ", ".join(names.values())
    sections: list[tuple[str, Sequence[Part]]] = []
    if comparison.differences:
        sections.append(("Differences", [differences_table(comparison.differences, names)]))
    if comparison.correlations:
        sections.append(("Losses and accuracy", [correlations_table(comparison.correlations)]))
    makers = {
        "fingerprint": _fingerprint,
        "linear": _linear,
        "knn": _knn,
        "few_shot": _few_shot,
        "geometry": _geometry,
        "alignment": _alignment,
        "dense": _dense,
        "calibration": _calibration,
    }
    for section, maker in makers.items():
        found = _of_section(cards, names, section)
        if found:
            sections.append((_TITLES[section], maker(cards[0], found)))
    sections.append(("What was evaluated", [_about(card) for card in cards]))
    return page(f"Evaluation of {heading}", sections)


_TITLES = {
    "fingerprint": "Reliance fingerprint",
    "linear": "Linear probes",
    "knn": "Nearest neighbours",
    "few_shot": "Few labels",
    "geometry": "Geometry of the features",
    "alignment": "Alignment and uniformity of two views",
    "dense": "Alignment and uniformity of maps",
    "calibration": "Calibration of the linear classifier",
}


def run_names(runs: Sequence[str]) -> dict[str, str]:
    """A short name for each run: the last parts of its path that tell them apart.

    A name may be that of a folder below another: it holds no ``..`` and begins with no ``/``.
    """
    paths = [parts_of(run) for run in runs]
    for parts in range(1, max(map(len, paths)) + 1):
        short = ["/".join(path[-parts:]) for path in paths]
        if len(set(short)) == len(set(paths)):
            break
    return dict(zip(runs, short, strict=True))


def parts_of(run: str) -> tuple[str, ...]:
    """Of the whole path of a run, wherever the program was started."""
    whole = run.partition("://")[2] if "://" in run else os.path.abspath(run)
    return tuple(part for part in whole.split("/") if part not in ("", ".", "..")) or ("run",)


BASELINES = ("pixels", "supervised")
"""Networks that are the same beside every run."""


def _of_section(
    cards: Sequence[Card], names: Mapping[str, str], section: str
) -> dict[str, Mapping[str, Any]]:
    """Results by what to call the network: the run's name, or that of a baseline, once."""
    found: dict[str, Mapping[str, Any]] = {}
    several = len(cards) > 1
    for card in cards:
        for network, result in card.content["sections"].get(section, {}).items():
            run = names[card.content["run"]]
            run = f"run {run}" if run in BASELINES else run
            if network == "trained":
                found[run if several else "trained"] = result
            elif network in BASELINES:
                found.setdefault(network, result)
            else:
                found[f"{run} {network}" if several else network] = result
    return found


def differences_table(comparisons: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Table:
    """Paired differences, in points."""
    rows = []
    for row in comparisons:
        told = (
            f"p = {row['p_value']:.2g}"
            if "p_value" in row
            else f"{row['seeds']} seeds, pairing removed {percent(row['variance_removed'])} %"
        )
        first, second = ("+".join(names[run] for run in row[key]) for key in ("first", "second"))
        rows.append(
            (
                f"{second} - {first}",
                row["by"],
                *(percent(accuracy) for accuracy in row["accuracy"]),
                with_interval(row["difference"]),
                told,
            )
        )
    return Table(
        "Top-1 in percent over the same test images, and the paired difference with its 95 % "
        "interval. p: McNemar's exact test.",
        ("runs", "predicted by", "first", "second", "difference", ""),
        rows,
    )


def correlations_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Whether the losses order the runs as their accuracy does."""
    return Table(
        "Kendall's tau of L_a + L_u, each brought to [0, 1] over the runs, and accuracy, with its "
        "95 % interval over runs; negative: runs of a smaller loss are better.",
        ("losses of", "accuracy by", "runs", "tau"),
        [
            (
                _TITLES[row["section"]],
                row["by"],
                str(row["runs"]),
                with_interval(row["tau"], 1.0, 2),
            )
            for row in rows
        ],
    )


def _fingerprint(card: Card, found: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    conditions = all_keys(found.values())
    parts: list[Part] = [
        Text(
            "The linear classifier is fitted once, on clean training images; only the test images "
            "are changed. Drops are relative to the clean row, over the same images."
        ),
        Plot(
            _caption(card, "Accuracy, uniformity U and cosine to the clean feature"),
            fingerprint_plot(found),
        ),
    ]
    for network, rows in found.items():
        table = [
            (
                name,
                with_interval(row.get("accuracy")),
                with_interval(row.get("delta_a")),
                with_interval(row.get("uniformity"), 1.0, 2),
                with_interval(row.get("delta_u")),
                with_interval(row.get("cosine"), 1.0, 3),
            )
            for name, row in ((name, rows.get(name, {})) for name in conditions)
        ]
        means = [percent(_none(mean_drop(rows, kind))) for kind in ("delta_a", "delta_u")]
        table.append(("mean drop", "", means[0], "", means[1], ""))
        columns = ("condition", "accuracy %", "drop of it %", "U", "drop of U %", "cosine")
        parts.append(Table(f"{network}, with 95 % intervals over images", columns, table))
    refitted = {
        network: {name: row["refitted"] for name, row in rows.items() if "refitted" in row}
        for network, rows in found.items()
    }
    return parts + [_refitted(network, rows) for network, rows in refitted.items() if rows]


def _refitted(network: str, rows: Mapping[str, Any]) -> Table:
    table = [
        (name, with_interval(row["accuracy"]), with_interval(row["delta_a"]))
        for name, row in rows.items()
    ]
    table.append(("mean drop", "", percent(_none(mean_drop(rows)))))
    caption = (
        f"{network}, the classifier fitted anew on training images under each condition; drops are "
        "relative to the clean row above"
    )
    return Table(caption, ("condition", "accuracy %", "drop of it %"), table)


def _linear(card: Card, found: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    fits = all_keys(found.values())
    settings = card.content["settings"]
    said = {
        "lbfgs": "all labels",
        "lbfgs_few": f"{counted(settings['labels_per_class'], 'label')} a class",
        "sgd": f"SGD, {counted(settings['sgd']['epochs'], 'epoch')}",
    }
    rows = [
        (network, *(with_interval(result.get(fit, {}).get("interval")) for fit in fits))
        for network, result in found.items()
    ]
    return [Table(_caption(card, "Top-1 in percent"), ("network", *(said[f] for f in fits)), rows)]


def _knn(card: Card, found: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    protocols = all_keys(result["as_is"] for result in found.values())
    rows = []
    for network, result in found.items():
        for how, said in (("as_is", ""), ("standardised", ", standardised")):
            rows.append((network + said, *(percent(result[how].get(name)) for name in protocols)))
    return [Table(_caption(card, "Top-1 in percent by protocol"), ("network", *protocols), rows)]


def _few_shot(card: Card, found: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    shots = all_keys(found.values())
    rows = [
        (network, *(with_interval(result.get(n, {}).get("top1")) for n in shots))
        for network, result in found.items()
    ]
    columns = ("network", *(f"{n} a class" for n in shots))
    return [Table(_caption(card, "Top-1 in percent of ridge regression"), columns, rows)]


def _geometry(card: Card, found: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    rows = [
        (
            network,
            with_interval(result["uniformity"], 1.0, 3),
            _number(result["classwise_uniformity"]),
            _number(result["distance_within_classes"]),
            _number(result["distance_between_classes"]),
            f"{result['rankme']:.1f} of {result['dimensions']}",
            f"{result['feature_std']:.3f}",
            f"{result['norm']['mean']:.3g}",
        )
        for network, result in found.items()
    ]
    columns = ("network", "U", "U in a class", "d in a class", "d between", "RankMe", "std", "norm")
    caption = "U = -log E exp(-2 d^2), larger is more even; d: mean squared distances"
    return [Table(_caption(card, caption), columns, rows)]


def _alignment(card: Card, found: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    rows = [
        (network, *(with_interval(result[name], 1.0, 3) for name in ("l_a", "l_u", "sum")))
        for network, result in found.items()
    ]
    caption = (
        "L_a = E d^2 between two augmented views, L_u = log E exp(-2 d^2) between images; the "
        "smaller the better"
    )
    return [Table(_caption(card, caption), ("network", "L_a", "L_u", "L_a + L_u"), rows)]


def _dense(card: Card, found: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    rows = [
        (
            network,
            f"{result['layer']}, {counted(result['cells'], 'cell')}",
            *(with_interval(result[name], 1.0, 3) for name in ("l_a", "l_u", "sum")),
            _number(result["l_u_t1"]),
        )
        for network, result in found.items()
    ]
    images = next(iter(found.values()))["images"]
    caption = (
        "Over cells of the same index: L_a = minus the mean cosine of two augmented views, "
        f"L_u = log E exp(-t d^2) between images, t = 2 and 1; {images:,} test images of "
        f"{card.content['data']['name']}"
    )
    columns = ("network", "map", "L_a", "L_u", "L_a + L_u", "L_u, t = 1")
    return [Table(caption, columns, rows)]


def _calibration(card: Card, found: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    rows = [(network, percent(result["ece"])) for network, result in found.items()]
    trained = next(iter(found.values()))
    parts: list[Part] = [
        Table(_caption(card, "Expected calibration error, 15 bins"), ("network", "ECE %"), rows),
        Plot("Reliability diagram", reliability_plot({k: v["bins"] for k, v in found.items()})),
    ]
    if trained["confusion"] is not None:
        plot = confusion_plot(trained["confusion"], trained["class_names"])
        parts.append(Plot(f"Confusion of {next(iter(found))}", plot))
    return parts


def _caption(card: Card, what: str) -> str:
    layer, count = card.content["settings"]["layer"], card.content["examples"]["test"]
    return f"{what}; {count:,} test images of {card.content['data']['name']}, layer {layer}"


def _about(card: Card) -> Part:
    content = card.content
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    settings = ConfigDict(content["settings"])
    tested = settings.test_corruption
    corrupted = setting_name(card.config.corruption)
    own = tested.name == AS_TRAINED
    changed = changed_settings(settings, ("test_corruption",))
    told = ", ".join(f"{key}={value}" for key, value in changed.items())
    lines = (
        f"run      {content['run']} ({content['method']}), step {content['step']}",
        f"encoder  {content['encoder_sha256'][:16]}",
        f"data     {content['data']['name']}, {content['data']['sha256'][:16]}",
        f"images   corruption of the run: {corrupted}; test images: "
        + ("likewise" if own else setting_name(tested)),
        f"settings {told or 'all as by default'}",
        f"code     {content['commit']}",
        f"on       {content['device_count']} x {content['device_kind']}; {versions}",
    )
    return Text("\n".join(lines), listing=True)


def _number(value: float | None) -> str:
    return "-" if value is None else _digits(value, 3)


def _digits(value: float, count: int) -> str:
    """So many digits after the point, and no minus before nothing."""
    text = f"{value:.{count}f}"
    return text if float(text) else text.removeprefix("-")


def _none(value: float) -> float | None:
    return None if value != value else value
