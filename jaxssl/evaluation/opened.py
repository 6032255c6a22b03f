"""A run opened for evaluation: its checkpoint, its data, and the networks that are looked at."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxssl import distributed
from jaxssl.data.examples import Source
from jaxssl.data.sources import check_view_size, pretraining_split
from jaxssl.data.splits import Splits
from jaxssl.distributed import say
from jaxssl.errors import UserError
from jaxssl.evaluation.classifier import LinearClassifier
from jaxssl.evaluation.conditions import CLEAN, Condition, conditions
from jaxssl.evaluation.fits import Probed, Saved
from jaxssl.evaluation.frozen import (
    PIXELS,
    Network,
    Restored,
    check_layer,
    fresh_method,
    make_cropped_view,
    make_pair_views,
    raw_pixels,
    restored_method,
)
from jaxssl.evaluation.probe import AS_TRAINED
from jaxssl.evaluation.probe_data import (
    FRACTIONS,
    Opening,
    Part,
    Place,
    check_channels,
    check_target,
    flags_of,
    part_to_test,
    same_data,
    with_data,
)
from jaxssl.evaluation.store import FeatureStore
from jaxssl.methods import Spec
from jaxssl.run_directory import check_outside, read_config, read_info
from jaxssl.storage import Path, as_path

_OWN_FLAGS = {
    "data_dir": "--data_dir",
    "compose.digits_dir": "--digits_dir",
    "compose.evaluation_size": "--probe.evaluation_size",
    **{key: f"--probe.{key}" for key in FRACTIONS},
}


@dataclasses.dataclass(frozen=True)
class Opened:
    """What an evaluation of one checkpoint works on.

    Attributes:
      run: the run's directory.
      restored: the method of the checkpoint.
      opening: its data, or those asked for, under any corruption.
      parts: the three splits.
      own: whether the data are those that the run was trained on.
      probes: the networks with the data, by name; ``trained`` first.
      saved: the classifiers of earlier evaluations, if they may be used.
    """

    run: Path
    restored: Restored
    opening: Opening
    parts: Mapping[str, Part]
    own: bool
    probes: Mapping[str, Probed]
    saved: Saved = ()


def open_run(
    run: Path,
    step: int | None,
    settings: ConfigDict,
    baselines: bool,
    sources: Mapping[str, Source] | None,
    data: ConfigDict,
    place: Place,
    *,
    reuse_classifiers: bool,
    store: FeatureStore | None = None,
) -> Opened:
    """Opens a checkpoint and the data that it is to be evaluated on; changes neither.

    Args:
      run: directory of a pretraining run.
      step: which checkpoint; None: the newest sound one.
      settings: see `jaxssl.evaluation.probe.default_config`.
      baselines: also the network as it was before training, and raw pixels.
      sources: the splits of a run whose data came from Python, or of another labelled set.
      data: another labelled set, see `jaxssl.evaluation.probe_data.data_settings`.
      place: where the run's own data lie now.
      reuse_classifiers: of earlier evaluations, where they are of the very same fit.
      store: where features are kept; None: nowhere.

    Raises:
      UserError: for whatever the user can mend.
    """
    info = read_info(run)
    _check_sources(run, info, sources, data)
    config = with_data(read_config(run), data, place)
    if sources is None:
        own_flags = ("--data.data_dir" if data.name else "--data_dir", "--digits_dir")
        check_outside(run, "--run", config.data, own_flags)
    mesh = distributed.data_mesh()
    with flags_asked(data):
        opening = Opening(config, settings, sources)
        parts = {name: opening.part(name) for name in ("train", "validation")}
        parts["test"] = part_to_test(opening, settings.test_corruption)
        if data.name:
            check_view_size(parts["train"].source, config.views.global_crops.size)
        own = _is_own(info, config, parts, sources, settings, data)
    train = parts["train"].source
    if not own and not data.name:
        say(f"{train.name} is not what the run was trained on: the card is named after it")
    check_channels(info, train)
    check_target(parts["train"], settings.target)
    restored = restored_method(run, step, mesh)
    layers = restored.network.layers(parts["train"].view, train.gather(np.zeros(1, np.int64)))
    check_layer("--probe.layer", settings.layer, layers)
    saved = saved_classifiers(run / "evaluations") if reuse_classifiers else []
    pair = pair_of(opening, parts["test"], settings, restored.spec)
    probes = {
        name: Probed(
            name,
            network,
            layer,
            parts,
            opening,
            pair,
            make_cropped_view(config),
            settings,
            mesh,
            saved,
            store or FeatureStore(None),
        )
        for name, (network, layer) in _networks(restored, settings.layer, baselines, mesh).items()
    }
    return Opened(run, restored, opening, parts, own, probes, saved)


def flags_asked(data: ConfigDict) -> contextlib.AbstractContextManager[None]:
    """`flags_of` for what ``data`` names, the run's own data or another set."""
    return flags_of(None if data.name else _OWN_FLAGS)


