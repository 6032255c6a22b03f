"""Examples that can be read in any order, and those of them that lie in memory.

An image is uint8 [H, W, C] in [0, 255] of one canonical size a set. A source is a fixed list of
examples, its *rows*; what an example is called everywhere else is its *position*, a row number in
the original split as its publisher made it, which survives every cut.
"""

import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from absl import logging
from jaxtyping import Int

from jaxssl.data.canonical import UnreadableImageError
from jaxssl.errors import UserError
from jaxssl.randomness import Split

Batch = dict[str, Any]
Rows = Int[np.ndarray, " b"]
T = TypeVar("T")
DECODE_CHUNK = 256
PUBLISHED = {"train": Split.TRAIN, "validation": Split.VALIDATION, "test": Split.TEST}
# What the values of a target are, and its dimensions; a letter that is no N, H or W is any size.
KINDS_OF_DTYPE: dict[str, Any] = {
    "integer": np.integer,
    "real": np.number,
    "uint8": np.uint8,
}
TARGETS = {
    "label": ("integer", "N"),
    "presence": ("integer", "N K"),
    "slots": ("integer", "N S"),
    "digit": ("integer", "N"),
    "boxes": ("real", "N M 4"),
    "box_labels": ("integer", "N M"),
    "mask": ("uint8", "N H W"),
}


