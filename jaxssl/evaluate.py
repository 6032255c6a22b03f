"""Evaluates checkpoints: ``python -m jaxssl.evaluate --run DIR [--run DIR2 ...]``.

checkpoint -> frozen layer -> features -> sections -> a card. Sections are linear probes, nearest
neighbours by every named protocol, few labels, the geometry of the features, alignment and
uniformity of two augmented views, as vectors and (``dense``) cell by cell, calibration, and the
reliance fingerprint: what is left of the accuracy and of the features when the test images are
shuffled, darkened, blurred. ``--sections=knn,geometry`` asks for some of them. ``--supervised RUN``
puts another run's network beside each, and ``--refit`` also fits a classifier under each condition
of the fingerprint. Several runs are put side by side, and the others' differences from the first
are paired over the same test images; runs that differ in their seeds alone count as one, with
several seeds. Of three runs or more it says how L_a + L_u orders them by accuracy (Kendall's tau).

``--watch`` evaluates each checkpoint of a running training as it lands, until its last step.
Writes ``card.json`` and ``card.html`` into ``evaluations/evaluate-<step>/`` of each run, with what
is asked for otherwise than by default appended to the folder's name, and a comparison beside the
first card. Where ``--out`` is given, all of it goes there, into a folder named after each run and
one after each comparison. Changes nothing else in the runs.
"""

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from jaxssl import cli, distributed
from jaxssl.checkpoint import CheckpointReader
from jaxssl.distributed import say
from jaxssl.errors import UserError
from jaxssl.evaluation import probe
from jaxssl.evaluation.card import Card, Wanted, chosen_sections, make_card
from jaxssl.evaluation.comparison import Comparison, check_same_images, compare
from jaxssl.evaluation.frozen import read_spec
from jaxssl.evaluation.opened import flags_asked, open_run, with_supervised
from jaxssl.evaluation.pages import card_page, parts_of, percent, plus_minus, run_names
from jaxssl.evaluation.probe_data import Place, data_settings
from jaxssl.evaluation.sections import FINGERPRINT
from jaxssl.evaluation.store import FeatureStore
from jaxssl.linear_probe import check_data, check_settings
from jaxssl.manifest import damage_of
from jaxssl.reporting import print_table, text_table
from jaxssl.run_directory import has_config, read_config
from jaxssl.storage import Path, as_path, check_writable, read_json, write_json, write_whole

SECONDS_BETWEEN_LOOKS = 20.0
_LONGEST_NAME = 80  # letters of the runs in the name of a comparison's folder


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the flags ask for.

    Attributes:
      wanted: the sections, and how.
      settings: see `jaxssl.evaluation.probe.default_config`.
      data: another labelled set, see `data_settings`.
      place: where the runs' own data lie now.
      baselines: also the untrained network and raw pixels.
      supervised: also the network of this run; None: of none.
      keep_features: on disk, beside the cards.
      out: where features go, and cards in folders named after the runs; None: to ``evaluations/``
        of each run.
    """

    wanted: Wanted
    settings: ConfigDict
    data: ConfigDict
    place: Place
    baselines: bool = True
    supervised: Path | None = None
    keep_features: bool = True
    out: Path | None = None


def evaluate(
    run: Path, step: int | None, asked: Asked, *, name: str = "", first: Card | None = None
) -> Card:
    """Evaluates one checkpoint, prints what it found, and writes its card.

    Args:
      run: directory of a pretraining run.
      step: which checkpoint; None: the newest sound one.
      asked: what to do.
      name: of the run's folder in ``asked.out``; "": that of its directory.
      first: the card that this one is to stand beside, on the same test images.

    Raises:
      UserError: for whatever the user can mend.
    """
    check_settings(asked.settings)
    _check_neighbours(asked.settings)
    opened = open_run(
        run,
        step,
        asked.settings,
        asked.baselines,
        None,
        asked.data,
        asked.place,
        reuse_classifiers=not asked.settings.refit,
        store=_store(run, asked),
    )
    if first is not None:
        check_same_images(first, opened)
    if asked.supervised is not None:
        opened = with_supervised(
            opened,
            asked.supervised,
            asked.settings,
            asked.data,
            asked.place,
            store=_store(asked.supervised, asked),
        )
    say(f"evaluating {run}, step {opened.restored.step}: {', '.join(asked.wanted.sections)}")
    with flags_asked(asked.data):  # the files of a large set are decoded only now
        card = make_card(opened, asked.wanted, asked.settings)
    if asked.out is not None:
        own = _own_folder(asked.out / (name or _name(run)), [str(run)])
        card = dataclasses.replace(card, folder=own / card.folder.name)
    print_card(card)  # first, for the directory may be read-only
    card.write(card_page([card]))
    say(f"card: {card.folder / 'card.html'}")
    return card


def _check_neighbours(settings: ConfigDict) -> None:
    """Refuses what the section has no use for and the card's name would tell all the same."""
    default = probe.default_config()
    for key in ("protocol", "knn_k"):
        if settings[key] != default[key]:
            raise UserError(
                f"--probe.{key}={settings[key]} has no effect here, where kNN is by every named "
                "protocol: leave it out, or use python -m jaxssl.linear_probe."
            )


