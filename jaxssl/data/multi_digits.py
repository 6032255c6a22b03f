"""MultiDigits (arXiv:2011.02803): several digits on a canvas, and a single one to be probed on.

Item i of epoch e is a pure function of (seed, e, i), with i the position in the original split, so
that a cut, an order or a batch size changes no item. Every draw is a 64-bit word of `host_bits`
modulo the number of outcomes n: off from uniform by a share of less than n / 2^64.
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image
from jaxtyping import Int, UInt, UInt8
from numpy.lib.stride_tricks import sliding_window_view

from jaxssl.data import digests
from jaxssl.data.examples import ArraySource, Batch, Rows, Source, SourceFields
from jaxssl.data.passes import in_memory
from jaxssl.errors import UserError, choose
from jaxssl.randomness import Purpose, Split, host_bits
from jaxssl.words import counted

MAX_DIGITS = 16


class Stream(enum.IntEnum):
    """``view`` of `host_bits` for each set. Part of every published result: never renumber."""

    MULTI_DIGITS = 0
    SINGLE_DIGIT = 1
    DIGIT_ON_IMAGE = 2
    SATURATION = 3


def raw_words(
    seed: int,
    stream: Stream,
    splits: np.ndarray,
    epochs: np.ndarray,
    indices: np.ndarray,
    count: int,
) -> UInt[np.ndarray, "b count"]:
    """The first ``count`` raw words of `host_bits` for each item.

    To make a generator costs five times as much as to move one, so one a split is moved.
    """
    words = np.empty((len(indices), count), np.uint64)
    for split in np.unique(splits):
        bits = host_bits(seed, Purpose.COMPOSITION, Split(split), 0, 0, stream)
        state = bits.state
        rows = np.flatnonzero(splits == split)
        items = zip(rows, epochs[rows].tolist(), indices[rows].tolist(), strict=True)
        for row, epoch, index in items:
            state["state"]["counter"][2:] = index, epoch
            bits.state = state
            words[row] = bits.random_raw(count)
    return words


class ResizedDigits:
    """One-channel images at one side length, resized when first asked for and then kept.

    Bilinear with antialiasing (Pillow). A size other than the images' own takes N * size^2 bytes:
    384 MB for MNIST's 60,000 at 80 pixels. Threads may share it: two that meet write the same
    pixels, and a digit counts as ready only after its pixels are.
    """

    def __init__(self, images: UInt8[np.ndarray, "n s s 1"], size: int) -> None:
        self._originals = images[..., 0]
        self._size = size
        native = images.shape[1] == size
        self._resized = images[..., 0] if native else np.empty((len(images), size, size), np.uint8)
        self._ready = np.full(len(images), native)

    def __call__(self, rows: Rows) -> UInt8[np.ndarray, "b size size"]:
        """The digits of these rows."""
        missing = np.unique(rows[~self._ready[rows]])
        for row in missing:
            image = PIL.Image.fromarray(self._originals[row])
            side = (self._size, self._size)
            self._resized[row] = np.asarray(image.resize(side, PIL.Image.Resampling.BILINEAR))
        self._ready[missing] = True
        return self._resized[rows]


def _random_corners(
    words: UInt[np.ndarray, "b count"], sizes: Sequence[int], canvas: int
) -> Int[np.ndarray, "b count 2"]:
    """Top-left corners (y, x), uniform over all at which a digit lies wholly on the canvas."""
    spans = np.array([canvas - size + 1 for size in sizes], np.uint64)
    return np.stack(np.divmod(words % spans**2, spans), -1).astype(np.int64)


def _grid_corners(
    words: UInt[np.ndarray, "b count"], sizes: Sequence[int], canvas: int
) -> Int[np.ndarray, "b count 2"]:
    """Corners of distinct cells: slot k takes one of the cells that slots 0 .. k-1 left."""
    side = canvas // sizes[0]
    cells = np.tile(np.arange(side * side), (len(words), 1))
    items = np.arange(len(words))
    for slot in range(words.shape[1]):
        chosen = slot + (words[:, slot] % np.uint64(side * side - slot)).astype(np.int64)
        cell = cells[items, chosen]
        cells[items, chosen] = cells[:, slot]
        cells[:, slot] = cell
    return np.stack(np.divmod(cells[:, : words.shape[1]], side), -1) * sizes[0]


def _clipped_sum(canvas: np.ndarray, digits: np.ndarray) -> np.ndarray:
    # Clipped before the addition, so that nothing wraps around and nothing has to be widened.
    return np.minimum(canvas, 255 - digits) + digits


PLACEMENTS: dict[str, Callable[..., np.ndarray]] = {
    "random": _random_corners,
    "grid": _grid_corners,
}
COMBINATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "max": np.maximum,
    "sum": _clipped_sum,
}


def _compose(
    slots: Sequence[UInt8[np.ndarray, "b ..."]],
    corners: Int[np.ndarray, "b count 2"],
    canvas: int,
    combination: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> UInt8[np.ndarray, "b canvas canvas 1"]:
    """Puts one digit a slot, [B,s,s] each, on black canvases, slot by slot."""
    images = np.zeros((len(corners), canvas, canvas), np.uint8)
    items = np.arange(len(corners))
    for slot, digits in enumerate(slots):
        windows = sliding_window_view(images, digits.shape[1:], axis=(1, 2), writeable=True)
        place = (items, corners[:, slot, 0], corners[:, slot, 1])
        windows[place] = combination(windows[place], digits)
    return images[..., None]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MultiDigits(SourceFields):
    """See `multi_digits`.

    Attributes:
      digits: what digits are drawn from.
      digit_classes: K, the number of their classes.
      sizes: side of each slot's digit in pixels.
      resized: the digits at each slot's size; slots of one size share it.
      canvas, placement, combine, seed: as given to `multi_digits`.
    """

    digits: ArraySource
    digit_classes: int
    canvas: int
    sizes: tuple[int, ...]
    placement: str
    combine: str
    seed: int
    resized: tuple[ResizedDigits, ...]
    vectorised: bool = dataclasses.field(default=True, init=False)

    def take(self, rows: Rows) -> "MultiDigits":
        """See `Source.take`; the items stay what they were, drawn from all the digits."""
        return dataclasses.replace(self, positions=self.positions[rows], splits=self.splits[rows])

    def gather(self, rows: Rows, epochs: Rows | None = None) -> Batch:
        """See `Source.gather`.

        Slot k uses words 2k (which digit) and 2k+1 (where), so that a run with fewer digits sees
        the first of those that a run with more does.
        """
        count = len(self.sizes)
        when = np.zeros(len(rows), np.int64) if epochs is None else epochs
        where = self.positions[rows]
        words = raw_words(self.seed, Stream.MULTI_DIGITS, self.splits[rows], when, where, 2 * count)
        drawn = (words[:, 0::2] % np.uint64(len(self.digits))).astype(np.int64)
        corners = PLACEMENTS[self.placement](words[:, 1::2], self.sizes, self.canvas)
        digits = [resized(drawn[:, slot]) for slot, resized in enumerate(self.resized)]
        images = _compose(digits, corners, self.canvas, COMBINATIONS[self.combine])
        slots = self.digits.targets["label"][drawn]
        presence = np.zeros((len(rows), self.digit_classes), np.int32)
        np.put_along_axis(presence, slots, 1, axis=1)
        sizes = np.full((len(rows), 2), self.canvas, np.int32)
        targets = {"presence": presence, "slots": slots}
        if count == 1:
            targets["label"] = slots[:, 0]
        return self._batch(rows, epochs, images, sizes, targets)

    def fingerprint(self) -> dict[str, str]:
        """See `Source.fingerprint`; of the digits."""
        # A run of one digit that began before it had a label goes on: no number of classes.
        classes = digests.of_json([None, self.class_names])
        return {**self.digits.fingerprint(), "classes": classes}


def multi_digits(
    base: Source,
    *,
    canvas: int,
    count: int,
    sizes: Sequence[int],
    placement: str,
    combine: str,
    seed: int,
) -> MultiDigits:
    """Several digits on one canvas (arXiv:2011.02803, MultiDigits, Figs. 2 and 5b).

    Each epoch composes every item anew. Digits are drawn with replacement from all of ``base``,
    each slot by itself. The paper's canvas is 112 pixels for digits of 28.

    Args:
      base: labelled, square, one-channel images; read into memory.
      canvas: side of the image in pixels.
      count: number of digits S, 1 to 16.
      sizes: sides of the digits in pixels, one a slot, or a single one for all slots.
      placement: ``"random"``: any integer corner at which the digit lies wholly on the canvas,
        each digit by itself, so that digits may overlap; ``"grid"``: distinct cells, as large as a
        digit, of a grid that fills the canvas.
      combine: ``"max"`` of the pixels, or ``"sum"`` clipped at 255; the paper says "addition",
        the authors' code for digits on images takes the maximum.
      seed: seed of the composition, an unsigned 32-bit integer.

    Returns:
      As many items as ``base`` has, under its positions. Targets: ``presence`` int32 [B,K], 1 for
      each class that is on the canvas; ``slots`` int32 [B,S], the class in each slot; of one digit
      also ``label`` int32 [B]. Several have none, and `num_classes` None; K is ``digit_classes``.

    Raises:
      UserError: if the digits do not fit, or ``base`` is not as above.
    """
    digits, classes = digit_pool(base)
    choose("data.compose.placement", placement, PLACEMENTS)
    choose("data.compose.combine", combine, COMBINATIONS)
    if not 1 <= count <= MAX_DIGITS:
        raise UserError(
            f"--config.data.compose.count={count} must be from 1 to {MAX_DIGITS} digits."
        )
    if len(sizes) not in (1, count):
        raise UserError(
            f"--config.data.compose.sizes={tuple(sizes)} for --config.data.compose.count={count} "
            "digits: give one size a digit, or one for all."
        )
    for size in sizes:
        _check_size("sizes", size, canvas)
    if placement == "grid":
        _check_grid(canvas, sizes, count)
    resized = {size: ResizedDigits(digits.images, size) for size in sizes}
    slots = tuple(sizes) * (count // len(sizes))
    return MultiDigits(
        name=f"{count} of {base.name} on {canvas}x{canvas}",
        num_classes=classes if count == 1 else None,
        class_names=base.class_names,
        original_size=base.original_size,
        image_shape=(canvas, canvas, 1),
        positions=base.positions,
        splits=base.splits,
        passed_over=base.passed_over,
        left_out=base.left_out,
        digits=digits,
        digit_classes=classes,
        canvas=canvas,
        sizes=slots,
        placement=placement,
        combine=combine,
        seed=seed,
        resized=tuple(resized[size] for size in slots),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SingleDigit(SourceFields):
    """See `single_digit`.

    Attributes:
      digits: the digit of each row.
      resized: the digits at the size asked for.
      canvas, size, seed: as given to `single_digit`.
    """

    digits: ArraySource
    canvas: int
    size: int
    seed: int
    resized: ResizedDigits
    vectorised: bool = dataclasses.field(default=True, init=False)

    def take(self, rows: Rows) -> "SingleDigit":
        """See `Source.take`."""
        kept = self.digits.take(rows)
        digits = ResizedDigits(kept.images, self.size)
        return dataclasses.replace(
            self, positions=kept.positions, splits=kept.splits, digits=kept, resized=digits
        )

    def gather(self, rows: Rows, epochs: Rows | None = None) -> Batch:
        """See `Source.gather`; the same in every epoch."""
        when, where = np.zeros(len(rows), np.int64), self.positions[rows]
        words = raw_words(self.seed, Stream.SINGLE_DIGIT, self.splits[rows], when, where, 1)
        corners = _random_corners(words, (self.size,), self.canvas)
        images = _compose([self.resized(rows)], corners, self.canvas, np.maximum)
        sizes = np.full((len(rows), 2), self.canvas, np.int32)
        labels = self.digits.targets["label"][rows]
        return self._batch(rows, epochs, images, sizes, {"label": labels})

    def fingerprint(self) -> dict[str, str]:
        """See `Source.fingerprint`; of the digits."""
        return self.digits.fingerprint()


def single_digit(base: Source, *, canvas: int, size: int, seed: int) -> SingleDigit:
    """What encoders of `multi_digits` are probed on: each digit of a set, alone on a canvas.

    Args:
      base: labelled, square, one-channel images; read into memory.
      canvas: side of the image in pixels.
      size: side of the digit in pixels.
      seed: seed of the positions, an unsigned 32-bit integer.

    Returns:
      The items of ``base`` with their ``label``, digit i at a corner drawn uniformly once for i,
      whatever the epoch.

    Raises:
      UserError: if the digits do not fit, or ``base`` is not as above.
    """
    digits, classes = digit_pool(base)
    _check_size("evaluation_size", size, canvas)
    return SingleDigit(
        name=f"{base.name} on {canvas}x{canvas}",
        num_classes=classes,
        class_names=base.class_names,
        original_size=base.original_size,
        image_shape=(canvas, canvas, 1),
        positions=base.positions,
        splits=base.splits,
        passed_over=base.passed_over,
        left_out=base.left_out,
        digits=digits,
        canvas=canvas,
        size=size,
        seed=seed,
        resized=ResizedDigits(digits.images, size),
    )


def digit_pool(base: Source) -> tuple[ArraySource, int]:
    """A set of digits in memory, and its number of classes.

    Raises:
      UserError: if it is empty, has no labels, or images that are no square of one channel.
    """
    height, width, channels = base.image_shape
    if channels != 1 or height != width:
        raise UserError(
            f"images of {base.name} are {height}x{width} with {counted(channels, 'channel')}: "
            "--config.data.compose.digits must be square with 1 channel, as those of mnist are."
        )
    if base.num_classes is None:
        raise UserError(
            f"{base.name} has no labels: choose a labelled set by --config.data.compose.digits."
        )
    if len(base) == 0:
        raise UserError(
            f"{base.name} has no examples: choose another set by --config.data.compose.digits."
        )
    return base if isinstance(base, ArraySource) else in_memory(base), base.num_classes


def _check_size(key: str, size: int, canvas: int) -> None:
    if not 1 <= size <= canvas:
        raise UserError(
            f"--config.data.compose.{key}: digits of size={size} do not fit a canvas of {canvas}; "
            f"choose from 1 to {canvas}."
        )


def _check_grid(canvas: int, sizes: Sequence[int], count: int) -> None:
    if len(set(sizes)) > 1 or canvas % sizes[0]:
        raise UserError(
            "--config.data.compose.placement=grid cannot divide a canvas of "
            f"{counted(canvas, 'pixel')} into cells of --config.data.compose.sizes={tuple(sizes)}: "
            "give one size that divides it, or use --config.data.compose.placement=random."
        )
    cells = (canvas // sizes[0]) ** 2
    if count > cells:
        raise UserError(
            f"--config.data.compose.count={count} is more than the {counted(cells, 'cell')} of "
            f"{counted(sizes[0], 'pixel')} a side that a canvas of {canvas} has: lower it, or "
            "--config.data.compose.sizes."
        )
