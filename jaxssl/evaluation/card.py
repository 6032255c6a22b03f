"""The evaluation card of one checkpoint: every section of every network, and its files."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxssl.errors import UserError, choose
from jaxssl.evaluation.conditions import CLEAN, conditions
from jaxssl.evaluation.fits import Fitted
from jaxssl.evaluation.opened import Opened, say
from jaxssl.evaluation.probe_data import Part, data_digest, file_name
from jaxssl.evaluation.sections import FINGERPRINT, SECTIONS, Predictions
from jaxssl.evaluation.sections.fingerprint import fingerprint
from jaxssl.run_directory import run_info
from jaxssl.storage import Path, write_json, write_whole

ALL = (*SECTIONS, FINGERPRINT)


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


def make_card(
    opened: Opened, sections: Sequence[str], settings: ConfigDict, *, every_severity: bool
) -> Card:
    """Evaluates every network of an opened run.

    Args:
      opened: the run.
      sections: names of `ALL`.
      settings: see `jaxssl.evaluation.probe.default_config`.
      every_severity: of the fingerprint: severities 1 to 5.

    Raises:
      UserError: for whatever the user can mend.
    """
    trained = opened.probes["trained"]
    before = trained.network.encoder_digest()
    test = opened.parts["test"].source
    parts = _conditions(opened, every_severity) if FINGERPRINT in sections else {}
    if parts:
        _say_cost(opened, parts)
    predictions: Predictions | None = None
    results: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for name, probed in opened.probes.items():
        start = time.monotonic()
        if predictions is None:
            predictions = Predictions(test.positions, probed.test.labels)
        for section in sections:
            if section == FINGERPRINT:
                results[section][name] = fingerprint(probed, settings, predictions, parts)
            else:
                results[section][name] = SECTIONS[section](probed, settings, predictions)
        say(f"  {name}: {', '.join(sections)} in {time.monotonic() - start:.0f} s")
    if trained.network.encoder_digest() != before:
        raise RuntimeError("evaluating changed the network: this is a bug, please report it.")
    content = {
        "program": "evaluate",
        "run": str(opened.run),
        "method": opened.restored.config.method.name,
        "step": opened.restored.step,
        "settings": settings.to_dict(),
        "examples": {name: len(part.source) for name, part in opened.parts.items()},
        "data": {
            "name": opened.parts["train"].source.name,
            "sha256": data_digest(opened.parts),
            "of_the_run": opened.own,
            **{name: part.identity for name, part in opened.parts.items()},
        },
        "encoder_sha256": before,
        "sections": results,
        **run_info(),
    }
    assert predictions is not None
    fitted = {
        f"classifier-{name}-{fit}.npz" if name != "trained" else _file(fit): made
        for name, probed in opened.probes.items()
        for fit, made in probed.fitted.items()
        if made.file is None
    }
    return Card(content, predictions, opened.restored.config, _folder(opened, settings), fitted)


def _file(fit: str) -> str:
    return "classifier.npz" if fit == "lbfgs" else f"classifier-{fit}.npz"


def _conditions(opened: Opened, every_severity: bool) -> dict[str, Part]:
    """The test images by condition; one that they do not suit is left out, and said."""
    shape = opened.parts["test"].source.image_shape
    parts = {}
    for name, corruption in conditions(shape, every_severity=every_severity):
        try:
            parts[name] = opened.opening.part("test", corruption)
        except UserError as error:
            if name == CLEAN:
                raise
            say(f"condition {name} is left out: {error}")
    return parts


def _say_cost(opened: Opened, parts: Mapping[str, Part]) -> None:
    images, networks = len(opened.parts["test"].source), len(opened.probes)
    say(
        f"fingerprint: {len(parts)} conditions x {networks} networks x {images:,} test images = "
        f"{len(parts) * networks * images:,} images through a network"
    )


def _folder(opened: Opened, settings: ConfigDict) -> Path:
    names = ["evaluate", str(opened.restored.step)]
    if not opened.own:
        name = opened.parts["train"].source.name.partition("/")[0]
        names.append(f"data={file_name(name)}-{data_digest(opened.parts)[:8]}")
    if settings.layer != "pooled":
        names.append(f"layer={file_name(settings.layer)}")
    if settings.target != "label":
        names.append(file_name(settings.target))
    return opened.run / "evaluations" / "-".join(names)
