"""Runs that need no training: those of the old code, copied to where a test may write."""

import pathlib
import shutil

FORMAT1 = pathlib.Path(__file__).parent / "old_runs" / "format1"


def copied(method: str, folder: pathlib.Path) -> pathlib.Path:
    """A run of ``moco_v2``, ``simclr`` or ``supervised`` on the digits, step 6."""
    shutil.copytree(FORMAT1 / method, folder / method)
    return folder / method
