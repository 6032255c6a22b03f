"""A run killed at random instants ends bit-identical to one that never was."""

import pathlib

import pytest
from kill_and_resume import assert_identical, finish, newest, run_with_kills


@pytest.mark.parametrize("method", ["simclr", "moco_v2"])
def test_killed_runs_end_bit_identical(method, tmp_path: pathlib.Path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(method, undisturbed)
    report = run_with_kills(method, killed, kills=5, seed=1)
    print(report)
    assert report.kills == 5
    assert max(report.restored_from) > 0
    assert newest(killed) == newest(undisturbed) > max(report.restored_from)
    assert_identical(killed, undisturbed)
