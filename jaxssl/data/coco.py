"""Folders of images with boxes from COCO's JSON."""

import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxssl.data.canonical import Canonical, canonical_boxes, padded_boxes
from jaxssl.data.decoding import read_bytes, unreachable
from jaxssl.data.folders import (
    PARTS,
    FolderSource,
    check_one_picture_each,
    folder_source,
    part_of,
)
from jaxssl.data.walk import NO_AREA, Found, composed, images_in, merged
from jaxssl.errors import UserError

# Whatever else a JSON holds (outlines above all) is dropped while it is parsed.
_KEYS = frozenset(
    (
        *("images", "annotations", "categories", "id", "name", "file_name", "height", "width"),
        *("image_id", "category_id", "bbox", "iscrowd"),
    )
)


class Annotations(NamedTuple):
    """What a JSON says, M boxes on N images.

    Attributes:
      categories: name by id.
      files: file names, sorted.
      sizes: int32 [N,2], (height, width).
      boxes: float64 [M,4], (y0, x0, y1, x1) in pixels.
      labels: int32 [M], number of the category in order of the ids.
      rows: int64 [M], of the image, increasing.
      without_area: boxes that were left out because none of their area is inside the image.
    """

    categories: Mapping[Any, str]
    files: Sequence[str]
    sizes: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    without_area: int


def coco_splits(config: ConfigDict) -> Sequence[str]:
    """The splits that have both a folder of images and a JSON with their boxes."""
    splits = [
        name
        for name in PARTS
        if part_of(config, name).is_dir() and _json_of(part_of(config, name)).is_file()
    ]
    if "train" not in splits:
        raise UserError(
            f"{part_of(config, 'train').parent} is no COCO folder: it must have train/ with the "
            "images and instances_train.json beside it, and likewise for val and test."
        )
    return splits


def _json_of(part: pathlib.Path) -> pathlib.Path:
    return part.parent / f"instances_{part.name}.json"


def open_coco(config: ConfigDict, published: str) -> FolderSource:
    """Images with boxes from COCO's JSON; those that it does not list are passed over.

    Targets are ``boxes`` and ``box_labels``. A class is the number of its category in order of the
    category id of ``instances_train.json``. Boxes marked ``iscrowd`` are left out: they surround
    a group, and COCO's own scores do not count them. Boxes of no area are left out and counted. M
    is the most boxes that an image has. Sizes and boxes are of the pictures as they are shown,
    upright by their EXIF orientation.
    """
    part = part_of(config, published)
    path, train_path = _json_of(part), _json_of(part_of(config, "train"))
    found, train = annotations_of(path), annotations_of(train_path)
    if found.categories != train.categories:
        raise UserError(
            f"{path} has other categories than {train_path}: use the same list in both."
        )
    files = images_in(part)
    # A name may be written in another Unicode form on disk.
    there = {composed(str(file.relative_to(part))): file for file in files.files}
    listed = [composed(file) for file in found.files]
    passed_over = merged(
        files.passed_over,
        {
            f"image not in {path.name}": len(there.keys() - set(listed)),
            NO_AREA: found.without_area,
        },
    )
    canonical = Canonical.from_config(config)
    real = dict(zip(files.files, files.real, strict=True))
    paths = [there.get(file, part / file) for file in listed]
    images = Found(paths, [real.get(path, str(path)) for path in paths], passed_over)
    check_one_picture_each(images, "two lists of boxes")
    return folder_source(
        config,
        published,
        part,
        images,
        _box_targets(found, canonical),
        class_names=tuple(train.categories[key] for key in sorted(train.categories)),
        sizes=found.sizes,
    )


