"""A user's own parts: docs/extending.md as it stands, from a folder that is not the clone."""

import os
import pathlib
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from tiny import config_for

from configs.common import view_policy
from jaxssl import extensions
from jaxssl.augment.policies import pair_of
from jaxssl.data.sources import load
from jaxssl.errors import UserError
from jaxssl.methods import METHODS, method_class
from jaxssl.methods.simclr import SimCLR
from jaxssl.plan import resolve
from jaxssl.run_directory import claim, note_resumption, read_config, read_info

HOUSE = pathlib.Path(__file__).parent.parent
PAGE = (HOUSE / "docs" / "extending.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder with the page's two files, and what its two commands printed there."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name, code in zip(("mine.py", "recipe.py"), blocks("python"), strict=True):
        (folder / name).write_text(code)
    (commands,) = blocks("")
    printed = [in_folder(folder, *line.split()[1:]) for line in commands.splitlines()]
    return folder, printed


def in_folder(folder, *arguments, status=0):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HOUSE)},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_page_is_trained_and_probed_from_its_own_folder(elsewhere):
    folder, (trained, probed) = elsewhere
    assert "pretraining mine:Spread on multi_digits" in trained
    assert "Top-1 on 360 test images" in probed
    info, own = read_info(folder / "runs" / "mine"), folder / "mine.py"
    assert set(info["extensions"]) == {"method.name", "encoder.name", "corruption.name"}
    for note in info["extensions"].values():
        assert note["file"] == str(own)
    assert info["extensions"]["method.name"]["name"] == "mine:Spread"


@pytest.mark.slow
def test_a_changed_or_missing_file_is_named(elsewhere, monkeypatch, capsys, caplog):
    """By one program as by another: what they share says it."""
    folder, _ = elsewhere
    run, own = folder / "runs" / "mine", folder / "mine.py"
    sys.modules.pop("mine", None)
    with pytest.raises(UserError, match="which came from") as refused:
        read_config(run)
    assert "--config.method.name=mine:Spread" in str(refused.value)
    assert f"which came from {own} " in str(refused.value)
    assert f"in the folder {folder}, or put that on PYTHONPATH" in str(refused.value)
    own.write_text(own.read_text() + "\n# changed\n")
    said = in_folder(
        folder, "-m", "jaxssl.linear_probe", "--run", "runs/mine", "--probe.sgd.epochs=0"
    )
    assert f"{own}, from which mine:Spread comes, has changed (SHA-256" in said
    monkeypatch.syspath_prepend(str(folder))
    now = extensions.noted(read_config(run))
    clauses = extensions.differences(read_info(run)["extensions"], now)
    assert len(clauses) == 3
    sys.modules.pop("mine", None)


def written(folder, monkeypatch, name="own_parts", **files):
    """A module of a test's own, importable."""
    for file, code in {name: "", **files}.items():
        path = folder / f"{file.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(str(folder))
    for loaded in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, loaded)


def test_a_resumed_run_says_that_a_file_has_changed(tmp_path, monkeypatch):
    code = "from jaxssl.methods.simclr import SimCLR\n\nclass Mine(SimCLR):\n    pass\n"
    written(tmp_path, monkeypatch, own_parts=code)
    config = config_for("simclr")
    with config.unlocked():
        config.method.name = "own_parts:Mine"
    run, about = tmp_path / "run", ({"name": "digits"}, {"num_examples": 3})
    assert claim(run, config, *about) == []
    assert claim(run, config, *about) == []
    (tmp_path / "own_parts.py").write_text(code + "\n# another\n")
    (clause,) = claim(run, config, *about)
    assert "own_parts.py, from which own_parts:Mine comes, has changed (SHA-256" in clause
    note_resumption(run, config, *about, step=1)
    assert claim(run, config, *about) == []
    noted = read_info(run)["extensions"]["method.name"]["sha256"]
    resumed = read_info(run)["resumed"][0]["extensions"]["method.name"]["sha256"]
    assert noted == resumed == extensions.noted(config)["method.name"]["sha256"]


