"""The one table of random streams, on the device and on the host.

Everything random about a sample is a pure function of
``(data_seed, purpose, split, epoch, index, view)``: two runs that share ``data_seed`` see the same
crops whatever their loss, batch size, device count, host count or restarts. Everything random
about a step is a pure function of ``(seed, purpose, step)``.
"""

import enum

import jax
import numpy as np
from jaxtyping import Array, Int, Key, UInt

from jaxssl.errors import UserError


class Purpose(enum.IntEnum):
    """What a stream is for. The numbers are part of every published result: never renumber."""

    ORDER = 0  # host: the order of an epoch
    VIEW = 1  # device: crop, flip, colour, blur of one view
    CORRUPTION = 2  # host: what a corruption draws for one image
    COMPOSITION = 3  # host: what a composed set (MultiDigits ...) draws for one item
    BITS = 4  # device: the RandBit integer of one image
    INIT = 5  # device: initial weights
    OBJECTIVE = 6  # device: what an objective draws for one step (SWD directions, priors)
    EMBED_STEP = 7  # device: what networks draw for one step (ShuffleBN's permutation)
    PROBE_VIEW = 8  # device: crop and flip of the linear probe
    EPOCH = 9  # device: what a method draws before an epoch (k-means seeds)
    EMBED_SAMPLE = 10  # device: what networks draw for one image (masks, noise)


class Split(enum.IntEnum):
    """The *original* split an image comes from; a validation cut of ``train`` stays ``TRAIN``."""

    TRAIN = 0
    TEST = 1
    UNLABELLED = 2
    VALIDATION = 3  # only where the publisher of the set made one


def check_seed(name: str, seed: int) -> int:
    """The seed, if it is an unsigned 32-bit integer.

    Raises:
      UserError: naming it, if not.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"{name}={seed} is out of range: use 0 to {2**32 - 1}.")
    return int(seed)


def sample_keys(
    data_seed: UInt[Array, ""] | int,
    purpose: Purpose,
    split: Int[Array, " b"],
    epoch: Int[Array, " b"],
    index: Int[Array, " b"],
    view: int,
) -> Key[Array, " b"]:
    """One key a sample for draws made on the device.

    Args:
      data_seed: seed of the data stream, an unsigned 32-bit integer; may be traced.
      purpose: what the draws are for.
      split: number in `Split` of the original split of each sample.
      epoch: epoch of each sample, >= 0.
      index: position of each sample in its original split, >= 0.
      view: number of the view, from 0.

    Returns:
      Typed keys [B]; entry i depends on (data_seed, purpose, view) and on its own split, epoch
      and index alone.
    """
    stream = jax.random.fold_in(jax.random.key(data_seed), int(purpose))

    def one(split: Array, epoch: Array, index: Array) -> Key[Array, ""]:
        key = stream
        for word in (split, view, epoch, index):
            key = jax.random.fold_in(key, word)
        return key

    return jax.vmap(one)(split, epoch, index)


def step_key(
    seed: UInt[Array, ""] | int, purpose: Purpose, step: Int[Array, ""] | int
) -> Key[Array, ""]:
    """The key of what is drawn once a step: a function of (seed, purpose, step) alone."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), int(purpose)), step)


def host_bits(
    data_seed: int, purpose: Purpose, split: Split, epoch: int, index: int, view: int = 0
) -> np.random.Philox:
    """The host's counterpart of `sample_keys`: a Philox bit generator for one sample.

    NumPy promises that a bit generator's raw stream never changes; it makes no such promise for
    ``Generator.permutation`` and its kin, so whatever must be reproducible across NumPy versions
    is derived from ``random_raw``.
    """
    return np.random.Philox(
        key=np.array([data_seed, (int(purpose) << 32) | int(split)], dtype=np.uint64),
        counter=np.array([0, view, index, epoch], dtype=np.uint64),
    )


def permutation(bits: np.random.Philox, n: int) -> Int[np.ndarray, " n"]:
    """A uniform permutation of ``range(n)`` as int64, the same for every NumPy version."""
    return np.argsort(bits.random_raw(n), kind="stable")
