"""Data sets for the tests: a folder tree, a tiny TFDS set, and where the real ones are."""

import os
import pathlib

import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict

REAL = pathlib.Path(__file__).parents[3] / "shared" / "data" / "tfds"
TFDS_DIR = pathlib.Path(os.environ.get("TFDS_DATA_DIR", REAL))


@pytest.fixture(scope="session")
def real_tfds():
    """The folder with real CIFAR-10 and MNIST; the test is skipped where there is none."""
    if not ((TFDS_DIR / "cifar10").is_dir() and (TFDS_DIR / "mnist").is_dir()):
        pytest.skip("no prepared CIFAR-10 and MNIST under TFDS_DATA_DIR or ../shared/data/tfds")
    return TFDS_DIR


@pytest.fixture(scope="session")
def real_folders():
    """The folder with COCO-128 and CamVid; the test is skipped where there is none."""
    root = REAL.parent
    if not ((root / "coco128").is_dir() and (root / "camvid").is_dir()):
        pytest.skip("no COCO-128 and CamVid under ../shared/data")
    return root


@pytest.fixture
def data_config():
    """A function that makes the ``data`` group of a config."""

    def make(
        name,
        data_dir="",
        image_size=0,
        validation_fraction=0.0,
        train_examples=0,
        test_fraction=0.0,
        classes="",
        unreadable="refuse",
        fit="crop",
        background=(255, 255, 255),
        scale=(),
        jpeg_margin=0.0,
    ):
        return ConfigDict(
            {
                "name": name,
                "data_dir": str(data_dir),
                "image_size": image_size,
                "validation_fraction": validation_fraction,
                "train_examples": train_examples,
                "test_fraction": test_fraction,
                "classes": classes,
                "unreadable": unreadable,
                "fit": fit,
                "background": background,
                "scale": scale,
                "jpeg_margin": jpeg_margin,
            }
        )

    return make


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """train/{ant,bee,cat} with 7, 5 and 6 images and val/{ant,cat} with 2 each, sizes mixed."""
    root = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for part, counts in {
        "train": {"bee": 5, "ant": 7, "cat": 6},
        "val": {"cat": 2, "ant": 2},
    }.items():
        for name, count in counts.items():
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(9, 30, 2)
                pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
                PIL.Image.fromarray(pixels).save(root / part / name / f"{number}.png")
            (root / part / name / "notes.txt").write_text("not an image")
    (root / "train" / ".cache").mkdir()
    return root
