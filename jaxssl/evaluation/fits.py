"""The linear classifiers of a probe: fitted on clean training images once, scored on any test."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from jaxssl.data.examples import Source
from jaxssl.errors import UserError
from jaxssl.evaluation import probe
from jaxssl.evaluation.classifier import About, LinearClassifier, names_of_classes
from jaxssl.evaluation.features import (
    Batch,
    Embed,
    FeatureSet,
    check_finite,
    extract,
    whole_batch,
)
from jaxssl.evaluation.frozen import Network, View
from jaxssl.evaluation.probe_data import Opening, Part
from jaxssl.evaluation.store import FeatureStore
from jaxssl.storage import Path
from jaxssl.words import counted

Saved = Sequence[tuple[Path, LinearClassifier, About]]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A classifier of a probe.

    Attributes:
      classifier: what was fitted.
      about: what it says of itself.
      file: where it was found; None: it was fitted now.
    """

    classifier: LinearClassifier
    about: About
    file: Path | None


def nothing() -> None:
    """The check of an evaluation that nothing ends."""


@dataclasses.dataclass(frozen=True)
class Probed:
    """One frozen network and the data that it is probed on; a set is embedded when first needed.

    Attributes:
      name: of the network, such as ``trained``.
      network: the network.
      layer: the layer whose vectors are probed.
      parts: the splits.
      opening: the same under other corruptions.
      pair: the test images as two augmented views.
      cropped: from (batch, seed, epoch) to the images of the SGD fit.
      settings: see `jaxssl.evaluation.probe.default_config`.
      mesh: devices.
      saved: classifiers of earlier evaluations, used where they are of the very same fit.
      store: where features are kept.
      check: called between batches; may raise what ends the evaluation.
      split: whose images are the test images.
      embeds: what was compiled, by view and layer; shared by all that are of one network.
    """

    name: str
    network: Network
    layer: str
    parts: Mapping[str, Part]
    opening: Opening
    pair: tuple[Part, Part]
    cropped: View
    settings: ConfigDict
    mesh: Mesh
    saved: Saved = ()
    store: FeatureStore = dataclasses.field(default_factory=lambda: FeatureStore(None))
    check: Callable[[], None] = nothing
    split: str = "test"
    embeds: dict[tuple[View, str, bool], Embed] = dataclasses.field(default_factory=dict)

    def features_of(self, part: Part) -> FeatureSet:
        """Of the images of a split, whichever; kept in the store, not in memory."""
        embed = self._embed(part.view, self.layer)
        key = {
            "network_sha256": self._digest,
            "computes": self.network.computes,
            "layer": self.layer,
            "target": self.settings.target,
            "data": part.compared,
            "view": part.setting,
        }
        return self.store.get(key, lambda: self._extract(embed, part.source))

    def _embed(self, view: View, layer: str, flat: bool = False) -> Embed:
        key = view, layer, flat
        if key not in self.embeds:
            self.embeds[key] = self.network.through(view, layer, flat=flat)
        return self.embeds[key]

    @functools.cached_property
    def map_layer(self) -> tuple[str, tuple[int, ...]] | None:
        """The map that stands for the layer, and its shape [height, width, D] of an image.

        The layer itself if it is one, or else the encoder's last; None: there is no map.
        """
        part = self.parts["test"]
        shapes = self.network.layers(part.view, part.source.gather(np.zeros(1, np.int64)))
        maps = {name: shape[1:] for name, shape in shapes.items() if len(shape) == 4}
        stages = [name for name in maps if re.fullmatch(r"stage\d+", name)]
        last = sorted(stages, key=lambda name: int(name.removeprefix("stage")))[-1:]
        chosen = self.layer if self.layer in maps else next(iter(last), None)
        return None if chosen is None else (chosen, maps[chosen])

    def maps_of(self, part: Part, layer: str, size: int) -> Float[np.ndarray, "n p d"]:
        """The cells of a map of each image, D = ``size``; kept nowhere."""
        found = self._extract(self._embed(part.view, layer, True), part.source).features
        return found.reshape(len(found), -1, size)

    @functools.cached_property
    def train(self) -> FeatureSet:
        """Of the training images."""
        return self.features_of(self.parts["train"])

    @functools.cached_property
    def validation(self) -> FeatureSet:
        """Of the held-out training images."""
        return self.features_of(self.parts["validation"])

    @functools.cached_property
    def test(self) -> FeatureSet:
        """Of the test images."""
        return self.features_of(self.parts["test"])

    def _extract(self, embed: Embed, source: Source) -> FeatureSet:
        def checked(batch: Batch) -> Float[Array, "b d"]:
            self.check()
            return embed(batch)

        found = extract(
            checked,
            source,
            mesh=self.mesh,
            # The last batch is padded, so any device count works.
            batch_size=whole_batch(self.settings.feature_batch_size, self.mesh),
            target=self.settings.target,
        )
        check_finite(found, f"image of {source.name}", "--probe.layer")
        return found

    @functools.cached_property
    def _digest(self) -> str:
        return self.network.digest()

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Of the target, where known."""
        return self.parts["train"].source.class_names if self.settings.target == "label" else None

    def classifiers(self) -> Iterator[tuple[str, Fitted]]:
        """Every classifier by its name.

        ``lbfgs`` (all labels), ``lbfgs_few`` (the first ``settings.labels_per_class`` of each
        class), if that is not 0, and ``sgd`` (the published protocol), if it has an epoch.

        Raises:
          UserError: before the first fit, if a class has too few images for ``lbfgs_few``.
        """
        asked = {"lbfgs_few": self.settings.labels_per_class, "sgd": self.settings.sgd.epochs}
        if asked["lbfgs_few"] and self._saved("lbfgs_few") is None:
            check_few(self)
        for name in FITS:
            if name not in asked or asked[name]:
                yield name, self.classifier(name)

    @functools.cached_property
    def fitted(self) -> dict[str, Fitted]:
        """Classifiers made or found so far, by name."""
        return {}

    def classifier(self, name: str) -> Fitted:
        """A classifier by its name, a saved one where it is of the very same fit."""
        if name in self.fitted:
            return self.fitted[name]
        found = self._saved(name)
        if found is not None:
            self.fitted[name] = found
            return found
        classifier, chosen = FITS[name](self)
        about = About(
            class_names=names_of_classes(self.class_names, classifier.bias.shape[0]),
            layer=self.layer,
            target=self.settings.target,
            encoder_sha256=self.network.encoder_digest(),
            fitted_on=self._key(name),
            chosen=chosen,
        )
        self.fitted[name] = Fitted(classifier, about, None)
        return self.fitted[name]

    def _saved(self, name: str) -> Fitted | None:
        if not self.saved:
            return None
        key = self._key(name)
        found = next((entry for entry in self.saved if entry[2].fitted_on == key), None)
        return None if found is None else Fitted(found[1], found[2], found[0])

    def logits(self, name: str, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """What a classifier says of features."""
        return self.classifier(name).classifier.logits(features, self.mesh)

    def names_of(self, classes: Int[np.ndarray, " k"]) -> list[str]:
        """Names of classes, or their numbers."""
        names = names_of_classes(self.class_names, int(max(classes, default=-1)) + 1)
        return [names[label] for label in classes]

    def _key(self, fit: str) -> dict[str, Any]:
        """All that a fit depends on, besides the config of the run; as JSON gives it back."""
        settings = {name: self.settings[name] for name in SETTINGS[fit]}
        return {
            "network": self.name,
            "network_sha256": self._digest,
            "computes": self.network.computes,
            "fit": fit,
            "layer": self.layer,
            "target": self.settings.target,
            "evaluation_size": self.settings.evaluation_size,
            "settings": {
                name: _plain(value.to_dict()) if isinstance(value, ConfigDict) else value
                for name, value in settings.items()
            },
            "data": {name: self.parts[name].compared for name in ("train", "validation")},
        }


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()}


def fit_all(probed: Probed) -> tuple[LinearClassifier, dict[str, Any]]:
    """`probe.fit_lbfgs` on all training images; l2 by all validation images."""
    return _lbfgs(probed, probed.train, probed.validation)


def check_few(probed: Probed) -> None:
    """Raises UserError if a class has fewer training images than ``labels_per_class``."""
    counts = np.bincount(probed.train.labels)
    fewest, asked = int(counts[counts > 0].min()), probed.settings.labels_per_class
    if fewest < asked:
        raise UserError(
            f"--probe.labels_per_class={asked} but a class has only "
            f"{counted(fewest, 'training image')}: "
            f"give --probe.labels_per_class={fewest} or less."
        )


def fit_few(probed: Probed) -> tuple[LinearClassifier, dict[str, Any]]:
    """`probe.fit_lbfgs` on the first ``labels_per_class`` training images of each class.

    l2 is chosen by as many validation images of each class (by all that a class has if those are
    fewer), so that no more than twice the labels are used than the number says.
    """
    check_few(probed)
    count = probed.settings.labels_per_class
    train = _rows(probed.train, probe.per_class_subset(probed.train.labels, count))
    held_out = probe.per_class_subset(probed.validation.labels, count, or_all=True)
    return _lbfgs(probed, train, _rows(probed.validation, held_out))


def fit_published(probed: Probed) -> tuple[LinearClassifier, dict[str, Any]]:
    """`probe.fit_sgd` on images that are cropped and flipped anew in each epoch."""
    settings = probed.settings
    embed = probed.network.through(probed.cropped, probed.layer)

    def augmented(epoch: int) -> tuple[Any, Any]:
        draw = jnp.uint32(settings.seed), jnp.int32(epoch)
        source = probed.parts["train"].source
        fresh = probed._extract(lambda batch: embed(batch, *draw), source)
        return fresh.features, fresh.labels

    num_classes = int(probed.train.labels.max()) + 1
    return probe.fit_sgd(augmented, num_classes, seed=settings.seed, **settings.sgd), {}


FITS: dict[str, Callable[[Probed], tuple[LinearClassifier, dict[str, Any]]]] = {
    "lbfgs": fit_all,
    "lbfgs_few": fit_few,
    "sgd": fit_published,
}
SETTINGS = {
    "lbfgs": ("lbfgs",),
    "lbfgs_few": ("lbfgs", "labels_per_class"),
    "sgd": ("sgd", "seed"),
}
"""What of the settings each fit reads."""


def _rows(features: FeatureSet, rows: np.ndarray) -> FeatureSet:
    return FeatureSet(features.features[rows], features.labels[rows])


def _lbfgs(
    probed: Probed, train: FeatureSet, held_out: FeatureSet
) -> tuple[LinearClassifier, dict[str, Any]]:
    settings, num_classes = probed.settings.lbfgs, int(probed.train.labels.max()) + 1
    how: dict[str, Any] = {
        "max_iterations": settings.max_iterations,
        "tolerance": settings.tolerance,
        "mesh": probed.mesh,
    }
    l2, tried = probe.select_l2(
        (train.features, train.labels),
        (held_out.features, held_out.labels),
        num_classes,
        grid=settings.l2_grid,
        **how,
    )
    fit = probe.fit_lbfgs(train.features, train.labels, num_classes, l2=l2, **how)
    return fit.classifier, {
        "l2": l2,
        "validation_top1": {str(candidate): accuracy for candidate, accuracy in tried.items()},
        "validation_images": len(held_out.labels),
        "iterations": fit.iterations,
        "gradient": fit.gradient,
    }