def _name(run: Path) -> str:
    return run_names([str(run)])[str(run)]


def _store(run: Path, asked: Asked) -> FeatureStore:
    folder = run / "evaluations" if asked.out is None else asked.out
    return FeatureStore(folder / "features" if asked.keep_features else None)


def watch(run: Path, asked: Asked) -> list[int]:
    """Evaluates each checkpoint of a run as it lands, until that of its last step.

    Waits for the run to begin. A checkpoint that the run removes before it is read, or that is
    damaged, is passed over, and said.

    Returns:
      the steps that were evaluated.

    Raises:
      UserError: for whatever the user can mend.
    """
    wait_for_start(run)
    done: list[int] = []
    gone: set[int] = set()
    checkpoints = CheckpointReader(run / "checkpoints")
    while True:
        # All processes go the same way: each sees the folder at another instant.
        steps = distributed.agree("the checkpoints to evaluate", checkpoints.steps)
        for step in (step for step in steps if step not in {*done, *gone}):
            try:
                evaluate(run, step, asked)
                done.append(step)
            except UserError:
                why = _why_unreadable(checkpoints, step)
                if why is None:
                    raise
                say(f"step {step} of {run} is passed over: its checkpoint {why}")
                gone.add(step)
        if _last_step(run) in {*done, *gone}:
            return done
        time.sleep(SECONDS_BETWEEN_LOOKS)


def wait_for_start(run: Path) -> None:
    """Returns once the run has written its config; each process looks for itself."""
    if not has_config(run):
        cli.announce(f"waiting for {run} to begin: it has no config.json yet")
    while not has_config(run):
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _why_unreadable(checkpoints: CheckpointReader, step: int) -> str | None:
    """What became of a checkpoint, a clause; None: it can be read."""

    def look() -> str | None:
        if step not in checkpoints.steps():
            return "was removed before it was read"
        damage = damage_of(checkpoints.directory / str(step))
        return None if damage is None else f"is damaged ({damage})"

    return distributed.agree("what became of a checkpoint", look)


def _last_step(run: Path) -> int:
    """Where the run stops; a resumed one may be told otherwise than before."""
    total = read_spec(run).total_steps
    return distributed.agree(
        "the run's last step", lambda: min(read_config(run).run.stop_step or total, total)
    )


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
    elif "alignment" in found:
        parts.append(f"L_a + L_u {found['alignment']['trained']['sum']['value']:.3f}")
    return "  ".join(parts)


