"""Compilations in less than half the time, for tests of results and not of speed or memory."""

import functools
from collections.abc import Callable

import jax


@functools.cache
def quick() -> dict[str, bool]:
    """Compiler options that make programs of many small operations faster to compile.

    They choose how XLA emits machine code; what it does to the program before that, partitioning
    among devices included, stays. None of them where this version of XLA does not know them.
    """
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def quick_jit(function: Callable) -> Callable:
    """``jax.jit`` with those options."""
    return jax.jit(function, compiler_options=quick())
