"""How a program starts: flags, then one sentence and a non-zero exit for what a user can mend."""

import contextlib
import difflib
import functools
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import operator
import os
import pathlib
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from jaxssl import compilation_cache, distributed
from jaxssl.errors import UserError, sentence_of
from jaxssl.interruption import Interrupted

RECIPES = pathlib.Path(__file__).parent.parent / "configs"
"""Beside the package, in a checkout as where a wheel is installed."""

GARBAGE_THRESHOLDS = (100_000, 20, 20)

_settings: list[tuple[str, ConfigDict]] = []
_to_say: list[str] = []


def announce(text: str) -> None:
    """What a program is about to do, at once: before anything asks for a device.

    Of several processes the first says it, as their launcher numbered them. Where `launch` has
    switched something on that was not asked for, that is said once, after it.
    """
    if os.environ.get("JAX_PROCESS_ID", "0") == "0":
        print(text, *_to_say, sep="\n", flush=True)
    _to_say.clear()


def define_config_file() -> None:
    """Defines ``--config FILE[:key=value,...]`` and ``--config.key=value``."""
    config_flags.DEFINE_config_file("config", None, "Recipe: a file of configs/.")
    flags.mark_flag_as_required("config")


def define_settings(name: str, default: ConfigDict) -> None:
    """Defines ``--name.key=value`` for each leaf of a config that has no file."""
    # ml_collections looks at the command line as soon as it defines, so `launch` does it: what is
    # wrong there is to end in a sentence.
    _settings.append((name, default))


def launch(program: Callable[[flags.FlagValues], None]) -> None:
    """Parses the flags and runs ``program``; exits with 2 and one sentence on bad input.

    Compiled programs are kept from then on, see `jaxssl.compilation_cache`.
    """
    # Tracing makes hundreds of thousands of objects that stay: at the usual thresholds a fourth of
    # its time goes into looking for cycles among them.
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    app.define_help_flags()
    logging.set_verbosity(logging.WARNING)
    try:
        _parse(sys.argv)
        if folder := compilation_cache.switch_on():
            _to_say.append(
                f"compiled programs are kept in {folder} ({compilation_cache.VARIABLE}= switches "
                "that off)"
            )
        program(flags.FLAGS)
        sys.stdout.flush()  # a closed pipe shall be heard of here
    except (Exception, KeyboardInterrupt) as error:
        status, sentence = _explain(error)
        if sentence is None and not distributed.is_initialized():
            raise
        if sentence is None or logging.level_debug():
            traceback.print_exc()
        if sentence is not None:
            print(f"error: {sentence}", file=sys.stderr)
        _let_go_of_output()
        distributed.leave(status)


def _explain(error: BaseException) -> tuple[int, str | None]:
    """The exit status, and the sentence for the user; None for a defect of the program."""
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, Interrupted):
        return error.status, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted: run the same command again."
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE, "the standard output was closed before the end."
    if isinstance(error, OSError):
        return (2, sentence) if (sentence := sentence_of(error)) else (1, None)
    if isinstance(error, MemoryError) or _EXHAUSTED in str(error):
        return 2, _out_of_memory(error)
    return 1, None


_EXHAUSTED = "RESOURCE_EXHAUSTED"  # what XLA says of a device
_TO_LOWER = {"config": "--config.batch_size", "probe": "--probe.feature_batch_size"}


def _out_of_memory(error: BaseException) -> str:
    """A sentence with the first line of the error."""
    where = "on the device" if _EXHAUSTED in str(error) else "on this machine"
    said = (str(error).splitlines() or [""])[0].strip().rstrip(".")
    lower = [flag for name, flag in _TO_LOWER.items() if name in flags.FLAGS] or ["the batch"]
    return (
        f"there is not enough memory {where} ({said or type(error).__name__}): lower "
        f"{' or '.join(lower)}, take smaller images or networks, or use more devices."
    )


