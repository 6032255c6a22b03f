"""What is evaluated while training: ``config.evals``, by name.

Each group names a ``section``: "knn", by one protocol; "online", the classifier that is trained
beside the method; or one of the evaluation card. What a section chooses (a penalty, a strength) it
chooses on the validation images; where these are the ones looked at, on every tenth of the training
images, which no classifier is then fitted on.
"""

import dataclasses
import fractions
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int
from ml_collections import ConfigDict

from jaxssl.augment.policies import Batch
from jaxssl.compilation import compiler_options
from jaxssl.data.examples import Source, abstract_batch
from jaxssl.distributed import replicated, sharded
from jaxssl.errors import UserError, choose
from jaxssl.evaluation import probe
from jaxssl.evaluation.classifier import linear_logits
from jaxssl.evaluation.features import Embed, FeatureSet, as_vectors, extract, whole_batch
from jaxssl.evaluation.fits import Probed
from jaxssl.evaluation.frozen import Network, make_cropped_view, represented
from jaxssl.evaluation.opened import pair_of, suitable_conditions
from jaxssl.evaluation.probe_data import Opening, Part
from jaxssl.evaluation.sections import FINGERPRINT, SECTIONS, Predictions
from jaxssl.evaluation.sections.fingerprint import fingerprint, mean_drop
from jaxssl.metrics.collapse import feature_std
from jaxssl.metrics.knn import PROTOCOLS, knn_predict
from jaxssl.ranges import NON_NEGATIVE, check_ranges
from jaxssl.training.state import Blueprint, TrainState, merge
from jaxssl.words import counted

CleanView = Callable[[Batch], jax.Array]
Check = Callable[[], None]
Run = Callable[[TrainState, Check], Mapping[str, float]]
Found = Mapping[str, Any]
QUERIES = 2048  # that neighbours are sought for between two looks whether to stop
EVERY_TENTH = 10


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Something that is run on the state at multiples of some steps, and at the end.

    Attributes:
      every: steps, a fraction where epochs end within batches.
      run: from a state to numbers to log, one of them under the evaluation's name; it also takes
        a function, called between batches, that may raise what ends it.
    """

    every: fractions.Fraction
    run: Run


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all evaluations of a run share.

    Attributes:
      blueprint: of the run.
      opening: its splits.
      mesh: devices to share each batch.
      batch_size: images a pass.
      online: the layer of the classifier beside the method; None: there is none.
    """

    blueprint: Blueprint
    opening: Opening
    mesh: Mesh
    batch_size: int
    online: str | None


def make_evals(evals: ConfigDict, setting: Setting, images: int) -> dict[str, Evaluation]:
    """The evaluations of a run that ever run.

    Args:
      evals: the ``evals`` group of the config: by name `section`, `every` (epochs), `split`,
        `layer`, and `protocol` of "knn".
      setting: what they share.
      images: of an epoch of the run.

    Returns:
      By name; an evaluation NAME logs ``NAME`` and further numbers as ``NAME_...``: of "knn" top-1
      in [0, 1] and ``NAME_feature_std``, the mean standard deviation of the normalised features
      times sqrt(D), 0 where they collapsed; of "online" top-1; of the others see `LOGGED`.

    Raises:
      UserError: if there is no such section, a split holds no image, the set has no labels or too
        few images, or the method no such layer.
    """
    made = {}
    for name, settings in evals.items():
        check_ranges(f"evals.{name}", settings, {"every": NON_NEGATIVE})
        if settings.every > 0:
            choose(f"evals.{name}.split", settings.split, dict.fromkeys(("validation", "test")))
            make = choose(f"evals.{name}.section", settings.section, MAKERS)
            every = steps_of(settings.every, images, setting.batch_size)
            made[name] = Evaluation(every, make(name, settings, setting))
    return made


def steps_of(epochs: int | float, images: int, batch_size: int) -> fractions.Fraction:
    """How many steps so many epochs take, exactly, of the decimal that is written in a config."""
    return fractions.Fraction(str(epochs)) * images / batch_size


def _check_labels(name: str, source: Source, section: str) -> None:
    if source.num_classes is None:
        raise UserError(
            f"the evaluation {name} needs labels but the data set has none: give "
            f"--config.evals.{name}.every=0."
        )
    if source.num_classes < 2 and section not in _OF_EACH_CLASS:
        raise UserError(
            f"the evaluation {name} tells classes apart and the data set has one: give "
            f"--config.evals.{name}.every=0."
        )


