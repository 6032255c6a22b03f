"""The run directory's ``config.json``: what a run was told to do and by which code.

JSON has one sequence type and `ml_collections.ConfigDict` recipes use tuples alone, so sequences
are written as lists and read back as tuples.
"""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections

import jaxssl
from jaxssl import distributed
from jaxssl.data.examples import identity_differences
from jaxssl.errors import UserError

_CONFIG = "config.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint", "numpy")


def run_info() -> dict[str, Any]:
    """What a run's numbers may depend on besides its config: code, versions and hardware.

    Returns:
      ``commit`` (of the checkout that holds the package, ``-dirty`` appended where tracked files
      differ from it; None outside a checkout), ``versions`` by package, ``platform``,
      ``device_kind``, ``device_count`` and ``process_count``. Starts JAX's backend.
    """
    return {
        "commit": _commit(),
        "versions": {
            "jaxssl": jaxssl.__version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in _PACKAGES},
        },
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
    }


def _commit() -> str | None:
    house = pathlib.Path(__file__).resolve().parent.parent
    if not (house / ".git").exists():  # an installed copy may lie inside somebody else's checkout
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=house,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def write_config(
    workdir: str | os.PathLike[str], config: ml_collections.ConfigDict, info: Mapping[str, Any]
) -> None:
    """Writes ``config.json``: whole or, if the process dies, not at all.

    Args:
      workdir: the run directory; made if absent.
      config: the resolved config; leaves are None, bool, int, finite float, str or tuples of them.
      info: further JSON entries beside ``config``, usually `run_info()`.

    Raises:
      UserError: a leaf that JSON cannot hold exactly, by its key.
    """
    for key, leaf in _leaves(config.to_dict()):
        _check_leaf(key, leaf)
    write_json(pathlib.Path(workdir) / _CONFIG, {**info, "config": config.to_dict()})


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Replaces a JSON file in one step, so that a reader finds the old one or the new one."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2) + "\n"
    temporary = _half_written(path)
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _half_written(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.tmp")


def read_config(workdir: str | os.PathLike[str]) -> ml_collections.ConfigDict:
    """The config of a run, locked, equal to the one written.

    Raises:
      UserError: ``config.json`` is absent or not what `write_config` writes.
    """
    return ml_collections.ConfigDict(_with_tuples(_read(workdir)["config"])).lock()


def read_info(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_config` wrote beside the config.

    Raises:
      UserError: as `read_config`.
    """
    return {key: value for key, value in _read(workdir).items() if key != "config"}


def _read(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    path = pathlib.Path(workdir) / _CONFIG
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{workdir} is not a run directory: it has no {_CONFIG}; name the --workdir of a "
            "pretraining run."
        ) from None
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise UserError(
            f"{path} is damaged: restore it from a copy, or start the run in a new directory."
        )
    return content


def has_config(workdir: str | os.PathLike[str]) -> bool:
    """Whether a run was started in this directory."""
    return (pathlib.Path(workdir) / _CONFIG).is_file()


def claim(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, data: Mapping[str, Any]
) -> None:
    """Makes the run directory, or checks that it is of this very run.

    Args:
      workdir: the run directory.
      config: the resolved config.
      data: `jaxssl.data.examples.identity` of what is trained on, and ``from_python``.

    Raises:
      UserError: if it is of a run on other data, or one whose config differs in more than its
        ``run`` group.
    """
    if jax.process_index() == 0:
        if has_config(workdir):
            _check_same_run(workdir, config, data)
        elif _is_free(workdir):
            write_config(workdir, config, {**run_info(), "data": dict(data)})
        else:
            raise UserError(
                f"{workdir} is not empty and no run of jaxssl: choose another --workdir."
            )
    distributed.wait_for_all("claim")


def _check_same_run(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, data: Mapping[str, Any]
) -> None:
    differences = config_differences(read_config(workdir), config, ignore=("run",))
    if differences:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(differences)}): choose "
            "another --workdir, or undo these changes (only run.* may change)."
        )
    before = read_info(workdir).get("data", {})
    other = identity_differences(before, data)
    if other:
        raise UserError(
            f"{workdir} holds a run on other data ({'; '.join(other)}): choose another --workdir, "
            "or give it the data that it began with."
        )


def note_resumption(workdir: pathlib.Path, config: ml_collections.ConfigDict, step: int) -> None:
    """Adds to ``config.json`` from where and with which code and hardware the run goes on."""
    if jax.process_index() == 0:
        info = read_info(workdir)
        resumed = [*info.get("resumed", []), {"step": step, **run_info()}]
        write_config(workdir, config, info | {"resumed": resumed})


def _is_free(workdir: pathlib.Path) -> bool:
    """Whether nothing lies here, but for a config that a kill cut short."""
    if not workdir.exists():
        return True
    rest = {_half_written(workdir / _CONFIG)}
    return workdir.is_dir() and set(workdir.iterdir()) <= rest


def config_differences(
    old: ml_collections.ConfigDict,
    new: ml_collections.ConfigDict,
    ignore: Sequence[str] = ("run",),
) -> list[str]:
    """Where two configs differ, one line a key: ``optimizer.momentum: 0.9 -> 0.8``.

    Args:
      old: what stands in a run directory.
      new: what a program was called with.
      ignore: dotted keys that may differ, with all below them.

    Returns:
      Lines sorted by key; a key that one side lacks reads ``(absent)``. Lists equal tuples, and an
      integer equals the float of its value.
    """
    before = dict(_leaves(_with_tuples(old.to_dict())))
    after = dict(_leaves(_with_tuples(new.to_dict())))
    return [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in sorted({*before, *after})
        if not any(key == name or key.startswith(f"{name}.") for name in ignore)
        and (key not in before or key not in after or before[key] != after[key])
    ]


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "(absent)"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_leaf(key: str, leaf: Any) -> None:
    if isinstance(leaf, tuple | list):
        for item in leaf:
            _check_leaf(key, item)
    elif isinstance(leaf, float) and not math.isfinite(leaf):
        raise UserError(f"config.{key} is {leaf}: give a finite number, or None for no limit.")
    elif leaf != {} and not (leaf is None or type(leaf) in (bool, int, float, str)):
        raise UserError(
            f"config.{key} is a {type(leaf).__name__}: give a number, a string or a tuple of them."
        )


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_with_tuples(item) for item in value)
    return value
