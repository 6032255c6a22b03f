"""Signals and a closed output that ask a run to stop, answered between two steps."""

import contextlib
import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHOW_CURSOR = b"\x1b[?25h"
_END = b"\0"


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop and has stopped; the message is a sentence for the user.

    Attributes:
      status: the exit status, 128 + the number of the signal.
    """

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class GivenUp(KeyboardInterrupt):
    """Work that can be done again was left, since the run was asked to stop."""


class Interruption:
    """Notes what asks a run to stop, so that the loop can save first.

    While it is entered, SIGINT (Ctrl-C), SIGTERM and SIGHUP only set `stop_requested`, unless they
    were ignored before; a second SIGINT ends the process at once. Entered outside the main thread,
    it leaves signals alone.

    Args:
      active: False leaves signals alone (several processes: they would stop at different steps,
        and JAX itself takes SIGTERM for a notice of preemption).
    """

    def __init__(self, active: bool = True) -> None:
        self._active = active
        self._reason: str | None = None
        self._status = 0
        self._before: dict[int, Any] = {}
        self._listener: threading.Thread | None = None

    @property
    def stop_requested(self) -> bool:
        """Whether the loop shall stop after this step."""
        return self._reason is not None

    def check(self) -> None:
        """Called within work that can be done again.

        Raises:
          GivenUp: if the loop shall stop.
        """
        if self.stop_requested:
            raise GivenUp

    def output_closed(self) -> None:
        """The standard output's reader is gone: nobody would see the rest."""
        self._request("its standard output was closed", 128 + signal.SIGPIPE)

    def stopped(self, step: int, saved: bool) -> Interrupted:
        """What the loop raises once it has stopped.

        Args:
          step: updates done.
          saved: whether a checkpoint holds this step.
        """
        then = (
            f"step {step} is saved and the same command goes on from there"
            if saved
            else "no step was done, so that none is lost: the same command starts again"
        )
        return Interrupted(f"stopped because {self._reason}: {then}.", self._status)

    def _request(self, reason: str, status: int) -> None:
        if self._reason is None:
            self._reason, self._status = reason, status

    def __enter__(self) -> "Interruption":
        if not self._active or threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        for number in SIGNALS:
            # Neither those that nohup or a shell's & ignores nor one set by other than Python.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, _noted)
        # Python runs its handlers between two bytecodes, which a compilation keeps apart for
        # minutes; the number of the signal is written to this socket at once.
        self._waker = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._listener is None:
            return
        signal.set_wakeup_fd(self._waker)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._write.send(_END)
        self._listener.join()
        self._listener = None
        self._read.close()
        self._write.close()

    def _listen(self) -> None:
        interrupts = 0
        while (number := self._read.recv(1)) != _END:
            if number[0] not in self._before:
                continue
            name = signal.Signals(number[0]).name
            interrupts += number[0] == signal.SIGINT
            if interrupts == 2:
                _say(f"ended at once by a second {name}", show_cursor=True)
                os._exit(128 + number[0])
            if not self.stop_requested:
                again = "; once more ends it at once" if number[0] == signal.SIGINT else ""
                _say(f"{name}: stopping after this step{again}")
            self._request(f"it got {name}", 128 + number[0])


def _noted(number: int, frame: FrameType | None) -> None:
    """The thread that listens does the work."""


def _say(text: str, show_cursor: bool = False) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody may be there to read it
        if show_cursor and sys.stdout.isatty():
            os.write(sys.stdout.fileno(), _SHOW_CURSOR)  # the progress bar hides it
        print(f"\n{text}", file=sys.stderr, flush=True)
