"""Composed sets against compositions made one image at a time from the same draws."""

import concurrent.futures
import dataclasses
import itertools

import numpy as np
import PIL.Image
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.common import data_group
from configs.pretrain import digit_on_image as recipe
from jaxssl.data import sources
from jaxssl.data.composed import digit_on_image, saturation
from jaxssl.data.examples import ArraySource, Source, array_source
from jaxssl.data.multi_digits import multi_digits, single_digit
from jaxssl.data.pipeline import eval_batches, train_batches
from jaxssl.data.sources import load
from jaxssl.errors import UserError
from jaxssl.randomness import Purpose, Split, host_bits


@pytest.fixture(scope="module")
def digits():
    data = data_group()
    data.update(name="digits", validation_fraction=0.0, train_examples=200)
    return load(data, "train")


def squares(size=4, examples=1, split=Split.TRAIN):
    """Example i is a square of grey 55 + i and of class i: its pixels show where it lies."""
    grey = np.arange(55, 55 + examples).astype(np.uint8)[:, None, None, None]
    images = np.tile(grey, (1, size, size, 1))
    labels = np.arange(examples, dtype=np.int32)
    return array_source("squares", split, images, {"label": labels}, num_classes=examples)


def many(source, draws):
    """So many draws of an item, over all rows and as many epochs as it takes."""
    epochs, rows = np.divmod(np.arange(draws), len(source))
    return source.gather(rows, epochs)


def assert_uniform(outcomes, n):
    """Chi-square on integers in [0, n); one seed in a thousand would fail by chance."""
    counts = np.bincount(outcomes, minlength=n)
    assert len(counts) == n
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def canvases(base, count=3, sizes=(8,), placement="random", combine="max", seed=7, canvas=32):
    return multi_digits(
        base,
        canvas=canvas,
        count=count,
        sizes=sizes,
        placement=placement,
        combine=combine,
        seed=seed,
    )


def raw(source, row, epoch, stream):
    """The item's own words, from a generator that has nothing but its key."""
    index, split = int(source.positions[row]), Split(source.splits[row])
    bits = host_bits(source.seed, Purpose.COMPOSITION, split, epoch, index, stream)
    return [int(word) for word in bits.random_raw(64)]


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert left["targets"].keys() == right["targets"].keys()
    for key in set(left) - {"targets"}:
        assert left[key].dtype == right[key].dtype
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)
    for key, values in left["targets"].items():
        np.testing.assert_array_equal(values, right["targets"][key], err_msg=key)


def part(batch, rows):
    def pick(values):
        return {k: v[rows] for k, v in values.items()} if isinstance(values, dict) else values[rows]

    return {key: pick(values) for key, values in batch.items()}


def colour_images(n=60, height=32, width=32, split=Split.TEST):
    images = np.random.default_rng(0).integers(0, 256, (n, height, width, 3), np.uint8)
    labels = np.arange(n, dtype=np.int32) % 4
    return array_source("colours", split, images, {"label": labels}, num_classes=4)


