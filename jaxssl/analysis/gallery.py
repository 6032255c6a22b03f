"""Galleries: images with what is known of them, in rows and columns, as a PNG.

An image is float [H, W, C] in [0, 1]; a box is (y0, x0, y1, x1) in its pixels, edges and not
centres. Nothing depends on the user's matplotlib settings, on the time or on global state: the same
panels give the same bytes.
"""

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import matplotlib.style
import numpy as np
from jaxtyping import Float, Integer
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# In the order of the views; seven for the colour-blind (Okabe & Ito, 2008), then three more.
VIEW_COLORS = (
    *("#d55e00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#0072b2", "#e69f00"),
    *("#9467bd", "#8c564b", "#17becf"),
)
NO_CLASS = 255

# Lengths are inches. On a page 900 pixels wide, letters are 11 pixels high.
DPI = 200
WIDTH = 9.0
LARGEST_PANEL = 1.9
GAP = 0.07
STRIP = 0.09  # height of the bits, and the gap above them
STRIP_GAP = 0.02
FONT = 8.0  # points, 1/72 inch
LINE = 1.25 * FONT / 72
LETTER = 0.56 * FONT / 72  # a usual width


@dataclass(frozen=True)
class Outline:
    """A box to draw on an image.

    Attributes:
      box: (y0, x0, y1, x1), pixels of the image.
      color: of the line.
      dashed: whether it is, so that a line below it is seen.
    """

    box: tuple[float, float, float, float]
    color: str
    dashed: bool = False


@dataclass(frozen=True, eq=False)
class Panel:
    """One image and what is drawn on it and written below it.

    Attributes:
      image: [H, W, C], float in [0, 1]: gray for C = 1, colour for C = 3, otherwise C gray planes.
      caption: below it, wrapped to its width.
      outlines: boxes on it.
      mask: class of each pixel, laid over it; 255 is left clear.
      bits: a strip of black and white squares below it, the first at the left.
      frame: colour of its border; None: none.
      scale: its side, as a share of that of a whole panel.
    """

    image: Float[np.ndarray, "h w c"]
    caption: str = ""
    outlines: tuple[Outline, ...] = ()
    mask: Integer[np.ndarray, "h w"] | None = None
    bits: Float[np.ndarray, " k"] | None = None
    frame: str | None = None
    scale: float = 1.0


def draw(
    rows: Sequence[Sequence[Panel]],
    *,
    title: str,
    column_names: Sequence[str],
    row_names: Sequence[str],
) -> Figure:
    """A figure of as many panels as are given, at most `WIDTH` wide.

    A column is as wide as its largest ``Panel.scale`` asks for.

    Args:
      rows: panels, the same number in each row.
      title: above all.
      column_names: one above each column.
      row_names: one at the left of each row, upright.
    """
    margin = LINE + GAP
    scales = [max(panel.scale for panel in column) for column in zip(*rows, strict=True)]
    unit = min((WIDTH - margin - GAP * len(scales)) / sum(scales), LARGEST_PANEL)
    widths = [unit * scale for scale in scales]
    lefts = [margin + sum(widths[:k]) + GAP * k for k in range(len(widths))]
    width = lefts[-1] + widths[-1] + GAP

    title_lines = _wrapped(title, 0.9 * width)
    heads = [_wrapped(name, own) for name, own in zip(column_names, widths, strict=True)]
    captions = [
        [_wrapped(p.caption, own) for p, own in zip(row, widths, strict=True)] for row in rows
    ]
    tall = [max(_height(panel, unit) for panel in row) for row in rows]
    below = [LINE * max(map(len, lines)) + 2 * GAP for lines in captions]
    top = 3 * GAP + LINE * (len(title_lines) + max(map(len, heads)))
    height = top + sum(tall) + sum(below)

    with mpl.style.context("default"):
        figure = Figure(figsize=(width, height), dpi=DPI)
        _write(figure, GAP, height - GAP, title_lines, weight="bold")
        y = height - top
        for left, lines in zip(lefts, heads, strict=True):
            _write(figure, left, y + LINE * len(lines) + GAP / 2, lines, weight="bold")
        for k, row in enumerate(rows):
            _write_upright(figure, GAP, y, row_names[k])
            for panel, left, lines in zip(row, lefts, captions[k], strict=True):
                bottom = y - _height(panel, unit)
                _draw_panel(figure, panel, left, bottom, unit)
                _write(figure, left, bottom - GAP / 3, lines)
            y -= tall[k] + below[k]
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, without a date or a version in it."""
    buffer = io.BytesIO()
    with mpl.style.context("default"):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _write(
    figure: Figure, left: float, top: float, lines: Sequence[str], weight: str = "normal"
) -> None:
    """Lines below each other from a place in inches, each on its own baseline."""
    across, up = figure.get_size_inches()
    for k, line in enumerate(lines):
        baseline = top - LINE * (k + 0.8)
        figure.text(left / across, baseline / up, line, fontsize=FONT, weight=weight)


def _write_upright(figure: Figure, left: float, top: float, line: str) -> None:
    """A line from below to above that ends at a place in inches."""
    across, up = figure.get_size_inches()
    figure.text(left / across, top / up, line, fontsize=FONT, va="top", rotation="vertical")


def _wrapped(text: str, width: float) -> list[str]:
    """Lines that fit a width in inches."""
    letters = max(int(width / LETTER), 4)
    return [line for part in text.splitlines() for line in textwrap.wrap(part, letters)]


def _plane_corners(panel: Panel) -> list[tuple[float, float]]:
    """Where the gray planes of an image of many channels lie, (y, x) in pixels; (0, 0) first."""
    height, width, channels = panel.image.shape
    if channels in (1, 3):
        return [(0.0, 0.0)]
    side = math.ceil(math.sqrt(channels))
    return [(1.1 * height * (k // side), 1.1 * width * (k % side)) for k in range(channels)]


def _extent(panel: Panel) -> tuple[float, float]:
    """Height and width of a panel's image in pixels, all planes together."""
    corners = np.array(_plane_corners(panel))
    height, width = corners.max(axis=0) + panel.image.shape[:2]
    return float(height), float(width)


