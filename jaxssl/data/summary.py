"""One line on the data of a run, for a program to print at its start."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from jaxssl.data.composed import COMPOSED
from jaxssl.data.examples import Source
from jaxssl.data.sources import taken_from, unused
from jaxssl.data.walk import LINKED_IMAGE, LINKED_TWICE, NO_AREA, Counts, merged
from jaxssl.randomness import Split
from jaxssl.words import counted

_NO_FILES = (NO_AREA, LINKED_TWICE, LINKED_IMAGE)
_NOUNS = ("image", "mask", "box", "link", "special file")  # what a reason may begin with
_OF = {Split.TRAIN: "train", Split.VALIDATION: "validation", Split.TEST: "test"}


def describe(splits: Mapping[str, Source], data: ConfigDict) -> str:
    """What a run is trained and judged on, and what lies beside it and is not.

    Such as ``train 30 images, 3 classes; validation 3 (cut from train; val/ unused); passed over 7
    files (3 .avif, 4 .pgm)``.

    Args:
      splits: the sources by the name of their split.
      data: the ``data`` group that they are of; with sources from Python, one whose ``name`` is "".
    """
    idle = [] if not data.name else [f"{name}/" for name in unused(data)]
    parts: list[str] = []
    labelled = next((name for name, source in splits.items() if source.num_classes), None)
    for name, source in splits.items():
        told = f"{name} {counted(len(source), 'image') if not parts else f'{len(source):,}'}"
        if name == labelled and source.num_classes:
            told += f", {counted(source.num_classes, 'class')}"
        notes = _origin(name, source, data)
        if name == "validation" and notes and "test" not in splits and data.name:
            kept = taken_from(data).get("test")
            notes += ["the published validation split is for testing"] * (kept == name)
        if source.left_out:
            notes.append(f"{source.left_out:,} unreadable left out")
        if name == "validation" and idle:
            notes.append(f"{', '.join(idle)} unused")
            idle = []
        parts.append(told + (f" ({'; '.join(notes)})" if notes else ""))
    if idle:
        parts.append(f"{', '.join(idle)} unused")
    return "; ".join([*parts, *_passed_over(splits)])


def _origin(name: str, source: Source, data: ConfigDict) -> list[str]:
    """From which other published split the examples are, if that is so."""
    published = {_OF[Split(number)] for number in set(source.splits) if number in _OF}
    if data.name in COMPOSED or name in ("train", "pretrain") or published == {name}:
        return []
    if published == {"train"}:
        return ["cut from train"]
    return [f"the published {' and '.join(sorted(published))} split"] if published else []


def _passed_over(splits: Mapping[str, Source]) -> list[str]:
    # Sources of one published split have all met the same files.
    of_split = {int(s.splits[0]): s.passed_over for s in splits.values() if len(s)}
    counts = merged(*of_split.values())
    told = []
    files = {key: count for key, count in counts.items() if key not in _NO_FILES}
    if files:
        told.append(f"passed over {counted(sum(files.values()), 'file')} ({_list(files)})")
    others = {key: count for key, count in counts.items() if key not in files}
    return [*told, *([f"left out {_list(others)}"] if others else [])]


def _list(counts: Counts) -> str:
    return ", ".join(_told(key, count) for key, count in counts.items())


def _told(key: str, count: int) -> str:
    noun = next((noun for noun in _NOUNS if key.startswith(noun)), "")
    return f"{counted(count, noun)}{key[len(noun) :]}" if noun else f"{count:,} {key}"
