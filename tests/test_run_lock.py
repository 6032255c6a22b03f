"""One writer a run directory: who is refused, who is not, and what is cleared."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest

from jaxssl import run_directory, run_lock
from jaxssl.errors import UserError
from jaxssl.run_directory import owned, watched
from jaxssl.run_lock import LOCK, RunLock

HOLDER = """
import pathlib, sys, time
from jaxssl.run_lock import RunLock
RunLock(pathlib.Path(sys.argv[1])).acquire()
print("owned", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def given_up(monkeypatch):
    """Every lock of a test is given up after it, or its thread would go on to the end."""
    made = []
    start = RunLock.__init__

    def noted(lock, *arguments, **options):
        start(lock, *arguments, **options)
        made.append(lock)

    monkeypatch.setattr(RunLock, "__init__", noted)
    yield
    for lock in made:
        lock.release()


@pytest.fixture
def holder(tmp_path):
    """Another process that has the lock of ``tmp_path``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "owned\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def foreign(tmp_path, **changes):
    """A lock of another machine, just touched."""
    held = RunLock(tmp_path)._me | {"host": "elsewhere", "token": "other", "pid": 7} | changes
    (tmp_path / LOCK).write_text(json.dumps(held))


def test_a_second_start_is_refused_by_name_and_changes_nothing(holder, tmp_path):
    before = (tmp_path / LOCK).read_bytes()
    named = rf"in use by process {holder.pid} on \S+, by its clock since 20\d\d-\S+ \S+: wait"
    with pytest.raises(UserError, match=named), owned(tmp_path):
        pytest.fail("entered")
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert (tmp_path / LOCK).read_bytes() == before


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_owner_does_not_block(holder, tmp_path, reaped):
    holder.send_signal(signal.SIGKILL)
    if reaped:
        holder.wait()
    else:  # its parent has not asked for its status: a zombie
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    with owned(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_another_process_has_now_is_no_owner(tmp_path):
    mine = RunLock(tmp_path)._me
    (tmp_path / LOCK).write_text(json.dumps(mine | {"started": "1", "token": "of before"}))
    RunLock(tmp_path).acquire()


def test_a_lock_that_was_copied_with_its_directory_does_not_block(tmp_path):
    run, copy, moved = (tmp_path / name for name in ("run", "copy", "moved"))
    with owned(run):
        held = json.loads((run / LOCK).read_text())
        shutil.copytree(run, copy)
        with owned(copy) as lost:
            assert json.loads((copy / LOCK).read_text())["token"] != held["token"]
            assert lost() is None
        run.rename(moved)  # it is the same directory
        with pytest.raises(UserError, match="in use"), owned(moved):
            pytest.fail("entered")
        # What an older version wrote says nothing of it, and what another machine did is no proof.
        old = {key: value for key, value in held.items() if key != "place"}
        for left in (old, held | {"host": "elsewhere"}):
            (copy / LOCK).write_text(json.dumps(left))
            with pytest.raises(UserError, match="in use"), owned(copy):
                pytest.fail("entered")


def test_on_an_object_store_the_path_tells_a_copy(tmp_path):
    lock = RunLock(tmp_path)
    lock._me["place"] = "gs://bucket/copy"
    assert lock._is_copy(lock._me | {"place": "gs://bucket/run", "host": "elsewhere"})
    assert not lock._is_copy(lock._me | {"host": "elsewhere"})
    assert not lock._is_copy(lock._me | {"place": [1, 2]})  # the bucket as a disk


def test_twice_in_one_process_is_refused_and_released_it_is_free(tmp_path):
    with owned(tmp_path):
        with pytest.raises(UserError, match=f"process {os.getpid()} "), owned(tmp_path):
            pytest.fail("entered")
        assert (tmp_path / LOCK).exists()
    with owned(tmp_path):
        pass


def test_an_owner_elsewhere_blocks_while_it_gives_signs_of_life(tmp_path):
    foreign(tmp_path)
    sentence = rf"process 7 on elsewhere, .*\(last sign of life 0 s ago\).*delete {tmp_path / LOCK}"
    with pytest.raises(UserError, match=sentence):
        RunLock(tmp_path).acquire()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    long_ago = time.time() - run_lock.SECONDS_TO_DIE - 1
    os.utime(tmp_path / LOCK, (long_ago, long_ago))
    RunLock(tmp_path).acquire()
    assert json.loads((tmp_path / LOCK).read_text())["host"] != "elsewhere"


@pytest.mark.parametrize(
    ("ahead", "said"),
    [(0, r" \d s ago\).*after 1(1\d|2\d) s"), (-50, r" 5\d s ago\).*after (6\d|7[01]) s")],
)
def test_how_long_to_wait_is_what_is_left(tmp_path, ahead, said):
    foreign(tmp_path)
    os.utime(tmp_path / LOCK, (time.time() + ahead,) * 2)
    with pytest.raises(UserError, match=said):
        RunLock(tmp_path).acquire()


def test_a_clock_that_is_ahead_is_told_of(tmp_path):
    """Once it read "0 s ago" and "after 120 s" for the hour that the lock went on to block."""
    foreign(tmp_path, since="2099-01-01 00:00:00+00:00")
    os.utime(tmp_path / LOCK, (time.time() + 3600,) * 2)
    sentence = (
        r"process 7 on elsewhere, by its clock since 2099-\S+ \S+ \(last sign of life "
        r"3(600|59\d) s ahead of the clock here\).*try again after 37(2\d|1\d) s\.$"
    )
    with pytest.raises(UserError, match=sentence):
        RunLock(tmp_path).acquire()


def test_another_container_of_this_machine_is_elsewhere(tmp_path):
    mine = RunLock(tmp_path)._me
    foreign(tmp_path, host=mine["host"], processes="another table", pid=2**22 + 1)
    with pytest.raises(UserError, match="sign of life"):
        RunLock(tmp_path).acquire()


def test_the_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "SECONDS_BETWEEN_BEATS", 0.02)
    with owned(tmp_path):
        os.utime(tmp_path / LOCK, (1, 1))
        deadline = time.monotonic() + 5
        while (tmp_path / LOCK).stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - (tmp_path / LOCK).stat().st_mtime < 5


@pytest.mark.parametrize("text", ["", '{"token": "a", "pi', "[]", '{"pid": 1}'])
def test_a_lock_that_a_kill_cut_short_does_not_block(tmp_path, monkeypatch, text):
    monkeypatch.setattr(run_lock, "_SECONDS_TO_WRITE", 0.1)
    (tmp_path / LOCK).write_text(text)
    RunLock(tmp_path).acquire()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.parametrize("left", [False, True])
def test_of_many_starts_at_one_moment_one_wins(tmp_path, left):
    for attempt in range(20):
        (tmp_path / str(attempt)).mkdir()
        start_many(tmp_path / str(attempt), left)


def start_many(tmp_path, left):
    if left:
        mine = RunLock(tmp_path)._me
        (tmp_path / LOCK).write_text(json.dumps(mine | {"started": "1", "token": "of before"}))
    outcomes, gate = [], threading.Barrier(8)

    def start():
        lock = RunLock(tmp_path)
        gate.wait()
        try:
            outcomes.append(lock.acquire())
        except UserError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [said for said in outcomes if re.fullmatch("[0-9a-f]{32}", said)]
    assert len(winners) == 1, outcomes
    assert json.loads((tmp_path / LOCK).read_text())["token"] == winners[0]


def test_what_another_took_meanwhile_is_given_back(tmp_path):
    lock = RunLock(tmp_path)
    stale = lock._me | {"started": "1", "token": "of before"}
    taken = lock._me | {"token": "of another that cleared it first"}
    (tmp_path / LOCK).write_text(json.dumps(taken))
    lock._clear(stale)
    assert json.loads((tmp_path / LOCK).read_text()) == taken
    with pytest.raises(UserError, match="in use"):
        lock.acquire()


def test_a_directory_that_is_moved_or_taken_over_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_SECONDS_TO_WRITE", 0.1)
    run, moved = tmp_path / "run", tmp_path / "moved"
    run.mkdir()
    with owned(run) as lost:
        assert lost() is None
        held = (run / LOCK).read_text()
        (run / LOCK).write_text(f"{held}\n")  # as a sign of life on an object store
        assert lost() is None
        run.rename(moved)
        assert lost() == f"{run}, or its {LOCK}, was moved or removed"
        run.mkdir()
        assert lost() == f"{run}, or its {LOCK}, was moved or removed"
        foreign(run)
        assert lost() == f"process 7 on elsewhere has taken {run} over"
        (run / LOCK).write_text(held)
        assert lost() is None


def test_a_lock_that_another_start_holds_for_a_moment_is_not_lost(tmp_path):
    with owned(tmp_path) as lost:
        (tmp_path / LOCK).rename(tmp_path / "aside")
        back = threading.Timer(0.1, lambda: (tmp_path / "aside").rename(tmp_path / LOCK))
        back.start()
        assert lost() is None
        back.join()


def test_no_sign_of_life_is_written_over_the_lock_of_the_next_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_SECONDS_TO_WRITE", 0.0)
    monkeypatch.setattr(run_lock, "is_local", lambda path: False)
    lock = RunLock(tmp_path)
    looks = iter([False, False, True])  # two beats
    monkeypatch.setattr(lock._ended, "wait", lambda seconds: next(looks))
    foreign(tmp_path)
    lock._beat()
    assert json.loads((tmp_path / LOCK).read_text())["token"] == "other"
    looks = iter([False, True])
    (tmp_path / LOCK).write_text(json.dumps(lock._me, indent=2))
    lock._beat()
    assert (tmp_path / LOCK).read_text() == json.dumps(lock._me)  # rewritten


def test_batches_end_soon_after_the_directory_is_lost(tmp_path, monkeypatch):
    def check_owned():
        raise UserError("lost")

    assert list(watched(iter("abc"), check_owned, 0, 1)) == ["a", "b", "c"]  # within a moment
    monkeypatch.setattr(run_directory, "SECONDS_BETWEEN_LOOKS", 0.0)
    with pytest.raises(UserError, match="lost"):
        next(watched(iter("abc"), check_owned, 0, 1))
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # who must look at the same step
    batches = watched(iter("abc"), check_owned, 3, 5)
    assert [next(batches), next(batches)] == ["a", "b"]
    with pytest.raises(UserError, match="lost"):
        next(batches)


def test_release_leaves_the_lock_of_another(tmp_path):
    with owned(tmp_path):
        foreign(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["token"] == "other"


def test_a_foreign_directory_gets_no_lock(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty and no run"), owned(tmp_path):
        pytest.fail("entered")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_start_that_is_refused_leaves_no_directory(tmp_path):
    def refused():
        with owned(tmp_path / "a" / "run"):
            assert (tmp_path / "a" / "run" / LOCK).exists()
            raise UserError("mend this")

    with pytest.raises(UserError, match="mend"):
        refused()
    assert not (tmp_path / "a" / "run").exists()
