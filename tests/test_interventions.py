"""Interventions through the programs: what is trained on and probed is what was asked for."""

import json

import jax
import numpy as np
import pytest
from tiny import config_for

from configs.pretrain import multi_digits
from jaxssl.corruptions import global_shuffle
from jaxssl.corruptions.apply import Corruptor, corruption_group, setting_name
from jaxssl.data.pipeline import train_batches
from jaxssl.data.sources import load
from jaxssl.data.splits import CorruptedSource, check_effects
from jaxssl.errors import UserError
from jaxssl.evaluation import probe
from jaxssl.evaluation.conditions import conditions
from jaxssl.evaluation.frozen import make_test_view
from jaxssl.evaluation.opened import open_run
from jaxssl.evaluation.probe_data import WHERE_TRAINED, data_settings
from jaxssl.evaluation.sections import Predictions
from jaxssl.evaluation.sections.fingerprint import fingerprint
from jaxssl.linear_probe import linear_probe, open_splits
from jaxssl.plan import resolve, splits_of
from jaxssl.pretrain import pretrain
from jaxssl.reporting import read_metrics
from jaxssl.run_directory import write_config


def config_with(method="simclr", **changes):
    config = config_for(method)
    config.update_from_flattened_dict(
        {
            "run.stop_step": 4,
            "run.checkpoint_every_steps": 4,
            "run.num_devices": 1,
            "evals.knn.every": 0.2,
            "evals.knn.protocol": "dino",
        }
        | changes
    )
    return config


def quick_settings(**changes):
    settings = probe.default_config()
    settings.sgd.epochs = 0
    settings.lbfgs.l2_grid = (1e-2, 1e-1)
    settings.update_from_flattened_dict(changes)
    return settings


SHUFFLE = {"corruption.name": "global_shuffle", "corruption.patches": 4, "corruption.seed": 3}


def test_every_split_gets_the_same_permutation():
    config = config_with(**SHUFFLE)
    sigma = Corruptor.from_config(config.corruption).draw_once((8, 8, 1))
    assert (sigma != np.arange(16)).any()
    examples = splits_of(config)
    for split in ("pretrain", "train", "validation", "test"):
        clean = load(config.data, "train" if split == "pretrain" else split)
        np.testing.assert_array_equal(
            examples[split].images, global_shuffle(clean.images, sigma, 4)
        )
        np.testing.assert_array_equal(examples[split].positions, clean.positions)
    other = Corruptor.from_config(config_with(**SHUFFLE | {"corruption.seed": 4}).corruption)
    assert (other.draw_once((8, 8, 1)) != sigma).any()


def test_an_images_own_permutation_depends_on_its_index_alone():
    """On the host before augmentation and on the device after it, in any cut of the set."""
    changes = SHUFFLE | {"corruption.per_image": True}
    config = config_with(**changes)
    clean, shuffled = load(config.data, "test"), splits_of(config)["test"]
    corruptor = Corruptor.from_config(config.corruption)
    late = splits_of(config_with(**changes, **{"corruption.order": "aug_corrupt"}))["test"]
    rows = np.array([200, 7, 30])
    batch = late.take(np.arange(5, 205)).gather(rows - 5)
    np.testing.assert_array_equal(batch["image"], clean.images[rows])
    for row, sigma in zip(rows, batch["corruption"], strict=True):
        alone = corruptor.draw_each(np.array([1]), clean.positions[[row]], (8, 8, 1))[0]
        np.testing.assert_array_equal(sigma, alone)
        expected = global_shuffle(clean.images[row], sigma, 4)
        np.testing.assert_array_equal(shuffled.images[row], expected)
    assert len(np.unique(batch["corruption"], axis=0)) == 3


def test_corrupted_records_are_read_by_worker_processes(tmp_path):
    """What is corrupted record by record goes through pickle and threads unchanged."""
    import PIL.Image

    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(6):
            image = draw.integers(0, 256, (12, 12, 3), np.uint8)
            PIL.Image.fromarray(image).save(tmp_path / "train" / name / f"{number}.png")
    config = config_with(**SHUFFLE, **{"data.name": "folder", "data.data_dir": str(tmp_path)})
    config.update_from_flattened_dict({"data.image_size": 12, "data.validation_fraction": 0.0})
    kept = splits_of(config)["train"]
    plain = load(config.data, "train", memory_limit_bytes=0)
    lazy = splits_of(config, {"train": plain})["train"]
    assert isinstance(lazy, CorruptedSource)
    how = {"data_seed": 0, "batch_size": 4, "start_step": 0, "num_steps": 5}
    how |= {"process_index": 0, "process_count": 1}
    expected = [batch["image"] for batch in train_batches(kept, **how)]
    for workers in (0, 2):
        got = [batch["image"] for batch in train_batches(lazy, **how, workers=workers)]
        np.testing.assert_array_equal(got, expected)


