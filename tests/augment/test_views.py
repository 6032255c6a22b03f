import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image
from quick_compilation import at_once, quick_jit
from support import unchecked

from jaxssl.augment import augmentation, ops, views
from jaxssl.augment.augmentation import Augmentation, byol, crop_flip
from jaxssl.augment.resample import resized_crop
from jaxssl.augment.views import Views
from jaxssl.errors import UserError
from jaxssl.randomness import Purpose, Split, sample_keys

N, SIDE = 24, 20
# What samples 7 and 50000 of epoch 3 draw under seed 0: boxes in 1/128 pixel, orders, then
# (brightness, hue, sigma) and (flipped, jittered, grayscaled, solarized).
GOLDEN_BOXES = [[64, 102, 2400, 2542], [6, 31, 2545, 2027]]
GOLDEN_ORDERS = [[3, 0, 2, 1], [0, 3, 2, 1]]
GOLDEN_NUMBERS = [[0.9407256, 0.6069918], [0.008828497, 0.06237769], [0.0, 0.2035495]]
GOLDEN_FLAGS = [[True, False], [False, True], [False, False], [True, True]]

EVERYTHING = Augmentation(
    size=16,
    crop_scale=(0.2, 1.0),
    crop_subpixel=True,
    jitter_p=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    grayscale_p=0.2,
    blur_p=0.5,
    blur_kernel_size=5,
    solarize_p=0.2,
)
CROP = crop_flip(16)[0]


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (N, SIDE, SIDE, 3), np.uint8)),
        "content": jnp.full((N, 2), SIDE, jnp.int32),
        "index": jnp.arange(100, 100 + N, dtype=jnp.int32),
        "split": jnp.full(N, Split.TRAIN, jnp.int32),
        "epoch": jnp.full(N, 3, jnp.int32),
        "targets": {"label": jnp.arange(N, dtype=jnp.int32)},
    }


def _made(batch, data_seed, augmentations, mean=(), std=()):
    made = views.multi_view(batch, data_seed, augmentations)
    images = tuple(views.normalize(image, mean, std) for image in made.images)
    return dataclasses.replace(made, images=images)


_make = quick_jit(_made, static_argnames=("augmentations", "mean", "std"))


def make(batch, *augmentations, data_seed=0, mean=(), std=()):
    return _make(batch, jnp.uint32(data_seed), augmentations, mean, std)


def _draws(index, augmentation=EVERYTHING):
    """All that is drawn for the samples of these indices."""
    keys = sample_keys(0, Purpose.VIEW, jnp.zeros_like(index), jnp.full_like(index, 3), index, 0)
    return jax.vmap(lambda key: views.draw_view(key, SIDE, SIDE, augmentation))(keys)


# As a user's program is compiled, where the bits are what is tested; quickly elsewhere.
draws = jax.jit(_draws, static_argnames="augmentation")
quick_draws = quick_jit(_draws, static_argnames="augmentation")


