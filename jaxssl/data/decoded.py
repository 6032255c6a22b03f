"""Decoded images of a set that is read into memory, kept between starts.

To decode the 50,000 small PNG files of CIFAR-10 takes longer than all else that a start with
compiled programs does. What is kept is named after everything that the pixels depend on.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile

import numpy as np

from jaxssl import kept

MAX_BYTES = 8 * 2**30
Arrays = dict[str, np.ndarray]


def read(key: str) -> Arrays | None:
    """The arrays that were kept under a key, or None."""
    folder = kept.folder("decoded", MAX_BYTES)
    if folder is None or not (folder / key).is_dir():
        return None
    try:
        os.utime(folder / key)  # for those that look for what is oldest
        return {path.stem: np.load(path) for path in (folder / key).glob("*.npy")}
    except (OSError, ValueError, EOFError):  # cut short, or just removed
        kept.remove(folder / key)
        return None


def keep(key: str, arrays: Arrays) -> None:
    """Keeps arrays under a key, whole or not at all; where that is not possible, not at all."""
    size = sum(array.nbytes for array in arrays.values())
    folder = kept.folder("decoded", MAX_BYTES - size)
    if folder is None or size > MAX_BYTES:
        return
    with contextlib.suppress(OSError):  # no room; or another start was first
        made = pathlib.Path(tempfile.mkdtemp(prefix=f"{key}.", dir=folder))
        try:
            for name, array in arrays.items():
                with open(made / f"{name}.npy", "wb") as file:
                    np.save(file, array)
                    file.flush()
                    os.fsync(file.fileno())
            made.rename(folder / key)
        finally:
            shutil.rmtree(made, ignore_errors=True)
