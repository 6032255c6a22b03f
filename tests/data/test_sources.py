"""Sources against what they read from, and the cuts."""

import dataclasses
import io
import shutil

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets
from support import unchecked

from jaxssl.data.examples import resize
from jaxssl.data.sources import (
    ArraySource,
    FolderSource,
    Source,
    TfdsSource,
    array_source,
    cut,
    load,
)
from jaxssl.errors import UserError
from jaxssl.randomness import Split


def everything(source):
    return source.gather(np.arange(len(source)))


def assert_same_batch(left, right):
    assert left.keys() == right.keys()
    assert left["targets"].keys() == right["targets"].keys()
    for batch in (left, right):
        assert batch["image"].dtype == np.uint8
        for key in ("index", "epoch", "original_size"):
            assert batch[key].dtype == np.int32
    for key in set(left) - {"targets"}:
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)
    for key in left["targets"]:
        np.testing.assert_array_equal(left["targets"][key], right["targets"][key], err_msg=key)


# Cuts.


@pytest.mark.parametrize("n", [1, 7, 100, 1437])
@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.29, 1 / 3, 0.7])
def test_a_position_is_held_out_where_its_multiple_of_the_fraction_passes_an_integer(n, fraction):
    from fractions import Fraction

    exact = {0.02: Fraction(1, 50), 0.1: Fraction(1, 10), 0.29: Fraction(29, 100)}
    share = exact.get(fraction, Fraction(7, 10) if fraction == 0.7 else Fraction(1, 3))
    held = [i for i in range(n) if int((i + 1) * share) > int(i * share)]
    train = cut("train", np.arange(n), fraction, 0)
    assert sorted({*range(n)} - {*held}) == train.tolist()
    if held:
        assert cut("validation", np.arange(n), fraction, 0).tolist() == held


def test_the_published_formula_in_floating_point_gives_the_same_for_usual_fractions():
    i = np.arange(50_000)
    for fraction in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5):
        held = np.floor((i + 1) * fraction) > np.floor(i * fraction)
        np.testing.assert_array_equal(cut("validation", i, fraction, 0), i[held])


def test_fewer_training_examples_are_evenly_spread_over_what_validation_leaves():
    whole = cut("train", np.arange(1000), 0.1, 0)
    few = cut("train", np.arange(1000), 0.1, 90)
    assert len(whole) == 900
    assert len(few) == 90
    assert set(few) <= set(whole)
    assert set(np.diff(np.searchsorted(whole, few))) == {10}


def test_a_set_sorted_by_class_keeps_its_shares():
    labels = np.repeat(np.arange(10), 50)
    for part, count in (("train", 45), ("validation", 5)):
        assert np.bincount(labels[cut(part, np.arange(500), 0.1, 0)]).tolist() == [count] * 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", np.arange(10), 1.0, 0), "validation_fraction=1.0"),
        (("train", np.arange(10), -0.1, 0), "validation_fraction=-0.1"),
        (("validation", np.arange(10), 0.05, 0), "at least 0.1"),
        (("train", np.arange(10), 0.1, 10), "9 training images are left"),
        (("train", np.arange(10), 0.0, -1), "train_examples=-1"),
    ],
)
def test_impossible_cuts_are_refused_in_words(arguments, message):
    with pytest.raises(UserError, match=message):
        cut(*arguments)


# Digits.


def test_digits_are_the_embedded_ones_and_the_last_360_are_the_test(data_config):
    raw = sklearn.datasets.load_digits()
    train, test = (load(data_config("digits"), split) for split in ("train", "test"))
    assert isinstance(train, Source)
    assert (len(train), len(test)) == (1437, 360)
    assert (train.original_size, test.original_size) == (1437, 360)
    assert (train.original_split, test.original_split) == (Split.TRAIN, Split.TEST)
    assert train.image_shape == (8, 8, 1)
    assert train.num_classes == 10
    images = np.concatenate([everything(train)["image"], everything(test)["image"]])[..., 0]
    np.testing.assert_array_equal(images, np.floor(raw.images / 16 * 255 + 0.5))
    assert images.max() == 255
    labels = np.concatenate([everything(s)["targets"]["label"] for s in (train, test)])
    np.testing.assert_array_equal(labels, raw.target)
    assert everything(test)["index"][0] == 0
    np.testing.assert_array_equal(everything(test)["original_size"], np.full((360, 2), 8))


