"""SHA-256 of what a set of examples is made of: the same wherever it lies."""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np

from jaxssl.data.decoding import unreachable

_CHUNK_BYTES = 2**24


def of_json(content: object) -> str:
    """Of names and numbers in lists and dicts."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def of_array(array: np.ndarray) -> str:
    """Of an array's dtype, shape and values."""
    result = hashlib.sha256(json.dumps([array.dtype.str, list(array.shape)]).encode())
    rows = max(_CHUNK_BYTES // max(array.nbytes // max(len(array), 1), 1), 1)
    for start in range(0, len(array), rows):  # a broadcast array would not fit as a whole
        result.update(array[start : start + rows].tobytes())
    return result.hexdigest()


def of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Of named arrays."""
    return of_json({key: of_array(values) for key, values in arrays.items()})


def of_sizes(paths: Sequence[str]) -> str:
    """Of the sizes of files, which are asked for in parallel threads and not read.

    Raises:
      UserError: if one is not there.
    """

    def size(path: str) -> int:
        try:
            return os.stat(path).st_size
        except OSError as error:
            raise unreachable(path, error) from error

    if not paths:
        return of_json([])
    share = -(-len(paths) // 32)
    parts = [paths[start : start + share] for start in range(0, len(paths), share)]
    with concurrent.futures.ThreadPoolExecutor(len(parts)) as threads:
        sizes = list(threads.map(lambda part: [size(path) for path in part], parts))
    return of_json([one for part in sizes for one in part])
