"""What is easily got wrong: gradients into targets, ends of schedules, margins, shared BatchNorm.

On given features, so that nothing but heads and losses is compiled.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from any_size import Mean
from flax import nnx
from on_features import draw, keys_of, method_of, small_head, views_of
from quick_compilation import quick_jit

from configs.pretrain import byol, moco_v3, simsiam
from jaxssl.augment.spatial import overlap_boxes
from jaxssl.errors import UserError
from jaxssl.methods import METHODS, Method
from jaxssl.methods.generalized_contrastive import SETTINGS
from jaxssl.methods.method import Teacher
from jaxssl.methods.simsiam import center_distance
from jaxssl.metrics.collapse import feature_std
from jaxssl.training.optim import make_optimizer
from jaxssl.training.schedules import Schedules, traced

BATCH, IN, OUT = 8, 6, 4
LABELS = np.array([0, 1, 0, 2, 1, 0, 3, 2])
HEADS = {"head": small_head(OUT), "predictor": small_head(OUT)}
HEAD = {"head": small_head(OUT)}
GENERALIZED = {
    **dict.fromkeys(SETTINGS, True),
    "distribution": "normal",
    "normalize": False,
    **HEAD,
}
GROUPS = {
    "align_uniform": HEAD,
    "barlow_twins": HEAD,
    "byol": HEADS,
    "generalized_contrastive": GENERALIZED,
    "moco_v2": {**HEAD, "queue_size": 16, "symmetric": True, "shuffle": False},
    "moco_v3": HEADS,
    "simclr": HEAD,
    "simsiam": HEADS,
    "supcon": {**HEAD, "positives": "outside"},
    "vicreg": HEAD,
}
HYPER = {
    "temperature": 0.2,
    "ema": 0.9,
    "weight": 2.0,
    "scale": 1.0,
    "alignment_weight": 1.0,
    "uniformity_weight": 1.0,
    "alpha": 2.0,
    "t": 2.0,
    "off_diagonal_weight": 0.1,
    "invariance_weight": 1.0,
    "variance_weight": 1.0,
    "covariance_weight": 1.0,
    "margin": 0.0,
    "distance_margin": 0.0,
}
JOINT = ("align_uniform", "generalized_contrastive", "simclr", "supcon")  # BatchNorm sees all views
TEACHERS = ("byol", "moco_v2", "moco_v3")


def made(name, **changes):
    return method_of({"name": name, **GROUPS[name], **changes}, IN)


def numbers(**changes):
    return {name: jnp.float32(value) for name, value in {**HYPER, **changes}.items()}


def embedded(method, features, labels=LABELS):
    """What a copy of the method embeds."""
    graph, state = nnx.split(method)
    views, keys = views_of(features, labels), keys_of(len(labels))
    return quick_jit(lambda state: nnx.merge(graph, state).embed(views, keys))(state)


def loss_and_slopes(method, embeddings, boxes=None, **changes):
    """The objective and its gradient with respect to what it is given."""
    graph, state = nnx.split(method)
    views, hyper = views_of([draw(BATCH, IN)] * 2, LABELS, boxes), numbers(**changes)

    def of(embeddings, key):
        return nnx.merge(graph, state).objective(embeddings, views, key, hyper)[0]

    return quick_jit(jax.value_and_grad(of))(embeddings, jax.random.key(1))


@pytest.mark.parametrize("name", TEACHERS)
def test_no_gradient_reaches_the_teacher(name):
    """Were its weights parameters, their gradient would be exactly zero."""
    method = made(name)
    teacher = (Teacher, nnx.Param)
    graph, weights, rest = nnx.split(method, teacher, ...)
    features, keys = views_of([draw(BATCH, IN), draw(BATCH, IN, seed=1)]), keys_of(BATCH)

    def of(weights):
        copy = nnx.merge(graph, weights, rest, copy=True)
        return copy.objective(copy.embed(features, keys), features, keys.step, numbers())[0]

    slopes = nnx.to_flat_state(quick_jit(jax.grad(of))(weights))
    teachers = [slope[...] for path, slope in slopes if "teacher" in path[0]]
    students = [slope[...] for path, slope in slopes if "teacher" not in path[0]]
    assert len(teachers) == len(jax.tree.leaves(nnx.state(method.head, nnx.Param)))
    for slope in teachers:
        np.testing.assert_array_equal(slope, 0)
    assert max(np.abs(slope).max() for slope in students) > 1e-3


def test_simsiam_stops_the_gradient_at_the_projections():
    method = made("simsiam")
    embeddings = embedded(method, [draw(BATCH, IN), draw(BATCH, IN, seed=1)])
    _, slopes = loss_and_slopes(method, embeddings)
    for name in ("z1", "z2"):
        np.testing.assert_array_equal(slopes[name], 0)
    for name in ("p1", "p2"):
        assert np.abs(slopes[name]).max() > 1e-3


@pytest.mark.parametrize(("recipe", "start"), [(byol, 0.99), (moco_v3, 0.99)])
def test_the_teacher_stands_still_at_the_end_of_its_schedule(recipe, start):
    """1 - (1 - start) (cos(pi k / K) + 1) / 2, exactly 1 at the last step's end."""
    hyper = recipe.get_config("preset=solo").hyper
    schedules = Schedules.from_config(hyper, 1000.0, 10)
    for share in (0.0, 0.25, 0.5, 0.9):
        expected = 1 - (1 - start) * (np.cos(np.pi * share) + 1) / 2
        found = schedules.at(traced(hyper), int(10_000 * share))["ema"]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    last = schedules.at(traced(hyper), 10_000)["ema"]
    assert last == 1
    method = made("byol" if recipe is byol else "moco_v3")
    kernel = method.head.hidden[0].kernel
    kernel[...] = kernel[...] + 1
    before = np.asarray(method.teacher_head.hidden[0].kernel[...])
    method.after_update({"ema": last})
    np.testing.assert_array_equal(method.teacher_head.hidden[0].kernel[...], before)
    method.after_update({"ema": jnp.float32(0.75)})
    moved = method.teacher_head.hidden[0].kernel[...]
    np.testing.assert_allclose(moved, before + 0.25, rtol=1e-6)


