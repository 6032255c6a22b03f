"""Image files in folders: with class sub-folders, bare, or with mask images.

Each kind reads ``data_dir/train`` and, where there are, ``val`` (or ``validation``) and ``test``.
An example's position is its number in the sorted list of its split's files, by class first where
there are class sub-folders. What is passed over is counted, see `jaxssl.data.walk`. COCO's folders
are in `jaxssl.data.coco`.
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxssl.data import digests
from jaxssl.data.canonical import Canonical
from jaxssl.data.decoding import Decoded, decode_image, decode_mask
from jaxssl.data.examples import PUBLISHED, Batch, Rows, Source, SourceFields
from jaxssl.data.walk import (
    IMAGE_SUFFIXES,
    Found,
    composed,
    doubled,
    files_beside_folders,
    folders_in,
    images_in,
    is_image,
    merged,
    without_doubles,
)
from jaxssl.errors import UserError
from jaxssl.storage import is_inside
from jaxssl.words import counted

PARTS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FolderSource(SourceFields):
    """Image files, decoded when they are asked for.

    Attributes:
      root: the folder that ``names`` are relative to.
      canonical: what each image is brought to.
      names: one file a row.
      targets: arrays that lead with N, as in `Source.gather`; all but ``mask``.
      masks: the path of each row's mask, or None.
      sizes: int32 [N,2], the (height, width) that each picture must have as shown, or None.
      linked: of the whole published split, where names lead that links give another place.
    """

    root: str
    canonical: Canonical
    names: tuple[str, ...]
    targets: dict[str, np.ndarray]
    masks: tuple[str, ...] | None = None
    sizes: np.ndarray | None = None
    linked: Mapping[str, str] = dataclasses.field(default_factory=dict)
    vectorised: bool = dataclasses.field(default=False, init=False)

    @property
    def files(self) -> tuple[str, ...]:
        """The path of each row's file."""
        return tuple(self._path(row) for row in range(len(self)))

    def _path(self, row: int) -> str:
        return os.path.join(self.root, self.names[row])

    def take(self, rows: Rows) -> "FolderSource":
        """See `Source.take`."""
        return dataclasses.replace(
            self,
            **self._fields_of(rows),
            targets={key: values[rows] for key, values in self.targets.items()},
            masks=None if self.masks is None else tuple(self.masks[row] for row in rows),
            sizes=None if self.sizes is None else self.sizes[rows],
        )

    def gather(self, rows: Rows, epochs: Rows | None = None) -> Batch:
        """See `Source.gather`.

        Raises:
          UnreadableImageError: if a file is no image that Pillow can decode.
          UserError: if it cannot be read, or has another size than its annotation or its mask.
        """
        read = [self._read(int(row)) for row in rows]
        targets = {key: values[rows] for key, values in self.targets.items()}
        if self.masks is not None:
            targets["mask"] = np.stack(
                [
                    decode_mask(self.masks[row], self.canonical, image.size, self.masks[row])
                    for row, image in zip(rows, read, strict=True)
                ]
            )
        return self._batch(
            rows,
            epochs,
            np.stack([image.pixels for image in read]),
            np.array([image.size for image in read], np.int32),
            targets,
            np.array([image.content for image in read], np.int32),
        )

    def _read(self, row: int) -> Decoded:
        path = self._path(row)
        image = decode_image(path, self.canonical, 3, path)
        if self.sizes is not None and (image.size != self.sizes[row]).any():
            raise UserError(
                f"{path} is {image.size[0]} x {image.size[1]} pixels, upright by its EXIF "
                f"orientation, but its annotation says {self.sizes[row, 0]} x "
                f"{self.sizes[row, 1]}: annotate the image as it is shown."
            )
        return image

    def fingerprint(self) -> dict[str, str]:
        """See `Source.fingerprint`; asks the system for the size of every file.

        Raises:
          UserError: if a file is not there.
        """
        sizes = [] if self.sizes is None else self.sizes.tolist()
        return {
            "files": digests.of_json([composed(name) for name in self.names]),
            "targets": digests.of_json([digests.of_arrays(self.targets), sizes]),
            "content": digests.of_sizes((*self.files, *(self.masks or ()))),
        }

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


