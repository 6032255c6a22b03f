"""Sets that TensorFlow Datasets prepares, read without TensorFlow.

Any prepared set with a uint8 ``image`` can be read, with its ``label`` where it has one. What some
sets have beside is in `_objects` and `_pet`.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import PIL
from absl import logging
from ml_collections import ConfigDict

from jaxssl.data import digests
from jaxssl.data.canonical import NO_CLASS, Canonical, Size, canonical_boxes, padded_boxes
from jaxssl.data.decoding import decode_image, decode_mask
from jaxssl.data.examples import PUBLISHED, Batch, Rows, SourceFields, check_labels
from jaxssl.data.passes import map_chunks
from jaxssl.errors import UserError
from jaxssl.randomness import Split

# The published test images of these have no labels: what everyone tests on is validation.
TESTED_ON_VALIDATION = ("imagenet2012", "places365_small", "coco", "voc/2012")
MAX_OBJECTS = 128
_DECODING = 1  # one more whenever `jaxssl.data.decoding` makes other pixels of the same file

Targets = dict[str, np.ndarray]
ReadTargets = Callable[[dict[str, Any], Size, Canonical, str], Targets]


def _objects(record: dict[str, Any], size: Size, canonical: Canonical, where: str) -> Targets:
    """``boxes`` and ``box_labels`` of COCO and PASCAL VOC; M = 128.

    COCO's ``is_crowd`` boxes are left out, VOC's ``is_difficult`` ones are kept.
    """
    objects = record["objects"]
    labels = np.array(objects["label"], np.int32)
    shares = np.array(objects["bbox"], np.float32).reshape(-1, 4)
    kept = ~np.array(objects.get("is_crowd", np.zeros(len(labels))), bool)
    return _boxes(shares[kept], labels[kept], size, canonical, MAX_OBJECTS, where)


def _pet(record: dict[str, Any], size: Size, canonical: Canonical, where: str) -> Targets:
    """Oxford-IIIT Pet: ``mask`` and the box of the head.

    ``mask`` is the trimap counted from 0: 0 the animal, 1 the background, 2 the border between.
    ``boxes`` is the one of the head, which the test split has not, and ``box_labels`` its species,
    0 a cat and 1 a dog.
    """
    # Zero, which the trimap does not use, wraps around to 255.
    encoded = record["segmentation_mask"]
    mask = decode_mask(encoded, canonical, size, where, upright=False)
    mask = np.where(mask == NO_CLASS, NO_CLASS, mask - np.uint8(1))
    if "head_bbox" not in record:  # before version 4
        return {"mask": mask}
    head = np.asarray(record["head_bbox"], np.float32).reshape(1, 4)
    species = np.array([record["species"]])
    return {"mask": mask} | _boxes(head, species, size, canonical, 1, where)


def _boxes(
    shares: np.ndarray, labels: np.ndarray, size: Size, canonical: Canonical, room: int, where: str
) -> Targets:
    if len(labels) > room:
        raise UserError(
            f"{where} has {len(labels)} boxes, more than {room}: leave the example out of the set."
        )
    pixels = shares.astype(np.float64) * np.array((*size, *size))
    boxes, box_labels = padded_boxes(*canonical_boxes(pixels, labels, size, canonical), room)
    return {"boxes": boxes, "box_labels": box_labels}


# Of a set that has a feature; COCO's panoptic configurations have no "objects".
TARGETS_BESIDE_LABEL: dict[tuple[str, str], ReadTargets] = {
    ("coco", "objects"): _objects,
    ("voc", "objects"): _objects,
    ("oxford_iiit_pet", "segmentation_mask"): _pet,
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TfdsSource(SourceFields):
    """Records of a prepared TFDS set, read and decoded when they are asked for.

    Attributes:
      records: what ``tfds.data_source`` gives for the whole original split, images left encoded.
      beside: reads the targets of a record other than its label; None: it has none.
      numbers: int32, the label of each published one; None: as published.
      form: what each image is brought to, also where all have one size.
      version: name and version of the set, and the bytes of its files.
      files: name, size and time of change of each of its files.
    """

    records: Any
    form: Canonical
    version: str
    files: Sequence[tuple[str, int, int]]
    beside: ReadTargets | None = None
    numbers: np.ndarray | None = None
    vectorised: bool = dataclasses.field(default=False, init=False)

    def take(self, rows: Rows) -> "TfdsSource":
        """See `Source.take`."""
        return dataclasses.replace(self, positions=self.positions[rows], splits=self.splits[rows])

    def gather(self, rows: Rows, epochs: Rows | None = None) -> Batch:
        """See `Source.gather`.

        Raises:
          UnreadableImageError: if Pillow cannot read an image.
          UserError: if the set is incomplete or a label is out of range.
        """
        records = self._records(rows)
        images, targets = [], []
        for record, position in zip(records, self.positions[rows], strict=True):
            where = f"record {position} of {self.name}"
            # TFDS's own reader turns no image upright, and boxes and masks are of what it gives.
            upright = self.beside is None
            channels = self.image_shape[2]
            image = decode_image(record["image"], self.form, channels, where, upright=upright)
            images.append(image)
            if self.beside is not None:
                targets.append(self.beside(record, image.size, self.form, where))
        stacked = {} if self.num_classes is None else {"label": self._labels(records)}
        for key in targets[0] if targets else ():
            stacked[key] = np.stack([one[key] for one in targets])
        return self._batch(
            rows,
            epochs,
            np.stack([image.pixels for image in images]),
            np.array([image.size for image in images], np.int32),
            stacked,
            np.array([image.content for image in images], np.int32),
        )

    def fingerprint(self) -> dict[str, str]:
        """See `Source.fingerprint`."""
        numbers = None if self.numbers is None else self.numbers.tolist()
        return {"content": digests.of_json([self.version, numbers])}

    def decoded_key(self) -> str | None:
        """A digest of everything that the decoded arrays are a function of.

        None where they hold more than images and labels, whose making may change.
        """
        if self.beside is not None:
            return None
        numbers = None if self.numbers is None else self.numbers.tolist()
        rows = {"positions": self.positions, "splits": self.splits}
        form = dataclasses.asdict(self.form)
        made_by = [_DECODING, PIL.__version__, self.num_classes, numbers]
        of = [self.version, self.files, self.image_shape, form, digests.of_arrays(rows)]
        return digests.of_json([*made_by, *of])

    def _records(self, rows: Rows) -> Sequence[dict[str, Any]]:
        with _whole_files(self.name):
            return self.records.__getitems__([int(p) for p in self.positions[rows]])

    def _labels(self, records: Sequence[dict[str, Any]]) -> np.ndarray:
        published = np.array([record["label"] for record in records], np.int32)
        if self.numbers is None:
            return check_labels(published, self.num_classes, self.name)
        return self.numbers[check_labels(published, len(self.numbers), self.name)]

    def with_classes(self, numbers: np.ndarray, names: tuple[str, ...]) -> "TfdsSource":
        """The rows of some classes alone; every record is read once to learn its label.

        Args:
          numbers: int32 [num_classes], the new label of each class; -1: left out.
          names: names of the classes in order of the new label.
        """
        logging.info("reading the labels of %d records of %s", len(self), self.name)
        parts = map_chunks(lambda rows: self._labels(self._records(rows)), len(self))
        rows = np.flatnonzero(numbers[np.concatenate(parts)] >= 0)
        return dataclasses.replace(
            self.take(rows), numbers=numbers, num_classes=len(names), class_names=names
        )


@contextlib.contextmanager
def _whole_files(name: str) -> Iterator[None]:
    """Turns what the record reader says of a missing, cut or changed file into a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"the files of TFDS set {name!r} are incomplete or damaged ({error}): prepare it again."
        ) from error