@runtime_checkable
class Source(Protocol):
    """A fixed list of examples that any row can be read from at any time."""

    @property
    def name(self) -> str:
        """What error messages and reports call the set."""
        ...

    @property
    def num_classes(self) -> int | None:
        """Number of classes of ``targets["label"]``, or None where there are no labels."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in order of the label, where known.

        In a set without ``label`` they are those of ``box_labels``.
        """
        ...

    @property
    def original_size(self) -> int:
        """Examples before any cut: the entries of a bank keyed by ``index``."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        ...

    @property
    def positions(self) -> Int[np.ndarray, " n"]:
        """Position of each row's example in the original split, int64, increasing."""
        ...

    @property
    def splits(self) -> Int[np.ndarray, " n"]:
        """Number in `Split` of the publisher's split that each row's example comes from, int32."""
        ...

    @property
    def vectorised(self) -> bool:
        """Whether a batch is one gather in memory, and not worth sharing between threads."""
        ...

    def __len__(self) -> int:
        """Number of rows N."""
        ...

    def take(self, rows: Rows) -> "Source":
        """A source of the given rows alone, which keep their positions."""
        ...

    def gather(self, rows: Rows, epochs: Rows | None = None) -> Batch:
        """The examples of the given rows as one batch.

        Args:
          rows: row numbers in [0, N).
          epochs: epoch of each row, for a source whose examples differ between epochs; None: 0.

        Returns:
          ``image`` uint8 [B,H,W,C]; ``index`` int32 [B], positions in the original split;
          ``split`` int32 [B], numbers of their splits; ``epoch`` int32 [B]; ``original_size``
          int32 [B,2], (height, width) in pixels before the image was brought to the canonical size;
          ``targets``, a dict of arrays that lead with B, of which a set has some or none:
          ``label`` int32 [B] in [0, num_classes); ``presence`` int32 [B,K], 0 or 1 a class;
          ``slots`` int32 [B,S] and ``digit`` int32 [B], see `jaxssl.data.composed`; ``boxes``
          float32 [B,M,4], (y0, x0, y1, x1) in pixels of the canonical image, and ``box_labels``
          int32 [B,M], padded with zeros and with -1; ``mask`` uint8 [B,H,W], the class of each
          pixel, 255 for none.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SourceFields:
    """What every source here has; the attributes of `Source`."""

    name: str
    num_classes: int | None
    class_names: tuple[str, ...] | None
    original_size: int
    image_shape: tuple[int, int, int]
    positions: np.ndarray
    splits: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def _batch(
        self,
        rows: np.ndarray,
        epochs: np.ndarray | None,
        images: np.ndarray,
        sizes: np.ndarray,
        targets: dict[str, np.ndarray],
    ) -> Batch:
        return {
            "image": images,
            "index": self.positions[rows].astype(np.int32),
            "split": self.splits[rows],
            "epoch": np.zeros(len(rows), np.int32) if epochs is None else epochs.astype(np.int32),
            "original_size": sizes,
            "targets": targets,
        }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ArraySource(SourceFields):
    """Examples that lie in memory; a batch is one fancy index.

    Attributes:
      images: uint8 [N,H,W,C].
      targets: arrays that lead with N; see `Source.gather`.
      sizes: int32 [N,2], (height, width) in pixels before resizing.
    """

    images: np.ndarray
    targets: dict[str, np.ndarray]
    sizes: np.ndarray
    vectorised: bool = dataclasses.field(default=True, init=False)

    def __post_init__(self) -> None:
        """Checks that the arrays agree.

        Raises:
          UserError: where they do not.
        """
        expected = (len(self.positions), *self.image_shape)
        if self.images.dtype != np.uint8 or self.images.shape != expected:
            raise UserError(
                f"images of {self.name} are {self.images.dtype} {list(self.images.shape)} but "
                f"uint8 {list(expected)} was declared: pass uint8 images [N, H, W, C]."
            )
        for key, values in self.targets.items():
            if len(values) != len(self.images):
                raise UserError(_wrong_rows(key, values, len(self.images), self.name))
        if "label" in self.targets:
            check_labels(self.targets["label"], self.num_classes, self.name)

    def take(self, rows: Rows) -> "ArraySource":
        """See `Source.take`; copies."""
        return dataclasses.replace(
            self,
            positions=self.positions[rows],
            splits=self.splits[rows],
            images=self.images[rows],
            targets={key: values[rows] for key, values in self.targets.items()},
            sizes=self.sizes[rows],
        )

    def gather(self, rows: Rows, epochs: Rows | None = None) -> Batch:
        """See `Source.gather`."""
        targets = {key: values[rows] for key, values in self.targets.items()}
        return self._batch(rows, epochs, self.images[rows], self.sizes[rows], targets)


def check_labels(labels: np.ndarray, num_classes: int | None, name: str) -> np.ndarray:
    """The labels, if they are of the classes that the set declares.

    Raises:
      UserError: if not.
    """
    if num_classes is None or (len(labels) and not _within(labels, 0, num_classes - 1)):
        raise UserError(
            f"labels of {name} lie in [{labels.min()}, {labels.max()}] but it declares "
            f"{num_classes} classes: pass labels from 0 to num_classes - 1, or a split with labels."
        )
    return labels


def _within(values: np.ndarray, low: int, high: int) -> bool:
    return bool(values.min() >= low and values.max() <= high)


def _cast(key: str, values: np.ndarray) -> np.ndarray:
    dtypes = {"integer": np.int32, "real": np.float32}
    return values.astype(dtypes.get(TARGETS[key][0], np.uint8)) if key in TARGETS else values


def _check_target(key: str, values: np.ndarray, images: tuple[int, ...], name: str) -> None:
    """Refuses a target of another dtype or other dimensions than `TARGETS` says."""
    if values.ndim == 0 or len(values) != images[0]:
        raise UserError(_wrong_rows(key, values, images[0], name))
    if key not in TARGETS:
        return
    kind, dimensions = TARGETS[key]
    known = {"N": images[0], "H": images[1], "W": images[2], "4": 4}
    expected = [known.get(letter) for letter in dimensions.split()]
    if (
        not np.issubdtype(values.dtype, KINDS_OF_DTYPE[kind])
        or len(expected) != values.ndim
        or any(size not in (None, got) for size, got in zip(expected, values.shape, strict=True))
    ):
        raise UserError(
            f"target {key!r} of {name} is {values.dtype} {list(values.shape)} for images "
            f"{list(images)}: pass {kind} values of shape [{dimensions.replace(' ', ', ')}]."
        )
    limits = np.iinfo(np.int32)
    if kind == "integer" and values.size and not _within(values, limits.min, limits.max):
        raise UserError(
            f"target {key!r} of {name} lies in [{values.min()}, {values.max()}], more than int32 "
            "holds: number its classes from 0."
        )


def _wrong_rows(key: str, values: np.ndarray, images: int, name: str) -> str:
    rows = len(values) if values.ndim else "no"
    return f"target {key!r} of {name} has {rows} rows for {images} images: pass one row an image."


def array_source(
    name: str,
    split: Split,
    images: np.ndarray,
    targets: Mapping[str, Any],
    *,
    num_classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
) -> ArraySource:
    """A whole split that lies in memory.

    Args:
      name: what error messages call it.
      split: which split it is; part of the key of every draw made for its images.
      images: uint8 [N,H,W,C], C any number of channels.
      targets: arrays or lists that lead with N, named and shaped as those of `Source.gather`, of
        any integer dtype where int32 is meant and of any real one where float32 is.
      num_classes: number of classes of ``label``.
      class_names: their names.

    Raises:
      UserError: if the arrays have other shapes or dtypes.
    """
    if images.ndim != 4:
        raise UserError(
            f"images of {name} have shape {list(images.shape)}: pass [N, H, W, C], a grey image "
            "with C = 1."
        )
    size = np.array(images.shape[1:3], np.int32)
    arrays = {key: np.asarray(values) for key, values in targets.items()}
    for key, values in arrays.items():
        _check_target(key, values, images.shape, name)
    return ArraySource(
        name=name,
        num_classes=num_classes,
        class_names=class_names,
        original_size=len(images),
        image_shape=(int(size[0]), int(size[1]), images.shape[3]),
        positions=np.arange(len(images)),
        splits=np.full(len(images), split, np.int32),
        images=images,
        targets={key: _cast(key, values) for key, values in arrays.items()},
        sizes=np.tile(size, (len(images), 1)),
    )


def abstract_batch(
    source: Source, batch_size: int, sharding: jax.sharding.Sharding | None = None
) -> Batch:
    """Shapes and dtypes of a batch, for which one example is read."""
    row = source.gather(np.zeros(1, np.int64))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype, sharding=sharding), row
    )


def identity(source: Source) -> dict[str, Any]:
    """What tells one set of examples from another, short of their pixels.

    Returns:
      JSON: name, number of examples before any cut and after, shape of an image, and a digest of
      which they are.
    """
    rows = np.stack([source.positions, source.splits.astype(np.int64)])
    return {
        "name": source.name,
        "original_size": source.original_size,
        "examples": len(source),
        "image_shape": list(source.image_shape),
        "positions_sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
    }


def map_chunks(function: Callable[[Rows], T], n: int) -> list[T]:
    """``function`` of each chunk of the rows 0 .. n-1, in parallel threads, in order."""
    chunks = np.split(np.arange(n), range(DECODE_CHUNK, n, DECODE_CHUNK))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(function, chunks))


def without_unreadable(source: Source) -> Source:
    """The source without the rows whose image or mask cannot be decoded.

    Every image is decoded once to find them. The others keep their positions. One warning says how
    many are left out and names the first.

    Raises:
      UserError: if none can be read.
    """

    def read(rows: Rows) -> list[tuple[int, str]]:
        unreadable = []
        for row in rows:
            try:
                source.gather(np.array([row]))
            except UnreadableImageError as error:
                unreadable.append((int(row), error.args[0]))
        return unreadable

    logging.info("reading %d images of %s to find unreadable ones", len(source), source.name)
    unreadable = [found for part in map_chunks(read, len(source)) for found in part]
    if not unreadable:
        return source
    first = unreadable[0][1]
    if len(unreadable) == len(source):
        raise UserError(
            f"none of the {len(source)} images of {source.name} can be read, the first being "
            f"{first}: check the files."
        )
    logging.warning(
        "%d of %d images of %s cannot be read and are left out; the first is %s",
        len(unreadable),
        len(source),
        source.name,
        first,
    )
    return source.take(np.delete(np.arange(len(source)), [row for row, _ in unreadable]))


def in_memory(source: Source) -> ArraySource:
    """Decodes every example of a source once, in parallel threads."""
    logging.info("decoding %d images of %s into memory", len(source), source.name)
    images = np.empty((len(source), *source.image_shape), np.uint8)
    sizes = np.empty((len(source), 2), np.int32)

    def decode(rows: Rows) -> dict[str, np.ndarray]:
        batch = source.gather(rows)
        images[rows], sizes[rows] = batch["image"], batch["original_size"]
        return batch["targets"]

    parts = map_chunks(decode, len(source))
    return ArraySource(
        name=source.name,
        num_classes=source.num_classes,
        class_names=source.class_names,
        original_size=source.original_size,
        image_shape=source.image_shape,
        positions=source.positions,
        splits=source.splits,
        images=images,
        targets={key: np.concatenate([part[key] for part in parts]) for key in parts[0]},
        sizes=sizes,
    )
