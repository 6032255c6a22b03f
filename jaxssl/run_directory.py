"""The run directory: its owner, and ``config.json``, what the run was told and by which code.

JSON has one sequence type and `ml_collections.ConfigDict` recipes use tuples alone, so sequences
are written as lists and read back as tuples.
"""

import contextlib
import importlib.metadata
import math
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import ml_collections
import PIL
import PIL.features

import jaxssl
from jaxssl import distributed, extensions
from jaxssl.data.examples import identity_differences
from jaxssl.errors import UserError
from jaxssl.run_lock import ASIDE, LOCK, RunLock
from jaxssl.storage import (
    Path,
    as_path,
    check_writable,
    is_half_written,
    is_inside,
    is_local,
    read_json,
    write_json,
)
from jaxssl.upgrade import FORMAT, changes, upgrade_config

SECONDS_TO_SEE = 20.0
"""How long the other processes of a job look for what process 0 wrote."""
SECONDS_BETWEEN_LOOKS = 5.0
"""How seldom a run looks whether its directory is still its own; see `watched`."""

T = TypeVar("T")
_CONFIG = "config.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint", "numpy")


MAY_CHANGE = ("run", "evals", "online", "data.data_dir", "data.compose.digits_dir")
"""What of a config is not the run's identity: cadence, what is evaluated and trained beside the
method, devices, where it stops and data lie."""


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
            **_decoders(),
        },
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
    }


def _decoders() -> dict[str, str]:
    """Versions of what makes pixels of a picture's file."""
    return {"pillow": PIL.__version__, "libjpeg": PIL.features.version("jpg") or "none"}


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
    content = {**info, "format": FORMAT, "config": config.to_dict()}
    write_json(_config_of(workdir), content)


def _config_of(workdir: str | os.PathLike[str]) -> Path:
    return as_path(workdir, "run directory") / _CONFIG


def read_config(workdir: str | os.PathLike[str]) -> ml_collections.ConfigDict:
    """The config of a run, locked, equal to the one written.

    Raises:
      UserError: ``config.json`` is absent or not what `write_config` writes, or a part of the
        user's own that it names cannot be imported.
    """
    content = _read(workdir)
    extensions.check_importable(content.get("extensions", {}), workdir)
    return ml_collections.ConfigDict(_with_tuples(content["config"])).lock()


