"""The evaluation card of one checkpoint: every section of every network, and its files."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxssl.corruptions.apply import setting_name
from jaxssl.distributed import say
from jaxssl.errors import UserError, choose
from jaxssl.evaluation.conditions import Condition
from jaxssl.evaluation.fits import Fitted
from jaxssl.evaluation.opened import Opened, suitable_conditions
from jaxssl.evaluation.probe import AS_TRAINED, default_config
from jaxssl.evaluation.probe_data import FRACTIONS, Part, data_digest, file_name
from jaxssl.evaluation.sections import FINGERPRINT, SECTIONS, Predictions
from jaxssl.evaluation.sections.fingerprint import fingerprint
from jaxssl.run_directory import run_info
from jaxssl.storage import Path, write_json, write_whole

ALL = (*SECTIONS, FINGERPRINT)
SPELLED_OUT = 3
"""So many changed settings are spelled out in the name of a card's folder."""


@dataclasses.dataclass(frozen=True)
class Card:
    """What an evaluation found; nothing is written yet.

    Attributes:
      content: JSON: the run, step, layer, data, code, and by section and network the results.
      predictions: of each test image.
      config: of the run.
      folder: where it belongs.
      classifiers: those fitted now, by file name.
    """

    content: dict[str, Any]
    predictions: Predictions
    config: ConfigDict
    folder: Path
    classifiers: Mapping[str, Fitted]

    def write(self, page: str) -> None:
        """Writes ``card.json``, ``card.html``, predictions and classifiers, from one process."""
        if jax.process_index() == 0:
            for name, fitted in self.classifiers.items():
                fitted.classifier.save(self.folder / name, fitted.about)
            self.predictions.save(self.folder / "predictions.npz")
            write_whole(self.folder / "card.html", page)
            write_json(self.folder / "card.json", self.content)


def chosen_sections(names: Sequence[str]) -> tuple[str, ...]:
    """The sections asked for, in the card's order; all of them for none.

    Raises:
      UserError: if there is no such section.
    """
    for name in names:
        choose("--sections", name, dict.fromkeys(ALL))
    return tuple(name for name in ALL if not names or name in names)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a card is to hold.

    Attributes:
      sections: names of `ALL`.
      every_severity: of the fingerprint: severities 1 to 5, and not 3 alone.
      refit: the fingerprint also fits a classifier under each condition.
    """

    sections: Sequence[str]
    every_severity: bool = False
    refit: bool = False


def make_card(opened: Opened, wanted: Wanted, settings: ConfigDict) -> Card:
    """Evaluates every network of an opened run.

    Args:
      opened: the run.
      wanted: what of it.
      settings: see `jaxssl.evaluation.probe.default_config`.

    Raises:
      UserError: for whatever the user can mend.
    """
    trained = opened.probes["trained"]
    before = trained.network.encoder_digest()
    _check_several(opened.parts["test"])
    found: list[Condition] = []
    if FINGERPRINT in wanted.sections:
        found = suitable_conditions(opened.opening, "test", every_severity=wanted.every_severity)
        _say_cost(opened, len(found), wanted.refit)
    predictions, results = _results(opened, wanted, settings, found)
    if trained.network.encoder_digest() != before:
        raise RuntimeError("evaluating changed the network: this is a bug, please report it.")
    content = {
        "program": "evaluate",
        "run": str(opened.run),
        "method": opened.restored.config.method.name,
        "step": opened.restored.step,
        "settings": settings.to_dict(),
        **data_of(opened),
        "encoder_sha256": before,
        "networks_sha256": {
            name: probed.network.digest() for name, probed in opened.probes.items()
        },
        "sections": results,
        **run_info(),
    }
    beside = opened.probes["supervised"].network if "supervised" in opened.probes else None
    supervised = "" if beside is None else beside.encoder_digest()
    otherwise = flag_names(wanted, "untrained" in opened.probes, supervised)
    folder = folder_of(opened, "evaluate", settings, otherwise)
    fitted = {
        file_of(name, fit): made
        for name, probed in opened.probes.items()
        for fit, made in probed.fitted.items()
        if made.file is None
    }
    return Card(content, predictions, opened.restored.config, folder, fitted)


def _results(
    opened: Opened, wanted: Wanted, settings: ConfigDict, found: Sequence[Condition]
) -> tuple[Predictions, dict[str, dict[str, Any]]]:
    """By section and network; a section has nothing to say of some networks."""
    labels = opened.probes["trained"].test.labels
    predictions = Predictions(opened.parts["test"].source.positions, labels)
    results: dict[str, dict[str, Any]] = {section: {} for section in wanted.sections}
    for name, probed in opened.probes.items():
        start = time.monotonic()
        for section in wanted.sections:
            if section == FINGERPRINT:
                told = fingerprint(probed, settings, predictions, found, refit=wanted.refit)
            else:
                told = SECTIONS[section](probed, settings, predictions)
            if told:
                results[section][name] = told
        say(f"  {name}: {', '.join(wanted.sections)} in {time.monotonic() - start:.0f} s")
    return predictions, results


def _check_several(test: Part) -> None:
    if len(test.source) < 2:
        raise UserError(
            f"{test.source.name} has one test image, which is no set to evaluate on: give more by "
            "--probe.test_fraction, or another set by --data.name."
        )


def data_of(opened: Opened) -> dict[str, Any]:
    """What a card says of the data."""
    parts = opened.parts
    return {
        "examples": {name: len(part.source) for name, part in parts.items()},
        "data": {
            "name": parts["train"].source.name,
            "sha256": data_digest(parts),
            "of_the_run": opened.own,
            **{name: part.identity for name, part in parts.items()},
        },
    }


def file_of(network: str, fit: str) -> str:
    """The name of a classifier's file."""
    if network == "trained":
        return "classifier.npz" if fit == "lbfgs" else f"classifier-{fit}.npz"
    return f"classifier-{network}-{fit}.npz"