@pytest.mark.parametrize("name", TEACHERS)
def test_the_teachers_statistics_are_no_average_of_the_students(name):
    """Its BatchNorm keeps those of its own activations; parameters alone follow."""
    method = made(name)
    student = nnx.state(method.head, nnx.BatchStat)
    nnx.update(method.head, jax.tree.map(lambda x: x + 1.0, student))
    before = jax.tree.map(np.asarray, nnx.state(method.teacher_head, nnx.BatchStat))
    method.after_update({"ema": jnp.float32(0.25)})
    after = nnx.state(method.teacher_head, nnx.BatchStat)
    assert jax.tree.leaves(before)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, after), before)


@pytest.mark.parametrize("name", GROUPS)
def test_a_collapse_is_seen_in_what_a_method_watches(name):
    """Of images that are all alike the spread is nothing; of others it is not."""
    method, alike = made(name), np.tile(draw(1, IN), (BATCH, 1))
    for features, collapsed in (([alike, alike], True), ([draw(BATCH, IN)] * 2, False)):
        watched = method.watched(embedded(method, features))
        assert watched
        stds = [float(feature_std(z)) for z in watched]
        assert max(stds) < 1e-3 if collapsed else min(stds) > 0.1


def test_every_method_says_what_is_watched():
    assert all(kind.watched is not Method.watched for kind in METHODS.values())


@pytest.mark.parametrize("name", [name for name in GROUPS if not name.startswith("moco_v2")])
def test_who_shares_batch_norm(name):
    """Another second view changes what the first one gives where both are normalised together."""
    method = made(name)
    first = draw(BATCH, IN)
    pair = [embedded(method, [first, draw(BATCH, IN, seed=seed)]) for seed in (1, 2)]
    one, other = ([e["z1"], e["p1"]] if name == "simsiam" else jax.tree.leaves(e) for e in pair)
    if name in ("byol", "moco_v3"):  # by name: the first view's come at even places
        one, other = one[::2], other[::2]
    elif name != "simsiam":
        one, other = one[:1], other[:1]
    same = all((a == b).all() for a, b in zip(one, other, strict=True))
    assert same == (name not in JOINT)


@pytest.mark.parametrize("name", JOINT)
def test_views_of_two_sizes_are_embedded_like_those_of_one(name):
    """One after the other by the encoder, together by the head, whose BatchNorm sees both."""
    method = made(name)
    method.encoder = Mean(IN, "float32")
    features = [jnp.float32(draw(BATCH, IN, seed=seed)) for seed in (0, 1)]
    views = views_of(features, LABELS)
    large = jnp.tile(views.images[0], (1, 2, 2, 1))
    graph, state = nnx.split(method)
    embed = quick_jit(lambda state, views: nnx.merge(graph, state).embed(views, keys_of(BATCH)))
    one = embed(state, views)
    two = embed(state, dataclasses.replace(views, images=(large, views.images[1])))
    for expected, found in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", GROUPS)
def test_k_parts_of_a_batch_are_k_groups_of_the_whole(name):
    """What accumulation with all negatives rests on, in heads and predictors."""
    grouped = {
        part: small_head(OUT, bn_groups=2) for part in ("head", "predictor") if part in GROUPS[name]
    }
    whole, alone = made(name, **grouped), made(name)
    features = [draw(BATCH, IN), draw(BATCH, IN, seed=1)]
    expected = jax.tree.leaves(embedded(whole, features))
    halves = []
    for rows in (slice(0, 4), slice(4, 8)):
        part = embedded(alone, [x[rows] for x in features], LABELS[rows])
        halves.append(jax.tree.leaves(part))
    for found, first, second in zip(expected, *halves, strict=True):
        np.testing.assert_allclose(found, np.concatenate([first, second]), atol=1e-5)


