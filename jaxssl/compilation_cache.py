"""Compiled programs, kept between starts: the second start of anything compiles nothing."""

import contextlib
import hashlib
import os
import pathlib
import platform

import jax

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
MAX_BYTES = 4 * 2**30
# Below JAX's own second: a start is made of many programs that take a fraction of one.
SECONDS_WORTH_KEEPING = 0.1


def switch_on() -> pathlib.Path | None:
    """Keeps compiled programs in the user's cache directory, unless something else is said.

    What is said is JAX's own variable, ``JAX_COMPILATION_CACHE_DIR``, whose empty value switches
    the cache off, or a directory that was given to JAX in Python. Otherwise it is
    ``$XDG_CACHE_HOME/jaxssl/programs-MACHINE``, with ``~/.cache`` for an unset variable; machines
    of other processors that share a home have directories of their own. Of more than `MAX_BYTES`
    there the oldest files are removed.

    Returns:
      The directory, if it is this one; None where something else was said, or it cannot be written.
    """
    if VARIABLE in os.environ or _given_to_jax() is not None:
        return None
    try:
        folder = _caches() / "jaxssl" / f"programs-{_processor()}"
        folder.mkdir(parents=True, exist_ok=True)
        prune(folder, MAX_BYTES)
    except (OSError, RuntimeError):  # no home, or a read-only one
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS_WORTH_KEEPING)
    return folder


def _given_to_jax() -> str | None:
    return jax.config.jax_compilation_cache_dir


def _caches() -> pathlib.Path:
    given = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The specification: a relative path is to be ignored.
    return given if given.is_absolute() else pathlib.Path.home() / ".cache"


def _processor() -> str:
    """A name for what machine code may use here: XLA's own key does not hold it."""
    told = platform.machine()
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        told += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def prune(folder: pathlib.Path, max_bytes: int) -> None:
    """Removes the files written or read longest ago until the rest take at most ``max_bytes``."""
    found = []
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # another start has removed it
            status = entry.stat()
            found.append((max(status.st_atime, status.st_mtime), status.st_size, entry.path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        total -= size
