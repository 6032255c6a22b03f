"""What a user can mend, in one sentence, and the choice by name that most often raises it."""

import errno
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

_FULL = "there is no room left{at}: free some space and run it again."
_FORBIDDEN = "access is denied{at}: change its permissions, or name another place."
_OF_FILES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: "the file system is read-only{at}: name another place, or mount it writable.",
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.ENAMETOOLONG: "a file name is too long{at}: name a shorter path.",
    errno.EISDIR: "a directory lies where a file should{at}: move it, or name another place.",
    errno.ENOTDIR: "a file lies where a directory should{at}: move it, or name another place.",
    errno.EEXIST: "something else lies there already{at}: move it, or name another place.",
    errno.ELOOP: "links lead in a circle{at}: mend them, or name another place.",
    errno.EIO: "the disk failed{at}: see the system's log, or name another place.",
    errno.ESTALE: "the network file system lost a file{at}: run it again once it is back.",
    errno.EMFILE: "too many files are open{at}: raise the limit (ulimit -n) and run it again.",
}


class UserError(Exception):
    """Bad input: the message is one sentence that names the value and the remedy.

    Programs print it without a traceback and exit with status 2.
    """


def sentence_of(error: OSError) -> str | None:
    """What a file system refused, for the user; None where it is rather the program's defect."""
    if error.errno not in _OF_FILES:
        return None
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    at = " at " + " and ".join(str(name) for name in names) if names else ""
    return _OF_FILES[error.errno].format(at=at)


def choose(what: str, name: str, choices: Mapping[str, T]) -> T:
    """``choices[name]``, where ``what`` is the config key, or the whole flag, that gave ``name``.

    Raises:
      UserError: if there is no such choice; it lists those there are.
    """
    if name not in choices:
        flag = what if what.startswith("--") else f"--config.{what}"
        raise UserError(f"{flag}={name} is unknown: choose one of {', '.join(sorted(choices))}.")
    return choices[name]