def print_card(card: Card) -> None:
    """What of a card fits a terminal, from the first process; its page has the rest."""
    say(summary_line(card))
    if FINGERPRINT in card.content["sections"] and jax.process_index() == 0:
        print_table(_fingerprint_table(card))


def print_comparison(cards: Sequence[Card], comparison: Comparison) -> None:
    """The tables that fit a terminal; the page has the rest."""
    names = run_names([card.content["run"] for card in cards])
    if comparison.differences:
        rows = [
            (
                "+".join(names[run] for run in row["second"]),
                row["by"],
                plus_minus(row["difference"]),
            )
            for row in comparison.differences
        ]
        title = f"Differences from {names[cards[0].content['run']]}, in points, 95 % intervals"
        print_table(text_table(rows, ("run", "predicted by", "difference"), title))
    if comparison.correlations:
        told = [
            (row["section"], row["by"], str(row["runs"]), plus_minus(row["tau"], 1.0, 2))
            for row in comparison.correlations
        ]
        title = "Kendall's tau of L_a + L_u and accuracy over the runs, 95 % intervals"
        print_table(text_table(told, ("losses of", "accuracy by", "runs", "tau"), title))


def _fingerprint_table(card: Card) -> Any:
    found = card.content["sections"][FINGERPRINT]
    rows = [
        (
            name,
            *(plus_minus(rows[name]["accuracy"]) for rows in found.values()),
            plus_minus(found["trained"][name].get("delta_a")),
        )
        for name in found["trained"]
    ]
    columns = ("condition", *found, "drop")  # short, for a terminal of 80 columns
    title = "Reliance fingerprint: top-1 in percent, its 95 % interval over images, drop of trained"
    return text_table(rows, columns, title)


def asked_of(values: flags.FlagValues) -> Asked:
    """What the flags ask for.

    Raises:
      UserError: if there is no such section, or a flag is of a section that is not asked for.
    """
    sections = chosen_sections(values.sections)
    for flag, given in (("all", values.all), ("refit", values.refit)):
        if given and FINGERPRINT not in sections:
            raise UserError(
                f"--{flag} is of the fingerprint and --sections={','.join(sections)} leaves that "
                f"out: add it, or leave out --{flag}."
            )
    return Asked(
        Wanted(sections, values.all, values.refit),
        values.probe,
        values.data,
        Place(values.data_dir, values.digits_dir),
        values.baselines,
        as_path(values.supervised, "--supervised") if values.supervised else None,
        values.keep_features,
        as_path(values.out, "--out") if values.out else None,
    )


def _main(values: flags.FlagValues) -> None:
    runs = [as_path(run, "--run") for run in values.run]
    if len(runs) > 1 and (values.step is not None or values.watch):
        flag = "--watch" if values.watch else f"--step={values.step}"
        raise UserError(f"{flag} is for one run and {len(runs)} are given: give one --run.")
    if values.watch and values.step is not None:
        raise UserError(
            f"--step={values.step} names one checkpoint and --watch takes all: leave one out."
        )
    distributed.check_launched(values.probe.distributed, "--probe.distributed")
    if values.probe.distributed:
        distributed.initialize("--probe.distributed")
    asked = asked_of(values)
    cli.announce(f"evaluating {', '.join(map(str, runs))}: {', '.join(asked.wanted.sections)}")
    if values.watch:
        wait_for_start(runs[0])
    # Before the first exchange, so that what one process lacks ends all of them.
    distributed.all_can("the runs and their data", lambda: _check(runs, asked))
    if values.watch:
        watch(runs[0], asked)
        return
    names = run_names([str(run) for run in runs])
    cards: list[Card] = []
    for run in runs:
        first = cards[0] if cards else None
        cards.append(evaluate(run, values.step, asked, name=names[str(run)], first=first))
    comparison = compare(cards)
    if jax.process_index() == 0:
        print_comparison(cards, comparison)
        if len(cards) > 1:
            _write_comparison(_folder_of_comparison(cards, asked.out), cards, comparison)


