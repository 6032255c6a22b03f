"""``--config tests/tiny_config.py:METHOD``: the runs of `tiny` for programs started by tests."""

from ml_collections import ConfigDict
from tiny import config_for


def get_config(method: str) -> ConfigDict:
    config = config_for(method, epochs=15.0)
    with config.unlocked():
        config.run.checkpoint_every_steps = 5
        config.evals.knn.every = 5.0
        config.evals.knn.protocol = "dino"
    return config