def _let_go_of_output() -> None:
    """Makes sure that the interpreter's last flush of a closed output says nothing."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(argv: list[str]) -> None:
    recipe, argv = _located(argv)
    if recipe is not None:
        _make_importable(recipe.partition(":")[0])
    failure = None
    try:
        for name, default in _settings:
            config_flags.DEFINE_config_dict(name, default, f"Settings, --{name}.key=value.")
        rest = flags.FLAGS(argv)[1:]
    except UserError:
        raise
    except Exception as error:
        failure = error
    configs = dict(_settings)
    if recipe is not None and (failure or not isinstance(flags.FLAGS.config, ConfigDict)):
        # ml_collections turns some errors of a recipe into others: this raises them as they are.
        configs["config"] = _read_recipe(recipe)
    if failure is not None:
        raise _in_words(failure, argv, configs) from None
    if rest:
        raise UserError(f"argument {rest[0]!r} belongs to no flag: flags start with --.")


def _in_words(failure: Exception, argv: list[str], configs: Mapping[str, ConfigDict]) -> Exception:
    """What to raise where the flags could not be parsed and the recipe is not at fault."""
    if not isinstance(failure, flags.Error):
        sentence = _unknown_key(argv, configs)
        return UserError(sentence) if sentence else failure
    said = " ".join(str(failure).split()).rstrip(".")
    if field := re.search(r"of field (\S+) is not supported", said):
        return UserError(
            f"--{field[1]} must be set in a recipe: write a file of configs/ that sets it."
        )
    if group := re.search(r"flag --(config\.hyper\.\w+)=(\S+?):? .*as a ConfigDict", said):
        return UserError(
            f"--{group[1]} is a schedule: give --{group[1]}.value={group[2]}, and see "
            "jaxssl/training/schedules.py for its other fields."
        )
    if group := re.search(r"flag --([\w.]+)=.* as a ConfigDict", said):
        held = _group(group[1], configs)
        first = "name" if "name" in held else next(iter(held), "KEY")
        return UserError(
            f"--{group[1]} is a group of settings and takes no value: give one of them, such as "
            f"--{group[1]}.{first}=VALUE (it has {', '.join(held)})."
        )
    return UserError(f"{said}: --helpfull lists the flags.")


def _group(path: str, configs: Mapping[str, ConfigDict]) -> Mapping[str, Any]:
    """The group that a flag names, which exists."""
    name, *keys = path.split(".")
    return functools.reduce(operator.getitem, keys, configs[name])


def _make_importable(file: str) -> None:
    """Lets a recipe import those that came with the package, whatever else is called ``configs``.

    For one of these themselves, they are that package. One of the user's own finds them where the
    user's package ``configs`` has no such module.

    Args:
      file: the recipe, which exists.
    """
    if not any(isinstance(finder, _ShippedRecipes) for finder in sys.meta_path):
        sys.meta_path.append(_ShippedRecipes())
    held = getattr(sys.modules.get(RECIPES.name), "__file__", None)
    if not _is_shipped(file) or (held is not None and _is_shipped(held)):
        return
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{RECIPES.name}.")]:
        del sys.modules[name]
    # Not by the search path, which would put all that is installed before the user's own modules.
    spec = importlib.machinery.PathFinder.find_spec(RECIPES.name, [str(RECIPES.parent)])
    if spec is not None and spec.loader is not None:
        sys.modules[RECIPES.name] = package = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)


def _is_shipped(file: str) -> bool:
    return pathlib.Path(file).resolve().is_relative_to(RECIPES.resolve())


class _ShippedRecipes(importlib.abc.MetaPathFinder):
    """Finds modules of the shipped ``configs``, asked after all other finders."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Where such a module lies; None for any other name."""
        package, *inside = name.split(".")
        if package != RECIPES.name or not inside:
            return None
        folder = RECIPES.joinpath(*inside[:-1])
        return importlib.machinery.PathFinder.find_spec(name, [str(folder)])


