"""Compiled programs, kept between starts: the second start of anything compiles nothing."""

import contextlib
import hashlib
import os
import pathlib
import platform

import jax

from jaxssl import kept

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
MAX_BYTES = 4 * 2**30
# Below JAX's own second: a start is made of many programs that take a fraction of one.
SECONDS_WORTH_KEEPING = 0.1


def switch_on() -> pathlib.Path | None:
    """Keeps compiled programs in the user's cache directory, unless something else is said.

    What is said is JAX's own variable, ``JAX_COMPILATION_CACHE_DIR``, whose empty value switches
    the cache off, or a directory that was given to JAX in Python. Otherwise it is a directory of
    `jaxssl.kept`; machines of other processors that share a home have one of their own.

    Returns:
      The directory, if it is this one; None where something else was said, or nothing can be kept.
    """
    if VARIABLE in os.environ or _given_to_jax() is not None:
        return None
    folder = kept.folder(f"programs-{_processor()}", MAX_BYTES)
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS_WORTH_KEEPING)
    return folder


def _given_to_jax() -> str | None:
    return jax.config.values["jax_compilation_cache_dir"]


def _processor() -> str:
    """A name for what machine code may use here: XLA's own key does not hold it."""
    told = platform.machine()
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        told += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(told.encode()).hexdigest()[:8]
