"""Draws what a run would see: ``python -m jaxssl.preview --config FILE --out gallery.png``.

config -> images in the run's own order -> corruption -> policy -> picture. Nothing is trained. The
images are the first that the run's epoch visits and the views are, pixel by pixel, those it would
make of them. ``--sweep corruption`` shows the images under each corruption that papers use, and
``--sweep policy`` under spatial policies of Jha and Tuytelaars, all else as in the config.
"""

import collections
import errno
import fractions
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jaxssl import cli
from jaxssl.analysis.gallery import VIEW_COLORS, Outline, Panel, draw, to_png
from jaxssl.augment.policies import check_policy, policy_hyper, start_numbers
from jaxssl.augment.spatial import centre_distance, intersection_area
from jaxssl.augment.views import Views
from jaxssl.data.examples import Batch, Source
from jaxssl.data.pipeline import order
from jaxssl.data.sources import load, pretraining_split
from jaxssl.data.splits import SPLITS, Splits, corrupted
from jaxssl.errors import UserError, choose
from jaxssl.plan import policy_of, resolve
from jaxssl.ranges import values_of
from jaxssl.run_directory import check_outside
from jaxssl.training.schedules import Schedules
from jaxssl.training.state import traced_scalars

Columns = dict[str, list[Panel]]  # by heading, one panel an image

# Zhong et al. (ICCV 2023): shuffles of CIFAR-10 (32 pixels) and of ImageNet (256 pixels).
SHUFFLES = {
    "cifar": (("global", 4), ("global", 8), ("local", 4), ("local", 8)),
    "imagenet": (("global", 4), ("global", 16), ("local", 16), ("local", 64)),
}
GAMMAS = (0.2, 2.5)
# Jha and Tuytelaars (2024): policy, the number that is set, its value.
POLICIES = (
    ("overlap", "overlap", 0.1),
    ("overlap", "overlap", 0.5),
    ("overlap", "overlap", 0.9),
    ("patch", "patch_area", 0.3),
    ("exclusive", "gap", 0.1),
    ("cutout", "patch_area", 0.3),
    ("cutout_blur", "patch_area", 0.3),
)


def preview(
    config: ConfigDict,
    *,
    images: int = 6,
    split: str = "pretrain",
    epoch: int = 0,
    sweep: str | None = None,
    sources: Mapping[str, Source] | None = None,
) -> Figure:
    """A gallery of the data of ``config``; `jaxssl.analysis.gallery.to_png` makes a file of it.

    Args:
      config: the recipe.
      images: how many.
      split: ``"pretrain"``, ``"train"``, ``"validation"`` or ``"test"``.
      epoch: whose order and draws; from 0.
      sweep: None, or a key of `SWEEPS`.
      sources: data of your own, as in `jaxssl.pretrain.pretrain`.

    Raises:
      UserError: for whatever the user can mend.
    """
    config = resolve(config)
    choose("--split", split, dict.fromkeys(SPLITS))
    make_variants = None if sweep is None else choose("--sweep", sweep, SWEEPS)
    if epoch < 0:
        raise UserError(f"--epoch={epoch} must be 0 or more.")
    source = _open(config, split, sources)
    if not 1 <= images <= len(source):
        raise UserError(
            f"--images={images} of {source.name}, split {split}, must be 1 to {len(source)}."
        )
    _check_policy(config, source)
    visited = order(config.data_seed, epoch, len(source))[:images]
    shown = Shown(source.take(np.sort(visited)), np.argsort(np.argsort(visited)), epoch)

    positions = [str(position) for position in source.positions[visited]]
    title = f"{source.name}, {split}, epoch {epoch}"
    if make_variants is None:
        columns = plain_columns(config, shown)
        return draw(
            [list(row) for row in zip(*columns.values(), strict=True)],
            title=f"{title} · {policy_words(config)} · {corruption_words(config.corruption)}",
            column_names=list(columns),
            row_names=positions,
        )
    what, variants = make_variants(config, shown)
    kinds = list(next(iter(variants.values())))
    return draw(
        [[v[kind][i] for v in variants.values()] for i in range(images) for kind in kinds],
        title=f"{title} · {what}",
        column_names=list(variants),
        row_names=[f"{position} {kind}" for position in positions for kind in kinds],
    )


def _check_policy(config: ConfigDict, source: Source) -> None:
    steps_per_epoch = fractions.Fraction(len(source), config.batch_size)
    schedules = Schedules.from_config(config.hyper, config.epochs, steps_per_epoch)
    path = schedules.path(config.hyper, policy_hyper(config.views.policy))
    check_policy(config.views, path, *source.image_shape[:2])


class Shown(NamedTuple):
    """The images of a gallery.

    Attributes:
      source: they alone, as the data set has them.
      rows: row of the first one shown, the second, ...
      epoch: in which.
    """

    source: Source
    rows: np.ndarray
    epoch: int

    def batch(self, config: ConfigDict) -> Batch:
        """The images with the corruption of a config."""
        epochs = np.full(len(self.rows), self.epoch, np.int32)
        size = config.views.global_crops.size
        return corrupted(self.source, config.corruption, size).gather(self.rows, epochs)

    def original(self, config: ConfigDict) -> Batch:
        """The images without it."""
        return self.batch(_with(config, corruption={"name": "none"}))


