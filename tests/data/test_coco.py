"""COCO's JSON: what contradicts itself is refused by id and name, or counted."""

import json

import numpy as np
import PIL.Image
import pytest

from jaxssl.data import coco
from jaxssl.data.sources import load
from jaxssl.data.summary import describe
from jaxssl.errors import UserError


def image(identity, name, height=16, width=16):
    return {"id": identity, "file_name": name, "height": height, "width": width}


def box(identity, of, bbox, category=1, **more):
    return {"id": identity, "image_id": of, "category_id": category, "bbox": bbox, **more}


@pytest.fixture
def root(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / "train").mkdir(exist_ok=True)
        PIL.Image.new("RGB", (16, 16)).save(tmp_path / "train" / name)
    return tmp_path


CONTENT = {
    "images": [image(1, "a.png"), image(2, "b.png")],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [box(7, 1, [0, 0, 8, 8]), box(8, 2, [8, 8, 8, 8], 2)],
}


def write(root, content, encode=lambda text: text.encode()):
    (root / "instances_train.json").write_bytes(encode(json.dumps(content)))


@pytest.mark.parametrize(
    ("key", "entry", "message"),
    [
        ("images", image(1, "c.png"), r"two images with id 1 \(file_name 'a\.png' and 'c\.png'\)"),
        ("images", image(3, "a.png"), r"two images with file_name 'a\.png' \(id 1 and 3\)"),
        ("images", image(3, "./a.png"), r"two images with file_name 'a\.png' \(id 1 and 3\)"),
        ("images", image(3, "c.png", 0), r"image 'c\.png' is 0 x 16 pixels"),
        (
            "images",
            image(3, 7),
            r"image, number 2 .* whose file_name is .*'file_name': 7",
        ),
        ("images", {"id": 3, "file_name": "c.png"}, r"image, number 2 .* whose height is missing"),
        ("images", image(3, "c.png", 15.5), r"image, number 2 .* whose height is .*15\.5"),
        ("images", image([3], "c.png"), r"image, number 2 .* whose id is missing or of another"),
        ("images", 3, r"image, number 2 of the list, whose id is missing .*\(3\)"),
        ("categories", {"id": 3}, r"category, number 2 of the list, whose name is missing"),
        ("images", image(3, "../c.png"), r"image id 3 with file_name '\.\./c\.png'"),
        ("categories", {"id": 2, "name": "emu"}, r"two categories with id 2 \(name 'dog' and 'emu"),
        ("categories", {"id": 3, "name": "dog"}, r"two categories with name 'dog' \(id 2 and 3\)"),
        ("annotations", box(8, 1, [0, 0, 1, 1]), r"two annotations with id 8 \(image_id 2 a"),
        (
            "annotations",
            box([8], 1, [0, 0, 1, 1]),
            r"annotation id \[8\] of image id 1 of c",
        ),
        ("annotations", box(9, 99, [0, 0, 1, 1]), r"annotation id 9 of image id 99 with image_id"),
        ("annotations", box(9, 1, [0, 0, 1, 1], 99), r"id 9 of image id 1 with category_id 99,"),
        ("annotations", box(9, 2, [5, 5, -3, 2]), r"id 9 of image id 2 with bbox \[5, 5, -3, 2\]"),
        ("annotations", box(9, 2, [5, float("nan"), 3, 2]), r"id 9 of image id 2 with bbox .*nan"),
        ("annotations", box(9, 2, [5, 5, 3]), r"id 9 of image id 2 of category id 1 with bbox"),
        ("annotations", box(9, 2, [5, 5, 3, 2, 1]), r"id 9 of image id 2 of category id 1 with b"),
        ("annotations", box(9, 2, None), r"id 9 of image id 2 of category id 1 with bbox None"),
        ("annotations", box(9, 2, {"x": 1}), r"id 9 of image id 2 of category id 1 with bbox"),
        ("annotations", box(9, [2], [5, 5, 3, 2]), r"id 9 of image id \[2\] of category id 1"),
        ("annotations", box(9, True, [5, 5, 3, 2]), r"id 9 of image id True of category id 1"),
        ("annotations", {"id": 9, "image_id": 2}, r"number 2 of the list, that lacks"),
        (
            "annotations",
            box(9, 2, [5, 5, 3, 2], iscrowd="0"),
            r"image id 2 with iscrowd '0'",
        ),
        ("annotations", box(9, 2, [5, 5, 3, float("inf")]), r"id 9 of image id 2 with bbox .*inf"),
    ],
)
def test_contradictions_are_refused_by_id_and_name(data_config, root, key, entry, message):
    write(root, {**CONTENT, key: [*CONTENT[key], entry]})
    with pytest.raises(UserError, match=rf"instances_train\.json .*{message}"):
        load(data_config("coco_folder", root, 8), "train")


