"""Dense contrastive and DenseCL against NumPy in float64, and the traps of maps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick_compilation import quick_jit
from tiny import BATCH, Run, config_for

from jaxssl.errors import UserError
from jaxssl.methods import build_method
from jaxssl.methods.dense_contrastive import DenseContrastive
from jaxssl.methods.densecl import DenseCL
from jaxssl.methods.method import Teacher
from jaxssl.models import Features

KEY = jax.random.key(0)
CELLS = 4


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def log_sum_exp(x):
    top = x.max(axis=-1, keepdims=True)
    return np.log(np.exp(x - top).sum(axis=-1)) + top[..., 0]


def built(name, **changes):
    """A run, and its method without weights: enough for an objective."""
    config = config_for(name)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    run = Run(config)
    groups = run.config.method, run.config.encoder, run.blueprint.spec
    return run, nnx.eval_shape(lambda: build_method(*groups, 0))


def drawn(**widths):
    """Embeddings of two views, as far apart as random vectors are."""
    draw = np.random.default_rng(0)
    shapes = {"z": (BATCH, 5), "h": (BATCH, CELLS, 5), "map": (BATCH, CELLS, 3)}
    return {f"{n}{v}": draw.normal(size=s) for n, s in shapes.items() for v in (1, 2)} | widths


def objective_of(run, method, embeddings, **hyper):
    """In float32; the views are not looked at."""
    scalars = run.scalars() | {name: jnp.float32(value) for name, value in hyper.items()}
    embeddings = jax.tree.map(jnp.float32, embeddings)
    loss, metrics = quick_jit(lambda e, s: method.objective(e, run.views(0), KEY, s))(
        embeddings, scalars
    )
    return float(loss), {name: float(value) for name, value in metrics.items()}


def dense_info_nce(embeddings, temperature, matching):
    """The equation, all cells of all other images in both views repelling."""
    total = 0.0
    for own, other in ((1, 2), (2, 1)):
        h, k = unit(embeddings[f"h{own}"]), unit(embeddings[f"h{other}"])
        similarity = unit(embeddings[f"map{own}"]) @ unit(embeddings[f"map{other}"]).swapaxes(1, 2)
        match = similarity.argmax(2) if matching == "cosine" else np.arange(CELLS)[None]
        match = np.broadcast_to(match, (BATCH, CELLS))
        for i in range(BATCH):
            others = [j for j in range(BATCH) if j != i]
            keys = np.concatenate([k[i], *h[others], *k[others]])
            logits = h[i] @ keys.T / temperature
            total += (log_sum_exp(logits) - logits[np.arange(CELLS), match[i]]).mean()
    return total / (2 * BATCH)


@pytest.mark.parametrize("matching", ["index", "cosine"])
def test_dense_contrastive_objective(matching):
    run, method = built("dense_contrastive", **{"method.matching": matching})
    embeddings = drawn()
    loss, metrics = objective_of(run, method, embeddings, dense_weight=0.25, temperature=0.3)
    z = unit(np.concatenate([embeddings["z1"], embeddings["z2"]]))
    logits = z @ z.T / 0.3
    np.fill_diagonal(logits, -np.inf)
    positive = logits[np.arange(2 * BATCH), (np.arange(2 * BATCH) + BATCH) % (2 * BATCH)]
    instance = (log_sum_exp(logits) - positive).mean()
    dense = dense_info_nce(embeddings, 0.3, matching)
    assert metrics["instance_loss"] == pytest.approx(instance, rel=1e-5)
    assert metrics["dense_loss"] == pytest.approx(dense, rel=1e-5)
    assert loss == pytest.approx(0.75 * instance + 0.25 * dense, rel=1e-5)


@pytest.mark.parametrize("pairs", ["same_index", "all_cells"])
def test_dense_align_uniform_objective(pairs):
    run, method = built("dense_align_uniform", **{"method.pairs": pairs})
    embeddings = drawn()
    weights = {"alignment_weight": 0.7, "uniformity_weight": 1.3, "t": 1.5}
    loss, _ = objective_of(run, method, embeddings, dense_weight=0.25, **weights)

    def term(h1, h2):
        h1, h2 = unit(h1), unit(h2)
        h = np.concatenate([h1, h2])
        image = np.tile(np.arange(BATCH), 2)
        squared = ((h[:, None, :, None] - h[None, :, None, :]) ** 2).sum(-1)  # n m p q
        potentials = np.exp(-1.5 * squared)[image[:, None] != image[None]]
        if pairs == "same_index":
            potentials = np.diagonal(potentials, axis1=1, axis2=2)
        return -0.7 * (h1 * h2).sum(-1).mean() + 1.3 * np.log(potentials.mean())

    instance = term(embeddings["z1"][:, None], embeddings["z2"][:, None])
    dense = term(embeddings["h1"], embeddings["h2"])
    assert loss == pytest.approx(0.75 * instance + 0.25 * dense, rel=1e-5)


class Toy(nnx.Module):
    """Features that are known: one map of 2x2 means of the image, and what is pooled of it."""

    def __init__(self):
        self.feature_dim, self.stage_dims, self.dtype = 3, (3,), "float32"

    def __call__(self, x, train, views=1):
        half = x.shape[1] // 2
        stage = x.reshape(len(x), 2, half, 2, half, 3).mean((2, 4))
        return Features((stage,), stage.mean((1, 2)))


def coloured(run):
    """The views' images with three channels that differ."""
    tints = jnp.array([1.0, -0.5, 2.0])
    return tuple(image * tints + 0.1 for image in run.views(0).images)


