"""A linear classifier that stands in a file, and how often a classifier is right."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxssl.distributed import DATA_AXIS, fetch, sharded
from jaxssl.errors import UserError
from jaxssl.storage import Path, write_whole

Weights = tuple[Float[Array | np.ndarray, "d k"], Float[Array | np.ndarray, " k"]]


class About(NamedTuple):
    """What a saved classifier says of itself.

    Attributes:
      class_names: one a class.
      layer: of the network, whose vectors it takes.
      target: what it predicts.
      encoder_sha256: digest of the encoder's parameters and statistics.
      fitted_on: JSON; two classifiers with the same one are the same.
      chosen: JSON; what was chosen in the fit and how it ended.
    """

    class_names: tuple[str, ...]
    layer: str
    target: str
    encoder_sha256: str
    fitted_on: dict[str, Any]
    chosen: dict[str, Any]


class LinearClassifier(NamedTuple):
    """``((features - mean) / scale) @ kernel + bias``.

    Attributes:
      mean: [D] float32.
      scale: [D] float32, > 0; infinite for a component that is left out.
      kernel: [D, K] float32.
      bias: [K] float32.
    """

    mean: Float[Array | np.ndarray, " d"]
    scale: Float[Array | np.ndarray, " d"]
    kernel: Float[Array | np.ndarray, "d k"]
    bias: Float[Array | np.ndarray, " k"]

    def logits(
        self, features: Float[Array | np.ndarray, "n d"], mesh: Mesh | None = None
    ) -> Float[np.ndarray, "n k"]:
        """Un-normalised log probabilities of the classes; the rows are shared over a mesh."""
        (rows,) = put_rows(mesh, features)
        return fetched(mesh, _all_logits(self, rows))[: len(features)]

    def save(self, path: Path, about: About) -> None:
        """Writes ``.npz``: the arrays, and the fields of `About` beside them, JSON as text."""
        words = about._asdict() | {
            "fitted_on": json.dumps(about.fitted_on),
            "chosen": json.dumps(about.chosen),
        }
        write_npz(path, **self._asdict(), **words)

    @classmethod
    def load(cls, path: Path) -> tuple["LinearClassifier", About]:
        """What `save` wrote.

        Raises:
          UserError: if the file is something else.
          OSError: if it cannot be read.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes())) as file:
                about = About(
                    class_names=tuple(file["class_names"].tolist()),
                    layer=str(file["layer"]),
                    target=str(file["target"]),
                    encoder_sha256=str(file["encoder_sha256"]),
                    fitted_on=json.loads(str(file["fitted_on"])),
                    chosen=json.loads(str(file["chosen"])),
                )
                return cls(*(file[name] for name in cls._fields)), about
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} is no classifier of jaxssl: remove it, or name another file."
            ) from error


def write_npz(path: Path, **arrays: Any) -> None:
    """Writes ``.npz`` whole or not at all; a string or a tuple of them becomes an array too."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})
    write_whole(path, buffer.getvalue())


def put_rows(mesh: Mesh | None, *arrays: Array | np.ndarray) -> tuple[Array, ...]:
    """Arrays with their rows cut over a mesh; None: as they are, on the first device.

    Rows that the last device lacks are filled with copies of the first row.
    """
    if mesh is None:
        return tuple(jnp.asarray(array) for array in arrays)
    placed = []
    for array in map(np.asarray, arrays):
        spare = -len(array) % mesh.shape[DATA_AXIS]
        filled = np.concatenate([array, np.repeat(array[:1], spare, axis=0)]) if spare else array
        placed.append(jax.device_put(filled, sharded(mesh)))
    return tuple(placed)


def fetched(mesh: Mesh | None, tree: Any) -> Any:
    """What was computed with `put_rows` of the same mesh, as whole NumPy arrays."""
    return jax.device_get(tree) if mesh is None else fetch(tree)


def linear_logits(weights: Weights, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """``x @ kernel + bias`` at full precision."""
    kernel, bias = weights
    # Accelerators otherwise round the inputs of a product to fewer bits.
    return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST) + bias


@jax.jit
def _all_logits(classifier: LinearClassifier, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
    standard = (x - classifier.mean) / classifier.scale
    return linear_logits((classifier.kernel, classifier.bias), standard)


def topk_accuracy(
    logits: Float[Array | np.ndarray, "n k"],
    labels: Int[Array | np.ndarray, " n"],
    *,
    ks: Sequence[int] = (1, 5),
    mask: Bool[Array | np.ndarray, " n"] | None = None,
) -> dict[int, float]:
    """Share of rows whose true class is among the k largest logits.

    Args:
      logits: [N, K]; of equal logits the lower class counts as larger, NaN as larger than any.
      labels: [N]; one outside [0, K) is a class that the classifier never saw: always wrong.
      ks: as reported; one above K means K.
      mask: rows that count; None for all.

    Returns:
      {k: accuracy in [0, 1]}.

    Raises:
      ValueError: no row counts.
    """
    labels = np.asarray(labels)
    counts = np.ones(len(labels), bool) if mask is None else np.asarray(mask)
    rank = _ranks(np.asarray(logits), labels)[counts]
    if rank.size == 0:
        raise ValueError("There is no row to count: an accuracy needs at least one.")
    return {k: float(np.mean(rank < k)) for k in ks}


def _ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes are ahead of the true one, for each row."""
    known = (labels >= 0) & (labels < logits.shape[1])
    column = np.where(known, labels, 0)[:, None]
    true = np.take_along_axis(logits, column, axis=1)
    before = np.arange(logits.shape[1]) < column
    ahead = ~(logits <= true) | ((logits == true) & before)
    return np.where(known, ahead.sum(axis=1), np.iinfo(np.int64).max)


def class_accuracies(
    logits: Float[Array | np.ndarray, "n k"], labels: Int[Array | np.ndarray, " n"]
) -> dict[int, float]:
    """Top-1 accuracy in [0, 1] among the rows of each class that occurs, ascending.

    Their mean is the balanced accuracy. Arguments are those of `topk_accuracy`.
    """
    labels = np.asarray(labels)
    right = _ranks(np.asarray(logits), labels) < 1
    return {int(label): float(right[labels == label].mean()) for label in np.unique(labels)}


def names_of_classes(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The first ``count`` names, or numbers where there are none."""
    return tuple(
        names[number] if names is not None and number < len(names) else str(number)
        for number in range(count)
    )


def scores(
    logits: Float[Array | np.ndarray, "n k"],
    labels: Int[Array | np.ndarray, " n"],
    class_names: Sequence[str] | None,
) -> Mapping[str, Any]:
    """The accuracies of a card: ``top1``, ``top5``, ``balanced`` and ``by_class``.

    ``by_class`` lists, for the classes that occur, number, name and top-1 accuracy: two classes
    may have one name.
    """
    of_class = class_accuracies(logits, labels)
    names = names_of_classes(class_names, max(of_class) + 1)
    return {
        **{f"top{k}": accuracy for k, accuracy in topk_accuracy(logits, labels).items()},
        "balanced": float(np.mean(list(of_class.values()))),
        "by_class": [
            {"class": label, "name": names[label], "top1": accuracy}
            for label, accuracy in of_class.items()
        ],
    }