def test_a_policy_and_a_data_set_of_ones_own(tmp_path, monkeypatch):
    code = """
        import jax.numpy as jnp
        import numpy as np
        from jaxssl.augment.policies import Pair
        from jaxssl.data.examples import array_source
        from jaxssl.data.sources import Kind
        from jaxssl.randomness import Split
        from jaxssl.ranges import SHARE

        def boxes(key, height, width, hyper):
            cut = hyper["cut"] * height
            whole = [0.0, 0.0, height, width]
            return jnp.array(whole), jnp.array([cut, 0.0, height, width])

        HALVES = Pair(boxes, {"cut": SHARE}, lambda height, width, cut: None, start={"cut": 0.5})

        def images(data, published):
            split = Split.TRAIN if published == "train" else Split.TEST
            grey = np.full((data.own_count, 8, 8, 1), 7, np.uint8)
            return array_source("mine", split, grey, {"label": np.arange(data.own_count)},
                                num_classes=data.own_count)

        GREY = Kind(lambda data: ("train", "test"), images)
    """
    written(tmp_path, monkeypatch, own_parts=code)
    config = config_for("simclr")
    with config.unlocked():
        view_policy(config, "own_parts:HALVES")
        config.data.name = "own_parts:GREY"
        config.data.own_count = 20
    assert config.hyper.cut == 0.5
    assert set(extensions.noted(resolve(config))) == {"views.policy", "data.name"}
    source = load(config.data, "train")
    assert source.name == "mine"
    assert len(source) == 18  # a tenth is held out for validation
    assert (source.gather(np.arange(2))["image"] == 7).all()
    assert pair_of("own_parts:HALVES") is sys.modules["own_parts"].HALVES


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("own_parts:Nothing", r"own_parts.py has no 'Nothing', it has Other"),
        ("own_parts:Other", r"own_parts:Other is a int of .*own_parts.py and must be a subclass"),
        ("no_parts:Mine", r"method.name=no_parts:Mine: there is no module 'no_parts' in "),
        ("own_parts.inner:Mine", r"there is no module 'own_parts.inner' in "),
        ("own_parts", r"--config.method.name=own_parts is unknown: choose one of"),
    ],
)
def test_what_cannot_be_imported_is_said(tmp_path, monkeypatch, name, sentence):
    written(tmp_path, monkeypatch, own_parts="Other = 3\n")
    with pytest.raises(UserError, match=sentence):
        method_class(name)


def test_a_mistake_inside_the_users_file_keeps_its_traceback(tmp_path, monkeypatch):
    written(tmp_path, monkeypatch, own_parts="import no_such_library\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_library") as caught:
        method_class("own_parts:Mine")
    assert "own_parts:Mine, which --config.method.name names" in caught.value.__notes__[0]


def test_a_package_is_found_from_its_root(tmp_path, monkeypatch):
    code = "from jaxssl.methods.simclr import SimCLR as Mine\n"
    written(tmp_path, monkeypatch, **{"own_parts.deep.part": code})
    (tmp_path / "own_parts.py").unlink()
    assert method_class("own_parts.deep.part:Mine") is SimCLR
    config = config_for("simclr")
    with config.unlocked():
        config.method.name = "own_parts.deep.part:Mine"
    note = extensions.noted(config)
    monkeypatch.undo()
    for loaded in [m for m in sys.modules if m.startswith("own_parts")]:
        del sys.modules[loaded]
    with pytest.raises(UserError, match=f"in the folder {re.escape(str(tmp_path))}, or put"):
        extensions.check_importable(note, "runs/some")


def test_names_that_are_no_extensions():
    own = ("mine:Mine", "a.b_c.d:E1")
    other = ("cifar10:3.0.2", "mnist:3.*.*", "coco/2017", "byol", "gs://a/b", "a:b:c", ":a", "a:")
    assert all(map(extensions.is_own, own))
    assert not any(map(extensions.is_own, (*other, *METHODS)))
