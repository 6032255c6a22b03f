"""From a source to batches: the only file that knows Grain.

Batch k is a pure function of k. Training draws from one infinite sequence of rows, the order of
epoch 0, then that of epoch 1, and so on; batch k is entries k*B .. (k+1)*B - 1 of it, so batches
straddle epochs, nothing is dropped, and a batch size, a restart or a number of processes only cut
the same sequence elsewhere. Nothing has to be saved to resume but the number of the step.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jaxtyping import Int

from jaxssl.data.examples import Batch, Source
from jaxssl.errors import UserError
from jaxssl.interruption import SIGNALS
from jaxssl.randomness import Purpose, Split, host_bits, permutation
from jaxssl.words import counted


@functools.lru_cache(maxsize=8)
def order(data_seed: int, epoch: int, n: int) -> Int[np.ndarray, " n"]:
    """The order in which an epoch visits the rows of a training set.

    It has no split: a run trains on one set, and runs that share the seed are to share the order.

    Args:
      data_seed: seed of the data stream, an unsigned 32-bit integer.
      epoch: number of the epoch, from 0.
      n: rows of the set.

    Returns:
      A permutation of range(n), int64, read-only; the same for every NumPy version.
    """
    rows = permutation(host_bits(data_seed, Purpose.ORDER, Split.TRAIN, epoch, 0), n)
    rows.setflags(write=False)
    return rows


def training_rows(
    step: int, batch_size: int, n: int, data_seed: int
) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
    """The rows and epochs of the global batch of one step.

    Args:
      step: number of the step, from 0.
      batch_size: B, over all processes.
      n: rows of the set.
      data_seed: seed of the data stream.

    Returns:
      Rows in [0, n), int64 [B], and the epoch of each, int32 [B].
    """
    return _shuffled(np.arange(step * batch_size, (step + 1) * batch_size), n, data_seed)


def _shuffled(entries: np.ndarray, n: int, data_seed: int) -> tuple[np.ndarray, np.ndarray]:
    epochs, offsets = np.divmod(entries, n)
    rows = np.empty_like(offsets)
    for epoch in range(epochs[0], epochs[-1] + 1):
        here = epochs == epoch
        rows[here] = order(data_seed, epoch, n)[offsets[here]]
    return rows, epochs.astype(np.int32)


class Repeats(NamedTuple):
    """How often a batch that straddles two epochs holds an image twice.

    Attributes:
      batches: number of such batches; those that straddle and repeat no image are not counted.
      images: mean number of images that they hold twice.
      exact: whether all were looked at.
    """

    batches: int
    images: float
    exact: bool

    def in_words(self, num_steps: int) -> str:
        """The same as a line for the user."""
        return (
            "batches that hold an image twice, since two epochs meet in them: "
            f"{'' if self.exact else 'about '}{self.batches:,} of {num_steps:,}, with "
            f"{self.images:.1f} such images on average; a batch-wise loss takes the two for "
            "different images"
        )


def drawn_anew(source: Source) -> bool:
    """Whether rows of a set hold other images in another epoch, as composed ones do."""
    rows = np.arange(min(len(source), 4))
    first, second = (source.gather(rows, np.full_like(rows, epoch)) for epoch in (0, 1))
    return not np.array_equal(first["image"], second["image"])


MAX_BORDERS = 100
MAX_ROWS_PASSED = 10**7


def repeats(n: int, batch_size: int, data_seed: int, num_steps: int) -> Repeats:
    """How many batches of a run hold an image twice, and how many of them on average.

    Exact for up to `MAX_BORDERS` borders between epochs, or fewer in a set of more than 50,000
    images, since each takes a pass over two epochs; of more, as many are looked at, evenly spread,
    and the number of batches is theirs in proportion.

    Args:
      n: rows of the set, at least ``batch_size``.
      batch_size: B, over all processes.
      data_seed: seed of the data stream.
      num_steps: batches of the run.
    """
    last = max(num_steps * batch_size - 1, 0) // n  # the last epoch that is begun
    cut = np.arange(1, last + 1)
    cut = cut[cut * n % batch_size != 0]
    looked_at = max(min(len(cut), MAX_BORDERS, MAX_ROWS_PASSED // (2 * n)), 1)
    counts = []
    for epoch in cut[np.arange(looked_at) * len(cut) // looked_at] if len(cut) else ():
        before = int(epoch * n % batch_size)  # rows that the batch has of the epoch that ends
        ending = _part(data_seed, int(epoch) - 1, n, slice(n - before, n))
        beginning = _part(data_seed, int(epoch), n, slice(0, batch_size - before))
        counts.append(len(np.intersect1d(ending, beginning)))
    found = [count for count in counts if count]
    share = len(found) / max(len(counts), 1)
    mean = float(np.mean(found)) if found else 0.0
    return Repeats(round(share * len(cut)), mean, exact=len(counts) == len(cut))


def _part(data_seed: int, epoch: int, n: int, part: slice) -> Int[np.ndarray, " m"]:
    """The rows at one end of `order`, themselves in no order: without the sort that it takes."""
    bits = host_bits(data_seed, Purpose.ORDER, Split.TRAIN, epoch, 0).random_raw(n)
    return np.argpartition(bits, part.start or part.stop)[part]


@dataclasses.dataclass(frozen=True)
class _TrainReader:
    """Entries of the training sequence as a batch."""

    source: Source
    data_seed: int

    def __call__(self, entries: np.ndarray) -> Batch:
        rows, epochs = _shuffled(entries, len(self.source), self.data_seed)
        return self.source.gather(rows, epochs)


@dataclasses.dataclass(frozen=True)
class _EvalReader:
    """Rows in order as a batch; entries past the end repeat the last row and are masked."""

    source: Source

    def __call__(self, entries: np.ndarray) -> Batch:
        batch = self.source.gather(np.minimum(entries, len(self.source) - 1))
        return {**batch, "mask": entries < len(self.source)}


@dataclasses.dataclass(frozen=True)
class _Shared:
    """Another reader, whose entries are shared out among threads: for images to be decoded."""

    read: _TrainReader | _EvalReader
    threads: concurrent.futures.Executor
    parts: int

    def __call__(self, entries: np.ndarray) -> Batch:
        parts = np.array_split(entries, min(self.parts, len(entries)))
        read = list(self.threads.map(self.read, parts))
        return jax.tree.map(lambda *rows: np.concatenate(rows), *read)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """The contiguous block that one process reads of each global batch of a sequence of entries."""

    batch_size: int
    process_index: int
    process_count: int

    @property
    def local_size(self) -> int:
        return self.batch_size // self.process_count

    def first(self, step: int) -> int:
        return step * self.batch_size + self.process_index * self.local_size

    def entries(self, step: int) -> np.ndarray:
        return np.arange(self.first(step), self.first(step) + self.local_size)


class Batches(Iterator[Batch]):
    """An iterator that stops its threads and processes when it is closed, dropped or used up.

    A program may also end with it open: by the time the interpreter would collect it, the modules
    that Grain needs to stop its processes are gone, so a finalizer does it before.
    """

    def __init__(
        self,
        dataset: Any,
        threads: concurrent.futures.Executor | None = None,
        processes: bool = False,
    ) -> None:
        """Begins to read.

        Args:
          dataset: the batches, a ``grain.IterDataset``.
          threads: what it reads in besides Grain's own; ended with it.
          processes: whether it reads in other processes.
        """
        self._held = [iter(dataset)]
        self._starts = processes
        self._finalizer = weakref.finalize(self, _close, self._held, threads)

    def __next__(self) -> Batch:
        if not self._held:
            raise StopIteration
        try:
            if not self._starts:
                return next(self._held[0])
            self._starts = False
            with _shielded():  # the first batch is what starts the processes
                return next(self._held[0])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the read; may be called more than once."""
        self._finalizer()


