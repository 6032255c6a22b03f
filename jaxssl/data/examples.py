"""Examples that can be read in any order, and those of them that lie in memory.

An image is uint8 [H, W, C] in [0, 255] of one canonical size a set. A source is a fixed list of
examples, its *rows*; what an example is called everywhere else is its *position*, a row number in
the original split as its publisher made it, which survives every cut.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Int

from jaxssl.data import digests
from jaxssl.data.canonical import Canonical
from jaxssl.errors import UserError
from jaxssl.randomness import Split
from jaxssl.words import counted

Batch = dict[str, Any]
Rows = Int[np.ndarray, " b"]
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
    def canonical(self) -> Canonical | None:
        """What images that vary in size are brought to; None: all have one size anyway."""
        ...

    @property
    def names(self) -> tuple[str, ...] | None:
        """Of each row the name of its file under the set's folder, or None."""
        ...

    @property
    def passed_over(self) -> Mapping[str, int]:
        """Files beside the examples of the whole published split that are none, by kind."""
        ...

    @property
    def left_out(self) -> int:
        """Unreadable examples that were left out."""
        ...

    @property
    def vectorised(self) -> bool:
        """Whether a batch is one gather in memory, and not worth sharing between threads."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """Digests of what the examples are, wherever they lie; see `identity`.

        Returns:
          Some of ``files`` (names), ``targets`` and ``content``: pixels in memory, or else the
          sizes of files or the version of a prepared set; and ``rows``, pixels of some images,
          where sizes say nothing.
        """
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
          ``content`` int32 [B,2], (height, width) of the top left part that holds the picture: all
          of the image, but for letterboxed ones;
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
    canonical: Canonical | None = None
    names: tuple[str, ...] | None = None
    passed_over: Mapping[str, int] = dataclasses.field(default_factory=dict)
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.positions)

    def _batch(
        self,
        rows: np.ndarray,
        epochs: np.ndarray | None,
        images: np.ndarray,
        sizes: np.ndarray,
        targets: dict[str, np.ndarray],
        contents: np.ndarray | None = None,
    ) -> Batch:
        whole = np.array(self.image_shape[:2], np.int32)
        return {
            "image": images,
            "index": self.positions[rows].astype(np.int32),
            "split": self.splits[rows],
            "epoch": np.zeros(len(rows), np.int32) if epochs is None else epochs.astype(np.int32),
            "original_size": sizes,
            "content": np.tile(whole, (len(rows), 1)) if contents is None else contents,
            "targets": targets,
        }

    def _fields_of(self, rows: np.ndarray) -> dict[str, Any]:
        """The fields here that differ where only some rows are taken."""
        names = None if self.names is None else tuple(self.names[row] for row in rows)
        return {"positions": self.positions[rows], "splits": self.splits[rows], "names": names}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ArraySource(SourceFields):
    """Examples that lie in memory; a batch is one fancy index.

    Attributes:
      images: uint8 [N,H,W,C].
      targets: arrays that lead with N; see `Source.gather`.
      sizes: int32 [N,2], (height, width) in pixels before resizing.
      contents: int32 [N,2], (height, width) of the part that holds the picture; None: all of it.
    """

    images: np.ndarray
    targets: dict[str, np.ndarray]
    sizes: np.ndarray
    contents: np.ndarray | None = None
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
            **self._fields_of(rows),
            images=self.images[rows],
            targets={key: values[rows] for key, values in self.targets.items()},
            sizes=self.sizes[rows],
            contents=None if self.contents is None else self.contents[rows],
        )

    def gather(self, rows: Rows, epochs: Rows | None = None) -> Batch:
        """See `Source.gather`."""
        targets = {key: values[rows] for key, values in self.targets.items()}
        contents = None if self.contents is None else self.contents[rows]
        return self._batch(rows, epochs, self.images[rows], self.sizes[rows], targets, contents)

    def fingerprint(self) -> dict[str, str]:
        """See `Source.fingerprint`."""
        return {
            "targets": digests.of_arrays(self.targets),
            "content": digests.of_array(self.images),
        }


def check_labels(labels: np.ndarray, num_classes: int | None, name: str) -> np.ndarray:
    """The labels, if they are of the classes that the set declares.

    Raises:
      UserError: if not.
    """
    if num_classes is None or (len(labels) and not _within(labels, 0, num_classes - 1)):
        range_of = f"[{labels.min()}, {labels.max()}]" if len(labels) else "[]"
        raise UserError(
            f"labels of {name} lie in {range_of} but it declares "
            f"{'no classes' if num_classes is None else counted(num_classes, 'class')}: pass "
            "labels from 0 to num_classes - 1, or a split with labels."
        )
    return labels


def _within(values: np.ndarray, low: int, high: int) -> bool:
    return bool(values.min() >= low and values.max() <= high)


def _cast(key: str, values: np.ndarray) -> np.ndarray:
    dtypes = {"integer": np.int32, "real": np.float32}
    return values.astype(dtypes.get(TARGETS[key][0], np.uint8)) if key in TARGETS else values


def check_target(key: str, values: np.ndarray, images: tuple[int, ...], name: str) -> None:
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
        or np.iscomplexobj(values)
        or len(expected) != values.ndim
        or any(size not in (None, got) for size, got in zip(expected, values.shape, strict=True))
    ):
        raise UserError(
            f"target {key!r} of {name} is {values.dtype} {list(values.shape)} for images "
            f"{list(images)}: pass {kind} values of shape [{dimensions.replace(' ', ', ')}]."
        )
    largest = np.finfo(np.float32).max
    if kind == "real" and not np.all(np.abs(values) <= largest):
        raise UserError(
            f"target {key!r} of {name} has values that are no finite numbers of 32 bits: correct "
            "them."
        )
    limits = np.iinfo(np.int32)
    if kind == "integer" and values.size and not _within(values, limits.min, limits.max):
        raise UserError(
            f"target {key!r} of {name} lies in [{values.min()}, {values.max()}], more than int32 "
            "holds: number its classes from 0."
        )


def _wrong_rows(key: str, values: np.ndarray, images: int, name: str) -> str:
    rows = counted(len(values), "row") if values.ndim else "no rows"
    told = f"{rows} for {counted(images, 'image')}"
    return f"target {key!r} of {name} has {told}: pass one row an image."


def array_source(
    name: str,
    split: Split,
    images: object,
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
      UserError: if the arrays have other shapes or dtypes, or look channels-first.
    """
    if not isinstance(images, np.ndarray):
        raise UserError(
            f"images of {name} are a {type(images).__name__}: pass one uint8 NumPy array "
            "[N, H, W, C], such as numpy.stack(images) of images of one size."
        )
    check_layout(images.shape, name)
    size = np.array(images.shape[1:3], np.int32)
    arrays = {key: np.asarray(values) for key, values in targets.items()}
    for key, values in arrays.items():
        check_target(key, values, images.shape, name)
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


