"""A run killed or stopped at random instants ends bit-identical to one that never was."""

import pathlib
import signal

import pytest
from kill_and_resume import assert_identical, finish, newest, run_with_kills


@pytest.mark.parametrize(
    ("method", "number", "kills"),
    [
        ("simclr", signal.SIGKILL, 5),
        ("moco_v2", signal.SIGKILL, 5),
        ("simclr", signal.SIGTERM, 2),
        ("simclr", signal.SIGINT, 1),
    ],
)
def test_killed_runs_end_bit_identical(method, number, kills, tmp_path: pathlib.Path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(method, undisturbed)
    report = run_with_kills(method, killed, kills, seed=1, number=number)
    print(report)
    assert report.kills == kills
    assert max(report.restored_from) > 0 or kills == 1
    assert newest(killed) == newest(undisturbed) > max(report.restored_from)
    assert_identical(killed, undisturbed)