def devices(count):
    mesh = jax.make_mesh(
        (count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )
    return NamedSharding(mesh, PartitionSpec("data"))


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


# --- exactness


def test_draws_do_not_depend_on_the_batch(batch):
    """Alone the compiler makes scalar code of a sample; batches of 3 are in the next test."""
    parts = [draws(batch["index"][i : i + 1]) for i in range(N)]
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    assert_same_bits(together, draws(batch["index"]))


def test_draws_and_views_do_not_depend_on_the_devices(batch):
    count = 8  # 3 samples a device
    index = jax.device_put(batch["index"], devices(count))
    assert_same_bits(draws(index), draws(batch["index"]))

    recipes = {"augmentations": (EVERYTHING, CROP), "mean": (), "std": ()}
    seed = jnp.uint32(0)
    on_devices = jax.device_put(batch, devices(count))
    alone = _make.lower(batch, seed, **recipes).compile()
    shared = _make.lower(on_devices, seed, **recipes).compile()
    seen, expected = shared(on_devices, seed), alone(batch, seed)
    for name in ("boxes", "flipped", "index", "epoch", "targets"):
        assert_same_bits(getattr(seen, name), getattr(expected, name))
    # White noise is the worst image: what XLA rounds otherwise for another shape is amplified by
    # the contrast. On photographs most bits agree.
    for image, other in zip(seen.images, expected.images, strict=True):
        np.testing.assert_allclose(image, other, atol=1e-6)
    flops = [compiled.cost_analysis()["flops"] for compiled in (shared, alone)]
    assert flops[0] / flops[1] < 1.5 / count
    assert not any(word in shared.as_text() for word in ("all-reduce", "all-gather", "all-to-all"))


def test_views_do_not_depend_on_the_batch(batch):
    together = make(batch, EVERYTHING).images[0]
    for i in range(0, N, 3):
        part = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch)
        np.testing.assert_allclose(make(part, EVERYTHING).images[0][0], together[i], atol=1e-6)


def test_draws_never_change():
    """Published results depend on these numbers."""
    drawn = draws(jnp.array([7, 50_000], jnp.int32))
    np.testing.assert_array_equal(np.asarray(drawn.box) * 128, GOLDEN_BOXES)
    assert np.asarray(drawn.jitter.order).tolist() == GOLDEN_ORDERS
    numbers = [drawn.jitter.brightness, drawn.jitter.hue, drawn.sigma]
    np.testing.assert_allclose(numbers, GOLDEN_NUMBERS, rtol=1e-5)
    flags = [drawn.flipped, drawn.jittered, drawn.grayscaled, drawn.solarized]
    assert np.asarray(flags).tolist() == GOLDEN_FLAGS


def test_views_differ_between_epochs_samples_views_and_seeds(batch):
    same = {**batch, "image": jnp.broadcast_to(batch["image"][:1], batch["image"].shape)}
    first = make(same, CROP, CROP)
    others = {
        "epoch": make({**same, "epoch": same["epoch"] + 1}, CROP).images[0],
        "view": first.images[1],
        "sample": jnp.roll(first.images[0], 1, axis=0),
        "seed": make(same, CROP, data_seed=1).images[0],
    }
    for name, other in others.items():
        nearest = jnp.abs(first.images[0] - other).max(axis=(1, 2, 3)).min()
        assert nearest > 0.05, name


def test_data_seed_may_be_traced(batch):

    def known(batch):
        found = []
        for seed in (0, 5):
            of = (batch["split"], batch["epoch"], batch["index"], 0)
            keys = sample_keys(seed, Purpose.VIEW, *of)
            found.append(
                views.augment_view(views.to_float(batch["image"]), keys, CROP, batch["content"])
            )
        return found

    for seed, (images, boxes, flipped) in zip((0, 5), quick_jit(known)(batch), strict=True):
        traced = make(batch, CROP, data_seed=seed)
        assert_same_bits((traced.boxes[0], traced.flipped[0]), (boxes, flipped))
        np.testing.assert_allclose(traced.images[0], images, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        ({"flip_p": 0.0}, {"flipped"}),
        ({"jitter_p": 0.0}, {"jittered"}),
        ({"brightness": 0.0, "hue": 0.0}, {"jitter"}),
        ({"grayscale_p": 0.0}, {"grayscaled"}),
        ({"blur_p": 0.0}, {"sigma"}),
        ({"solarize_p": 0.0}, {"solarized"}),
        ({"crop_scale": (0.9, 1.0)}, {"box"}),
    ],
)
def test_one_operation_leaves_the_draws_of_the_others_alone(batch, changed, fields):
    before = jax.tree.map(np.asarray, quick_draws(batch["index"]))
    recipe = dataclasses.replace(EVERYTHING, **changed)
    after = jax.tree.map(np.asarray, quick_draws(batch["index"], recipe))
    for name in views.ViewDraw._fields:
        same = all(
            jax.tree.leaves(
                jax.tree.map(
                    lambda a, b: bool((a == b).all()), getattr(before, name), getattr(after, name)
                )
            )
        )
        assert same == (name not in fields), name