def read_info(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_config` wrote beside the config.

    Raises:
      UserError: as `read_config`.
    """
    return {key: value for key, value in _read(workdir).items() if key != "config"}


def _read(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    path = _config_of(workdir)
    try:
        content = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{workdir} is not a run directory: it has no {_CONFIG}; name the --workdir of a "
            "pretraining run."
        ) from None
    except (ValueError, RecursionError):
        content = None
    form = content.get("format", 1) if isinstance(content, dict) else 0
    if isinstance(form, int) and form > FORMAT:
        raise UserError(
            f"{path} was written by a newer jaxssl (its format is {form}, this version reads "
            f"up to {FORMAT}): upgrade jaxssl to go on with this run or to read it."
        )
    known = type(form) is int and form >= 1
    if not known or not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise UserError(
            f"{path} is damaged: restore it from a copy, or start the run in a new directory."
        )
    try:
        return upgrade_config(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} lacks what format {form} has ({type(error).__name__}: {error}): restore it "
            "from a copy, or start the run in a new directory."
        ) from error


def has_config(workdir: str | os.PathLike[str]) -> bool:
    """Whether a run was started in this directory."""
    return _config_of(workdir).is_file()


def place(workdir: str | os.PathLike[str], flag: str = "--workdir") -> Path:
    """The path of a run directory to be made or resumed; nothing is made yet.

    Raises:
      UserError: if that is not possible (see `jaxssl.storage.as_path`), a file or a link to nothing
        is in the way, or it is not writable.
    """
    path = as_path(workdir, flag)
    check_writable(path, flag)
    return path


DATA_FLAGS = ("--config.data.data_dir", "--config.data.compose.digits_dir")


def check_outside(
    written: Path,
    flag: str,
    data: ml_collections.ConfigDict,
    data_flags: tuple[str, str] = DATA_FLAGS,
) -> None:
    """Refuses to write among the data, or around them.

    Args:
      written: a directory or a file that a program makes.
      flag: who names it.
      data: the ``data`` group of the config.
      data_flags: who names its ``data_dir`` and its ``compose.digits_dir``.

    Raises:
      UserError: if one lies inside the other, links followed.
    """
    folders = [data.data_dir]
    if "compose" in data and "digits_dir" in data.compose:
        folders.append(data.compose.digits_dir)
    for folder, data_flag in zip(folders, data_flags, strict=False):
        if not folder or not is_local(written) or "://" in folder:
            continue
        if is_inside(written, folder):
            raise UserError(
                f"{flag}={written} lies inside {folder}, which holds the data ({data_flag}): name "
                "a place outside of it."
            )
        if is_inside(folder, written):
            raise UserError(
                f"{folder}, which holds the data ({data_flag}), lies inside {flag}={written}: name "
                "another directory, for a run alone."
            )


@contextlib.contextmanager
def owned(workdir: Path) -> Iterator[Callable[[], str | None]]:
    """Makes the run directory if need be and keeps all other writers out; see `RunLock`.

    Every process of a job enters it; the first one owns the directory. It gives `RunLock.lost`,
    which on the other processes finds nothing.

    Raises:
      UserError: on every process, if another start owns it, if it is neither free nor a run, or if
        a process does not see what process 0 wrote there.
    """
    lock: RunLock | None = None
    made = False

    def take() -> str:
        nonlocal lock, made
        _check_ours(workdir)
        made = not workdir.exists()
        workdir.mkdir(parents=True, exist_ok=True)
        lock = RunLock(workdir)
        return lock.acquire()

    try:
        token = distributed.agree("the run directory", take)
        if jax.process_count() > 1:
            distributed.all_or_none("the run directory", _unseen(workdir, token))
        yield lock.lost if lock is not None else _nothing
    finally:
        if lock is not None:
            lock.release()
        if made and is_local(workdir):
            with contextlib.suppress(OSError):
                workdir.rmdir()  # only what is empty: nothing is left of a start that was refused


def _nothing() -> None:
    """The word of a process that owns nothing."""


def _unseen(workdir: Path, token: str) -> str | None:
    """Looks for the lock of process 0: what is wrong, or None."""
    deadline = time.monotonic() + SECONDS_TO_SEE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            if read_json(workdir / LOCK)["token"] == token:
                return None
        time.sleep(0.2)
    return (
        f"does not see in {workdir} what process 0 wrote there ({LOCK}): name a --workdir on "
        "storage that all processes share."
    )


def watched(
    batches: Iterator[T], check_owned: Callable[[], None], start: int, every: int
) -> Iterator[T]:
    """The batches of the steps from ``start`` on, as long as the run directory is `owned`.

    One process looks every `SECONDS_BETWEEN_LOOKS`; several, which wait for each other's word, do
    at each step that is a multiple of ``every``.

    Raises:
      UserError: what ``check_owned`` raises, which every process calls.
    """
    looked = time.monotonic()
    for step, batch in enumerate(batches, start):
        due = time.monotonic() - looked >= SECONDS_BETWEEN_LOOKS
        if due if jax.process_count() == 1 else step % (every or 1) == 0:
            check_owned()
            looked = time.monotonic()
        yield batch


def claim(
    workdir: Path,
    config: ml_collections.ConfigDict,
    data: Mapping[str, Any],
    spec: Mapping[str, Any],
) -> list[str]:
    """Writes the config of a new run, or checks that the directory is of this very run.

    Args:
      workdir: the run directory, `owned`.
      config: the resolved config.
      data: `jaxssl.data.examples.identity` of what is trained on, and ``from_python``.
      spec: `jaxssl.methods.Spec.to_json` of the run.

    Returns:
      What computes otherwise than when the run was last written to, one clause each.

    Raises:
      UserError: on every process, if it is of a run on other data, or one whose config differs in
        more than its ``run`` group.
    """

    def check_or_write() -> list[str]:
        _check_ours(workdir)
        own = extensions.noted(config)
        if has_config(workdir):
            _check_same_run(workdir, config, data)
            info = read_info(workdir)
            changed = extensions.differences(info.get("extensions", {}), own)
            return [*changes(info["format"]), *changed]
        about = {"data": dict(data), "spec": dict(spec), "extensions": own}
        write_config(workdir, config, {**run_info(), **about})
        return []

    return distributed.agree("the run's config", check_or_write)


def _check_ours(workdir: Path) -> None:
    """Raises UserError if something other than a run lies here."""
    if not has_config(workdir) and not _is_free(workdir):
        raise UserError(f"{workdir} is not empty and no run of jaxssl: choose another --workdir.")


def _check_same_run(
    workdir: Path, config: ml_collections.ConfigDict, data: Mapping[str, Any]
) -> None:
    differences = config_differences(read_config(workdir), config, ignore=MAY_CHANGE)
    if differences:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(differences)}): choose "
            "another --workdir, or undo these changes (only --config.run.*, --config.evals.*, "
            "--config.online.* and where the data lie may change)."
        )
    info = read_info(workdir)
    before = info.get("data", {})
    # What an older format did not note cannot be compared.
    noted = {key: data[key] for key in data if key in before}
    other = identity_differences(before, noted if info["format"] < FORMAT else data)
    if other:
        other += _decoders_differ(info)
        raise UserError(
            f"{workdir} holds a run on other data ({'; '.join(other)}): choose another --workdir, "
            "or give it the data that it began with."
        )


def _decoders_differ(info: Mapping[str, Any]) -> list[str]:
    """A clause where the images of the run were decoded by other versions than these."""
    before = [info, *info.get("resumed", [])][-1].get("versions", {})
    return [
        f"{name} was {before[name]} and is {version} now, which may decode files to other pixels"
        for name, version in _decoders().items()
        if before.get(name, version) != version
    ]


def note_resumption(
    workdir: Path,
    config: ml_collections.ConfigDict,
    data: Mapping[str, Any],
    spec: Mapping[str, Any],
    step: int,
) -> None:
    """Adds to ``config.json`` from where and with which code and hardware the run goes on.

    The file is then of today's format, ``data`` and ``spec`` with it.
    """
    if jax.process_index() == 0:
        info = read_info(workdir)
        own = extensions.noted(config)
        start = {"step": step, "format": info["format"], "extensions": own, **run_info()}
        resumed = [*info.get("resumed", []), start]
        again = {"data": dict(data), "spec": dict(spec), "extensions": own, "resumed": resumed}
        write_config(workdir, config, info | again)


def _is_free(workdir: Path) -> bool:
    """Whether nothing lies here, but for what a start leaves that a kill cut short."""
    if not workdir.exists():
        return True
    return workdir.is_dir() and all(
        path.name == LOCK or path.name.startswith(ASIDE) or is_half_written(path, _CONFIG)
        for path in workdir.iterdir()
    )


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
        raise UserError(f"--config.{key}={leaf} must be a finite number, or None for no limit.")
    elif leaf != {} and not (leaf is None or type(leaf) in (bool, int, float, str)):
        raise UserError(
            f"--config.{key} is a {type(leaf).__name__} and must be a number, a string or a tuple "
            "of them."
        )


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_with_tuples(item) for item in value)
    return value
