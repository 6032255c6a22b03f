"""What networks predict for each test image, kept so that differences can be paired."""

import io
import zipfile
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int

from jaxssl.errors import UserError
from jaxssl.evaluation.classifier import write_npz
from jaxssl.storage import Path


class Predictions:
    """Classes of the test images by (network, what predicted them), beside the true ones.

    Attributes:
      index: positions of the images in the original split.
      labels: true classes.
    """

    def __init__(self, index: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> None:
        self.index, self.labels = np.asarray(index), np.asarray(labels)
        self._classes: dict[tuple[str, str], Int[np.ndarray, " n"]] = {}

    def add(self, network: str, by: str, classes: Int[np.ndarray, " n"]) -> None:
        """Keeps what was predicted."""
        self._classes[network, by] = np.asarray(classes, np.int32)

    def right(self, network: str, by: str) -> Bool[np.ndarray, " n"]:
        """Whether each image was classified rightly.

        Raises:
          KeyError: if nothing of the kind was predicted.
        """
        return self._classes[network, by] == self.labels

    def of(self, network: str) -> list[str]:
        """By what the network's classes were predicted."""
        return [by for name, by in self._classes if name == network]

    def save(self, path: Path) -> None:
        """Writes ``.npz``."""
        arrays = {f"{network}|{by}": found for (network, by), found in self._classes.items()}
        write_npz(path, index=self.index, labels=self.labels, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """What `save` wrote.

        Raises:
          UserError: if the file is something else.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes())) as file:
                found = cls(file["index"], file["labels"])
                for name in set(file.files) - {"index", "labels"}:
                    network, by = name.split("|", 1)
                    found.add(network, by, file[name])
                return found
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} holds no predictions of jaxssl: remove it and evaluate again."
            ) from error


def interval_json(interval: tuple[float, float, float]) -> Mapping[str, float | None]:
    """An interval as JSON, which has no NaN."""
    return {
        name: None if np.isnan(number) else float(number)
        for name, number in zip(("value", "low", "high"), interval, strict=True)
    }
