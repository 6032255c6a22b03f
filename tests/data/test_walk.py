"""Folders as they are found: links, leftovers, other files, names alike; and the line on them."""

import os
import shutil
import socket
import unicodedata

import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict

from jaxssl.corruptions.apply import corruption_group
from jaxssl.data.decoding import read_bytes
from jaxssl.data.examples import array_source
from jaxssl.data.sources import FolderSource, load
from jaxssl.data.splits import Splits
from jaxssl.data.summary import describe
from jaxssl.data.walk import images_in
from jaxssl.errors import UserError
from jaxssl.randomness import Split


def save(path, value=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (9, 9), (value,) * 3).save(path, **options)


def junk(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"something")


def splits_of(config, *names):
    return {name: load(config, name) for name in names}


def test_linked_folders_are_read_once_and_circles_end(data_config, tmp_path):
    for number in range(3):
        save(tmp_path / "data" / "train" / "cat" / f"{number}.png")
        save(tmp_path / "elsewhere" / "deep" / f"{number}.png")
        save(tmp_path / "birds" / f"{number}.png")
        save(tmp_path / "data" / "train" / "dog" / f"{number}.png")
    cat = tmp_path / "data" / "train" / "cat"
    (cat / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "round").symlink_to(tmp_path / "elsewhere")
    (cat / "up").symlink_to(tmp_path / "data" / "train")  # the dogs are no cats
    (tmp_path / "data" / "train" / "emu").symlink_to(tmp_path / "birds")
    source = load(data_config("folder", tmp_path / "data", 8), "train", memory_limit_bytes=0)
    assert source.class_names == ("cat", "dog", "emu")
    assert np.bincount(source.targets["label"]).tolist() == [6, 3, 3]
    names = [f"cat/{n}.png" for n in range(3)] + [f"cat/more/deep/{n}.png" for n in range(3)]
    assert list(source.names[:6]) == names
    assert source.passed_over == {"link to a folder read already": 2}
    (cat / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"cat/gone is a link to .*nowhere, which is not there"):
        load(data_config("folder", tmp_path / "data", 8), "train")


def test_a_picture_that_links_put_twice_into_a_class_is_read_once(data_config, tmp_path):
    save(tmp_path / "train" / "cat" / "b.png", 9)
    save(tmp_path / "pool" / "c.png", 8)
    save(tmp_path / "train" / "dog" / "0.png")
    cat = tmp_path / "train" / "cat"
    (cat / "a.png").symlink_to("b.png")
    for name in ("c.png", "d.png"):
        (cat / name).symlink_to(tmp_path / "pool" / "c.png")
    for name in ("folder", "images"):
        config = data_config(name, tmp_path, 8)
        source = load(config, "train")
        assert source.names == ("cat/b.png", "cat/c.png", "dog/0.png")
        assert source.passed_over == {"link to an image read already": 2}
        line = describe({"train": source}, config)
        assert line.endswith("pool/ unused; left out 2 links to an image read already")


def link_picture(root):
    (root / "train" / "bee" / "x.png").symlink_to(root / "train" / "ant" / "0.png")


def link_twice(root):
    for name in ("bee", "cat"):
        (root / "train" / name / "x.png").symlink_to(root / "val" / "ant" / "notes.txt")


def link_folder(root):
    (root / "train" / "bee" / "x").symlink_to(root / "train" / "ant")


def link_class(root):
    (root / "train" / "dog").symlink_to(root / "train" / "ant")


@pytest.mark.parametrize("change", [link_picture, link_twice, link_folder, link_class])
def test_one_picture_of_two_classes_is_refused(data_config, folder, tmp_path, change):
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    change(root)
    with pytest.raises(UserError, match=r"\.png and .*\.png are one picture, .* have two classes"):
        load(data_config("folder", root, 8), "train")


