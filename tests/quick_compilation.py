"""Few and quick compilations, for tests of results and not of speed or memory."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


@functools.cache
def quick() -> dict[str, bool | int]:
    """Compiler options that make programs of many small operations faster to compile.

    They choose how XLA emits machine code; what it does to the program before that, partitioning
    among devices included, stays. One that this version of XLA does not know is left out.
    """
    options = {
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }
    known = {}
    for name, value in options.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value})()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


def quick_jit(function: Callable, **options: Any) -> Callable:
    """``jax.jit`` with those compiler options; ``options`` as for ``jax.jit``."""
    return jax.jit(function, compiler_options=quick(), **options)


def once(function: Callable) -> Callable:
    """``functools.cache`` that keeps failures too, or every test would compile the batch again."""

    @functools.cache
    def attempt(*args: Any) -> tuple[Any, Exception | None]:
        try:
            return function(*args), None
        except Exception as error:
            return None, error

    @functools.wraps(function)
    def result(*args: Any) -> Any:
        found, error = attempt(*args)
        if error is not None:
            raise error
        return found

    return result


def at_once(function: Callable) -> Callable:
    """The function in one compilation a call, instead of one for each of its operations.

    Arrays and NumPy's scalars among its arguments are traced, all else is known. Calls with the
    same shapes and the same other arguments share the compilation.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return function(*args, **kwargs)
        traced = tuple(isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves)
        arrays = [leaf for leaf, is_array in zip(leaves, traced, strict=True) if is_array]
        known = tuple(leaf for leaf, is_array in zip(leaves, traced, strict=True) if not is_array)
        # Types too: 1, 1.0 and True are equal.
        kinds = tuple(map(type, known))
        return _program(function, structure, traced, known, kinds)(*arrays)

    return call


@functools.cache
def _program(
    function: Callable, structure: Any, traced: tuple, known: tuple, kinds: tuple
) -> Callable:
    def run(*arrays: Any) -> Any:
        arrays, others = iter(arrays), iter(known)
        leaves = [next(arrays if is_array else others) for is_array in traced]
        args, kwargs = jax.tree.unflatten(structure, leaves)
        return function(*args, **kwargs)

    return quick_jit(run)


class AtOnce:
    """A module whose functions are ``at_once``; all else of it as it is."""

    def __init__(self, module: Any):
        self.module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.module, name)
        return at_once(value) if inspect.isfunction(value) else value
