"""Processes, meshes and global arrays: the only file that knows there may be more than one device.

One mesh axis, ``data``. Batches are global arrays sharded over it, everything else is replicated,
and the step is one ``jax.jit``: XLA places the collectives.
"""

import collections
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxssl.errors import UserError

T = TypeVar("T")

DATA_AXIS = "data"
SECONDS_TO_ANSWER = 600.0  # how long the processes of a job wait for each other's word
SECONDS_TO_LEAVE = 2.0

_numbers = itertools.count()  # of the exchanges between processes, alike on all of them


def check_launched(distributed: bool, flag: str = "--config.run.distributed") -> None:
    """Raises UserError for one of several processes that were not told to work together.

    Each would train alone, and all write the same files.

    Args:
      distributed: whether the program is about to call `initialize`.
      flag: what the user switches that on with.
    """
    count = os.environ.get("JAX_NUM_PROCESSES", "1")
    if count != "1" and not distributed:
        raise UserError(
            f"{count} processes were started (JAX_NUM_PROCESSES) and were not told to work "
            f"together: add {flag}, or start the program without launch/local.py."
        )


def initialize(flag: str = "--config.run.distributed") -> None:
    """Joins the processes of one job; must run before anything asks for a device.

    On Cloud TPU, GKE, Slurm and under Open MPI the environment says who the others are; elsewhere
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID do, as
    launch/local.py sets them.

    Args:
      flag: what the user switched it on with.

    Raises:
      UserError: if there is no job to join, or it cannot be joined.
    """
    try:
        if "JAX_PROCESS_ID" in os.environ:
            jax.distributed.initialize(
                os.environ["JAX_COORDINATOR_ADDRESS"],
                int(os.environ["JAX_NUM_PROCESSES"]),
                int(os.environ["JAX_PROCESS_ID"]),
            )
        else:
            jax.distributed.initialize()
    except (KeyError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0].rstrip('.')}"
        raise UserError(
            f"{flag} is on but no job of several processes can be joined ({reason}): "
            "start them with launch/local.py, Slurm, Open MPI or on a TPU pod, or leave out "
            f"{flag}."
        ) from error


def is_initialized() -> bool:
    """Whether this process has joined others; asks for no device."""
    return jax.distributed.is_initialized()


def leave(status: int) -> NoReturn:
    """Ends a process that failed, even if others of its job have not."""
    if is_initialized():
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(Exception):
            # The end of process 0 is the end of the others: those that also fail speak first.
            _job().wait_at_barrier("jaxssl: leave", round(1000 * SECONDS_TO_LEAVE))
        # An ordinary exit would first wait for the others, who wait for this one.
        os._exit(status)
    sys.exit(status)


def _job() -> Any:
    """The client of the job's coordination service, which carries words beside the arrays."""
    # JAX has no public way to it. Collectives would do, but they have no time-out, and they need
    # every device of a process to follow those of the process before.
    from jax._src import distributed

    return distributed.global_state.client


def agree(what: str, choose: Callable[[], Any]) -> Any:
    """What process 0 chooses, on every process of the job.

    Every process must call it, in the same order as its other exchanges.

    Args:
      what: what is chosen, for the messages.
      choose: called on process 0 alone; returns what JSON can hold.

    Raises:
      UserError: on every process, if ``choose`` raised one on process 0; on the others also if it
        raised something else, or if process 0 says nothing for `SECONDS_TO_ANSWER`.
    """
    if jax.process_count() == 1:
        return choose()
    number = next(_numbers)
    if jax.process_index() == 0:
        try:
            answer = {"chosen": choose()}
        except BaseException as error:
            _post(number, {"failed": _in_words(what, error)})
            raise
        _post(number, answer)
        return json.loads(json.dumps(answer))["chosen"]
    answer = _read(number, 0, what)
    if "failed" in answer:
        raise UserError(answer["failed"])
    return answer["chosen"]


