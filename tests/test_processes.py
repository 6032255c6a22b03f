"""Two processes of one device do what one process of two devices does."""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from kill_and_resume import checkpoint_arrays, metric_rows
from tiny import config_for

from jaxssl.pretrain import pretrain

HOUSE = pathlib.Path(__file__).parent.parent
PROGRAM = """
import pathlib, sys
import jax
from jaxssl import pretrain
from tiny import config_for

workdir = pathlib.Path(sys.argv[1])
config = config_for("moco_v2")
with config.unlocked():
    config.run.stop_step = 6
    config.run.checkpoint_every_steps = 3
    config.run.log_every_steps = 2
    config.run.distributed = True
    config.evals.knn.protocol = "dino"
    config.evals.knn.every = 0.25
pretrain.pretrain(config, workdir)
print("devices", jax.device_count(), jax.local_device_count())
"""


def test_two_processes_equal_one(tmp_path):
    pair, single = tmp_path / "pair", tmp_path / "single"
    done = subprocess.run(
        [sys.executable, "launch/local.py", "2", sys.executable, "-c", PROGRAM, str(pair)],
        cwd=HOUSE,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": f"{HOUSE}:{HOUSE / 'tests'}",
            "JAX_COMPILATION_CACHE_DIR": str(HOUSE / ".jax_cache"),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "devices 2 1" in done.stdout
    config = config_for("moco_v2")
    with config.unlocked():
        config.run.stop_step = 6
        config.run.checkpoint_every_steps = 3
        config.run.log_every_steps = 2
        config.run.num_devices = 2
        config.evals.knn.protocol = "dino"
        config.evals.knn.every = 0.25
    pretrain(config, single)
    ours, theirs = checkpoint_arrays(pair), checkpoint_arrays(single)
    assert ours.keys() == theirs.keys()
    # The same programs on the same shards; only the library that adds the two shares differs.
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)
    rows = [metric_rows(pair), metric_rows(single)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_allclose(a[key], b[key], rtol=1e-4, atol=1e-6, err_msg=key)


WAITS_BUT_FOR_ONE = """
import os, sys, time
sys.exit(3) if os.environ["JAX_PROCESS_ID"] == "1" else time.sleep(60)
"""


def test_a_failing_process_ends_the_job():
    done = subprocess.run(
        [
            sys.executable,
            "launch/local.py",
            "2",
            sys.executable,
            "-c",
            WAITS_BUT_FOR_ONE,
        ],
        cwd=HOUSE,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 3


REFUSES_IN_ONE = """
import sys, time
import jax
from jaxssl import cli, distributed
from jaxssl.errors import UserError

def program(values):
    distributed.initialize()
    jax.devices()
    if jax.process_index() == 1:
        raise {error}
    while True:
        time.sleep(0.1)

cli.launch(program)
"""
# The time of the polite signal is spent to the end, so it is a short one here.
LAUNCHER = "import sys, local; local.SECONDS_TO_STOP = 1.0; sys.exit(local.launch(2, sys.argv[1:]))"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        ("UserError('mend this')", 2, "process 1:\nerror: mend this\n"),
        ("ZeroDivisionError('a defect')", 1, "ZeroDivisionError: a defect\n"),
    ],
    ids=["sentence", "traceback"],
)
def test_a_failure_among_processes_that_have_met_ends_the_job(error, status, said):
    job = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, sys.executable, "-c", REFUSES_IN_ONE.format(error=error)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{HOUSE}:{HOUSE / 'launch'}"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stderr = job.communicate(timeout=60)[1]
    finally:
        if job.poll() is None:  # it hangs, and its processes with it
            os.killpg(job.pid, signal.SIGKILL)
            job.communicate()
    assert job.returncode == status, stderr[-3000:]
    assert said in stderr
