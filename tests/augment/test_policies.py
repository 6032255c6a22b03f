"""What a config's policy makes of a batch: crops placed together, all else as ever."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from quick_compilation import quick_jit

from configs.common import base_config, schedule, view_group, view_policy
from configs.pretrain import dino, simclr, swav
from jaxssl.augment.augmentation import Augmentation
from jaxssl.augment.policies import PAIRS, check_policy, policy_hyper, recipes
from jaxssl.augment.spatial import centre_distance, intersection_area
from jaxssl.corruptions import CORRUPTIONS, global_shuffle
from jaxssl.corruptions.apply import Corruptor
from jaxssl.errors import UserError
from jaxssl.evaluation.frozen import make_test_view
from jaxssl.plan import policy_of, resolve
from jaxssl.randomness import Split
from jaxssl.ranges import ANY
from jaxssl.training.schedules import Schedules, check_hyper
from jaxssl.training.state import traced_scalars

SIDE, N = 16, 6
RECIPE = Augmentation(
    size=SIDE,
    crop_scale=(0.3, 1.0),
    crop_filter="bilinear",
)  # crops and flips: colours, slow to compile, are in test_views.py


def config_with(**changes):
    config = base_config()
    config.init_seed = config.data_seed = 5
    config.views = view_group((RECIPE, RECIPE))
    if "views.policy" in changes:
        view_policy(config, changes["views.policy"])
    config.update_from_flattened_dict(changes)
    return config


def scalars_of(config):
    return Schedules.from_config(config.hyper, config.epochs, 1.0).at(traced_scalars(config), 0)


def batch_of(**changes):
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (N, SIDE, SIDE, 3), np.uint8)),
        "content": jnp.full((N, 2), SIDE, jnp.int32),
        "index": jnp.arange(40, 40 + N, dtype=jnp.int32),
        "split": jnp.full(N, Split.TRAIN, jnp.int32),
        "epoch": jnp.full(N, 2, jnp.int32),
        "targets": {},
    }
    return batch | changes


def make(batch=None, **changes):
    config = config_with(**changes)
    policy = policy_of(config)
    return quick_jit(policy)(batch_of() if batch is None else batch, scalars_of(config))


@functools.cache
def named(policy):
    return make(**{"views.policy": policy})


@pytest.mark.parametrize("name", PAIRS)
def test_a_policy_moves_the_crops_and_nothing_else(name):
    """Runs that differ in the policy share every other draw."""
    plain, ours = named("multi_view"), named(name)
    for view in range(2):
        np.testing.assert_array_equal(ours.flipped[view], plain.flipped[view])
        assert np.abs(ours.boxes[view] - plain.boxes[view]).max() > 0.5
        assert ours.images[view].shape == (N, SIDE, SIDE, 3)
        assert (ours.boxes[view] >= 0).all()
        assert (ours.boxes[view] <= SIDE).all()


@pytest.mark.parametrize("name", ["multi_view", *PAIRS])
def test_crops_stay_inside_the_picture_of_a_letterboxed_image(name):
    """The padding is never seen, whatever places the crops."""
    batch = batch_of()
    content = np.array([[12, 16], [16, 9]] * (N // 2), np.int32)
    inside = np.arange(SIDE)[None, :, None] < content[:, :1, None]
    inside = inside & (np.arange(SIDE)[None, None] < content[:, 1:, None])
    white = np.where(inside[..., None], np.uint8(255), np.uint8(0)) * np.ones(3, np.uint8)
    changes = {"views.policy": name, "views.global_crops.flip_p": 0.0}
    made = make(batch | {"image": jnp.asarray(white), "content": jnp.asarray(content)}, **changes)
    for view in range(2):
        assert (made.boxes[view][:, 2:] <= content + 1e-3).all()
        if view == 1 or name not in ("cutout", "cutout_blur"):
            assert np.min(made.images[view]) > 0.999
    if name == "overlap":
        shared = np.asarray(intersection_area(*made.boxes)) / content.prod(axis=1)
        np.testing.assert_allclose(shared, 0.3, atol=1e-6)


def test_views_are_what_their_boxes_say():
    overlap, patch, exclusive = (named(name) for name in ("overlap", "patch", "exclusive"))
    shared = np.asarray(intersection_area(*overlap.boxes)) / SIDE**2
    np.testing.assert_allclose(shared, 0.3, atol=1e-6)
    np.testing.assert_array_equal(patch.boxes[0], np.tile([0.0, 0, SIDE, SIDE], (N, 1)))
    np.testing.assert_allclose(intersection_area(*patch.boxes) / SIDE**2, 0.3, atol=1e-6)
    assert np.max(intersection_area(*exclusive.boxes)) == 0
    assert np.min(centre_distance(*exclusive.boxes)) >= 0.3 * SIDE


def test_one_compilation_serves_every_number():
    config = config_with(**{"views.policy": "overlap"})
    policy = quick_jit(policy_of(config))
    for overlap in (0.1, 0.5, 0.9):
        config.hyper.overlap = overlap
        views = policy(batch_of(), scalars_of(config))
        shared = np.asarray(intersection_area(*views.boxes)) / SIDE**2
        np.testing.assert_allclose(shared, overlap, atol=1e-6)
    assert policy._cache_size() == 1


def test_cutout_blur_becomes_patch_as_the_blur_vanishes():
    patch = named("patch")
    sharp = make(**{"views.policy": "cutout_blur", "hyper.blur_sigma": 0.0})
    for view in range(2):
        np.testing.assert_allclose(sharp.images[view], patch.images[view], atol=1e-6)
    blurred, black = named("cutout_blur"), named("cutout")
    for holed in (blurred, black):
        np.testing.assert_allclose(holed.images[1], patch.images[1], atol=1e-6)
        assert np.abs(holed.images[0] - patch.images[0]).max() > 0.1


def test_bits_are_appended_last_and_shared_by_all_views():
    changes = {
        "normalize.mean": (0.5, 0.4, 0.3),
        "normalize.std": (0.2, 0.3, 0.4),
        "randbit.num_bits": 4,
    }
    with_bits, config = make(**changes), config_with(**changes)
    clean = quick_jit(make_test_view(config))(batch_of())
    plain = make(**(changes | {"randbit.num_bits": 0}))
    bits = np.asarray(clean[:, 0, 0, 3:])
    assert set(np.unique(bits)) == {0.0, 1.0}
    assert len(np.unique(bits, axis=0)) > 1
    for view in range(2):
        seen = np.asarray(with_bits.images[view])
        np.testing.assert_allclose(seen[..., :3], plain.images[view], atol=1e-5)
        np.testing.assert_array_equal(
            seen[..., 3:], np.broadcast_to(bits[:, None, None], (N, SIDE, SIDE, 4))
        )
    fresh = make(**changes, **{"randbit.fresh_per_epoch": True})
    assert (np.asarray(fresh.images[0])[:, 0, 0, 3:] != bits).any()
    np.testing.assert_array_equal(fresh.images[0][:, 0, 0, 3:], fresh.images[1][:, 0, 0, 3:])


def test_a_late_corruption_is_that_of_the_finished_view():
    changes = {"corruption.name": "global_shuffle", "corruption.order": "aug_corrupt"}
    plain, late = named("multi_view"), make(**changes)
    corruptor = Corruptor.from_config(config_with(**changes).corruption)
    sigma = corruptor.draw_once((SIDE, SIDE, 3))
    for view in range(2):
        expected = global_shuffle(np.asarray(plain.images[view]), sigma, 4)
        np.testing.assert_allclose(late.images[view], expected, atol=1e-6)


def test_late_noise_differs_between_views_and_repeats():
    changes = {"corruption.name": "shot_noise", "corruption.order": "aug_corrupt"}
    same = {"crop_scale": (1.0, 1.0), "flip_p": 0.0}
    changes |= {f"views.global_crops.{name}": value for name, value in same.items()}
    first, again = make(**changes), make(**changes)
    np.testing.assert_array_equal(first.images[0], again.images[0])
    assert np.abs(first.images[0] - first.images[1]).max() > 0.05


def test_without_augmentation_views_are_the_test_time_images():
    config = config_with(**{"corruption.order": "no_aug"})
    clean = quick_jit(make_test_view(config))(batch_of())
    views = make(**{"corruption.order": "no_aug"})
    for view in range(2):
        np.testing.assert_allclose(views.images[view], clean, atol=1e-6)
        assert not np.any(views.flipped[view])


def test_without_augmentation_boxes_say_what_is_shown():
    config = config_with(**{"corruption.order": "no_aug"})
    config.views = view_group(tuple(dataclasses.replace(RECIPE, size=side) for side in (40, 16)))
    batch = batch_of()
    striped = np.zeros((len(batch["index"]), 64, 96, 3), np.uint8)
    striped[:, 4:60, 20:76] = 255  # .875 of the shorter side, in the middle
    whole = jnp.tile(jnp.array([64, 96], jnp.int32), (N, 1))
    batch |= {"image": jnp.asarray(striped), "content": whole}
    views = quick_jit(policy_of(config))(batch, scalars_of(config))
    assert np.all(views.boxes[0] == np.array([4, 20, 60, 76]))
    assert np.all(views.boxes[1] == np.array([0, 16, 64, 80]))
    assert views.images[0].min() > 0.999
    assert views.images[1].min() < 0.1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"views.policy": "overlapp"}, r"views\.policy=overlapp is unknown"),
        (
            {"views.policy": "overlap", "hyper.overlap": 1.5},
            "hyper.overlap=1.5 must be above 0",
        ),
        (
            {"views.policy": "overlap_fixed_area", "hyper.overlap": 0.9},
            "--config.hyper.overlap=0.9, --config.hyper.crop_area=0.5 with --config.*cannot be met",
        ),
        ({"views.policy": "exclusive", "hyper.gap": 0.7}, "--config.hyper.gap=0.7, .*no room"),
        (
            {"views.policy": "patch", "hyper.patch_area": 0.0},
            "hyper.patch_area=0.0 must be above 0",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        checked(config_with(**changes))


def checked(config, height=SIDE, width=SIDE):
    """As `resolve` and the program do, one after the other."""
    numbers = {"all": {"learning_rate": ANY, "weight_decay": ANY}}
    numbers["policy"] = policy_hyper(config.views.policy)
    check_hyper(config.hyper, config.epochs, numbers)
    schedules = Schedules.from_config(config.hyper, config.epochs, 10)
    check_policy(config.views, schedules.path(config.hyper, numbers["policy"]), height, width)


def test_numbers_that_move_together_are_checked_together():
    """Once, each end of the one was held against each end of the other, and both were refused."""

    def numbers(overlap, crop_area):
        config = config_with(**{"views.policy": "overlap_fixed_area"})
        config.epochs = 20.0
        del config.hyper["overlap"], config.hyper["crop_area"]
        config.hyper.overlap, config.hyper.crop_area = overlap, crop_area
        return config

    overlap = schedule(0.1, end=0.9, shape="linear")
    checked(numbers(overlap, schedule(0.2, end=0.95, shape="linear")))
    # The cosine is behind the line at first, and the overlap then larger than the crops.
    with pytest.raises(
        UserError, match=r"at step \d of their schedules with .*: overlap=0.\d+ cannot"
    ):
        checked(numbers(overlap, schedule(0.12, end=0.92)))
    by_epoch = schedule(0.2, end=0.95, shape="linear", granularity="epoch")
    with pytest.raises(UserError, match=r"at step [1-9] of their schedules"):  # steps ahead
        checked(numbers(schedule(0.199, end=0.9, shape="linear"), by_epoch))
    warm_up = {"end": 0.9, "warmup_epochs": 2.0}
    with pytest.raises(
        UserError, match=r"hyper.overlap=0.2, .* at step 0 of their schedules with "
    ):
        checked(numbers(schedule(0.9, warmup_from=0.2, **warm_up), 0.92))
    checked(numbers(schedule(0.9, warmup_from=0.85, **warm_up), 0.92))


def test_a_spatial_policy_without_augmentation_is_refused():
    config = simclr.get_config("policy=overlap")
    resolve(config)
    with config.unlocked():
        config.corruption.order = "no_aug"
    with pytest.raises(UserError, match=r"order=no_aug cuts no crops, .*=overlap would place"):
        resolve(config)
    with config.unlocked():
        config.views.policy = "multi_view"
        del config.hyper.overlap
    resolve(config)


def test_a_pair_needs_two_recipes():
    config = config_with(**{"views.policy": "patch"})
    config.views = view_group((RECIPE,))
    config.views.policy = "patch"
    with pytest.raises(UserError, match="makes two views and the config has 1"):
        policy_of(config)
    config = swav.get_config("preset=multicrop,policy=overlap")
    said = "config has 8: set .*global_crops.count=2 and --config.views.local_crops.count=0"
    with pytest.raises(UserError, match=said):
        policy_of(config)
    config.views.local_crops.count = 0
    policy_of(config)


def test_a_local_view_is_smaller_than_a_global_one():
    """By their size methods tell them apart, and all would be global."""
    config = dino.get_config("preset=vit")
    config.views.local_crops.size = 32
    with pytest.raises(UserError, match=r"local_crops.size=32 must be below --config.views.glob"):
        policy_of(config)
    config.views.local_crops.count = 0
    policy_of(config)
    config.views.update({"global_crops": {"count": 0}, "local_crops": {"count": 6, "size": 16}})
    with pytest.raises(UserError, match=r"global_crops.count=0 must be at least 1"):
        policy_of(config)
    for argument, size in (("size=16,patch=4", 8), ("size=32", 16), ("size=24,patch=8", 8)):
        config = dino.get_config(f"preset=vit,{argument}")
        assert recipes(config.views)[-1].size == size


def test_a_square_larger_than_a_narrow_image_is_refused():
    config = config_with(**{"views.policy": "cutout_blur", "hyper.patch_area": 0.6})
    checked(config)
    with pytest.raises(UserError, match="of a square in an image of 16 x 32"):
        checked(config, SIDE, 2 * SIDE)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"corruption.name": "jpeg", "corruption.order": "aug_corrupt"},
            "jpeg runs on the host alone",
        ),
        ({"corruption.name": "gama"}, r"corruption\.name=gama is unknown"),
        ({"corruption.order": "late"}, r"corruption\.order=late is unknown"),
        (
            {"corruption.name": "shot_noise", "corruption.severity": 6},
            "config.corruption.severity=6",
        ),
        ({"randbit.num_bits": 40}, r"randbit\.num_bits=40 must be from 0 to"),
    ],
)
def test_impossible_interventions_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        policy_of(config_with(**changes))


def test_every_corruption_on_the_device_keeps_the_shape():
    for name in CORRUPTIONS:
        if name == "jpeg":
            continue
        changes = {"corruption.name": name, "corruption.order": "aug_corrupt"}
        views = make(**changes)
        assert views.images[0].shape == (N, SIDE, SIDE, 3)
        assert np.isfinite(views.images[0]).all()
