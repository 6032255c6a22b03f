"""A run directory has one writer: an advisory lock, in a file that any file system can hold.

``lock.json`` names the process that writes to the directory. It is made exclusively and removed at
the end. One that a killed process left behind does not block, nor does one that was copied with its
directory: on the same machine the process is looked for, and elsewhere the lock counts as left when
it was not touched for `SECONDS_TO_DIE`, which the owner does every `SECONDS_BETWEEN_BEATS`. Readers
need no lock.
"""

import contextlib
import datetime
import json
import math
import os
import pathlib
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

from jaxssl.errors import UserError
from jaxssl.storage import Path, is_local, read_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "lock.json"
ASIDE = f".{LOCK}."
"""How the names of the files begin that a start needs for a moment where it finds a lock."""
SECONDS_BETWEEN_BEATS = 15.0
SECONDS_TO_DIE = 120.0
_SECONDS_TO_WRITE = 2.0
_ATTEMPTS = 20


class RunLock:
    """The lock of one run directory, which exists.

    Args:
      workdir: the run directory.
    """

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / LOCK
        self._workdir = workdir
        self._ended = threading.Event()
        self._beats: threading.Thread | None = None
        self._me: dict[str, Any] = {
            "token": secrets.token_hex(16),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "processes": _process_table(),
            "started": _started(os.getpid()),
            "place": _place(workdir),
            "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
        }
        self._needed = self._me.keys() - {"place"}  # an older version did not note it
        self._pin: int | None = None

    def acquire(self) -> str:
        """Takes the lock; returns its token, a random word.

        Raises:
          UserError: a living process has it.
        """
        for _ in range(_ATTEMPTS):
            with _alone_in(self._workdir):
                if self._create(json.dumps(self._me)):
                    self._pin = _pinned(self._workdir)
                    self._beats = threading.Thread(target=self._beat, daemon=True)
                    self._beats.start()
                    return self._me["token"]
                other = self._other()
                if other is not None:
                    self._check_left(other)
                    self._clear(other)
        raise UserError(
            f"{self._workdir} is wanted by several processes at once: start one of them alone."
        )

    def lost(self) -> str | None:
        """What took the directory from its owner, a clause; None: nothing, as far as can be seen.

        A directory that was moved or removed is lost, and one that another process has.
        """
        deadline = time.monotonic() + _SECONDS_TO_WRITE
        while True:
            try:
                found = read_json(self.path)
            except (FileNotFoundError, NotADirectoryError):
                found = None
            except Exception:  # a disk or a store that does not answer; the latter has its own
                return None
            if isinstance(found, dict) and found.get("token") == self._me["token"]:
                return None
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)  # another start may hold it for a moment, see `_clear`
        if isinstance(found, dict):
            owner = f"process {found.get('pid')} on {found.get('host')}"
            return f"{owner} has taken {self._workdir} over"
        return f"{self._workdir}, or its {LOCK}, was moved or removed"

    def release(self) -> None:
        """Gives it up; does nothing if it was not taken."""
        if self._beats is None:
            return
        self._ended.set()
        self._beats.join()
        self._beats = None
        if self._pin is not None:
            os.close(self._pin)
        with contextlib.suppress(OSError, ValueError):  # it may be gone, and the disk with it
            if read_json(self.path)["token"] == self._me["token"]:
                self.path.unlink()

    def _create(self, text: str) -> bool:
        if is_local(self.path):
            try:
                with open(self.path, "x", encoding="utf-8") as file:
                    file.write(text)
            except FileExistsError:
                return False
            return True
        if self.path.exists():
            return False
        # An object store has no exclusive creation here: of two, the last one to write wins.
        self.path.write_bytes(text.encode())
        time.sleep(_SECONDS_TO_WRITE)
        return read_json(self.path) == self._me

    def _other(self) -> dict[str, Any] | None:
        """Who has the lock: None if it is free again, {} if a kill cut its writing short."""
        deadline = time.monotonic() + _SECONDS_TO_WRITE
        while True:
            try:
                found = read_json(self.path)
                if isinstance(found, dict) and found.keys() >= self._needed:
                    return found
            except FileNotFoundError:
                return None
            except ValueError:
                pass
            if time.monotonic() > deadline:
                return {}
            time.sleep(0.05)  # its owner is writing it

    def _check_left(self, other: dict[str, Any]) -> None:
        """Raises UserError unless the owner of a lock is dead."""
        if not other or self._is_copy(other):
            return
        here = (self._me["host"], self._me["processes"])
        owner = f"process {other['pid']} on {other['host']}, by its clock since {other['since']}"
        if here == (other["host"], other["processes"]):
            started = _started(other["pid"])
            if started is not None and started == other["started"]:
                raise UserError(
                    f"{self._workdir} is in use by {owner}: wait for its end or stop it first."
                )
            return
        age = self._age()
        if age < SECONDS_TO_DIE:
            if age > -1:  # a file's time is coarser than the clock's
                age = max(age, 0.0)
            seen = f"{age:.0f} s ago" if age >= 0 else f"{-age:.0f} s ahead of the clock here"
            raise UserError(
                f"{self._workdir} is in use by {owner} (last sign of life {seen}): wait for its "
                f"end, or, if it is dead, delete {self.path} or try again after "
                f"{math.ceil(SECONDS_TO_DIE - age)} s."
            )

    def _is_copy(self, other: dict[str, Any]) -> bool:
        """Whether a lock was made in another directory, and came here with a copy of it."""
        place, mine = other.get("place"), self._me["place"]
        if isinstance(place, str) and isinstance(mine, str):
            return place != mine
        # Another machine numbers devices, and some file systems inodes, in its own way.
        here = (self._me["host"], self._me["processes"]) == (other["host"], other["processes"])
        return here and isinstance(place, list) and isinstance(mine, list) and place != mine

    def _age(self) -> float:
        """Seconds since the lock was last touched, by the clock of its file system.

        Below zero where that clock was set back meanwhile, or each machine writes its own time.
        """
        mark = self._aside("clock")
        mark.write_bytes(b"")
        try:
            return _modified(mark) - _modified(self.path)
        except FileNotFoundError:
            return SECONDS_TO_DIE  # given up meanwhile
        finally:
            mark.unlink()

    def _clear(self, other: dict[str, Any]) -> None:
        """Removes the lock of a dead owner, and no other."""
        aside = self._aside("left")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        # Another start may have cleared and taken it since it was read: that one gets it back.
        with contextlib.suppress(ValueError):
            taken = read_json(aside)
            if isinstance(taken, dict) and taken.get("token") not in (None, other.get("token")):
                self._create(json.dumps(taken))
        aside.unlink()

    def _aside(self, what: str) -> Path:
        return self._workdir / f"{ASIDE}{self._me['token']}.{what}"

    def _beat(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_BEATS):
            # Else an object store would make it again, over that of its next owner.
            if self.lost() is None:
                self._touch()

    def _touch(self) -> None:
        with contextlib.suppress(OSError):
            if is_local(self.path):
                os.utime(self.path)
            else:
                self.path.write_bytes(json.dumps(self._me).encode())


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Holds up the other starts of this machine, where the file system can.

    Between the reading of a dead owner's lock and its removal another start could have taken it.
    The kernel gives this hold up when its process dies.
    """
    if fcntl is None or not is_local(directory):
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no directory
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _modified(path: Path) -> float:
    if isinstance(path, pathlib.Path):
        with path.open("rb") as file:  # opening makes a network file system look again
            return os.fstat(file.fileno()).st_mtime
    return path.stat().mtime


def _place(directory: Path) -> str | list[int]:
    """What tells a directory from its copy: an object store's path, else device and inode."""
    if not isinstance(directory, pathlib.Path):
        return os.fspath(directory)
    found = directory.stat()
    return [found.st_dev, found.st_ino]


def _pinned(directory: Path) -> int | None:
    """A handle on a directory: while it is open, no file system gives it another inode."""
    if not is_local(directory):
        return None
    try:
        return os.open(directory, os.O_RDONLY)
    except OSError:  # Windows opens no directory
        return None


def _process_table() -> str:
    """Within which a process number means something: this boot, and this container."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""  # no Linux: the host's name must do


def _started(pid: int) -> str | None:
    """When a process of this machine started, in whatever unit; None if it is dead."""
    try:
        # After the name, which may hold anything, come the state and 18 more before the time.
        state, *rest = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    except OSError:
        if pathlib.Path("/proc/self/stat").exists():
            return None
    done = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
