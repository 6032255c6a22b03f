"""The one exception for what a user can mend, and the choice by name that most often raises it."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """Bad input: the message is one sentence that names the value and the remedy.

    Programs print it without a traceback and exit with status 2.
    """


def choose(what: str, name: str, choices: Mapping[str, T]) -> T:
    """``choices[name]``, where ``what`` is the config key that gave ``name``.

    Raises:
      UserError: if there is no such choice; it lists those there are.
    """
    if name not in choices:
        raise UserError(f"{what}={name!r} is unknown: choose one of {', '.join(sorted(choices))}.")
    return choices[name]