def _builder(config: ConfigDict) -> Any:
    """The builder of a set that is prepared in a format with random access."""
    import tensorflow_datasets as tfds

    root = config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    directory = pathlib.Path(root).expanduser()
    command = f"tfds build {config.name} --data_dir={directory} --file_format=array_record"
    unprepared = (
        f"TFDS set {config.name!r} is not prepared in {directory}: set TFDS_DATA_DIR or "
        f"--config.data.data_dir, or prepare it with `{command}` where tensorflow is installed"
    )
    try:
        builder = _find_builder(config.name, directory)
    except ModuleNotFoundError as error:
        raise UserError(f"{unprepared}.") from error
    except (tfds.core.registered.DatasetNotFoundError, AssertionError, ValueError) as error:
        raise UserError(
            f"data set {config.name!r} is no kind of folder, nor is it known to TFDS or prepared "
            f"in {directory} ({str(error).splitlines()[0]}): correct --config.data.name."
        ) from error
    if not builder.info.splits:
        by_hand = f", after putting the archives it asks for in {directory}/downloads/manual"
        raise UserError(f"{unprepared}{by_hand if builder.MANUAL_DOWNLOAD_INSTRUCTIONS else ''}.")
    if builder.info.file_format not in tfds.core.file_adapters.FileFormat.with_random_access():
        raise UserError(
            f"TFDS set {config.name!r} in {directory} is stored as "
            f"{builder.info.file_format.value}, which allows no random access: prepare it again "
            f"with `{command} --overwrite` where tensorflow is installed."
        )
    return builder