def test_boxes_without_area_and_images_not_listed_are_counted(data_config, root):
    PIL.Image.new("RGB", (16, 16)).save(root / "train" / "spare.png")
    more = [box(9, 1, [4, 4, 0, 3]), box(10, 1, [20, 0, 5, 5]), box(11, 2, [0, 0, 16, 16])]
    write(root, {**CONTENT, "annotations": [*CONTENT["annotations"], *more]})
    config = data_config("coco_folder", root, 8)
    source = load(config, "train")
    targets = source.gather(np.arange(2))["targets"]
    assert targets["box_labels"].tolist() == [[0, -1], [1, 0]]
    assert targets["boxes"][1].tolist() == [[4, 4, 8, 8], [0, 0, 8, 8]]
    assert source.passed_over == {
        "box without area": 2,
        "image not in instances_train.json": 1,
    }
    assert describe({"train": source}, config) == (
        "train 2 images; passed over 1 file (1 image not in instances_train.json); left out 2 "
        "boxes without area"
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_json_of_any_unicode_encoding_is_read(data_config, root, encoding):
    content = {**CONTENT, "categories": [{"id": 1, "name": "Bär"}, {"id": 2, "name": "dog"}]}
    text = json.dumps(content, ensure_ascii=False)
    (root / "instances_train.json").write_bytes(text.encode(encoding))
    assert load(data_config("coco_folder", root, 8), "train").class_names == ("Bär", "dog")


def test_a_json_is_parsed_once_until_it_changes(data_config, root, monkeypatch):
    write(root, CONTENT)
    parsed = []
    whole = coco._annotations
    monkeypatch.setattr(coco, "_annotations", lambda *given: parsed.append(1) or whole(*given))
    config = data_config("coco_folder", root, 8, validation_fraction=0.5)
    for split in ("train", "validation"):
        load(config, split)
    assert len(parsed) == 1
    write(root, {**CONTENT, "annotations": []})
    assert (load(config, "train").gather(np.array([0]))["targets"]["box_labels"] == -1).all()
    assert len(parsed) == 2


@pytest.mark.parametrize(("annotated", "refused"), [((24, 16), False), ((16, 24), True)])
def test_sizes_are_those_of_the_picture_as_it_is_shown(data_config, root, annotated, refused):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter: 24 high and 16 wide
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[8:16, 0:12] = 255  # shown in the left half of the upper half
    PIL.Image.fromarray(stored).save(root / "train" / "a.png", exif=exif)
    images = [image(1, "a.png", *annotated), image(2, "b.png")]
    write(root, {**CONTENT, "images": images, "annotations": [box(7, 1, [0, 4, 8, 8])]})
    config = data_config("coco_folder", root, 16)
    if refused:
        with pytest.raises(UserError, match=r"a\.png is 24 x 16 pixels, upright by its EXIF"):
            load(config, "train")
        return
    batch = load(config, "train").gather(np.array([0]))
    y0, x0, y1, x1 = batch["targets"]["boxes"][0, 0].astype(int)
    assert (y0, x0, y1, x1) == (0, 0, 8, 8)
    assert (batch["image"][0, y0:y1, x0:x1] == 255).all()
    assert batch["image"][0].sum() == 255 * 64 * 3


def test_a_picture_listed_under_two_names_is_refused(data_config, root):
    (root / "train" / "b.png").unlink()
    (root / "train" / "b.png").symlink_to("a.png")
    write(root, CONTENT)
    with pytest.raises(UserError, match=r"a\.png and .*b\.png are one picture, .* lists of boxes"):
        load(data_config("coco_folder", root, 8), "train")
    write(root, {**CONTENT, "images": CONTENT["images"][:1], "annotations": []})
    assert len(load(data_config("coco_folder", root, 8), "train")) == 1


def test_names_may_have_another_unicode_form_on_disk(data_config, root):
    (root / "train" / "a.png").rename(root / "train" / "ba\u0308r.png")
    write(root, {**CONTENT, "images": [image(1, "b\xe4r.png"), image(2, "b.png")]})
    source = load(data_config("coco_folder", root, 8), "train")
    assert len(source) == 2
    assert source.passed_over == {}