def test_digits_validation_keeps_every_class_its_share(data_config):
    # The file repeats the digits in a fixed pattern: every tenth image is a three too often.
    config = data_config("digits", validation_fraction=0.1)
    train, validation = load(config, "train"), load(config, "validation")
    np.testing.assert_array_equal(
        np.sort(np.concatenate([train.positions, validation.positions])), np.arange(1437)
    )
    assert not set(train.positions) & set(validation.positions)
    assert (train.original_size, validation.original_size) == (1437, 1437)
    assert validation.original_split == Split.TRAIN
    counts = np.bincount(everything(validation)["targets"]["label"])
    whole = np.bincount(sklearn.datasets.load_digits().target[:1437])
    assert np.abs(counts - whole / 10).max() <= 1


def test_rows_of_a_cut_keep_their_image_and_their_original_index(data_config):
    whole = everything(load(data_config("digits"), "train"))
    for split in ("train", "validation"):
        part = everything(load(data_config("digits", validation_fraction=0.2), split))
        np.testing.assert_array_equal(part["image"], whole["image"][part["index"]])
        np.testing.assert_array_equal(
            part["targets"]["label"], whole["targets"]["label"][part["index"]]
        )


# Arrays.


def test_an_array_without_labels_has_no_targets():
    source = array_source("mine", Split.TRAIN, np.zeros((3, 4, 5, 1), np.uint8), {})
    batch = source.gather(np.array([2, 0]), np.array([4, 1]))
    assert batch["targets"] == {}
    assert batch["index"].tolist() == [2, 0]
    assert batch["epoch"].tolist() == [4, 1]
    assert batch["original_size"].tolist() == [[4, 5], [4, 5]]
    assert source.num_classes is None


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (np.zeros((3, 4, 4), np.uint8), {}, r"shape \[3, 4, 4\]"),
        (np.zeros((3, 4, 4, 1), np.float32), {}, "float32"),
        (np.zeros((3, 4, 4, 1), np.uint8), {"label": np.zeros(2, np.int32)}, "2 rows for 3"),
        (np.zeros((2, 4, 4, 1), np.uint8), {"label": np.array([0, 7], np.int32)}, "7"),
        (np.zeros((2, 4, 4, 1), np.uint8), {"label": np.array([-1, 0], np.int32)}, "-1"),
    ],
)
def test_arrays_that_disagree_are_refused_in_words(images, targets, message):
    with pytest.raises(UserError, match=message):
        array_source("mine", Split.TRAIN, images, targets, num_classes=5)


def test_images_of_another_than_the_declared_shape_are_refused():
    source = array_source("mine", Split.TRAIN, np.zeros((2, 4, 4, 1), np.uint8), {})
    with pytest.raises(UserError, match=r"\[2, 8, 8, 1\] was declared"):
        dataclasses.replace(source, image_shape=(8, 8, 1))


# Resizing.