def check_layout(shape: tuple[int, ...], name: str) -> None:
    """Refuses images that are not [N, H, W, C], as far as the shape tells.

    [N, C, H, W] is taken to be meant where the last axis is longer than colours and transparency
    need, and the second is the shortest and has 1 or 3 entries, or comes before two equal ones.
    Images with many channels are fine if they are higher than that.

    Raises:
      UserError: if they are not.
    """
    if len(shape) != 4:
        raise UserError(
            f"images of {name} have shape {list(shape)}: pass [N, H, W, C], a grey image with "
            "C = 1."
        )
    _, first, second, last = shape
    if last > 4 and first < min(second, last) and (first in (1, 3) or second == last):
        raise UserError(
            f"images of {name} have shape {list(shape)}, which looks like [N, C, H, W]: pass "
            "[N, H, W, C], such as images.transpose(0, 2, 3, 1)."
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
    """What tells one set of examples from another, wherever it lies.

    Returns:
      JSON: ``name``, for people, which may come from the folder's; and what is compared: number of
      examples before any cut and after, shape of an image, digests of which they are, of the names
      of their classes and of what `Source.fingerprint` has.
    """
    rows = np.stack([source.positions, source.splits.astype(np.int64)])
    return {
        "name": source.name,
        "original_size": source.original_size,
        "examples": len(source),
        "image_shape": list(source.image_shape),
        "positions_sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
        "classes_sha256": digests.of_json([source.num_classes, source.class_names]),
        **{f"{key}_sha256": digest for key, digest in source.fingerprint().items()},
    }


def identity_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two sets of examples differ, in words, one clause each: ``90 images then, 100 now``.

    Args:
      before: `identity` of the one, perhaps with further keys; ``name`` is not compared.
      now: that of the other.

    Returns:
      Differences of numbers, which bring others with them, or else of what only digests tell.
    """
    both = before.keys() & now.keys()
    unlike = [
        key
        for key in {**before, **now}
        if before.get(key) != now.get(key) and (key in both or key not in _NOTED_LATER)
    ]
    said = [
        f"{_NUMBERS[key](before[key])} then, {_NUMBERS[key](now[key])} now"
        for key in unlike
        if key in _NUMBERS and key in before and key in now
    ]
    words = (_DIGESTS.get(key, key) for key in unlike if key != "name")
    return said or [f"{what} not the same" for what in words]


_NUMBERS: dict[str, Callable[[Any], str]] = {
    "original_size": lambda count: f"{counted(count, 'image')} before any cut",
    "examples": lambda count: f"{counted(count, 'image')}",
    "image_shape": lambda shape: (
        f"images of {shape[0]} x {shape[1]} pixels and {counted(shape[2], 'channel')}"
    ),
    "from_python": lambda given: f"data {'from Python' if given else 'that the config names'}",
}
_DIGESTS = {
    "positions_sha256": "the choice of images is",
    "classes_sha256": "the names of the classes are",
    "files_sha256": "the names of the files are",
    "targets_sha256": "the labels, or other targets, are",
    "digits_sha256": "the digits' content is",
    "content_sha256": "the images' content is",
    "rows_sha256": "the images' content is",
}
_NOTED_LATER = ("rows_sha256",)  # by runs of today's format, of which older ones lack it


def shared_fields(source: Source) -> dict[str, Any]:
    """The fields of `SourceFields`, for a source that is made of another's rows."""
    return {field.name: getattr(source, field.name) for field in dataclasses.fields(SourceFields)}
