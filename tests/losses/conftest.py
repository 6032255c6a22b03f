"""What several files of loss tests share."""

import jax
import pytest
from jaxtyping import config


@pytest.fixture
def own_errors():
    """Without jaxtyping's checks, which would raise before the losses do."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def quick_compilation():
    """Machine code of small operations need not be fast, and optimising it takes most of a test."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
