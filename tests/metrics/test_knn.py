import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import unchecked

from jaxssl.metrics import knn
from jaxssl.metrics.knn import (
    PROTOCOLS,
    KnnProtocol,
    knn_accuracy,
    knn_predict,
    knn_predictions,
)


def reference(bank, labels, queries, k, temperature):
    """Wu et al. 2018, one query at a time, in float64."""
    bank, queries = np.float64(bank), np.float64(queries)
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    predicted = []
    for query in queries:
        similarity = bank @ (query / np.linalg.norm(query))
        nearest = np.argsort(-similarity, kind="stable")[:k]
        votes = np.zeros(labels.max() + 1)
        for i in nearest:
            votes[labels[i]] += np.exp(similarity[i] / temperature)
        predicted.append(int(np.argmax(votes)))
    return np.array(predicted)


def make(n, q, d=6, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, d))
    labels, truth = rng.integers(0, classes, n), rng.integers(0, classes, q)
    bank = (centres[labels] + 1.5 * rng.normal(size=(n, d))) * rng.uniform(0.1, 10, (n, 1))
    queries = (centres[truth] + 1.5 * rng.normal(size=(q, d))) * rng.uniform(0.1, 10, (q, 1))
    return np.float32(bank), np.int32(labels), np.float32(queries), np.int32(truth)


@pytest.mark.parametrize("name", ["moco", "dino", "simsiam"])
def test_named_protocols_agree_with_the_formula(name):
    k, temperature = {"moco": (200, 0.1), "dino": (20, 0.07), "simsiam": (200, 0.2)}[name]
    assert PROTOCOLS[name] == (k, temperature)
    bank, labels, queries, truth = make(331, 75)
    expected = reference(bank, labels, queries, k, temperature)
    found = knn_predict(bank, labels, queries, protocol=name, block_size=32)
    np.testing.assert_array_equal(found, expected)
    accuracy = knn_accuracy(bank, labels, queries, truth, protocol=name)
    assert accuracy == np.mean(expected == truth)
    assert 0.3 < accuracy < 0.9


def test_protocols_differ_and_the_data_tells_them_apart():
    bank, labels, queries, _ = make(331, 400, seed=3)
    found = [np.asarray(knn_predict(bank, labels, queries, protocol=p)) for p in PROTOCOLS]
    assert (found[0] != found[1]).any()
    assert (found[0] != found[2]).any()


@pytest.mark.parametrize("block_size", [1, 7, 64, 1000])
def test_blocks_change_nothing(block_size):
    bank, labels, queries, _ = make(97, 64)
    protocol = KnnProtocol(9, 0.1)
    whole = knn_predict(bank, labels, queries, protocol=protocol, block_size=64)
    found = knn_predict(bank, labels, queries, protocol=protocol, block_size=block_size)
    np.testing.assert_array_equal(found, whole)


def test_global_arrays_over_eight_devices_give_the_same():
    bank, labels, queries, _ = make(96, 40)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    found = knn_predict(
        *(jax.device_put(x, rows) for x in (bank, labels, queries)), protocol=KnnProtocol(5, 0.1)
    )
    expected = reference(bank, labels, queries, 5, 0.1)
    np.testing.assert_array_equal(found, expected)


def test_rows_are_not_sorted_whole():
    """XLA turns top_k into a sort, 14 times slower, if the program slices what it returns."""
    bank, labels, queries, _ = make(300, 20)
    settings = {"ks": (20, 7), "euclidean": False, "num_classes": 5, "block_size": 10}
    arrays = map(jnp.asarray, (bank, labels, queries))
    lowered = knn._predict.lower(*arrays, (0.1, 0.2), **settings)
    compiled = lowered.compile().as_text()
    assert "TopK" in compiled
    assert " sort(" not in compiled


def test_the_weight_decides_not_the_count():
    """Two far neighbours of class 1 lose against one near neighbour of class 0 when T is low."""
    bank = np.float32([[1, 0], [0.6, 0.8], [0.6, -0.8]])
    labels, query = np.int32([0, 1, 1]), np.float32([[2.0, 0.0]])
    # votes: e^(1/T) against 2 e^(.6/T): equal at T = .4 / log 2 = .577
    assert knn_predict(bank, labels, query, protocol=KnnProtocol(3, 0.5))[0] == 0
    assert knn_predict(bank, labels, query, protocol=KnnProtocol(3, 0.7))[0] == 1
    assert knn_predict(bank, labels, query, protocol=KnnProtocol(3, 1e-3))[0] == 0