@pytest.fixture(scope="module")
def shuffled_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("shuffled") / "run"
    pretrain(config_with(**SHUFFLE), workdir)
    return workdir


def test_the_probe_reads_the_corruption_from_the_run_and_can_be_told_another(shuffled_run):
    same, path = linear_probe(shuffled_run, None, quick_settings(), baselines=False)
    assert path.parent.name.startswith("linear_probe-4-settings=")
    assert np.isfinite(read_metrics(shuffled_run)[-1]["knn"])

    clean_test = quick_settings(**{"test_corruption.name": "none"})
    clean, path = linear_probe(shuffled_run, None, clean_test, baselines=False)
    assert path.parent.name.startswith("linear_probe-4-none-settings=")
    drop = [card["results"]["trained"]["lbfgs"]["top1"] for card in (same, clean)]
    assert drop[0] > drop[1] + 0.2  # trained on shuffled digits, tested on whole ones

    # The run's own permutation, asked for in so many words, gives the run's own test set.
    spelled = {key.replace("corruption.", "test_corruption."): v for key, v in SHUFFLE.items()}
    again, path = linear_probe(shuffled_run, None, quick_settings(**spelled), baselines=False)
    assert path.parent.name.startswith("linear_probe-4-global_shuffle-seed=3-settings=")
    assert again["results"] == same["results"]
    assert json.loads(path.read_text())["settings"]["test_corruption"]["seed"] == 3


def test_a_fingerprints_classifier_is_clean_whatever_the_run_was_trained_on(shuffled_run):
    settings = quick_settings()
    opened = open_run(
        shuffled_run,
        None,
        settings,
        False,
        None,
        data_settings(),
        WHERE_TRAINED,
        reuse_classifiers=False,
    )
    (probed,) = opened.probes.values()
    found = [c for c in conditions((8, 8, 1)) if c.name in ("clean", "global 4")]
    predictions = Predictions(opened.parts["test"].source.positions, probed.test.labels)
    rows = fingerprint(probed, settings, predictions, found)
    whole, shuffled = (rows[name]["accuracy"]["value"] for name in ("clean", "global 4"))
    assert whole > shuffled + 0.2
    # By features of images that were never shuffled, throughout.
    embed = probed.network.through(opened.parts["test"].view, "pooled")
    config = config_with()
    clean = {}
    for name, part in open_splits(config, settings, None).items():
        batch = part.source.gather(np.arange(len(part.source)))
        clean[name] = np.asarray(embed(batch)), batch["targets"]["label"]
    how = {"max_iterations": settings.lbfgs.max_iterations, "tolerance": settings.lbfgs.tolerance}
    l2, _ = probe.select_l2(
        clean["train"], clean["validation"], 10, grid=settings.lbfgs.l2_grid, **how
    )
    fit = probe.fit_lbfgs(*clean["train"], 10, l2=l2, **how)
    right = fit.classifier.logits(clean["test"][0]).argmax(axis=1) == clean["test"][1]
    assert whole == pytest.approx(right.mean(), abs=0.01)


def test_only_the_test_split_is_told_another(shuffled_run):
    config = resolve(config_with(**SHUFFLE))
    told = quick_settings(**{"test_corruption.name": "gamma"})
    parts, own = open_splits(config, told, None), open_splits(config, quick_settings(), None)
    for split, differs in (("train", False), ("validation", False), ("test", True)):
        a, b = parts[split].source.images, own[split].source.images
        assert np.array_equal(a, b) != differs
    assert setting_name(told.test_corruption) == "gamma"


@pytest.mark.slow
def test_bits_reach_the_encoder_and_the_probe(tmp_path):
    config = config_with(**{"randbit.num_bits": 5})
    pretrain(config, tmp_path / "run")
    card, _ = linear_probe(tmp_path / "run", None, quick_settings(), baselines=True)
    assert set(card["results"]) == {"trained", "untrained", "pixels"}


def test_bits_say_nothing_of_the_labels():
    config = config_with(**{"randbit.num_bits": 12})
    source = splits_of(config)["train"]
    batch = source.gather(np.arange(len(source)))
    bits = np.asarray(jax.jit(make_test_view(config))(batch))[:, 0, 0, 1:]
    assert bits.shape == (len(source), 12)
    classes = np.eye(10)[batch["targets"]["label"]]
    correlations = np.corrcoef(bits, classes, rowvar=False)[:12, 12:]
    assert np.abs(correlations).max() < 4 / np.sqrt(len(source))


