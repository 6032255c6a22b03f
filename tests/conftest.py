"""Test session: 8 virtual CPU devices, run-time shape checks, quick compilation.

`make test` compiles without LLVM's optimisation, which takes a fifth of the time and changes no
mathematics; what XLA does to a program before that, partitioning included, stays. `make test-slow`
compiles as users do, and repeats there what is marked ``shipped``.
"""

import gc
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight devices share the cores: on a busy machine some come so late to a collective that XLA would
# take them for dead and end the process.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_cpu_collective_call_warn_stuck_timeout_seconds=300"
    " --xla_cpu_collective_call_terminate_timeout_seconds=1200"
)
os.environ["JAXSSL_CACHE"] = ""  # what programs keep for their next start; tests start anew
CACHE = pathlib.Path(__file__).parent.parent / ".jax_cache"
OPTION = "jax_disable_most_optimizations"
SECONDS_TO_TRACE_MUCH = 5.0  # forgetting takes half a second itself
PLAIN_CODE = " --xla_cpu_use_fusion_emitters=false"

import jax  # noqa: E402
from absl import logging  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)

# Every annotated function of the package checks its arrays' shapes and dtypes while tests run.
install_import_hook("jaxssl", "beartype.beartype")

from jaxssl import programs  # noqa: E402

gc.set_threshold(100_000, 20, 20)  # as programs have it, see `jaxssl.cli.launch`

# What started the tests may ignore these, as nohup does, and processes would inherit that.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keeps the tests of a file in one process, where they share what they compile."""
    if item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(str(item.path)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Modules stay from here on, and collections after a file need not look them through.

    Without their groups the tests of a file would make what they share in each process.
    """
    gc.freeze()
    grouped = getattr(session.config.option, "loadgroup", False)
    if grouped and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("pytest-xdist keeps no groups with this pytest")


def pytest_configure(config: pytest.Config) -> None:
    if "slow" in config.option.markexpr.replace("not slow", ""):
        return
    jax.config.update(OPTION, True)
    os.environ[OPTION.upper()] = "true"  # of programs that the tests start
    # A flag that this version of XLA does not know would end the session.
    flags = os.environ["XLA_FLAGS"] + PLAIN_CODE
    known = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        check=False,
    )
    if known.returncode == 0:
        os.environ["XLA_FLAGS"] = flags


@pytest.fixture(autouse=True, scope="module")
def nothing_left_traced():
    """Forgets what a file's tests traced: thousands of programs kept slow down each one after."""
    before, begun = jax.config.read(OPTION), time.monotonic()
    yield
    programs.forget()
    assert jax.config.read(OPTION) == before, f"these tests leave {OPTION} otherwise"
    if time.monotonic() - begun > SECONDS_TO_TRACE_MUCH:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def no_program_of_other_code(request):
    """What a test puts in the place of code shows in its own programs and in no others."""
    replaces = "monkeypatch" in request.fixturenames
    if replaces:
        programs.forget()
    yield
    if replaces:
        programs.forget()


@pytest.fixture
def warnings_logged(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    return said


@pytest.fixture
def thorough():
    """Compilation as users have it, whatever the session's."""
    yield from _optimizing(True)


@pytest.fixture
def quickly_compiled():
    """Compilation as `make test` has it, where it takes longer than what is compiled."""
    yield from _optimizing(False)


def _optimizing(fully: bool) -> Iterator[None]:
    before = jax.config.read(OPTION)
    jax.config.update(OPTION, not fully)
    yield
    jax.config.update(OPTION, before)
