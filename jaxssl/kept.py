"""What is kept between starts, in the user's cache directory: it can be removed at any time."""

import contextlib
import os
import pathlib
import shutil

VARIABLE = "JAXSSL_CACHE"


def folder(name: str, max_bytes: int) -> pathlib.Path | None:
    """A directory of the cache, made if need be, after its oldest entries have made room.

    The cache is ``$JAXSSL_CACHE``, or else ``$XDG_CACHE_HOME/jaxssl``, or else ``~/.cache/jaxssl``.

    Args:
      name: of the directory.
      max_bytes: what its entries, files or directories, may take.

    Returns:
      None where nothing is to be kept (``JAXSSL_CACHE`` is empty) or can be.
    """
    root = _root()
    if root is None:
        return None
    try:
        place = root / name
        place.mkdir(parents=True, exist_ok=True)
        prune(place, max_bytes)
    except OSError:
        return None
    return place if os.access(place, os.W_OK | os.X_OK) else None


def _root() -> pathlib.Path | None:
    if VARIABLE in os.environ:
        given = os.environ[VARIABLE]
        return pathlib.Path(given).expanduser().absolute() if given else None
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # The specification: a relative path is to be ignored.
        return (caches if caches.is_absolute() else pathlib.Path.home() / ".cache") / "jaxssl"
    except RuntimeError:  # nobody's home
        return None


def prune(place: pathlib.Path, max_bytes: int) -> None:
    """Removes the entries written or read longest ago until the rest take at most ``max_bytes``."""
    found = []
    for path in place.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another start has removed it
            found.append((_last_used(path), _bytes_of(path), path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        remove(path)
        total -= size


def remove(path: pathlib.Path) -> None:
    """Removes a file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _last_used(path: pathlib.Path) -> float:
    status = path.stat()
    return max(status.st_atime, status.st_mtime)


def _bytes_of(path: pathlib.Path) -> int:
    inside = sum(_bytes_of(one) for one in path.iterdir()) if path.is_dir() else 0
    return inside + path.stat().st_size