def plain_columns(config: ConfigDict, shown: Shown) -> Columns:
    """The original with its targets, corrupted where that comes first, crops, views."""
    batch = shown.batch(config)
    columns = original_column(config, shown)
    if _corrupts_first(config):
        columns["corrupted"] = [Panel(image) for image in _floats(batch)]
    return columns | view_columns(config, batch)


def original_column(config: ConfigDict, shown: Shown) -> Columns:
    """The images as the data set has them, and what it says of them."""
    batch = shown.original(config)
    panels = []
    for i, image in enumerate(_floats(batch)):
        targets = {name: values[i] for name, values in batch["targets"].items()}
        labels = targets.get("box_labels", np.zeros(0, np.int32))
        boxes = targets.get("boxes", np.zeros((0, 4)))[: len(labels)][labels >= 0]
        panels.append(
            Panel(
                image,
                caption=describe(targets, shown.source.class_names),
                outlines=tuple(Outline(tuple(box), "white", dashed=True) for box in boxes.tolist()),
                mask=targets.get("mask"),
            )
        )
    return {"original": panels}


def describe(targets: Mapping[str, Any], class_names: tuple[str, ...] | None) -> str:
    """The targets of one image in words, one line each; `Source.gather` lists them."""

    def name(number: int) -> str:
        return class_names[number] if class_names else str(number)

    # Beside a label the names are those of the label alone.
    box_name = str if "label" in targets else name
    lines = []
    if "label" in targets:
        lines.append(f"label: {name(int(targets['label']))}")
    if "presence" in targets:
        present = np.flatnonzero(targets["presence"])
        lines.append(f"present: {', '.join(name(int(k)) for k in present)}")
    if "slots" in targets:
        lines.append(f"slots: {' '.join(str(k) for k in targets['slots'])}")
    if "digit" in targets:
        lines.append(f"digit: {targets['digit']}")
    if "box_labels" in targets:
        counts = collections.Counter(int(k) for k in targets["box_labels"] if k >= 0)
        many = [
            f"{box_name(k)} ×{count}" if count > 1 else box_name(k) for k, count in counts.items()
        ]
        lines.append(f"boxes: {', '.join(many) or 'none'}")
    return "\n".join(lines)


def view_columns(config: ConfigDict, batch: Batch) -> Columns:
    """What the policy cuts out of the images, and the views as the method sees them."""
    policy = policy_of(config)
    hyper = Schedules.from_config(config.hyper, config.epochs, 1).at(traced_scalars(config), 0)
    views = jax.jit(policy)(batch, hyper)
    channels = batch["image"].shape[3]
    largest = max(image.shape[1] for image in views.images)
    canonical = _floats(batch)
    placings = _placings(views, canonical[0, ..., 0].size)
    crops = [Panel(image, placings[i], _outlines(views, i)) for i, image in enumerate(canonical)]
    columns = {"crops": crops}
    for v, images in enumerate(views.images):
        panels = []
        for image, flipped in zip(np.asarray(images), views.flipped[v].tolist(), strict=True):
            bits = image[0, 0, channels:] if image.shape[2] > channels else None
            words = ["flipped"] if flipped else []
            if bits is not None:
                words.append(f"integer {sum(int(bit) << b for b, bit in enumerate(bits))}")
            panels.append(
                Panel(
                    _denormalized(image[..., :channels], config.normalize),
                    caption=", ".join(words),
                    bits=bits,
                    frame=_color(v),
                    scale=len(image) / largest,
                )
            )
        columns[f"view {v + 1}"] = panels
    return columns


def _placings(views: Views, area: int) -> list[str]:
    """How two crops lie to each other, for each image of so many pixels."""
    if len(views.boxes) != 2:
        return [""] * len(views.index)
    shared = np.asarray(intersection_area(*views.boxes)) / area
    distance = np.asarray(centre_distance(*views.boxes))
    return [f"overlap {s:.2f}\ndistance {d:.1f} px" for s, d in zip(shared, distance, strict=True)]


def _outlines(views: Views, i: int) -> tuple[Outline, ...]:
    return tuple(
        Outline(tuple(boxes[i].tolist()), _color(v), dashed=v % 2 == 1)
        for v, boxes in enumerate(views.boxes)
    )


def _color(view: int) -> str:
    return VIEW_COLORS[view % len(VIEW_COLORS)]


def _floats(batch: Batch) -> np.ndarray:
    return batch["image"].astype(np.float32) / 255


def _denormalized(image: np.ndarray, constants: ConfigDict) -> np.ndarray:
    if constants.std:
        image = image * np.array(constants.std, np.float32)
    if constants.mean:
        image = image + np.array(constants.mean, np.float32)
    return np.clip(image, 0, 1)