def _read_recipe(recipe: str) -> ConfigDict:
    """What ``get_config`` of ``FILE[:key=value,...]`` returns; a mistake in it stays as it is.

    Raises:
      UserError: the file is no recipe, or takes no such arguments.
    """
    file, colon, arguments = recipe.partition(":")
    given = (arguments,) if colon else ()
    get_config = _executed(file).get("get_config")
    if not callable(get_config):
        raise _no_recipe(file, "it has no function get_config")
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError:
        wants = "no arguments" if given else "an argument, as in FILE:ARGUMENT"
        raise UserError(f"config file {file!r} takes {wants}: see its first lines.") from None
    config = get_config(*given)
    if not isinstance(config, ConfigDict):
        raise _no_recipe(file, f"its get_config returns a {type(config).__name__}, no ConfigDict")
    return config


def _executed(file: str) -> dict[str, Any]:
    """The names that a recipe's file defines."""
    names: dict[str, Any] = {"__name__": "recipe", "__file__": file}
    try:
        code = compile(pathlib.Path(file).read_bytes(), file, "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"line {line} is no Python" if line else "it is no Python"
        raise _no_recipe(file, f"{where} ({getattr(error, 'msg', error)})") from error
    try:
        exec(code, names)
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)[1:]]
        said = " ".join(str(error).split()).rstrip(".")
        raise _no_recipe(file, f"line {lines[0]} raises {type(error).__name__} ({said})") from error
    return names


def _no_recipe(file: str, why: str) -> UserError:
    return UserError(
        f"config file {file!r} is no recipe: {why}; mend it, or give one such as "
        "configs/quickstart.py."
    )


def _located(argv: list[str]) -> tuple[str | None, list[str]]:
    """``FILE[:key=value,...]`` of ``--config``, FILE being where it lies; and ``argv`` with it.

    Raises:
      UserError: if there is no such file.
    """
    recipe, located = None, list(argv)
    for place, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        given = value if equals else "".join(argv[place + 1 : place + 2])
        file, colon, arguments = given.partition(":")
        recipe = f"{_recipe_file(file)}{colon}{arguments}"
        if equals:
            located[place] = f"{flag}={recipe}"
        else:
            located[place + 1] = recipe
    return recipe, located


def _recipe_file(file: str) -> str:
    """``file`` if it exists, or else the recipe of that name that came with the package.

    Raises:
      UserError: if neither exists.
    """
    if os.path.isfile(file):
        return file
    # Who installed a wheel has no folder configs/: the documented names serve there too.
    shipped = os.path.join(RECIPES.parent, file)
    if pathlib.PurePath(file).parts[:1] == (RECIPES.name,) and os.path.isfile(shipped):
        return shipped
    raise UserError(
        f"config file {file!r} does not exist, and no recipe in {RECIPES} has that name: give one "
        "of those, such as configs/quickstart.py, or the path of your own."
    )


def _unknown_key(argv: list[str], configs: Mapping[str, ConfigDict]) -> str | None:
    """Which ``--config.key`` names nothing; None if all of them do name something."""
    for argument in argv[1:]:
        flag = argument.partition("=")[0].lstrip("-")
        name, _, path = flag.partition(".")
        name = name if name in configs else name.removeprefix("no")  # --noconfig.key: False
        if name not in configs or not argument.startswith("-") or "." not in flag:
            continue
        where, value = name, configs[name]
        for part in re.split(r"\.|(?=\[)", path):
            if isinstance(value, tuple | list) and part.startswith("["):
                whole = str(_plain(value)).replace("'", '"')
                return (
                    f"--{flag} is a part of a tuple: give the whole of it, --{where}='{whole}' "
                    "with your changes."
                )
            if not isinstance(value, ConfigDict):
                return (
                    f"--{where} is one value ({value!r}) and has no {part!r}: give --{where}=VALUE."
                )
            if part not in value:
                near = difflib.get_close_matches(part, value.keys(), n=1)
                held = (
                    f"did you mean --{where}.{near[0]}?" if near else f"it has {', '.join(value)}."
                )
                return f"{where} has no {part!r}: {held}"
            where, value = f"{where}.{part}", value[part]
    return None


def _plain(value: Any) -> Any:
    """Rows with names as plain tuples, as a command line takes them."""
    return tuple(map(_plain, value)) if isinstance(value, tuple | list) else value
