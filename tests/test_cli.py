"""What ends a program, in which words and with which status."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest
from ml_collections import ConfigDict

from jaxssl import cli
from jaxssl.errors import UserError, sentence_of
from jaxssl.interruption import Interruption
from jaxssl.training.optim import ParameterGroup

HOUSE = pathlib.Path(__file__).parent.parent
GROUPS = (ParameterGroup(".*", 1.0, True, 1.0, True),)
CONFIG = ConfigDict(
    {
        "seed": 0,
        "hyper": {"temperature": 0.5, "learning_rate": 0.1},
        "flag": True,
        "optimizer": {"groups": GROUPS},
    }
)

# Imports the program once and forks for each command line: one import instead of one each.
ENDS = """
import json, os, runpy, sys, tempfile
import configs.quickstart, jaxssl.pretrain

ends = []
for arguments in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile("w+") as said:
        if (child := os.fork()) == 0:
            os.dup2(said.fileno(), sys.stderr.fileno())
            sys.argv = ["pretrain", *arguments]
            del sys.modules["jaxssl.pretrain"]
            status = 0
            try:
                runpy.run_module("jaxssl.pretrain", run_name="__main__")
            except SystemExit as ended:
                status = ended.code
            except BaseException:
                sys.excepthook(*sys.exc_info())
                status = 1
            sys.stderr.flush()
            os._exit(status)  # an interpreter of so many modules takes long to end
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        ends.append((status, said.read()))
print(json.dumps(ends))
"""


def ends_of(command_lines, workdir):
    """Exit status and standard error of the pretraining program for each command line."""
    lines = [[*line, "--workdir", str(workdir)] for line in command_lines]
    done = subprocess.run(
        [sys.executable, "-c", ENDS, json.dumps(lines)],
        cwd=HOUSE,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HOUSE)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


QUICKSTART = ["--config", "configs/quickstart.py"]
BAD = [
    (["--config", "configs/none.py"], "config file 'configs/none.py' does not exist"),
    (["--config", "configs/quickstart.py:depth=3"], "config argument 'depth' is unknown"),
    (["--config", "configs/quickstart.py:size=big"], "size='big' is not int"),
    ([*QUICKSTART, "--config.hyper.tau=1"], "config.hyper has no 'tau'"),
    ([*QUICKSTART, "--config.seed=x"], "config.seed=x"),
    (
        [*QUICKSTART, "--config.method=byol"],
        "takes no value: give one of them, such as --config.method.name=VALUE (it has head, name).",
    ),
    (["--config", "configs/quickstart.py:size=8,size=16"], "size is given twice, as 8 and as 16"),
    ([*QUICKSTART, "--wrong=1"], "Unknown command line flag 'wrong'"),
    ([], "config"),
    (
        [*QUICKSTART, "--config.optimizer.groups[0][1]=0.5"],
        "--config.optimizer.groups[0][1] is a part of a tuple: give the whole of it, --config.op",
    ),
    (
        [*QUICKSTART, "--config.views.global_crops.crop_scale[0]=0.5"],
        "give the whole of it, --config.views.global_crops.crop_scale='(0.",
    ),
    (["--config", "{recipes}/no_python.py"], "is no recipe: line 2 is no Python ("),
    (["--config", "{recipes}/not_even_text.py"], "is no recipe: "),
    (["--config", "{recipes}/empty.py"], "is no recipe: it has no function get_config; mend it"),
    (
        ["--config", "{recipes}/import_fails.py", "--config.seed=1"],
        "line 1 raises ModuleNotFoundError (No module named 'nothing_of_that_name')",
    ),
    (
        ["--config", "{recipes}/returns_nothing.py"],
        "is no recipe: its get_config returns a NoneType, no ConfigDict",
    ),
    (["--config", "{recipes}/returns_nothing.py:batch=3"], "takes no arguments"),
    (["--config", "{recipes}/wants_a_name.py"], "takes an argument, as in FILE:ARGUMENT"),
    (
        ["--config", "{recipes}/crop_key.py"],
        "--config.views.global_crops.crop_scal is no number of a view",
    ),
    (["--config", "{recipes}/no_count.py"], "config.views.global_crops has no 'count'"),
    (["--config", "{recipes}/no_size.py"], "--config.views.global_crops.size is missing"),
]
CHANGED = """
from configs.quickstart import get_config as quickstart
def get_config():
    config = quickstart("")
    with config.unlocked():
        crops = config.views.global_crops
        {}
    return config
"""
RECIPES = {
    "no_python": "import os\ndef get_config(:\n    pass\n",
    "not_even_text": "\0\0",
    "empty": "",
    "import_fails": "import nothing_of_that_name\n",
    "returns_nothing": "def get_config():\n    pass\n",
    "wants_a_name": "def get_config(name):\n    pass\n",
    "crop_key": CHANGED.format("crops.crop_scal = (0.1, 1.0)"),
    "no_count": CHANGED.format("del crops['count']"),
    "no_size": CHANGED.format("del crops['size']"),
    "key_error": "def get_config():\n    return {}['a mistake']\n",
    "value_error": "def get_config():\n    return int('a mistake')\n",
    "no_file": "def get_config():\n    return open('a mistake')\n",
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What each line of `BAD` ends in, and then the recipes whose author made a mistake."""
    folder = tmp_path_factory.mktemp("recipes")
    for name, text in RECIPES.items():
        (folder / f"{name}.py").write_text(text)
    lines = [arguments for arguments, _ in BAD]
    lines += [["--config", f"{{recipes}}/{name}.py"] for name in MISTAKES]
    lines = [[part.replace("{recipes}", str(folder)) for part in line] for line in lines]
    found = ends_of(lines, folder / "run")
    assert not (folder / "run").exists()
    return found


