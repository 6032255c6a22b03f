"""What runs in the minutes of a lent GPU has run here before, in small sizes."""

import io
import json
import os
import pathlib
import stat
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

GPU = pathlib.Path(__file__).parent.parent / "benchmarks" / "gpu"
sys.path.append(str(GPU))

from pack import pack, unpack  # noqa: E402
from results import Results  # noqa: E402

PARTS = ("a_correct", "b_resnet18", "d_cifar10", "c_pipeline", "e_resnet50", "f_losses")


def run(out, data, **environment):
    """One call of the script; what it said and its exit status."""
    done = subprocess.run(
        ["bash", str(GPU / "run.sh"), str(data), str(out)],
        env=os.environ | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr, done.returncode


@pytest.fixture
def stand_in(tmp_path):
    """In place of Python: notes what it is asked, and finishes what is not in the file "bad"."""
    script = tmp_path / "python"
    script.write_text(
        "#!/usr/bin/env bash\n"
        f"cd {tmp_path}\n"
        'echo "$(basename $1) ${@:2}" >> asked\n'
        'while [ "$1" != --out ]; do shift; done\n'
        'name=$(basename "$2" .json)\n'
        'grep -qs "$name fails" bad && exit 1\n'
        'grep -qs "$name is late" bad && sleep 30\n'
        'echo "{\\"done\\": true}" > "$2"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "data").mkdir()
    return script


def asked(tmp_path):
    path = tmp_path / "asked"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def test_parts_run_in_order_and_once(tmp_path, stand_in):
    first = run(tmp_path / "out", tmp_path / "data", PYTHON=str(stand_in), MIRROR=f"{tmp_path}/m")
    order = ["correct.py", "step.py", "anchor.py", "pipeline.py", "step.py", "losses.py"]
    assert first[1] == 0
    assert asked(tmp_path) == order
    assert sorted(p.stem for p in (tmp_path / "m").glob("*.json")) == sorted(PARTS)
    said, status = run(tmp_path / "out", tmp_path / "data", PYTHON=str(stand_in))
    assert (status, asked(tmp_path)) == (0, order)
    assert all(f"part {name}: done before" in said for name in PARTS)


def test_a_wrong_gradient_ends_all(tmp_path, stand_in):
    (tmp_path / "bad").write_text("a_correct fails")
    said, status = run(tmp_path / "out", tmp_path / "data", PYTHON=str(stand_in))
    assert (status, asked(tmp_path)) == (1, ["correct.py"])
    assert "part a_correct: failed with 1" in said


def test_a_part_that_fails_or_has_no_time_is_left_for_the_next_call(tmp_path, stand_in):
    (tmp_path / "bad").write_text("b_resnet18 fails\n")
    given = {"PYTHON": str(stand_in), "PARTS": "a b c"}
    said, status = run(tmp_path / "out", tmp_path / "data", **given)
    assert status == 1
    assert asked(tmp_path) == ["correct.py", "step.py", "pipeline.py"]
    (tmp_path / "bad").unlink()
    said, status = run(tmp_path / "out", tmp_path / "data", LIMIT_S="10", **given)
    assert status == 3
    assert "part b_resnet18: no time left" in said
    assert run(tmp_path / "out", tmp_path / "data", **given)[1] == 0
    assert asked(tmp_path)[3:] == ["step.py"]


def test_results_are_read_back_but_not_those_of_a_rehearsal(tmp_path):
    first = Results(tmp_path / "a.json", toy=True)
    first.add("rows", [1, 2])
    assert "rows" in Results(tmp_path / "a.json", toy=True)
    assert "rows" not in Results(tmp_path / "a.json", toy=False)
    first.finish()
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "toy": True,
        "rows": [1, 2],
        "done": True,
    }


def test_what_was_packed_arrives(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 32, 32, 3), np.uint8)
    records = []
    for number, image in enumerate(images):
        file = io.BytesIO()
        PIL.Image.fromarray(image).save(file, "PNG")
        records.append((file.getvalue(), number % 3, int(number >= 5)))
    pack(records, tmp_path / "parts", 3 * len(records[0][0]))
    parts = sorted((tmp_path / "parts").iterdir())
    assert len(parts) == 3
    for part in parts:
        assert not unpack(tmp_path / "one", tmp_path / "data")
        (tmp_path / "one").mkdir(exist_ok=True)
        for other in (tmp_path / "one").iterdir():
            other.unlink()
        part.rename(tmp_path / "one" / part.name)
    assert unpack(tmp_path / "one", tmp_path / "data")
    for split, rows in (("train", slice(0, 5)), ("test", slice(5, 7))):
        found = np.load(tmp_path / "data" / f"{split}_images.npy")
        np.testing.assert_array_equal(found, images[rows])
        labels = np.load(tmp_path / "data" / f"{split}_labels.npy")
        assert labels.tolist() == [number % 3 for number in range(7)][rows]


@pytest.mark.slow
@pytest.mark.skipif("REHEARSE" not in os.environ, reason="ten minutes: REHEARSE=1 asks for it")
def test_all_parts_rehearsed_on_the_cpu(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for split, count in (("train", 256), ("test", 64)):
        images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        np.save(tmp_path / "data" / f"{split}_images.npy", images)
        np.save(tmp_path / "data" / f"{split}_labels.npy", np.arange(count) % 10)
    given = {"TOY": "1", "JAX_PLATFORMS": "cpu", "LIMIT_S": "1200"}
    given["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of the compiler: a fifth of the time
    said, status = run(tmp_path / "out", tmp_path / "data", **given)
    logs = "".join(path.read_text() for path in (tmp_path / "out").glob("*.log"))
    assert status == 0, said + logs
    found = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in PARTS}
    assert (
        found["a_correct"]["against_the_cpu"]["products in full"]["gradient_relative_distance"]
        < 1e-6
    )
    for name in ("b_resnet18", "e_resnet50"):
        assert {"jaxssl, views made", "jaxssl, views given"} <= set(found[name]["rows"])
    run_of_d = found["d_cifar10"]["run"]
    assert run_of_d["steps"] == run_of_d["steps_in_all"] == 16
    assert [step for step, _ in run_of_d["knn_by_step"]] == [8, 16]
    assert found["c_pipeline"]["pipeline"]["share_of_cached"] > 0
    assert found["c_pipeline"]["views"]["views alone"] > 0
    assert "NT-Xent, N=256" in found["f_losses"]
