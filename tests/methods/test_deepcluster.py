"""DeepCluster-v2: k-means against NumPy on any number of devices, labels by sample index."""

import fractions
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crops import (
    BATCH,
    EXAMPLES,
    GLOBAL,
    VIEWS,
    embedded,
    features_of,
    keys_of,
    method_of,
    softmax,
    step,
    unit,
    views_of,
)
from flax import nnx
from tiny import config_for

from jaxssl.distributed import data_mesh, on_mesh, replicated
from jaxssl.errors import UserError
from jaxssl.methods import Spec, build_method
from jaxssl.methods.kmeans import spherical_kmeans

SETTINGS = {"num_prototypes": 4, "num_clusterings": 3, "kmeans_iterations": 5}
HYPER = {"temperature": 0.1}
COUNT = 6


def points(seed=0, missing=3, n=61):
    """Unit vectors that lie in three heaps, and rows of zeros between them."""
    draw = np.random.default_rng(seed)
    heaps = draw.normal(size=(3, 5))
    x = unit(heaps[draw.integers(0, 3, n)] + 0.4 * draw.normal(size=(n, 5)))
    x[draw.permutation(n)[:missing]] = 0
    return x


def reference(x, key, count=COUNT, iterations=4):
    """A centroid after the other, from the vectors that the key draws first."""
    known = np.any(x != 0, axis=1)
    order = np.where(known, np.asarray(jax.random.uniform(key, (len(x),))), -1)
    centroids = x[np.argsort(-order)[:count]].copy()
    for _ in range(iterations):
        nearest = np.argmax(x @ centroids.T, axis=1)
        for k in range(count):
            members = x[known & (nearest == k)]
            if len(members):
                centroids[k] = unit(members.mean(axis=0))
    return centroids, np.where(known, np.argmax(x @ centroids.T, axis=1), -1)


@functools.cache
def clustered(devices):
    """Centroids, labels and FLOPs a device."""
    with jax.enable_x64(True):
        mesh = data_mesh(devices)
        cluster = functools.partial(spherical_kmeans, count=COUNT, iterations=4)
        jitted = jax.jit(on_mesh(cluster, mesh), out_shardings=replicated(mesh))
        compiled = jitted.lower(points(), jax.random.key(7)).compile()
        found = jax.device_get(compiled(points(), jax.random.key(7)))
        return *found, compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_kmeans_is_the_listing_on_any_number_of_devices(devices):
    with jax.enable_x64(True):
        centroids, labels = reference(points(), jax.random.key(7))
    assert (labels == -1).sum() == 3
    assert len(set(labels[labels >= 0])) > 2
    ours = clustered(devices)
    np.testing.assert_array_equal(ours[1], labels)
    np.testing.assert_allclose(ours[0], centroids, rtol=1e-12)
    assert ours[1].dtype == np.int32


def test_devices_share_the_work_of_kmeans():
    """All but what is done with centroids, of which each device has all; unshared would be 8.

    Eight of 61 rows a device; a loop's FLOPs are counted once, here as there.
    """
    assert clustered(8)[2] <= 1.5 * clustered(1)[2] / 8


def test_a_centroid_without_members_stays():
    """Of two equal ones the first takes all members."""
    x = np.tile(unit(np.array([[1.0, 0.0], [0.0, 1.0]])), (4, 1)).astype(np.float32)
    centroids, labels = spherical_kmeans(jnp.asarray(x), jax.random.key(0), count=4, iterations=3)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.abs(np.asarray(centroids)[np.asarray(labels)] - x).max(), 0)


@pytest.fixture(scope="module")
def filled():
    """A method whose bank holds batches of other images, some of them twice; then one epoch."""
    with jax.enable_x64(True):
        method = method_of("deepcluster_v2", **SETTINGS)
        newest = {}
        for seed in range(3):
            index = np.arange(seed * 5, seed * 5 + BATCH)  # to 17: images 18 and 19 are held out
            views = views_of(features_of(seed), index)
            embeddings = embedded(method, views)
            method.fill(embeddings, views)
            z = np.stack([np.asarray(view) for view in embeddings])
            newest |= {i: z[:GLOBAL, row] for row, i in enumerate(index)}
        method.on_epoch(jnp.int32(0), jax.random.key(5), {})
        return method, newest


