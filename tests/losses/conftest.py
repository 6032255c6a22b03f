"""What several files of loss tests share."""

import pytest
from jaxtyping import config


@pytest.fixture
def own_errors():
    """Without jaxtyping's checks, which would raise before the losses do."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
