"""Arrays in ``.npy`` files: ``<split>_images.npy`` and, with labels, ``<split>_labels.npy``.

They lie in ``data_dir``, where ``<split>`` is ``train``, ``val`` (or ``validation``) or ``test``.
Images are [N, H, W, C] of any number of channels, uint8 or, with ``data.scale``, of any real type;
labels are integers [N]. The classes are 0 to the highest label of ``train``.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxssl.data import digests
from jaxssl.data.canonical import Scale, checked_scale, to_8_bits
from jaxssl.data.decoding import unreachable
from jaxssl.data.examples import (
    PUBLISHED,
    Batch,
    Rows,
    SourceFields,
    check_labels,
    check_layout,
    check_target,
)
from jaxssl.data.folders import PARTS, data_root
from jaxssl.data.walk import NO_SUFFIX, entries_in, merged
from jaxssl.errors import UserError
from jaxssl.words import counted

HASHED_ROWS = 256
"""So many images, evenly spread, tell a file's content: its size only tells its shape."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NpySource(SourceFields):
    """Images of a file that is mapped into memory, of which only what is asked for is read.

    Attributes:
      path: the file of the whole split.
      targets: arrays that lead with N, as in `Source.gather`.
      scale: as in `Canonical`.
    """

    path: str
    targets: dict[str, np.ndarray]
    scale: Scale
    vectorised: bool = dataclasses.field(default=False, init=False)

    def take(self, rows: Rows) -> "NpySource":
        """See `Source.take`."""
        targets = {key: values[rows] for key, values in self.targets.items()}
        return dataclasses.replace(self, **self._fields_of(rows), targets=targets)

    def gather(self, rows: Rows, epochs: Rows | None = None) -> Batch:
        """See `Source.gather`."""
        images = to_8_bits(_mapped(self.path)[self.positions[rows]], self.scale, self.path)
        sizes = np.tile(np.array(self.image_shape[:2], np.int32), (len(rows), 1))
        targets = {key: values[rows] for key, values in self.targets.items()}
        return self._batch(rows, epochs, images, sizes, targets)

    def fingerprint(self) -> dict[str, str]:
        """See `Source.fingerprint`; ``rows`` are the pixels of some, as the file has them."""
        n = len(self)
        some = np.unique(np.arange(min(n, HASHED_ROWS)) * n // max(min(n, HASHED_ROWS), 1))
        return {
            "targets": digests.of_arrays(self.targets),
            "content": digests.of_sizes([self.path]),
            "rows": digests.of_array(_mapped(self.path)[self.positions[some]]),
        }


def npy_splits(config: ConfigDict) -> Sequence[str]:
    """The splits that have a file of images."""
    splits = [published for published in PARTS if _prefix(config, published) is not None]
    if "train" not in splits:
        raise UserError(
            f"{data_root(config)} has no train_images.npy: put it there, uint8 [N, H, W, C], and "
            "train_labels.npy beside it, and likewise for val and test."
        )
    return splits


def _prefix(config: ConfigDict, published: str) -> str | None:
    root = data_root(config)
    there = [name for name in PARTS[published] if (root / f"{name}_images.npy").is_file()]
    if len(there) > 1:
        raise UserError(
            f"{root} has both {there[0]}_images.npy and {there[1]}_images.npy: leave one of them."
        )
    return there[0] if there else None


def open_npy(config: ConfigDict, published: str) -> NpySource:
    """The arrays of a published split.

    Raises:
      UserError: if they are not as this module says.
    """
    root, prefix = data_root(config), _prefix(config, published)
    path = root / f"{prefix}_images.npy"
    images, scale = _mapped(str(path)), checked_scale(config.scale)
    check_layout(images.shape, str(path))
    if not np.issubdtype(images.dtype, np.integer) and not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"{path} holds {images.dtype} values: give numbers, such as uint8.")
    to_8_bits(images[:1], scale, str(path))
    labels_path, num_classes, targets = root / f"{prefix}_labels.npy", None, {}
    if labels_path.exists():
        labels = np.asarray(_mapped(str(labels_path)))
        check_target("label", labels, images.shape, str(labels_path))
        num_classes = _num_classes(root / "train_labels.npy")
        targets["label"] = check_labels(labels, num_classes, str(labels_path)).astype(np.int32)
    used = {f"{p}_{what}.npy" for names in PARTS.values() for p in names for what in _WHATS}
    others = [e.name for e in entries_in(root) if e.is_file() and e.name not in used]
    suffixes = [pathlib.Path(name).suffix or NO_SUFFIX for name in others if name[0] != "."]
    return NpySource(
        name=f"{root.name}/{prefix}",
        num_classes=num_classes,
        class_names=None,
        original_size=len(images),
        image_shape=(images.shape[1], images.shape[2], images.shape[3]),
        positions=np.arange(len(images)),
        splits=np.full(len(images), PUBLISHED[published], np.int32),
        passed_over=merged(*({suffix: 1} for suffix in suffixes)),
        path=str(path),
        targets=targets,
        scale=scale,
    )


_WHATS = ("images", "labels")


def _num_classes(path: pathlib.Path) -> int:
    """One more than the highest label of train, of which each class has some."""
    if not path.is_file():
        raise UserError(f"{path} is missing, which says what classes there are: add it.")
    labels = np.asarray(_mapped(str(path)))
    check_target("label", labels, (labels.size, 1, 1), str(path))
    there = np.unique(labels)
    if not len(there) or not np.array_equal(there, np.arange(len(there))):
        raise UserError(
            f"{path} has {counted(len(there), 'class')} numbered {_range(there)}: number them from "
            "0 without gaps, such as with numpy.unique(labels, return_inverse=True)."
        )
    return len(there)


def _range(values: np.ndarray) -> str:
    return f"from {values[0]} to {values[-1]}" if len(values) else "not at all"


def _mapped(path: str) -> np.ndarray:
    try:
        return _loaded(path, os.stat(path).st_mtime_ns)
    except OSError as error:
        raise unreachable(path, error) from error
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is no .npy file of numbers ({error}): save it again.") from error


@functools.lru_cache(maxsize=16)
def _loaded(path: str, modified: int) -> np.ndarray:
    array = np.lib.format.open_memmap(path, mode="r")  # np.load would take .npz too
    if not array.size:
        raise ValueError(f"its shape is {list(array.shape)}")
    return array