def gather(what: str, value: Any) -> list[Any]:
    """The values (what JSON can hold) of all processes in their order, on every one of them.

    Raises:
      UserError: if a process says nothing for `SECONDS_TO_ANSWER`.
    """
    if jax.process_count() == 1:
        return [value]
    number = next(_numbers)
    _post(number, value)
    return [_read(number, process, what) for process in range(jax.process_count())]


def all_or_none(what: str, problem: str | None) -> None:
    """Raises UserError on every process if one has a problem, a clause that ends in a remedy."""
    for process, said in enumerate(gather(what, problem)):
        if said is not None:
            raise UserError(f"process {process} of {jax.process_count()} {said}")


def all_can(what: str, do: Callable[[], T]) -> T:
    """What ``do`` returns on this process, once it has returned on all of them.

    Every process must call it, in the same order as its other exchanges; ``do`` exchanges nothing.

    Args:
      what: what is done, for the messages.
      do: may raise, on any process.

    Raises:
      UserError: if ``do`` raised on another process. What it raises here stays as it is.
    """
    if jax.process_count() == 1:
        return do()
    try:
        done = do()
    except Exception as error:
        with contextlib.suppress(UserError):  # the others' word, for one that leaves ends them all
            gather(what, _said_of(what, error))
        raise
    all_or_none(what, None)
    return done


def _said_of(what: str, error: Exception) -> str:
    """A clause for `all_or_none`."""
    if isinstance(error, UserError):
        return f"cannot go on: {error}"
    return f"failed at {what} ({_short(error)}): its own output says more."


def check_equal(
    what: str, value: Any, differences: Callable[[Any, Any], Sequence[str]] | None = None
) -> None:
    """Raises UserError on every process unless all of them have the same value.

    Args:
      what: what the value is, for the message.
      value: what JSON can hold.
      differences: from two values to where they differ, for a value too long to be said.
    """
    values = gather(what, value)
    for process, other in enumerate(values):
        if other == values[0]:
            continue
        told = f"{what} is {values[0]} on process 0 and {other} on process {process}"
        if differences is not None:
            clauses = "; ".join(differences(values[0], other))
            told = f"{what} of process 0 and of process {process} differ ({clauses})"
        raise UserError(
            f"{told}: start all processes with the same command, on storage that all of them share."
        )


def _in_words(what: str, error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"process 0 failed at {what} ({_short(error)}): its own output says more."


def _short(error: BaseException) -> str:
    said = str(error).partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {said}"


def _post(number: int, value: Any) -> None:
    _job().key_value_set(f"jaxssl/{number}/{jax.process_index()}", json.dumps(value))


def _read(number: int, process: int, what: str) -> Any:
    try:
        text = _job().blocking_key_value_get(
            f"jaxssl/{number}/{process}", round(1000 * SECONDS_TO_ANSWER)
        )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"process {jax.process_index()} heard nothing of {what} from process {process} in "
            f"{SECONDS_TO_ANSWER:g} seconds: see that all processes were started with the same "
            "command."
        ) from error
    return json.loads(text)


def say(text: str) -> None:
    """One line for the user, from the first process; it asks for the devices."""
    if jax.process_index() == 0:
        print(text, flush=True)


