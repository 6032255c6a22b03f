"""Features on disk, so that a second evaluation of a checkpoint computes none of them again."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxssl import distributed
from jaxssl.evaluation.classifier import write_npz
from jaxssl.evaluation.features import FeatureSet
from jaxssl.storage import Path


class FeatureStore:
    """Features by what they depend on; one that cannot be written keeps nothing and says nothing.

    Args:
      folder: where the files lie; None: nowhere.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, key: Mapping[str, Any], compute: Callable[[], FeatureSet]) -> FeatureSet:
        """The features under a key, computed if they are not there.

        Args:
          key: everything that they depend on, JSON.
          compute: makes them.
        """
        if self._folder is None:
            return compute()
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path = self._folder / f"{name}.npz"
        # All processes go the same way, or those that compute would wait for the others.
        found = distributed.agree("the features kept on disk", lambda: _read(path) is not None)
        if found and (kept := _read(path)) is not None:
            return kept
        made = compute()
        if jax.process_index() == 0:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                write_npz(path, features=made.features, labels=made.labels)
            except OSError:
                self._folder = None  # full or read-only: the results matter, not this copy
        return made


def _read(path: Path) -> FeatureSet | None:
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            return FeatureSet(file["features"], file["labels"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # absent, or cut short by a kill