def test_shares_of_the_asymmetric_recipe():
    n = 4000
    first, second = (quick_draws(np.arange(n, dtype=np.int32), recipe) for recipe in byol(224))
    shares = [
        (0.5, first.flipped),
        (0.8, first.jittered),
        (0.2, first.grayscaled),
        (1.0, first.sigma > 0),
        (0.0, first.solarized),
        (0.1, second.sigma > 0),
        (0.2, second.solarized),
    ]
    for p, applied in shares:
        assert abs(float(applied.mean()) - p) <= 4 * np.sqrt(p * (1 - p) / n), p


# --- the pipeline


def test_a_view_is_its_operations_one_after_the_other(batch):
    images = views.to_float(batch["image"])
    drawn = jax.tree.map(np.asarray, draws(batch["index"]))
    seen = make(batch, EVERYTHING).images[0]
    crop = quick_jit(
        lambda image, box: resized_crop(image, box, 16, filter="bicubic", antialias=True)
    )
    jitter, blur = at_once(ops.color_jitter), at_once(ops.gaussian_blur)
    images, seen = np.asarray(images), np.asarray(seen)
    done = dict.fromkeys(("flipped", "jittered", "grayscaled", "blurred", "solarized"), 0)
    for i in range(N):
        d = jax.tree.map(lambda leaf, i=i: leaf[i], drawn)
        image = crop(images[i], d.box)
        if d.flipped:
            image = np.asarray(image)[:, ::-1]
        if d.jittered:
            image = jitter(image, d.jitter)
        if d.grayscaled:
            image = at_once(ops.grayscale)(image)
        if d.sigma > 0:
            image = blur(image, d.sigma, 5)
        if d.solarized:
            image = at_once(ops.solarize)(image, 0.5)
        np.testing.assert_allclose(seen[i], image, atol=2e-6)
        due = (d.flipped, d.jittered, d.grayscaled, d.sigma > 0, d.solarized)
        for name, flag in zip(done, due, strict=True):
            done[name] += bool(flag)
    assert min(done.values()) > 0, done
    assert max(done.values()) < N, done


def test_what_is_not_augmented_arrives_as_it_left(batch):
    still = Augmentation(size=SIDE, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip_p=0.0)
    made = make(batch, still)
    np.testing.assert_allclose(made.images[0], np.float64(batch["image"]) / 255, atol=1e-7)
    assert made.images[0].dtype == jnp.float32
    np.testing.assert_array_equal(made.boxes[0], np.tile([0, 0, SIDE, SIDE], (N, 1)))
    assert not made.flipped[0].any()
    assert_same_bits(made.targets, batch["targets"])
    assert_same_bits((made.index, made.epoch), (batch["index"], batch["epoch"]))


