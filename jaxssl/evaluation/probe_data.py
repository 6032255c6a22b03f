"""What a probe of a run is fitted and tested on, and whether there is enough of it."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxssl.corruptions.apply import corruption_group, setting_name
from jaxssl.data.examples import Source, identity
from jaxssl.data.sources import taken_from
from jaxssl.data.splits import Splits, corrupted
from jaxssl.errors import UserError, choose
from jaxssl.evaluation.features import Batch
from jaxssl.evaluation.frozen import make_test_view
from jaxssl.evaluation.probe import AS_TRAINED, NO_KNN
from jaxssl.metrics.knn import PROTOCOLS, Protocol
from jaxssl.words import counted

FRACTIONS = ("validation_fraction", "test_fraction")  # that a probe may set anew
DEFAULT_PROTOCOL = "moco"  # of a run without evaluations


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A split and its test-time images.

    Attributes:
      source: the examples, corrupted already where that is done on the host.
      view: from a batch of them to images.
      setting: what of the config the images depend on besides the source; JSON.
    """

    source: Source
    view: Callable[[Batch], jax.Array]
    setting: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """See `jaxssl.data.examples.identity`; it hashes what lies in memory."""
        return identity(self.source)

    @property
    def compared(self) -> dict[str, Any]:
        """The same without the name, which depends on where the data lie."""
        return {key: value for key, value in self.identity.items() if key != "name"}


class Place(NamedTuple):
    """Where the run's own data lie now; "": where they lay when it was trained.

    Attributes:
      data_dir: in place of ``config.data.data_dir``.
      digits_dir: in place of ``config.data.compose.digits_dir``.
    """

    data_dir: str = ""
    digits_dir: str = ""


WHERE_TRAINED = Place()


def data_settings() -> ConfigDict:
    """Another set than the run's own; what is not here is as in the run's ``data`` group."""
    data = ConfigDict()
    data.name = ""  # as config.data.name: "folder", "cifar10" ...; "": the run's own data
    data.data_dir = ""  # root of a folder or of TFDS; "": TFDS_DATA_DIR or TFDS's default
    data.image_size = 0  # canonical height and width in pixels; 0: the run's
    data.scale = ()  # as config.data.scale: (low, high) of images of more than 8 bits
    data.validation_fraction = 0.1  # share of the train split held out for choices
    data.test_fraction = 0.0  # share of the train split held out for tests if none is published
    data.train_examples = 0  # training images used, evenly spread over the split; 0: all
    data.classes = ""  # "imagenet100": the classes of that list alone; "": all
    data.unreadable = "refuse"  # an image file that cannot be decoded, or "skip" and count it
    return data


def with_data(
    config: ConfigDict,
    asked: ConfigDict,
    place: Place = WHERE_TRAINED,
    defaults: ConfigDict | None = None,
) -> ConfigDict:
    """The run's config with its ``data`` as asked for.

    Args:
      config: of the run.
      asked: see `data_settings`.
      place: for the run's own data.
      defaults: what ``asked`` is if nothing is asked; None: `data_settings`.

    Raises:
      UserError: for settings of another set without its name, or a place beside one.
    """
    config = config.copy_and_resolve_references()
    defaults = data_settings() if defaults is None else defaults
    changed = [key for key in defaults if asked[key] != defaults[key]]
    with config.unlocked():
        if asked.name:
            if given := next((key for key, value in place._asdict().items() if value), None):
                raise UserError(
                    f"--{given} is where the run's own data lie and --data.name={asked.name} is "
                    "another set: give --data.data_dir for that one."
                )
            size = max(config.data.image_size, config.views.global_crops.size)
            config.data.update(asked.to_dict())
            config.data.image_size = asked.image_size or size
        elif changed:
            raise UserError(
                f"--data.{changed[0]}={asked[changed[0]]} is of another set than the run's own: "
                "add --data.name, or give --data_dir for where the run's own data lie now."
            )
        if place.data_dir:
            config.data.data_dir = place.data_dir
        if place.digits_dir:
            if "compose" not in config.data or "digits_dir" not in config.data.compose:
                raise UserError(
                    f"--digits_dir={place.digits_dir} is for runs on digit_on_image and this one's "
                    "data are others: leave it out."
                )
            config.data.compose.digits_dir = place.digits_dir
    return config