def corruption_sweep(config: ConfigDict, shown: Shown) -> tuple[str, dict[str, Columns]]:
    """The images under each corruption of Zhong et al.; shuffles where they divide the image.

    Severity, constants and seed are those of ``config.corruption``.
    """
    group = config.corruption
    height, width = shown.source.image_shape[:2]
    settings: dict[str, dict[str, Any]] = {"original": {"name": "none"}}
    for kind, patches in choose("corruption.constants", group.constants, SHUFFLES):
        if height % patches == 0 and width % patches == 0:
            name = f"{kind}_shuffle"
            settings[f"{kind} {patches}"] = {"name": name, "patches": patches}
    for exponent in GAMMAS:
        settings[f"gamma {exponent}"] = {"name": "gamma", "exponent": exponent}
    for head, name in (("noise", "shot_noise"), ("defocus", "defocus_blur"), ("JPEG", "jpeg")):
        settings[f"{head} {group.severity}"] = {"name": name}
    variants = {}
    for head, values in settings.items():
        batch = shown.batch(_with(config, corruption={**values, "order": "corrupt_aug"}))
        variants[head] = {"": [Panel(image) for image in _floats(batch)]}
    return f"corruptions, constants of {group.constants}", variants


def policy_sweep(config: ConfigDict, shown: Shown) -> tuple[str, dict[str, Columns]]:
    """The crops and views of spatial policies of Jha and Tuytelaars."""
    if config.corruption.order == "no_aug":
        raise UserError(
            "--config.corruption.order=no_aug makes no crops, so there is no policy to sweep: "
            "give another order."
        )
    variants = {}
    for policy, number, value in POLICIES:
        numbers = start_numbers(policy) | {number: value}
        variant = _with(config, views={"policy": policy}, hyper=numbers)
        _check_policy(variant, shown.source)
        head = f"{policy.replace('_', ' ')} {value}"
        variants[head] = view_columns(variant, shown.batch(variant))
    return f"spatial policies · {corruption_words(config.corruption)}", variants


SWEEPS: dict[str, Callable[[ConfigDict, Shown], tuple[str, dict[str, Columns]]]] = {
    "corruption": corruption_sweep,
    "policy": policy_sweep,
}
"""From a config and images to words for the title and one group of columns a setting."""


def _with(config: ConfigDict, **groups: Mapping[str, Any]) -> ConfigDict:
    """A copy with some values of some groups changed."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        for group, values in groups.items():
            changed[group].update(values)
    return changed


def policy_words(config: ConfigDict) -> str:
    """The policy of a config and the numbers that it reads."""
    if config.corruption.order == "no_aug":
        return "no augmentation"
    numbers = [
        f"{name} {'→'.join(f'{value:g}' for value in values_of(config.hyper[name]).values())}"
        for name in policy_hyper(config.views.policy)
    ]
    return config.views.policy + (f" ({', '.join(numbers)})" if numbers else "")


def corruption_words(group: ConfigDict) -> str:
    """A config's corruption, its number and its place."""
    if group.name == "none":
        return "no corruption"
    numbers = {
        "global_shuffle": group.patches,
        "local_shuffle": group.patches,
        "gamma": group.exponent,
    }
    return f"{group.name} {numbers.get(group.name, group.severity)}, {group.order}"


def _corrupts_first(config: ConfigDict) -> bool:
    return config.corruption.name != "none" and config.corruption.order != "aug_corrupt"


def _open(config: ConfigDict, split: str, sources: Mapping[str, Source] | None) -> Source:
    """The examples of a split without corruption; of a large set only those shown are decoded."""
    if sources is not None:
        none = _with(config, corruption={"name": "none"}).corruption
        return Splits(config.data, none, config.views.global_crops.size, sources)[split]
    split = pretraining_split(config.data) if split == "pretrain" else split
    return load(config.data, split, memory_limit_bytes=0)


def _check_out(out: pathlib.Path) -> None:
    if out.suffix != ".png" or out.is_dir():
        raise UserError(f"--out={out} is no PNG file: give a name that ends in .png.")
    if not out.parent.is_dir():
        raise UserError(f"--out={out} lies in no folder: make {out.parent}, or name another.")


def _write(out: pathlib.Path, png: bytes) -> None:
    try:
        out.write_bytes(png)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        reason = error.strerror
        raise UserError(f"--out={out} cannot be written ({reason}): name another.") from error


def _main(values: flags.FlagValues) -> None:
    out = pathlib.Path(values.out)
    _check_out(out)
    check_outside(out, "--out", values.config.data)
    cli.announce(f"drawing what {values.config.method.name} would see into {out}")
    figure = preview(
        values.config,
        images=values.images,
        split=values.split,
        epoch=values.epoch,
        sweep=values.sweep,
    )
    _write(out, to_png(figure))
    print(f"gallery: {out}")


if __name__ == "__main__":
    cli.define_config_file()
    flags.DEFINE_string("out", None, "PNG file, written or overwritten.", required=True)
    flags.DEFINE_integer("images", 6, "How many images.")
    flags.DEFINE_string("split", "pretrain", "pretrain, train, validation or test.")
    flags.DEFINE_integer("epoch", 0, "Whose order and draws, from 0.")
    flags.DEFINE_string("sweep", None, f"One of {', '.join(SWEEPS)}; without it, the config as is.")
    cli.launch(_main)