def test_the_bank_holds_the_last_projection_of_each_image_and_large_view(filled):
    method, newest = filled
    bank = np.asarray(method.bank[...])
    assert bank.shape == (EXAMPLES, GLOBAL, 5)
    for index in range(EXAMPLES):
        expected = newest.get(index, np.zeros((GLOBAL, 5)))
        np.testing.assert_allclose(bank[index], expected, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(bank[:18], axis=2), 1, rtol=1e-12)


def test_each_clustering_has_its_own_start_and_the_views_in_turn(filled):
    method, _ = filled
    bank, labels = np.asarray(method.bank[...]), np.asarray(method.assignments[...])
    for number in range(SETTINGS["num_clusterings"]):
        with jax.enable_x64(True):
            key = jax.random.fold_in(jax.random.key(5), number)
            centroids, expected = reference(bank[:, number % GLOBAL], key, 4, 5)
        np.testing.assert_array_equal(labels[number], expected)
        np.testing.assert_allclose(method.centroids[...][number], centroids, rtol=1e-9)
    assert (labels[:, 18:] == -1).all()
    assert (labels[:, :18] >= 0).all()
    assert (labels[0] != labels[2]).any()


def test_labels_are_those_of_the_images_and_the_bank_takes_the_new_projections(filled):
    """A batch in another order; its bank rows and its labels follow the index."""
    method = nnx.clone(filled[0])
    before, labels = np.asarray(method.bank[...]), np.asarray(method.assignments[...])
    centroids = np.asarray(method.centroids[...])
    index = np.random.default_rng(4).permutation(18)[:BATCH]
    with jax.enable_x64(True):
        loss, gradient, embeddings = step(method, features_of(9), HYPER, index)
    z = np.stack(embeddings)
    terms = []
    for view in range(VIEWS):
        for number in range(SETTINGS["num_clusterings"]):
            p = softmax(z[view] @ centroids[number].T / 0.1)
            terms.append(-np.log(p[np.arange(BATCH), labels[number][index]]))
    assert loss == pytest.approx(np.mean(terms), rel=1e-9)
    after = np.asarray(method.bank[...])
    np.testing.assert_allclose(after[index], z[:GLOBAL].swapaxes(0, 1), atol=1e-12)
    rest = np.setdiff1d(np.arange(EXAMPLES), index)
    np.testing.assert_array_equal(after[rest], before[rest])
    # Centroids are carried on, not trained.
    assert {path[0] for path, _ in nnx.to_flat_state(gradient)} == {"head"}


def test_no_centroid_is_a_row_that_was_never_filled():
    x = jnp.asarray(points(missing=7, n=12), jnp.float32)
    centroids, labels = spherical_kmeans(x, jax.random.key(0), count=9, iterations=0)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)
    assert set(np.asarray(labels)) == {-1, 0, 1, 2, 3, 4}
    with pytest.raises(ValueError, match="count=13 must be at most the 12 vectors"):
        spherical_kmeans(x, jax.random.key(0), count=13, iterations=0)


def test_images_without_a_label_are_left_out():
    with jax.enable_x64(True):
        method = method_of("deepcluster_v2", **SETTINGS)
        loss, gradient, _ = step(method, features_of(), HYPER)
    assert loss == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_more_centroids_than_images_and_one_large_view_are_refused():
    config = config_for("deepcluster_v2")
    with config.unlocked():
        config.method.num_prototypes = 41
    spec = Spec(40, None, 1, (8, 8), 10, 8)
    with pytest.raises(UserError, match=r"--config.method.num_prototypes=41 must be at most"):
        nnx.eval_shape(lambda: build_method(config.method, config.encoder, spec, 0))
    method = method_of("deepcluster_v2", "float32", **SETTINGS)
    views = views_of(np.float32(features_of()))
    # So many images are trained on, whatever the split held before it was cut.
    trained = method.steps_per_epoch * BATCH
    method.steps_per_epoch = fractions.Fraction(3, BATCH)
    with pytest.raises(UserError, match=r"num_prototypes=4 must be at most the 3 images that are"):
        method.fill((), views)
    assert trained >= 4
    views = type(views)(**{**vars(views), "images": views.images[1:]})
    with pytest.raises(UserError, match=r"--config.views.global_crops.count=1 must be 2"):
        method.embed(views, keys_of())