@pytest.mark.parametrize(("height", "width"), [(20, 32), (32, 20), (20, 20), (5, 8)])
def test_resize_is_short_side_then_central_crop(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = PIL.Image.fromarray(pixels)
    # Sides that scale to whole pixels, where two steps and one are the same.
    tall, wide = height * 10 // min(height, width), width * 10 // min(height, width)
    whole = np.asarray(image.resize((wide, tall), PIL.Image.Resampling.BICUBIC))
    top, left = (tall - 10) // 2, (wide - 10) // 2
    expected = whole[top : top + 10, left : left + 10]
    # One grey level: where a sum lies half-way, the offset may round it to the other side.
    np.testing.assert_allclose(np.asarray(resize(image, 10, 10), int), expected, atol=1)


def test_resize_maps_points_with_one_scale_and_a_sub_pixel_offset():
    # A linear ramp along the long side, which any resize that keeps positions maps to itself.
    ramp = np.tile(np.arange(41, dtype=np.uint8) * 4, (20, 1))
    out = np.asarray(resize(PIL.Image.fromarray(ramp), 10, 10), float)
    scale = 20 / 10
    centres = (np.arange(10) + 0.5) * scale + (41 - 20) / 2 - 0.5
    np.testing.assert_allclose(out[:, 2:-2], np.tile(centres * 4, (10, 1))[:, 2:-2], atol=0.51)


def test_resize_takes_any_size():
    for side in range(1, 120):
        image = PIL.Image.new("L", (side + side % 3, side), 7)
        for height, width in ((49, 49), (33, 47), (8, 5)):
            assert np.asarray(resize(image, height, width)).shape == (height, width)


def test_resize_to_another_aspect_ratio_keeps_circles_round():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 60), np.uint8)
    out = resize(PIL.Image.fromarray(pixels), 12, 20)  # scale 2: the central 24 x 40
    whole = PIL.Image.fromarray(pixels).resize((30, 12), PIL.Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(out), np.asarray(whole)[:, 5:25])


# Folders.


def test_a_folder_lists_classes_of_train_in_sorted_order(data_config, folder):
    train = load(data_config("folder", folder, 8), "train", memory_limit_bytes=0)
    test = load(data_config("folder", folder, 8), "test", memory_limit_bytes=0)
    assert isinstance(train, FolderSource)
    assert train.class_names == test.class_names == ("ant", "bee", "cat")
    assert np.bincount(everything(train)["targets"]["label"]).tolist() == [7, 5, 6]
    assert np.bincount(everything(test)["targets"]["label"]).tolist() == [2, 0, 2]
    assert (train.original_split, test.original_split) == (Split.TRAIN, Split.VALIDATION)
    assert train.image_shape == (8, 8, 3)
    files = [f"{folder}/train/ant/{number}.png" for number in range(7)]
    assert list(train.files[:7]) == files


def test_folder_records_are_the_resized_files_in_rgb(data_config, folder):
    source = load(data_config("folder", folder, 8), "train", memory_limit_bytes=0)
    with PIL.Image.open(folder / "train" / "bee" / "1.png") as file:
        expected, size = np.asarray(resize(file, 8, 8)), (file.height, file.width)
    record = source.record(8)
    np.testing.assert_array_equal(record["image"], expected)
    assert tuple(record["original_size"]) == size
    assert record["targets"]["label"] == 1
    assert record["index"] == 8
    np.testing.assert_array_equal(source.gather(np.array([3, 8]))["image"][1], expected)


def test_a_small_folder_in_memory_is_the_folder(data_config, folder):
    config = data_config("folder", folder, 8, validation_fraction=0.2)
    for split in ("train", "validation", "test"):
        kept = load(config, split)
        lazy = load(config, split, memory_limit_bytes=0)
        assert isinstance(kept, ArraySource)
        assert isinstance(lazy, FolderSource)
        assert_same_batch(everything(kept), everything(lazy))
        assert kept.original_size == lazy.original_size
    assert load(config, "validation").original_size == 18


def test_grey_palette_and_transparent_files_become_rgb(data_config, tmp_path):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    PIL.Image.fromarray(pixels).save(folder / "grey.png")
    PIL.Image.fromarray(pixels).convert("P").save(folder / "palette.png")
    PIL.Image.fromarray(np.dstack([pixels] * 3 + [pixels * 0])).save(folder / "transparent.png")
    images = everything(load(data_config("folder", tmp_path, 8), "train"))["image"]
    np.testing.assert_array_equal(images, np.broadcast_to(pixels[:, :, None], (3, 8, 8, 3)))


def test_a_folder_with_validation_and_test_has_all_three(data_config, tmp_path):
    for part in ("train", "val", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / part / "a" / "0.jpg")
    config = data_config("folder", tmp_path, 8)
    splits = [load(config, s).original_split for s in ("train", "validation", "test")]
    assert splits == [Split.TRAIN, Split.VALIDATION, Split.TEST]