def test_flipped_says_what_was_mirrored(batch):
    both = Augmentation(size=SIDE, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    made = make(batch, both)
    plain = np.float64(batch["image"]) / 255
    assert 0 < made.flipped[0].sum() < N
    for i in range(N):
        expected = plain[i, :, ::-1] if made.flipped[0][i] else plain[i]
        np.testing.assert_allclose(made.images[0][i], expected, atol=1e-7)


def test_normalisation_comes_last(batch):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    raw, normal = make(batch, EVERYTHING), make(batch, EVERYTHING, mean=mean, std=std)
    np.testing.assert_allclose(
        normal.images[0], (np.float64(raw.images[0]) - mean) / std, atol=1e-6
    )
    with pytest.raises(UserError, match=r"std=\(0.2, 0.2\) has 2 values for images of 3 channels"):
        make(batch, CROP, std=(0.2, 0.2))


@pytest.mark.parametrize("channels", [1, 5])
def test_any_channels_without_colour_operations_and_a_clear_error_with_them(batch, channels):
    image = jnp.repeat(batch["image"][..., :1], channels, axis=-1)
    changed = {**batch, "image": image}
    colourless = dataclasses.replace(EVERYTHING, jitter_p=0.0, grayscale_p=0.0)
    assert make(changed, colourless).images[0].shape == (N, 16, 16, channels)
    for recipe in (
        dataclasses.replace(EVERYTHING, jitter_p=0.0),
        dataclasses.replace(EVERYTHING, grayscale_p=0.0),
    ):
        remedy = rf"these have {channels}: set --config\.views\.global_crops\.jitter_p=0"
        with pytest.raises(UserError, match=remedy):
            make(changed, recipe)


def test_views_may_differ_in_size(batch):
    made = make(batch, CROP, dataclasses.replace(CROP, size=6))
    assert [image.shape for image in made.images] == [(N, 16, 16, 3), (N, 6, 6, 3)]


def test_views_are_a_pytree(batch):
    made = make(batch, CROP, CROP)
    leaves, tree = jax.tree.flatten(made)
    assert isinstance(jax.tree.unflatten(tree, leaves), Views)
    assert_same_bits(jax.tree.unflatten(tree, leaves), made)
    shapes = jax.tree.map(jnp.shape, made)  # leaves that are no arrays
    assert shapes.boxes == ((N, 4), (N, 4))
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(made)}
    assert {".images[0]", ".flipped[1]", ".targets['label']", ".index", ".epoch"} <= paths


# --- recipes

PRESETS = {
    name: getattr(augmentation, name)
    for name in (
        "simclr_imagenet",
        "simclr_cifar",
        "moco_v2",
        "moco_cifar",
        "byol",
        "swav_multi_crop",
        "dino_multi_crop",
        "align_uniform",
        "lejepa",
        "crop_flip",
    )
}


def test_presets_are_as_published():
    simclr = PRESETS["simclr_imagenet"](224)[0]
    assert (simclr.brightness, simclr.hue, simclr.blur_p, simclr.blur_kernel_size) == (
        (0.8, 0.2, 0.5, 23)
    )
    cifar = PRESETS["simclr_cifar"](32)[0]
    assert (cifar.brightness, cifar.contrast, cifar.saturation, cifar.hue) == (0.4, 0.4, 0.4, 0.1)
    assert (cifar.blur_p, cifar.crop_scale) == (0.0, (0.08, 1.0))
    assert PRESETS["moco_v2"](224)[1].crop_scale == (0.2, 1.0)
    first, second = PRESETS["byol"](224)
    assert (first.blur_p, second.blur_p) == (1.0, 0.1)
    assert (first.solarize_p, second.solarize_p) == (0.0, 0.2)
    first, second = PRESETS["align_uniform"](64)
    assert first == second
    assert (first.jitter_p, first.hue, first.blur_p, first.crop_scale) == (1.0, 0.4, 0.0, (0.08, 1))
    four = PRESETS["lejepa"](128)
    assert len(four) == 4
    assert (four[3].saturation, four[3].blur_kernel_size, four[3].solarize_p) == (0.8, 7, 0.2)