def test_one_picture_to_train_and_to_test_on_is_refused(data_config, folder, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    config = data_config("folder", root, 8)
    says = r"copy/train/.*\.png and .*copy/(val|test)/.*\.png are one picture, because of links"
    link = root / "val" / "cat" / "x.png"
    link.symlink_to(root / "train" / "cat" / "3.png")
    for name in ("folder", "images"):
        with pytest.raises(UserError, match=says):
            load(data_config(name, root, 8), "train")
    link.unlink()
    link.symlink_to(folder / "train" / "cat" / "3.png")  # a copy of it
    assert len(load(config, "train")) == 18
    (root / "train" / "ant" / "x.png").symlink_to(root / "val" / "ant" / "0.png")
    with pytest.raises(UserError, match=says):
        load(config, "train")
    # With a test split, validation is cut from train and val/ is used for nothing.
    (root / "test" / "cat").mkdir(parents=True)
    save(root / "test" / "cat" / "0.png")
    assert len(load(data_config("folder", root, 8, validation_fraction=0.5), "train")) == 10
    with pytest.raises(UserError, match=says):
        load(config, "train")
    (root / "train" / "ant" / "x.png").unlink()
    shutil.rmtree(root / "test")
    (root / "test").symlink_to("train")
    with pytest.raises(UserError, match=says):
        load(config, "train")
    (root / "test").unlink()
    (root / "test").mkdir()
    (root / "test" / "ant").symlink_to(root / "train" / "ant")
    with pytest.raises(UserError, match=says):
        load(config, "train")


def test_what_is_no_file_is_passed_over_and_never_opened(data_config, tmp_path):
    save(tmp_path / "train" / "cat" / "0.png")
    os.mkfifo(tmp_path / "train" / "cat" / "1.png")
    (tmp_path / "train" / "cat" / "2.png").symlink_to("1.png")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "train" / "cat" / "3.png"))
        source = load(data_config("folder", tmp_path, 8), "train")
    assert len(source) == 1
    assert source.passed_over == {"special file": 3}
    with pytest.raises(UserError, match=r"1\.png could not be read \(it is no regular file\)"):
        read_bytes(tmp_path / "train" / "cat" / "1.png")


def test_every_suffix_that_pillow_reads_is_an_image(data_config, tmp_path):
    kinds = {"avif": "AVIF", "jfif": "JPEG", "jp2": "JPEG2000", "tga": "TGA", "pnm": "PPM"}
    for suffix, kind in {**kinds, "JPE": "JPEG"}.items():
        save(tmp_path / f"picture.{suffix}", 200, format=kind)
    for suffix in ("pgm", "pbm"):
        image = PIL.Image.new("L" if suffix == "pgm" else "1", (9, 9), 200)
        image.save(tmp_path / f"grey.{suffix}", "PPM")
    batch = load(data_config("images", tmp_path, 8), "train").gather(np.arange(8))
    light = batch["image"].reshape(8, -1).mean(axis=1)
    np.testing.assert_allclose(light, [255, *[200] * 7], atol=3)


def test_what_is_passed_over_is_counted_by_kind(data_config, tmp_path):
    for name in ("cat", "dog"):
        save(tmp_path / "train" / name / "0.png")
    for name in ("a.heic", "b.HEIC", "notes.txt", "LICENSE"):
        junk(tmp_path / "train" / "cat" / name)
    save(tmp_path / "train" / "cat" / "._0.png")
    save(tmp_path / "train" / "cat" / "@eaDir" / "0.png" / "SYNOPHOTO.jpg")
    for number in range(3):
        save(tmp_path / "train" / "__MACOSX" / "cat" / f"{number}.png")
    save(tmp_path / "train" / "loose.png")
    save(tmp_path / "beside.jpg")
    junk(tmp_path / "README.md")
    config = data_config("folder", tmp_path, 8)
    source = load(config, "train")
    assert source.class_names == ("cat", "dog")
    assert len(source) == 2
    assert source.passed_over == {
        ".heic": 2,
        ".jpg beside train/": 1,
        ".png in no class folder": 1,
        ".txt": 1,
        "@eaDir/": 1,
        "__MACOSX/ in no class folder": 3,
        "hidden": 1,
        "no suffix": 1,
    }
    assert describe({"train": source}, config) == (
        "train 2 images, 2 classes; passed over 11 files (2 .heic, 1 .jpg beside train/, 1 .png in "
        "no class folder, 1 .txt, 1 @eaDir/, 3 __MACOSX/ in no class folder, 1 hidden, 1 no suffix)"
    )


@pytest.mark.parametrize("bare", [True, False])
def test_classes_without_images_are_refused(data_config, folder, tmp_path, bare):
    (tmp_path / "train" / "emu").mkdir(parents=True)
    if not bare:
        junk(tmp_path / "train" / "emu" / "0.heic")
    (tmp_path / "train" / "ant").symlink_to(folder / "train" / "ant")
    with pytest.raises(UserError, match=r"no images in 1 class of .*train, .* 'emu'"):
        load(data_config("folder", tmp_path, 8), "train")


def test_two_folders_for_one_split_are_refused(data_config, tmp_path):
    for part in ("train", "val", "validation"):
        save(tmp_path / part / "a" / "0.png")
    for name in ("folder", "images"):
        with pytest.raises(UserError, match="has both validation/ and val/"):
            load(data_config(name, tmp_path, 8), "train")


