"""Signals between two steps, a second Ctrl-C, and an output that nobody reads."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxssl.interruption import SIGNALS, Interruption


def wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


@pytest.mark.parametrize(("number", "status"), [("TERM", 143), ("INT", 130), ("HUP", 129)])
def test_a_signal_asks_to_stop_and_nothing_else(number, status, capfd):
    before = [signal.getsignal(each) for each in SIGNALS]
    with Interruption() as interruption:
        assert not interruption.stop_requested
        os.kill(os.getpid(), signal.Signals[f"SIG{number}"])
        wait_until(lambda: interruption.stop_requested)
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert f"SIG{number}: stopping after this step" in capfd.readouterr().err
    stopped = interruption.stopped(7, saved=True)
    assert str(stopped) == (
        f"stopped because it got SIG{number}: step 7 is saved and the same command goes on from "
        "there."
    )
    assert stopped.status == status
    assert "no step was done" in str(interruption.stopped(0, saved=False))


def test_what_was_ignored_stays_so(monkeypatch):
    """As nohup ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: interruption.stop_requested)
            assert "SIGTERM" in str(interruption.stopped(1, saved=True))
    finally:
        signal.signal(signal.SIGHUP, before)


def test_inactive_or_in_another_thread_it_leaves_signals_alone():
    before = [signal.getsignal(each) for each in SIGNALS]
    with Interruption(active=False) as interruption:
        assert [signal.getsignal(each) for each in SIGNALS] == before
        assert not interruption.stop_requested

    def elsewhere():
        with Interruption():
            pass

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert [signal.getsignal(each) for each in SIGNALS] == before


BUSY = """
import hashlib, sys
from jaxssl.interruption import Interruption
with Interruption():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes, without a bytecode between
"""


def test_a_second_ctrl_c_ends_at_once_even_what_python_cannot_interrupt():
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "busy\n"
        time.sleep(0.2)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.stderr.readline()
        assert process.stderr.readline() == (
            "SIGINT: stopping after this step; once more ends it at once\n"
        )
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        assert time.monotonic() - begun < 5
        assert "ended at once by a second SIGINT" in process.stderr.read()