def test_distance_of_centres_is_a_share_of_the_diagonal():
    boxes = (
        jnp.array([[0.0, 0.0, 10.0, 20.0], [4.0, 4.0, 8.0, 8.0]]),
        jnp.array([[20.0, 20.0, 30.0, 60.0], [2.0, 2.0, 10.0, 10.0]]),
    )
    found = center_distance(boxes, (30, 40))
    np.testing.assert_allclose(found, [np.hypot(20, 30) / 50, 0.0], rtol=1e-6)


def test_no_gradient_where_the_margin_wins():
    """Jha and Tuytelaars, Eq. 1: a pair closer than its crops' distance asks is left alone."""
    method = method_of({"name": "simsiam", **HEADS}, IN, image_size=(32, 32))
    keys = jax.random.split(jax.random.key(3), BATCH)
    first, second = jax.vmap(lambda key: overlap_boxes(key, 32, 32, overlap=0.2))(keys)
    embeddings = {name: draw(BATCH, OUT, seed=n) for n, name in enumerate(("p1", "p2", "z1", "z2"))}
    embeddings["z1"] += 0.8 * embeddings["p2"]
    embeddings["z2"] += 1.5 * embeddings["p1"]
    embeddings = jax.tree.map(jnp.float32, embeddings)
    loss, slopes = loss_and_slopes(
        method, embeddings, (first, second), margin=0.1, distance_margin=1.2
    )
    centers = [np.float64(box[:, :2] + box[:, 2:]) / 2 for box in (first, second)]
    distance = np.linalg.norm(centers[0] - centers[1], axis=1) / np.hypot(32, 32)
    floor = -1 + 0.1 + 1.2 * distance
    total = 0.0
    for p, z in (("p1", "z2"), ("p2", "z1")):
        a, b = np.float64(embeddings[p]), np.float64(embeddings[z])
        cosine = np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        total += np.maximum(-cosine, floor).mean() / 2
        inside = -cosine < floor
        assert 0 < inside.sum() < BATCH
        np.testing.assert_array_equal(slopes[p][inside], 0)
        assert (np.abs(slopes[p][~inside]).max(1) > 1e-4).all()
    np.testing.assert_allclose(loss, total, rtol=1e-6)


def test_the_predictors_rate_does_not_follow_the_schedule():
    config = simsiam.get_config().optimizer
    params = nnx.state(made("simsiam"), nnx.Param)
    optimizer = make_optimizer(config, params)
    rates = {"learning_rate": 0.01, "constant_learning_rate": 0.3, "weight_decay": 0.0}
    ones = jax.tree.map(jnp.ones_like, params)
    update = quick_jit(lambda state: optimizer.update(ones, state, params, **rates)[0])
    updates = nnx.to_flat_state(update(optimizer.init(params)))
    found = {path[0]: float(leaf[...].ravel()[0]) for path, leaf in updates}
    assert found == pytest.approx({"head": -0.01, "predictor": -0.3})


@pytest.mark.parametrize("distribution", ["normal", "hypercube", "hypersphere", "characteristic"])
def test_directions_and_priors_are_drawn_anew_each_step(distribution):
    method = made("generalized_contrastive", distribution=distribution)
    z = jnp.float32(draw(BATCH, OUT)), jnp.float32(draw(BATCH, OUT, seed=1))
    views, hyper = views_of(z), numbers()
    run = quick_jit(lambda key: method.objective(z, views, key, hyper)[0])
    first, again, next_step = (float(run(jax.random.key(step))) for step in (1, 1, 2))
    assert first == again != next_step


def test_what_does_not_fit_is_refused():
    for name, changes, sentence in (
        ("supcon", {"positives": "beside"}, r"--config.method.positives=beside is unknown"),
        (
            "generalized_contrastive",
            {"distribution": "gamma"},
            r"--config.method.distribution=gamma is unknown: choose one of char",
        ),
        (
            "generalized_contrastive",
            {"distribution": "characteristic", "normalize": True},
            r"--config.method.normalize=True .*set it to False",
        ),
        (
            "byol",
            {"predictor": small_head(OUT + 1)},
            r"--config.method.predictor.out_dim=5 must be .*--config.method.head.out_dim=4",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            made(name, **changes)
    method = made("generalized_contrastive")
    with pytest.raises(UserError, match=r"--config.views.global_crops.count=1 must be at least 2"):
        method.embed(views_of([draw(BATCH, IN)]), keys_of(BATCH))