def test_class_names_that_print_alike_are_one_or_refused(data_config, tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Bär") for form in ("NFC", "NFD"))
    save(tmp_path / "train" / decomposed / "0.png")
    save(tmp_path / "train" / "Bz" / "0.png")
    save(tmp_path / "val" / composed / "0.png")
    config = data_config("folder", tmp_path, 8)
    train, test = load(config, "train"), load(config, "test")
    # In order of the composed form; the bytes on disk would put the bear first.
    assert train.class_names == test.class_names == ("Bz", composed)
    assert test.gather(np.array([0]))["targets"]["label"].tolist() == [1]
    (tmp_path / "train" / composed).mkdir()
    with pytest.raises(UserError, match=r"two folders that both read 'Bär'.*\\u0308"):
        load(config, "train")


def test_a_home_directory_may_be_written_as_a_tilde(data_config, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(load(data_config("folder", f"~/{folder.name}", 8), "train")) == 18
    with pytest.raises(UserError, match=r"--config\.data\.data_dir=~nobody-here/x is no path"):
        load(data_config("folder", "~nobody-here/x", 8), "train")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    import os

    save(tmp_path / "a" / "0.png")
    scan = os.scandir

    def fail(path):
        if os.path.basename(path) == "a":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(UserError, match=r"/a could not be read \(Permission denied\)"):
        images_in(tmp_path)


# The line at the start.


def test_the_line_has_what_is_held_out_whether_or_not_it_is_opened(data_config, tmp_path):
    for number in range(10):
        save(tmp_path / "unlabelled" / f"{number}.png")
    config = data_config("images", tmp_path / "unlabelled", 8, validation_fraction=0.1)
    splits = Splits(config, ConfigDict({**corruption_group(), "name": "gamma"}), 8)
    assert len(splits["pretrain"]) == 9
    told = "train 9 images; validation 1 (cut from train)"
    assert describe(splits.known(), config) == told
    held_out = splits.known()["validation"]
    assert isinstance(held_out, FolderSource)  # counted, not decoded
    splits.check("validation")
    assert splits.known()["validation"] is held_out
    assert len(splits["validation"]) == 1
    assert describe(splits.known(), config) == told
    with pytest.raises(UserError, match="no test split"):
        splits.check("test")
    images = np.zeros((5, 8, 8, 3), np.uint8)
    mine = {"train": array_source("mine", Split.TRAIN, images, {})}
    mine["test"] = mine["train"].take(np.arange(2))
    given = Splits(data_config(""), corruption_group(), 8, mine)
    assert len(given["train"]) == 5
    assert describe(given.known(), data_config("")) == "train 5 images; test 2 (cut from train)"


def test_the_line_says_where_each_split_comes_from(data_config, tmp_path):
    for part, count in (("train", 12), ("val", 4), ("test", 2), ("valid", 1)):
        for name in ("a", "b", "c"):
            for number in range(count):
                save(tmp_path / part / name / f"{number}.png")
    cut = data_config("folder", tmp_path, 8, validation_fraction=0.1)
    assert describe(splits_of(cut, "train", "validation", "test"), cut) == (
        "train 33 images, 3 classes; validation 3 (cut from train; val/, valid/ unused); test 6"
    )
    given = data_config("folder", tmp_path, 8)
    assert describe(splits_of(given, "train", "validation"), given) == (
        "train 36 images, 3 classes; validation 12 (valid/ unused)"
    )
    for number in range(2):
        junk(tmp_path / "train" / "a" / f"{number}.jpg")
    skip = data_config("folder", tmp_path, 8, unreadable="skip")
    assert describe(splits_of(skip, "train"), skip) == (
        "train 36 images, 3 classes (2 unreadable left out); valid/ unused"
    )


def test_the_line_of_a_set_whose_validation_split_is_for_testing(data_config, folder):
    config = data_config("folder", folder, 8, validation_fraction=0.25)
    passed_over = "passed over {} files ({} .txt)"
    assert describe(splits_of(config, "train", "validation"), config) == (
        "train 14 images, 3 classes; validation 4 (cut from train; the published validation split "
        f"is for testing); {passed_over.format(3, 3)}"
    )
    assert describe(splits_of(config, "train", "test"), config) == (
        "train 14 images, 3 classes; test 4 (the published validation split); "
        f"{passed_over.format(5, 5)}"
    )


def test_the_line_of_arrays_and_of_a_bare_folder(data_config, tmp_path):
    save(tmp_path / "some" / "0.png")
    bare = data_config("images", tmp_path, 8)
    assert describe(splits_of(bare, "train"), bare) == "train 1 image"
    mine = array_source("mine", Split.TRAIN, np.zeros((1234, 4, 4, 1), np.uint8), {})
    assert describe({"train": mine}, data_config("")) == "train 1,234 images"
    digits = data_config("digits", validation_fraction=0.1)
    assert describe(splits_of(digits, "train", "validation", "test"), digits) == (
        "train 1,294 images, 10 classes; validation 143 (cut from train); test 360"
    )
