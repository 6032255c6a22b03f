"""The files of a checkpoint, listed when it is written and compared when it is read.

``manifest.json`` has the size and SHA-256 of each file of a checkpoint. It is written after the
last array and before the directory gets its final name, so a directory that has that name and
disagrees with its manifest was damaged later.
"""

import hashlib
import json
from collections.abc import Mapping

from jaxssl.errors import UserError
from jaxssl.storage import Path, files_below, read_json
from jaxssl.upgrade import FORMAT

LEAVES = "leaves.json"
MANIFEST = "manifest.json"
# Orbax writes these after the manifest; both are asked for, so that a copy which lost them is seen.
AFTERWARDS = ("_CHECKPOINT_METADATA", "commit_success.txt")


def seal(folder: Path, step: int, leaves: Mapping[str, str]) -> None:
    """Writes the lists of a checkpoint of which all else is written.

    Args:
      folder: the checkpoint, still under its unfinished name.
      step: of which it is.
      leaves: shape and dtype of each leaf, by name.
    """
    (folder / LEAVES).write_bytes(json.dumps(leaves, indent=1).encode())
    content = {"format": FORMAT, "step": step, "files": _digests(folder)}
    (folder / MANIFEST).write_bytes(json.dumps(content, indent=1).encode())


def _digests(folder: Path) -> dict[str, list[int | str]]:
    files: dict[str, list[int | str]] = {}
    for name, path in sorted(files_below(folder)):
        if name not in (MANIFEST, *AFTERWARDS):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                files[name] = [file.tell(), digest]
    return files


def damage_of(folder: Path) -> str | None:
    """What is wrong with a finished checkpoint, or None.

    Raises:
      UserError: it is of a newer format, so that nothing can be said of it.
    """
    if not (folder / MANIFEST).is_file():
        return f"{MANIFEST} is missing"
    try:
        content = read_json(folder / MANIFEST)
        form = content["format"]
        if isinstance(form, int) and form > FORMAT:
            raise UserError(
                f"checkpoint {folder} was written by a newer jaxssl (its format is {form}, this "
                f"version reads up to {FORMAT}): upgrade jaxssl; nothing was changed."
            )
        expected, step = content["files"], content["step"]
        found = _digests(folder)
    except FileNotFoundError as error:
        return f"{error.filename or MANIFEST} is gone"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is unreadable"
    if not (isinstance(form, int) and form > 0) or str(step) != folder.name:
        return f"{MANIFEST} is of step {step}, format {form}"
    for name in (LEAVES, *AFTERWARDS):
        if not (folder / name).is_file():
            return f"{name} is missing"
    for name in sorted({*expected, *found}):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} does not belong to it"
        if found[name] != expected[name]:
            return f"{name} has changed"
    return None


def is_complete(folder: Path) -> bool:
    """Whether no file of a checkpoint has been removed."""
    try:
        return all((folder / name).exists() for name in read_json(folder / MANIFEST)["files"])
    except FileNotFoundError:
        return False