def _height(panel: Panel, unit: float) -> float:
    """Height in inches, where a whole panel is ``unit`` inches wide."""
    height, width = _extent(panel)
    strip = 0.0 if panel.bits is None else STRIP + STRIP_GAP
    return unit * panel.scale * height / width + strip


def _draw_panel(figure: Figure, panel: Panel, left: float, bottom: float, unit: float) -> None:
    height, width = _extent(panel)
    size = unit * panel.scale
    if panel.bits is not None:
        _draw_bits(_add_axes(figure, left, bottom, size, STRIP), panel.bits)
        bottom += STRIP + STRIP_GAP
    axes = _add_axes(figure, left, bottom, size, size * height / width)
    axes.set_facecolor("#999999")  # between planes, some of which are white
    channels = panel.image.shape[2]
    for k, (y, x) in enumerate(_plane_corners(panel)):
        plane = panel.image if channels == 3 else panel.image[..., k]
        _draw_plane(axes, plane, panel, y, x)
    axes.set(xlim=(0, width), ylim=(height, 0))
    if panel.frame is not None:
        _frame(axes, panel.frame, 2.0)


def _draw_plane(axes: Axes, plane: np.ndarray, panel: Panel, y: float, x: float) -> None:
    """Image, mask and boxes with their corner at (y, x), pixels."""
    height, width = plane.shape[:2]
    where = (x, x + width, y + height, y)
    axes.imshow(plane, cmap="gray", vmin=0, vmax=1, extent=where, aspect="auto")
    if panel.mask is not None:
        overlay = mpl.colormaps["tab20"](panel.mask.astype(np.int64) % 20)
        overlay[..., 3] = np.where(panel.mask == NO_CLASS, 0.0, 0.55)
        axes.imshow(overlay, extent=where, aspect="auto", interpolation="nearest")
    for outline in panel.outlines:
        y0, x0, y1, x1 = outline.box
        halo = patheffects.withStroke(linewidth=2.4, foreground="black", alpha=0.7)
        axes.add_patch(
            Rectangle(
                (x + x0, y + y0),
                x1 - x0,
                y1 - y0,
                fill=False,
                edgecolor=outline.color,
                linewidth=1.4,
                linestyle="--" if outline.dashed else "-",
                path_effects=[halo, patheffects.Normal()],
                clip_on=False,
            )
        )


def _draw_bits(axes: Axes, bits: Float[np.ndarray, " k"]) -> None:
    axes.imshow(bits[None], cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.vlines(np.arange(1, len(bits)) - 0.5, -0.5, 0.5, colors="#888888", linewidth=0.5)
    _frame(axes, "#888888", 0.5)


def _add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes without marks at a place in inches."""
    across, up = figure.get_size_inches()
    axes = figure.add_axes((left / across, bottom / up, width / across, height / up))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def _frame(axes: Axes, color: str, width: float) -> None:
    axes.spines[:].set(visible=True, color=color, linewidth=width)
