"""Two processes of two devices do what one process of four does, and fail together."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from kill_and_resume import assert_identical, checkpoint_arrays, metric_rows
from old_run import copied
from test_evaluate import asked
from tiny import config_for

from jaxssl.distributed import data_mesh, global_batch
from jaxssl.evaluate import evaluate
from jaxssl.evaluation.card import ALL
from jaxssl.losses import nt_xent
from jaxssl.pretrain import pretrain

HOUSE = pathlib.Path(__file__).parent.parent
SETTINGS = {
    "run.stop_step": 6,
    "run.checkpoint_every_steps": 3,
    "run.log_every_steps": 2,
    "run.save_every_minutes": 1e-9,  # with each row of a job: steps 2, 4 and 6
    "evals.knn.protocol": "dino",
    "evals.knn.every": 0.25,
}
PROGRAM = """
import pathlib, shutil, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
from jaxssl import pretrain
from test_processes import SETTINGS
from tiny import config_for

config = config_for("moco_v2")
with config.unlocked():
    config.update_from_flattened_dict(SETTINGS | {"run.distributed": True})
pretrain.distributed.initialize()
pretrain.distributed.initialize = lambda: None  # once a process, and here are several runs
pair, parts = map(pathlib.Path, sys.argv[1:])
pretrain.pretrain(config, pair)
print("devices", jax.device_count(), jax.local_device_count())
if jax.process_index() == 0:  # as if it had been killed before the last save
    shutil.copytree(pair, parts)
    shutil.rmtree(parts / "checkpoints" / "6")
pretrain.distributed.gather("copied", None)
pretrain.pretrain(config, parts)
"""


def run_pair(program: str, *arguments: object, timeout: float = 300) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "launch/local.py", "2", sys.executable, "-c", program]
        + [str(argument) for argument in arguments],
        cwd=HOUSE,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": f"{HOUSE}:{HOUSE / 'tests'}",
            "JAX_COMPILATION_CACHE_DIR": str(HOUSE / ".jax_cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        },
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.slow
def test_two_processes_equal_one_and_resume(tmp_path):
    pair, parts, single = tmp_path / "pair", tmp_path / "parts", tmp_path / "single"
    done = run_pair(PROGRAM, pair, parts)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "devices 4 2" in done.stdout
    assert f"resuming {parts} from step 4 of 6" in done.stdout
    assert_identical(parts, pair)  # to the bit: the same processes
    config = config_for("moco_v2")
    with config.unlocked():
        config.update_from_flattened_dict(SETTINGS | {"run.num_devices": 4})
    pretrain(config, single)
    ours, theirs = checkpoint_arrays(pair), checkpoint_arrays(single)
    assert ours.keys() == theirs.keys()
    # The same programs on the same shards; only the library that adds the shares differs.
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)
    rows = [metric_rows(pair), metric_rows(single)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_allclose(a[key], b[key], rtol=1e-4, atol=1e-6, err_msg=key)


FAILS_TOGETHER = """
import json, pathlib, shutil, sys, time, types
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from jaxssl import distributed, embed, evaluate, linear_probe, pretrain, run_directory
from jaxssl.checkpoint import Checkpoints
from jaxssl.errors import UserError
from jaxssl.losses import nt_xent
from test_processes import rows_and_weights
from tiny import config_for

distributed.initialize()
folder, me = pathlib.Path(sys.argv[1]), jax.process_index()
said = {}

def note(name, function):
    begun = time.monotonic()
    try:
        said[name] = ["returned", function()]
    except (UserError, ZeroDivisionError) as error:
        said[name] = ["refused", str(error)]
    said[name].append(time.monotonic() - begun)

# The devices of both processes, interleaved as some TPU topologies list them.
a, b, c, d = jax.devices()
mesh = distributed.data_mesh(devices=[c, a, d, b])
rows, weights = rows_and_weights()
batch = distributed.global_batch(mesh, jax.tree.map(lambda x: np.split(x, 2)[me], rows))
gradient = jax.jit(jax.grad(lambda w, x: nt_xent(x["a"] @ w, x["b"] @ w, temperature=0.5)))
said["order"] = np.asarray(distributed.fetch(batch["index"])).tolist()
said["gradient"] = np.asarray(gradient(weights, batch)).tolist()

