"""Examples that can be read in any order: in memory, in a folder, or in a TFDS set.

An image is uint8 [H, W, C] in [0, 255], C = 1 or 3, of one canonical size a set. A source is a
fixed list of examples, its *rows*; what an example is called everywhere else is its *position*, a
row number in the original split as its publisher made it, which survives every cut.
"""

import concurrent.futures
import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import PIL.Image
from absl import logging
from jaxtyping import Int

from jaxssl.errors import UserError
from jaxssl.randomness import Split

Batch = dict[str, Any]
Rows = Int[np.ndarray, " b"]
DECODE_CHUNK = 256


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
        """Names of the classes in order of the label, where known."""
        ...

    @property
    def original_split(self) -> Split:
        """The publisher's split that the examples come from."""
        ...

    @property
    def original_size(self) -> int:
        """Examples of that split before any cut: the entries of a bank keyed by ``index``."""
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
          ``epoch`` int32 [B]; ``original_size`` int32 [B,2], (height, width) in pixels before the
          image was brought to the canonical size; ``targets``, a dict of arrays that lead with B:
          ``label`` int32 [B] in [0, num_classes), or nothing.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Examples:
    """What every source here has; the attributes of `Source`."""

    name: str
    num_classes: int | None
    class_names: tuple[str, ...] | None
    original_split: Split
    original_size: int
    image_shape: tuple[int, int, int]
    positions: np.ndarray

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
            "epoch": np.zeros(len(rows), np.int32) if epochs is None else epochs.astype(np.int32),
            "original_size": sizes,
            "targets": targets,
        }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ArraySource(_Examples):
    """Examples that lie in memory; a batch is one fancy index.

    Attributes:
      images: uint8 [N,H,W,C].
      targets: arrays that lead with N; ``label`` int32.
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
                raise UserError(
                    f"target {key!r} of {self.name} has {len(values)} rows for "
                    f"{len(self.images)} images: pass one row an image."
                )
        if "label" in self.targets:
            _check_labels(self.targets["label"], self.num_classes, self.name)

    def take(self, rows: Rows) -> "ArraySource":
        """See `Source.take`; copies."""
        return dataclasses.replace(
            self,
            positions=self.positions[rows],
            images=self.images[rows],
            targets={key: values[rows] for key, values in self.targets.items()},
            sizes=self.sizes[rows],
        )

    def gather(self, rows: Rows, epochs: Rows | None = None) -> Batch:
        """See `Source.gather`."""
        targets = {key: values[rows] for key, values in self.targets.items()}
        return self._batch(rows, epochs, self.images[rows], self.sizes[rows], targets)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FolderSource(_Examples):
    """Image files, decoded when they are asked for.

    Attributes:
      files: one path a row.
      labels: int32 [N], or None.
    """

    files: tuple[str, ...]
    labels: np.ndarray | None
    vectorised: bool = dataclasses.field(default=False, init=False)

    def take(self, rows: Rows) -> "FolderSource":
        """See `Source.take`."""
        return dataclasses.replace(
            self,
            positions=self.positions[rows],
            files=tuple(self.files[row] for row in rows),
            labels=None if self.labels is None else self.labels[rows],
        )

    def record(self, row: int) -> dict[str, Any]:
        """One example: ``image`` uint8 [H,W,C], ``index``, ``original_size`` [2], ``targets``.

        Raises:
          UserError: if the file is no image that Pillow can read.
        """
        image, size = _decode(self.files[row], self.image_shape, self.files[row])
        targets = {} if self.labels is None else {"label": self.labels[row]}
        index = np.int32(self.positions[row])
        return {"image": image, "index": index, "original_size": size, "targets": targets}

    def gather(self, rows: Rows, epochs: Rows | None = None) -> Batch:
        """See `Source.gather`."""
        records = [self.record(int(row)) for row in rows]
        targets = {} if self.labels is None else {"label": self.labels[rows]}
        images = np.stack([record["image"] for record in records])
        sizes = np.stack([record["original_size"] for record in records])
        return self._batch(rows, epochs, images, sizes, targets)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TfdsSource(_Examples):
    """Records of a prepared TFDS set, read and decoded when they are asked for.

    Attributes:
      records: what ``tfds.data_source`` gives for the whole original split, images left encoded.
    """

    records: Any
    vectorised: bool = dataclasses.field(default=False, init=False)

    def take(self, rows: Rows) -> "TfdsSource":
        """See `Source.take`."""
        return dataclasses.replace(self, positions=self.positions[rows])

    def gather(self, rows: Rows, epochs: Rows | None = None) -> Batch:
        """See `Source.gather`."""
        with whole_files(self.name):
            examples = self.records.__getitems__([int(p) for p in self.positions[rows]])
        where = f"record {{}} of {self.name}"
        pairs = [
            _decode(example["image"], self.image_shape, where.format(position))
            for example, position in zip(examples, self.positions[rows], strict=True)
        ]
        targets = {}
        if self.num_classes is not None:
            labels = np.array([example["label"] for example in examples], np.int32)
            targets["label"] = _check_labels(labels, self.num_classes, self.name)
        images, sizes = (np.stack(parts) for parts in zip(*pairs, strict=True))
        return self._batch(rows, epochs, images, sizes, targets)


@contextlib.contextmanager
def whole_files(name: str) -> Iterator[None]:
    """Turns what the record reader says of a missing, cut or changed file into a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"the files of TFDS set {name!r} are incomplete or damaged ({error}): prepare it again."
        ) from error


