"""What the three methods do with embeddings, teachers and queues, against NumPy in float64."""

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import BATCH, Run, config_for

from jaxssl.distributed import data_mesh
from jaxssl.errors import UserError
from jaxssl.methods import build_method
from jaxssl.methods.method import Bank, Teacher, follow, make_teacher
from jaxssl.models import BatchNorm
from jaxssl.training.state import merge, traced_scalars
from jaxssl.training.step import compile_step, loss_and_gradient

KEY = jax.random.key(0)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def log_sum_exp(x):
    top = x.max(axis=1, keepdims=True)
    return np.log(np.exp(x - top).sum(axis=1)) + top[:, 0]


@pytest.fixture(
    scope="module",
    params=[False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["asymmetric", "symmetric"],
)
def moco(request):
    config = config_for("moco_v2")
    with config.unlocked():
        config.method.symmetric = request.param
    run = Run(config)
    state = run.blueprint.create(0, data_mesh(1))
    return run, state, merge(run.blueprint.graph, state.params, state.rest)


def embeddings_for(method, symmetric):
    names = ["q1", "k2", "q2", "k1"] if symmetric else ["q1", "k2"]
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=(BATCH, method.head.out_dim)) for name in names}


def test_moco_objective_and_queue(moco):
    run, _, method = moco
    queue = np.float64(method.queue.rows[...])
    assert np.allclose(np.linalg.norm(queue, axis=1), 1, atol=1e-6)
    embeddings = embeddings_for(method, run.config.method.symmetric)
    temperature = run.config.hyper.temperature
    loss, _ = method.objective(
        jax.tree.map(jnp.float32, embeddings), run.views(0), KEY, run.scalars()
    )

    def info_nce(q, k):
        q, k = unit(q), unit(k)
        logits = np.concatenate([(q * k).sum(1, keepdims=True), q @ queue.T], axis=1) / temperature
        return (log_sum_exp(logits) - logits[:, 0]).mean()

    expected = info_nce(embeddings["q1"], embeddings["k2"])
    entered = [embeddings["k2"]]
    if run.config.method.symmetric:
        expected = (expected + info_nce(embeddings["q2"], embeddings["k1"])) / 2
        entered = [embeddings["k1"], embeddings["k2"]]
    assert abs(float(loss) - expected) < 1e-5
    entered = unit(np.concatenate(entered))
    np.testing.assert_allclose(method.queue.rows[...][: len(entered)], entered, atol=1e-6)
    np.testing.assert_allclose(
        method.queue.rows[...][len(entered) :], queue[len(entered) :], atol=1e-6
    )
    assert int(method.queue.position[...]) == len(entered) % len(queue)


def test_moco_queue_is_a_ring(moco):
    run, state, _ = moco
    method = merge(run.blueprint.graph, state.params, state.rest)
    hyper, views = run.scalars(), run.views(0)
    embeddings = jax.tree.map(jnp.float32, embeddings_for(method, run.config.method.symmetric))
    keys = 2 * BATCH if run.config.method.symmetric else BATCH
    turns = len(method.queue.rows[...]) // keys
    for _ in range(turns):
        method.objective(embeddings, views, KEY, hyper)
    assert int(method.queue.position[...]) == 0
    block = np.asarray(method.queue.rows[...]).reshape(turns, keys, -1)
    assert (block == block[:1]).all()


def test_moco_refuses_a_queue_that_the_keys_do_not_divide():
    config = config_for("moco_v2")
    with config.unlocked():
        config.method.queue_size = BATCH + 1
    run = Run(config)
    views, hyper = run.views(0), run.scalars()
    with pytest.raises(
        UserError, match=r"--config.method.queue_size=65 must be a multiple of the 64 keys.*64"
    ):
        jax.eval_shape(
            lambda state: loss_and_gradient(run.blueprint.graph, state, views, hyper),
            run.blueprint.abstract(data_mesh(1)),
        )


