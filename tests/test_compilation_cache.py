"""Where compiled programs are kept, and who is asked."""

import os
import pathlib
import subprocess
import sys

import pytest

from jaxssl import compilation_cache
from jaxssl.compilation_cache import VARIABLE, prune

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
    inherited = {name: value for name, value in os.environ.items() if name != VARIABLE}
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


def test_the_users_cache_directory_is_used_and_said_once(tmp_path):
    said = started(tmp_path)
    (folder,) = (tmp_path / ".cache" / "jaxssl").iterdir()
    assert said == [
        "working",
        f"compiled programs are kept in {folder} (JAX_COMPILATION_CACHE_DIR= switches that off)",
        "again",
    ]
    assert list(folder.iterdir())


@pytest.mark.parametrize("chosen", ["", "chosen"])
def test_what_the_variable_says_is_done(tmp_path, chosen):
    folder = tmp_path / chosen if chosen else ""
    assert started(tmp_path, **{VARIABLE: str(folder)}) == ["working", "again"]
    assert not (tmp_path / ".cache").exists()
    assert not chosen or list(folder.iterdir())


def switched_on(monkeypatch, **environment):
    """What `switch_on` says here, where JAX was given no directory; nothing is switched."""
    given = {}
    monkeypatch.setattr(compilation_cache.jax.config, "update", given.__setitem__)
    monkeypatch.setattr(compilation_cache, "_given_to_jax", lambda: None)
    monkeypatch.delenv(VARIABLE, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return compilation_cache.switch_on(), given


def test_xdg_cache_home_is_respected_where_it_is_absolute(monkeypatch, tmp_path):
    folder, given = switched_on(monkeypatch, XDG_CACHE_HOME=f"{tmp_path}/there")
    assert folder.parent == tmp_path / "there" / "jaxssl"
    assert given["jax_compilation_cache_dir"] == str(folder)
    home = {"HOME": f"{tmp_path}/home", "XDG_CACHE_HOME": "there"}
    assert switched_on(monkeypatch, **home)[0].is_relative_to(tmp_path / "home" / ".cache")


def test_where_nothing_can_be_kept_nothing_is(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    assert switched_on(monkeypatch, XDG_CACHE_HOME=f"{tmp_path}/file") == (None, {})


def test_the_oldest_programs_make_room(tmp_path):
    for number in range(4):
        path = tmp_path / str(number)
        path.write_bytes(bytes(10))
        os.utime(path, (number, number))
    os.utime(tmp_path / "0", (9, 0))  # written first, and read since
    prune(tmp_path, 25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "3"]
    prune(tmp_path, 25)
    assert len(list(tmp_path.iterdir())) == 2
