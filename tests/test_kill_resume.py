"""A run killed or stopped at random instants ends bit-identical to one that never was."""

import functools
import pathlib
import signal

import pytest
from kill_and_resume import finish, killed_runs

pytestmark = pytest.mark.slow


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
        ("moco_v2", signal.SIGKILL, 5),
        ("dino", signal.SIGKILL, 2),
        ("swav", signal.SIGKILL, 2),
        ("deepcluster_v2", signal.SIGKILL, 2),
        ("simclr", signal.SIGTERM, 2),
        ("simclr", signal.SIGINT, 1),
    ],
)
def test_killed_runs_end_bit_identical(method, number, kills, undisturbed, tmp_path):
    reports = list(killed_runs(method, tmp_path, undisturbed(method), kills, 1, number))
    print(reports)
    restored_from = [step for report in reports for step in report.restored_from]
    assert max(restored_from) > 0 or kills < 5  # a few may come before the first save
