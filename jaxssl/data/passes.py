"""Passes over a whole source: into memory, or to find what cannot be read."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from absl import logging

from jaxssl.data import decoded
from jaxssl.data.decoding import UnreadableImageError
from jaxssl.data.examples import ArraySource, Rows, Source, SourceFields, shared_fields
from jaxssl.errors import UserError
from jaxssl.words import counted

T = TypeVar("T")
DECODE_CHUNK = 256


def map_chunks(function: Callable[[Rows], T], n: int) -> list[T]:
    """``function`` of each chunk of the rows 0 .. n-1, in parallel threads, in order."""
    chunks = np.split(np.arange(n), range(DECODE_CHUNK, n, DECODE_CHUNK))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(function, chunks))


def without_unreadable(source: Source) -> Source:
    """The source without the rows whose image or mask cannot be decoded.

    Every image is decoded once to find them. The others keep their positions. One warning says how
    many are left out, names the first and says what is wrong with it.

    Raises:
      UserError: if none can be decoded, or one not even read.
    """

    def read(rows: Rows) -> list[tuple[int, UnreadableImageError]]:
        unreadable = []
        for row in rows:
            try:
                source.gather(np.array([row]))
            except UnreadableImageError as error:
                unreadable.append((int(row), error))
        return unreadable

    logging.info("reading %d images of %s to find unreadable ones", len(source), source.name)
    unreadable = [found for part in map_chunks(read, len(source)) for found in part]
    if not unreadable:
        return source
    where, reason = unreadable[0][1].args
    if len(unreadable) == len(source):
        raise UserError(
            f"of {counted(len(source), 'image')} of {source.name} none can be read, the first "
            f"being {where} ({reason}): check the files."
        )
    logging.warning(
        "left out as unreadable: %d of %d images of %s, the first being %s (%s)",
        len(unreadable),
        len(source),
        source.name,
        where,
        reason,
    )
    rest = source.take(np.delete(np.arange(len(source)), [row for row, _ in unreadable]))
    assert isinstance(rest, SourceFields)
    return dataclasses.replace(rest, left_out=len(unreadable))


def in_memory(source: Source, key: str | None = None) -> ArraySource:
    """Decodes every example of a source once, in parallel threads.

    Args:
      source: the examples.
      key: under which to keep them for the next start (see `jaxssl.data.decoded`); None: not.
    """
    arrays = None if key is None else decoded.read(key)
    if arrays is None:
        logging.info("decoding %d images of %s into memory", len(source), source.name)
        arrays = _decode(source)
        if key is not None:
            decoded.keep(key, arrays)
    return ArraySource(
        **shared_fields(source),
        images=arrays.pop("images"),
        sizes=arrays.pop("sizes"),
        contents=arrays.pop("contents"),
        targets={name.removeprefix(_TARGET): values for name, values in arrays.items()},
    )


_TARGET = "target-"


def _decode(source: Source) -> dict[str, np.ndarray]:
    images = np.empty((len(source), *source.image_shape), np.uint8)
    sizes, contents = (np.empty((len(source), 2), np.int32) for _ in range(2))

    def decode(rows: Rows) -> dict[str, np.ndarray]:
        batch = source.gather(rows)
        images[rows], sizes[rows] = batch["image"], batch["original_size"]
        contents[rows] = batch["content"]
        return batch["targets"]

    parts = map_chunks(decode, len(source))
    targets = {_TARGET + name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {"images": images, "sizes": sizes, "contents": contents, **targets}
