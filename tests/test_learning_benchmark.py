"""The benchmark that trains every method: its runs are whole, and are those that it prints."""

import json
import pathlib
import shlex
import sys

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import learning  # noqa: E402
from test_configs import read  # noqa: E402

from configs.pretrain.mnist import OF_THEIR_OWN, ROWS  # noqa: E402
from jaxssl.augment.policies import recipes  # noqa: E402
from jaxssl.errors import UserError  # noqa: E402
from jaxssl.methods import METHODS, Spec  # noqa: E402
from jaxssl.plan import resolve  # noqa: E402
from jaxssl.training.state import Blueprint  # noqa: E402


def test_every_method_has_a_row():
    assert set(ROWS) == set(METHODS)
    assert set(OF_THEIR_OWN) <= set(METHODS)


@pytest.mark.parametrize("method", ROWS)
def test_a_row_is_a_run(method):
    """Of the method, with all numbers that it reads and no others, from the printed command."""
    run = learning.Run(method, seed=2, epochs=3.0)
    config = resolve(learning.config_of(run))
    assert config.method.name == method
    assert (config.seed, config.epochs, config.data.train_examples) == (2, 3.0, 10_000)
    assert len(recipes(config.views)) == (METHODS[method].VIEWS or 2)
    spec = Spec(60_000, 10, 1, (28, 28), 40, 40)
    Blueprint.from_config(config.method, config.encoder, config.optimizer, spec)

    train, _ = map(shlex.split, run.commands())
    argument = train[train.index("--config") + 1]
    assert read(*argument.split(":")).to_dict() == learning.config_of(run).to_dict()


def test_methods_differ_in_nothing_but_the_method():
    """All but MAE share data, views, net and schedule."""
    one, other = (learning.config_of(learning.Run(m, 0, 3.0)) for m in ("simclr", "byol"))
    for group in ("data", "views", "encoder", "normalize", "optimizer"):
        assert one[group].to_dict() == other[group].to_dict(), group
    assert one.hyper.learning_rate == other.hyper.learning_rate


def test_an_unknown_method_is_refused():
    with pytest.raises(UserError, match=r"method='byoll' is unknown: choose one of align_uniform,"):
        _ = read("configs/pretrain/mnist.py", "method=byoll").batch_size


def part_of(run, folder, trained, untrained):
    """Writes what a run would have left, of the given hits."""
    networks = {
        name: {
            "linear": float(np.mean(right)),
            "linear_few": 0.5,
            "right": np.packbits(right).tobytes().hex(),
            "rankme": 7.0,
            "dimensions": 128,
            "feature_std": 0.25,
        }
        for name, right in (("trained", trained), ("untrained", untrained))
    }
    content = {
        "method": run.method,
        "seed": run.seed,
        "epochs": run.epochs,
        "examples": {"test": len(trained)},
        "networks": networks,
        "loss": {"first": 2.0, "last": 1.0},
        "seconds": {"training": 1.0, "probes": 1.0},
        "environment": dict.fromkeys(learning.HELD_FOR, "") | {"command": "python"},
    }
    path = learning.part(run, folder)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def test_the_table_pairs_seeds_and_images(tmp_path):
    """Against the differences themselves: 11 images, so that the last byte is not whole."""
    runs = [learning.Run(m, seed, 3.0) for seed in (0, 1) for m in ("byol", "simclr", "vae")]
    draw = np.random.default_rng(0)
    hits = {run: draw.random((2, 11)) < 0.7 for run in runs}
    for run in runs[:-1]:  # the last has not ended
        part_of(run, tmp_path, *hits[run])
    byol, simclr, vae = learning.collected(runs, tmp_path)
    assert [row["seeds"] for row in (byol, simclr, vae)] == [[0, 1], [0, 1], [0]]

    def of(method, network, seeds):
        return np.stack([hits[learning.Run(method, seed, 3.0)][network] for seed in seeds])

    trained = of("byol", 0, (0, 1))
    assert byol["gain"][0] == pytest.approx(trained.mean() - of("byol", 1, (0, 1)).mean())
    assert byol["beside_simclr"][0] == pytest.approx(
        trained.mean() - of("simclr", 0, (0, 1)).mean()
    )
    assert vae["beside_simclr"][0] == pytest.approx(
        of("vae", 0, (0,)).mean() - of("simclr", 0, (0,)).mean()
    )
    assert simclr["beside_simclr"] == [0.0, 0.0, 0.0]
    for row in (byol, vae):
        value, low, high = row["gain"]
        assert low < value < high
    header, _, first, *_ = learning.table([byol, simclr, vae]).splitlines()
    assert header.count("|") == first.count("|")
    assert f"| {100 * byol['trained']['linear']:.2f} |" in first


def test_what_has_ended_is_not_run_again(tmp_path, monkeypatch):
    runs = [learning.Run("byol", seed, 3.0) for seed in (0, 1)]
    right = np.ones(11, bool)
    part_of(runs[0], tmp_path, right, right)
    asked = []
    monkeypatch.setattr(learning, "environment", dict)
    monkeypatch.setattr(learning, "summary_line", str)

    def measure(run, folder):
        asked.append(run)
        return {}

    monkeypatch.setattr(learning, "measure", measure)
    learning.measure_all(runs, tmp_path)
    learning.measure_all(runs, tmp_path)
    assert asked == [runs[1]]
