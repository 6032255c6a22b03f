"""Sets prepared by TFDS that no recipe names."""

import io
import shutil

import numpy as np
import PIL.Image
import pytest
from batches import assert_same_batch, everything
from prepared import grey, plain, prepare_tfds

from jaxssl.data.sources import ArraySource, TfdsSource, load
from jaxssl.errors import UserError


def test_unreadable_records_are_refused_or_left_out(data_config, tmp_path):
    import tensorflow_datasets as tfds

    broken = [plain(i) if i != 2 else b"\x89PNG no image" for i in range(5)]
    features = {"image": tfds.features.Image(shape=(None, None, 3))}
    prepare_tfds(tmp_path, "broken", features, {"train": [{"image": b} for b in broken]})
    with pytest.raises(UserError, match=r"record \d of broken is not a readable image"):
        load(data_config("broken", tmp_path, 8), "train")
    source = load(data_config("broken", tmp_path, 8, unreadable="skip"), "train")
    assert sorted(grey(source)) == [0, 1, 3, 4]
    assert len(set(range(5)) - set(source.positions.tolist())) == 1
    assert source.original_size == 5


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
    prepare_tfds(root, "scenes", {"image": image}, {"train": scenes})
    pixels = tfds.features.Tensor(shape=(6, 5, 1), dtype=np.uint8)
    label = tfds.features.ClassLabel(num_classes=2)
    raw = [{"image": np.full((6, 5, 1), 7 * i, np.uint8), "label": i % 2} for i in range(6)]
    prepare_tfds(root, "raw", {"image": pixels, "label": label}, {"train": raw})
    vector = tfds.features.Tensor(shape=(6,), dtype=np.uint8)
    prepare_tfds(root, "flat", {"image": vector}, {"train": [{"image": np.zeros(6, np.uint8)}]})
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


# Decoded once for all starts.


def test_decoded_images_are_kept_for_the_next_start(data_config, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=2),
    }

    def prepare(levels):
        shutil.rmtree(tmp_path / "tfds", ignore_errors=True)
        examples = [{"image": plain(level), "label": level % 2} for level in levels]
        prepare_tfds(tmp_path / "tfds", "levels", features, {"train": examples})

    def opened(image_size=8, **options):
        config = data_config("levels", tmp_path / "tfds", image_size, **options)
        return load(config, "train")

    monkeypatch.setenv("JAXSSL_CACHE", str(tmp_path / "cache"))
    prepare([10, 20, 30, 40])
    first = opened()
    gathered = []
    gather = TfdsSource.gather

    def noting(source, rows, epochs=None):
        gathered.append(len(rows))
        return gather(source, rows, epochs)

    monkeypatch.setattr(TfdsSource, "gather", noting)
    assert_same_batch(everything(opened()), everything(first))
    assert not gathered
    # Whatever the pixels depend on makes other entries.
    assert grey(opened(train_examples=2)) == grey(first)[1::2]
    assert opened(image_size=4).image_shape == (4, 4, 3)
    assert sum(gathered) == 2 + 4
    prepare([11, 21, 31, 41])
    assert sorted(grey(opened())) == [11, 21, 31, 41]
    monkeypatch.setattr(PIL, "__version__", "0")
    gathered.clear()
    opened()
    assert sum(gathered) == 4