def _find_builder(name: str, directory: pathlib.Path) -> Any:
    """TFDS's builder, or, where its code needs TensorFlow even to be read (COCO's), the files'."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=directory, try_gcs=False)
    except ModuleNotFoundError as error:
        try:
            return tfds.core.read_only_builder.builder_from_files(name, data_dir=directory)
        except tfds.core.registered.DatasetNotFoundError:
            raise error from None


def tfds_splits(config: ConfigDict) -> Sequence[str]:
    """The published splits with labels, and ``"pretrain"`` where there are unlabelled images."""
    builder = _builder(config)
    splits = [name for name in PUBLISHED if name in builder.info.splits]
    names = {builder.name, f"{builder.name}/{builder.info.config_name}"}
    if names & set(TESTED_ON_VALIDATION) and "test" in splits:
        splits.remove("test")
    return [*splits, *(["pretrain"] if "unlabelled" in builder.info.splits else [])]


def open_tfds(config: ConfigDict, published: str) -> TfdsSource:
    """A published split of a prepared set.

    ``"pretrain"`` is the train split and after it the unlabelled one (STL-10), without labels;
    positions in the latter count on from those of train.
    """
    import tensorflow_datasets as tfds

    builder = _builder(config)
    features: dict[str, Any] = dict(builder.info.features.items())
    image, label = features.get("image"), features.get("label")
    if image is None or image.np_dtype != np.uint8 or image.shape[2:] not in ((None,), (1,), (3,)):
        raise UserError(
            f"TFDS set {config.name!r} has no uint8 feature 'image' with 1 or 3 channels: choose "
            "an image-classification set."
        )
    height, width, channels = image.shape
    varies = None in (height, width)
    form = Canonical.from_config(config, None if varies else (height, width))
    pretrain = published == "pretrain"
    if pretrain or not isinstance(label, tfds.features.ClassLabel):
        label = None
    beside = next(
        (
            read
            for (name, feature), read in TARGETS_BESIDE_LABEL.items()
            if name == builder.name and feature in features
        ),
        None,
    )
    label_of = features["objects"].feature["label"] if beside is _objects else label
    # Pillow on a whole chunk of records is three times as fast as the reader's own decoding.
    encoded = [key for key, kind in features.items() if isinstance(kind, tfds.features.Image)]
    with _whole_files(config.name):
        records = builder.as_data_source(
            split="train+unlabelled" if pretrain else published,
            decoders={key: tfds.decode.SkipDecoding() for key in encoded},
        )
        size = len(records)
    parts = [
        builder.info.splits[p] for p in (("train", "unlabelled") if pretrain else (published,))
    ]
    splits = np.full(size, PUBLISHED["train" if pretrain else published], np.int32)
    if pretrain:
        splits[builder.info.splits["train"].num_examples :] = Split.UNLABELLED
    return TfdsSource(
        name=config.name,
        num_classes=None if label is None else label.num_classes,
        class_names=None if label_of is None else tuple(label_of.names),
        original_size=size,
        image_shape=(*form.size, channels or 3),
        canonical=form if varies else None,
        positions=np.arange(size),
        splits=splits,
        records=records,
        beside=beside,
        form=form,
        version=" ".join(map(str, [builder.info.full_name, *(part.num_bytes for part in parts)])),
        files=[_stamp(path) for part in parts for path in part.filepaths],
    )


def _stamp(path: os.PathLike[str]) -> tuple[str, int, int]:
    try:
        status = os.stat(path)
    except OSError:  # said in words when it is read
        return os.path.basename(path), -1, 0
    return os.path.basename(path), status.st_size, status.st_mtime_ns
