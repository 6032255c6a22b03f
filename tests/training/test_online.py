"""The classifier beside the method: what it computes, and that the method never hears of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Run, config_for, six_steps

from jaxssl.checkpoint import CheckpointReader
from jaxssl.data.examples import array_source
from jaxssl.distributed import data_mesh, global_batch
from jaxssl.errors import UserError
from jaxssl.evaluation.frozen import make_cropped_view
from jaxssl.pretrain import pretrain
from jaxssl.randomness import Split
from jaxssl.reporting import CLOCK_KEYS, read_metrics
from jaxssl.training.online import make_online
from jaxssl.training.state import merge

ON = {"online.learning_rate": 0.1}
EVALUATED = {"evals.online.every": 0.25, "evals.online.split": "test"}


short = functools.partial(six_steps, **{"run.log_every_steps": 1})


def bytes_of(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def rows_of(workdir, *, of_method=False):
    """Rows of metrics without the clock's; of the method: without the classifier's too."""
    return [
        {
            name: value
            for name, value in row.items()
            if name not in CLOCK_KEYS and not (of_method and name.startswith("online"))
        }
        for row in read_metrics(workdir)
    ]


def names_in(workdir, step):
    leaves = CheckpointReader(workdir / "checkpoints").shapes()
    assert step in CheckpointReader(workdir / "checkpoints").steps()
    return set(leaves)


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("online") / "without"
    return workdir, pretrain(short(), workdir)


@pytest.fixture(scope="module")
def with_it(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("online") / "with"
    return workdir, pretrain(short(**ON, **EVALUATED), workdir)


def test_it_changes_no_bit_of_the_method(without, with_it):
    (plain, bare), (watched, state) = without, with_it
    assert bare.online is None
    assert bytes_of(dataclasses.replace(state, online=None)) == bytes_of(bare)
    ours = [row for row in rows_of(watched, of_method=True) if "loss" in row]
    assert ours == rows_of(plain)
    of_classifier = {name for name in names_in(watched, 6) if name.startswith("online/")}
    assert names_in(watched, 6) - of_classifier == names_in(plain, 6)
    assert len(of_classifier) == 4


def test_it_is_logged_and_evaluated_at_its_cadence(with_it):
    rows = rows_of(with_it[0])
    losses = [row["online_loss"] for row in rows if "loss" in row]
    assert losses[0] == pytest.approx(np.log(10), rel=1e-6)  # it begins at zero
    assert losses[-1] < losses[0]
    evaluated = [row for row in rows if "online" in row]
    assert [row["step"] for row in evaluated] == [6]  # a quarter of 20.2 steps, and the end
    assert 0.15 < evaluated[-1]["online"] <= 1


# MoCo's queue and teacher are other leaves, which take another compilation of everything.
@pytest.mark.parametrize("method", ["simclr", pytest.param("moco_v2", marks=pytest.mark.slow)])
def test_a_resumed_run_ends_the_same(method, tmp_path, with_it):
    if method == "simclr":
        whole, state = with_it
    else:
        whole = tmp_path / "whole"
        state = pretrain(short(method, **ON, **EVALUATED), whole)
    parts = tmp_path / "parts"
    pretrain(short(method, **ON, **EVALUATED, **{"run.stop_step": 4}), parts)
    again = pretrain(short(method, **ON, **EVALUATED), parts)
    assert bytes_of(again) == bytes_of(state)
    # The first stop was an end, with its evaluation.
    assert [row for row in rows_of(parts) if "loss" in row] == [
        row for row in rows_of(whole) if "loss" in row
    ]


@pytest.mark.slow
def test_it_may_be_switched_on_and_off_and_begins_anew_for_another_layer(without, tmp_path, capsys):
    workdir = tmp_path / "run"
    pretrain(short(**{"run.stop_step": 3}), workdir)
    capsys.readouterr()
    pretrain(short(**ON, **{"run.stop_step": 4}), workdir)
    assert "the classifier beside the method begins at step 3" in capsys.readouterr().out
    on_head = ON | {"online.layer": "projection"}
    state = pretrain(short(**on_head, **{"run.stop_step": 5}), workdir)
    assert "the classifier beside the method begins at step 4" in capsys.readouterr().out
    assert list(state.online) == ["projection"]
    state = pretrain(short(), workdir)  # and off
    assert "the classifier beside" not in capsys.readouterr().out
    assert bytes_of(state) == bytes_of(without[1])


@pytest.mark.slow
def test_it_is_sgd_with_nesterov_momentum_on_any_number_of_devices():
    """Against a loop in NumPy and float64, on features that are computed apart."""
    run = Run(config_for("simclr"))
    config = run.config
    with config.unlocked():
        config.online.learning_rate, config.online.momentum = 0.8, 0.7
    view = make_cropped_view(config)
    ends = []
    for devices in (1, 8):
        mesh = data_mesh(devices)
        state = run.blueprint.create(0, mesh)
        online = make_online(config.online, run.blueprint, view, run.source, mesh, 64)
        leaf = online.create()
        for step in range(3):
            batch = global_batch(mesh, run.batch(step))
            leaf, metrics = online.update(
                leaf, state.params, state.rest, jnp.int32(step + 1), batch, jnp.uint32(5)
            )
        ends.append((jax.device_get(leaf["pooled"]["weights"]), float(metrics["online_loss"])))
    kernel, bias, loss = reference(run, view, rate=0.8 * 64 / 256, momentum=0.7)
    for weights, found in ends:
        np.testing.assert_allclose(weights["kernel"], kernel, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(weights["bias"], bias, rtol=1e-4, atol=1e-6)
        assert found == pytest.approx(loss, rel=1e-5)
    assert np.abs(kernel).max() > 0.01


def reference(run, view, rate, momentum):
    state = run.blueprint.create(0, data_mesh(1))
    method = merge(run.blueprint.graph, state.params, state.rest)
    horizon = run.blueprint.spec.total_steps
    weights = velocity = None
    for step in range(3):
        batch = run.batch(step)
        on_device = jax.device_put(batch)
        images = view(on_device, jnp.uint32(5), on_device["epoch"])
        x = np.float64(method.represent(images)["pooled"])
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)  # the bias
        truth = np.eye(10)[batch["targets"]["label"]]
        if weights is None:
            weights = velocity = np.zeros((x.shape[1], 10))
        logits = x @ weights
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        loss = -np.mean(np.log((shares * truth).sum(axis=1)))
        gradient = x.T @ (shares - truth) / len(x)
        velocity = momentum * velocity + gradient
        now = rate * 0.5 * (1 + np.cos(np.pi * step / horizon))
        weights = weights - now * (gradient + momentum * velocity)
    return weights[:-1], weights[-1], loss


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"online.learning_rate": -1.0}, r"--config.online.learning_rate=-1.0 must be at least 0"),
        (ON | {"online.momentum": 1.0}, r"--config.online.momentum=1.0 must be from 0"),
        (ON | {"online.layer": "pool"}, r"--config.online.layer=pool is unknown: .* pooled, proj"),
        ({"evals.online.every": 1.0}, r"evaluation online is of the classifier .* there is none"),
    ],
)
def test_bad_values_are_refused_in_one_sentence_and_leave_nothing(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        pretrain(short(**changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_images_without_labels_are_refused(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), np.uint8)
    own = {"train": array_source("mine", Split.TRAIN, images, {})}
    with pytest.raises(UserError, match="asks for a classifier but the data set has no labels"):
        pretrain(short(**ON), tmp_path / "run", own)
