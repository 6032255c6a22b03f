"""A run killed or stopped at random instants ends bit-identical to one that never was."""

import functools
import pathlib
import signal

import pytest
from kill_and_resume import assert_identical, finish, newest, run_with_kills


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """From a method to its run that was left alone."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @functools.cache
    def run(method: str) -> pathlib.Path:
        finish(method, folder / method)
        return folder / method

    return run


@pytest.mark.parametrize(
    ("method", "number", "kills"),
    [
        ("simclr", signal.SIGKILL, 2),
        pytest.param("moco_v2", signal.SIGKILL, 5, marks=pytest.mark.slow),
        pytest.param("dino", signal.SIGKILL, 2, marks=pytest.mark.slow),
        pytest.param("swav", signal.SIGKILL, 2, marks=pytest.mark.slow),
        pytest.param("deepcluster_v2", signal.SIGKILL, 2, marks=pytest.mark.slow),
        pytest.param("simclr", signal.SIGTERM, 2, marks=pytest.mark.slow),
        pytest.param("simclr", signal.SIGINT, 1, marks=pytest.mark.slow),
    ],
)
def test_killed_runs_end_bit_identical(method, number, kills, undisturbed, tmp_path):
    whole, killed = undisturbed(method), tmp_path / "killed"
    report = run_with_kills(method, killed, kills, seed=1, number=number)
    print(report)
    assert report.kills == kills
    assert max(report.restored_from) > 0 or kills < 5  # a few may come before the first save
    assert newest(killed) == newest(whole) > max(report.restored_from)
    assert_identical(killed, whole)