def _folder_of_comparison(cards: Sequence[Card], out: Path | None) -> Path:
    """Beside the first card, or in ``out`` under the names of the runs and what was asked for."""
    first = cards[0].folder
    if out is None:
        return first / "comparison"
    runs = [card.content["run"] for card in cards]
    names = "+".join(run_names(runs).values())
    if len(names) > _LONGEST_NAME or "/" in names:
        names = _digest_of(runs)[:16]
    return _own_folder(out / f"comparison-{names}", runs) / first.name


def _own_folder(folder: Path, runs: Sequence[str]) -> Path:
    """A folder, or one beside it if it holds what is of other runs, whose names end alike."""
    asked = [parts_of(run) for run in runs]
    for path in folder.glob("*/*.json") if folder.is_dir() else ():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = read_json(path)
            known = content["runs"] if "runs" in content else [content["run"]]
            if [parts_of(run) for run in known] != asked:
                return folder.with_name(f"{folder.name}-{_digest_of(runs)[:8]}")
    return folder


def _digest_of(runs: Sequence[str]) -> str:
    whole = "+".join("/".join(parts_of(run)) for run in runs)
    return hashlib.sha256(whole.encode()).hexdigest()


def _check(runs: Sequence[Path], asked: Asked) -> None:
    """Raises UserError unless this process may write, and one of several finds what it reads."""
    _check_neighbours(asked.settings)
    if asked.out is not None:
        check_writable(asked.out, "--out")
    else:
        for run in runs:
            _check_holds_cards(run)
    if asked.settings.distributed:  # one process hears of it soon enough, and opens them once
        supervised = [] if asked.supervised is None else [asked.supervised]
        for run in (*runs, *supervised):
            check_data(run, asked.settings, asked.data, asked.place)


def _check_holds_cards(run: Path) -> None:
    if not has_config(run):
        return  # `open_run` says what it is instead of a run
    try:
        check_writable(run / "evaluations", "--run")
    except UserError as error:
        raise UserError(
            f"--run={run} takes no card, for {run / 'evaluations'} is no directory that you may "
            "write to: give --out with a directory for the cards."
        ) from error


def _write_comparison(folder: Path, cards: Sequence[Card], comparison: Comparison) -> None:
    runs = [card.content["run"] for card in cards]
    content = {
        "runs": runs,
        "rows": list(comparison.differences),
        "correlations": list(comparison.correlations),
    }
    write_json(folder / "comparison.json", content)
    write_whole(folder / "comparison.html", card_page(cards, comparison))
    print(f"comparison: {folder / 'comparison.html'}")


if __name__ == "__main__":
    flags.DEFINE_multi_string("run", None, "Directory of a pretraining run.", required=True)
    flags.DEFINE_integer("step", None, "Checkpoint to read; the newest sound one if not given.")
    flags.DEFINE_list("sections", [], "Sections of the card; all if not given.")
    flags.DEFINE_bool("baselines", True, "Also evaluate the untrained encoder and raw pixels.")
    flags.DEFINE_string("supervised", "", "Directory of another run, to put beside each.")
    flags.DEFINE_bool("all", False, "Fingerprint with severities 1 to 5, not 3 alone.")
    flags.DEFINE_bool("refit", False, "Fingerprint with a classifier of each condition's own too.")
    flags.DEFINE_bool("watch", False, "Evaluate each checkpoint of a running training.")
    flags.DEFINE_bool("keep_features", True, "Keep features beside the cards for the next time.")
    flags.DEFINE_string("out", "", "Folder for all that is written; in each run if not given.")
    flags.DEFINE_string("data_dir", "", "Where the run's own data lie now, if they were moved.")
    flags.DEFINE_string("digits_dir", "", "Where the digits of digit_on_image lie now.")
    cli.define_settings("probe", probe.default_config())
    cli.define_settings("data", data_settings())
    cli.launch(_main)