@pytest.mark.parametrize(
    ("order", "name"),
    [
        ("no_aug", "local_shuffle"),
        ("aug_corrupt", "shot_noise"),
        pytest.param("no_aug", "shot_noise", marks=pytest.mark.slow),
        pytest.param("aug_corrupt", "local_shuffle", marks=pytest.mark.slow),
    ],
)
def test_supervised_runs_in_every_order(tmp_path, order, name):
    changes = {"corruption.name": name, "corruption.order": order, "corruption.per_image": True}
    state = pretrain(config_with("supervised", **changes), tmp_path / "run")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_many_digits_are_trained_on_and_single_ones_probed(tmp_path):
    small = "digits=digits,canvas=32,sizes=8,evaluation_size=8,size=16,count=3"
    config = config_with()
    with config.unlocked():
        config.data = multi_digits.get_config(small).data
    pretrain(config, tmp_path / "run")
    examples = splits_of(config)
    assert set(examples["pretrain"].gather(np.arange(2))["targets"]) == {"presence", "slots"}
    assert set(examples["train"].gather(np.arange(2))["targets"]) == {"label"}
    card, _ = linear_probe(tmp_path / "run", None, quick_settings(), baselines=False)
    assert card["examples"]["test"] == 360
    assert np.isfinite(read_metrics(tmp_path / "run")[-1]["knn"])

    larger, own = quick_settings(evaluation_size=16), quick_settings()
    parts = {size: open_splits(config, size_of, None) for size, size_of in ((16, larger), (8, own))}
    for split in ("train", "validation", "test"):
        assert [parts[size][split].source.size for size in (8, 16)] == [8, 16]
    _, path = linear_probe(tmp_path / "run", None, larger, baselines=False)
    assert path.parent.name.startswith("linear_probe-4-evaluation_size=16-settings=")


def test_a_size_of_digits_is_refused_where_there_are_none(shuffled_run):
    with pytest.raises(UserError, match="evaluation_size=16 is for runs on multi_digits"):
        linear_probe(shuffled_run, None, quick_settings(evaluation_size=16), baselines=False)


def test_a_test_corruption_without_a_name_is_refused(shuffled_run):
    told = quick_settings(**{"test_corruption.severity": 5})
    with pytest.raises(UserError, match=r"has severity=5 but no name.*test_corruption\.name"):
        linear_probe(shuffled_run, None, told, baselines=False)


@pytest.mark.parametrize(
    "seed", [{"corruption.seed": -1}, {"randbit.seed": 2**32}, {"data_seed": 2**32}]
)
def test_a_seed_that_is_none_is_refused(tmp_path, seed):
    ((name, value),) = seed.items()
    config = config_with(**{"corruption.name": "gamma"}, **seed)
    with pytest.raises(UserError, match=f"{name}={value} is out of range: use 0 to 4294967295"):
        pretrain(config, tmp_path / "run")


def test_a_target_that_is_not_there_is_refused(shuffled_run):
    with pytest.raises(UserError, match="has no target 'digit' to probe: it has label"):
        linear_probe(shuffled_run, None, quick_settings(target="digit"), baselines=False)


@pytest.mark.parametrize("order", ["corrupt_aug", "aug_corrupt"])
@pytest.mark.parametrize("name", ["global_shuffle", "local_shuffle"])
def test_a_size_that_cannot_be_cut_is_refused_before_anything_is_written(tmp_path, name, order):
    changes = {"corruption.name": name, "corruption.order": order, "corruption.patches": 3}
    config = config_with(**changes)
    with pytest.raises(
        UserError,
        match=r"--config\.corruption\.patches=3 a side do not divide",
    ):
        pretrain(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


WITHOUT_EFFECT = [
    ({"corruption.patches": 2}, r"--config\.corruption\.patches=2 has no effect without a corrup"),
    ({"corruption.severity": -1}, r"--config\.corruption\.severity=-1 has no effect .*\.name too"),
    (
        {"data.test_fraction": 0.5},
        r"--config\.data\.test_fraction=0\.5 would be ignored, for digits",
    ),
    ({"data.test_fraction": -7.0}, r"--config\.data\.test_fraction=-7\.0 must be from 0 to 1"),
    ({"data.fit": "stretch"}, r"--config\.data\.fit=stretch is unknown"),
]


@pytest.mark.parametrize(("changes", "said"), WITHOUT_EFFECT)
def test_settings_without_effect_are_refused_in_new_runs_alone(
    tmp_path, monkeypatch, changes, said
):
    class ReachedError(Exception):
        pass

    def reached(*given):
        raise ReachedError

    monkeypatch.setattr("jaxssl.pretrain.make_plan", reached)
    config = resolve(config_with(**changes))
    with pytest.raises(UserError, match=said):
        pretrain(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    write_config(tmp_path / "old", config, {})
    with pytest.raises(ReachedError):
        pretrain(config, tmp_path / "old")


def test_settings_that_have_an_effect_are_not_refused():
    check_effects(corruption_group(), config_for("simclr").data)
    plain = corruption_group()
    plain.order = "no_aug"  # without augmentation, corrupted or not
    check_effects(plain, None)
    check_effects(config_with(**SHUFFLE).corruption, None)
