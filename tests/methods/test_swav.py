"""SwAV: assignments with and without a queue against the paper's listing, prototypes, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crops import BATCH, GLOBAL, entropy, features_of, method_of, numbers, step, unit, views_of

from jaxssl.errors import UserError

QUEUE = 3 * BATCH
HEAD = {"hidden_bias": True, "output_bias": True}
SETTINGS = {"num_prototypes": 7, "sinkhorn_iterations": 3, "queue_size": QUEUE, "head": HEAD}
HYPER = {"temperature": 0.1, "epsilon": 0.05, "queue": 1.0}


def listing(scores, epsilon=0.05, iterations=3):
    """Listing 2 of arXiv:2006.09882 in float64; a row a sample."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * k
        q /= q.sum(axis=0, keepdims=True) * b
    return (q * b).T


def expected_loss(scores, past, epsilon=0.05):
    """Each view of the two that assign with the queue of its own, whose rows are dropped."""
    targets = [
        listing(np.concatenate([scores[g], past[g]]), epsilon)[:BATCH] for g in range(GLOBAL)
    ]
    return entropy(scores, np.stack(targets), 0.1)


@pytest.fixture(scope="module")
def steps():
    """Three steps, the queue taking no part in the first: losses, embeddings, the queues before."""
    with jax.enable_x64(True):
        method, found = method_of("swav", **SETTINGS), []
        for number, on in enumerate((0.0, 1.0, 1.0)):
            queues = [np.asarray(queue.rows[...]) for queue in method.queues]
            hyper = {**HYPER, "queue": jnp.float32(on)}
            found.append((*step(method, features_of(number), hyper), queues))
        return method, found


def test_the_queue_takes_part_in_the_assignment_and_its_rows_are_dropped(steps):
    method, found = steps
    kernel = np.asarray(method.prototypes.kernel[...])
    for number, (loss, _, embeddings, queues) in enumerate(found):
        scores = np.stack(embeddings["scores"])
        np.testing.assert_allclose(scores, unit(np.stack(embeddings["z"])) @ kernel, rtol=1e-9)
        past = [queue @ kernel for queue in queues] if number else np.zeros((GLOBAL, 0, 7))
        assert loss == pytest.approx(expected_loss(scores, past), rel=1e-9)
    # The property is not empty: with the queue of the third step the second's loss is another.
    scores = np.stack(found[1][2]["scores"])
    other = expected_loss(scores, [queue @ kernel for queue in found[2][3]])
    assert abs(found[1][0] - other) > 1e-4


def test_each_view_has_a_queue_of_the_projections_of_past_steps(steps):
    _, found = steps
    for number in (1, 2):
        for view, queue in enumerate(found[number][3]):
            newest = queue[(number - 1) * BATCH : number * BATCH]
            np.testing.assert_allclose(newest, unit(found[number - 1][2]["z"][view]), rtol=1e-9)
    assert np.abs(found[1][3][0][:BATCH] - found[1][3][1][:BATCH]).max() > 0.1


def test_the_gradient_passes_predictions_and_not_assignments(steps):
    """By differences: the targets of the second step held still."""
    method, found = steps
    _, gradient, embeddings, queues = found[1]
    kernel = np.asarray(method.prototypes.kernel[...])
    z = unit(np.stack(embeddings["z"]))
    targets = [listing(np.concatenate([z[g], queues[g]]) @ kernel)[:BATCH] for g in range(GLOBAL)]
    direction = np.random.default_rng(1).normal(size=kernel.shape)
    ends = [
        entropy(z @ (kernel + sign * 1e-5 * direction), np.stack(targets), 0.1) for sign in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / 2e-5
    ours = np.sum(np.asarray(gradient["prototypes"]["kernel"][...]) * direction)
    assert ours == pytest.approx(slope, rel=1e-6)
    assert abs(slope) > 1e-2


def test_prototypes_have_unit_length_after_every_update():
    method = method_of("swav", "float32", **SETTINGS)
    kernel = np.asarray(method.prototypes.kernel[...])
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1, rtol=1e-6)
    method.prototypes.kernel[...] = 3 * method.prototypes.kernel[...]
    method.after_update({})
    np.testing.assert_allclose(method.prototypes.kernel[...], kernel, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_small_epsilon_and_half_precision_give_finite_assignments(dtype):
    """exp(1 / .005) is beyond float32 without the largest score subtracted."""
    method = method_of("swav", dtype, **{**SETTINGS, "queue_size": 0})
    hyper = {**HYPER, "epsilon": jnp.float32(0.005)}
    features = np.float32(features_of())
    loss, gradient, embeddings = step(method, features, hyper)
    scores = np.stack(embeddings["scores"])
    assert scores.dtype == np.float32
    exact = expected_loss(np.float64(scores), np.zeros((GLOBAL, 0, 7)), epsilon=0.005)
    assert loss == pytest.approx(exact, rel=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_queue_wants_two_large_views_and_a_multiple_of_the_batch():
    method = method_of("swav", "float32", **SETTINGS)
    one = views_of(np.float32(features_of()))
    one = type(one)(**{**vars(one), "images": one.images[:1] + one.images[2:]})
    embeddings = {"z": (jnp.ones((BATCH, 5)),) * 3, "scores": (jnp.ones((BATCH, 7)),) * 3}
    with pytest.raises(UserError, match=r"--config.views.global_crops.count=1 must be 2"):
        method.objective(embeddings, one, jax.random.key(0), numbers(**HYPER))
    method = method_of("swav", "float32", **{**SETTINGS, "queue_size": BATCH + 1})
    views = views_of(np.float32(features_of()))
    embeddings = {"z": (jnp.ones((BATCH, 5)),) * 4, "scores": (jnp.ones((BATCH, 7)),) * 4}
    with pytest.raises(UserError, match=r"--config.method.queue_size=9 must be a multiple of"):
        method.objective(embeddings, views, jax.random.key(0), numbers(**HYPER))