def test_bad_folders_are_refused_in_words(data_config, tmp_path):
    config = data_config("folder", tmp_path, 8)
    with pytest.raises(UserError, match="has no class sub-folders"):
        load(config, "train")
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no image files"):
        load(config, "train")
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "train" / "a" / "0.jpg")
    with pytest.raises(UserError, match="has no test split"):
        load(config, "test")
    with pytest.raises(UserError, match="no validation split of its own"):
        load(config, "validation")
    with pytest.raises(UserError, match="'holdout' is unknown"):
        load(config, "holdout")
    with pytest.raises(UserError, match="image_size=0"):
        load(data_config("folder", tmp_path, 0), "train")
    (tmp_path / "test" / "b").mkdir(parents=True)
    with pytest.raises(UserError, match="has class 'b'"):
        load(config, "test")


@pytest.mark.parametrize("memory_limit_bytes", [0, 2**31])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_an_unreadable_file_is_named(data_config, tmp_path, damage, memory_limit_bytes):
    (tmp_path / "train" / "a").mkdir(parents=True)
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    PIL.Image.fromarray(noise).save(whole, "JPEG")
    content = {"truncated": whole.getvalue()[:-800], "empty": b"", "text": b"no image"}[damage]
    (tmp_path / "train" / "a" / "broken.jpg").write_bytes(content)
    config = data_config("folder", tmp_path, 8)
    with pytest.raises(UserError, match=r"broken\.jpg is not a readable image"):
        everything(load(config, "train", memory_limit_bytes=memory_limit_bytes))


# TFDS.


def prepare_tfds(root, name, features, examples):
    """Writes a TFDS set of one train split as `tfds build` would; needs no TensorFlow."""
    import tensorflow_datasets as tfds

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": enumerate(examples)}

        def _generate_examples(self):
            raise NotImplementedError

    Prepared.name = name
    Prepared(data_dir=root, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def own_tfds(tmp_path_factory):
    """`scenes`: PNG of mixed sizes, unlabelled; `raw`: pixels, labelled; `flat`: no images."""
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)

    def png(height):
        file = io.BytesIO()
        PIL.Image.fromarray(rng.integers(0, 256, (height, 12, 3), np.uint8)).save(file, "PNG")
        return file.getvalue()

    root = tmp_path_factory.mktemp("tfds")
    image = tfds.features.Image(shape=(None, None, 3))
    scenes = [{"image": png(height)} for height in range(8, 14)]
    prepare_tfds(root, "scenes", {"image": image}, scenes)
    pixels = tfds.features.Tensor(shape=(6, 5, 1), dtype=np.uint8)
    label = tfds.features.ClassLabel(num_classes=2)
    raw = [{"image": np.full((6, 5, 1), 7 * i, np.uint8), "label": i % 2} for i in range(6)]
    prepare_tfds(root, "raw", {"image": pixels, "label": label}, raw)
    vector = tfds.features.Tensor(shape=(6,), dtype=np.uint8)
    prepare_tfds(root, "flat", {"image": vector}, [{"image": np.zeros(6, np.uint8)}])
    return root


def test_a_tfds_set_of_mixed_sizes_without_labels(data_config, own_tfds):
    config = data_config("scenes", own_tfds, 8)
    kept, lazy = load(config, "train"), load(config, "train", memory_limit_bytes=0)
    assert isinstance(kept, ArraySource)
    assert isinstance(lazy, TfdsSource)
    assert_same_batch(everything(kept), everything(lazy))
    assert everything(kept)["targets"] == {}
    assert kept.image_shape == (8, 8, 3)
    assert sorted(everything(kept)["original_size"][:, 0]) == list(range(8, 14))
    with pytest.raises(UserError, match="vary in size"):
        load(data_config("scenes", own_tfds), "train")
    with pytest.raises(UserError, match="no test split"):
        load(config, "test")


