"""What the tests of metrics share."""

import jax
import pytest


@pytest.fixture(autouse=True)
def quick_compilation():
    """Machine code of small operations need not be fast, and optimising it takes most of a test."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