class Opening:
    """The splits of a run, each read once, under any corruption.

    Args:
      config: of the run, see `with_data`.
      settings: see `jaxssl.evaluation.probe.default_config`.
      sources: splits that Python code brings.
      own: the run's splits under its own corruption, where they are open already.

    Raises:
      UserError: if a setting does not suit.
    """

    def __init__(
        self,
        config: ConfigDict,
        settings: ConfigDict,
        sources: Mapping[str, Source] | None,
        own: Splits | None = None,
    ) -> None:
        self.config = config = _cut(config, settings, sources)
        self._size = config.views.global_crops.size
        plain = own if config.corruption.name == "none" else None
        self._plain = plain or Splits(config.data, corruption_group(), self._size, sources)
        self._own = own
        self._parts: dict[tuple[str, str], Part] = {}
        self._views: dict[str, Callable[[Batch], jax.Array]] = {}

    def part(self, split: str, corruption: ConfigDict | None = None) -> Part:
        """A split; with ``corruption`` in place of the run's own.

        Raises:
          UserError: if there is no such split, or its images do not suit the corruption.
        """
        group = self.config.corruption if corruption is None else corruption
        name = _name_of(group)
        if (split, name) not in self._parts:
            config = self.under(group)
            keys = ("corruption", "normalize", "randbit")
            setting = {"size": self._size, **{key: config[key].to_dict() for key in keys}}
            source = self._source(split, group)
            self._parts[split, name] = Part(source, self._view(config), setting)
        return self._parts[split, name]

    def under(self, corruption: ConfigDict) -> ConfigDict:
        """The run's config with another corruption."""
        config = self.config.copy_and_resolve_references()
        config.corruption = corruption
        return config

    def _source(self, split: str, group: ConfigDict) -> Source:
        if self._own is not None and _name_of(group) == _name_of(self.config.corruption):
            return self._own[split]
        return corrupted(self._plain[split], group, self._size)

    def _view(self, config: ConfigDict) -> Callable[[Batch], jax.Array]:
        # What is done on the host is no part of the view: one compilation serves all of that.
        late = config.corruption.order == "aug_corrupt"
        name = _name_of(config.corruption) if late else ""
        if name not in self._views:
            self._views[name] = make_test_view(config)
        return self._views[name]


def _name_of(corruption: ConfigDict) -> str:
    return json.dumps(corruption.to_dict(), sort_keys=True)


def open_splits(
    config: ConfigDict, settings: ConfigDict, sources: Mapping[str, Source] | None
) -> dict[str, Part]:
    """The three splits of a run, the test images corrupted as ``settings.test_corruption`` says.

    Args:
      config: of the run, see `with_data`.
      settings: see `jaxssl.evaluation.probe.default_config`.
      sources: splits that Python code brings.

    Raises:
      UserError: if one of them is missing, or a setting does not suit.
    """
    opening = Opening(config, settings, sources)
    parts = {name: opening.part(name) for name in ("train", "validation")}
    return parts | {"test": part_to_test(opening, settings.test_corruption)}


def part_to_test(opening: Opening, asked: ConfigDict) -> Part:
    """The test images, corrupted as ``--probe.test_corruption`` says.

    Raises:
      UserError: if the setting does not suit.
    """
    if asked.name != AS_TRAINED:
        try:
            return opening.part("test", asked)
        except UserError as error:
            told = str(error).replace("--config.corruption.", "--probe.test_corruption.")
            raise UserError(told) from error
    _, *ignored = setting_name(asked).split("-", 1)
    if ignored:
        raise UserError(
            f"--probe.test_corruption has {ignored[0]} but no name, and without one the test "
            "images are corrupted as in training: give --probe.test_corruption.name too."
        )
    return opening.part("test")


def _cut(
    config: ConfigDict, settings: ConfigDict, sources: Mapping[str, Source] | None
) -> ConfigDict:
    """The config with its ``data`` cut as the settings say."""
    config = config.copy_and_resolve_references()
    if settings.evaluation_size:
        if config.data.name != "multi_digits" or sources is not None:
            raise UserError(
                f"--probe.evaluation_size={settings.evaluation_size} is for runs on multi_digits, "
                "and this run's data are others: leave it at 0."
            )
        config.data.compose.evaluation_size = settings.evaluation_size
    for key in FRACTIONS:
        if settings[key] < 0:
            continue
        if sources is not None:
            raise UserError(
                f"--probe.{key}={settings[key]} cuts data that a config names, and these came from "
                "Python: give their splits as sources."
            )
        config.data[key] = settings[key]
        taken = taken_from(config.data)
        if key == "test_fraction" and settings[key] > 0 and taken.get("test", "train") != "train":
            raise UserError(
                f"--probe.test_fraction={settings[key]} would be ignored, for {config.data.name} "
                f"has a {taken['test']} split of its own: leave it out."
            )
    return config


_COMPOSED = ("compose.digits_dir", "compose.evaluation_size")  # that a program has a flag for
_WHICH_SET = ("name", "data_dir")
_OF_ANOTHER_SET = " (with --data.name and --data.data_dir, as of another set)"


def _flag(key: str, own: Mapping[str, str] | None) -> str | None:
    """The flag for a key of the data group, see `flags_of`; None: there is none."""
    if own is None or (key not in own and key not in _WHICH_SET):
        return f"--data.{key}" if key in data_settings() else None
    return own.get(key)