def annotations_of(path: pathlib.Path) -> Annotations:
    """The content of a JSON, which is parsed once for as long as the file does not change.

    Raises:
      UserError: if it is not COCO's or contradicts itself.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise unreachable(path, error) from error
    return _parsed(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=3)  # train, val and test
def _parsed(path: pathlib.Path, modified: int, size: int) -> Annotations:
    try:  # from bytes, in whose case JSON's own rules find the encoding
        content = json.loads(
            read_bytes(path),
            object_hook=lambda found: {key: found[key] for key in _KEYS & found.keys()},
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): write it again.") from error
    try:
        return _annotations(content, path)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path} is not COCO's JSON of boxes ({type(error).__name__}: {error}): it needs "
            "images (id, file_name, height, width), annotations (image_id, category_id, bbox as "
            "x, y, width, height) and categories (id, name)."
        ) from error


def _annotations(content: dict[str, Any], path: pathlib.Path) -> Annotations:
    for key, one in (("categories", "category"), ("images", "image")):
        for place, entry in enumerate(content[key]):
            _check_entry(entry, one, place, path)
    kinds = [{**kind, "name": composed(kind["name"])} for kind in content["categories"]]
    categories = _unique(kinds, "id", "name", "categories", path)
    _unique(kinds, "name", "id", "categories", path)
    numbers = {identity: number for number, identity in enumerate(sorted(categories))}
    images = [{**image, "file_name": _relative(image, path)} for image in content["images"]]
    _unique(images, "id", "file_name", "images", path)
    _unique(images, "file_name", "id", "images", path)
    images.sort(key=lambda image: composed(image["file_name"]))
    sizes = np.array([(i["height"], i["width"]) for i in images], np.int32).reshape(-1, 2)
    if sizes.size and sizes.min() < 1:
        bad = images[int(np.argmin(sizes.min(axis=1)))]
        raise UserError(
            f"{path} says that image {bad['file_name']!r} is {bad['height']} x {bad['width']} "
            "pixels: correct it."
        )
    rows_of = {image["id"]: row for row, image in enumerate(images)}
    boxes, labels, rows = [], [], []
    for place, annotation in enumerate(content["annotations"]):
        _check_form(annotation, place, path)
    _unique([a for a in content["annotations"] if "id" in a], "id", "image_id", "annotations", path)
    for annotation in content["annotations"]:
        if annotation.get("iscrowd", 0):
            continue
        image, category = annotation["image_id"], annotation["category_id"]
        for key, known in (("image_id", rows_of), ("category_id", numbers)):
            if annotation[key] not in known:
                raise UserError(
                    f"{path} has {_called(annotation)} with {key} {annotation[key]!r}, which "
                    f"{'images' if key == 'image_id' else 'categories'} does not list: add it "
                    "there, or remove the annotation."
                )
        boxes.append(_corners(annotation, path))
        labels.append(numbers[category])
        rows.append(rows_of[image])
    order = np.argsort(rows, kind="stable")
    corners = np.array(boxes, np.float64).reshape(-1, 4)[order]
    row_of = np.array(rows, np.int64)[order]
    inside = np.clip(corners, 0, np.tile(sizes[row_of], 2))
    kept = (inside[:, 2:] > inside[:, :2]).all(axis=1)
    return Annotations(
        categories=categories,
        files=tuple(image["file_name"] for image in images),
        sizes=sizes,
        boxes=corners[kept],
        labels=np.array(labels, np.int32)[order][kept],
        rows=row_of[kept],
        without_area=int(np.sum(~kept)),
    )


def _unique(
    entries: Sequence[Mapping[str, Any]], key: str, shown: str, what: str, path: pathlib.Path
) -> dict[Any, Any]:
    """``shown`` by ``key`` of all entries, if no two have the same key."""
    found: dict[Any, Any] = {}
    for entry in entries:
        if entry[key] in found:
            raise UserError(
                f"{path} has two {what} with {key} {entry[key]!r} ({shown} {found[entry[key]]!r} "
                f"and {entry[shown]!r}): give each one of its own."
            )
        found[entry[key]] = entry[shown]
    return found


def _relative(image: Mapping[str, Any], path: pathlib.Path) -> str:
    name = os.path.normpath(image["file_name"])
    if os.path.isabs(name) or name.startswith(".."):
        raise UserError(
            f"{path} has image id {image['id']!r} with file_name {name!r}: give it relative to the "
            "folder of the images."
        )
    return name


_FIELDS = {
    "category": {"id": "ids", "name": "texts"},
    "image": {"id": "ids", "file_name": "texts", "height": "sizes", "width": "sizes"},
}
_IS_ONE: Mapping[str, Callable[[Any], bool]] = {
    "ids": lambda value: isinstance(value, int | str) and not isinstance(value, bool),
    "texts": lambda value: isinstance(value, str),
    "sizes": lambda value: isinstance(value, int) or (isinstance(value, float) and value % 1 == 0),
}


def _check_entry(entry: Any, one: str, place: int, path: pathlib.Path) -> None:
    """Refuses an image or a category whose fields are not there or not of their kind."""
    fields = _FIELDS[one]
    wrong = [
        name
        for name, kind in fields.items()
        if not isinstance(entry, dict) or name not in entry or not _IS_ONE[kind](entry[name])
    ]
    if wrong:
        raise UserError(
            f"{path} has one {one}, number {place} of the list, whose {wrong[0]} is "
            f"missing or of another kind ({str(entry)[:80]}): it must have {', '.join(fields)}; "
            "ids are whole numbers or texts, heights and widths whole numbers."
        )


def _check_form(annotation: Any, place: int, path: pathlib.Path) -> None:
    """Refuses an annotation whose fields are not there or not of their kind."""
    if not isinstance(annotation, dict) or not {"image_id", "category_id", "bbox"} <= set(
        annotation
    ):
        raise UserError(
            f"{path} has an annotation, number {place} of the list, that lacks image_id, "
            f"category_id or bbox ({str(annotation)[:60]}): correct or remove it."
        )
    box = annotation["bbox"]
    numbers = isinstance(box, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in box
    )
    keys = [annotation[key] for key in ("id", "image_id", "category_id") if key in annotation]
    known = all(isinstance(key, int | str) and not isinstance(key, bool) for key in keys)
    if not numbers or len(box) != 4 or not known:
        raise UserError(
            f"{path} has {_called(annotation)} of category id {keys[-1]!r} with bbox {box!r}: ids "
            "must be whole numbers or texts, and bbox x, y, width and height; correct or remove it."
        )
    if annotation.get("iscrowd", 0) not in (0, 1):
        raise UserError(
            f"{path} has {_called(annotation)} with iscrowd {annotation['iscrowd']!r}: it must be "
            "0 or 1."
        )


def _corners(annotation: Mapping[str, Any], path: pathlib.Path) -> tuple[float, ...]:
    x, y, width, height = (float(value) for value in annotation["bbox"])
    if not all(map(math.isfinite, (x, y, width, height))) or min(width, height) < 0:
        raise UserError(
            f"{path} has {_called(annotation)} with bbox {annotation['bbox']}: it must be x, y, "
            "width and height, finite, the latter two not negative; correct or remove it."
        )
    return y, x, y + height, x + width


def _called(annotation: Mapping[str, Any]) -> str:
    identity = f"id {annotation['id']!r}" if "id" in annotation else "without id"
    return f"annotation {identity} of image id {annotation['image_id']!r}"


def _box_targets(found: Annotations, canonical: Canonical) -> dict[str, np.ndarray]:
    ends = np.searchsorted(found.rows, np.arange(len(found.files) + 1))
    kept = [
        canonical_boxes(
            found.boxes[start:stop], found.labels[start:stop], (int(height), int(width)), canonical
        )
        for start, stop, (height, width) in zip(ends[:-1], ends[1:], found.sizes, strict=True)
    ]
    room = max([len(classes) for _, classes in kept], default=0)
    padded = [padded_boxes(*pair, max(room, 1)) for pair in kept]
    if not padded:
        return {}
    return {
        "boxes": np.stack([pair[0] for pair in padded]),
        "box_labels": np.stack([pair[1] for pair in padded]),
    }
