"""Data sets by name, and the parts of them that a run trains, chooses and tests on.

Cuts (a held-out validation part, fewer training images) are functions of an example's position
alone: no draw, no seed.
"""

import contextlib
import dataclasses
import fractions
import importlib.util
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from jaxssl.data.canonical import check_unscaled
from jaxssl.data.coco import coco_splits, open_coco
from jaxssl.data.composed import COMPOSED
from jaxssl.data.examples import (
    PUBLISHED,
    ArraySource,
    Source,
    array_source,
)
from jaxssl.data.folders import (
    FolderSource,
    check_apart,
    class_folder_splits,
    image_splits,
    mask_splits,
    open_class_folders,
    open_images,
    open_masks,
    unused_folders,
)
from jaxssl.data.imagenet100 import IMAGENET100
from jaxssl.data.npy import npy_splits, open_npy
from jaxssl.data.passes import in_memory, without_unreadable
from jaxssl.data.tfds_sets import TfdsSource, open_tfds, tfds_splits
from jaxssl.errors import UserError, choose
from jaxssl.extensions import is_own, look_up
from jaxssl.randomness import check_seed
from jaxssl.words import counted

__all__ = [
    "KINDS",
    "ArraySource",
    "FolderSource",
    "Source",
    "TfdsSource",
    "array_source",
    "check_view_size",
    "cut",
    "in_memory",
    "kind_of",
    "load",
    "pretraining_split",
    "taken_from",
    "unused",
]

CLASS_LISTS = {"imagenet100": IMAGENET100}
DIGITS_TEST = 360


def spread(n: int, share: fractions.Fraction) -> Bool[np.ndarray, " n"]:
    """floor(n * share) of n entries, evenly spread: i is chosen iff floor((i+1)s) > floor(i s).

    Exact in integers, so that no rounding of ``i * share`` moves a boundary.
    """
    steps = np.arange(n + 1) * share.numerator // share.denominator
    return steps[1:] > steps[:-1]


def hold_out(
    listing: Int[np.ndarray, " n"], fraction: float, key: str
) -> tuple[Int[np.ndarray, " h"], Int[np.ndarray, " r"]]:
    """The entries of a listing that are held out, and the rest, both in the listing's order.

    Entry i is held out iff floor((i+1) f) > floor(i f), with f the ratio nearest to ``fraction``
    among those with a denominator up to a million.

    Args:
      listing: row numbers.
      fraction: share to hold out, in [0, 1).
      key: the config key it comes from.

    Raises:
      UserError: if the fraction is out of range.
    """
    if not 0 <= fraction < 1:
        raise UserError(
            f"--config.data.{key}={fraction} must be a share of the train split, at least 0 and "
            "below 1."
        )
    held = spread(len(listing), fractions.Fraction(fraction).limit_denominator(10**6))
    return listing[held], listing[~held]


def cut(
    split: str, listing: Int[np.ndarray, " n"], validation_fraction: float, train_examples: int
) -> Int[np.ndarray, " m"]:
    """Which rows of a published train split belong to ``"train"`` or to ``"validation"``.

    `hold_out` of ``validation_fraction`` gives the validation part. The rest is for training; of it
    ``train_examples`` are kept, evenly spread by the same rule. Two runs with one
    ``validation_fraction`` therefore share the validation part whatever else they vary.

    Args:
      split: ``"train"`` or ``"validation"``.
      listing: the rows in file order; where labels are known without reading an image, in order
        of the label, so that the classes keep their shares whatever the order in the file.
      validation_fraction: in [0, 1).
      train_examples: training images to keep; 0: all.

    Returns:
      Rows in increasing order.

    Raises:
      UserError: if there are not as many examples as asked for.
    """
    held, rest = hold_out(listing, validation_fraction, "validation_fraction")
    if split == "validation":
        return _some(held, "validation_fraction", validation_fraction, len(listing))
    if not 0 <= train_examples <= len(rest):
        raise UserError(
            f"--config.data.train_examples={train_examples} of {len(rest)} that are left of "
            f"{counted(len(listing), 'training image')}: choose at most that many, or 0 for all."
        )
    kept = spread(len(rest), fractions.Fraction(train_examples or len(rest), len(rest)))
    return np.sort(rest[kept])