def _knn(name: str, settings: ConfigDict, setting: Setting) -> Run:
    known_part, asked_part = (setting.opening.part(s) for s in ("train", settings.split))
    _check_labels(name, known_part.source, settings.section)
    protocol = choose(f"evals.{name}.protocol", settings.protocol, PROTOCOLS)
    check_neighbours(f"--config.evals.{name}", settings.protocol, len(known_part.source))
    features = _features(name, settings.layer, setting, known_part)

    def knn(state: TrainState, check: Check) -> dict[str, float]:
        known, asked = (features(state, part, check) for part in (known_part, asked_part))
        right = []
        for start in range(0, len(asked.labels), QUERIES):
            check()
            # As many queries each time, or the last part would be compiled anew.
            rows = np.arange(start, start + min(QUERIES, len(asked.labels))) % len(asked.labels)
            found = knn_predict(
                known.features, known.labels, asked.features[rows], protocol=protocol
            )
            right.append((np.asarray(found) == asked.labels[rows])[: len(asked.labels) - start])
        return {
            name: float(np.mean(np.concatenate(right))),
            f"{name}_feature_std": float(feature_std(asked.features)),
        }

    return knn


def _online(name: str, settings: ConfigDict, setting: Setting) -> Run:
    part, layer = setting.opening.part(settings.split), setting.online
    if layer is None:
        raise UserError(
            f"the evaluation {name} is of the classifier beside the method and there is none: give "
            f"--config.online.learning_rate, such as 0.1, or --config.evals.{name}.every=0."
        )
    features = _features(name, layer, setting, part)

    def online(state: TrainState, check: Check) -> dict[str, float]:
        asked = features(state, part, check)
        weights = jax.device_get(state.online[layer]["weights"])
        logits = linear_logits(
            (weights["kernel"], weights["bias"]), jax.numpy.asarray(asked.features)
        )
        return {name: float(np.mean(np.asarray(logits).argmax(axis=1) == asked.labels))}

    return online


def _features(
    name: str, layer: str, setting: Setting, part: Part
) -> Callable[[TrainState, Part, Check], FeatureSet]:
    """From a state and a split to a layer of its images; ``part``, one of them, tries the layer."""
    graph, mesh, batch_size = setting.blueprint.graph, setting.mesh, setting.batch_size
    to_embed = embedder(graph, name, layer, part.view, mesh)
    # Traced once before training, so that a wrong layer is refused now and not after an epoch.
    # Not jitted: within a trace JAX refuses the compiler's options.
    state = setting.blueprint.abstract(mesh)
    traced = _embed(graph, name, layer, part.view)
    jax.eval_shape(traced, state.params, state.rest, abstract_batch(part.source, batch_size))

    def features(state: TrainState, part: Part, check: Check) -> FeatureSet:
        embed = to_embed(state)

        def checked(batch: Batch) -> jax.Array:
            check()
            return embed(batch)

        return extract(checked, part.source, mesh=mesh, batch_size=batch_size)

    return features


def _section(name: str, settings: ConfigDict, setting: Setting) -> Run:
    """A section of the card, of the network as it is at a step."""
    section = settings.section
    probed = _probed(name, settings, setting)
    found: list = []
    if section == FINGERPRINT:
        found = suitable_conditions(setting.opening, settings.split, every_severity=False)
    if section == "dense" and probed.map_layer is None:
        raise UserError(
            f"the evaluation {name} is of maps and this encoder has none: give "
            f"--config.evals.{name}.every=0."
        )

    def run(state: TrainState, check: Check) -> dict[str, float]:
        probed.network.arrays = (state.params, state.rest)
        now = dataclasses.replace(probed, check=check)
        where = now.parts["test"].source.positions
        labels = now.test.labels if section in _OF_CLASSES else np.zeros_like(where)
        predictions = Predictions(where, labels)
        if section == FINGERPRINT:
            told = fingerprint(now, now.settings, predictions, found)
        else:
            told = SECTIONS[section](now, now.settings, predictions)
        check()
        numbers = LOGGED[section](told)
        return {
            name + (key and f"_{key}"): float(value)
            for key, value in numbers.items()
            if value is not None and math.isfinite(value)
        }

    return run


def _probed(name: str, settings: ConfigDict, setting: Setting) -> Probed:
    """The network of any state, its arrays to be filled in, with the images that it is seen by."""
    opening, blueprint, mesh = setting.opening, setting.blueprint, setting.mesh
    asked = probe.default_config()
    asked.layer = settings.layer
    asked.feature_batch_size = whole_batch(setting.batch_size, mesh)
    asked.sgd.epochs = 0
    asked.labels_per_class = 0  # a class may have fewer, which nobody is to hear of after an epoch
    parts = {"train": opening.part("train"), "test": opening.part(settings.split)}
    if settings.section in _OF_CLASSES:
        _check_labels(name, parts["train"].source, settings.section)
    if settings.split == "test" and settings.section in _FITTED:
        parts["validation"] = opening.part("validation")
    else:
        chooses = np.arange(len(parts["train"].source)) % EVERY_TENTH == EVERY_TENTH - 1
        parts["validation"] = _taken(parts["train"], np.flatnonzero(chooses))
        parts["train"] = _taken(parts["train"], np.flatnonzero(~chooses))
    state = blueprint.abstract(mesh)
    network = Network(represented(blueprint.graph), (state.params, state.rest))
    first = parts["test"].source.gather(np.zeros(1, np.int64))
    choose(f"evals.{name}.layer", settings.layer, network.layers(parts["test"].view, first))
    return Probed(
        name="trained",
        network=network,
        layer=settings.layer,
        parts=parts,
        opening=opening,
        pair=pair_of(opening, parts["test"], asked, blueprint.spec),
        cropped=make_cropped_view(opening.config),
        settings=asked,
        mesh=mesh,
        split=settings.split,
    )