def data_root(config: ConfigDict) -> pathlib.Path:
    """The folder of a set, absolute.

    Raises:
      UserError: if none is given, or it is not there.
    """
    if not config.data_dir:
        raise UserError(
            f"--config.data.name={config.name} reads a folder: give it with --config.data.data_dir."
        )
    try:
        root = pathlib.Path(config.data_dir).expanduser().absolute()
    except RuntimeError as error:  # ~name of nobody
        raise UserError(
            f"--config.data.data_dir={config.data_dir} is no path ({error}): correct it."
        ) from error
    if not root.is_dir():
        raise UserError(f"{root} is no folder: correct --config.data.data_dir.")
    return root


def part_of(config: ConfigDict, published: str) -> pathlib.Path:
    """The folder of a published split, which may not be there.

    Raises:
      UserError: if there are two.
    """
    root = data_root(config)
    there = [root / name for name in PARTS[published] if (root / name).is_dir()]
    if len(there) > 1:
        raise UserError(
            f"{root} has both {there[0].name}/ and {there[1].name}/: leave one of them."
        )
    return there[0] if there else root / PARTS[published][0]


def unused_folders(config: ConfigDict, used: Sequence[str]) -> list[str]:
    """Names of the folders beside those of the published splits ``used``."""
    if not part_of(config, "train").is_dir():  # a bare folder of images, read as a whole
        return []
    folders = {part_of(config, published) for published in used}
    return [name for name, path in folders_in(data_root(config)).items() if path not in folders]


def folder_source(
    config: ConfigDict,
    published: str,
    part: pathlib.Path,
    found: Found,
    targets: dict[str, np.ndarray],
    **fields: Any,
) -> FolderSource:
    """A source of files below ``part``; ``fields``: what else differs from the defaults.

    Raises:
      UserError: if there are no files.
    """
    canonical = Canonical.from_config(config)
    passed_over = found.passed_over
    if part != data_root(config):
        beside = files_beside_folders(data_root(config))
        pictures = {f"{key} beside {part.name}/": n for key, n in beside.items() if is_image(key)}
        passed_over = merged(passed_over, pictures)
    if not found.files:
        others = ", ".join(passed_over) or "nothing"
        raise UserError(
            f"{part} holds no image files ({', '.join(IMAGE_SUFFIXES)}) but {others}: correct "
            "--config.data.data_dir."
        )
    defaults = {"num_classes": None, "class_names": None}
    names = tuple(str(file.relative_to(part)) for file in found.files)
    place = os.path.realpath(part)
    return FolderSource(
        name=f"{data_root(config).name}/{part.name}",
        root=str(part),
        linked={
            name: real
            for name, real in zip(names, found.real, strict=True)
            if real != os.path.join(place, name)
        },
        original_size=len(found.files),
        image_shape=(*canonical.size, 3),
        canonical=canonical,
        positions=np.arange(len(found.files)),
        splits=np.full(len(found.files), PUBLISHED[published], np.int32),
        names=names,
        passed_over=passed_over,
        targets=targets,
        **(defaults | fields),
    )


def check_apart(train: FolderSource, others: Iterable[Source]) -> None:
    """Refuses a picture that links put into two published splits.

    Raises:
      UserError: naming both places.
    """
    splits = (train, *(other for other in others if isinstance(other, FolderSource)))
    roots = [os.path.realpath(source.root) for source in splits]
    nested = any(is_inside(*pair) for pair in itertools.permutations(roots, 2))
    if not nested and not any(source.linked for source in splits):
        return
    places: dict[str, str] = {}
    for source, root in zip(splits, roots, strict=True):
        here = {
            source.linked.get(name, os.path.join(root, name)): file
            for name, file in zip(source.names, source.files, strict=True)
        }
        for real in here.keys() & places.keys():
            raise UserError(
                f"{places[real]} and {here[real]} are one picture, because of links, and an "
                "encoder must not be tested on what it was trained on: remove one of them."
            )
        places |= here


def class_folder_splits(config: ConfigDict) -> Sequence[str]:
    """The splits of a tree ``<split>/<class>/<image>``."""
    splits = [name for name in PARTS if folders_in(part_of(config, name))]
    if "train" not in splits:
        raise UserError(
            f"{data_root(config)}/train has no class sub-folders: point --config.data.data_dir at "
            "a folder with train/<class>/<image> and val/ or test/<class>/<image>, or set "
            "--config.data.name=images for images without classes."
        )
    return splits