# Two listings that differ: process 1 lacks the newest step, or has all that process 0 has.
state = jax.tree.map(
    lambda s: jax.jit(lambda: jnp.arange(8.0), out_shardings=s)(),
    distributed.layout(mesh, {"w": 0}),
)
with Checkpoints(folder / "listing", 5, 0) as checkpoints:
    for step in (3, 6):
        checkpoints.save(step, state)
if me == 1:
    shutil.copytree(folder / "listing" / "3", folder / "other" / "3")
distributed.gather("copied", None)

def restore(names):
    found = Checkpoints(folder / names[me], 5, 0).restore_newest(state)
    return found and found[0]

note("differing", lambda: restore(["listing", "other"]))
note("lagging", lambda: restore(["other", "listing"]))
note("none", lambda: restore(["empty", "listing"]))
if me == 0:
    for step in (3, 6):
        (folder / "listing" / str(step) / "manifest.json").write_text("{")
note("damaged", lambda: restore(["listing", "listing"]))
note("steps", lambda: distributed.check_equal("the step to begin at", 3 * me))

# A run directory that the processes do not share, and one that another start owns.
def own(path):
    with run_directory.owned(path):
        pass

run_directory.SECONDS_TO_SEE = 1.0
note("unshared", lambda: own(folder / f"disk{me}" / "run"))
note("shared", lambda: own(folder / "run"))
(folder / "foreign").mkdir(exist_ok=True)
(folder / "foreign" / "thesis.tex").touch()
note("foreign", lambda: own(folder / "foreign"))

# Bad input on one host alone: the programs, as far as the data.
def bad_on_1(*_):
    if me == 1:
        raise UserError("--config.data.data_dir=/x does not exist: name another.")

distributed.initialize = lambda *_: None  # once a process
pretrain.make_plan = embed._opened = linear_probe.check_data = evaluate.check_data = bad_on_1
config = config_for("simclr")
with config.unlocked():
    config.run.distributed = True