def _close(held: list[Any], threads: concurrent.futures.Executor | None) -> None:
    held.pop().close()
    if threads is not None:
        threads.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _shielded() -> Iterator[None]:
    """Processes that are started within are begun with `SIGNALS` held back from them.

    A terminal and systemd send a signal to all processes of a group, and a worker takes seconds to
    get as far as `_begin_worker`. Threads that are started within pass it on to what they start.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # else the first worker starts it, which unblocks them
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(index: int, count: int) -> None:
    """Leaves it to the parent to stop a worker, by closing its `Batches` or by ending itself."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def train_batches(
    source: Source,
    *,
    data_seed: int,
    batch_size: int,
    start_step: int,
    num_steps: int,
    process_index: int,
    process_count: int,
    prefetch: int = 2,
    workers: int = 0,
) -> Batches:
    """One process's rows of the batches of steps start_step .. num_steps - 1.

    Args:
      source: training examples.
      data_seed: seed of the order.
      batch_size: global batch size B, over all processes.
      start_step: first step to read.
      num_steps: step before which to stop.
      process_index: number of this process.
      process_count: number of processes; each reads B / process_count rows a step.
      prefetch: batches to have ready ahead of the one asked for; 0: none, in the caller's thread.
      workers: processes that read and decode, a batch each, for sources that are not in memory; 0:
        threads that share out each batch. Processes take seconds to start and pay where decoding
        and corruption are held up by Python's lock.

    Returns:
      An iterator of batches as `Source.gather` gives them. Closing or dropping it stops the read.

    Raises:
      UserError: at once, if the batch does not divide over the processes, the source is empty or
        has fewer images than a batch.
    """
    blocks = _blocks(source, batch_size, process_index, process_count)
    check_distinct(source, batch_size)
    read = _TrainReader(source, data_seed)
    return _batches(read, blocks, start_step, num_steps, prefetch, workers)