@pytest.mark.parametrize("number", range(len(BAD)), ids=[" ".join(line) for line, _ in BAD])
def test_bad_command_lines_end_in_one_sentence(number, ends):
    status, said = ends[number]
    assert status == 2, said
    (line,) = [line for line in said.splitlines() if not line.startswith("WARNING:absl:")]
    assert line.startswith("error: ")
    assert BAD[number][1] in line


MISTAKES = {"key_error": "KeyError", "value_error": "ValueError", "no_file": "FileNotFoundError"}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_inside_a_recipe_keeps_its_traceback(name, ends):
    status, said = ends[len(BAD) + list(MISTAKES).index(name)]
    assert status == 1
    assert f'{name}.py", line 2, in get_config' in said
    assert said.strip().splitlines()[-1].startswith(f"{MISTAKES[name]}: ")
    assert "a mistake" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--config.hyper.temprature=1", "did you mean --config.hyper.temperature?"),
        ("--config.hyper.tau=1", "config.hyper has no 'tau': it has learning_rate, temperature."),
        ("--config.hipper.temperature=1", "config has no 'hipper': did you mean --config.hyper?"),
        ("-config.hyper.temprature", "config.hyper has no 'temprature'"),
        ("--noconfig.flog", "config has no 'flog': did you mean --config.flag?"),
        ("--config.seed.x=1", "--config.seed is one value (0) and has no 'x'"),
        ("--config.seed[0]=1", "--config.seed is one value (0) and has no '[0]'"),
        ("--config.=1", "config has no ''"),
        (
            "--config.optimizer.groups[0][1]=2",
            """of it, --config.optimizer.groups='((".*", 1.0, True, 1.0, True),)' with your""",
        ),
        ("--config.hyper.temperature=1", None),
        ("--noconfig.flag", None),
        ("--other.key=1", None),
        ("config.hyper.tau", None),
    ],
)
def test_a_key_that_there_is_not_is_named_with_its_flag(argument, sentence):
    said = cli._unknown_key(["program", argument], {"config": CONFIG})
    assert said == sentence if sentence is None else sentence in said
    assert said is None or "\n" not in said


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "there is no room left at a/b: free some space"),
        (errno.EDQUOT, "there is no room left"),
        (errno.EROFS, "the file system is read-only at a/b"),
        (errno.EACCES, "access is denied at a/b"),
        (errno.ENAMETOOLONG, "a file name is too long at a/b"),
        (errno.EISDIR, "a directory lies where a file should at a/b"),
        (errno.ENOTDIR, "a file lies where a directory should at a/b"),
    ],
)
def test_what_a_file_system_refuses_is_a_sentence(number, sentence):
    status, said = cli._explain(OSError(number, os.strerror(number), "a/b"))
    assert (status, said[: len(sentence)]) == (2, sentence)
    assert sentence_of(OSError(errno.ENXIO, "a defect")) is None
    assert cli._explain(FileNotFoundError(errno.ENOENT, "a defect", "a/b")) == (1, None)


def test_too_little_memory_is_a_sentence():
    status, said = cli._explain(MemoryError("Unable to allocate 931. GiB"))
    assert (status, said.count("\n")) == (2, 0)
    assert "not enough memory on this machine (Unable to allocate 931. GiB): lower " in said
    exhausted = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.\nAllocator: ...")
    status, said = cli._explain(exhausted)
    assert (status, said.count("\n")) == (2, 0)
    assert "not enough memory on the device (RESOURCE_EXHAUSTED: Out of memory): lower " in said
    assert cli._explain(jax.errors.JaxRuntimeError("INTERNAL: a defect")) == (1, None)


def test_the_exit_status_says_what_ended_it():
    interruption = Interruption(active=False)
    interruption.output_closed()
    closed = interruption.stopped(5, saved=True)
    assert cli._explain(closed) == (141, str(closed))
    assert "its standard output was closed: step 5 is saved" in str(closed)
    assert cli._explain(BrokenPipeError(errno.EPIPE, "x"))[0] == 128 + signal.SIGPIPE
    assert cli._explain(KeyboardInterrupt())[0] == 130
    assert cli._explain(UserError("mend this"))[:2] == (2, "mend this")


def test_settings_without_a_file_are_refused_in_a_sentence_too(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jaxssl.linear_probe", "--run", tmp_path, "--probe.protocoll=dino"],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: probe has no 'protocoll': ")
    assert len(done.stderr.splitlines()) == 1


PRINTS = """
from jaxssl import cli
cli.launch(lambda values: [print("line " * 20, flush=True) for _ in range(10**5)])
"""


def test_a_closed_pipe_is_one_sentence_and_no_success():
    with subprocess.Popen(
        [sys.executable, "-c", PRINTS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 141
    assert said == "error: the standard output was closed before the end.\n"
