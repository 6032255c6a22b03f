"""What the training step promises to a method that nobody here has written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import BATCH, Run, config_for

from configs.common import schedule
from jaxssl.distributed import data_mesh
from jaxssl.errors import UserError
from jaxssl.methods import METHODS, Method
from jaxssl.methods.method import Bank
from jaxssl.metrics.collapse import feature_std
from jaxssl.pretrain import pretrain
from jaxssl.ranges import SHARE
from jaxssl.reporting import read_metrics
from jaxssl.training.state import merge, traced_scalars
from jaxssl.training.step import embedding_keys, loss_and_gradient


class Masked(Method):
    """Maps [B, P, D] in a nested tree, noise of a sample's own, a scheduled number, a count."""

    HYPER = {"ema": SHARE}  # noqa: RUF012

    def __init__(self, config, encoder, spec, rngs):
        super().__init__(config, encoder, spec, rngs)
        self.seen = Bank(jnp.zeros((), jnp.float32))

    def embed(self, views, keys):
        noise = jax.vmap(lambda key: jax.random.uniform(key, (4,)))(keys.sample)
        stage = self.encoder(views.images[0], train=True).stages[1]
        return {"maps": {"h": stage.reshape(len(stage), -1, stage.shape[-1])}, "noise": noise}

    def objective(self, embeddings, views, key, hyper):
        h, noise = embeddings["maps"]["h"], embeddings["noise"]
        loss = jnp.mean((h.mean((1, 2)) - noise.mean(1)) ** 2)
        return loss, {"ema": hyper["ema"], "noise": noise[0, 0]}

    def watched(self, embeddings):
        return (embeddings["maps"]["h"],)

    def after_update(self, hyper):
        self.seen[...] = self.seen[...] + hyper["ema"]


class WatchesNothing(Masked):
    def watched(self, embeddings):
        return ()


class Buggy(Masked):
    def objective(self, embeddings, views, key, hyper):
        return embeddings["maps"]["h"] + "a mistake", {}


class ReadsUndeclared(Masked):
    def objective(self, embeddings, views, key, hyper):
        return hyper["temprature"] * embeddings["maps"]["h"].mean(), {}


class TakesARowsName(Masked):
    def objective(self, embeddings, views, key, hyper):
        return embeddings["maps"]["h"].mean(), {"step": hyper["ema"]}


class TakesTheSpreadsName(Masked):
    def objective(self, embeddings, views, key, hyper):
        return embeddings["maps"]["h"].mean(), {"embedding_std": hyper["ema"]}


class TakesAnEvaluationsName(Masked):
    def objective(self, embeddings, views, key, hyper):
        return embeddings["maps"]["h"].mean(), {"knn": hyper["ema"]}


class CountsByItself(Masked):
    calls = 0

    def after_update(self, hyper):
        self.calls = self.calls + 1


class KeepsAnArray(Masked):
    def after_update(self, hyper):
        self.last = hyper["ema"]


class Narrows(Masked):
    def after_update(self, hyper):
        self.seen.set_value(self.seen[...].astype(jnp.bfloat16))


def config_of(monkeypatch, method):
    monkeypatch.setitem(METHODS, "masked", method)
    config = config_for("simclr")
    with config.unlocked():
        config.method = {"name": "masked"}
        del config.hyper["temperature"]
        config.hyper.ema = schedule(0.5, end=1.0, shape="linear")
        config.evals.knn.every = 0.0
        config.run.update(num_devices=1, log_every_steps=1, stop_step=4)
    return config


@pytest.fixture
def masked(monkeypatch):
    run = Run(config_of(monkeypatch, Masked))
    return run, run.blueprint.create(0, data_mesh(1))


def loss_of(run, state, views):
    def of(state, views, hyper):
        return loss_and_gradient(run.blueprint.graph, state, views, hyper)

    return jax.jit(of)(state, views, run.scalars())


