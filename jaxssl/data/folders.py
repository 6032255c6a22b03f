"""Image files in folders: with class sub-folders, bare, with COCO's JSON, or with mask images.

Each kind reads ``data_dir/train`` and, where there are, ``val`` (or ``validation``) and ``test``.
An example's position is its number in the sorted list of its split's files, by class first where
there are class sub-folders. Hidden files and folders are passed over.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxssl.data.canonical import canonical_boxes, decode_image, decode_mask, padded_boxes
from jaxssl.data.examples import PUBLISHED, Batch, Rows, SourceFields
from jaxssl.errors import UserError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
PARTS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FolderSource(SourceFields):
    """Image files, decoded when they are asked for.

    Attributes:
      files: one path a row.
      targets: arrays that lead with N, as in `Source.gather`; all but ``mask``.
      masks: the path of each row's mask, or None.
      sizes: int32 [N,2], the (height, width) that each file must have, or None.
    """

    files: tuple[str, ...]
    targets: dict[str, np.ndarray]
    masks: tuple[str, ...] | None = None
    sizes: np.ndarray | None = None
    vectorised: bool = dataclasses.field(default=False, init=False)

    def take(self, rows: Rows) -> "FolderSource":
        """See `Source.take`."""
        return dataclasses.replace(
            self,
            positions=self.positions[rows],
            splits=self.splits[rows],
            files=tuple(self.files[row] for row in rows),
            targets={key: values[rows] for key, values in self.targets.items()},
            masks=None if self.masks is None else tuple(self.masks[row] for row in rows),
            sizes=None if self.sizes is None else self.sizes[rows],
        )

    def gather(self, rows: Rows, epochs: Rows | None = None) -> Batch:
        """See `Source.gather`.

        Raises:
          UnreadableImageError: if a file is no image that Pillow can read.
          UserError: if it has another size than its annotation or its mask.
        """
        pairs = [self._read(int(row)) for row in rows]
        images, sizes = (np.stack(parts) for parts in zip(*pairs, strict=True))
        targets = {key: values[rows] for key, values in self.targets.items()}
        if self.masks is not None:
            target = self.image_shape[:2]
            targets["mask"] = np.stack(
                [
                    decode_mask(self.masks[row], target, (int(h), int(w)), self.masks[row])
                    for row, (h, w) in zip(rows, sizes, strict=True)
                ]
            )
        return self._batch(rows, epochs, images, sizes, targets)

    def _read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        image, size = decode_image(self.files[row], self.image_shape, self.files[row])
        if self.sizes is not None and (size != self.sizes[row]).any():
            raise UserError(
                f"{self.files[row]} is {size[0]} x {size[1]} pixels but its annotation says "
                f"{self.sizes[row, 0]} x {self.sizes[row, 1]}: annotate the image as it is stored."
            )
        return image, size

    def with_classes(self, numbers: np.ndarray, names: tuple[str, ...]) -> "FolderSource":
        """The rows of some classes alone.

        Args:
          numbers: int32 [num_classes], the new label of each class; -1: left out.
          names: names of the classes in order of the new label.
        """
        labels = numbers[self.targets["label"]]
        rows = np.flatnonzero(labels >= 0)
        return dataclasses.replace(
            self.take(rows),
            targets={"label": labels[rows]},
            num_classes=len(names),
            class_names=names,
        )


def _part(config: ConfigDict, published: str) -> pathlib.Path:
    root = pathlib.Path(config.data_dir).expanduser()
    names = PARTS[published]
    return next((root / name for name in names if (root / name).is_dir()), root / names[0])


def _folders_in(folder: pathlib.Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith("."))


def _images_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """Image files at any depth, sorted folder by folder."""
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                found.append(pathlib.Path(where, name))
    return sorted(found, key=lambda path: path.parts)


def _source(
    config: ConfigDict,
    published: str,
    part: pathlib.Path,
    files: Sequence[pathlib.Path],
    targets: dict[str, np.ndarray],
    **fields: Any,
) -> FolderSource:
    if config.image_size <= 0:
        raise UserError(
            f"image_size={config.image_size} is no canonical size: give the pixels to which the "
            "images of the folder are resized."
        )
    if not files:
        raise UserError(
            f"{part} holds no image files ({', '.join(IMAGE_SUFFIXES)}): correct data.data_dir."
        )
    defaults = {"num_classes": None, "class_names": None}
    return FolderSource(
        name=f"{pathlib.Path(config.data_dir).name}/{part.name}",
        original_size=len(files),
        image_shape=(config.image_size, config.image_size, 3),
        positions=np.arange(len(files)),
        splits=np.full(len(files), PUBLISHED[published], np.int32),
        files=tuple(str(file) for file in files),
        targets=targets,
        **(defaults | fields),
    )


def class_folder_splits(config: ConfigDict) -> Sequence[str]:
    """The splits of a tree ``<split>/<class>/<image>``."""
    splits = [name for name in PARTS if _folders_in(_part(config, name))]
    if "train" not in splits:
        raise UserError(
            f"{config.data_dir or 'data_dir'}/train has no class sub-folders: point data_dir at a "
            "folder with train/<class>/<image> and val/ or test/<class>/<image>, or set data.name "
            "to 'images' for images without classes."
        )
    return splits


def open_class_folders(config: ConfigDict, published: str) -> FolderSource:
    """Class sub-folders of image files, in sorted order; the classes are those of ``train``."""
    part = _part(config, published)
    classes = _folders_in(_part(config, "train"))
    unknown = sorted(set(_folders_in(part)) - set(classes))
    if unknown:
        raise UserError(
            f"{part} has class {unknown[0]!r}, which {_part(config, 'train')} lacks: use the same "
            "class folders in both."
        )
    of_class = [_images_in(part / name) for name in classes]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for files in of_class])
    return _source(
        config,
        published,
        part,
        [file for files in of_class for file in files],
        {"label": labels},
        num_classes=len(classes),
        class_names=tuple(classes),
    )


def image_splits(config: ConfigDict) -> Sequence[str]:
    """The splits of a folder of images without labels; all is ``train`` without sub-folders."""
    splits = [name for name in PARTS if _part(config, name).is_dir()]
    if splits and "train" not in splits:
        raise UserError(
            f"{config.data_dir} has {_part(config, splits[0]).name}/ but no train/: add it, or "
            "point data.data_dir at the one folder that holds the images."
        )
    return splits or ("train",)


def open_images(config: ConfigDict, published: str) -> FolderSource:
    """All image files of a folder at any depth, without labels."""
    part = _part(config, published)
    if not part.is_dir():
        part = pathlib.Path(config.data_dir).expanduser()
    return _source(config, published, part, _images_in(part) if config.data_dir else [], {})


def _coco_json(config: ConfigDict, published: str) -> pathlib.Path:
    part = _part(config, published)
    return part.parent / f"instances_{part.name}.json"


def coco_splits(config: ConfigDict) -> Sequence[str]:
    """The splits that have both a folder of images and a JSON with their boxes."""
    splits = [
        name
        for name in PARTS
        if _part(config, name).is_dir() and _coco_json(config, name).is_file()
    ]
    if "train" not in splits:
        raise UserError(
            f"{config.data_dir or 'data_dir'} is no COCO folder: it must have train/ with the "
            "images and instances_train.json beside it, and likewise for val and test."
        )
    return splits


def open_coco(config: ConfigDict, published: str) -> FolderSource:
    """Images with boxes from COCO's JSON; those that it does not list are passed over.

    Targets are ``boxes`` and ``box_labels``. A class is the number of its category in order of the
    category id of ``instances_train.json``. Boxes marked ``iscrowd`` are left out: they surround
    a group, and COCO's own scores do not count them. M is the most boxes that an image has.
    """
    path, part = _coco_json(config, published), _part(config, published)
    train = _read_json(_coco_json(config, "train"))
    found = _read_json(path)
    try:
        categories = {c["id"]: c["name"] for c in train["categories"]}
        if {c["id"]: c["name"] for c in found["categories"]} != categories:
            raise UserError(
                f"{path} has other categories than {_coco_json(config, 'train')}: use the same "
                "list in both."
            )
        numbers = {identity: number for number, identity in enumerate(sorted(categories))}
        images = sorted(found["images"], key=lambda image: image["file_name"])
        sizes = np.array([(i["height"], i["width"]) for i in images], np.int32).reshape(-1, 2)
        rows = {image["id"]: row for row, image in enumerate(images)}
        boxes: list[list[tuple[float, ...]]] = [[] for _ in images]
        labels: list[list[int]] = [[] for _ in images]
        for annotation in found["annotations"]:
            if annotation.get("iscrowd", 0):
                continue
            x, y, width, height = (float(value) for value in annotation["bbox"])
            boxes[rows[annotation["image_id"]]].append((y, x, y + height, x + width))
            labels[rows[annotation["image_id"]]].append(numbers[annotation["category_id"]])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not COCO's JSON of boxes ({type(error).__name__}: {error}): it needs "
            "images (id, file_name, height, width), annotations (image_id, category_id, bbox as "
            "x, y, width, height) and categories (id, name)."
        ) from error
    target = (config.image_size, config.image_size)
    return _source(
        config,
        published,
        part,
        [part / image["file_name"] for image in images],
        _box_targets(boxes, labels, sizes, target) if config.image_size > 0 else {},
        class_names=tuple(categories[identity] for identity in sorted(categories)),
        sizes=sizes,
    )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): write it again.") from error


def _box_targets(
    boxes: list[list[tuple[float, ...]]],
    labels: list[list[int]],
    sizes: np.ndarray,
    target: tuple[int, int],
) -> dict[str, np.ndarray]:
    kept = [
        canonical_boxes(
            np.array(one, np.float64).reshape(-1, 4),
            np.array(classes, np.int32),
            (int(height), int(width)),
            target,
        )
        for one, classes, (height, width) in zip(boxes, labels, sizes, strict=True)
    ]
    room = max([len(classes) for _, classes in kept], default=0)
    padded = [padded_boxes(*pair, max(room, 1)) for pair in kept]
    if not padded:
        return {}
    return {
        "boxes": np.stack([pair[0] for pair in padded]),
        "box_labels": np.stack([pair[1] for pair in padded]),
    }


def mask_splits(config: ConfigDict) -> Sequence[str]:
    """The splits that have both ``images`` and ``masks``."""
    splits = [
        name for name in PARTS if {"images", "masks"} <= set(_folders_in(_part(config, name)))
    ]
    if "train" not in splits:
        raise UserError(
            f"{config.data_dir or 'data_dir'} is no folder with masks: it must have train/images "
            "and train/masks with files of the same names, and likewise for val and test."
        )
    return splits


def open_masks(config: ConfigDict, published: str) -> FolderSource:
    """Images, each with a mask of the same name but for the suffix; the target ``mask``.

    A mask is a grey or palette image whose values are the classes 0 .. K-1, and 255 for none. It is
    brought to the canonical size as its image is, but by the nearest pixel.
    """
    part = _part(config, published)
    files, masks = (_images_in(part / folder) for folder in ("images", "masks"))
    named = {mask.relative_to(part / "masks").with_suffix(""): str(mask) for mask in masks}
    names = [file.relative_to(part / "images").with_suffix("") for file in files]
    missing = [file for file, name in zip(files, names, strict=True) if name not in named]
    if missing:
        raise UserError(
            f"{len(missing)} images of {part} have no mask, the first being {missing[0].name}: add "
            f"{part}/masks/{missing[0].stem}.png, or take the images away."
        )
    return _source(config, published, part, files, {}, masks=tuple(named[name] for name in names))
