"""CIFAR-10 in parts that are small enough to travel, and whole again where they arrive.

    python benchmarks/gpu/pack.py pack TFDS_DIR PARTS_DIR      where TFDS has it prepared
    python benchmarks/gpu/pack.py unpack PARTS_DIR DATA_DIR    with NumPy and Pillow alone

A part holds the PNG files of some images as they are, their labels, and how many parts there are,
and is at most 36 MiB. ``unpack`` may be called after each part arrives: it keeps what it has in
DATA_DIR, and when all are there it makes ``{train,test}_{images,labels}.npy``, which
``--config.data.name=npy`` reads. Exits with 3 while parts are missing.
"""

import argparse
import concurrent.futures
import io
import os
import pathlib
import shutil

import numpy as np
import PIL.Image

PART_BYTES = 36 * 2**20
SPLITS = ("train", "test")
Record = tuple[bytes, int, int]  # a PNG file, its label, the number of its split


def records_of(tfds_dir: pathlib.Path) -> list[Record]:
    """All of CIFAR-10's, as TFDS has them."""
    import tensorflow_datasets as tfds

    builder = tfds.builder("cifar10", data_dir=tfds_dir, try_gcs=False)
    records = []
    for number, split in enumerate(SPLITS):
        decoders = {"image": tfds.decode.SkipDecoding()}
        source = builder.as_data_source(split=split, decoders=decoders)
        records += [(record["image"], record["label"], number) for record in source]
    return records


def pack(records: list[Record], parts_dir: pathlib.Path, part_bytes: int) -> None:
    """Writes ``cifar10-NUMBER.npz``."""
    parts: list[list[Record]] = [[]]
    size = 0
    for record in records:
        if size + len(record[0]) > part_bytes:
            parts.append([])
            size = 0
        parts[-1].append(record)
        size += len(record[0])
    parts_dir.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        encoded, labels, splits = zip(*part, strict=True)
        np.savez(
            parts_dir / f"cifar10-{number}.npz",
            parts=len(parts),
            encoded=np.frombuffer(b"".join(encoded), np.uint8),
            sizes=np.array([len(one) for one in encoded]),
            labels=np.array(labels, np.uint8),
            splits=np.array(splits, np.uint8),
        )
    print(f"{len(records)} images in {len(parts)} parts in {parts_dir}")


def unpack(parts_dir: pathlib.Path, data_dir: pathlib.Path) -> bool:
    """Keeps what has arrived; whether the arrays are whole."""
    data_dir.mkdir(parents=True, exist_ok=True)
    if (data_dir / "test_labels.npy").exists():
        return True
    kept = data_dir / "parts"
    kept.mkdir(exist_ok=True)
    for path in parts_dir.glob("cifar10-*.npz"):
        shutil.copy(path, kept / path.name)
    files = sorted(kept.glob("cifar10-*.npz"), key=lambda path: int(path.stem.split("-")[1]))
    total = int(np.load(files[0])["parts"]) if files else 0
    print(f"{len(files)} of {total or '?'} parts are here")
    if not files or len(files) < total:
        return False
    encoded: list[bytes] = []
    labels, splits = [], []
    for path in files:
        part = dict(np.load(path))
        ends = np.cumsum(part["sizes"])
        content = part["encoded"].tobytes()
        encoded += [content[end - n : end] for end, n in zip(ends, part["sizes"], strict=True)]
        labels.append(part["labels"])
        splits.append(part["splits"])
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        images = np.stack(
            list(threads.map(lambda png: np.asarray(PIL.Image.open(io.BytesIO(png))), encoded))
        )
    of_split = np.concatenate(splits)
    for number, split in enumerate(SPLITS):
        np.save(data_dir / f"{split}_images.npy", images[of_split == number])
        rows = np.concatenate(labels)[of_split == number].astype(np.int32)
        np.save(data_dir / f"{split}_labels.npy", rows)
    shutil.rmtree(kept)
    print(f"{len(images)} images in {data_dir}")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.what == "pack":
        pack(records_of(arguments.source), arguments.target, PART_BYTES)
    elif not unpack(arguments.source, arguments.target):
        raise SystemExit(3)


if __name__ == "__main__":
    main()
