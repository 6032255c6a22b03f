"""What values a number of a config may have; methods, encoders and policies say it of theirs."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxssl.errors import UserError


class Range(NamedTuple):
    """An interval of finite numbers.

    Attributes:
      low: the lower end.
      high: the upper end, included.
      low_included: whether ``low`` itself is allowed.
    """

    low: float | int
    high: float | int
    low_included: bool

    def __str__(self) -> str:
        """The end of a sentence: "must be ..."."""
        if self.high == math.inf:
            return f"{'at least' if self.low_included else 'above'} {self.low:g}"
        if self.low_included and self.high > 1e30:
            return f"at least {self.low:g} and at most {self.high:g}"
        if self.low_included:
            return f"from {self.low:g} to {self.high:g}"
        return f"above {self.low:g} and at most {self.high:g}"

    def holds(self, value: Any) -> bool:
        """Whether the value is a finite number (no bool) and inside."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        above = value >= self.low if self.low_included else value > self.low
        return math.isfinite(value) and above and value <= self.high


# What float32 holds as a normal number: smaller ones become 0 on the device, larger ones infinite.
POSITIVE = Range(1.2e-38, 3.4e38, low_included=True)
NON_NEGATIVE = Range(0.0, 3.4e38, low_included=True)
ANY = Range(-3.4e38, 3.4e38, low_included=True)
# Beyond these the logits of a softmax of similarities are not finite, or all alike.
TEMPERATURE = Range(1e-6, 1e6, low_included=True)
MOMENTUM = Range(0.0, 0.9999999, low_included=True)
SHARE = Range(0.0, 1.0, low_included=True)
AT_LEAST_ONE = Range(1, math.inf, low_included=True)
AT_LEAST_TWO = Range(2, math.inf, low_included=True)

Ranges = Mapping[str, Range]

WITHOUT_END = ("constant", "switch")  # shapes of a schedule that never reach its ``end``


def is_schedule(leaf: Any) -> bool:
    """Whether a leaf of ``config.hyper`` is a schedule (`jaxssl.training.schedules`), no number."""
    return isinstance(leaf, Mapping | ConfigDict)


def values_of(leaf: Any) -> dict[str, Any]:
    """The values that a leaf of ``config.hyper`` takes: ``""`` a number's, or a schedule's ends."""
    if not is_schedule(leaf):
        return {"": leaf}
    read = ["value"]
    read += ["warmup_from"] if leaf["warmup_epochs"] > 0 else []
    read += ["end"] if leaf["shape"] not in WITHOUT_END else []
    return {field: leaf[field] for field in read}


def check_numbers(flag: str, values: Any, allowed: Range, count: int | None = None) -> None:
    """Refuses a tuple that holds something other than numbers in a range.

    Args:
      flag: what to call it.
      values: the tuple.
      allowed: for each number.
      count: how many there must be; None: any number.

    Raises:
      UserError: naming it.
    """
    fits = isinstance(values, tuple | list) and all(allowed.holds(value) for value in values)
    if not fits or (count is not None and len(values) != count):
        many = "numbers" if count is None else f"{count} numbers"
        raise UserError(f"{flag}={values!r} must be a tuple of {many}, each {allowed}.")


def check_ranges(group: str, values: Mapping[str, Any] | ConfigDict, ranges: Ranges) -> None:
    """Refuses values that are out of range.

    Args:
      group: where the values stand in the config, such as ``"method"``, or among a program's own
        settings, such as ``"--probe.sgd"``.
      values: by name; those without a range are not looked at.
      ranges: by name; every one of them has a value.

    Raises:
      UserError: naming the first value, its flag and its range.
    """
    place = group if group.startswith("--") else f"--config.{group}".rstrip(".")
    for name, allowed in ranges.items():
        if name not in values:
            raise UserError(
                f"{place.removeprefix('--')} has no {name!r}, which is read there: take a recipe "
                "that has it."
            )
        if not allowed.holds(values[name]):
            raise UserError(f"{place}.{name}={values[name]} must be {allowed}.")
