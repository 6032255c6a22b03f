"""What programs keep between starts, where, and who is asked."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxssl import compilation_cache, kept
from jaxssl.data import decoded

HOUSE = pathlib.Path(__file__).parent.parent
PROGRAM = """
import jax
from jaxssl import cli
def program(values):
    cli.announce("working")
    jax.jit(lambda x: x * 2 + 1)(3).block_until_ready()
    cli.announce("again")
cli.launch(program)
"""


def started(home, **environment):
    """Lines that a program says with this environment."""
    asked = ("JAX_COMPILATION_CACHE_DIR", "JAXSSL_CACHE", "XDG_CACHE_HOME")
    inherited = {name: value for name, value in os.environ.items() if name not in asked}
    given = {
        "HOME": str(home),
        "PYTHONPATH": str(HOUSE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=inherited | given | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_programs_are_kept_in_the_users_cache_and_that_is_said_once(tmp_path):
    said = started(tmp_path)
    (folder,) = (tmp_path / ".cache" / "jaxssl").iterdir()
    assert said == [
        "working",
        f"compiled programs are kept in {folder} (JAX_COMPILATION_CACHE_DIR= switches that off)",
        "again",
    ]
    assert list(folder.iterdir())


@pytest.mark.parametrize("chosen", ["", "chosen"])
def test_what_jax_is_told_is_done(tmp_path, chosen):
    folder = tmp_path / chosen if chosen else ""
    given = {compilation_cache.VARIABLE: str(folder)}
    assert started(tmp_path, **given) == ["working", "again"]
    assert not (tmp_path / ".cache").exists()
    assert not chosen or list(folder.iterdir())


def test_a_directory_given_to_jax_in_python_stays(monkeypatch, tmp_path):
    monkeypatch.setenv(kept.VARIABLE, str(tmp_path))
    monkeypatch.delenv(compilation_cache.VARIABLE, raising=False)
    assert compilation_cache._given_to_jax()  # by conftest.py
    assert compilation_cache.switch_on() is None
    assert not list(tmp_path.iterdir())


def folder_with(monkeypatch, **environment):
    for name in (kept.VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return kept.folder("x", 100)


def test_where_the_cache_is(monkeypatch, tmp_path):
    home = {"HOME": f"{tmp_path}/home"}
    assert folder_with(monkeypatch, **home) == tmp_path / "home/.cache/jaxssl/x"
    there = {**home, "XDG_CACHE_HOME": f"{tmp_path}/there"}
    assert folder_with(monkeypatch, **there) == tmp_path / "there/jaxssl/x"
    relative = {**home, "XDG_CACHE_HOME": "there"}
    assert folder_with(monkeypatch, **relative) == tmp_path / "home/.cache/jaxssl/x"
    own = {**there, kept.VARIABLE: f"{tmp_path}/own"}
    assert folder_with(monkeypatch, **own) == tmp_path / "own/x"
    assert folder_with(monkeypatch, **{kept.VARIABLE: ""}) is None


def test_where_nothing_can_be_kept_nothing_is(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    assert folder_with(monkeypatch, XDG_CACHE_HOME=f"{tmp_path}/file") is None


def test_the_oldest_entries_make_room(tmp_path):
    for number in range(5):
        path = tmp_path / str(number)
        if number == 1:
            path.mkdir()
            (path / "inside").write_bytes(bytes(10))
        else:
            path.write_bytes(bytes(10))
        os.utime(path, (number, number))
    os.utime(tmp_path / "0", (9, 0))  # written first, and read since
    kept.prune(tmp_path, 35)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "3", "4"]
    kept.prune(tmp_path, 35)
    assert len(list(tmp_path.iterdir())) == 3


# Decoded images.


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv(kept.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


def test_arrays_are_kept_whole_or_not_at_all(cache, monkeypatch):
    arrays = {"images": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": np.arange(3)}
    assert decoded.read("key") is None
    decoded.keep("key", arrays)
    decoded.keep("key", arrays)  # another start that was as fast
    assert [path.name for path in cache.iterdir()] == ["key"]
    found = decoded.read("key")
    assert found.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)
    (cache / "key" / "images.npy").write_bytes(b"")
    assert decoded.read("key") is None
    assert not list(cache.iterdir())

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    decoded.keep("key", arrays)
    assert not list(cache.iterdir())
    monkeypatch.setenv(kept.VARIABLE, "")
    decoded.keep("key", arrays)
    assert decoded.read("key") is None
