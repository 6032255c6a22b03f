"""Banks with a row an image: which row stays, and how they are filled before the first step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Run, config_for

from jaxssl.distributed import data_mesh, global_batch, on_mesh
from jaxssl.interruption import Interrupted, Interruption
from jaxssl.methods import METHODS, Spec
from jaxssl.methods.method import Bank
from jaxssl.methods.queue import is_last, put_rows
from jaxssl.methods.simclr import SimCLR
from jaxssl.pretrain import pretrain
from jaxssl.training.loop import filled
from jaxssl.training.state import Blueprint, TrainState, merge, traced_scalars
from jaxssl.training.step import make_fill

IMAGES, BATCH = 1294, 256
BATCHES = 6  # 5 whole ones, and one that holds 14 images of epoch 0 and 242 of epoch 1


@pytest.mark.parametrize("devices", [1, 8])
def test_the_later_row_of_an_image_stays(devices):
    """Twice on one shard, twice on two shards, three times, and all but one image left alone."""
    index = np.random.default_rng(0).integers(0, 40, 64).astype(np.int32)
    index[:4] = 40, 40, 41, 42
    index[-4:] = 43, 43, 41, 42
    rows = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
    bank = np.full((50, 3), -1.0, np.float32)
    expected = bank.copy()
    for place, row in zip(index, rows, strict=True):
        expected[place] = row
    assert len(set(index)) < 50  # some come twice
    mesh = data_mesh(devices)
    batch = global_batch(mesh, {"index": index, "rows": rows})
    # One row of each is written: on a CPU a scatter would happen to take the last one anyway.
    last = jax.jit(on_mesh(lambda index: is_last(index, 50), mesh))(batch["index"])
    assert last.tolist() == [place not in index[i + 1 :] for i, place in enumerate(index)]
    got = jax.jit(on_mesh(put_rows, mesh))(bank, batch["index"], batch["rows"])
    np.testing.assert_array_equal(got, expected)
    backwards = global_batch(mesh, {"index": index[::-1].copy(), "rows": rows[::-1].copy()})
    got = jax.jit(on_mesh(put_rows, mesh))(bank, backwards["index"], backwards["rows"])
    for place in set(index):
        np.testing.assert_array_equal(got[place], rows[np.argmax(index == place)])


def test_a_bank_takes_what_has_its_own_shape_and_dtype_and_gives_no_gradient():
    index, rows = jnp.array([2, 0, 2]), jnp.arange(6.0).reshape(3, 2)
    labels = put_rows(jnp.zeros(3, jnp.int32), index, jnp.array([5.0, 6.0, 7.0]))
    assert labels.dtype == jnp.int32
    assert labels.tolist() == [6, 0, 7]
    gradient = jax.grad(lambda rows: put_rows(jnp.ones((3, 2)), index, rows).sum())(rows)
    assert not gradient.any()


class Remembers(SimCLR):
    """Keeps the first view's projection of each image, and what it had before each epoch."""

    def __init__(self, config, encoder, spec, rngs):
        super().__init__(config, encoder, spec, rngs)
        self.bank = Bank(jnp.zeros((spec.num_examples, config.head.out_dim)))
        self.fillings = Bank(jnp.zeros((), jnp.int32))
        self.at_the_start = Bank(jnp.zeros((spec.num_examples, config.head.out_dim)))

    def fill(self, embeddings, views):
        self.bank[...] = put_rows(self.bank[...], views.index, embeddings["z1"])
        self.fillings[...] += 1

    def objective(self, embeddings, views, key, hyper):
        self.bank[...] = put_rows(self.bank[...], views.index, embeddings["z1"])
        return super().objective(embeddings, views, key, hyper)

    def on_epoch(self, epoch, key, hyper):
        first = jnp.where(epoch == 0, self.bank[...], self.at_the_start[...])
        self.at_the_start[...] = first


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(METHODS, "simclr", Remembers)
    config = config_for("simclr")
    with config.unlocked():
        config.batch_size = BATCH
        config.evals.knn.every = 0.0
        config.run.update(num_devices=8, log_every_steps=1, stop_step=2)
    return config


@pytest.mark.slow
def test_a_bank_is_filled_before_the_first_step_and_not_after_a_resume(config, tmp_path, capsys):
    whole = pretrain(config, tmp_path / "whole")
    assert "embedding 1,294 images once" in capsys.readouterr().out
    assert int(whole.rest["fillings"][...]) == BATCHES

    run = Run(config)
    fresh = run.blueprint.create(run.config.init_seed, data_mesh(1))
    embed = jax.jit(
        lambda state, views, keys: merge(run.blueprint.graph, state.params, state.rest).embed(
            views, keys
        )["z1"]
    )
    expected = np.zeros_like(whole.rest["at_the_start"][...])
    for number in range(BATCHES):
        views = run.views(number)
        for place, row in zip(views.index, embed(fresh, views, run.keys(number)), strict=True):
            expected[place] = row
    assert (np.abs(expected).max(axis=1) > 0).sum() == IMAGES
    np.testing.assert_allclose(whole.rest["at_the_start"][...], expected, atol=1e-4)

    with config.unlocked():
        config.run.stop_step = 1
    pretrain(config, tmp_path / "parts")
    capsys.readouterr()
    with config.unlocked():
        config.run.stop_step = 2
    parts = pretrain(config, tmp_path / "parts")
    assert "once" not in capsys.readouterr().out
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_nothing_else_moves_while_a_bank_is_filled(config):
    run, mesh = Run(config), data_mesh(1)
    before = jax.device_get(run.blueprint.create(0, mesh))
    fill = make_fill(run.blueprint, run.policy, run.schedules, mesh)
    batch = global_batch(mesh, run.batch(0))
    after = fill(run.blueprint.create(0, mesh), batch, jnp.int32(0), traced_scalars(run.config))
    changed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
        )
        if np.asarray(a).tobytes() != np.asarray(b).tobytes()
    }
    assert changed == {"rest/bank/value", "rest/fillings/value"}


def test_a_signal_while_a_bank_is_filled_ends_it():
    interruption, mesh, seen = Interruption(active=False), data_mesh(1), []

    def fill(state, batch, number, hyper):
        seen.append(int(number))
        interruption.output_closed()
        return state

    with pytest.raises(Interrupted, match="no step was done"):
        filled(
            TrainState(0, {}, {}, {}),
            fill=fill,
            hyper={},
            batches=iter([{}] * 9),
            mesh=mesh,
            interruption=interruption,
        )
    assert seen == [0]


@pytest.mark.parametrize("name", ["densecl", "moco_v2", "swav"])
def test_a_queue_has_the_dtype_of_the_parameters(name):
    """Also in a process that computes in double precision elsewhere."""
    config = config_for(name)
    spec = Spec(640, 10, 1, (8, 8), 40, 40)
    with jax.enable_x64(True):
        groups = config.method, config.encoder, config.optimizer
        state = Blueprint.from_config(*groups, spec).abstract(data_mesh(1))
    rows = {
        jax.tree_util.keystr(path): leaf.dtype
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.rest)
        if "rows" in jax.tree_util.keystr(path)
    }
    assert rows
    assert set(rows.values()) == {jnp.dtype("float32")}
