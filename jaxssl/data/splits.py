"""Corrupted data sets: what a run trains, chooses and is tested on, with its intervention."""

import contextlib
import dataclasses
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from jaxssl.corruptions.apply import DRAWN, Corruptor, check_named
from jaxssl.data.canonical import FITS
from jaxssl.data.examples import ArraySource, Batch, Rows, Source, SourceFields, shared_fields
from jaxssl.data.sources import check_test_fraction, load, pretraining_split
from jaxssl.errors import UserError, choose
from jaxssl.ranges import SHARE, check_ranges

CHUNK = 1024
SPLITS = ("pretrain", "train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CorruptedSource(SourceFields):
    """Another source's examples, corrupted as they are read, or with the draws for it beside them.

    Attributes:
      source: the examples as they are.
      corruptor: the corruption.
      drawn_shape: where the device corrupts: (H, W, C) of what it corrupts there.
    """

    source: Source
    corruptor: Corruptor
    drawn_shape: tuple[int, int, int]

    @property
    def vectorised(self) -> bool:
        """See `Source.vectorised`."""
        return self.source.vectorised

    def take(self, rows: Rows) -> "CorruptedSource":
        """See `Source.take`."""
        return dataclasses.replace(self, source=self.source.take(rows), **self._fields_of(rows))

    def fingerprint(self) -> dict[str, str]:
        """See `Source.fingerprint`."""
        return self.source.fingerprint()

    def gather(self, rows: Rows, epochs: Rows | None = None) -> Batch:
        """See `Source.gather`; with ``corruption`` [B, ...] where the device is to corrupt."""
        batch = self.source.gather(rows, epochs)
        if not self.corruptor.after_augmentation:
            return batch | {"image": self.corruptor.on_host(batch)}
        drawn = self.corruptor.draw_each(batch["split"], batch["index"], self.drawn_shape)
        return batch | {DRAWN: drawn}


def corrupted(source: Source, corruption: ConfigDict, view_size: int) -> Source:
    """The source with the corruption of a config.

    Args:
      source: the examples as they are.
      corruption: the ``corruption`` group.
      view_size: side of the views, pixels: of what the device corrupts after augmentation.

    Raises:
      UserError: if the images do not suit the corruption.
    """
    corruptor = Corruptor.from_config(corruption)
    shape = (view_size, view_size, source.image_shape[2])
    if corruption.name == "none":
        return source
    canonical = source.canonical
    if canonical and canonical.fit != "crop" and not corruptor.after_augmentation:
        raise UserError(
            f"--config.corruption.name={corruption.name} before augmentation would corrupt "
            f"the padding too that --config.data.fit={canonical.fit} leaves: use "
            "--config.data.fit=crop, or --config.corruption.order=aug_corrupt."
        )
    # A permutation of an image's own is drawn here even if the device applies it, so that it is the
    # same in either order.
    if corruptor.after_augmentation and corruptor.corruption.drawn != "image":
        return source
    wrapped = CorruptedSource(
        **shared_fields(source),
        source=source,
        corruptor=corruptor,
        drawn_shape=shape,
    )
    if len(source):
        wrapped.gather(np.zeros(1, np.int64))  # refuses unsuitable images now
    if isinstance(source, ArraySource) and not corruptor.after_augmentation:
        return _corrupted_once(wrapped, source)
    return wrapped


def _corrupted_once(wrapped: CorruptedSource, source: ArraySource) -> ArraySource:
    """In memory nothing differs between epochs, so it is done once and for all."""
    images = np.empty_like(source.images)
    for rows in np.split(np.arange(len(source)), range(CHUNK, len(source), CHUNK)):
        images[rows] = wrapped.gather(rows)["image"]
    return dataclasses.replace(source, images=images)


def check_effects(corruption: ConfigDict, data: ConfigDict | None) -> None:
    """Refuses settings that would change nothing, and those out of range that nothing reads.

    For new runs, as older ones may have them.

    Args:
      corruption: the ``corruption`` group of a config.
      data: its ``data`` group; None: the data come from Python.

    Raises:
      UserError: naming the first of them.
    """
    check_named(corruption)
    if data is not None:
        choose("--config.data.fit", data.fit, FITS)
        check_ranges("data", data, {"test_fraction": SHARE})
        check_test_fraction(data)


def check_sources(sources: object) -> None:
    """Refuses what Python code brings in place of splits if it is none.

    Raises:
      UserError: naming the split.
    """
    how = "jaxssl.data.sources.array_source"
    if not isinstance(sources, Mapping):
        raise UserError(
            f"sources is a {type(sources).__name__}: pass a dict of sources by the name of their "
            f'split, such as {{"train": {how}(...)}}.'
        )
    for split, source in sources.items():
        if not all(hasattr(source, name) for name in ("take", "gather", "image_shape")):
            raise UserError(
                f"sources[{split!r}] is a {type(source).__name__} and no source of examples: make "
                f"one of an array by {how}."
            )
        if not len(source) or 0 in source.image_shape:
            shape = [len(source), *source.image_shape]
            raise UserError(
                f"sources[{split!r}] has images of shape {shape} [N, H, W, C]: give at least one, "
                "of at least one pixel."
            )


class Splits:
    """The splits of a run as its programs see them: corrupted, each opened once.

    ``"pretrain"`` is what an encoder is trained on; ``"train"``, ``"validation"`` and ``"test"``
    are what it is judged by.
    """

    def __init__(
        self,
        data: ConfigDict,
        corruption: ConfigDict,
        view_size: int,
        sources: Mapping[str, Source] | None = None,
    ):
        """Opens nothing yet.

        Args:
          data: the ``data`` group of a config.
          corruption: its ``corruption`` group.
          view_size: side of the views, pixels.
          sources: splits that Python code brings, in place of ``data``; without ``"pretrain"``,
            ``"train"`` serves for it.

        Raises:
          UserError: if ``sources`` are no sources by name, or one has no image.
        """
        if sources is not None:
            check_sources(sources)
        self._data, self._corruption, self._view_size = data, corruption, view_size
        self._given = sources
        self._open: dict[str, Source] = {}
        self._counted: dict[str, Source] = {}

    def __getitem__(self, split: str) -> Source:
        """The examples of a split.

        Raises:
          UserError: if there are none.
        """
        if split == "pretrain":
            split = self._pretraining_split()
        if split not in self._open:
            self._open[split] = corrupted(self._load(split), self._corruption, self._view_size)
        return self._open[split]

    def check(self, split: str) -> None:
        """Raises UserError if a split has no examples; decodes none."""
        if split not in self._open and split not in self._counted:
            self._counted[split] = self._load(split, memory_limit_bytes=0)

    def known(self) -> dict[str, Source]:
        """The splits that were asked for, and those for choices and tests that there are.

        What nobody has opened is as `check` found it: neither decoded nor corrupted.
        """
        for split in ("validation", "test"):
            with contextlib.suppress(UserError):
                self.check(split)
        found = self._counted | self._open
        return {split: found[split] for split in SPLITS if split in found}

    def _pretraining_split(self) -> str:
        if self._given is None:
            return pretraining_split(self._data)
        return "pretrain" if "pretrain" in self._given else "train"

    def _load(self, split: str, **how: int) -> Source:
        if self._given is None:
            return load(self._data, split, **how)
        if split not in self._given:
            raise UserError(
                f"the sources given have no {split!r} split, only {', '.join(self._given)}: add it."
            )
        return self._given[split]
