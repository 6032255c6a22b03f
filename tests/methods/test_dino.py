"""DINO: its objective and centre against NumPy, what is frozen, and what the last layer sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crops import (
    GLOBAL,
    VIEWS,
    entropy,
    features_of,
    keys_of,
    method_of,
    softmax,
    step,
    unit,
    views_of,
)
from flax import nnx
from tiny import Run, config_for

from jaxssl.distributed import data_mesh
from jaxssl.errors import UserError
from jaxssl.methods.method import Teacher
from jaxssl.methods.multi_crop import global_views

HYPER = {
    "student_temperature": 0.1,
    "teacher_temperature": 0.05,
    "center_momentum": 0.75,
    "ema": 0.9,
}
HEAD = {"num_layers": 3, "hidden_norm": False, "hidden_bias": True, "output_bias": True}


@pytest.fixture(scope="module")
def two_steps():
    """A method, and per step its loss, gradient and embeddings; the batches differ."""
    with jax.enable_x64(True):
        method = method_of("dino", head=HEAD, num_prototypes=7)
        center = np.linspace(-1, 1, 7)
        method.center[...] = jnp.asarray(center)
        found, centers = [], [center]
        for seed in range(2):
            found.append(step(method, features_of(seed), HYPER))
            centers.append(np.asarray(method.center[...]))
        return method, found, centers


def test_the_centre_is_used_before_it_moves_and_pairs_of_one_view_are_skipped(two_steps):
    _, found, centers = two_steps
    for number, (loss, _, embeddings) in enumerate(found):
        student, teacher = (np.stack(embeddings[name]) for name in ("student", "teacher"))
        assert (len(student), len(teacher)) == (VIEWS, GLOBAL)
        targets = softmax((teacher - centers[number]) / HYPER["teacher_temperature"])
        assert loss == pytest.approx(entropy(student, targets, 0.1), rel=1e-9)
        moved = 0.75 * centers[number] + 0.25 * teacher.mean((0, 1))
        np.testing.assert_allclose(centers[number + 1], moved, rtol=1e-9)
        assert np.abs(moved - centers[number]).max() > 0.05


def test_the_student_sees_all_views_and_the_teacher_the_large_ones(two_steps):
    method, found, _ = two_steps
    with jax.enable_x64(True):
        views = views_of(features_of(1))
        assert global_views(views.images) == views.images[:GLOBAL]
        for name, seen in (("student", VIEWS), ("teacher", GLOBAL)):
            for view in range(seen):
                z = method.head(jnp.asarray(features_of(1)[view]), train=True)
                outputs = method.last_layer(z)  # the teacher is still the student's copy
                np.testing.assert_allclose(found[1][2][name][view], outputs, atol=1e-12)


def test_the_last_layer_is_weight_normalised_with_gain_one(two_steps):
    """Lengths do not count, and the gradient is at right angles to each prototype."""
    method, found, _ = two_steps
    layer, gradient = method.last_layer, np.asarray(found[0][1]["last_layer"]["kernel"][...])
    with jax.enable_x64(True):
        z = np.random.default_rng(0).normal(size=(3, 5))
        outputs = np.asarray(layer(jnp.asarray(z)))
        kernel = np.asarray(layer.kernel[...])
        np.testing.assert_allclose(outputs, unit(z) @ unit(kernel.T).T, rtol=1e-12)
        layer.kernel[...] = layer.kernel[...] * jnp.arange(1.0, 8.0)
        np.testing.assert_allclose(layer(jnp.asarray(z)), outputs, rtol=1e-12)
        layer.kernel[...] = jnp.asarray(kernel)
    assert np.linalg.norm(gradient) > 1e-3
    np.testing.assert_allclose(np.sum(kernel * gradient, axis=0), 0, atol=1e-12)


def test_the_hidden_layers_are_activated_by_the_exact_gelu(two_steps):
    method, _, _ = two_steps
    from scipy.special import erf

    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(3, 6))
        hidden = method.head.layers(jnp.asarray(x), train=True)[0]
        first = method.head.hidden[0]
        y = x @ np.asarray(first.kernel[...]) + np.asarray(first.bias[...])
        np.testing.assert_allclose(hidden, y * 0.5 * (1 + erf(y / np.sqrt(2))), rtol=1e-9)


def test_the_teacher_gets_no_gradient_and_follows_in_all_its_parts(two_steps):
    method, _, _ = two_steps
    paths = {path[0] for path, _ in nnx.to_flat_state(nnx.state(method, nnx.Param))}
    assert paths == {"head", "last_layer"}
    with jax.enable_x64(True):
        for network in (method.head, method.last_layer):
            params = nnx.state(network, nnx.Param)
            nnx.update(network, jax.tree.map(lambda x: x + 1.0, params))
        method.after_update({"ema": jnp.float32(0.75)})
        for teacher, student in (
            (method.teacher_head, method.head),
            (method.teacher_last_layer, method.last_layer),
        ):
            ours, theirs = (
                jax.tree.leaves(nnx.state(net, kind))
                for net, kind in ((teacher, Teacher), (student, nnx.Param))
            )
            for t, s in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(t, s - 0.75, rtol=1e-6)


@pytest.mark.parametrize("method", ["dino", "swav"])
def test_the_recipe_freezes_the_last_layer_in_the_first_epoch(method):
    """What its row of the optimizer and its schedule make of a gradient, before and after."""
    run = Run(config_for(method))
    path = {"dino": "last_layer", "swav": "prototypes"}[method]
    shapes, optimizer = run.blueprint.abstract(data_mesh(1)).params, run.blueprint.optimizer
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)

    @jax.jit
    def updates(factors):
        rates = {name: jnp.float32(0.1) for name in ("learning_rate", "constant_learning_rate")}
        decay = jnp.float32(0.01)
        start = optimizer.init(params)
        return optimizer.update(params, start, params, weight_decay=decay, factors=factors, **rates)

    first = -(-len(run.source) // run.config.batch_size)  # step of the second epoch
    for number, moves in ((0, False), (first - 1, False), (first, True)):
        made = nnx.to_pure_dict(updates(run.scalars(number))[0])
        assert bool(np.any(made.pop(path)["kernel"])) == moves
        assert all(np.all(leaf) for leaf in jax.tree.leaves(made))


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_a_view_alone_has_nothing_to_predict(name):
    own = {"sinkhorn_iterations": 1, "queue_size": 0} if name == "swav" else {}
    method = method_of(name, "float32", num_prototypes=7, **own)
    with pytest.raises(UserError, match=r"^--config.views.global_crops.count=1 must be at least 2"):
        method.embed(views_of(features_of(views=1)), keys_of())
