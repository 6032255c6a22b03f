"""Sets composed of other sets, by name: MultiDigits, digits on images, binary channels.

The constructions are those of Chen, Luo & Li (arXiv:2011.02803). Where the paper leaves a choice
open the docstring says what was chosen. `COMPOSED` opens them from a config.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxssl.data.examples import (
    ArraySource,
    Batch,
    Rows,
    Source,
    SourceFields,
    array_source,
    shared_fields,
)
from jaxssl.data.multi_digits import (
    ResizedDigits,
    Stream,
    digit_pool,
    multi_digits,
    raw_words,
    single_digit,
)
from jaxssl.errors import UserError
from jaxssl.randomness import Split

MAX_BITS = 64


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DigitOnImage(SourceFields):
    """See `digit_on_image`.

    Attributes:
      base: the images.
      digits: the first K digits.
      digit_classes: number of classes of the target ``digit``.
      resized: the digits at the size of a copy.
      digit_size, seed: as given to `digit_on_image`.
    """

    base: Source
    digits: ArraySource
    digit_classes: int
    digit_size: int
    seed: int
    resized: ResizedDigits

    @property
    def vectorised(self) -> bool:
        """See `Source.vectorised`."""
        return self.base.vectorised

    def take(self, rows: Rows) -> "DigitOnImage":
        """See `Source.take`."""
        return dataclasses.replace(self, base=self.base.take(rows), **self._fields_of(rows))

    def gather(self, rows: Rows, epochs: Rows | None = None) -> Batch:
        """See `Source.gather`."""
        batch = self.base.gather(rows, epochs)
        when, where = np.zeros(len(rows), np.int64), self.positions[rows]
        words = raw_words(self.seed, Stream.DIGIT_ON_IMAGE, self.splits[rows], when, where, 1)
        assigned = (words[:, 0] % np.uint64(len(self.digits))).astype(np.int64)
        copies = self.resized(assigned)[..., None]
        images = batch["image"].copy()
        height, width, _ = self.image_shape
        for top in _corners(height):
            for left in _corners(width):
                bottom, right = top + self.digit_size, left + self.digit_size
                window = images[:, top:bottom, left:right]
                np.maximum(window, copies, out=window)
        digit = self.digits.targets["label"][assigned]
        return {**batch, "image": images, "targets": {**batch["targets"], "digit": digit}}

    def fingerprint(self) -> dict[str, str]:
        """See `Source.fingerprint`."""
        return {**self.base.fingerprint(), "digits": self.digits.fingerprint()["content"]}


def digit_on_image(
    base: Source, digits: Source, *, digit_size: int, unique_digits: int, seed: int
) -> DigitOnImage:
    """Nine copies of one digit on every image (arXiv:2011.02803, DigitOnImageNet, Figs. 5a and 6).

    Corners lie at .15, .45 and .75 of the side, rounded down, on both axes: 33, 100 and 168 of 224.
    An image keeps its digit in every epoch: the digit is a hash of its position, modulo K.

    Args:
      base: images of any channel count, with or without labels.
      digits: labelled, square, one-channel images; read into memory.
      digit_size: side of a copy in pixels; the paper's is 28, on images of 224.
      unique_digits: K, how many digits there are to choose from, the first of ``digits``; the
        paper varies it in pretraining and evaluates with all.
      seed: seed of the hash, an unsigned 32-bit integer.

    Returns:
      ``base`` with images that are the pixel-wise maximum of image and digits in every channel,
      and with the further target ``digit`` int32 [B], the class of the digit.

    Raises:
      UserError: if K is out of range, the copies leave the image, or ``digits`` is not as above.
    """
    pool, classes = digit_pool(digits)
    if not 1 <= unique_digits <= len(pool):
        raise UserError(
            f"--config.data.compose.unique_digits={unique_digits} of {digits.name}: choose from 1 "
            f"to its {len(pool)}."
        )
    height, width, _ = base.image_shape
    largest = min(height - _corners(height)[-1], width - _corners(width)[-1])
    if not 1 <= digit_size <= largest:
        raise UserError(
            f"--config.data.compose.digit_size={digit_size}: nine digits of {digit_size} pixels do "
            f"not fit images of {base.name}, {height}x{width}; choose from 1 to {largest}."
        )
    first = pool.take(np.arange(unique_digits))
    return DigitOnImage(
        **{**shared_fields(base), "name": f"{base.name} with {digits.name}"},
        base=base,
        digits=first,
        digit_classes=classes,
        digit_size=digit_size,
        seed=seed,
        resized=ResizedDigits(first.images, digit_size),
    )


def saturation(*, examples: int, side: int, bits: int, split: Split, seed: int) -> ArraySource:
    """Images that hold k random bits and nothing else (arXiv:2011.02803, B.2).

    Args:
      examples: number of images.
      side: height and width in pixels; 1 carries the same information as the paper's 32.
      bits: k, 1 to 64. Channel b of image i is bit b, the lowest first, of an integer drawn
        uniformly from [0, 2^k) for i, as 0 or 255 over all pixels. The lower bits of an image do
        not depend on k.
      split: which split to call it; other splits have other integers.
      seed: seed of the integers, an unsigned 32-bit integer.

    Returns:
      Images [N, side, side, k] without targets.

    Raises:
      UserError: if a number is out of range.
    """
    if min(examples, side) < 1 or not 1 <= bits <= MAX_BITS:
        raise UserError(
            f"--config.data.compose.examples={examples}, --config.data.compose.side={side} and "
            f"--config.data.compose.bits={bits} make no saturation set: choose at least 1 each, "
            f"and at most {MAX_BITS} bits."
        )
    indices = np.arange(examples)
    zeros = np.zeros_like(indices)
    integers = raw_words(seed, Stream.SATURATION, zeros + split, zeros, indices, 1)
    channels = (integers >> np.arange(bits, dtype=np.uint64)) & np.uint64(1)
    pixels = (channels * np.uint64(255)).astype(np.uint8)[:, None, None]
    # A view: 50,000 images of 32x32 with 20 channels would take 1 GB.
    images = np.broadcast_to(pixels, (examples, side, side, bits))
    return array_source("saturation", split, images, {})


def _corners(side: int) -> list[int]:
    # .15, .45 and .75 of the side, in integers.
    return [side * twentieths // 20 for twentieths in (3, 9, 15)]


OpenBase = Callable[..., Source]
"""From a set's name, and keywords for what else of ``data`` differs, to the split asked for."""


