"""Evaluates checkpoints: ``python -m jaxssl.evaluate --run DIR [--run DIR2 ...]``.

checkpoint -> frozen layer -> features -> sections -> a card. Sections are linear probes, nearest
neighbours by every named protocol, few labels, the geometry of the features, calibration, and the
reliance fingerprint: what is left of the accuracy and of the features when the test images are
shuffled, darkened, blurred. ``--sections=knn,geometry`` asks for some of them. Several runs are put
side by side, and the others' differences from the first are paired over the same test images; runs
that differ in their seeds alone count as one, with several seeds.

``--watch`` evaluates each checkpoint of a running training as it lands, until its last step.
Writes ``card.json`` and ``card.html`` into ``evaluations/evaluate-<step>/`` of each run, and a
comparison into ``--out``. Reads the runs and changes nothing in them.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from jaxssl import cli, distributed
from jaxssl.checkpoint import CheckpointReader
from jaxssl.errors import UserError
from jaxssl.evaluation import probe
from jaxssl.evaluation.card import Card, chosen_sections, make_card
from jaxssl.evaluation.comparison import compare
from jaxssl.evaluation.opened import open_run, say
from jaxssl.evaluation.pages import card_page, percent, plus_minus, run_names
from jaxssl.evaluation.probe_data import Place, data_settings
from jaxssl.evaluation.store import FeatureStore
from jaxssl.linear_probe import check_settings
from jaxssl.reporting import print_table, text_table
from jaxssl.run_directory import read_info
from jaxssl.storage import Path, as_path, check_writable, write_json, write_whole

SECONDS_BETWEEN_LOOKS = 20.0


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the flags ask for.

    Attributes:
      sections: names of sections.
      settings: see `jaxssl.evaluation.probe.default_config`.
      data: another labelled set, see `data_settings`.
      place: where the runs' own data lie now.
      baselines: also the untrained network and raw pixels.
      every_severity: of the fingerprint.
      keep_features: on disk, beside the run.
    """

    sections: Sequence[str]
    settings: ConfigDict
    data: ConfigDict
    place: Place
    baselines: bool = True
    every_severity: bool = False
    keep_features: bool = True


def evaluate(run: Path, step: int | None, asked: Asked) -> Card:
    """Evaluates one checkpoint, and writes its card.

    Args:
      run: directory of a pretraining run.
      step: which checkpoint; None: the newest sound one.
      asked: what to do.

    Raises:
      UserError: for whatever the user can mend.
    """
    check_settings(asked.settings)
    store = FeatureStore(run / "evaluations" / "features" if asked.keep_features else None)
    opened = open_run(
        run,
        step,
        asked.settings,
        asked.baselines,
        None,
        asked.data,
        asked.place,
        reuse_classifiers=not asked.settings.refit,
        store=store,
    )
    say(f"evaluating {run}, step {opened.restored.step}: {', '.join(asked.sections)}")
    card = make_card(opened, asked.sections, asked.settings, every_severity=asked.every_severity)
    card.write(card_page([card], []))
    return card


def watch(run: Path, asked: Asked) -> None:
    """Evaluates each checkpoint of a run as it lands, until that of its last step."""
    done: set[int] = set()
    last = int(read_info(run)["spec"]["total_steps"])
    while True:
        for step in CheckpointReader(run / "checkpoints").steps():
            if step not in done:
                card = evaluate(run, step, asked)
                say(summary_line(card))
                done.add(step)
        if last in done:
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def summary_line(card: Card) -> str:
    """The first numbers of a card in one line."""
    found = card.content["sections"]
    parts = [f"step {card.content['step']}"]
    if "linear" in found:
        parts.append(f"linear {percent(found['linear']['trained']['lbfgs']['top1'])} %")
    if "knn" in found:
        accuracies = found["knn"]["trained"]["as_is"]
        parts += [f"kNN {name} {percent(value)} %" for name, value in accuracies.items()]
    if "geometry" in found:
        parts.append(f"U {found['geometry']['trained']['uniformity']['value']:.3f}")
    return "  ".join(parts)


