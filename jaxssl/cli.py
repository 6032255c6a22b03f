"""How a program starts: flags, then one sentence and a non-zero exit for what a user can mend."""

import errno
import pathlib
import sys
import traceback
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from jaxssl import distributed
from jaxssl.errors import UserError


def define_config_file() -> None:
    """Defines ``--config FILE[:key=value,...]`` and ``--config.key=value``."""
    config_flags.DEFINE_config_file("config", None, "Recipe: a file of configs/.")
    flags.mark_flag_as_required("config")


def launch(program: Callable[[flags.FlagValues], None]) -> None:
    """Parses the flags and runs ``program``; exits with 2 and one sentence on bad input."""
    app.define_help_flags()
    logging.set_verbosity(logging.WARNING)
    try:
        _parse(sys.argv)
        program(flags.FLAGS)
    except (Exception, KeyboardInterrupt) as error:
        status, sentence = _explain(error)
        if sentence is None and not distributed.is_initialized():
            raise
        if sentence is None or logging.level_debug():
            traceback.print_exc()
        if sentence is not None:
            print(f"error: {sentence}", file=sys.stderr)
        distributed.leave(status)


def _explain(error: BaseException) -> tuple[int, str | None]:
    """The exit status, and the sentence for the user; None for a defect of the program."""
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 2, f"the disk is full ({error.filename or error}): free some space and run it again."
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted: run the same command again to go on from the last checkpoint."
    return 1, None


def _parse(argv: list[str]) -> None:
    for given, following in zip(argv, [*argv[1:], ""], strict=True):
        if given in ("--config", "-config") or given.startswith("--config="):
            file = (given.partition("=")[2] or following).partition(":")[0]
            if not pathlib.Path(file).is_file():
                raise UserError(
                    f"config file {file!r} does not exist: give one of configs/, "
                    "from the root of the project."
                )
    try:
        rest = flags.FLAGS(argv)[1:]
    except flags.Error as error:
        raise UserError(f"{str(error).rstrip('.')}: --helpfull lists the flags.") from None
    except (AttributeError, KeyError) as error:
        name = str(error).strip("\"'").splitlines()[0]
        raise UserError(
            f"config has no key {name!r}: the recipe and configs/common.py list the keys."
        ) from None
    if rest:
        raise UserError(f"argument {rest[0]!r} belongs to no flag: flags start with --.")