def _some(held: np.ndarray, key: str, fraction: float, n: int) -> np.ndarray:
    if not len(held):
        raise UserError(
            f"--config.data.{key}={fraction} of {counted(n, 'training image')} is no image: raise "
            f"it to at least {1 / n:.2g}."
        )
    return np.sort(held)


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a kind of data set is opened.

    Attributes:
      splits: the published splits that there are, some of `PUBLISHED`; and ``"pretrain"`` if
        pretraining sees other examples than training does. Its first rows are then those of
        ``"train"``, and what follows them is for pretraining alone.
      open: a whole published split, or ``"pretrain"``.
      unused: names of the folders beside those of the given published splits.
    """

    splits: Callable[[ConfigDict], Sequence[str]]
    open: Callable[[ConfigDict, str], Source]
    unused: Callable[[ConfigDict, Sequence[str]], Sequence[str]] = lambda config, used: ()


def _digits_splits(config: ConfigDict) -> Sequence[str]:
    return ("train", "test")


def _open_digits(config: ConfigDict, published: str) -> ArraySource:
    """scikit-learn's 1,797 real handwritten digits, 8x8, 0..16 rescaled to 0..255.

    They ship without a split. Neighbours in the file come from the same writers, so a test split
    must be a contiguous part: the last 360 images in file order.
    """
    check_unscaled(config.scale, "digits")
    images, labels = _digits()
    part = slice(-DIGITS_TEST, None) if published == "test" else slice(None, -DIGITS_TEST)
    return array_source(
        "digits",
        PUBLISHED[published],
        np.rint(images[part, :, :, None] * (255 / 16)).astype(np.uint8),
        {"label": labels[part].astype(np.int32)},
        num_classes=10,
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 8, 8] and labels [N] of scikit-learn's file.

    Its package takes longer to import than the quickstart to trace, so that the file is read as it
    lies there, and the package asked only where it lies elsewhere.
    """
    package = importlib.util.find_spec("sklearn")
    for folder in package.submodule_search_locations or () if package else ():
        path = pathlib.Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            rows = np.loadtxt(path, delimiter=",")
            return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    return bunch.images, bunch.target


KINDS = {
    "digits": Kind(_digits_splits, _open_digits),
    "folder": Kind(class_folder_splits, open_class_folders, unused_folders),
    "images": Kind(image_splits, open_images, unused_folders),
    "coco_folder": Kind(coco_splits, open_coco, unused_folders),
    "mask_folder": Kind(mask_splits, open_masks, unused_folders),
    "npy": Kind(npy_splits, open_npy),
}
TFDS = Kind(tfds_splits, open_tfds)


def kind_of(name: str) -> Kind:
    """How the data set of a name is opened: one of `KINDS`, ``package.module:Name``, or TFDS's.

    Raises:
      UserError: if there is no such module, or no `Kind` in it.
    """
    if not is_own(name):
        return KINDS.get(name, TFDS)
    return look_up(
        "data.name",
        name,
        KINDS,
        fits=lambda found: isinstance(found, Kind),
        form="a jaxssl.data.sources.Kind",
    )


def _published_split(split: str, available: Sequence[str], config: ConfigDict) -> str:
    """The split, as `Kind` has it, from which ``split`` is taken."""
    if split == "pretrain" and "pretrain" in available:
        return "pretrain"
    if split in ("pretrain", "train"):
        return "train"
    if split == "test":
        if "test" in available or "validation" in available:
            return "test" if "test" in available else "validation"
        if config.test_fraction > 0:
            return "train"
        raise UserError(
            f"--config.data.name={config.name} has no test split: set --config.data.test_fraction "
            "to hold out a part of the train split."
        )
    if split != "validation":
        raise UserError(f"split {split!r} is unknown: choose pretrain, train, validation or test.")
    if config.validation_fraction > 0:
        return "train"
    if {"validation", "test"} <= set(available):
        return "validation"
    raise UserError(
        f"--config.data.name={config.name} has no validation split of its own: set "
        "--config.data.validation_fraction to hold out a part of the train split."
    )


def _listing(source: Source) -> np.ndarray:
    """Rows in order of the label where all labels are at hand, otherwise in file order.

    A folder is listed by class anyway, and TFDS shuffles a set when it writes it. The digits need
    it: their file repeats the digits in a fixed pattern, and every tenth would be mostly threes.
    """
    if isinstance(source, ArraySource) and "label" in source.targets:
        return np.argsort(source.targets["label"], kind="stable")
    return np.arange(len(source))


