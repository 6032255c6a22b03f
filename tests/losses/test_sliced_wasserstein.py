"""Sliced Wasserstein and the generalised contrastive loss: optimal transport and formulas."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from quick_compilation import AtOnce, at_once, once, quick_jit
from support import tree_distance

import jaxssl.losses
from jaxssl.losses.sliced_wasserstein import (
    PRIORS,
    _transport_cost,
    draw_prior,
    orthonormal_directions,
)

losses = AtOnce(jaxssl.losses)
orthonormal_directions, draw_prior = at_once(orthonormal_directions), at_once(draw_prior)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def transport_cost(x, y):
    """Mean squared cost of the optimal assignment of two sets of numbers, by linear programming."""
    cost = (x[:, None] - y) ** 2
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    return cost[rows, columns].mean()


TRANSPORTS = [(prior, count) for prior in PRIORS for count in (5, 1, 3)]


@once
def transports():
    """(prior, projections) -> features and prior sample, both projected, and the loss."""
    kind = np.dtype("float64")

    def run(h, key):
        direction_key, prior_key = jax.random.split(key)
        found = {}
        for prior, count in TRANSPORTS:
            directions = orthonormal_directions(direction_key, 5, count, kind)
            sample = draw_prior(prior_key, prior, h.shape, kind)
            loss = losses.sliced_wasserstein(
                h, key=key, prior=prior, num_projections=None if count == 5 else count
            )
            found[prior, count] = h @ directions, sample @ directions, loss
        return found

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, quick_jit(run)(2 * draw(17, 5), jax.random.key(7)))


@pytest.mark.parametrize(("prior", "count"), TRANSPORTS)
def test_equals_optimal_transport_of_each_projection(prior, count):
    x, y, ours = transports()[prior, count]
    golden = np.mean([transport_cost(x[:, p], y[:, p]) for p in range(count)])
    np.testing.assert_allclose(ours, golden, rtol=1e-12)


@pytest.mark.parametrize(
    ("prior", "golden"), [("normal", 1.0), ("hypercube", 1 / 3), ("hypersphere", 1 / 64)]
)
def test_collapsed_features_are_at_the_priors_variance(prior, golden):
    zeros = jnp.zeros((256, 64))
    loss = losses.sliced_wasserstein(zeros, key=jax.random.key(0), prior=prior)
    np.testing.assert_allclose(loss, golden, rtol=0.02)
    if prior == "hypersphere":
        # Rotations keep unit vectors' square sum, so a basis leaves no sampling error.
        np.testing.assert_allclose(loss, golden, rtol=1e-6)


@pytest.mark.parametrize(
    ("prior", "floor"), [("normal", 2.3e-2), ("hypercube", 7.4e-3), ("hypersphere", 3.5e-4)]
)
def test_a_sample_of_the_prior_is_at_the_sampling_floor(prior, floor):
    """n = 256, d = 64, mean over draws."""

    def distance(key):
        own, other = jax.random.split(key)
        h = draw_prior(own, prior, (256, 64), np.dtype("float32"))
        return losses.sliced_wasserstein(h, key=other, prior=prior)

    mean = quick_jit(jax.vmap(distance))(jax.random.split(jax.random.key(1), 20)).mean()
    np.testing.assert_allclose(mean, floor, rtol=0.1)


def test_a_permutation_of_the_prior_sample_costs_nothing():
    key = jax.random.key(3)
    sample = draw_prior(jax.random.split(key)[1], "normal", (64, 8), np.dtype("float32"))
    order = np.random.default_rng(0).permutation(64)
    loss, slope = quick_jit(jax.value_and_grad(with_normal_prior))(sample[order], key)
    assert loss < 1e-12
    assert jnp.abs(slope).max() < 1e-6


def with_normal_prior(h, key):
    return losses.sliced_wasserstein(h, key=key, prior="normal")


def naive(h, key):
    """Two sorts, differentiated by JAX, which carries permutations."""
    direction_key, prior_key = jax.random.split(key)
    directions = orthonormal_directions(direction_key, h.shape[1], h.shape[1], h.dtype)
    sample = draw_prior(prior_key, "normal", h.shape, h.dtype)
    x = jnp.sort(jnp.matmul(h, directions, precision="highest"), axis=0)
    y = jnp.sort(jnp.matmul(sample, directions, precision="highest"), axis=0)
    return jnp.mean((x - y) ** 2)


ROWS = (1, 2, 37, 200)


@once
def sorted_gradients(dtype):
    """rows -> (our value and gradient, the naive ones); one compilation."""

    def run(batches, key):
        return {
            rows: [jax.value_and_grad(loss)(h, key) for loss in (with_normal_prior, naive)]
            for rows, h in batches.items()
        }

    with jax.enable_x64(dtype == "float64"):
        batches = {rows: draw(rows, 6).astype(dtype) for rows in ROWS}
        return jax.tree.map(np.asarray, quick_jit(run)(batches, jax.random.key(2)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", ROWS)
def test_gradient_is_that_of_the_sorted_differences(rows, dtype):
    ours, golden = sorted_gradients(dtype)[rows]
    assert tree_distance(ours, golden) < (1e-6 if dtype == "float32" else 1e-14)


def test_ties_share_the_mean_of_their_targets():
    """Runs of 1, 2, 3 and 7 equal rows, and signed zeros, which tie."""
    x = np.array([[3, 1, 3, 2, 0, 0, 2, 3, -0.0, 0, 0, -0.0, 0]])
    y = np.sort(draw(13))
    value, slope = quick_jit(jax.value_and_grad(_transport_cost))(
        jnp.float32(x), jnp.float32(y[None])
    )
    np.testing.assert_allclose(value, np.sum((np.sort(x[0]) - y) ** 2), rtol=1e-6)
    for number in (0, 1, 2, 3):
        first = np.sum(x < number)
        run = slice(first, first + np.sum(x == number))
        golden = 2 * (number - y[run].mean())
        np.testing.assert_allclose(slope[x == number], golden, rtol=2e-6)


def test_gradient_does_not_depend_on_the_order_of_equal_rows():
    h = jnp.float32(np.repeat(draw(4, 3), [1, 2, 3, 5], axis=0))
    key, order = jax.random.key(2), np.random.default_rng(1).permutation(11)
    slope = quick_jit(jax.grad(with_normal_prior))
    np.testing.assert_allclose(slope(h[order], key), slope(h, key)[order], atol=1e-7)


def test_infinities_and_nans_reach_the_loss():
    h = jnp.float32(draw(8, 3))
    loss = quick_jit(with_normal_prior)
    for bad in (jnp.nan, jnp.inf):
        assert not jnp.isfinite(loss(h.at[2, 1].set(bad), jax.random.key(0)))


def test_directions_are_orthonormal_and_haar():
    keys = jax.random.split(jax.random.key(0), 4000)
    directions = quick_jit(
        jax.vmap(lambda key: orthonormal_directions(key, 3, 2, np.dtype("float32")))
    )(keys)
    directions = np.asarray(directions)
    products = np.einsum("kdp,kdq->kpq", directions, directions)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(2), products.shape), atol=1e-6)
    # Uncorrected QR fixes the sign of one entry; Haar entries have mean 0, variance 1/3 and on the
    # sphere in three dimensions are uniform in [-1, 1]: fourth moment 1/5.
    np.testing.assert_allclose(directions.mean(0), 0, atol=5 / np.sqrt(3 * 4000))
    np.testing.assert_allclose((directions**2).mean(0), 1 / 3, atol=0.025)
    np.testing.assert_allclose((directions**4).mean(0), 1 / 5, atol=0.025)


def test_keys_renew_directions_and_prior():
    h = jnp.float32(draw(16, 4))
    loss = quick_jit(with_normal_prior)
    values = {float(loss(h, jax.random.key(seed))) for seed in (0, 1, 0)}
    assert len(values) == 2


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# normalised, self term, halved alignment, divided by the dimension
TABLE_1 = list(itertools.product((True, False), repeat=4))


@once
def generalized():
    """The loss of every form, in one compilation."""

    def run(z1, z2):
        return {
            form: losses.generalized_contrastive(
                z1,
                z2,
                key=jax.random.key(0),
                distribution="logsumexp",
                weight=0.3,
                temperature=0.7,
                scale=1000.0,
                normalize=form[0],
                self_term=form[1],
                halve_alignment=form[2],
                divide_by_dimension=form[3],
            )
            for form in TABLE_1
        }

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, quick_jit(run)(draw(5, 4), draw(5, 4, seed=1)))


@pytest.mark.parametrize("form", TABLE_1)
def test_generalized_logsumexp_is_table_1(form):
    normalize, self_term, halve, divide = form
    z1, z2 = draw(5, 4), draw(5, 4, seed=1)
    h1, h2 = (unit(z1), unit(z2)) if normalize else (z1, z2)
    h = np.concatenate([h1, h2])
    logits = np.exp(h @ h.T / 0.7)
    if not self_term:
        np.fill_diagonal(logits, 0)
    distance = np.mean(np.log(logits.sum(1))) - np.log(4)
    attraction = np.sum((h1 - h2) ** 2) / 5 / (2 if halve else 1) / (4 if divide else 1)
    np.testing.assert_allclose(
        generalized()[form], 1000 * (attraction + 0.3 * distance), rtol=1e-12
    )


def test_generalized_in_the_form_of_eq_4_is_decoupled_nt_xent():
    z1, z2 = jnp.float32(draw(5, 4)), jnp.float32(draw(5, 4, seed=1))
    ours = losses.generalized_contrastive(
        z1,
        z2,
        key=jax.random.key(0),
        distribution="logsumexp",
        weight=0.3,
        temperature=0.5,
        divide_by_dimension=False,
        self_term=False,
    )
    theirs = losses.decoupled_nt_xent(z1, z2, temperature=0.5, weight=0.3)
    # |x - y|^2 / 2 = 1 - cos, and the constant log D.
    np.testing.assert_allclose(ours, theirs + 1 - 0.3 * np.log(4), rtol=1e-6)


@pytest.mark.parametrize("prior", PRIORS)
def test_generalized_with_a_prior_matches_both_views(prior):
    z1, z2 = jnp.float32(draw(5, 4)), jnp.float32(draw(5, 4, seed=1))
    key = jax.random.key(1)
    ours = losses.generalized_contrastive(
        z1, z2, key=key, distribution=prior, weight=2.0, normalize=False
    )
    both = jnp.concatenate([z1, z2])
    distance = losses.sliced_wasserstein(both, key=key, prior=prior)
    np.testing.assert_allclose(ours, jnp.mean((z1 - z2) ** 2) / 2 + 2 * distance, rtol=1e-6)


def test_bad_arguments():
    h, key = jnp.zeros((4, 3)), jax.random.key(0)
    with pytest.raises(ValueError, match="prior='cauchy' is unknown: choose one of normal"):
        losses.sliced_wasserstein(h, key=key, prior="cauchy")
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"num_projections={count}: give 1 to 3"):
            losses.sliced_wasserstein(h, key=key, prior="normal", num_projections=count)
    with pytest.raises(ValueError, match="distribution='swd' is unknown"):
        losses.generalized_contrastive(h, h, key=key, distribution="swd", weight=1.0)


def test_compiles_without_folding_a_sort():
    """Direction and prior depend on a traced key, so no sort has constant input."""
    h, key = jax.ShapeDtypeStruct((4096, 32), jnp.float32), jax.random.key(0)
    run = jax.jit(lambda h, key: losses.sliced_wasserstein(h, key=key, prior="normal"))
    text = run.lower(h, key).compile().as_text()
    assert text.count(" sort(") == 2