def _taken(part: Part, rows: Int[np.ndarray, " n"]) -> Part:
    return Part(part.source.take(rows), part.view, part.setting)


_FITTED = ("linear", "few_shot", "calibration", FINGERPRINT)
_OF_EACH_CLASS = ("geometry",)  # one will do
_OF_CLASSES = (*_FITTED, *_OF_EACH_CLASS)


def _of_linear(found: Found) -> dict[str, Any]:
    return {"": found["lbfgs"]["top1"], "balanced": found["lbfgs"]["balanced"]}


def _of_few_shot(found: Found) -> dict[str, Any]:
    by_shots = {shots: row["top1"]["value"] for shots, row in found.items()}
    return {"": list(by_shots.values())[-1], **by_shots}


def _of_geometry(found: Found) -> dict[str, Any]:
    names = ("classwise_uniformity", "rankme", "feature_std")
    numbers = {"": found["uniformity"]["value"], "norm": found["norm"]["mean"]}
    return {**numbers, **{name: found[name] for name in names}}


def _of_losses(found: Found) -> dict[str, Any]:
    return {"": found["sum"]["value"], **{name: found[name]["value"] for name in ("l_a", "l_u")}}


def _of_calibration(found: Found) -> dict[str, Any]:
    return {"": found["ece"]}


def _of_fingerprint(found: Found) -> dict[str, Any]:
    accuracies = {name.replace(" ", "_"): row["accuracy"]["value"] for name, row in found.items()}
    return {"": mean_drop(found), "delta_u": mean_drop(found, "delta_u"), **accuracies}


LOGGED: Mapping[str, Callable[[Found], dict[str, Any]]] = {
    "linear": _of_linear,
    "few_shot": _of_few_shot,
    "geometry": _of_geometry,
    "alignment": _of_losses,
    "dense": _of_losses,
    "calibration": _of_calibration,
    FINGERPRINT: _of_fingerprint,
}
"""What is logged of a section, the first under the evaluation's own name: of "linear" top-1, and
balanced; of "few_shot" top-1 by labels a class, most labels first; of "geometry" U and others; of
"alignment" and "dense" L_a + L_u, and each; of "calibration" the ECE; of the fingerprint the mean
drop of the accuracy, of U, and each accuracy."""

MAKERS: Mapping[str, Callable[[str, ConfigDict, Setting], Run]] = {
    "knn": _knn,
    "online": _online,
    **dict.fromkeys(LOGGED, _section),
}


def embedder(
    graph: nnx.GraphDef, name: str, layer: str, clean_view: CleanView, mesh: Mesh
) -> Callable[[TrainState], Embed]:
    """From a state to what `extract` takes: a layer of clean images, maps averaged over positions.

    One compilation serves every state.
    """
    whole = replicated(mesh)
    jitted = jax.jit(
        _embed(graph, name, layer, clean_view),
        in_shardings=(whole, whole, sharded(mesh)),
        out_shardings=whole,
        compiler_options=compiler_options(mesh),
    )
    return lambda state: lambda batch: jitted(state.params, state.rest, batch)


def _embed(
    graph: nnx.GraphDef, name: str, layer: str, clean_view: CleanView
) -> Callable[[nnx.State, nnx.State, Mapping], jax.Array]:
    def embed(params: nnx.State, rest: nnx.State, batch: Mapping) -> jax.Array:
        layers = merge(graph, params, rest).represent(clean_view(batch))
        return as_vectors(choose(f"evals.{name}.layer", layer, layers))

    return embed


def check_neighbours(group: str, protocol: str, bank_size: int) -> None:
    """Raises UserError unless so many training images serve the kNN protocol of ``group``."""
    asked = choose(f"{group}.protocol", protocol, PROTOCOLS).k
    if asked > bank_size:
        enough = [name for name, other in PROTOCOLS.items() if other.k <= bank_size]
        remedy = (
            f"{group}.protocol={enough[0]}, or {group}.every=0" if enough else f"{group}.every=0"
        )
        raise UserError(
            f"{group}.protocol={protocol} asks for {counted(asked, 'neighbour')} of "
            f"{counted(bank_size, 'training image')}: use more images, or give {remedy}."
        )
