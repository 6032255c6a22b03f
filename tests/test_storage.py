"""Which places a run can have, what is said of the others, and runs on cloud storage."""

import os
import pathlib
import subprocess
import sys

import fsspec
import pytest
from etils.epath import backend

from jaxssl import storage
from jaxssl.errors import UserError
from jaxssl.reporting import MetricWriter, read_metrics
from jaxssl.run_directory import has_config, owned, place, read_config, write_config
from jaxssl.run_lock import LOCK
from jaxssl.storage import (
    as_path,
    check_writable,
    files_below,
    half_written,
    is_half_written,
    read_json,
    write_json,
)


@pytest.fixture
def cloud(monkeypatch):
    """``gs://`` on fsspec's file system in memory, in the place of gcsfs."""
    memory = fsspec.filesystem("memory")

    class Cloud:
        """The same calls with the paths of another scheme."""

        def __getattr__(self, name):
            def call(*arguments, **settings):
                here = [a.replace("gs://", "/") if isinstance(a, str) else a for a in arguments]
                return getattr(memory, name)(*here, **settings)

            return call

    fs = Cloud()
    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", lambda self, name: fs)
    memory.makedirs("/bucket")
    yield memory
    memory.rm("/", recursive=True)


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/runs/a", "--workdir") == tmp_path / "runs" / "a"
    assert place("~") == tmp_path
    with pytest.raises(UserError, match=r"--workdir=~nobody_at_all/x names no home"):
        place("~nobody_at_all/x")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "--run is empty: name a directory"),
        ("hdfs://a/b", "--run=hdfs://a/b is no place that can be written to"),
        ("s3://a/b", "no place .* gs://BUCKET"),
        ("gs:/a/b", "--run=gs:/a/b is no place"),
        ("file:///tmp/a", "no place"),
        ("gs://", "names no bucket"),
    ],
)
def test_other_addresses_are_refused(text, sentence):
    with pytest.raises(UserError, match=sentence):
        as_path(text, "--run")


def test_cloud_storage_without_its_library_is_one_sentence_and_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()
    with pytest.raises(UserError, match=r"--workdir=gs://b/run is on Google.*pip install gcsfs"):
        place("gs://b/run")
    assert list(tmp_path.iterdir()) == []


def test_cloud_storage_that_cannot_be_reached_is_one_sentence(cloud, monkeypatch):
    def refuse(path):
        raise PermissionError("Anonymous caller has no access\nto that bucket")

    monkeypatch.setattr(backend._FileSystemSpecBackend, "exists", lambda self, path: refuse(path))
    with pytest.raises(UserError, match=r"cannot be reached \(PermissionError: Anonymous caller"):
        place("gs://b/run")


def test_a_run_directory_on_cloud_storage(cloud, monkeypatch):
    monkeypatch.setattr("jaxssl.run_lock._SECONDS_TO_WRITE", 0.01)
    monkeypatch.setattr("jaxssl.run_lock.SECONDS_BETWEEN_BEATS", 0.01)
    import ml_collections

    workdir = place("gs://bucket/runs/a")
    assert not has_config(workdir)
    with owned(workdir):
        assert cloud.exists("/bucket/runs/a/lock.json")
        with pytest.raises(UserError, match="in use"), owned(workdir):
            pytest.fail("entered")
        write_config(workdir, ml_collections.ConfigDict({"seed": 3}), {})
        assert read_config(workdir).seed == 3
        with MetricWriter(workdir, None) as writer:
            writer.write(10, {"loss": 1.0})
            writer.sync()
            assert [row["step"] for row in read_metrics(workdir)] == [10]
            writer.write(20, {"loss": 1.0})
        assert [row["step"] for row in read_metrics(workdir)] == [10, 20]
        with MetricWriter(workdir, 10) as writer:
            writer.write(30, {"loss": 1.0})
        assert [row["step"] for row in read_metrics(workdir)] == [10, 30]
    assert not cloud.exists("/bucket/runs/a/lock.json")
    names = sorted(name for name, _ in files_below(workdir))
    assert names[:2] == ["config.json", "metrics.jsonl"]
    assert len(names) == 4  # two files for TensorBoard
    assert not pathlib.Path("gs:").exists()


def test_what_is_in_the_way_of_a_run_directory_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    before = sorted(tmp_path.iterdir())
    for name, sentence in {
        "file": r"--workdir=\S+file cannot be made: \S+file is a file",
        "file/below/it": r"--workdir=\S+it cannot be made: \S+file is a file",
        "link": r"link leads to \S+nowhere, which does not exist",
        "link/below": r"leads to \S+nowhere, which does not exist",
        "circle": r"circle",
        "x" * 300: "file name is too long",
    }.items():
        with pytest.raises(UserError, match=sentence) as caught:
            place(tmp_path / name)
        assert "\n" not in str(caught.value)
    # Root may write everywhere but on a file system that is read-only, and asks the same question.
    monkeypatch.setattr(storage.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=rf"cannot be written to: {tmp_path} is read-only"):
        check_writable(tmp_path / "new", "--workdir")
    assert sorted(tmp_path.iterdir()) == before


def test_letters_that_the_locale_lacks_are_refused_at_the_start(tmp_path):
    """With Python's UTF-8 mode off, as where a launcher's environment says so."""
    program = "import sys; from jaxssl.storage import as_path; as_path(sys.argv[1], '--workdir')"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "Läufe")],
        env=os.environ | ascii_only,
        capture_output=True,
        check=False,
    )
    last = done.stderr.decode("ascii").splitlines()[-1]
    assert "L\\xc3\\xa4ufe has letters that this locale cannot write: set PYTHONUTF8=1" in last


def test_json_is_utf8_and_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"name": "L\xc3\xa4ufe"}')
    assert read_json(tmp_path / "a.json") == {"name": "Läufe"}
    write_json(tmp_path / "b.json", {"name": "Läufe"})
    assert read_json(tmp_path / "b.json") == {"name": "Läufe"}
    assert LOCK not in os.listdir(tmp_path)


def test_two_writers_of_a_file_have_a_temporary_name_each(tmp_path, monkeypatch):
    path = tmp_path / "card.json"
    ours, theirs = half_written(path), half_written(path)
    assert ours != theirs
    assert all(is_half_written(name, "card.json") for name in (ours, theirs))
    assert not is_half_written(path, "card.json")

    def another_comes(descriptor: int) -> None:
        monkeypatch.undo()
        write_json(path, {"writer": 1})

    monkeypatch.setattr(storage.os, "fsync", another_comes)
    write_json(path, {"writer": 2})
    assert read_json(path) == {"writer": 2}
    assert os.listdir(tmp_path) == ["card.json"]