def data_mesh(num_devices: int = 0, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with one ``data`` axis over all devices, or over the first ``num_devices``.

    Devices are ordered by the process that owns them, then by number: the rows of a batch that a
    process reads are a contiguous block, which its devices must hold.

    Args:
      num_devices: how many of them; 0: all.
      devices: those to choose from, in any order; None: all of the job.

    Raises:
      UserError: if there are fewer devices than asked for, or one process would have fewer of them
        than another: each reads the same share of a batch.
    """
    given = jax.devices() if devices is None else devices
    devices = sorted(given, key=lambda device: (device.process_index, device.id))
    if num_devices < 0:
        raise UserError(
            f"--config.run.num_devices={num_devices} must be a number of devices, or 0 for all."
        )
    if num_devices > len(devices):
        raise UserError(
            f"--config.run.num_devices={num_devices} of {len(devices)} that are visible: lower it, "
            "or give 0 for all."
        )
    chosen = devices[: num_devices or len(devices)]
    owners = collections.Counter(device.process_index for device in chosen)
    shares = [owners[process] for process in range(jax.process_count())]
    if min(shares) < max(shares):
        raise UserError(
            f"{len(chosen)} of {len(devices)} devices give process {shares.index(min(shares))} of "
            f"{len(shares)} a share of {min(shares)} and process {shares.index(max(shares))} one "
            f"of {max(shares)}, and all need the same: give --config.run.num_devices=0 for all "
            "devices, or start fewer processes."
        )
    # Ordinary jitted code raises under the Explicit axes that jax.make_mesh gives by default.
    return Mesh(np.array(chosen), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis is cut over ``data``."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def layout(mesh: Mesh, tree: Any, *, rows: bool = False) -> Any:
    """Where each leaf of a tree lies: the one place that says so.

    Args:
      mesh: the mesh of `data_mesh`.
      tree: arrays or their shapes; only the structure counts.
      rows: the leaves are a batch and lead with its rows, which are cut over ``data``; else they
        are parameters, statistics, queues ..., whole on every device.

    Returns:
      The tree's structure, with a `NamedSharding` for each leaf.
    """
    sharding = sharded(mesh) if rows else replicated(mesh)
    return jax.tree.map(lambda _: sharding, tree)


def templates(mesh: Mesh, tree: Any, *, rows: bool = False) -> Any:
    """`jax.ShapeDtypeStruct` of each leaf, placed by `layout`: what a checkpoint is read into."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        layout(mesh, tree, rows=rows),
    )


def shard_rows(x: Array) -> Array:
    """Asks XLA to keep the leading axis cut over ``data``; the identity outside `on_mesh`.

    Needed after an indexing by a traced order: XLA would leave the result, and so all work on it,
    whole on every device. The numbers would be right, and the work not shared.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(DATA_AXIS))


def row_shards() -> int:
    """Into how many parts `shard_rows` cuts the leading axis, which must be a multiple of it."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[DATA_AXIS]


def on_mesh(function: Callable, mesh: Mesh) -> Callable:
    """``function``, traced where `shard_rows` knows the mesh."""

    def traced(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def check_fits(state: Any, mesh: Mesh) -> None:
    """Refuses a state that a device cannot hold, whatever else has to lie there.

    Args:
      state: pytree of shapes, whole on every device.
      mesh: the devices; those of one kind have the same memory.

    Raises:
      UserError: with both sizes.
    """
    need = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    have = _memory_of(mesh.local_devices[0])
    if have and need > have:
        raise UserError(
            f"the parameters and what the optimizer keeps of them take {need / 1e9:,.0f} GB and a "
            f"{mesh.local_devices[0].device_kind} has {have / 1e9:,.0f} GB: make the encoder or "
            "the head smaller."
        )


def _memory_of(device: Any) -> int:
    """Bytes that a device has; 0: it does not say."""
    if device.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int((device.memory_stats() or {}).get("bytes_limit", 0))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError unless the global batch divides evenly over the ``data`` axis."""
    parts = mesh.shape[DATA_AXIS]
    if batch_size % parts:
        below = max(batch_size // parts, 1) * parts
        raise UserError(
            f"--config.batch_size={batch_size} does not divide over {parts} devices: use a "
            f"multiple of {parts} such as {below}."
        )


def global_batch(mesh: Mesh, local_batch: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of a batch that this process read, as global arrays sharded over ``data``.

    Args:
      mesh: the mesh of `data_mesh`.
      local_batch: NumPy arrays that lead with this process's contiguous block of the batch.
    """
    batch = dict(local_batch)
    return jax.tree.map(
        jax.make_array_from_process_local_data, layout(mesh, batch, rows=True), batch
    )


def fetch(tree: Any) -> Any:
    """Sharded global arrays as NumPy arrays, whole on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
