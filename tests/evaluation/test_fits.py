"""What a probe keeps, and when it makes it anew; networks of one line, no training."""

import numpy as np
import pytest

from jaxssl.data.examples import array_source
from jaxssl.distributed import data_mesh
from jaxssl.errors import UserError
from jaxssl.evaluation import probe
from jaxssl.evaluation.fits import Probed
from jaxssl.evaluation.frozen import Network
from jaxssl.evaluation.probe_data import Opening, Part
from jaxssl.evaluation.sections import Predictions
from jaxssl.evaluation.sections.knn import knn, standardised
from jaxssl.evaluation.store import FeatureStore
from jaxssl.randomness import Split


def images_of(batch):
    return batch["image"] / 255.0


def part_of(count, split):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 4, 4, 1), np.uint8)
    labels = {"label": np.arange(count) % 3}
    return Part(array_source("few", split, images, labels, num_classes=3), images_of)


def probed_with(network, store=None, **changes):
    settings = probe.default_config()
    settings.sgd.epochs = 0
    settings.update_from_flattened_dict(changes)
    parts = {
        "train": part_of(30, Split.TRAIN),
        "validation": part_of(6, Split.VALIDATION),
        "test": part_of(6, Split.TEST),
    }
    pair = parts["test"], parts["test"]
    return Probed(
        "trained",
        network,
        "pooled",
        parts,
        Opening.__new__(Opening),  # which nothing here asks
        pair,
        images_of,
        settings,
        data_mesh(1),
        store=store or FeatureStore(None),
    )


def network_of(reduce, computes=""):
    return Network(lambda _, images: {"pooled": reduce(images)}, ({}, {}), computes)


def test_features_and_classifiers_are_of_one_code(tmp_path):
    """Equal arrays, of which there are none here, and another computation."""
    store = FeatureStore(tmp_path)
    mean = probed_with(network_of(lambda x: x.mean(axis=(1, 2)), "mean"), store)
    largest = probed_with(network_of(lambda x: x.max(axis=(1, 2)), "max"), store)
    assert (mean.test.features < largest.test.features).all()
    assert mean._key("lbfgs") != largest._key("lbfgs")


def test_a_constant_component_of_many_images_is_left_out():
    constant = np.full((50_000, 4), 0.1, np.float32)
    for found in standardised(constant, constant[:3] * 2):
        np.testing.assert_array_equal(found, 0)
    varied = np.float32(np.random.default_rng(0).normal(3, 2, (50_000, 4)))
    found, _ = standardised(varied, varied[:1])
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(found.std(axis=0), 1, rtol=1e-4)


def test_few_labels_are_missed_by_the_fit_that_needs_them_alone():
    probed = probed_with(network_of(lambda x: x.mean(axis=(1, 2))), labels_per_class=11)
    predictions = Predictions(np.arange(6), probed.test.labels)
    assert knn(probed, probed.settings, predictions)["as_is"].keys() == {"dino", "solo"}
    with pytest.raises(UserError, match=r"=11 but a class has only 10 train"):
        next(probed.classifiers())
    assert probed.fitted == {}
