"""Data sets by name, and the parts of them that a run trains, chooses and tests on.

Cuts (a held-out validation part, fewer training images) are functions of an example's position
alone: no draw, no seed.
"""

import dataclasses
import fractions
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from jaxssl.data.examples import (
    ArraySource,
    FolderSource,
    Source,
    TfdsSource,
    array_source,
    in_memory,
    whole_files,
)
from jaxssl.errors import UserError
from jaxssl.randomness import Split

__all__ = [
    "KINDS",
    "ArraySource",
    "FolderSource",
    "Source",
    "TfdsSource",
    "array_source",
    "cut",
    "in_memory",
    "load",
]

PUBLISHED = {"train": Split.TRAIN, "validation": Split.VALIDATION, "test": Split.TEST}
# The published test images of these have no labels: what everyone tests on is validation.
TESTED_ON_VALIDATION = ("imagenet2012", "places365_small")
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
DIGITS_TEST = 360


def spread(n: int, share: fractions.Fraction) -> Bool[np.ndarray, " n"]:
    """floor(n * share) of n entries, evenly spread: i is chosen iff floor((i+1)s) > floor(i s).

    Exact in integers, so that no rounding of ``i * share`` moves a boundary.
    """
    steps = np.arange(n + 1) * share.numerator // share.denominator
    return steps[1:] > steps[:-1]


def cut(
    split: str, listing: Int[np.ndarray, " n"], validation_fraction: float, train_examples: int
) -> Int[np.ndarray, " m"]:
    """Which rows of a published train split belong to ``"train"`` or to ``"validation"``.

    Entry i of the listing is held out for validation iff floor((i+1) f) > floor(i f), with f the
    ratio nearest to ``validation_fraction`` among those with a denominator up to a million. The
    rest is for training; of it ``train_examples`` are kept, chosen by the same rule. Two runs with
    one ``validation_fraction`` therefore share the validation part whatever else they vary.

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
    if not 0 <= validation_fraction < 1:
        raise UserError(
            f"validation_fraction={validation_fraction} is no share of the train split: choose "
            "one of at least 0 and below 1."
        )
    share = fractions.Fraction(validation_fraction).limit_denominator(10**6)
    held = spread(len(listing), share)
    if split == "validation":
        if not held.any():
            raise UserError(
                f"validation_fraction={validation_fraction} of {len(listing)} training images is "
                f"no image: raise it to at least {1 / len(listing):.2g}."
            )
        return np.sort(listing[held])
    rest = listing[~held]
    if not 0 <= train_examples <= len(rest):
        raise UserError(
            f"train_examples={train_examples} but {len(rest)} training images are left of "
            f"{len(listing)}: choose at most that many, or 0 for all."
        )
    kept = spread(len(rest), fractions.Fraction(train_examples or len(rest), len(rest)))
    return np.sort(rest[kept])


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a kind of data set is opened.

    Attributes:
      splits: the published splits that there are, some of `PUBLISHED`.
      open: a whole published split.
    """

    splits: Callable[[ConfigDict], Sequence[str]]
    open: Callable[[ConfigDict, str], Source]


def _digits_splits(config: ConfigDict) -> Sequence[str]:
    return ("train", "test")


