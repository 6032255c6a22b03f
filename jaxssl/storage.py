"""Paths on this machine and on Google Cloud Storage, and files that are written whole or not."""

import json
import os
import pathlib
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from etils import epath

from jaxssl.errors import UserError, sentence_of

Path: TypeAlias = pathlib.Path | epath.Path
"""Local paths are pathlib's, those of ``gs://`` etils'; only what both have is used."""

_CLOUD = "gs://"


def as_path(text: str | os.PathLike[str], flag: str) -> Path:
    """The path that a user names, ``~`` expanded.

    Args:
      text: a local path or ``gs://bucket/...``.
      flag: who names it, for the messages: ``--workdir``.

    Raises:
      UserError: for another kind of address, a name that this locale has no letters for, or cloud
        storage that cannot be reached.
    """
    text = os.fspath(text)
    if not text:
        raise UserError(f"{flag} is empty: name a directory.")
    if text.startswith(_CLOUD):
        return _reached(text, flag)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise UserError(
            f"{flag}={text} is no place that can be written to: name a local directory, or "
            "gs://BUCKET/DIRECTORY."
        )
    try:
        # Python names files in the locale's letters, Orbax in UTF-8: they must be the same.
        known = os.fsencode(os.path.abspath(text)) == os.path.abspath(text).encode()
    except UnicodeEncodeError:
        known = False
    if not known:
        shown = text.encode(errors="surrogateescape").decode("ascii", "backslashreplace")
        raise UserError(
            f"{flag}={shown} has letters that this locale cannot write: set PYTHONUTF8=1, or name "
            "it in ASCII."
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{flag}={text} names no home: {str(error).rstrip('.')}.") from None


def _reached(text: str, flag: str) -> Path:
    path = epath.Path(text)
    if len(path.parts) < 3:
        raise UserError(f"{flag}={text} names no bucket: give gs://BUCKET/DIRECTORY.")
    try:
        path.exists()
    except ImportError as error:
        raise UserError(
            f"{flag}={text} is on Google Cloud Storage, which this installation cannot reach "
            f"({str(error).partition(chr(10))[0].rstrip('.')}): pip install gcsfs."
        ) from None
    except Exception as error:  # gcsfs, google.auth and aiohttp have many of their own
        said = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"{flag}={text} cannot be reached ({type(error).__name__}: {said}): see to the "
            "bucket's name and your credentials."
        ) from error
    return path


def is_local(path: Path) -> bool:
    """Whether a path is of this machine's file systems (network disks included)."""
    return not os.fspath(path).startswith(_CLOUD)


def is_inside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether a local path, links followed, is a folder or lies below it."""
    inner, outer = (os.path.realpath(os.path.expanduser(place)) for place in (path, folder))
    return os.path.commonpath([inner, outer]) == outer


def check_writable(path: Path, flag: str) -> None:
    """Raises UserError if a directory cannot be made or written to; makes nothing."""
    if not is_local(path):
        return
    try:
        for place in (pathlib.Path(path).absolute(), *pathlib.Path(path).absolute().parents):
            if place.exists():
                break
            if place.is_symlink():
                raise UserError(
                    f"{flag}={path} leads to {os.readlink(place)}, which does not exist: make it, "
                    "or name another directory."
                )
    except OSError as error:
        if sentence := sentence_of(error):
            raise UserError(f"{flag}={path} cannot be used: {sentence}") from None
        raise
    if not place.is_dir():
        raise UserError(f"{flag}={path} cannot be made: {place} is a file; name another directory.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            f"{flag}={path} cannot be written to: {place} is read-only for you; name another "
            "directory, or change its permissions."
        )


def files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a directory with its name relative to it, in no order."""
    for path in folder.iterdir():
        if path.is_dir():
            for name, file in files_below(path):
                yield f"{path.name}/{name}", file
        else:
            yield path.name, path


def half_written(path: Path) -> Path:
    """Where `write_whole` writes before the file gets its name: elsewhere at each call."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def is_half_written(path: Path, name: str) -> bool:
    """Whether a path is what a killed `write_whole` left of a file of that name."""
    return path.name.startswith(f".{name}.") and path.name.endswith(".tmp")


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces a file in one step, so that a reader finds the old one or the new one.

    Its directory is made if absent. Text is written in UTF-8.
    """
    written = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_local(path):
        path.write_bytes(written)  # an object appears when it is complete
        return
    temporary = half_written(path)
    try:
        with open(temporary, "wb") as file:
            file.write(written)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """`write_whole` of a JSON object."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file; a byte order mark, as some editors leave one, is passed over.

    Raises:
      ValueError: it is no JSON in UTF-8.
      OSError: it cannot be read.
    """
    return json.loads(path.read_bytes().decode("utf-8-sig"))