def open_class_folders(config: ConfigDict, published: str) -> FolderSource:
    """Class sub-folders of image files, in sorted order; the classes are those of ``train``.

    Names of classes are in Unicode's form NFC, by which they are sorted.
    """
    part = part_of(config, published)
    classes = tuple(folders_in(part_of(config, "train")))
    folders = folders_in(part)
    unknown = sorted(set(folders) - set(classes))
    if unknown:
        raise UserError(
            f"{part} has class {unknown[0]!r}, which {part_of(config, 'train')} lacks: use the "
            "same class folders in both."
        )
    of_class = [
        without_doubles(images_in(folders[name])) if name in folders else Found([], [], {})
        for name in classes
    ]
    empty = [name for name, found in zip(classes, of_class, strict=True) if not found.files]
    if published == "train" and empty and len(empty) < len(classes):
        raise UserError(
            f"no images in {counted(len(empty), 'class')} of {part}, the first being {empty[0]!r}: "
            "add images, or remove the folder."
        )
    loose = files_beside_folders(part)
    found = Found(
        [file for one in of_class for file in one.files],
        [real for one in of_class for real in one.real],
        merged(
            *(one.passed_over for one in of_class),
            {f"{key} in no class folder": count for key, count in loose.items()},
        ),
    )
    check_one_picture_each(found, "two classes")
    labels = np.repeat(
        np.arange(len(classes), dtype=np.int32), [len(one.files) for one in of_class]
    )
    return folder_source(
        config,
        published,
        part,
        found,
        {"label": labels},
        num_classes=len(classes),
        class_names=classes,
    )


def image_splits(config: ConfigDict) -> Sequence[str]:
    """The splits of a folder of images without labels; all is ``train`` without sub-folders."""
    splits = [name for name in PARTS if part_of(config, name).is_dir()]
    if splits and "train" not in splits:
        raise UserError(
            f"{data_root(config)} has {part_of(config, splits[0]).name}/ but no train/: add it, or "
            "point --config.data.data_dir at the one folder that holds the images."
        )
    return splits or ("train",)


def open_images(config: ConfigDict, published: str) -> FolderSource:
    """All image files of a folder at any depth, without labels."""
    part = part_of(config, published)
    if not part.is_dir():
        part = data_root(config)
    return folder_source(config, published, part, without_doubles(images_in(part)), {})


def mask_splits(config: ConfigDict) -> Sequence[str]:
    """The splits that have both ``images`` and ``masks``."""
    splits = [
        name for name in PARTS if {"images", "masks"} <= set(folders_in(part_of(config, name)))
    ]
    if "train" not in splits:
        raise UserError(
            f"{data_root(config)} is no folder with masks: it must have train/images and "
            "train/masks with files of the same names, and likewise for val and test."
        )
    return splits


def open_masks(config: ConfigDict, published: str) -> FolderSource:
    """Images, each with a mask of the same name but for the suffix; the target ``mask``.

    A mask is a lossless grey or palette image whose stored values are the classes 0 .. K-1, and 255
    for none. It is brought to the canonical size as its image is, but by the nearest pixel.
    """
    part = part_of(config, published)
    images, masks = (images_in(part / folder) for folder in ("images", "masks"))
    image_of, mask_of = (
        _by_stem(found, part / folder) for found, folder in ((images, "images"), (masks, "masks"))
    )
    check_one_picture_each(images, "two masks")
    missing = [stem for stem in image_of if stem not in mask_of]
    if missing:
        first = image_of[missing[0]]
        raise UserError(
            f"no mask for {counted(len(missing), 'image')} of {part}, the first being "
            f"{first.name}: add {part}/masks/{first.stem}.png, or take the images away."
        )
    spare = {"mask without an image": len(mask_of) - len(image_of)}
    passed_over = merged(images.passed_over, masks.passed_over, spare)
    return folder_source(
        config,
        published,
        part,
        Found(images.files, images.real, passed_over),
        {},
        masks=tuple(str(mask_of[stem]) for stem in image_of),
    )


def check_one_picture_each(found: Found, what: str) -> None:
    """Refuses a picture that links put into a split twice.

    Args:
      found: the files of the split.
      what: what it would have then.

    Raises:
      UserError: naming both places.
    """
    if pair := doubled(found):
        raise UserError(
            f"{pair[0]} and {pair[1]} are one picture, because of links, which would have {what}: "
            "remove one of them."
        )


def _by_stem(found: Found, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files by their path in the folder without suffix, which must tell them apart."""
    result: dict[str, pathlib.Path] = {}
    for file in found.files:
        stem = composed(str(file.relative_to(folder).with_suffix("")))
        if stem in result:
            raise UserError(
                f"{folder} has both {result[stem].name} and {file.name}, so that nothing says "
                "which image and which mask belong together: rename or remove one."
            )
        result[stem] = file
    return result