def _check_labels(labels: np.ndarray, num_classes: int | None, name: str) -> np.ndarray:
    if num_classes is None or (
        len(labels) and not (labels.min() >= 0 and labels.max() < num_classes)
    ):
        raise UserError(
            f"labels of {name} lie in [{labels.min()}, {labels.max()}] but it declares "
            f"{num_classes} classes: pass labels from 0 to num_classes - 1, or a split with labels."
        )
    return labels


def resize(image: PIL.Image.Image, height: int, width: int) -> PIL.Image.Image:
    """Short side to the target's, then a central crop, in one resampling (Pillow's bicubic).

    One scale s for both axes and a sub-pixel offset: a point (y, x) of the original comes to lie
    at ((y - top) / s, (x - left) / s), with (top, left) the corner of the largest central part that
    has the target's aspect ratio. The filter widens with the scale (antialiasing).
    """
    scale = min(image.height / height, image.width / width)
    # Without the minimum a rounding error may put the box outside the image, which Pillow refuses.
    cropped_width = min(width * scale, image.width)
    cropped_height = min(height * scale, image.height)
    left, top = (image.width - cropped_width) / 2, (image.height - cropped_height) / 2
    box = (left, top, left + cropped_width, top + cropped_height)
    return image.resize((width, height), PIL.Image.Resampling.BICUBIC, box=box)


def _decode(
    encoded: str | bytes | np.ndarray | None, shape: tuple[int, int, int], where: str
) -> tuple[np.ndarray, np.ndarray]:
    """An image of the canonical shape, and its (height, width) before.

    Args:
      encoded: path of an image file, its bytes, or the pixels; None: a record cut short.
      shape: canonical (H, W, C).
      where: what to call the image if it cannot be read.
    """
    height, width, channels = shape
    try:
        image = _open(encoded).convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise UserError(f"{where} is not a readable image ({error}): replace it.") from error
    size = np.array((image.height, image.width), np.int32)
    if (image.height, image.width) != (height, width):
        image = resize(image, height, width)
    return np.asarray(image).reshape(height, width, channels), size


def _open(encoded: str | bytes | np.ndarray | None) -> PIL.Image.Image:
    if encoded is None:
        raise ValueError("the record is empty")
    if isinstance(encoded, np.ndarray):
        return PIL.Image.fromarray(encoded.squeeze(-1) if encoded.shape[-1] == 1 else encoded)
    with PIL.Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
        image.load()
        return image


def array_source(
    name: str,
    split: Split,
    images: np.ndarray,
    targets: dict[str, np.ndarray],
    *,
    num_classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
) -> ArraySource:
    """A whole split that lies in memory.

    Args:
      name: what error messages call it.
      split: which split it is; part of the key of every draw made for its images.
      images: uint8 [N,H,W,C].
      targets: arrays that lead with N; ``label`` int32 in [0, num_classes), where there are labels.
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
    return ArraySource(
        name=name,
        num_classes=num_classes,
        class_names=class_names,
        original_split=split,
        original_size=len(images),
        image_shape=(int(size[0]), int(size[1]), images.shape[3]),
        positions=np.arange(len(images)),
        images=images,
        targets=targets,
        sizes=np.tile(size, (len(images), 1)),
    )


def in_memory(source: Source) -> ArraySource:
    """Decodes every example of a source once, in parallel threads."""
    logging.info("decoding %d images of %s into memory", len(source), source.name)
    chunks = np.split(np.arange(len(source)), range(DECODE_CHUNK, len(source), DECODE_CHUNK))
    images = np.empty((len(source), *source.image_shape), np.uint8)
    sizes = np.empty((len(source), 2), np.int32)

    def decode(rows: np.ndarray) -> dict[str, np.ndarray]:
        batch = source.gather(rows)
        images[rows], sizes[rows] = batch["image"], batch["original_size"]
        return batch["targets"]

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        parts = list(threads.map(decode, chunks))
    return ArraySource(
        name=source.name,
        num_classes=source.num_classes,
        class_names=source.class_names,
        original_split=source.original_split,
        original_size=source.original_size,
        image_shape=source.image_shape,
        positions=source.positions,
        images=images,
        targets={key: np.concatenate([part[key] for part in parts]) for key in parts[0]},
        sizes=sizes,
    )