@contextlib.contextmanager
def flags_of(own: Mapping[str, str] | None) -> Iterator[None]:
    """Errors of the data name ``--config.data.*``: this puts a program's own flags in their place.

    Args:
      own: flags by the key of ``config.data`` where the run's own data are read; None: another set
        is, by ``--data.*``. For what has no flag of its own the same data may be named so too.
    """
    try:
        yield
    except UserError as error:
        flags: list[str] = []

        def flag(found: re.Match[str]) -> str:
            flags.append(_flag(found[1], own) or found[0])
            return flags[-1]

        keys = "|".join([*data_settings(), *_COMPOSED])
        told = re.sub(rf"(?:--config\.|(?<![\w./-]))data\.({keys})\b", flag, str(error))
        if own is not None and any(name.startswith("--data.") for name in flags):
            told = f"{told.removesuffix('.')}{_OF_ANOTHER_SET}{'.' * told.endswith('.')}"
        raise UserError(told) from error


def check_target(part: Part, target: str) -> None:
    """Raises UserError unless a set has one class an image by that name, two in all."""
    targets = part.source.gather(np.zeros(1, np.int64))["targets"]
    fit = [name for name, values in targets.items() if values.shape == (1,)]
    if target not in fit:
        held = ", ".join(sorted(fit)) or "none at all"
        raise UserError(
            f"{part.source.name} has no target {target!r} to probe: it has {held}; choose one by "
            "--probe.target, or a labelled set by --data.name."
        )
    if target == "label" and part.source.num_classes == 1:
        raise UserError(
            f"{part.source.name} has one class, so that every probe is right whatever the features "
            "are: choose a set of two classes or more by --data.name."
        )


def check_channels(info: Mapping[str, Any], source: Source) -> None:
    """Raises UserError unless images have as many channels as those that the run was trained on."""
    trained, found = info["data"]["image_shape"][-1], source.image_shape[-1]
    if trained != found:
        raise UserError(
            f"images of {source.name} have {counted(found, 'channel')} and the run was trained on "
            f"images of {trained}: choose a set of {trained} by --data.name."
        )


def protocol_of(config: ConfigDict, settings: ConfigDict, bank_size: int) -> Protocol | None:
    """The kNN protocol that a probe asks for; None: no kNN.

    Raises:
      UserError: if there is no such protocol, or fewer images than its neighbours.
    """
    name = protocol_name(config, settings.protocol)
    if name == NO_KNN:
        return None
    protocol = choose("--probe.protocol", name, PROTOCOLS)
    if settings.knn_k:
        return protocol._replace(k=min(settings.knn_k, bank_size))
    if protocol.k > bank_size:
        raise UserError(
            f"--probe.protocol={name} asks for {counted(protocol.k, 'neighbour')} of "
            f"{counted(bank_size, 'training image')}: give --probe.knn_k={bank_size}, or "
            f"--probe.protocol={NO_KNN} for no kNN."
        )
    return protocol


def protocol_name(config: ConfigDict, asked: str = AS_TRAINED) -> str:
    """The protocol by name; `AS_TRAINED`: that of the run's first evaluation that has one."""
    if asked != AS_TRAINED:
        return asked
    named = (group.protocol for group in config.evals.values() if "protocol" in group)
    return next(named, DEFAULT_PROTOCOL)


def check_probeable(config: ConfigDict, splits: Splits) -> list[str]:
    """What a later linear probe of a run would lack, in sentences; empty if nothing.

    Args:
      config: of the run.
      splits: its data.
    """
    train = splits["train"]
    if train.num_classes is None:
        return [f"{train.name} has no labels: a probe will need another set, by --data.name."]
    lacking = []
    for split in ("validation", "test"):
        try:
            splits.check(split)
        except UserError as error:
            lacking.append(
                f"a probe will need a {split} split (or --probe.{split}_fraction then): {error}"
            )
    name = protocol_name(config)
    if name in PROTOCOLS and PROTOCOLS[name].k > len(train):
        lacking.append(
            f"a probe by --probe.protocol={name} will need {PROTOCOLS[name].k} training images and "
            f"has {len(train)}: it can be told --probe.knn_k={len(train)}."
        )
    return lacking


def same_data(noted: Mapping[str, Any], part: Part) -> bool:
    """Whether a split is what a run noted of its data, as far as it noted it."""
    now = part.compared
    return all(noted[key] == now[key] for key in noted.keys() & now.keys())


def data_digest(parts: Mapping[str, Part]) -> str:
    """SHA-256 of what the splits hold, in hexadecimal."""
    held = {name: part.compared for name, part in parts.items()}
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def file_name(text: str) -> str:
    """A text with nothing in it that a file's name must not have."""
    return re.sub(r"[^\w.=+-]", "_", text)