def test_moco_step_moves_the_teacher_by_its_decay_and_gives_it_no_gradient(moco):
    run, state, _ = moco
    hyper = traced_scalars(run.config)
    mesh = data_mesh(1)
    before = jax.device_get(state)
    after, _ = compile_step(run.step(), mesh)(run.blueprint.create(0, mesh), run.batch(0), hyper)
    old = merge(run.blueprint.graph, before.params, before.rest)
    new = merge(run.blueprint.graph, after.params, after.rest)
    ema = run.config.hyper.ema
    pairs = [
        (new.teacher_encoder, new.encoder, old.teacher_encoder),
    ]
    pairs += [(new.teacher_head, new.head, old.teacher_head)]
    for teacher, student, previous in pairs:
        students = jax.tree.leaves(nnx.state(student, nnx.Param))
        teachers = jax.tree.leaves(nnx.state(teacher, Teacher))
        previous = jax.tree.leaves(nnx.state(previous, Teacher))
        assert len(students) == len(teachers) > 0
        for s, t, p in zip(students, teachers, previous, strict=True):
            np.testing.assert_allclose(t, ema * p + (1 - ema) * s, atol=1e-6)
    # Only parameters of the student are trained, and the teacher started as its copy.
    paths = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(before.params)}
    assert not any("teacher" in path for path in paths)
    starts = jax.tree.leaves(nnx.state(old.encoder, nnx.Param))
    copies = jax.tree.leaves(nnx.state(old.teacher_encoder, Teacher))
    assert all((a == b).all() for a, b in zip(starts, copies, strict=True))


def test_moco_teacher_keeps_statistics_of_its_own(moco):
    run, state, _ = moco
    method = merge(run.blueprint.graph, state.params, state.rest)
    method.embed(run.views(0), run.keys(0))
    students = jax.tree.leaves(nnx.state(method.encoder, nnx.BatchStat))
    teachers = jax.tree.leaves(nnx.state(method.teacher_encoder, nnx.BatchStat))
    fresh = merge(run.blueprint.graph, state.params, state.rest)
    starts = jax.tree.leaves(nnx.state(fresh.teacher_encoder, nnx.BatchStat))
    assert any((a != b).any() for a, b in zip(teachers, starts, strict=True))
    assert any((a != b).any() for a, b in zip(teachers, students, strict=True))


@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_moco_shuffle_matters_only_to_grouped_batch_norm(groups):
    keys = {}
    for shuffle in (False, True):
        config = config_for("moco_v2")
        with config.unlocked():
            config.encoder.bn_groups = groups
            config.method.shuffle = shuffle
        run = Run(config)
        state = run.blueprint.create(0, data_mesh(1))
        method = merge(run.blueprint.graph, state.params, state.rest)
        keys[shuffle] = unit(np.asarray(method.embed(run.views(0), run.keys(0))["k2"]))
    difference = np.abs(keys[True] - keys[False]).max()
    assert difference < 1e-5 if groups == 1 else difference > 1e-2


def test_simclr_objective_is_the_mean_over_all_anchors():
    run = Run(config_for("simclr"))
    state = run.blueprint.create(0, data_mesh(1))
    method = merge(run.blueprint.graph, state.params, state.rest)
    embeddings = method.embed(run.views(0), run.keys(0))
    loss, _ = method.objective(embeddings, run.views(0), KEY, run.scalars())
    z = unit(np.concatenate([np.float64(embeddings["z1"]), np.float64(embeddings["z2"])]))
    logits = z @ z.T / run.config.hyper.temperature
    np.fill_diagonal(logits, -np.inf)
    positive = logits[np.arange(2 * BATCH), (np.arange(2 * BATCH) + BATCH) % (2 * BATCH)]
    assert abs(float(loss) - (log_sum_exp(logits) - positive).mean()) < 1e-5


def test_supervised_objective_is_cross_entropy_over_both_views():
    run = Run(config_for("supervised"))
    state = run.blueprint.create(0, data_mesh(1))
    method = merge(run.blueprint.graph, state.params, state.rest)
    views = run.views(0)
    embeddings = method.embed(views, run.keys(0))
    loss, metrics = method.objective(embeddings, views, KEY, run.scalars())
    logits = np.concatenate([np.float64(value) for value in embeddings])
    labels = np.tile(views.targets["label"], 2)
    expected = (log_sum_exp(logits) - logits[np.arange(len(labels)), labels]).mean()
    assert abs(float(loss) - expected) < 1e-5
    assert float(metrics["batch_accuracy"]) == pytest.approx((logits.argmax(1) == labels).mean())


