import numpy as np
import pytest

from jaxssl.corruptions.apply import Corruptor
from jaxssl.evaluation.conditions import CLEAN, conditions
from jaxssl.randomness import Split


def names(shape, **options):
    return [name for name, _ in conditions(shape, **options)]


def test_the_twelve_of_a_cifar_image():
    assert names((32, 32, 3)) == [
        CLEAN,
        *("global 2", "global 4", "global 8", "local 8", "local 4", "local 2"),
        *("gamma 0.2", "noise 3", "defocus 3", "JPEG 3", "grayscale"),
    ]
    assert len(names((32, 32, 3), every_severity=True)) == 24


def test_only_what_a_size_allows():
    assert names((28, 28, 1)) == [
        *(CLEAN, "global 2", "global 4", "local 4", "local 2"),
        *("gamma 0.2", "noise 3", "defocus 3", "JPEG 3"),
    ]
    assert "global 8" not in names((8, 8, 3))
    assert "local 4" in names((8, 8, 3))


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (8, 8, 1), (224, 224, 3)])
def test_every_condition_but_the_clean_one_changes_the_images(shape):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (2, *shape), dtype=np.uint8)
    batch = {"image": images, "index": np.arange(2), "split": np.full(2, Split.TEST)}
    for name, corruption in conditions(shape):
        found = Corruptor.from_config(corruption).on_host(batch)
        assert found.shape == images.shape
        assert (found == images).all() == (name == CLEAN)
