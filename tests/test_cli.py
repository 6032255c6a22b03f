"""What ends a program, in which words and with which status."""

import errno
import os
import signal
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from jaxssl import cli
from jaxssl.errors import UserError, sentence_of
from jaxssl.interruption import Interruption

CONFIG = ConfigDict({"seed": 0, "hyper": {"temperature": 0.5, "learning_rate": 0.1}, "flag": True})


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
