"""Parts of a user's own: a name of the form ``package.module:Name`` is imported from there.

It may stand wherever a config names a method, an encoder, a corruption, a view policy or a data set
(`KEYS`). ``config.json`` keeps the name, the module's file and the file's digest; what that file
imports in turn is not looked at. The one exception to the rule that names wire code, not strings.
"""

import hashlib
import importlib
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar

from ml_collections import ConfigDict

from jaxssl.errors import UserError, choose

T = TypeVar("T")
Noted = Mapping[str, Mapping[str, str]]

KEYS = ("method.name", "encoder.name", "corruption.name", "views.policy", "data.name")
# Not what TFDS calls a version: cifar10:3.0.2.
_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_own(name: str) -> bool:
    """Whether a name has the form ``package.module:Name``."""
    return _FORM.fullmatch(name) is not None


def look_up(
    key: str,
    name: str,
    choices: Mapping[str, T],
    *,
    fits: Callable[[Any], bool],
    form: str,
) -> T:
    """``choices[name]``, or what a name of the user's own stands for.

    Args:
      key: the config key that gave the name, one of `KEYS`.
      name: of a choice, or ``package.module:Name``.
      choices: the shipped ones.
      fits: whether an object can stand beside them.
      form: what such an object is, for the message.

    Raises:
      UserError: if there is no such choice, module or name in it, or it is another kind of object.
    """
    if not is_own(name):
        return choose(key, name, choices)
    module_name, _, attribute = name.partition(":")
    module = _module(key, name)
    if attribute not in vars(module):
        held = ", ".join(sorted(held for held in vars(module) if not held.startswith("_")))
        raise UserError(
            f"--config.{key}={name}: {module.__file__} has no {attribute!r}, it has {held}; name "
            "one of these."
        )
    found = vars(module)[attribute]
    if not fits(found):
        raise UserError(
            f"--config.{key}={name} is a {type(found).__name__} of {module.__file__} and must be "
            f"{form}: mend it, or name another of {module_name}."
        )
    return found


def _module(key: str, name: str) -> ModuleType:
    module = name.partition(":")[0]
    try:
        return importlib.import_module(module)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{module}.".startswith(f"{missing}."):
            # A mistake inside the module: its author needs the traceback.
            error.add_note(f"(while importing {name}, which --config.{key} names)")
            raise
        raise UserError(
            f"--config.{key}={name}: there is no module {missing!r} in {os.getcwd()}, on "
            "PYTHONPATH or installed: start the program in the folder that holds it, or put that "
            "folder on PYTHONPATH."
        ) from error


def noted(config: ConfigDict) -> dict[str, dict[str, str]]:
    """What a config names of the user's own: by key the ``name``, ``file`` and ``sha256``.

    Raises:
      UserError: if a module cannot be imported.
    """
    found = {}
    for key in KEYS:
        group, _, leaf = key.partition(".")
        name = config[group][leaf] if group in config and leaf in config[group] else ""
        if is_own(name):
            file = _module(key, name).__file__
            content = pathlib.Path(file).read_bytes() if file else b""
            digest = hashlib.sha256(content).hexdigest()
            found[key] = {"name": name, "file": file or "", "sha256": digest}
    return found


def digests(notes: Noted) -> dict[str, str]:
    """The files' digests: what two processes must agree on, wherever the files lie."""
    return {f"file of {key}": note["sha256"] for key, note in notes.items()}


def check_importable(notes: Noted, run: str | os.PathLike[str]) -> None:
    """Refuses to read a run whose own parts are not to be had.

    Args:
      notes: see `noted`, as ``config.json`` has it.
      run: its directory, for the message.

    Raises:
      UserError: naming the part, and the file that it came from.
    """
    for key, note in notes.items():
        try:
            _module(key, note["name"])
        except UserError as error:
            raise UserError(
                f"{run} was made with --config.{key}={note['name']}, which came from "
                f"{note['file']} and is not to be had now: start the program in the folder "
                f"{_folder(note)}, or put that on PYTHONPATH."
            ) from error


def _folder(note: Mapping[str, str]) -> pathlib.Path:
    """The folder from which a module was imported."""
    file = pathlib.Path(note["file"])
    inside = note["name"].partition(":")[0].count(".") + (file.name == "__init__.py")
    return file.parents[inside]


def differences(before: Noted, now: Noted) -> list[str]:
    """Which files have changed since they were noted, one clause each."""
    return [
        f"{now[key]['file']}, from which {now[key]['name']} comes, has changed (SHA-256 "
        f"{before[key]['sha256'][:12]}..., now {now[key]['sha256'][:12]}...)"
        for key in before
        if key in now and before[key]["sha256"] != now[key]["sha256"]
    ]
