"""Weighted nearest-neighbour classification of frozen features, exact and blockwise.

The classifier of Wu et al. (arXiv:1805.01978): cosine similarity s to a bank of training features,
the k nearest vote for their class with weight exp(s / T). And solo-learn's: Euclidean distance d
between features as they are, weight 1 / (d + 1e-5).
"""

import functools
import types
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxssl.metrics.normalization import unit_rows

_NEAR = 1e-5


class KnnProtocol(NamedTuple):
    """What a kNN accuracy by cosine similarity depends on besides the features.

    Attributes:
      k: number of neighbours, >= 1 and at most the size of the bank.
      temperature: T of the vote's weight exp(s / T), > 0.
    """

    k: int
    temperature: float


class EuclideanProtocol(NamedTuple):
    """What a kNN accuracy by Euclidean distance depends on besides the features.

    Attributes:
      k: number of neighbours, >= 1 and at most the size of the bank.
    """

    k: int


Protocol = KnnProtocol | EuclideanProtocol

PROTOCOLS: Mapping[str, Protocol] = types.MappingProxyType(
    {
        "moco": KnnProtocol(200, 0.1),  # MoCo's CIFAR demonstration (arXiv:1911.05722); lightly
        "dino": KnnProtocol(20, 0.07),  # arXiv:2104.14294
        "simsiam": KnnProtocol(200, 0.2),  # arXiv:2011.10566
        "solo": EuclideanProtocol(20),  # solo-learn's during training
    }
)
"""Published protocols by name: an accuracy means nothing without its protocol."""


def knn_accuracy(
    bank_features: Float[Array | np.ndarray, "n d"],
    bank_labels: Int[Array | np.ndarray, " n"],
    query_features: Float[Array | np.ndarray, "q d"],
    query_labels: Int[Array | np.ndarray, " q"],
    *,
    protocol: str | Protocol,
    block_size: int = 256,
) -> float:
    """Share of the queries whose class the bank predicts, in [0, 1].

    Args:
      bank_features: as in `knn_predict`, and so are the arguments not named here.
      bank_labels: see there.
      query_features: see there.
      query_labels: true classes; one that the bank lacks counts as wrong.
      protocol: see there.
      block_size: see there.

    Raises:
      ValueError: as `knn_predict`, or there is no query.
    """
    if query_features.shape[0] == 0:
        raise ValueError("There is no query: an accuracy needs at least one.")
    predicted = knn_predict(
        bank_features, bank_labels, query_features, protocol=protocol, block_size=block_size
    )
    return float(np.mean(np.asarray(predicted) == np.asarray(query_labels)))


def knn_predict(
    bank_features: Float[Array | np.ndarray, "n d"],
    bank_labels: Int[Array | np.ndarray, " n"],
    query_features: Float[Array | np.ndarray, "q d"],
    *,
    protocol: str | Protocol,
    block_size: int = 256,
) -> Int[Array, " q"]:
    """The class that each query's neighbours vote for.

    Args:
      bank_features: un-normalised features of training images, seen without augmentation.
      bank_labels: their classes, >= 0. The classes are those that occur here.
      query_features: un-normalised features of the images to classify.
      protocol: a key of `PROTOCOLS` or one of one's own.
      block_size: queries compared with the bank at a time; memory is block_size * n floats.

    Returns:
      int32 [q]. Of equal votes the lower class wins; of equally near neighbours the one that comes
      first in the bank.

    Raises:
      ValueError: the protocol is unknown or does not fit the bank, a label is below 0, or a feature
        is NaN or infinite.
    """
    if isinstance(protocol, str) and protocol not in PROTOCOLS:
        raise ValueError(f"kNN protocol {protocol!r} is unknown: choose one of {list(PROTOCOLS)}.")
    asked = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    found = knn_predictions(
        bank_features, bank_labels, query_features, protocols={"": asked}, block_size=block_size
    )
    return found[""]


