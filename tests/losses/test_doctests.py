"""The docstrings' examples run, and every public loss has one."""

import doctest
import importlib

import pytest
from quick_compilation import at_once

import jaxssl.losses

MODULES = (
    "characteristic",
    "clustering",
    "contrastive",
    "dense",
    "non_contrastive",
    "reconstruction",
    "sliced_wasserstein",
    "transport",
    "uniformity",
)


def collected(module) -> dict[str, doctest.DocTest]:
    """Examples by name of the function they document, found through the import hook's wrappers.

    Each call of a loss in them is one compilation.
    """
    finder = doctest.DocTestFinder(recurse=False)
    functions = {
        name: value
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    }
    compiled = {name: at_once(value) for name, value in functions.items()}
    return {
        name: test
        for name, value in functions.items()
        for test in finder.find(value, name, globs={**vars(module), **compiled})
        if test.examples
    }


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(f"jaxssl.losses.{name}")
    tests = collected(module)
    assert tests
    runner = doctest.DocTestRunner()
    for test in tests.values():
        runner.run(test)
    results = runner.summarize(verbose=False)
    assert results.attempted >= 2 * len(tests)
    assert results.failed == 0


def test_every_public_loss_has_an_example():
    documented = set()
    for name in MODULES:
        documented |= set(collected(importlib.import_module(f"jaxssl.losses.{name}")))
    assert documented == set(jaxssl.losses.__all__)