def test_maps_in_a_nested_tree_are_watched_over_their_last_axis(masked):
    run, state = masked
    views, keys = run.views(0), run.keys(0)
    _, metrics, gradient, _ = loss_of(run, state, views)
    method = merge(run.blueprint.graph, state.params, state.rest)
    graph, rest = nnx.split(method)
    h = jax.jit(lambda rest: nnx.merge(graph, rest).embed(views, keys))(rest)["maps"]["h"]
    assert h.ndim == 3
    expected = feature_std(h.reshape(-1, h.shape[-1]))
    np.testing.assert_allclose(metrics["embedding_std"], expected, rtol=1e-5)
    assert any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradient))


def test_what_is_drawn_for_an_image_does_not_depend_on_its_batch(masked):
    run, _ = masked
    keys = run.keys(0).sample
    views = run.views(0)
    order = np.random.default_rng(0).permutation(BATCH)[: BATCH // 2]
    views = jax.tree.map(lambda x: x[order], views)
    alone = embedding_keys(views, 7, run.scalars(7)).sample
    assert (jax.random.key_data(alone) == jax.random.key_data(keys)[order]).all()
    steps = [embedding_keys(views, step, run.scalars()).step for step in (0, 1)]
    assert (jax.random.key_data(steps[0]) != jax.random.key_data(steps[1])).any()


def test_scheduled_numbers_reach_objective_and_after_update_as_scalars(monkeypatch, tmp_path):
    config = config_of(monkeypatch, WatchesNothing)
    state = pretrain(config, tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    run = Run(config)
    expected = [float(run.schedules.at(traced_scalars(run.config), k)["ema"]) for k in range(4)]
    assert expected[0] == 0.5
    assert expected[3] > expected[0]
    np.testing.assert_allclose([row["ema"] for row in rows], expected, rtol=1e-6)
    np.testing.assert_allclose(state.rest["seen"][...], sum(expected), rtol=1e-6)
    assert "embedding_std" not in rows[0]
    assert len({row["noise"] for row in rows}) == 4  # another image, another noise


@pytest.mark.parametrize(("method", "error"), [(Buggy, TypeError), (ReadsUndeclared, KeyError)])
def test_an_authors_mistake_keeps_its_own_error(monkeypatch, tmp_path, method, error):
    with pytest.raises(error) as caught:
        pretrain(config_of(monkeypatch, method), tmp_path / "run")
    assert not isinstance(caught.value, UserError)
    assert "objective" in [entry.name for entry in caught.traceback]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "error", "sentence"),
    [
        (TakesARowsName, ValueError, "The metric 'step' of a method"),
        (TakesTheSpreadsName, ValueError, "The metric 'embedding_std' of a method"),
        (TakesAnEvaluationsName, UserError, r"--config\.evals\.knn has the name of something"),
        (CountsByItself, TypeError, "CountsByItself changed an attribute that is no nnx.Variable"),
        (KeepsAnArray, TypeError, "KeepsAnArray changed an attribute that is no nnx.Variable"),
        (
            Narrows,
            TypeError,
            r"the variable seen.* of the method is float32\[\] before a step and bfloat16",
        ),
    ],
)
def test_what_would_be_lost_is_refused_before_training(
    monkeypatch, tmp_path, method, error, sentence
):
    """A name that a row has already, and what the next step would not see."""
    config = config_of(monkeypatch, method)
    with config.unlocked():
        config.evals.knn.update(every=1.0, protocol="dino")
    with pytest.raises(error, match=sentence):
        pretrain(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("leaf", "sentence"),
    [
        (schedule(0.5, end=1.5), r"--config.hyper.ema.end=1.5 must be from 0 to 1"),
        (1.5, r"--config.hyper.ema=1.5 must be from 0 to 1"),
    ],
)
def test_ranges_that_a_method_declares_hold_for_every_value(monkeypatch, tmp_path, leaf, sentence):
    config = config_of(monkeypatch, Masked)
    with config.unlocked():
        del config.hyper["ema"]
        config.hyper.ema = leaf
    with pytest.raises(UserError, match=sentence):
        pretrain(config, tmp_path / "run")