def test_dense_embeddings_are_the_two_heads_of_one_pass():
    """Features are pooled *before* the instance head, and cells are projected one by one."""
    run, _ = built("dense_contrastive")
    method = DenseContrastive(run.config.method, Toy(), run.blueprint.spec, nnx.Rngs(0))
    images = coloured(run)
    views = dataclasses.replace(run.views(0), images=images)
    embeddings = method.embed(views, run.keys(0))
    second = np.float64(images[1])
    cell = second[:, :8, 8:].mean((1, 2))  # above, to the right
    np.testing.assert_allclose(embeddings["map2"][:, 1], cell, atol=1e-5)
    alone = method.dense_head(jnp.float32(cell), train=True)
    np.testing.assert_allclose(embeddings["h2"][:, 1], alone, atol=1e-5)
    pooled = method.head(jnp.float32(second.mean((1, 2))), train=True)
    np.testing.assert_allclose(embeddings["z2"], pooled, atol=1e-5)
    layers = method.represent(images[1])
    np.testing.assert_allclose(layers["dense_projection"][:, 0, 1], alone, atol=1e-5)
    np.testing.assert_allclose(layers["projection"], pooled, atol=1e-5)


def test_the_share_of_the_dense_loss_decides_which_head_learns():
    run, _ = built("dense_contrastive")
    method = DenseContrastive(run.config.method, Toy(), run.blueprint.spec, nnx.Rngs(0))
    graph, params, rest = nnx.split(method, nnx.Param, ...)
    views = dataclasses.replace(run.views(0), images=coloured(run))

    def loss(params, share):
        method = nnx.merge(graph, params, rest, copy=True)
        hyper = run.scalars() | {"dense_weight": share}
        return method.objective(method.embed(views, run.keys(0)), views, KEY, hyper)[0]

    of = quick_jit(jax.grad(loss))
    for share, without in ((0.0, "dense_head"), (1.0, "head")):
        gradient = of(params, jnp.float32(share))
        sizes = {
            name: float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(gradient[name])))
            for name in ("head", "dense_head")
        }
        assert sizes.pop(without) == 0
        assert min(sizes.values()) > 0


@pytest.mark.parametrize("setting", ["matching", "plan", "negatives"])
def test_an_unknown_setting_is_refused_by_its_flag(setting):
    config = config_for("dense_contrastive")
    with config.unlocked():
        config.method[setting] = "nearest"
    spec = Run(config_for("dense_contrastive")).blueprint.spec
    with pytest.raises(UserError, match=f"--config.method.{setting}=nearest is unknown"):
        jax.eval_shape(lambda: build_method(config.method, config.encoder, spec, 0))


@pytest.fixture(scope="module")
def densecl():
    run, _ = built("densecl")
    return run, DenseCL(run.config.method, Toy(), run.blueprint.spec, nnx.Rngs(0))


def queued(method):
    return [np.float64(queue.rows[...]) for queue in (method.queue, method.dense_queue)]


