"""Probes a checkpoint: ``python -m jaxssl.linear_probe --run DIR [--step N] [--baselines]``.

checkpoint -> frozen layer -> features -> linear classifiers -> accuracy on the test split. Reads
the run's ``config.json`` and one checkpoint without its optimizer, and changes neither; whatever is
chosen is chosen on the validation split. Images are corrupted as the run's were, the test images
otherwise if ``--probe.test_corruption`` says so: what was fitted before is then scored again.
``--data.name=NAME --data.data_dir=DIR`` probes on another labelled set. Writes ``card.json`` and
the classifiers into ``evaluations/linear_probe-<step>[-<what differs from the defaults>]/``.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from jaxssl import cli, distributed
from jaxssl.data.examples import Source
from jaxssl.data.splits import Splits
from jaxssl.distributed import say
from jaxssl.errors import UserError
from jaxssl.evaluation import probe
from jaxssl.evaluation.card import data_of, file_of, folder_of
from jaxssl.evaluation.fits import Fitted, Probed
from jaxssl.evaluation.opened import flags_asked, open_run
from jaxssl.evaluation.probe_data import (
    FRACTIONS,
    WHERE_TRAINED,
    Opening,
    Place,
    data_settings,
    open_splits,
    protocol_name,
    protocol_of,
    with_data,
)
from jaxssl.evaluation.sections.linear import linear_scores
from jaxssl.metrics.knn import Protocol, knn_accuracy
from jaxssl.randomness import check_seed
from jaxssl.ranges import (
    AT_LEAST_ONE,
    MOMENTUM,
    NON_NEGATIVE,
    Range,
    check_numbers,
    check_ranges,
)
from jaxssl.reporting import print_table, results_table
from jaxssl.run_directory import read_config, read_info, run_info
from jaxssl.storage import Path, as_path, write_json
from jaxssl.words import counted

__all__ = ["linear_probe", "open_splits", "print_card", "probe_run"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a probe found; nothing is written yet.

    Attributes:
      card: for each network its accuracies on the test split, all in [0, 1], and what was chosen;
        the settings, the data and the code.
      folder: where it belongs.
      classifiers: those fitted now, by file name.
    """

    card: dict[str, Any]
    folder: Path
    classifiers: Mapping[str, Fitted]

    @property
    def path(self) -> Path:
        """The card's file."""
        return self.folder / "card.json"

    def write(self) -> None:
        """Writes the classifiers and the card, from the first process."""
        if jax.process_index() == 0:
            for name, fitted in self.classifiers.items():
                fitted.classifier.save(self.folder / name, fitted.about)
            write_json(self.path, self.card)


def linear_probe(
    run: Path,
    step: int | None,
    settings: ConfigDict,
    baselines: bool,
    sources: Mapping[str, Source] | None = None,
    data: ConfigDict | None = None,
    place: Place = WHERE_TRAINED,
) -> tuple[dict[str, Any], Path]:
    """Probes a checkpoint and writes card and classifiers; see `probe_run`."""
    outcome = probe_run(run, step, settings, baselines, sources, data, place)
    outcome.write()
    return outcome.card, outcome.path


def probe_run(
    run: Path,
    step: int | None,
    settings: ConfigDict,
    baselines: bool,
    sources: Mapping[str, Source] | None = None,
    data: ConfigDict | None = None,
    place: Place = WHERE_TRAINED,
) -> Outcome:
    """Probes a layer of a checkpoint and writes nothing.

    Args:
      run: directory of a pretraining run.
      step: which checkpoint; None: the newest sound one.
      settings: see `jaxssl.evaluation.probe.default_config`.
      baselines: also probe the network as it was before training, and raw pixels.
      sources: the splits of a run whose data came from Python, or of another labelled set.
      data: another labelled set, see `jaxssl.evaluation.probe_data.data_settings`; None: the run's.
      place: where the run's own data lie now.

    Raises:
      UserError: for whatever the user can mend.
    """
    check_settings(settings)
    data = data_settings() if data is None else data
    again = settings.test_corruption.name != probe.AS_TRAINED and not settings.refit
    opened = open_run(run, step, settings, baselines, sources, data, place, reuse_classifiers=again)
    parts, restored = opened.parts, opened.restored
    protocol = protocol_of(restored.config, settings, len(parts["train"].source))
    before, digest = restored.network.encoder_digest(), restored.network.digest()
    results, fitted = {}, {}
    with flags_asked(data):  # the files of a large set are decoded only now
        for name, probed in opened.probes.items():
            say(f"probing: {name}")
            results[name], fitted[name] = probe_network(probed, protocol)
    if digest != restored.network.digest():
        raise RuntimeError("probing changed the network: this is a bug, please report it.")

    otherwise = ["baselines"] if baselines else []
    folder = folder_of(opened, "linear_probe", settings, otherwise)
    files = {
        file_of(network, fit): made
        for network, fits in fitted.items()
        for fit, made in fits.items()
    }
    card = {
        "program": "linear_probe",
        "run": str(run),
        "step": restored.step,
        "settings": settings.to_dict(),
        "knn_protocol": protocol_name(restored.config, settings.protocol),
        "knn": None if protocol is None else protocol._asdict(),
        **data_of(opened),
        "encoder_sha256": {"before": before, "after": restored.network.encoder_digest()},
        "network_sha256": digest,
        "classifiers": {
            name: str(made.file) if made.file else name for name, made in files.items()
        },
        "results": results,
        **run_info(),
    }
    return Outcome(card, folder, {name: made for name, made in files.items() if not made.file})