def test_ties_go_to_the_lower_class_and_the_earlier_image():
    bank = np.float32([[1, 0], [1, 0], [1, 0]])
    query = np.float32([[3.0, 0.0]])
    assert knn_predict(bank, np.int32([2, 1, 0]), query, protocol=KnnProtocol(2, 0.1))[0] == 1
    assert knn_predict(bank, np.int32([2, 1, 0]), query, protocol=KnnProtocol(1, 0.1))[0] == 2


def test_classes_come_from_the_training_labels():
    bank, labels, queries, truth = make(60, 30, classes=3)
    found = knn_predict(bank, labels, queries, protocol=KnnProtocol(5, 0.1))
    unseen = np.where(truth == 1, 7, truth)
    accuracy = knn_accuracy(bank, labels, queries, unseen, protocol=KnnProtocol(5, 0.1))
    assert accuracy == np.mean(np.asarray(found) == unseen)
    assert accuracy < knn_accuracy(bank, labels, queries, truth, protocol=KnnProtocol(5, 0.1))


def test_a_zero_feature_is_no_nan():
    bank, labels, queries, _ = make(20, 4)
    bank[3] = 0
    found = knn_predict(bank, labels, queries, protocol=KnnProtocol(20, 0.1))
    assert set(np.asarray(found)) <= set(range(5))


@pytest.mark.parametrize("scale", [1e-22, 1e20])
def test_the_scale_of_the_features_is_none_of_its_business(scale):
    bank, labels, queries, _ = make(97, 40)
    expected = knn_predict(bank, labels, queries, protocol=KnnProtocol(9, 0.1))
    scaled = np.float32(scale) * bank, labels, np.float32(scale) * queries
    found = knn_predict(*scaled, protocol=KnnProtocol(9, 0.1))
    np.testing.assert_array_equal(found, expected)


def test_bad_arguments_are_refused():
    predict, accuracy = unchecked(knn_predict), unchecked(knn_accuracy)
    bank, labels, queries, truth = make(30, 4)
    with pytest.raises(ValueError, match=r"k=200 .* bank has 30"):
        predict(bank, labels, queries, protocol="moco")
    with pytest.raises(ValueError, match="'mocov9' is unknown"):
        predict(bank, labels, queries, protocol="mocov9")
    with pytest.raises(ValueError, match="temperature=0"):
        predict(bank, labels, queries, protocol=KnnProtocol(3, 0.0))
    with pytest.raises(ValueError, match="label -1"):
        predict(bank, labels - 1, queries, protocol=KnnProtocol(3, 0.1))
    with pytest.raises(ValueError, match="no query"):
        accuracy(bank, labels, queries[:0], truth[:0], protocol=KnnProtocol(3, 0.1))
    assert predict(bank, labels, jnp.zeros((0, 6)), protocol=KnnProtocol(3, 0.1)).shape == (0,)


def euclidean_reference(bank, labels, queries, k):
    predicted = []
    for query in np.float64(queries):
        distance = np.linalg.norm(np.float64(bank) - query, axis=1)
        nearest = np.argsort(distance, kind="stable")[:k]
        votes = np.zeros(labels.max() + 1)
        np.add.at(votes, labels[nearest], 1 / (distance[nearest] + 1e-5))
        predicted.append(int(np.argmax(votes)))
    return np.array(predicted)


def test_solo_learns_protocol_is_euclidean():
    bank, labels, queries, _ = make(331, 75)
    found = knn_predict(bank, labels, queries, protocol="solo", block_size=32)
    np.testing.assert_array_equal(found, euclidean_reference(bank, labels, queries, 20))
    # Far from the origin, where squared lengths alone would have no digits left; and a query that
    # lies in the bank.
    far = np.float32(1000)
    found = knn_predict(
        bank + far, labels, np.concatenate([bank[:9], queries]) + far, protocol="solo"
    )
    assert (found[:9] == labels[:9]).all()
    expected = euclidean_reference(bank + far, labels, queries + far, 20)
    np.testing.assert_array_equal(found[9:], expected)


def test_all_protocols_in_one_pass_are_each_alone():
    bank, labels, queries, _ = make(331, 75)
    found = knn_predictions(bank, labels, queries, block_size=32)
    assert found.keys() == PROTOCOLS.keys()
    for name in PROTOCOLS:
        np.testing.assert_array_equal(
            found[name], knn_predict(bank, labels, queries, protocol=name, block_size=32)
        )