def test_a_tfds_set_of_raw_pixels(data_config, own_tfds):
    source = load(data_config("raw", own_tfds), "train")
    assert source.image_shape == (6, 5, 1)
    assert source.num_classes == 2
    batch = everything(source)
    number = batch["image"][:, 0, 0, 0] // 7
    assert sorted(number) == list(range(6))
    np.testing.assert_array_equal(
        batch["image"], np.tile((7 * number)[:, None, None, None], (6, 5, 1))
    )
    np.testing.assert_array_equal(batch["targets"]["label"], number % 2)


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_a_damaged_tfds_set_is_refused_in_words(data_config, own_tfds, tmp_path, damage):
    shutil.copytree(own_tfds / "raw", tmp_path / "raw")
    file = next((tmp_path / "raw").rglob("*.array_record*"))
    content = bytearray(file.read_bytes())
    file.unlink()
    middle = len(content) // 2
    if damage == "truncated":
        file.write_bytes(content[:middle])
    if damage == "changed":
        content[middle : middle + 400] = bytes(400)
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"are incomplete or damaged|is not a readable image"):
        load(data_config("raw", tmp_path), "train")


def test_a_tfds_set_without_images_is_refused(data_config, own_tfds):
    with pytest.raises(UserError, match="no uint8 feature 'image'"):
        load(data_config("flat", own_tfds), "train")


def test_a_missing_tfds_set_names_the_command_that_prepares_it(data_config, tmp_path, monkeypatch):
    command = "tfds build cifar100 --data_dir={} --file_format=array_record"
    with pytest.raises(UserError) as raised:
        load(data_config("cifar100", tmp_path / "here"), "train")
    assert command.format(tmp_path / "here") in str(raised.value)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "there"))
    with pytest.raises(UserError) as raised:
        load(data_config("cifar100"), "train")
    assert command.format(tmp_path / "there") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["nosuchset", "no such set", "mnist:9.9.9"])
def test_an_unknown_name_is_refused_in_words(data_config, tmp_path, name):
    with pytest.raises(UserError, match=r"correct data\.name"):
        load(data_config(name, tmp_path), "train")


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_real_tfds_images_are_those_of_the_reader(data_config, real_tfds, name):
    import tensorflow_datasets as tfds

    config = data_config(name, real_tfds, validation_fraction=0.1, train_examples=300)
    source = load(config, "train")
    records = tfds.data_source(name, split="train", data_dir=real_tfds, download=False)
    batch = everything(source)
    for row in (0, 1, 150, 299):
        record = records[int(source.positions[row])]
        np.testing.assert_array_equal(batch["image"][row], record["image"])
        assert batch["targets"]["label"][row] == record["label"]
    assert source.original_size == {"cifar10": 50_000, "mnist": 60_000}[name]
    assert source.image_shape == {"cifar10": (32, 32, 3), "mnist": (28, 28, 1)}[name]
    assert len(source) == 300
    lazy = load(config, "train", memory_limit_bytes=0)
    assert_same_batch(batch, everything(lazy))


def test_real_cifar10_parts(data_config, real_tfds, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(real_tfds))
    config = data_config("cifar10", validation_fraction=0.1)
    train = load(config, "train", memory_limit_bytes=0)
    validation, test = load(config, "validation"), load(config, "test")
    assert (len(train), len(validation), len(test)) == (45_000, 5_000, 10_000)
    assert not set(train.positions) & set(validation.positions)
    assert test.class_names[:2] == ("airplane", "automobile")
    assert np.bincount(everything(test)["targets"]["label"]).tolist() == [1000] * 10
    # Records are shuffled when the set is written, so the cut is as good as a draw: chi-squared
    # with 9 degrees of freedom, whose 99.9th percentile is 27.9.
    counts = np.bincount(everything(validation)["targets"]["label"], minlength=10)
    assert np.sum((counts - 500) ** 2 / 500) < 27.9
    assert test.original_split == Split.TEST


def test_gather_checks_its_rows():
    source = array_source("mine", Split.TRAIN, np.zeros((3, 4, 4, 1), np.uint8), {})
    with pytest.raises(IndexError):
        unchecked(ArraySource.gather)(source, np.array([3]))