def _open_multi_digits(data: ConfigDict, split: str, open_base: OpenBase) -> Source:
    """``"pretrain"``: many digits; the other splits: single ones."""
    compose = data.compose
    base = open_base(compose.digits)
    if split == "pretrain":
        return multi_digits(
            base,
            canvas=compose.canvas,
            count=compose.count,
            sizes=compose.sizes,
            placement=compose.placement,
            combine=compose.combine,
            seed=compose.seed,
        )
    return single_digit(
        base, canvas=compose.canvas, size=compose.evaluation_size, seed=compose.seed
    )


def _open_digit_on_image(data: ConfigDict, split: str, open_base: OpenBase) -> Source:
    """``"pretrain"``: the first K training digits; the other splits: all the digits there are."""
    compose = data.compose
    digits = open_base(compose.digits, data_dir=compose.digits_dir, train_examples=0, classes="")
    return digit_on_image(
        open_base(compose.base),
        digits,
        digit_size=compose.digit_size,
        unique_digits=compose.unique_digits if split == "pretrain" else len(digits),
        seed=compose.seed,
    )


_SATURATION_SPLITS = {
    "pretrain": Split.TRAIN,
    "train": Split.TRAIN,
    "validation": Split.VALIDATION,
    "test": Split.TEST,
}


def _open_saturation(data: ConfigDict, split: str, open_base: OpenBase) -> Source:
    compose = data.compose
    return saturation(
        examples=compose.examples,
        side=compose.side,
        bits=compose.bits,
        split=_SATURATION_SPLITS[split],
        seed=compose.seed,
    )


class Composition(NamedTuple):
    """A set made of other sets.

    Attributes:
      open: from a config's ``data`` group, a split and what opens other sets to the examples.
      reads: keys of ``data.compose``.
    """

    open: Callable[[ConfigDict, str, OpenBase], Source]
    reads: tuple[str, ...]


COMPOSED = {
    "multi_digits": Composition(
        _open_multi_digits,
        (
            "digits",
            "canvas",
            "count",
            "sizes",
            "placement",
            "combine",
            "evaluation_size",
            "seed",
        ),
    ),
    "digit_on_image": Composition(
        _open_digit_on_image,
        ("base", "digits", "digits_dir", "digit_size", "unique_digits", "seed"),
    ),
    "saturation": Composition(_open_saturation, ("examples", "side", "bits", "seed")),
}