def _say_cost(opened: Opened, count: int, refit: bool) -> None:
    networks = len(opened.probes)
    images = {name: len(part.source) for name, part in opened.parts.items()}
    say(
        f"fingerprint: {count} conditions x {networks} networks x {images['test']:,} test images = "
        f"{count * networks * images['test']:,} images through a network"
    )
    if refit:
        fits, each = (count - 1) * networks, images["train"] + images["validation"]
        say(
            f"  --refit: {fits} fits more, each on {each:,} images of its own = {fits * each:,} "
            "images through a network"
        )


def folder_of(
    opened: Opened, program: str, settings: ConfigDict, otherwise: Sequence[str] = ()
) -> Path:
    """``evaluations/<program>-<step>`` of a run, and whatever else is measured than by default.

    Args:
      opened: the run.
      program: whose card it is.
      settings: see `jaxssl.evaluation.probe.default_config`.
      otherwise: what the program's own flags ask for.
    """
    names = [program, str(opened.restored.step)]
    if not opened.own:
        name = opened.parts["train"].source.name.partition("/")[0]
        names.append(f"data={file_name(name)}-{data_digest(opened.parts)[:8]}")
    names += [*settings_names(settings), *otherwise]
    return opened.run / "evaluations" / "-".join(names)


def flag_names(wanted: Wanted, baselines: bool, supervised: str) -> list[str]:
    """What ``evaluate`` is asked for besides its settings, as parts of a folder's name.

    Args:
      wanted: of the card.
      baselines: whether they are in it.
      supervised: the encoder's digest of the run put beside; "": there is none.
    """
    names = []
    if set(wanted.sections) != set(ALL):
        names.append(f"sections={'+'.join(wanted.sections)}")
    if FINGERPRINT in wanted.sections:
        names += ["all"] if wanted.every_severity else []
        names += ["refit"] if wanted.refit else []
    names += [] if baselines else ["no_baselines"]
    names += [f"supervised={supervised[:8]}"] if supervised else []
    return names


_NAMED_APART = ("layer", "target", "evaluation_size", "test_corruption", *FRACTIONS)
_NOT_MEASURED = ("feature_batch_size", "refit", "distributed")


def settings_names(settings: ConfigDict) -> list[str]:
    """What of the settings is measured otherwise than by default, as parts of a folder's name.

    Up to three numbers and names are spelled out; of more settings, and of tuples, there is a
    digest in their place.
    """
    names = []
    if settings.layer != "pooled":
        names.append(f"layer={file_name(settings.layer)}")
    if settings.target != "label":
        names.append(file_name(settings.target))
    if settings.evaluation_size:
        names.append(f"evaluation_size={settings.evaluation_size}")
    for key in FRACTIONS:
        if settings[key] >= 0:
            names.append(f"{key}={settings[key]:g}")
    if settings.test_corruption.name != AS_TRAINED:
        names.append(setting_name(settings.test_corruption))
    changed = changed_settings(settings, _NAMED_APART)
    if len(changed) > SPELLED_OUT or any(isinstance(value, tuple) for value in changed.values()):
        told = json.dumps(changed, sort_keys=True).encode()
        return [*names, f"settings={hashlib.sha256(told).hexdigest()[:8]}"]
    return [*names, *(f"{key}={file_name(str(value))}" for key, value in changed.items())]


def changed_settings(settings: ConfigDict, without: Sequence[str] = ()) -> dict[str, Any]:
    """What of the settings is measured otherwise than by default, by dotted keys.

    Args:
      settings: see `jaxssl.evaluation.probe.default_config`.
      without: keys that are not looked at.
    """
    changed: dict[str, Any] = {}
    for key, default in default_config().items():
        if key in without or key in _NOT_MEASURED:
            continue
        inner = {f"{key}.{k}": k for k in default} if isinstance(default, ConfigDict) else {}
        if not inner and settings[key] != default:
            changed[key] = settings[key]
        for name, k in inner.items():
            if settings[key][k] != default[k]:
                changed[name] = settings[key][k]
    return changed