def test_densecl_objective_and_queues(densecl):
    run, method = densecl
    draw, dim = np.random.default_rng(0), method.head.out_dim
    shapes = {"": (BATCH, dim), "_cells": (BATCH, CELLS, dim), "_map": (BATCH, CELLS, 3)}
    e = {f"{x}{name}": draw.normal(size=s) for x in "qk" for name, s in shapes.items()}
    graph, state = nnx.split(method)

    def objective(state, embeddings, hyper):
        method = nnx.merge(graph, state)
        loss, metrics = method.objective(embeddings, run.views(0), KEY, hyper)
        return loss, metrics, nnx.state(method)

    hyper = run.scalars() | {"dense_weight": jnp.float32(0.25), "temperature": jnp.float32(0.3)}
    loss, metrics, after = quick_jit(objective)(state, jax.tree.map(jnp.float32, e), hyper)

    def info_nce(q, k, negatives):
        logits = np.concatenate([(q * k).sum(1, keepdims=True), q @ negatives.T], axis=1) / 0.3
        return (log_sum_exp(logits) - logits[:, 0]).mean()

    queue, dense_queue = queued(method)
    instance = info_nce(unit(e["q"]), unit(e["k"]), queue)
    match = (unit(e["q_map"]) @ unit(e["k_map"]).swapaxes(1, 2)).argmax(2)
    positive = np.stack([k[m] for k, m in zip(e["k_cells"], match, strict=True)])
    dense = info_nce(*(unit(x).reshape(-1, dim) for x in (e["q_cells"], positive)), dense_queue)
    assert float(metrics["instance_loss"]) == pytest.approx(instance, rel=1e-5)
    assert float(metrics["dense_loss"]) == pytest.approx(dense, rel=1e-5)
    assert float(loss) == pytest.approx(0.75 * instance + 0.25 * dense, rel=1e-5)

    # What enters the queues is pooled first and then normalised, not the other way about.
    entered = (unit(e["k"]), unit(e["k_cells"].mean(1)))
    before, now = (queue, dense_queue), queued(nnx.merge(graph, after))
    for old, new, rows in zip(before, now, entered, strict=True):
        np.testing.assert_allclose(new[:BATCH], rows, atol=1e-6)
        np.testing.assert_allclose(new[BATCH:], old[BATCH:], atol=1e-6)
    assert np.abs(now[1][:BATCH] - unit(unit(e["k_cells"]).mean(1))).max() > 0.01


def test_densecl_keys_come_from_the_teacher_in_the_order_of_the_images(densecl):
    run, method = densecl
    for teacher in (method.teacher_head, method.teacher_dense_head):
        nnx.update(teacher, jax.tree.map(lambda x: 2 * x, nnx.state(teacher, Teacher)))
    views = dataclasses.replace(run.views(0), images=coloured(run))
    assert method.shuffle
    embeddings = method.embed(views, run.keys(0))
    for image, name, head, dense_head in (
        (views.images[0], "q", method.head, method.dense_head),
        (views.images[1], "k", method.teacher_head, method.teacher_dense_head),
    ):
        stages, pooled = method.encoder(image, train=True)
        maps = stages[0].reshape(BATCH, CELLS, 3)
        np.testing.assert_allclose(embeddings[f"{name}_map"], maps, atol=1e-5)
        np.testing.assert_allclose(embeddings[name], head(pooled, train=True), atol=1e-5)
        cells = dense_head(maps, train=True)
        np.testing.assert_allclose(embeddings[f"{name}_cells"], cells, atol=1e-5)

    def keys(image):
        second = dataclasses.replace(views, images=(views.images[0], image))
        embeddings = method.embed(second, run.keys(0))
        return jnp.sum(embeddings["k"]) + jnp.sum(embeddings["k_cells"] ** 2)

    assert not np.any(quick_jit(jax.grad(keys))(views.images[1]))


def weights(module, kind):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(module, kind))]


def test_densecl_teachers_follow(densecl):
    _, method = densecl
    pairs = [(method.teacher_head, method.head), (method.teacher_dense_head, method.dense_head)]
    for _, student in pairs:  # apart, whatever the tests before left
        ahead = jax.tree.map(lambda x: x + 1, nnx.state(student, nnx.Param))
        nnx.update(student, ahead)
    before = [weights(teacher, Teacher) for teacher, _ in pairs]
    method.after_update({"ema": jnp.float32(0.75)})
    for (teacher, student), old in zip(pairs, before, strict=True):
        after = weights(teacher, Teacher)
        for t, s, o in zip(after, weights(student, nnx.Param), old, strict=True):
            np.testing.assert_allclose(t, 0.75 * o + 0.25 * s, atol=1e-6)
        assert any((t != o).any() for t, o in zip(after, old, strict=True))
