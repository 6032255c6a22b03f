"""Image files in folders, and a count of what lies beside them.

Links are followed, but no folder is read twice, and a picture that two links lead to is known as
one (`doubled`); copies and hard links are pictures of their own. Passed over are hidden files and
folders, those that operating systems and archivers leave (`LEFTOVERS`), and pipes, sockets and
devices.
"""

import collections
import os
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxssl.data.decoding import unreachable
from jaxssl.errors import UserError

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"),
    *(".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
LEFTOVERS = (
    *("__MACOSX", "@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information"),
    *("lost+found", "__pycache__"),
)
NO_SUFFIX = "no suffix"
# What is counted by another reason than its suffix, in the singular.
NO_AREA = "box without area"  # of a COCO folder
LINKED_TWICE = "link to a folder read already"
LINKED_IMAGE = "link to an image read already"
NO_FILE = "special file"  # a pipe, a socket or a device
Counts = Mapping[str, int]


class Found(NamedTuple):
    """Image files, and how many files of other kinds were passed over.

    Attributes:
      files: paths, sorted folder by folder.
      real: where each of them lies, links followed.
      passed_over: number of files by suffix, or by what else says why.
    """

    files: Sequence[pathlib.Path]
    real: Sequence[str]
    passed_over: Counts


def composed(name: str) -> str:
    """A name in Unicode's form NFC, as which names that print alike are one."""
    return unicodedata.normalize("NFC", name)


def is_image(path: pathlib.Path | str) -> bool:
    """Whether a file's name says that it is an image."""
    return os.fspath(path).lower().endswith(IMAGE_SUFFIXES)


def images_in(folder: pathlib.Path) -> Found:
    """Image files at any depth, one that links lead to as often as they do.

    Raises:
      UserError: if a folder cannot be read, or holds a link to nothing.
    """
    found: list[tuple[pathlib.Path, str]] = []
    passed_over: collections.Counter[str] = collections.Counter()
    # A link to a folder above would bring in what is no part of this one.
    seen = {_identity(above) for above in (folder.resolve(), *folder.resolve().parents)}
    waiting = [folder]
    while waiting:
        inside = waiting.pop()
        place = os.path.realpath(inside)
        for entry in entries_in(inside):
            path = pathlib.Path(entry.path)
            if entry.name in LEFTOVERS and entry.is_dir():
                passed_over[f"{entry.name}/"] += _files_below(path)
            elif entry.name.startswith("."):
                passed_over["hidden"] += is_image(path) and entry.is_file()
            elif entry.is_file():
                if is_image(path):
                    linked = os.path.realpath(path) if entry.is_symlink() else None
                    found.append((path, linked or os.path.join(place, entry.name)))
                else:
                    passed_over[path.suffix.lower() or NO_SUFFIX] += 1
            elif not entry.is_dir():
                passed_over[NO_FILE] += 1
            elif _identity(path) in seen:
                passed_over[LINKED_TWICE] += 1
            else:
                seen.add(_identity(path))
                waiting.append(path)
    found.sort(key=lambda one: [composed(part) for part in one[0].relative_to(folder).parts])
    return Found([path for path, _ in found], [real for _, real in found], +passed_over)


def without_doubles(found: Found) -> Found:
    """Each picture once: of several ways to it the one that is no link, or else the first."""
    places: dict[str, pathlib.Path] = {}
    for file, real in zip(found.files, found.real, strict=True):
        if real not in places or (places[real].is_symlink() and not file.is_symlink()):
            places[real] = file
    spare = len(found.files) - len(places)
    if not spare:
        return found
    kept = set(places.values())
    pairs = [pair for pair in zip(found.files, found.real, strict=True) if pair[0] in kept]
    passed_over = merged(found.passed_over, {LINKED_IMAGE: spare})
    return Found([file for file, _ in pairs], [real for _, real in pairs], passed_over)


def doubled(found: Found) -> tuple[pathlib.Path, pathlib.Path] | None:
    """Two of the files that are one picture, because of a link; None: there are none."""
    places: dict[str, pathlib.Path] = {}
    for file, real in zip(found.files, found.real, strict=True):
        if places.setdefault(real, file) is not file:
            return places[real], file
    return None


def entries_in(folder: pathlib.Path) -> list[os.DirEntry[str]]:
    """What a folder holds, in order of the name; nothing if there is no such folder.

    Raises:
      UserError: if it cannot be read, or holds a link to nothing.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: (composed(entry.name), entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreachable(folder, error) from error
    for entry in found:
        if entry.is_symlink() and not entry.name.startswith(".") and not os.path.exists(entry):
            raise UserError(
                f"{entry.path} is a link to {os.readlink(entry)}, which is not there: mend the "
                "link or remove it."
            )
    return found


def folders_in(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The sub-folders that may hold images, by their name in NFC, sorted.

    Raises:
      UserError: if two names are the same but for their Unicode form.
    """
    found: dict[str, pathlib.Path] = {}
    for entry in entries_in(folder):
        if not entry.is_dir() or entry.name.startswith(".") or entry.name in LEFTOVERS:
            continue
        name = composed(entry.name)
        if name in found:
            raise UserError(
                f"{folder} has two folders that both read {name!r} and differ only in their "
                f"Unicode form ({found[name].name!a} and {entry.name!a}): join them, or "
                "rename one."
            )
        found[name] = pathlib.Path(entry.path)
    return found


def files_beside_folders(folder: pathlib.Path) -> Counts:
    """How many visible files lie in the folder itself, by suffix, and how many in `LEFTOVERS`."""
    counts: collections.Counter[str] = collections.Counter()
    for entry in entries_in(folder):
        if entry.name in LEFTOVERS and entry.is_dir():
            counts[f"{entry.name}/"] += _files_below(pathlib.Path(entry.path))
        elif entry.is_file() and not entry.name.startswith("."):
            counts[pathlib.Path(entry.name).suffix.lower() or NO_SUFFIX] += 1
    return +counts


def _files_below(folder: pathlib.Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def _identity(folder: pathlib.Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise unreachable(folder, error) from error
    return status.st_dev, status.st_ino


def merged(*counts: Counts) -> Counts:
    """The sum of counts, of what there is any of."""
    total: collections.Counter[str] = collections.Counter()
    for one in counts:
        total.update(one)
    return dict(sorted((+total).items()))
