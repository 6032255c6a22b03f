"""Processes, meshes and global arrays: the only file that knows there may be more than one device.

One mesh axis, ``data``. Batches are global arrays sharded over it, everything else is replicated,
and the step is one ``jax.jit``: XLA places the collectives.
"""

import collections
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxssl.errors import UserError

DATA_AXIS = "data"


def check_launched(distributed: bool) -> None:
    """Raises UserError for one of several processes that were not told to work together.

    Each would train alone, and all write the same files.

    Args:
      distributed: whether the program is about to call `initialize`.
    """
    count = os.environ.get("JAX_NUM_PROCESSES", "1")
    if count != "1" and not distributed:
        raise UserError(
            f"{count} processes were started (JAX_NUM_PROCESSES) but run.distributed is off: add "
            "--config.run.distributed, or start the program without launch/local.py."
        )


def initialize() -> None:
    """Joins the processes of one job; must run before anything asks for a device.

    On Cloud TPU, GKE, Slurm and under Open MPI the environment says who the others are; elsewhere
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID do, as
    launch/local.py sets them.

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
            f"run.distributed is on but no job of several processes can be joined ({reason}): "
            "start them with launch/local.py, Slurm, Open MPI or on a TPU pod, or leave out "
            "--config.run.distributed."
        ) from error


def is_initialized() -> bool:
    """Whether this process has joined others; asks for no device."""
    return jax.distributed.is_initialized()


def leave(status: int) -> NoReturn:
    """Ends a process that failed, even if others of its job have not."""
    if is_initialized():
        # An ordinary exit would first wait for the others, who wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def data_mesh(num_devices: int = 0) -> Mesh:
    """A mesh with one ``data`` axis over all devices, or over the first ``num_devices``.

    Raises:
      UserError: if there are fewer devices than asked for, or one process would have fewer of them
        than another: each reads the same share of a batch.
    """
    devices = jax.devices()
    if num_devices < 0:
        raise UserError(
            f"run.num_devices={num_devices} cannot be: give a number of devices, or 0 for all."
        )
    if num_devices > len(devices):
        raise UserError(
            f"{num_devices} devices were asked for but {len(devices)} are visible: "
            "lower run.num_devices, or 0 for all."
        )
    chosen = devices[: num_devices or len(devices)]
    owners = collections.Counter(device.process_index for device in chosen)
    shares = [owners[process] for process in range(jax.process_count())]
    if min(shares) < max(shares):
        raise UserError(
            f"{len(chosen)} of {len(devices)} devices give process {shares.index(min(shares))} of "
            f"{len(shares)} a share of {min(shares)} and process {shares.index(max(shares))} one "
            f"of {max(shares)}, and all need the same: set run.num_devices=0 for all devices, or "
            "start fewer processes."
        )
    # Ordinary jitted code raises under the Explicit axes that jax.make_mesh gives by default.
    return Mesh(np.array(chosen), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis is cut over ``data``."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def shard_rows(x: Array) -> Array:
    """Asks XLA to keep the leading axis cut over ``data``; the identity outside `on_mesh`.

    Needed after an indexing by a traced order: XLA would leave the result, and so all work on it,
    whole on every device. The numbers would be right, and the work not shared.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(DATA_AXIS))


def on_mesh(function: Callable, mesh: Mesh) -> Callable:
    """``function``, traced where `shard_rows` knows the mesh."""

    def traced(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError unless the global batch divides evenly over the devices."""
    if batch_size % mesh.size:
        below = max(batch_size // mesh.size, 1) * mesh.size
        raise UserError(
            f"batch_size {batch_size} does not divide over {mesh.size} devices: use a multiple "
            f"of {mesh.size} such as {below}."
        )


def global_batch(mesh: Mesh, local_batch: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of a batch that this process read, as global arrays sharded over ``data``.

    Args:
      mesh: the mesh of `data_mesh`.
      local_batch: NumPy arrays that lead with this process's contiguous block of the batch.
    """
    sharding = sharded(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, rows), dict(local_batch)
    )


def fetch(tree: Any) -> Any:
    """Sharded global arrays as NumPy arrays, whole on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def wait_for_all(what: str) -> None:
    """Returns once every process of the job is here, each with the same ``what``."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"jaxssl: {what}")