def knn_predictions(
    bank_features: Float[Array | np.ndarray, "n d"],
    bank_labels: Int[Array | np.ndarray, " n"],
    query_features: Float[Array | np.ndarray, "q d"],
    *,
    protocols: Mapping[str, Protocol] = PROTOCOLS,
    block_size: int = 256,
) -> dict[str, Int[Array, " q"]]:
    """`knn_predict` for several protocols in one pass: one search a distance serves all of them.

    Args:
      bank_features: see `knn_predict`, and so are the arguments not named here.
      bank_labels: see there.
      query_features: see there.
      protocols: by name.
      block_size: see there.

    Returns:
      by name, int32 [q].

    Raises:
      ValueError: see there.
    """
    n = bank_features.shape[0]
    for protocol in protocols.values():
        if not 1 <= protocol.k <= n:
            raise ValueError(
                f"k={protocol.k} neighbours are asked for but the bank has {n} features."
            )
        if isinstance(protocol, KnnProtocol) and not protocol.temperature > 0:
            raise ValueError(f"temperature={protocol.temperature} must be above 0.")
    labels = np.asarray(bank_labels)
    if labels.min() < 0:
        raise ValueError(f"The bank has a label {labels.min()}: labels must be at least 0.")
    bank, queries = jnp.asarray(bank_features), jnp.asarray(query_features)
    for name, features in (("features of the bank", bank), ("queries", queries)):
        # NaN is no nearer to one neighbour than to another, and yet some class would win.
        if not bool(jnp.isfinite(features).all()):
            raise ValueError(f"The {name} hold NaN or infinity: neighbours need finite features.")
    found: dict[str, Int[Array, " q"]] = {}
    for kind in (KnnProtocol, EuclideanProtocol):
        asked = {name: p for name, p in protocols.items() if isinstance(p, kind)}
        if asked:
            predicted = _predict(
                bank,
                jnp.asarray(labels),
                queries,
                tuple(p.temperature for p in asked.values() if isinstance(p, KnnProtocol)),
                ks=tuple(p.k for p in asked.values()),
                euclidean=kind is EuclideanProtocol,
                num_classes=int(labels.max()) + 1,
                block_size=max(min(block_size, queries.shape[0]), 1),
            )
            found |= dict(zip(asked, predicted, strict=True))
    return found


@functools.partial(jax.jit, static_argnames=("ks", "euclidean", "num_classes", "block_size"))
def _predict(
    bank: Float[Array, "n d"],
    labels: Int[Array, " n"],
    queries: Float[Array, "q d"],
    temperatures: tuple[Float[Array, ""] | float, ...],
    *,
    ks: tuple[int, ...],
    euclidean: bool,
    num_classes: int,
    block_size: int,
) -> tuple[Int[Array, " q"], ...]:
    bank, queries = (_floating(x) if euclidean else unit_rows(x) for x in (bank, queries))
    # About a point of the bank: distances are no differences of large numbers.
    center = bank.mean(axis=0) if euclidean else 0
    bank, queries = bank - center, queries - center
    lengths = jnp.sum(bank**2, axis=1)
    count = queries.shape[0]
    blocks = jnp.pad(queries, ((0, -count % block_size), (0, 0)))
    rows = jnp.arange(block_size)[:, None]

    def predict_block(block: Float[Array, "m d"]) -> tuple[Int[Array, " m"], ...]:
        # Accelerators otherwise round the inputs of a product to fewer bits.
        nearness = jnp.matmul(block, bank.T, precision=jax.lax.Precision.HIGHEST)
        if euclidean:  # minus the squared distance
            nearness = 2 * nearness - lengths - jnp.sum(block**2, axis=1, keepdims=True)
        nearest, where = jax.lax.top_k(nearness, max(ks))
        predicted = []
        for number, k in enumerate(ks):
            if euclidean:
                weights = 1 / (jnp.sqrt(jnp.maximum(-nearest, 0)) + _NEAR)
            else:
                # Relative to the nearest: the winner is the same and no temperature overflows. The
                # slice nearest[:, :1] would make XLA sort the rows whole on a CPU, which takes 14
                # times as long; so a smaller k is a weight of 0 and no slice.
                weights = jnp.exp(
                    (nearest - nearest.max(axis=1, keepdims=True)) / temperatures[number]
                )
            weights = jnp.where(jnp.arange(max(ks)) < k, weights, 0)
            votes = jnp.zeros((block_size, num_classes), weights.dtype)
            votes = votes.at[rows, labels[where]].add(weights)
            predicted.append(jnp.argmax(votes, axis=1).astype(jnp.int32))
        return tuple(predicted)

    blocks = blocks.reshape(-1, block_size, queries.shape[1])
    found = jax.lax.map(predict_block, blocks)
    return tuple(classes.reshape(-1)[:count] for classes in found)


def _floating(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