def overlaid(base, digits, digit_size=8, unique_digits=50, seed=7):
    return digit_on_image(
        base, digits, digit_size=digit_size, unique_digits=unique_digits, seed=seed
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OneByOne(ArraySource):
    """What the pipeline reads record by record; it hands out its own memory, for runs of rows."""

    vectorised: bool = dataclasses.field(default=False, init=False)

    def gather(self, rows, epochs=None):
        images = self.images[rows[0] : rows[-1] + 1]
        return {**ArraySource.gather(self, rows, epochs), "image": images}


def one_by_one(source):
    fields = (field.name for field in dataclasses.fields(source) if field.init)
    return OneByOne(**{name: getattr(source, name) for name in fields})


# What holds for every composed set.


def composed(digits):
    return {
        "random": canvases(digits, count=4, sizes=(6, 8, 8, 13)),
        "grid": canvases(digits, count=5, placement="grid", combine="sum"),
        "single": single_digit(digits, canvas=20, size=11, seed=7),
        "overlay": overlaid(colour_images(), digits),
    }


NAMES = ["random", "grid", "single", "overlay"]


@pytest.mark.parametrize("name", NAMES)
def test_an_item_depends_on_its_position_and_epoch_alone(digits, name):
    source, again = composed(digits)[name], composed(digits)[name]
    assert isinstance(source, Source)
    rng = np.random.default_rng(1)
    rows, epochs = rng.integers(0, len(source), 40), rng.integers(0, 3, 40)
    whole = source.gather(rows, epochs)
    assert whole["image"].shape == (40, *source.image_shape)
    assert whole["image"].dtype == np.uint8
    np.testing.assert_array_equal(whole["index"], source.positions[rows])
    np.testing.assert_array_equal(whole["epoch"], epochs)
    np.testing.assert_array_equal(whole["split"], source.splits[rows])
    for some in (np.arange(40)[::-1], np.array([3]), rng.permutation(40)[:17]):
        assert_same(part(whole, some), again.gather(rows[some], epochs[some]))


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_leaves_the_items_as_they_were(digits, name):
    source = composed(digits)[name]
    kept = np.array([1, 5, 6, 40])
    cut = source.take(kept)
    assert len(cut) == 4
    np.testing.assert_array_equal(cut.positions, source.positions[kept])
    assert_same(cut.gather(np.arange(4)), source.gather(kept))


@pytest.mark.parametrize("name", NAMES)
def test_no_epochs_are_epoch_0_and_only_compositions_change_with_the_epoch(digits, name):
    source, rows = composed(digits)[name], np.arange(30)
    first = source.gather(rows, np.zeros(30, np.int32))
    assert_same(first, source.gather(rows))
    second = source.gather(rows, np.ones(30, np.int32))
    changed = (first["image"] != second["image"]).any((1, 2, 3))
    assert changed.all() if name in ("random", "grid") else not changed.any()


def test_seeds_and_splits_and_sets_draw_by_themselves():
    def images(split=Split.TRAIN, seed=7, make=canvases):
        base = squares(split=split, examples=30)
        source = (
            canvases(base, count=1, sizes=(4,), seed=seed)
            if make is canvases
            else single_digit(base, canvas=32, size=4, seed=seed)
        )
        return source.gather(np.arange(30))["image"]

    for other in (images(seed=8), images(split=Split.TEST), images(make=single_digit)):
        assert (images() != other).any((1, 2, 3)).mean() > 0.9
    saturated = [
        saturation(examples=30, side=1, bits=20, split=split, seed=seed).images.tobytes()
        for split, seed in ((Split.TRAIN, 7), (Split.TEST, 7), (Split.TRAIN, 8))
    ]
    assert len(set(saturated)) == 3


def test_batches_of_the_pipeline_are_the_items_of_their_epochs(digits):
    source = canvases(digits)
    setting = {"batch_size": 64, "process_index": 0, "process_count": 1, "prefetch": 0}
    batches = list(train_batches(source, data_seed=3, start_step=2, num_steps=5, **setting))
    assert {int(epoch) for batch in batches for epoch in batch["epoch"]} == {0, 1}
    for batch in batches:
        rows = np.searchsorted(source.positions, batch["index"])
        assert_same(batch, source.gather(rows, batch["epoch"]))
    evaluated = list(eval_batches(single_digit(digits, canvas=12, size=8, seed=1), **setting))
    assert sum(int(batch["mask"].sum()) for batch in evaluated) == len(digits)


# MultiDigits.


def composition(source, digits, row, epoch):
    """One item in plain loops: its image, and the label in each slot."""
    words = raw(source, row, epoch, stream=0)
    canvas = [[0] * source.canvas for _ in range(source.canvas)]
    free = list(range((source.canvas // source.sizes[0]) ** 2))
    labels = []
    for slot, size in enumerate(source.sizes):
        which, where = words[2 * slot] % len(digits), words[2 * slot + 1]
        labels.append(int(digits.targets["label"][which]))
        image = PIL.Image.fromarray(digits.images[which, :, :, 0])
        image = np.asarray(image.resize((size, size), PIL.Image.Resampling.BILINEAR)).tolist()
        if source.placement == "random":
            span = source.canvas - size + 1
            top, left = divmod(where % (span * span), span)
        else:
            chosen = where % (len(free) - slot) + slot
            free[slot], free[chosen] = free[chosen], free[slot]
            top, left = (size * cell for cell in divmod(free[slot], source.canvas // size))
        for y in range(size):
            for x in range(size):
                below, above = canvas[top + y][left + x], image[y][x]
                both = {"max": max(below, above), "sum": min(below + above, 255)}
                canvas[top + y][left + x] = both[source.combine]
    return canvas, labels


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from([1, 2, 3, 16]),
    st.sampled_from(["random", "grid"]),
    st.sampled_from(["max", "sum"]),
    st.sampled_from([4, 5, 8, 20]),
    st.sampled_from([40, 80]),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_images_and_targets_are_those_of_the_draws(
    digits, count, placement, combine, size, canvas, seed, data
):
    several = placement == "random" and data.draw(st.booleans())
    sizes = tuple(size - slot % 3 for slot in range(count)) if several else (size,)
    if placement == "grid" and count > (canvas // size) ** 2:
        with pytest.raises(UserError, match="do not fit the"):
            canvases(digits, count, sizes, placement, combine, seed, canvas)
        return
    source = canvases(digits, count, sizes, placement, combine, seed, canvas)
    row, epoch = data.draw(st.integers(0, len(source) - 1)), data.draw(st.integers(0, 1000))
    batch = source.gather(np.array([row]), np.array([epoch]))
    image, labels = composition(source, digits, row, epoch)
    assert source.sizes == (sizes if several else sizes * count)
    np.testing.assert_array_equal(batch["image"][0, :, :, 0], image)
    assert batch["targets"]["slots"][0].tolist() == labels
    assert np.flatnonzero(batch["targets"]["presence"][0]).tolist() == sorted(set(labels))


def test_random_corners_are_uniform_over_all_that_fit():
    base = squares(examples=200)
    moving = many(canvases(base, count=1, sizes=(4,), canvas=9), 3600)["image"][..., 0]
    fixed = single_digit(base, canvas=9, size=4, seed=7).gather(np.arange(200))["image"][..., 0]
    for filled in (moving > 0, fixed > 0):
        assert (filled.sum((1, 2)) == 16).all()
        assert_uniform(filled.any(2).argmax(1) * 6 + filled.any(1).argmax(1), 36)


def test_digits_are_drawn_uniformly_with_replacement_and_each_slot_by_itself():
    slots = many(canvases(squares(examples=8), count=2, sizes=(4,)), 4000)["targets"]["slots"]
    assert_uniform(slots[:, 0] * 8 + slots[:, 1], 64)


def test_random_digits_overlap_at_the_expected_rate():
    draws, size, span = 4000, 8, 25
    images = many(canvases(squares(size), count=2, sizes=(8,)), draws)["image"]
    overlapping = ((images > 0).sum((1, 2, 3)) < 2 * size * size).mean()
    # Two corners uniform over span values are less than a side apart on one axis.
    near = sum(span - abs(gap) for gap in range(1 - size, size)) / span**2
    error = np.sqrt(near**2 * (1 - near**2) / draws)
    assert abs(overlapping - near**2) < 3 * error
    assert error < 0.05 * near**2


@pytest.mark.parametrize("count", [1, 2, 9, 16])
def test_digits_in_a_grid_never_overlap(count):
    source = canvases(squares(8, examples=150), count=count, placement="grid", combine="sum")
    batch = many(source, 600)
    cells = batch["image"].reshape(600, 4, 8, 4, 8).transpose(0, 1, 3, 2, 4).reshape(600, 16, 64)
    assert (cells == cells[:, :, :1]).all()
    greys = np.sort(cells[:, :, 0], axis=1)[:, 16 - count :]
    np.testing.assert_array_equal(greys, np.sort(batch["targets"]["slots"] + 55, axis=1))
    if count < 16:
        assert_uniform(np.nonzero(cells[:, :, 0])[1], 16)


def test_slots_of_a_grid_take_the_cells_in_every_order():
    source = canvases(squares(examples=200), count=4, sizes=(4,), placement="grid", canvas=8)
    batch = many(source, 4000)
    found = batch["image"][:, ::4, ::4, 0].reshape(-1, 1, 4) == batch["targets"]["slots"][
        ..., None
    ] + np.uint8(55)
    different = found.sum((1, 2)) == 4
    assert different.mean() > 0.9
    orders = {order: i for i, order in enumerate(itertools.permutations(range(4)))}
    cells = found[different].argmax(2)
    assert_uniform(np.array([orders[tuple(row)] for row in cells.tolist()]), 24)


@pytest.mark.parametrize("placement", ["random", "grid"])
def test_a_run_with_more_digits_keeps_those_of_a_run_with_fewer(digits, placement):
    few, more = (many(canvases(digits, count, placement=placement), 50) for count in (2, 5))
    np.testing.assert_array_equal(more["targets"]["slots"][:, :2], few["targets"]["slots"])
    assert (more["image"] >= few["image"]).all()


def test_max_and_clipped_sum():
    for combine, expected in (("max", 200), ("sum", 255)):
        base = squares(examples=146).take(np.array([145]))
        source = canvases(base, count=2, sizes=(4,), combine=combine, canvas=4)
        assert (source.gather(np.arange(1))["image"] == expected).all()


def test_threads_that_resize_the_same_digits_at_once_agree(digits):
    parts = np.split(np.tile(np.arange(len(digits)), 4), 40)
    expected = canvases(digits, count=2, sizes=(20, 31)).gather(np.arange(len(digits)))
    source = canvases(digits, count=2, sizes=(20, 31))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for rows, batch in zip(parts, threads.map(source.gather, parts), strict=True):
            np.testing.assert_array_equal(batch["image"], expected["image"][rows])


def test_a_single_digit_is_the_digit_of_its_position_with_its_label(digits):
    cut = digits.take(np.arange(20, 60))
    source = single_digit(cut, canvas=30, size=13, seed=5)
    assert source.num_classes == 10
    batch = source.gather(np.arange(40))
    np.testing.assert_array_equal(batch["targets"]["label"], cut.targets["label"])
    for row in range(40):
        top, left = divmod(raw(source, row, 0, stream=1)[0] % 18**2, 18)
        image = PIL.Image.fromarray(cut.images[row, :, :, 0])
        expected = PIL.Image.new("L", (30, 30))
        expected.paste(image.resize((13, 13), PIL.Image.Resampling.BILINEAR), (left, top))
        np.testing.assert_array_equal(batch["image"][row, :, :, 0], np.asarray(expected))


# DigitOnImage.


def test_the_nine_corners_of_a_224_pixel_image():
    black = array_source("black", Split.TRAIN, np.zeros((2, 224, 224, 3), np.uint8), {})
    batch = overlaid(black, squares(28), digit_size=28, unique_digits=1).gather(np.arange(2))
    expected = np.zeros((224, 224), np.uint8)
    for top, left in itertools.product((33, 100, 168), repeat=2):
        expected[top : top + 28, left : left + 28] = 55
    for image, channel in itertools.product(range(2), range(3)):
        np.testing.assert_array_equal(batch["image"][image, :, :, channel], expected)
    assert list(batch["targets"]) == ["digit"]


def test_images_keep_what_is_brighter_than_their_digit(digits):
    base = colour_images(height=36, width=40)
    before = base.images.copy()
    source = overlaid(one_by_one(base), digits, digit_size=9, unique_digits=50)
    batch = source.gather(np.arange(60))
    np.testing.assert_array_equal(batch["targets"]["label"], base.targets["label"])
    np.testing.assert_array_equal(base.images, before)
    for row in range(60):
        which = raw(source, row, 0, stream=2)[0] % 50
        assert batch["targets"]["digit"][row] == digits.targets["label"][which]
        digit = PIL.Image.fromarray(digits.images[which, :, :, 0])
        digit = np.asarray(digit.resize((9, 9), PIL.Image.Resampling.BILINEAR))[..., None]
        expected = base.images[row].copy()
        for top, left in itertools.product((5, 16, 27), (6, 18, 30)):
            here = expected[top : top + 9, left : left + 9]
            here[:] = np.where(digit > here, digit, here)
        np.testing.assert_array_equal(batch["image"][row], expected)


def test_only_the_first_k_digits_are_used_and_all_alike():
    base = array_source("black", Split.TRAIN, np.zeros((3000, 8, 8, 1), np.uint8), {})
    source = overlaid(base, squares(2, examples=16), digit_size=2, unique_digits=10)
    batch = source.gather(np.arange(3000))
    assert_uniform(batch["targets"]["digit"], 10)
    np.testing.assert_array_equal(batch["image"][:, 3, 3, 0], batch["targets"]["digit"] + 55)


def test_digits_on_images_that_are_read_one_by_one(digits):
    base = colour_images(n=6)
    source = overlaid(one_by_one(base), digits)
    assert not source.vectorised
    setting = {"batch_size": 4, "process_index": 0, "process_count": 1, "prefetch": 0}
    batches = list(train_batches(source, data_seed=0, start_step=0, num_steps=3, **setting))
    assert len(batches) == 3
    for batch in batches:
        assert_same(batch, overlaid(base, digits).gather(batch["index"], batch["epoch"]))


# Saturation.


def test_saturation_images_are_the_bits_of_integers_keyed_by_the_index():
    source = saturation(examples=50, side=3, bits=20, split=Split.TRAIN, seed=7)
    batch = source.gather(np.arange(50))
    assert batch["image"].shape == (50, 3, 3, 20)
    assert batch["targets"] == {}
    assert (batch["image"] == batch["image"][:, :1, :1]).all()
    for row, channels in enumerate(batch["image"][:, 0, 0].tolist()):
        bits = host_bits(7, Purpose.COMPOSITION, Split.TRAIN, 0, row, 3)
        integer = int(bits.random_raw()) % 2**20
        assert channels == [255 * (integer // 2**bit % 2) for bit in range(20)]
    fewer = saturation(examples=50, side=3, bits=5, split=Split.TRAIN, seed=7)
    np.testing.assert_array_equal(fewer.images, source.images[..., :5])
    assert_same(source.take(np.array([4, 9])).gather(np.arange(2)), source.gather(np.array([4, 9])))
    assert (
        saturation(examples=9, side=1, bits=64, split=Split.TRAIN, seed=7).images % 255 == 0
    ).all()


def test_saturation_integers_are_uniform_and_collide_as_often_as_they_should():
    source = saturation(examples=2000, side=1, bits=10, split=Split.TRAIN, seed=7)
    integers = (source.images[:, 0, 0] // 255).astype(int) @ 2 ** np.arange(10)
    assert_uniform(integers // 16, 64)
    assert_uniform(integers % 64, 64)
    empty = (1 - 2**-10) ** 2000
    both_empty = (1 - 2**-9) ** 2000
    variance = 1024 * empty + 1024 * 1023 * both_empty - (1024 * empty) ** 2
    assert abs(len(set(integers.tolist())) - 1024 * (1 - empty)) < 3 * np.sqrt(variance)


# Bad input.


def unlabelled(size=8):
    return array_source("grey", Split.TRAIN, np.zeros((3, size, size, 1), np.uint8), {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count=0"),
        ({"count": 17, "sizes": (2,)}, "count=17"),
        ({"sizes": (8, 9)}, r"sizes=\(8, 9\) for count=3"),
        ({"sizes": ()}, r"sizes=\(\) for count=3"),
        ({"sizes": (33,)}, "size=33 do not fit a canvas of 32"),
        ({"sizes": (0,)}, "size=0"),
        ({"placement": "ring"}, "compose.placement=ring is unknown: choose one of grid, random"),
        ({"combine": "mean"}, "compose.combine=mean is unknown: choose one of max, sum"),
        ({"placement": "grid", "sizes": (9,)}, "placement='grid' cannot divide"),
        ({"placement": "grid", "sizes": (8, 8, 4)}, "placement='grid' cannot divide"),
        ({"placement": "grid", "sizes": (32,)}, "3 digits of 32 pixels do not fit the 1 cells"),
        ({"base": colour_images()}, "3 channels: digits must be square with 1 channel"),
        ({"base": unlabelled()}, "grey has no labels"),
        ({"base": squares().take(np.arange(0))}, "squares has no examples"),
    ],
)
def test_what_multi_digits_refuses(digits, changes, message):
    with pytest.raises(UserError, match=message):
        canvases(**{"base": digits, **changes})


def test_what_the_other_sets_refuse(digits):
    with pytest.raises(UserError, match="size=33 do not fit a canvas of 32"):
        single_digit(digits, canvas=32, size=33, seed=0)
    with pytest.raises(UserError, match="grey has no labels"):
        single_digit(unlabelled(), canvas=32, size=8, seed=0)
    for count in (0, 201):
        with pytest.raises(UserError, match=f"unique_digits={count} of digits: .* 1 to its 200"):
            overlaid(colour_images(), digits, unique_digits=count)
    for size in (0, 9):
        with pytest.raises(UserError, match=f"nine digits of {size} pixels .* from 1 to 8"):
            overlaid(colour_images(), digits, digit_size=size)
    overlaid(colour_images(), digits, digit_size=8)
    with pytest.raises(UserError, match="from 1 to 2"):
        overlaid(colour_images(height=8), digits, digit_size=3)
    for changes in ({"examples": 0}, {"side": 0}, {"bits": 0}, {"bits": 65}):
        arguments = {"examples": 2, "side": 1, "bits": 3, **changes}
        with pytest.raises(UserError, match="make no saturation set"):
            saturation(**arguments, split=Split.TRAIN, seed=0)


def composed_config(data_config, recipe, arguments, **changes):
    config = data_config(**{"name": recipe.get_config(arguments).data.name, **changes})
    config.compose = recipe.get_config(arguments).data.compose
    return config


def test_sets_of_sets_of_sets_and_sets_without_settings_are_refused(data_config):
    config = composed_config(data_config, recipe, "base=digits,digits=digits")
    config.compose.base = "multi_digits"
    with pytest.raises(UserError, match="'multi_digits' is composed itself"):
        load(config, "train")
    config.update(name="digit_on_image", compose={**config.compose, "base": "digits", "seed": -1})
    with pytest.raises(UserError, match=r"data\.compose\.seed=-1 is out of range"):
        load(config, "train")
    config.name = "multi_digits"
    with pytest.raises(UserError, match=r"lacks canvas, count.* configs/pretrain/multi_digits.py"):
        load(config, "train")
    with pytest.raises(UserError, match=r"lacks base, digits.* configs/pretrain/digit_on_image.py"):
        load(data_config("digit_on_image"), "train")


def test_a_list_of_classes_is_the_images_alone(data_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sources.CLASS_LISTS, "two", ("ant", "cat"))
    for name in ("ant", "bee", "cat"):
        (tmp_path / "train" / name).mkdir(parents=True)
        PIL.Image.new("RGB", (32, 32)).save(tmp_path / "train" / name / "0.png")
    config = composed_config(data_config, recipe, "base=folder,digits=digits,digit_size=8")
    config.update(data_dir=str(tmp_path), classes="two", image_size=32)
    source = load(config, "train")
    assert source.class_names == ("ant", "cat")
    assert source.digit_classes == 10


# Real images.


def test_real_mnist_on_a_canvas_and_on_real_cifar10(real_tfds):
    data = data_group()
    data.update(data_dir=str(real_tfds), validation_fraction=0.0, train_examples=100)
    data.name = "mnist"
    mnist = load(data, "train")
    data.name = "cifar10"
    cifar = load(data, "train")
    source = canvases(mnist, count=4, sizes=(28,), placement="grid", canvas=112)
    image, labels = composition(source, mnist, 11, 2)
    batch = source.gather(np.array([11]), np.array([2]))
    np.testing.assert_array_equal(batch["image"][0, :, :, 0], image)
    assert batch["targets"]["slots"][0].tolist() == labels
    overlay = overlaid(cifar, mnist, unique_digits=16).gather(np.arange(100))
    changed = (overlay["image"] != cifar.images).any((0, 3))
    covered = np.zeros((32, 32), bool)
    for top, left in itertools.product((4, 14, 24), repeat=2):
        covered[top : top + 8, left : left + 8] = True
    assert not (changed & ~covered).any()
    assert (changed & covered).sum() > 0.5 * covered.sum()