def _open_digits(config: ConfigDict, published: str) -> ArraySource:
    """scikit-learn's 1,797 real handwritten digits, 8x8, 0..16 rescaled to 0..255.

    They ship without a split. Neighbours in the file come from the same writers, so a test split
    must be a contiguous part: the last 360 images in file order.
    """
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    part = slice(-DIGITS_TEST, None) if published == "test" else slice(None, -DIGITS_TEST)
    images = np.rint(bunch.images[part, :, :, None] * (255 / 16)).astype(np.uint8)
    return array_source(
        "digits",
        PUBLISHED[published],
        images,
        {"label": bunch.target[part].astype(np.int32)},
        num_classes=10,
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _subfolders(folder: pathlib.Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith("."))


def _folder_part(config: ConfigDict, published: str) -> pathlib.Path:
    root = pathlib.Path(config.data_dir).expanduser()
    names = {"train": ["train"], "validation": ["validation", "val"], "test": ["test"]}[published]
    return next((root / name for name in names if (root / name).is_dir()), root / names[0])


def _folder_splits(config: ConfigDict) -> Sequence[str]:
    splits = [name for name in PUBLISHED if _subfolders(_folder_part(config, name))]
    if "train" not in splits:
        raise UserError(
            f"{config.data_dir or 'data_dir'}/train has no class sub-folders: point data_dir at a "
            "folder with train/<class>/<image> and val/ or test/<class>/<image>."
        )
    return splits


def _open_folder(config: ConfigDict, published: str) -> FolderSource:
    """Class sub-folders of image files, in sorted order; the classes are those of ``train``."""
    if config.image_size <= 0:
        raise UserError(
            f"image_size={config.image_size} is no canonical size: give the pixels to which the "
            "images of the folder are resized."
        )
    part = _folder_part(config, published)
    classes = _subfolders(_folder_part(config, "train"))
    unknown = sorted(set(_subfolders(part)) - set(classes))
    if unknown:
        raise UserError(
            f"{part} has class {unknown[0]!r}, which {_folder_part(config, 'train')} lacks: use "
            "the same class folders in both."
        )
    files, labels = [], []
    for label, name in enumerate(classes):
        images = sorted(f for f in (part / name).rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
        files += [str(image) for image in images]
        labels += [label] * len(images)
    if not files:
        raise UserError(f"{part} holds no image files: expected <class>/*{IMAGE_SUFFIXES[3]} ...")
    return FolderSource(
        name=f"{pathlib.Path(config.data_dir).name}/{part.name}",
        num_classes=len(classes),
        class_names=tuple(classes),
        original_split=PUBLISHED[published],
        original_size=len(files),
        image_shape=(config.image_size, config.image_size, 3),
        positions=np.arange(len(files)),
        files=tuple(files),
        labels=np.array(labels, np.int32),
    )


def _tfds_builder(config: ConfigDict) -> Any:
    """The builder of a set that is prepared in a format with random access."""
    import tensorflow_datasets as tfds

    root = config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    directory = pathlib.Path(root).expanduser()
    command = f"tfds build {config.name} --data_dir={directory} --file_format=array_record"
    try:
        builder = tfds.builder(config.name, data_dir=directory, try_gcs=False)
    except (tfds.core.registered.DatasetNotFoundError, AssertionError, ValueError) as error:
        raise UserError(
            f"data set {config.name!r} is neither 'digits' nor 'folder', nor is it known to TFDS "
            f"or prepared in {directory} ({str(error).splitlines()[0]}): correct data.name."
        ) from error
    if not builder.info.splits:
        raise UserError(
            f"TFDS set {config.name!r} is not prepared in {directory}: set TFDS_DATA_DIR or "
            f"data.data_dir, or prepare it with `{command}` where tensorflow is installed."
        )
    if builder.info.file_format not in tfds.core.file_adapters.FileFormat.with_random_access():
        raise UserError(
            f"TFDS set {config.name!r} in {directory} is stored as "
            f"{builder.info.file_format.value}, which allows no random access: prepare it again "
            f"with `{command} --overwrite` where tensorflow is installed."
        )
    return builder


def _tfds_splits(config: ConfigDict) -> Sequence[str]:
    builder = _tfds_builder(config)
    splits = [name for name in PUBLISHED if name in builder.info.splits]
    if builder.name in TESTED_ON_VALIDATION:
        splits.remove("test")
    return splits


def _open_tfds(config: ConfigDict, published: str) -> TfdsSource:
    """A prepared TFDS set with a uint8 ``image`` and, maybe, a ``label``."""
    import tensorflow_datasets as tfds

    builder = _tfds_builder(config)
    features: dict[str, Any] = dict(builder.info.features.items())
    image, label = features.get("image"), features.get("label")
    if image is None or image.np_dtype != np.uint8 or image.shape[2:] not in ((None,), (1,), (3,)):
        raise UserError(
            f"TFDS set {config.name!r} has no uint8 feature 'image' with 1 or 3 channels: choose "
            "an image-classification set."
        )
    height, width, channels = image.shape
    if None in (height, width):
        if config.image_size <= 0:
            raise UserError(
                f"images of {config.name!r} vary in size: give data.image_size, the pixels to "
                "which they are resized."
            )
        height = width = config.image_size
    labelled = isinstance(label, tfds.features.ClassLabel)
    # Pillow on a whole chunk of records is three times as fast as the reader's own decoding.
    encoded = isinstance(image, tfds.features.Image)
    decoders = {"image": tfds.decode.SkipDecoding()} if encoded else None
    with whole_files(config.name):
        records = builder.as_data_source(split=published, decoders=decoders)
        size = len(records)
    return TfdsSource(
        name=config.name,
        num_classes=features["label"].num_classes if labelled else None,
        class_names=tuple(features["label"].names) if labelled else None,
        original_split=PUBLISHED[published],
        original_size=size,
        image_shape=(height, width, channels or 3),
        positions=np.arange(size),
        records=records,
    )


KINDS = {
    "digits": Kind(_digits_splits, _open_digits),
    "folder": Kind(_folder_splits, _open_folder),
}
TFDS = Kind(_tfds_splits, _open_tfds)


def _published_split(split: str, available: Sequence[str], config: ConfigDict) -> str:
    """The publisher's split from which ``split`` is taken."""
    if split == "train":
        return "train"
    if split == "test":
        if "test" in available or "validation" in available:
            return "test" if "test" in available else "validation"
        raise UserError(f"{config.name!r} has no test split: it has {', '.join(available)} only.")
    if split != "validation":
        raise UserError(f"split {split!r} is unknown: choose train, validation or test.")
    if config.validation_fraction > 0:
        return "train"
    if {"validation", "test"} <= set(available):
        return "validation"
    raise UserError(
        f"{config.name!r} has no validation split of its own: set data.validation_fraction to "
        "hold out a part of the train split."
    )


def _listing(source: Source) -> np.ndarray:
    """Rows in order of the label where all labels are at hand, otherwise in file order.

    A folder is listed by class anyway, and TFDS shuffles a set when it writes it. The digits need
    it: their file repeats the digits in a fixed pattern, and every tenth would be mostly threes.
    """
    if isinstance(source, ArraySource) and "label" in source.targets:
        return np.argsort(source.targets["label"], kind="stable")
    return np.arange(len(source))


def load(config: ConfigDict, split: str, *, memory_limit_bytes: int = 2**31) -> Source:
    """The examples that a config names.

    ``"train"`` and ``"validation"`` are parts of the published train split (see `cut`), except
    that a ``validation_fraction`` of 0 leaves training all of it and takes the publisher's own
    validation split where there is one beside a test split. ``"test"`` is the published test
    split, or the published validation split where no labelled test split is published.

    Args:
      config: the ``data`` group. ``name``: ``"digits"``, ``"folder"`` or the name of a TFDS set,
        ``name[/config][:version]``. ``data_dir``: root of the folder or of TFDS; ``""``:
        ``TFDS_DATA_DIR``, or TFDS's default. ``image_size``: canonical height and width in pixels
        of a set whose images vary in size. ``validation_fraction``, ``train_examples``: see `cut`.
      split: ``"train"``, ``"validation"`` or ``"test"``.
      memory_limit_bytes: a set whose canonical images take at most this is decoded once into
        memory; a larger one is read record by record. The batches are the same.

    Raises:
      UserError: if the set, the split or as many examples are not to be had.
    """
    kind = KINDS.get(config.name, TFDS)
    published = _published_split(split, kind.splits(config), config)
    source = kind.open(config, published)
    if published == "train":
        rows = cut(split, _listing(source), config.validation_fraction, config.train_examples)
        source = source.take(rows)
    if not source.vectorised and len(source) * np.prod(source.image_shape) <= memory_limit_bytes:
        return in_memory(source)
    return source