def _open(kind: Kind, config: ConfigDict, published: str) -> Source:
    """A whole published split, or those of its rows that are of the classes chosen."""
    source = kind.open(config, published)
    if not config.classes:
        return source
    wanted = choose("--config.data.classes", config.classes, CLASS_LISTS)
    names = source.class_names or ()
    missing = [name for name in wanted if name not in names]
    if missing or source.num_classes is None or not isinstance(source, FolderSource | TfdsSource):
        raise UserError(
            f"--config.data.classes={config.classes} but {source.name} lacks {len(missing)} of its "
            f"{len(wanted)} classes, such as {(missing or wanted)[0]!r}: use a set with labels of "
            "those classes, or ''."
        )
    numbers = np.full(len(names), -1, np.int32)
    numbers[[names.index(name) for name in wanted]] = np.arange(len(wanted))
    return source.with_classes(numbers, wanted)


def _rows(
    split: str, train: Source, available: Sequence[str], config: ConfigDict
) -> Int[np.ndarray, " m"]:
    """Rows of the published train split that belong to a split."""
    listing = _listing(train)
    if not {"validation", "test"} & set(available):
        held, listing = hold_out(listing, config.test_fraction, "test_fraction")
        if split == "test":
            return _some(held, "test_fraction", config.test_fraction, len(train))
    part = "validation" if split == "validation" else "train"
    return cut(part, listing, config.validation_fraction, config.train_examples)


def _judged_on(kind: Kind, config: ConfigDict, available: Sequence[str]) -> list[Source]:
    """The published splits for choices and tests, but for train and for what cannot be opened."""
    opened: dict[str, Source] = {}
    for split in ("validation", "test"):
        with contextlib.suppress(UserError):  # said by whoever asks for that split
            published = _published_split(split, available, config)
            if published not in ("train", *opened):
                opened[published] = kind.open(config, published)
    return list(opened.values())


def pretraining_split(config: ConfigDict) -> str:
    """The split to `load` for pretraining: ``"train"`` if ``"pretrain"`` would be the same.

    Args:
      config: the ``data`` group.

    Raises:
      UserError: if the set is not to be had.
    """
    if config.name in COMPOSED:
        return "pretrain"
    return "pretrain" if "pretrain" in kind_of(config.name).splits(config) else "train"


def taken_from(config: ConfigDict) -> dict[str, str]:
    """The published split that each split is a part of, but for splits that are not to be had.

    Args:
      config: the ``data`` group.
    """
    if config.name in COMPOSED:
        return {}
    available = kind_of(config.name).splits(config)
    taken = {}
    for split in ("pretrain", "train", "validation", "test"):
        with contextlib.suppress(UserError):
            taken[split] = _published_split(split, available, config)
    return taken


def check_test_fraction(config: ConfigDict) -> None:
    """Refuses a share to hold out for tests where a test split is published.

    Args:
      config: the ``data`` group.

    Raises:
      UserError: if it would be ignored.
    """
    published = taken_from(config).get("test", "train") if config.test_fraction > 0 else "train"
    if published != "train":
        raise UserError(
            f"--config.data.test_fraction={config.test_fraction} would be ignored, for "
            f"{config.name} has a {published} split of its own: leave it out."
        )


def unused(config: ConfigDict) -> list[str]:
    """Names of the published splits, or of all folders, that no split is a part of.

    Args:
      config: the ``data`` group.
    """
    if config.name in COMPOSED:
        return []
    kind = kind_of(config.name)
    used = sorted(set(taken_from(config).values()) - {"pretrain"})
    folders = list(kind.unused(config, used))
    return folders or [name for name in kind.splits(config) if name not in (*used, "pretrain")]


def check_view_size(source: Source, view_size: int) -> None:
    """Refuses images that were made smaller than a view of them.

    Args:
      source: the examples.
      view_size: side of the largest view in pixels.

    Raises:
      UserError: if the images vary in size and ``image_size`` is below it.
    """
    if source.canonical is not None and min(source.canonical.size) < view_size:
        raise UserError(
            f"--config.data.image_size={min(source.canonical.size)} is below the {view_size} "
            f"pixels of a view, which would blow the images of {source.name} up: set "
            f"--config.data.image_size to at least {view_size}."
        )