def pair_of(opening: Opening, test: Part, settings: ConfigDict, spec: Spec) -> tuple[Part, Part]:
    """The test images as two augmented views of the run's own policy; see `make_pair_views`."""
    asked = settings.test_corruption
    config = opening.config if asked.name == AS_TRAINED else opening.under(asked)
    drawn = {"views": config.views.to_dict(), "hyper": config.hyper.to_dict()}
    first, second = (
        Part(test.source, view, {**test.setting, **drawn, "seed": settings.seed, "view": number})
        for number, view in enumerate(make_pair_views(config, spec, settings.seed))
    )
    return first, second


def with_supervised(
    opened: Opened,
    run: Path,
    settings: ConfigDict,
    data: ConfigDict,
    place: Place,
    *,
    store: FeatureStore,
) -> Opened:
    """Adds another run's network as ``supervised``, on the same images by its own test-time view.

    Args:
      opened: the run that it is put beside.
      run: the directory of the other; its newest sound checkpoint is read.
      settings: see `jaxssl.evaluation.probe.default_config`.
      data: another labelled set, see `jaxssl.evaluation.probe_data.data_settings`.
      place: where the run's own data lie now.
      store: where its features are kept.

    Raises:
      UserError: as `open_run`, or if its test images are not the same.
    """
    other = open_run(
        run, None, settings, False, None, data, place, reuse_classifiers=False, store=store
    )
    ours, theirs = (found.parts["test"].identity for found in (opened, other))
    if are_other_images(ours, theirs):
        raise UserError(
            f"--supervised={run} would be tested on other images than {opened.run}: name a set "
            "for both by --data.name, or a run on the same data."
        )
    probed = dataclasses.replace(other.probes["trained"], name="supervised", saved=opened.saved)
    return dataclasses.replace(opened, probes={**opened.probes, "supervised": probed})


def are_other_images(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two identities are of other test images, or of other classes of them."""
    keys = ("original_size", "examples", "positions_sha256", "classes_sha256")
    return any(ours[key] != theirs[key] for key in keys)


def suitable_conditions(opening: Opening, split: str, *, every_severity: bool) -> list[Condition]:
    """What is done to the images of a split; what they do not suit is left out, and said."""
    found = []
    shape = opening.part(split).source.image_shape
    for condition in conditions(shape, every_severity=every_severity):
        try:
            opening.part(split, condition.corruption)
        except UserError as error:
            if condition.name == CLEAN:
                raise
            say(f"condition {condition.name} is left out: {error}")
        else:
            found.append(condition)
    return found


def _check_sources(
    run: Path, info: Mapping[str, Any], sources: Mapping[str, Source] | None, data: ConfigDict
) -> None:
    if sources is not None and data.name:
        raise UserError(f"give either sources or --data.name={data.name}, not both.")
    if info["data"].get("from_python") and sources is None and not data.name:
        raise UserError(
            f"{run} was trained on data that came from Python: call linear_probe from Python too, "
            "with its sources, or name another labelled set by --data.name."
        )


def _is_own(
    info: Mapping[str, Any],
    config: ConfigDict,
    parts: Mapping[str, Part],
    sources: Mapping[str, Source] | None,
    settings: ConfigDict,
    data: ConfigDict,
) -> bool:
    """Whether the data are those that the run was trained on, by what it noted of them."""
    train = parts["train"]
    if same_data(info["data"], train):
        return True
    # Another set's images for pretraining alone, such as STL-10's, would be opened for nothing; so
    # would the run's train split, if it has just been seen to be another.
    uncut = all(settings[key] < 0 for key in FRACTIONS)
    if data.name or (uncut and sources is None and pretraining_split(config.data) == "train"):
        return False
    splits = Splits(config.data, config.corruption, config.views.global_crops.size, sources)
    return same_data(info["data"], Part(splits["pretrain"], train.view))


def _networks(
    restored: Restored, layer: str, baselines: bool, mesh: Mesh
) -> dict[str, tuple[Network, str]]:
    """Each network that is looked at, and which of its layers."""
    networks = {"trained": (restored.network, layer)}
    if baselines:
        untrained = fresh_method(restored.config, restored.spec, mesh)
        networks |= {"untrained": (untrained, layer), "pixels": (raw_pixels(), PIXELS)}
    return networks


def saved_classifiers(evaluations: Path) -> Saved:
    """The classifiers in a run's directory."""

    def readable() -> list[str]:
        found = sorted(evaluations.glob("*/classifier*.npz")) if evaluations.is_dir() else []
        names = []
        for path in found:
            with contextlib.suppress(UserError, OSError):
                LinearClassifier.load(path)
                names.append(str(path))
        return names

    paths = distributed.agree("the saved classifiers", readable)
    return [(path, *LinearClassifier.load(path)) for path in (as_path(p, "--run") for p in paths)]
