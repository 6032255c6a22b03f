"""Dense losses and matchings against formulas and exact assignment."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from quick_compilation import AtOnce, at_once, once, quick_jit
from support import tree_distance

import jaxssl.losses
from jaxssl.losses import dense
from jaxssl.losses.dense import _leave_one_out

losses = AtOnce(jaxssl.losses)
B, CELLS, D = 3, 4, 5


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def log_sum(x):
    return np.log(np.sum(np.exp(x)))


def weights_of(map1, map2, matching):
    """Weight of cell q of the other view as match of cell p, [B, P, P]."""
    cosines = np.einsum("bpd,bqd->bpq", unit(map1), unit(map2))
    if matching == "index":
        return np.tile(np.eye(CELLS), (B, 1, 1))
    if matching == "cosine":
        return np.eye(CELLS)[cosines.argmax(2)]
    return np.stack([np.eye(CELLS)[scipy.optimize.linear_sum_assignment(-c)[1]] for c in cosines])


def reference_dense(h1, h2, matching, maps, positive_in_denominator, negatives):
    """One anchor cell at a time."""
    h = unit(np.stack([h1, h2]))
    total = 0.0
    for own, other in ((0, 1), (1, 0)):
        weights = weights_of(maps[own], maps[other], matching)
        for i in range(B):
            for p in range(CELLS):
                anchor = h[own, i, p] / 0.4
                views = (own, other) if negatives == "both_views" else (other,)
                rest = [h[v, k, q] @ anchor for v in views for k in range(B) if k != i
                        for q in range(CELLS)]  # fmt: skip
                for match in range(CELLS):
                    here = [h[other, i, q] @ anchor for q in range(CELLS)
                            if positive_in_denominator or q != match]  # fmt: skip
                    term = log_sum(np.array(rest + here)) - h[other, i, match] @ anchor
                    total += weights[i, p, match] * term
    return total / (2 * B * CELLS)


# matching, positive in the denominator, negatives, block size, maps of a backbone
FORMS = list(
    itertools.product(
        ("index", "cosine", "set"), (True, False), ("both_views", "other_view"), (None, 5), (True,)
    )
)
# The maps only say what is matched.
FORMS += [(matching, True, "both_views", None, False) for matching in ("index", "cosine", "set")]


def dense_inputs(backbone):
    h1, h2 = draw(B, CELLS, D), draw(B, CELLS, D, seed=1)
    return h1, h2, *((draw(B, CELLS, 2, seed=2), draw(B, CELLS, 2, seed=3)) if backbone else ())


@once
def dense_info_nces():
    """The loss of every form, in one compilation."""

    def run(with_maps, without):
        found = []
        for form in FORMS:
            matching, positive, negatives, block_size, backbone = form
            h1, h2, *maps = with_maps if backbone else without
            loss = losses.dense_info_nce(
                h1,
                h2,
                temperature=0.4,
                matching=matching,
                positive_in_denominator=positive,
                negatives=negatives,
                plan="exact",
                block_size=block_size,
                **dict(zip(("match1", "match2"), maps, strict=False)),
            )
            found.append(loss)
        return found

    with jax.enable_x64(True):
        found = quick_jit(run)(dense_inputs(True), dense_inputs(False))
        return dict(zip(FORMS, map(np.asarray, found), strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_dense_info_nce_is_the_formula(form):
    matching, positive_in_denominator, negatives, _, backbone = form
    h1, h2, *maps = dense_inputs(backbone)
    golden = reference_dense(h1, h2, matching, maps or (h1, h2), positive_in_denominator, negatives)
    np.testing.assert_allclose(dense_info_nces()[form], golden, rtol=1e-12)


def test_one_cell_an_image_is_nt_xent():
    z1, z2 = jnp.float32(draw(6, 4)), jnp.float32(draw(6, 4, seed=1))
    ours = losses.dense_info_nce(z1[:, None], z2[:, None], temperature=0.3)
    np.testing.assert_allclose(ours, losses.nt_xent(z1, z2, temperature=0.3), rtol=1e-6)


@pytest.mark.parametrize("matching", ["cosine", "set"])
def test_matching_undoes_a_permutation_of_cells(matching):
    h1 = jnp.float32(draw(B, CELLS, D))
    h2 = h1 + 0.01 * jnp.float32(draw(B, CELLS, D, seed=1))
    order = np.array([2, 0, 3, 1])
    options = {"temperature": 0.3, "plan_epsilon": 0.01}
    aligned = losses.dense_info_nce(h1, h2, matching="index", **options)
    ours = losses.dense_info_nce(h1, h2[:, order], matching=matching, **options)
    np.testing.assert_allclose(ours, aligned, rtol=1e-4)
    assert losses.dense_info_nce(h1, h2[:, order], matching="index", **options) > 2 * aligned


def test_the_matching_has_no_gradient():
    h1, h2 = np.float32(draw(B, CELLS, D)), np.float32(draw(B, CELLS, D, seed=1))

    def loss(h1, h2, match1, match2):
        return losses.dense_info_nce(
            h1, h2, temperature=0.3, matching="set", match1=match1, match2=match2
        )

    slopes = quick_jit(jax.grad(loss, (2, 3)))(h1, h2, h1, h2)
    np.testing.assert_array_equal(slopes[0], 0)
    np.testing.assert_array_equal(slopes[1], 0)


def test_a_plan_of_traced_iterations_takes_part_in_a_gradient():
    """Reverse mode does not pass a loop of traced length, so nothing may ask it to."""
    h = jax.ShapeDtypeStruct((B, CELLS, D), jnp.float32)
    number, count = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)

    def loss(h1, h2, epsilon, iterations):
        return losses.dense_info_nce(
            h1,
            h2,
            temperature=0.3,
            matching="set",
            plan_epsilon=epsilon,
            plan_iterations=iterations,
        )

    slopes = jax.eval_shape(jax.grad(loss, (0, 1, 2)), h, h, number, count)
    assert [slope.shape for slope in slopes] == [h.shape, h.shape, ()]


def test_an_assignment_of_no_numbers_ends():
    cost = np.float32([[np.inf] * 3, [np.nan] * 3, [np.nan] * 3])
    assert sorted(np.asarray(losses.exact_assignment(cost))) == [0, 1, 2]


def test_invariances():
    loss = quick_jit(lambda h1, h2: losses.dense_info_nce(h1, h2, temperature=0.3))
    h1, h2 = np.float32(draw(B, CELLS, D)), np.float32(draw(B, CELLS, D, seed=1))
    value = loss(h1, h2)
    np.testing.assert_allclose(loss(h2, h1), value, rtol=1e-6)
    np.testing.assert_allclose(loss(h1[::-1], h2[::-1]), value, rtol=1e-6)
    np.testing.assert_allclose(loss(h1[:, ::-1], h2[:, ::-1]), value, rtol=1e-6)
    np.testing.assert_allclose(loss(3 * h1, h2), value, rtol=1e-6)


def test_leave_one_out_keeps_the_rest_of_a_dominant_entry():
    logits = jnp.float32([[[100.0, 0.0, 1.0]]])
    golden = [[[np.log(1 + np.e), 100, 100]]]
    np.testing.assert_allclose(at_once(_leave_one_out)(logits), golden, rtol=1e-6)
    assert _leave_one_out(jnp.zeros((1, 1, 1))) < -1e37


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_exact_assignment_equals_scipy(size):
    assign = quick_jit(jax.vmap(losses.exact_assignment))
    cost = draw(20, size, size)
    for ours, matrix in zip(assign(jnp.float32(cost)), cost, strict=True):
        _, golden = scipy.optimize.linear_sum_assignment(matrix)
        np.testing.assert_array_equal(ours, golden)


def test_exact_assignment_with_ties_and_large_costs():
    rng = np.random.default_rng(0)
    for scale in (1.0, 1e4):
        cost = scale * rng.integers(-3, 4, (7, 7)).astype(np.float32)
        ours = losses.exact_assignment(jnp.asarray(cost))
        rows, columns = scipy.optimize.linear_sum_assignment(cost)
        assert sorted(np.asarray(ours)) == list(range(7))
        np.testing.assert_allclose(cost[rows, ours].sum(), cost[rows, columns].sum())


def test_entropic_plan_has_its_marginals_and_tends_to_the_assignment():
    with jax.enable_x64(True):
        cost = jnp.asarray(draw(6, 6))
        plan = losses.entropic_plan(cost, epsilon=0.5, iterations=300)
        np.testing.assert_allclose(plan.sum(0), 1 / 6, rtol=1e-8)
        np.testing.assert_allclose(plan.sum(1), 1 / 6, rtol=1e-12)
        # The optimum is the only plan of the form u exp(-cost / epsilon) v with these marginals.
        residual = np.log(plan) + cost / 0.5
        residual = residual - residual.mean(0) - residual.mean(1, keepdims=True) + residual.mean()
        np.testing.assert_allclose(residual, 0, atol=1e-8)
        sharp = losses.entropic_plan(cost, epsilon=0.005, iterations=2000)
        golden = np.eye(6)[losses.exact_assignment(cost)]
        np.testing.assert_allclose(6 * sharp, golden, atol=1e-2)


def test_dense_alignment_is_the_formula():
    h1, h2 = draw(B, CELLS, D), draw(B, CELLS, D, seed=1)
    ours = losses.dense_alignment(jnp.float32(h1), jnp.float32(h2))
    np.testing.assert_allclose(ours, -np.mean(np.sum(unit(h1) * unit(h2), axis=2)), rtol=1e-5)


@pytest.mark.parametrize("block_size", [None, 5])
@pytest.mark.parametrize("pairs", ["same_index", "all_cells"])
@pytest.mark.parametrize("t", [1, 2])
def test_dense_uniformity_is_the_formula(t, pairs, block_size):
    with jax.enable_x64(True):
        h1, h2 = draw(B, CELLS, D), draw(B, CELLS, D, seed=1)
        h = unit(np.stack([h1, h2]))
        potentials = [
            np.exp(-t * np.sum((h[v, i, p] - h[w, j, q]) ** 2))
            for v in (0, 1) for w in (0, 1) for i in range(B) for j in range(B) if i != j
            for p in range(CELLS) for q in range(CELLS) if pairs == "all_cells" or p == q
        ]  # fmt: skip
        # An array for t is traced: one compilation serves both.
        ours = losses.dense_uniformity(
            h1, h2, t=np.array(float(t)), pairs=pairs, block_size=block_size
        )
        np.testing.assert_allclose(ours, np.log(np.mean(potentials)), rtol=1e-12)


@pytest.mark.parametrize("block_size", [None, 5])
def test_one_cell_after_the_other_is_all_at_once(block_size, monkeypatch):
    h1, h2 = np.float32(draw(B, CELLS, D)), np.float32(draw(B, CELLS, D, seed=1))
    found = []
    for limit in (dense.PLAIN_LOGITS, 0):
        monkeypatch.setattr(dense, "PLAIN_LOGITS", limit)
        loss = partial(losses.dense_uniformity, block_size=block_size)
        found.append(quick_jit(jax.value_and_grad(loss, argnums=(0, 1)))(h1, h2))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-6)
    assert tree_distance(found[1][1], found[0][1]) < 1e-6


def test_dense_uniformity_of_the_uniform_sphere():
    """At t = 1 and d = 128 its limit is -1.984."""
    h1, h2 = jax.random.normal(jax.random.key(0), (2, 128, 4, 128))
    np.testing.assert_allclose(
        quick_jit(partial(losses.dense_uniformity, t=1))(h1, h2), -1.984, atol=2e-3
    )


def test_maps_that_do_not_fit(own_errors):
    h = jnp.ones((2, 3, 4))
    with pytest.raises(ValueError, match="match1 and match2 go together"):
        losses.dense_info_nce(h, h, temperature=0.1, match1=h)
    wide = jnp.ones((2, 5, 4))
    with pytest.raises(ValueError, match="shapes differ: match1"):
        losses.dense_info_nce(h, h, temperature=0.1, match1=wide, match2=wide)
    for option in ("matching", "negatives", "plan"):
        with pytest.raises(ValueError, match=f"{option}='all' is unknown"):
            losses.dense_info_nce(h, h, temperature=0.1, **{option: "all"})