def _open_composed(config: ConfigDict, split: str) -> Source:
    """A set made of other sets, which are cut as they are by themselves."""
    composition = COMPOSED[config.name]
    given = config.compose if "compose" in config else ()
    missing = [key for key in composition.reads if key not in given]
    if missing:
        raise UserError(
            f"--config.data.name={config.name} reads --config.data.compose, which lacks "
            f"{', '.join(missing)}: start from the recipe configs/pretrain/{config.name}.py."
        )
    check_seed("--config.data.compose.seed", config.compose.seed)
    if config.fit != "crop":
        raise UserError(
            f"--config.data.fit={config.fit} is not for {config.name!r}, a set composed of others: "
            "use --config.data.fit=crop."
        )

    def open_base(name: str, **changes: Any) -> Source:
        if name in COMPOSED:
            key = next(key for key, value in config.compose.items() if value == name)
            raise UserError(
                f"--config.data.compose.{key}={name} is composed itself, so {config.name!r} cannot "
                "be made of it: choose another set."
            )
        base = config.copy_and_resolve_references()
        base.update(name=name, **changes)
        return load(base, split)

    return composition.open(config, split, open_base)


def load(config: ConfigDict, split: str, *, memory_limit_bytes: int = 2**31) -> Source:
    """The examples that a config names.

    ``"train"`` and ``"validation"`` are parts of the published train split (see `cut`), except
    that a ``validation_fraction`` of 0 leaves training all of it and takes the publisher's own
    validation split where there is one beside a test split. ``"test"`` is the published test
    split, or the published validation split where no labelled test split is published. Where
    neither is, `hold_out` of ``test_fraction`` takes it from the published train split first, and
    `cut` sees the rest.

    ``"pretrain"`` is ``"train"``, and after it the images that the publisher gives for nothing but
    pretraining: all of STL-10's unlabelled ones, whatever ``train_examples`` says.

    Args:
      config: the ``data`` group. ``name``: a key of `COMPOSED`, with a group ``compose``;
        ``"digits"``; ``"folder"``, ``"images"`` or ``"mask_folder"`` (see `jaxssl.data.folders`);
        ``"coco_folder"`` (`jaxssl.data.coco`); ``"npy"`` (`jaxssl.data.npy`); the name of a TFDS
        set, ``name[/config][:version]``; or ``package.module:Name``, a `Kind` of one's own.
        ``data_dir``: root of the folder or of TFDS; ``""``: ``TFDS_DATA_DIR``, or TFDS's default.
        ``image_size``: canonical height and width in pixels
        of a set whose images vary in size; ``fit``, ``background``, ``scale``: how they are brought
        to it, see `jaxssl.data.canonical.Canonical`. ``classes``: ``""``, or a list of
        `CLASS_LISTS`: its classes alone, numbered in the order of their names; a TFDS set is then
        read through once to learn the labels, a folder is not. ``test_fraction``,
        ``validation_fraction``, ``train_examples``: see above. ``unreadable``: ``"refuse"`` an
        image that cannot be decoded when it is met, or ``"skip"`` it: the rows that are left after
        all cuts are then decoded once more, now, and the unreadable ones left out.
      split: ``"pretrain"``, ``"train"``, ``"validation"`` or ``"test"``.
      memory_limit_bytes: a set whose canonical images take at most this is decoded once into
        memory, those of a TFDS set once for all starts (`jaxssl.data.decoded`); a larger one is
        read record by record. The batches are the same.

    Raises:
      UserError: if the set, the split or as many examples are not to be had.
    """
    if config.name in COMPOSED:
        return _open_composed(config, split)
    skip = choose("--config.data.unreadable", config.unreadable, {"refuse": False, "skip": True})
    kind = kind_of(config.name)
    available = kind.splits(config)
    published = _published_split(split, available, config)
    source = _open(kind, config, published)
    if published in ("train", "pretrain"):
        train = source if published == "train" else _open(kind, config, "train")
        if split != "validation" and isinstance(train, FolderSource):
            check_apart(train, _judged_on(kind, config, available))
        rows = _rows(split, train, available, config)
        source = source.take(np.concatenate([rows, np.arange(len(train), len(source))]))
    if skip and not source.vectorised:
        source = without_unreadable(source)
    if not source.vectorised and len(source) * np.prod(source.image_shape) <= memory_limit_bytes:
        return in_memory(source, source.decoded_key() if isinstance(source, TfdsSource) else None)
    return source