def print_cards(cards: Sequence[Card], comparisons: Sequence[Mapping[str, Any]]) -> None:
    """The tables that fit a terminal; the pages have the rest."""
    names = run_names(cards)
    for card in cards:
        say(f"{names[card.content['run']]}: {summary_line(card)}")
        if "fingerprint" in card.content["sections"]:
            print_table(_fingerprint_table(card))
    if comparisons:
        rows = [
            (
                "+".join(names[run] for run in row["second"]),
                row["by"],
                plus_minus(row["difference"]),
            )
            for row in comparisons
        ]
        title = f"Differences from {names[cards[0].content['run']]}, in points, 95 % intervals"
        print_table(text_table(rows, ("run", "predicted by", "difference"), title))


def _fingerprint_table(card: Card) -> Any:
    found = card.content["sections"]["fingerprint"]
    rows = [
        (
            name,
            *(plus_minus(rows[name]["accuracy"]) for rows in found.values()),
            plus_minus(found["trained"][name].get("delta_a")),
        )
        for name in found["trained"]
    ]
    columns = ("condition", *(f"{network} %" for network in found), "drop of trained %")
    title = "Reliance fingerprint: top-1 and half the width of its 95 % interval over images"
    return text_table(rows, columns, title)


def _main(values: flags.FlagValues) -> None:
    runs = [as_path(run, "--run") for run in values.run]
    if len(runs) > 1 and (values.step is not None or values.watch):
        flag = "--watch" if values.watch else f"--step={values.step}"
        raise UserError(f"{flag} is for one run and {len(runs)} are given: give one --run.")
    distributed.check_launched(values.probe.distributed, "--probe.distributed")
    if values.probe.distributed:
        distributed.initialize("--probe.distributed")
    sections = chosen_sections(values.sections)
    cli.announce(f"evaluating {', '.join(map(str, runs))}: {', '.join(sections)}")
    asked = Asked(
        sections,
        values.probe,
        values.data,
        Place(values.data_dir, values.digits_dir),
        values.baselines,
        values.all,
        values.keep_features,
    )
    if values.watch:
        watch(runs[0], asked)
        return
    out = as_path(values.out, "--out") if values.out else None
    if out is not None:
        check_writable(out, "--out")
    cards = [evaluate(run, values.step, asked) for run in runs]
    comparisons = compare(cards) if len(cards) > 1 else []
    if jax.process_index() == 0:
        print_cards(cards, comparisons)
        for card in cards:
            print(f"card: {card.folder / 'card.html'}")
        if len(cards) > 1:
            _write_comparison(out or cards[0].folder / "comparison", cards, comparisons)


def _write_comparison(
    folder: Path, cards: Sequence[Card], comparisons: Sequence[Mapping[str, Any]]
) -> None:
    runs = [card.content["run"] for card in cards]
    write_json(folder / "comparison.json", {"runs": runs, "rows": list(comparisons)})
    write_whole(folder / "comparison.html", card_page(cards, comparisons))
    print(f"comparison: {folder / 'comparison.html'}")


if __name__ == "__main__":
    flags.DEFINE_multi_string("run", None, "Directory of a pretraining run.", required=True)
    flags.DEFINE_integer("step", None, "Checkpoint to read; the newest sound one if not given.")
    flags.DEFINE_list("sections", [], "Sections of the card; all if not given.")
    flags.DEFINE_bool("baselines", True, "Also evaluate the untrained encoder and raw pixels.")
    flags.DEFINE_bool("all", False, "Fingerprint with severities 1 to 5, not 3 alone.")
    flags.DEFINE_bool("watch", False, "Evaluate each checkpoint of a running training.")
    flags.DEFINE_bool("keep_features", True, "Keep features beside the run for the next time.")
    flags.DEFINE_string("out", "", "Folder of the comparison; beside the first card if not given.")
    flags.DEFINE_string("data_dir", "", "Where the run's own data lie now, if they were moved.")
    flags.DEFINE_string("digits_dir", "", "Where the digits of digit_on_image lie now.")
    cli.define_settings("probe", probe.default_config())
    cli.define_settings("data", data_settings())
    cli.launch(_main)