def probe_network(
    probed: Probed, protocol: Protocol | None
) -> tuple[dict[str, Any], dict[str, Fitted]]:
    """Every accuracy of one frozen network on the test split, and its classifiers.

    Returns:
      Those of `linear_scores`, and ``knn``, None without a protocol. Then the classifiers by fit.
    """
    results, fits = linear_scores(probed)
    results["knn"] = None
    if protocol is not None:
        results["knn"] = knn_accuracy(
            probed.train.features,
            probed.train.labels,
            probed.test.features,
            probed.test.labels,
            protocol=protocol,
        )
    return results, fits


_COUNT = Range(0, math.inf, low_included=True)
_RANGES = {
    "feature_batch_size": AT_LEAST_ONE,
    "labels_per_class": AT_LEAST_ONE,
    "knn_k": _COUNT,
    "evaluation_size": _COUNT,
}
_SGD_RANGES = {
    "epochs": _COUNT,
    "batch_size": AT_LEAST_ONE,
    "learning_rate": NON_NEGATIVE,
    "momentum": MOMENTUM,
    "weight_decay": NON_NEGATIVE,
}
_LBFGS_RANGES = {"max_iterations": AT_LEAST_ONE, "tolerance": NON_NEGATIVE}


def check_settings(settings: ConfigDict) -> None:
    """Raises UserError for a setting that no probe can have."""
    check_seed("--probe.seed", settings.seed)
    check_ranges("--probe", settings, _RANGES)
    check_ranges("--probe.sgd", settings.sgd, _SGD_RANGES)
    check_ranges("--probe.lbfgs", settings.lbfgs, _LBFGS_RANGES)
    check_numbers("--probe.lbfgs.l2_grid", settings.lbfgs.l2_grid, NON_NEGATIVE)
    if not settings.lbfgs.l2_grid:
        raise UserError("--probe.lbfgs.l2_grid=() holds no number to try: give at least one.")
    for key in FRACTIONS:
        if not settings[key] < 1:
            raise UserError(f"--probe.{key}={settings[key]} must be a share below 1.")
    if settings.knn_k and settings.protocol == probe.NO_KNN:
        raise UserError(
            f"--probe.knn_k={settings.knn_k} has no meaning with --probe.protocol={probe.NO_KNN}: "
            "leave one of them out."
        )


def print_card(card: Mapping[str, Any]) -> None:
    """The card's accuracies as a table."""
    settings = card["settings"]
    few = settings["labels_per_class"]
    rows = [
        (
            name,
            scores["lbfgs"]["top1"],
            scores["lbfgs_few"]["top1"],
            scores["knn"],
            scores["sgd"]["top1"] if "sgd" in scores else None,
        )
        for name, scores in card["results"].items()
    ]
    columns = ("encoder", "linear, all labels", f"linear, {few} a class", "kNN", "linear, SGD")
    title = f"Top-1 on {counted(card['examples']['test'], 'test image')}, step {card['step']}"
    if settings["layer"] != "pooled":
        title += f", layer {settings['layer']}"
    if not card["data"]["of_the_run"]:
        title += f", {card['data']['name']}"
    print_table(results_table(rows, columns, title))


def check_data(run: Path, settings: ConfigDict, data: ConfigDict, place: Place) -> None:
    """Raises UserError unless this process finds the run and the splits of its data.

    No image is decoded; for the arguments, see `probe_run`, which opens the splits.
    """
    if read_info(run)["data"].get("from_python") and not data.name:
        return  # `probe_run` says that they are not to be had
    with flags_asked(data):
        config = Opening(with_data(read_config(run), data, place), settings, None).config
        splits = Splits(config.data, config.corruption, config.views.global_crops.size)
        for split in ("train", "validation", "test"):
            splits.check(split)


def _main(values: flags.FlagValues) -> None:
    run = as_path(values.run, "--run")
    distributed.check_launched(values.probe.distributed, "--probe.distributed")
    if values.probe.distributed:
        distributed.initialize("--probe.distributed")
    cli.announce(f"probing layer {values.probe.layer} of {run}")
    place = Place(values.data_dir, values.digits_dir)
    if values.probe.distributed:
        look = functools.partial(check_data, run, values.probe, values.data, place)
        # Before the first exchange, so that what one process lacks ends all of them.
        distributed.all_can("the run and its data", look)
    outcome = probe_run(
        run, values.step, values.probe, values.baselines, data=values.data, place=place
    )
    if jax.process_index() == 0:
        print_card(outcome.card)  # first, for the directory may be read-only
    outcome.write()
    say(f"card: {outcome.path}")


if __name__ == "__main__":
    flags.DEFINE_string("run", None, "Directory of a pretraining run.", required=True)
    flags.DEFINE_integer("step", None, "Checkpoint to probe; the newest sound one if not given.")
    flags.DEFINE_bool("baselines", False, "Also probe the untrained encoder and raw pixels.")
    flags.DEFINE_string("data_dir", "", "Where the run's own data lie now, if they were moved.")
    flags.DEFINE_string("digits_dir", "", "Where the digits of digit_on_image lie now.")
    cli.define_settings("probe", probe.default_config())
    cli.define_settings("data", data_settings())
    cli.launch(_main)