def test_multi_crop_is_two_large_views_and_many_small_ones(batch):
    for name, number, large, small in (
        ("swav_multi_crop", 6, (0.14, 1.0), (0.05, 0.14)),
        ("dino_multi_crop", 8, (0.4, 1.0), (0.05, 0.4)),
    ):
        recipes = PRESETS[name](224)
        assert [view.size for view in recipes] == [224] * 2 + [96] * number
        assert [view.crop_scale for view in recipes] == [large] * 2 + [small] * number
    recipes = PRESETS[name](14)
    assert [view.size for view in recipes] == [14] * 2 + [6] * 8
    # Of two large and two small ones, and without the images: these take the compilation.
    boxes = np.array(quick_jit(lambda batch: _made(batch, 0, recipes[:4]).boxes)(batch))
    areas = [np.prod(box[:, 2:] - box[:, :2], axis=1) / SIDE**2 for box in boxes]
    assert np.max(areas[2:]) < 0.45
    assert np.min(areas[:2]) > 0.35
    assert len({box.tobytes() for box in boxes}) == 4


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_views(batch, name):
    made = jax.eval_shape(lambda batch: _made(batch, 0, PRESETS[name](16)), batch)
    assert [image.shape for image in made.images] == [
        (N, view.size, view.size, 3) for view in PRESETS[name](16)
    ]


def test_views_are_within_range(batch):
    for image in make(batch, *PRESETS["byol"](16)).images:
        assert 0 <= image.min() < 0.05
        assert 0.95 < image.max() <= 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("flip_p", 1.5, "flip_p=1.5"),
        ("crop_scale", (0.5, 0.2), r"crop_scale=\(0.5, 0.2\)"),
        ("crop_scale", (0.0, 1.0), r"crop_scale=\(0.0, 1.0\)"),
        ("hue", 0.6, "hue=0.6"),
        ("blur_kernel_size", 4, "blur_kernel_size=4"),
        ("crop_ratio", (1e-300, 1.0), "crop_ratio=.* must be two numbers from 1e-6 to 1e6"),
        ("blur_kernel_size", -1, "blur_kernel_size=-1"),
        ("blur_kernel_size", 2 * EVERYTHING.size + 1, "at most"),
        ("crop_filter", "lanczos", "crop_filter='lanczos'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(field, value, message):
    recipe = copy.copy(EVERYTHING)
    object.__setattr__(recipe, field, value)  # past the run-time type check
    with pytest.raises(UserError, match=message):
        unchecked(Augmentation.__post_init__)(recipe)


# --- evaluation


def test_evaluation_view_of_the_right_size_is_the_image(batch):
    seen = at_once(views.evaluation_view)(batch["image"], batch["content"], SIDE)
    np.testing.assert_allclose(seen, np.float64(batch["image"]) / 255, atol=1e-7)


@pytest.mark.parametrize(
    ("height", "width", "size", "box"),
    [
        (20, 20, 16, (0, 0, 20, 20)),  # a small view: whole
        (80, 80, 32, (0, 0, 80, 80)),
        (32, 32, 64, (2, 2, 30, 30)),  # a small image alone does not make it so
        (64, 64, 40, (4, 4, 60, 60)),  # .875 of 64 is 56
        (64, 96, 40, (4, 20, 60, 76)),
        (8, 8, 16, (0, 0, 8, 8)),
    ],
)
def test_evaluation_view_is_pillows_central_crop(height, width, size, box):
    image = np.random.default_rng(1).integers(0, 256, (2, height, width, 1), np.uint8)
    content = np.tile(np.int32([height, width]), (2, 1))
    view = at_once(views.evaluation_view)
    seen = np.asarray(view(image, content, size))
    # The same picture in the corner of a larger canvas, as letterboxing leaves it.
    canvas = np.pad(image, ((0, 0), (0, 40), (0, 7), (0, 0)), constant_values=255)
    boxed = view(canvas, content, size)
    expected = box if (height, width) != (size, size) else (0, 0, height, width)
    np.testing.assert_array_equal(
        at_once(views.evaluation_boxes)(canvas.shape[1:3], content, size)[0], expected
    )
    np.testing.assert_allclose(boxed, seen, atol=2.5e-6)
    for i in range(2):
        y0, x0, y1, x1 = box
        plane = Image.fromarray(np.float32(image[i, ..., 0]) / 255).crop((x0, y0, x1, y1))
        plane = np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(seen[i, ..., 0], np.clip(plane, 0, 1), atol=2.5e-6)