@pytest.mark.parametrize("method", ["supcon", "supervised"])
@pytest.mark.parametrize(
    ("classes", "said"),
    [(None, "needs labels"), (1, "the data set has one")],
)
def test_labels_that_say_nothing_are_refused(method, classes, said):
    config = config_for(method)
    spec = dataclasses.replace(Run(config).blueprint.spec, num_classes=classes)
    with pytest.raises(UserError, match=said):
        nnx.eval_shape(lambda: build_method(config.method, config.encoder, spec, 0))


@pytest.mark.parametrize("method", ["simclr", "moco_v2"])
def test_k_parts_of_a_batch_are_k_groups_of_the_whole(method):
    """What accumulation with all negatives rests on: embedded part by part or in one go."""
    parts = 4
    config = config_for(method)
    with config.unlocked():
        config.encoder.bn_groups = parts
        config.method.head.bn_groups = parts
        if method == "moco_v2":
            config.method.shuffle = False  # it exchanges images between the parts
    run = Run(config)
    state = run.blueprint.create(0, data_mesh(1))
    whole = merge(run.blueprint.graph, state.params, state.rest)
    for _, module in nnx.iter_modules(whole):
        if isinstance(module, BatchNorm):
            assert module.groups == parts
    views = run.views(0)
    expected = embedded(whole, views, run.keys(0))

    pieces = []
    alone = merge(run.blueprint.graph, state.params, state.rest)
    for _, module in nnx.iter_modules(alone):
        if isinstance(module, BatchNorm):
            module.groups = 1
    keys = run.keys(0)
    for part in range(parts):
        rows = np.arange(part * BATCH // parts, (part + 1) * BATCH // parts)
        of_part = jax.tree.map(operator.itemgetter(rows), (views, keys.sample))
        pieces.append(embedded(alone, of_part[0], keys._replace(sample=of_part[1])))
    for name, value in expected.items():
        together = np.concatenate([piece[name] for piece in pieces])
        np.testing.assert_allclose(value, together, atol=1e-5)


def embedded(method, views, keys):
    """What a copy of a method embeds, in one program."""
    graph, state = nnx.split(method)
    return jax.jit(lambda state, views, keys: nnx.merge(graph, state).embed(views, keys))(
        state, views, keys
    )


def test_follow_and_make_teacher():
    student = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    teacher = make_teacher(student)
    assert isinstance(teacher.kernel, Teacher)
    assert isinstance(student.kernel, nnx.Param)
    _, params, rest = nnx.split(teacher, nnx.Param, ...)
    assert not jax.tree.leaves(params)
    assert len(jax.tree.leaves(rest)) == 2
    start = np.asarray(teacher.kernel[...])
    student.kernel[...] = student.kernel[...] + 1
    follow(teacher, student, jnp.float32(0.75))
    np.testing.assert_allclose(teacher.kernel[...], start + 0.25, atol=1e-6)
    follow(teacher, student, jnp.float32(1.0))
    np.testing.assert_allclose(teacher.kernel[...], start + 0.25, atol=1e-6)


def test_a_queue_is_not_trained():
    assert not issubclass(Bank, nnx.Param)


def test_a_teacher_follows_parameters_in_plain_containers_and_in_several_places():
    class Net(nnx.Module):
        def __init__(self):
            self.one = nnx.Param(jnp.ones(2))
            self.two = self.one
            self.held = nnx.data({"a": nnx.Param(jnp.zeros(3)), "b": [nnx.Param(jnp.ones(1))]})

    student = Net()
    teacher = make_teacher(student)
    assert teacher.two is teacher.one
    assert not jax.tree.leaves(nnx.state(teacher, nnx.Param))
    for leaf in (student.one, student.held["a"], student.held["b"][0]):
        leaf[...] += 1.0
    follow(teacher, student, jnp.float32(0.75))
    np.testing.assert_allclose(teacher.two[...], 1.25)
    np.testing.assert_allclose(teacher.held["a"][...], 0.25)
    np.testing.assert_allclose(teacher.held["b"][0][...], 1.25)
