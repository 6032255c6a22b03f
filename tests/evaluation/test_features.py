import jax
import numpy as np
import pytest

from jaxssl.data.examples import array_source
from jaxssl.distributed import data_mesh
from jaxssl.errors import UserError
from jaxssl.evaluation import features
from jaxssl.evaluation.features import check_finite, extract, whole_batch
from jaxssl.randomness import Split


def numbered(count: int):
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    targets = {"label": np.arange(count) % 3, "presence": np.ones((count, 500), np.int32)}
    return array_source("numbered", Split.TEST, images, targets, num_classes=3)


def test_a_batch_is_under_way_while_the_one_before_is_fetched(monkeypatch):
    """And of the targets nothing but the one asked for goes to a device or comes back."""
    events = []
    fetch = features.fetch

    def fetched(tree):
        events.append(f"fetch {int(np.asarray(tree[0])[0, 0])}")
        return fetch(tree)

    def embed(batch):
        events.append(f"start {int(np.asarray(batch['image']).flat[0])}")
        assert set(batch["targets"]) == {"label"}
        return batch["image"].reshape(-1, 1).astype(np.float32)

    monkeypatch.setattr(features, "fetch", fetched)
    found = extract(embed, numbered(10), mesh=data_mesh(2), batch_size=4)
    assert events == ["start 0", "start 4", "fetch 0", "start 8", "fetch 4", "fetch 8"]
    np.testing.assert_array_equal(found.features[:, 0], np.arange(10))
    np.testing.assert_array_equal(found.labels, np.arange(10) % 3)


def test_a_set_without_the_target_has_no_labels():
    embed = jax.jit(lambda batch: batch["image"].reshape(-1, 1).astype(np.float32))
    found = extract(embed, numbered(3), mesh=data_mesh(1), batch_size=4, target="digit")
    assert found.features.shape == (3, 1)
    assert found.labels.shape == (0,)


def test_features_that_are_no_finite_numbers_are_refused():
    found = features.FeatureSet(np.ones((3, 2), np.float32), np.zeros(0, np.int32))
    check_finite(found, "test image", "--probe.layer")
    found.features[1, 1] = np.inf
    found.features[2] = np.nan
    told = "gives NaN or infinity for 2 of 3 test images: choose another layer by --probe.layer"
    with pytest.raises(UserError, match=told):
        check_finite(found, "test image", "--probe.layer")


def test_a_whole_batch_divides_over_the_mesh():
    assert [whole_batch(n, data_mesh(8)) for n in (1, 8, 9, 100)] == [8, 8, 16, 104]
