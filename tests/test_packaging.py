"""What an installed package finds, and which versions it asks for."""

import importlib
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jaxssl import cli
from jaxssl.errors import UserError

HOUSE = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((HOUSE / "pyproject.toml").read_text())
QUICKSTART = str(HOUSE / "configs" / "quickstart.py")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["--config=configs/quickstart.py"], [f"--config={QUICKSTART}"]),
        (
            ["--seed=1", "--config", "configs/quickstart.py:epochs=3,a=b:c", "--x"],
            ["--seed=1", "--config", f"{QUICKSTART}:epochs=3,a=b:c", "--x"],
        ),
        (["-config=./own.py:a=1"], ["-config=./own.py:a=1"]),
        (["--config", "configs/own.py"], ["--config", "configs/own.py"]),
        (["--config.seed=1"], ["--config.seed=1"]),
    ],
)
def test_a_recipe_of_the_package_is_found_from_any_folder(given, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("own.py", "configs/own.py"):
        pathlib.Path(name).parent.mkdir(exist_ok=True)
        pathlib.Path(name).touch()
    recipe, argv = cli._located(["program", *given])
    assert argv == ["program", *found]
    assert recipe is None or any(argument.endswith(recipe) for argument in argv)


def test_a_file_of_the_folder_comes_before_the_package_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("configs").mkdir()
    pathlib.Path("configs/quickstart.py").touch()
    argv = ["program", "--config=configs/quickstart.py"]
    assert cli._located(argv) == ("configs/quickstart.py", argv)


@pytest.mark.parametrize(
    "given",
    [
        ["--config=configs/none.py"],
        ["--config", "configs/pretrain"],  # a folder
        ["--config", "jaxssl/pretrain.py"],  # no recipe
        ["--config="],
        ["--config"],
        ["--config=/configs/quickstart.py"],
    ],
)
def test_what_is_nowhere_is_refused_with_both_places(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="does not exist") as error:
        cli._located(["program", *given])
    file = given[-1].removeprefix("--config").removeprefix("=")
    assert str(error.value).startswith(f"config file {file!r} does not exist, and no recipe in ")
    assert str(HOUSE / "configs") in str(error.value)


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A project with a package ``configs`` of its own, found before the shipped one."""

    def drop():
        return {name: sys.modules.pop(name) for name in [*sys.modules] if re.match(NAME, name)}

    for name in ("__init__", "local", "both/__init__", "quickstart"):
        (tmp_path / "configs" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "configs" / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    held = drop()
    yield tmp_path
    drop()
    sys.modules.update(held)


NAME = r"configs(\.|$)"


def folder_of(module):
    return pathlib.Path(importlib.import_module(module).__file__).parent


def test_shipped_recipes_import_each_other_in_a_project_with_its_own_configs(foreign):
    assert folder_of("configs") == foreign / "configs"
    cli._make_importable(QUICKSTART)
    for module in ("configs", "configs.common", "configs.protocols"):
        assert folder_of(module) == HOUSE / "configs"
    package = sys.modules["configs"]
    cli._make_importable(QUICKSTART)
    assert sys.modules["configs"] is package


def test_own_recipes_import_their_own_configs_first_and_then_the_shipped(foreign):
    cli._make_importable(str(foreign / "own.py"))
    for module in ("configs", "configs.local", "configs.quickstart"):
        assert folder_of(module) == foreign / "configs"
    assert folder_of("configs.common") == HOUSE / "configs"
    assert folder_of("configs.pretrain.simclr") == HOUSE / "configs" / "pretrain"
    for module in ("configs.none", "configs.both.none", "configs.common.none"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(module)


def test_a_program_takes_the_package_s_recipe_beside_a_foreign_configs_folder(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").touch()
    (tmp_path / "configs" / "common.py").write_text("raise RuntimeError('somebody else')\n")
    done = subprocess.run(
        [sys.executable, "-m", "jaxssl.preview", "--config", "configs/quickstart.py:epochs=x"],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HOUSE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: config argument epochs='x' is not float: give one such as epochs=250.0.\n",
    )


def test_the_wheel_holds_what_programs_import():
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(packages) == ["configs", "jaxssl"]
    assert (HOUSE / "configs" / "__init__.py").is_file()


def test_constraints_pin_every_requirement_within_its_bound():
    lines = (HOUSE / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", pin) for pin in pins), "exact versions alone"
    versions = {canonicalize_name(pin.split("==")[0]): pin.split("==")[1] for pin in pins}
    project = PROJECT["project"]
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)]), text
