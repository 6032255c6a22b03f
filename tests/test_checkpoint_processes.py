"""Checkpoints of processes that are killed, find no room, or save together."""

import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxssl.checkpoint import CheckpointReader, Checkpoints

CHILD = """
import sys, jax, numpy as np
jax.config.update("jax_platforms", "cpu")
from jaxssl.checkpoint import Checkpoints
with Checkpoints(sys.argv[1], keep_last=2, keep_every=0) as checkpoints:
    step = checkpoints.restore(TEMPLATE)[0] if checkpoints.steps() else 0
    while True:
        step += 1
        checkpoints.save(step, jax.tree.map(lambda x: np.full(x.shape, step, x.dtype), TEMPLATE))
        print(step, flush=True)
"""
SHAPES = "TEMPLATE = {n: jax.ShapeDtypeStruct((2**17,), np.float32) for n in 'abcdefgh'}"


@pytest.mark.slow
def test_killed_while_saving_the_newest_finished_checkpoint_is_whole(tmp_path, warnings_logged):
    script = CHILD.replace("with Checkpoints", f"{SHAPES}\nwith Checkpoints", 1)
    rng = np.random.default_rng(0)
    unfinished, last = 0, 0
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(3):
            begun = int(child.stdout.readline())
        time.sleep(rng.uniform(0, 0.05))
        while not any("tmp" in path.name for path in tmp_path.iterdir()):
            pass  # between two saves
        child.send_signal(signal.SIGKILL)
        child.wait()
        begun = max([begun, *map(int, child.stdout.read().split())])
        child.stdout.close()
        unfinished += any("tmp" in path.name for path in tmp_path.iterdir())
        template = {n: jax.ShapeDtypeStruct((2**17,), jnp.float32) for n in "abcdefgh"}
        step, state = CheckpointReader(tmp_path).restore(template)
        # At most the save in flight is lost, and the one that waited for it to end.
        assert max(last, begun - 2) <= step <= begun + 1
        assert all((np.asarray(leaf) == step).all() for leaf in state.values())
        last = step
    assert warnings_logged == []
    assert unfinished > 0


FULL = """
import resource, sys, jax, numpy as np
jax.config.update("jax_platforms", "cpu")
from jaxssl.checkpoint import Checkpoints
from jaxssl.errors import UserError
rng = np.random.default_rng(0)
state = {"w": rng.normal(size=2**18).astype(np.float32)}
checkpoints = Checkpoints(sys.argv[1], keep_last=1, keep_every=0)
checkpoints.save(1, state)
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    checkpoints.save(2, state)
    checkpoints.wait()
except UserError as error:
    print(error)
"""


def test_no_room_is_one_sentence_and_the_earlier_checkpoint_stays(tmp_path):
    """A limit on the size of a file stands in for a full disk: the same path through Orbax."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "there was no room for a checkpoint" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    expected = {"w": np.random.default_rng(0).normal(size=2**18).astype(np.float32)}
    step, state = CheckpointReader(tmp_path).restore(expected)
    assert step == 1
    assert np.asarray(state["w"]).tobytes() == expected["w"].tobytes()
    with Checkpoints(tmp_path, 1, 0) as checkpoints:
        checkpoints.save(2, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


PAIR = """
import sys, jax, numpy as np, jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
process, port, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
from jaxssl.checkpoint import Checkpoints
mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
rows = NamedSharding(mesh, PartitionSpec("data"))
make = jax.jit(lambda k: {"queue": jnp.arange(32.0).reshape(8, 4) * k}, out_shardings=rows)
with Checkpoints(directory, keep_last=2, keep_every=0) as checkpoints:
    for step in (1, 2, 3):
        checkpoints.save(step, make(step))
if process == 0:
    with open(f"{directory}/3/leaves.json", "a") as file:
        file.write(" ")
multihost_utils.sync_global_devices("damaged")
with Checkpoints(directory, keep_last=2, keep_every=0) as checkpoints:
    step, state = checkpoints.restore(make(0))
    assert step == 2
    for shard in state["queue"].addressable_shards:
        expected = np.arange(32.0).reshape(8, 4)[shard.index] * 2
        np.testing.assert_array_equal(shard.data, expected)
    assert len(state["queue"].addressable_shards) == 2
    checkpoints.save(3, make(3))
"""


@pytest.mark.slow
def test_two_processes_save_and_restore_their_shards(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PAIR, str(process), port, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    for child in children:
        said, _ = child.communicate(timeout=120)
        assert child.returncode == 0, said[-3000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "3.damaged"]
    _, state = CheckpointReader(tmp_path).restore({"queue": jnp.zeros((8, 4))})
    np.testing.assert_array_equal(state["queue"], np.arange(32.0).reshape(8, 4) * 3)