def check_distinct(source: Source, batch_size: int) -> None:
    """Refuses a training batch that would hold an image twice wherever it lies.

    `train_batches` does so too; a program asks before it makes a directory.

    Args:
      source: training examples.
      batch_size: global batch size.

    Raises:
      UserError: if the batch is larger than the set.
    """
    if batch_size > len(source):
        raise UserError(
            f"--config.batch_size={batch_size} is more than {source.name} has, "
            f"{counted(len(source), 'image')}, so that a batch would hold an image twice: it must "
            f"be at most {len(source)}."
        )


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    process_index: int,
    process_count: int,
    prefetch: int = 2,
    workers: int = 0,
) -> Batches:
    """One process's rows of all examples once, in order, as epoch 0.

    Every process gets the same number of batches of the same size. What the last global batch
    lacks is filled with copies of the last example, for which ``mask`` (bool [B]) is False.

    Args:
      source: the examples.
      batch_size: global batch size, over all processes.
      process_index: number of this process.
      process_count: number of processes.
      prefetch: as in `train_batches`.
      workers: as in `train_batches`.

    Raises:
      UserError: at once, if the batch does not divide over the processes or the source is empty.
    """
    blocks = _blocks(source, batch_size, process_index, process_count)
    num_batches = -(-len(source) // batch_size)
    read = _EvalReader(source)
    return _batches(read, blocks, 0, num_batches, prefetch, workers)


def _blocks(source: Source, batch_size: int, process_index: int, process_count: int) -> _Blocks:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"a batch of {counted(batch_size, 'image')} (--config.batch_size, "
            f"--probe.feature_batch_size) does not divide over {process_count} processes: use a "
            f"multiple of {process_count}."
        )
    if len(source) == 0:
        raise UserError(
            f"{source.name} has no examples: choose another set (--config.data.name), or other "
            "cuts of it."
        )
    return _Blocks(batch_size, process_index, process_count)


def _batches(
    read: _TrainReader | _EvalReader,
    blocks: _Blocks,
    start: int,
    stop: int,
    prefetch: int,
    workers: int,
) -> Batches:
    """Batches ``start`` .. ``stop - 1``, read ahead in threads or processes.

    The batch is Grain's element: one costs about 60 us however trivial it is, and one of another
    process is copied, so that rows as elements would take longer to hand on than small images to
    decode.
    """
    import grain  # here, for a tenth of a second before a program's first word

    cores = os.cpu_count() or 1
    decodes = not read.source.vectorised
    threads: concurrent.futures.Executor | None = None
    reader: Callable[[np.ndarray], Batch] = read
    if decodes and prefetch and not workers:
        threads = concurrent.futures.ThreadPoolExecutor(cores)
        reader = _Shared(read, threads, 4 * cores)
    dataset = grain.MapDataset.range(start, stop).map(lambda k: reader(blocks.entries(k)))
    if not decodes or not workers:
        # Two batches in the making keep the threads busy while one of them is put together.
        making = min(prefetch, 2 if threads else cores)
        options = grain.ReadOptions(making, max(prefetch, making))
        return Batches(dataset.to_iter_dataset(options), threads)
    # Grain asks absl for its own flags, which raises in a program that parses none.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    ahead = max(prefetch // workers, 1)
    options = grain.MultiprocessingOptions(workers, ahead)
    whole = dataset.to_iter_dataset(grain.ReadOptions(0, 0))
    return Batches(whole.mp_prefetch(options, _begin_worker), processes=True)