note("pretrain", lambda: pretrain.pretrain(config, folder / "never"))
note("embed", lambda: embed.embed(folder, None, None, types.SimpleNamespace(name="")))
job = linear_probe.probe.default_config()
job.distributed = True
asked = dict(run=str(folder), data_dir="", digits_dir="", data=None)
note("linear_probe", lambda: linear_probe._main(types.SimpleNamespace(probe=job, **asked)))
flags = dict(run=[str(folder)], step=None, watch=False, sections=["knn"], all=False, refit=False)
flags |= dict(baselines=True, supervised="", keep_features=True, out="", probe=job, data=None)
flags |= dict(data_dir="", digits_dir="")
note("evaluate", lambda: evaluate._main(types.SimpleNamespace(**flags)))
said["made"] = (folder / "never").exists()
note("one divides", lambda: distributed.all_can("the division", lambda: 1 // me))
note("all can", lambda: distributed.all_can("the division", lambda: 1 // (1 + me)))
note("defect", lambda: distributed.agree("the division", lambda: 1 // 0))
(folder / f"said{me}.json").write_text(json.dumps(said))
"""


def rows_and_weights():
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=(16, 6)).astype(np.float32) for name in ("a", "b")}
    rows["index"] = np.arange(16, dtype=np.int32)
    return rows, rng.normal(size=(6, 4)).astype(np.float32)


@pytest.mark.slow
def test_processes_that_cannot_agree_all_end_in_the_same_sentence(tmp_path):
    done = run_pair(FAILS_TOGETHER, tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    both = [json.loads((tmp_path / f"said{process}.json").read_text()) for process in range(2)]
    rows, weights = rows_and_weights()
    mesh = data_mesh(4)
    gradient = jax.jit(jax.grad(lambda w, x: nt_xent(x["a"] @ w, x["b"] @ w, temperature=0.5)))
    expected = gradient(weights, global_batch(mesh, rows))
    for said in both:
        assert said["order"] == list(range(16))
        np.testing.assert_allclose(said["gradient"], expected, rtol=1e-5, atol=1e-7)
    refusals = {
        "differing": r"process 1 of 2 does not see .*other/6, which process 0 chose: .* share",
        "damaged": r"listing has 2 checkpoints and none that is sound",
        "steps": "the step to begin at is 0 on process 0 and 3 on process 1",
        "unshared": r"process 1 of 2 does not see in .*disk1/run what process 0 wrote .* share",
        "foreign": "is not empty and no run of jaxssl",
    }
    for name, sentence in refusals.items():
        for said in both:
            outcome, text, seconds = said[name]
            assert outcome == "refused", (name, text)
            assert re.search(sentence, text), text
            assert seconds < 10
        assert both[0][name][1] == both[1][name][1]
    for name in ("pretrain", "embed", "linear_probe", "evaluate"):
        flag = "--data_dir" if name == "embed" else "--config.data.data_dir"  # as it may be given
        missing = f"{flag}=/x does not exist: name another."
        assert both[1][name][:2] == ["refused", missing]
        assert both[0][name][:2] == ["refused", f"process 1 of 2 cannot go on: {missing}"]
        assert max(said[name][2] for said in both) < 10
    assert [said["made"] for said in both] == [False, False]
    assert "integer division" in both[0]["one divides"][1]
    assert re.search(
        r"^process 0 of 2 failed at the division \(ZeroDiv.*own output", both[1]["one divides"][1]
    )
    assert [said["all can"][:2] for said in both] == [["returned", 1], ["returned", 0]]
    assert "integer division" in both[0]["defect"][1]
    assert re.search(
        r"process 0 failed at the division \(ZeroDivisionError: integer", both[1]["defect"][1]
    )
    for said in both:
        assert said["lagging"][:2] == ["returned", 3]
        assert said["none"][:2] == ["returned", None]
        assert said["shared"][:2] == ["returned", None]


EVALUATES = """
import pathlib, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
from jaxssl import distributed
from test_evaluate import asked
from jaxssl.evaluate import evaluate
from jaxssl.evaluation.card import ALL

distributed.initialize()
evaluate(pathlib.Path(sys.argv[1]), None, asked(ALL, feature_batch_size=100))
"""


@pytest.mark.slow
def test_two_processes_evaluate_as_one(tmp_path):
    """Every section; a program for each of a dozen fits and as many metrics takes its time."""
    pair = copied("simclr", tmp_path / "pair")
    done = run_pair(EVALUATES, pair)
    assert done.returncode == 0, done.stderr[-3000:]
    single = copied("simclr", tmp_path / "single")
    alone = evaluate(single, None, asked(ALL)).content["sections"]
    (folder,) = (pair / "evaluations").glob("evaluate-*")
    together = json.loads((folder / "card.json").read_text())["sections"]
    assert together.keys() == alone.keys()
    for section in ("geometry", "alignment", "dense"):
        for network, found in alone[section].items():
            for name in {"uniformity", "l_a", "l_u"} & set(found):
                np.testing.assert_allclose(
                    together[section][network][name]["value"], found[name]["value"], rtol=1e-4
                )
    for network, rows in alone["fingerprint"].items():
        for condition, row in rows.items():
            other = together["fingerprint"][network][condition]
            # A sum in another order may move an image that lies on a border.
            assert abs(other["accuracy"]["value"] - row["accuracy"]["value"]) <= 2 / 360
    assert together["knn"] == alone["knn"]


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["0", "true"], "usage: "), (["2", "no/such"], "no/such is no program here: ")],
)
def test_a_job_that_cannot_be_started_is_refused_in_one_line(arguments, said):
    command = [sys.executable, "launch/local.py", *arguments]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


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


@pytest.mark.slow
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
