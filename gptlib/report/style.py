"""The one look of all figures: colours, lines, markers, axes, legends, labels beside points, and how one is saved."""

import itertools
import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

# Okabe & Ito's palette, distinct under every common colour blindness; its yellow is too faint for lines on white. In
# this order the colours that share a line of LINES are far apart for every eye, and in lightness for grey print.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A")
INK, GREY, LIGHT = "#222222", "#6B6B6B", "#E3E7EC"
LINES = ("-", "--", "-.", ":")
MARKS = ("s", "^", "D", "v", "P", "<", "o")
FULL = 6.4  # inches, the width of a page's text
NARROW = 4.6  # inches; below, a figure stands in a column: smaller letters, the legend under the axes
TIED = 12  # points; a name that stands further from its point has a line to it
HALO = [withStroke(linewidth=2.5, foreground="white")]


def styles(variants: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and line of each variant: baseline first, black and solid, the others in order of appearance."""
    names = list(dict.fromkeys(variants))
    found: dict[str, dict[str, Any]] = {"baseline": {"color": INK, "ls": "-"}} if "baseline" in names else {}
    for i, name in enumerate(name for name in names if name != "baseline"):
        found[name] = {"color": PALETTE[i % len(PALETTE)], "ls": LINES[i % len(LINES)]}
    return found


def marks(variants: Iterable[str]) -> dict[str, str]:
    """Marker of each variant, in the order of `styles`; the baseline's is a disc."""
    others = itertools.cycle(MARKS)
    return {name: "o" if name == "baseline" else next(others) for name in styles(variants)}


def new_axes(
    title: str, size: tuple[float, float], figure: Figure | None = None, grid: tuple[int, int] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure of `size` (width, height) in inches, with `grid` (rows, columns) of axes under one title, else a single.

    Redraws into `figure` when given, at the size that it has.
    """
    figure = figure or Figure(figsize=size, layout="constrained", facecolor="white")
    figure.clear()
    narrow = figure.get_figwidth() < NARROW
    all_axes = list(np.atleast_1d(figure.subplots(*(grid or (1, 1)))).flat)
    look: dict[str, Any] = {"fontsize": 9.5 if narrow else 11, "fontweight": "bold", "color": INK}
    room = figure.get_figwidth() - (0.7 if grid is None else 0.1)  # the name of the y axis stands left of a title
    title = wrapped(title, room, 1.08 * look["fontsize"])  # bold letters are wider
    if grid is None:
        all_axes[0].set_title(title, loc="left", **look)
    else:
        figure.suptitle(title, x=0.01, ha="left", **look)
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color=LIGHT, lw=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=letters(figure))
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_size(letters(figure) + 0.5)
    return figure, all_axes


def letters(figure: Figure) -> float:
    """Size of small text in points: of tick labels, legends and names beside points."""
    return 7.5 if figure.get_figwidth() < NARROW else 9


def figure_of(axes: Axes) -> Figure:
    """The figure that the axes stand in."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def legend(figure: Figure, note: str | None = None, below: bool = True, grow: bool = True) -> None:
    """One entry per label, outside the data: under the axes in as many columns as fit, or at the right of wide ones.

    `grow`: a legend below adds its height to the figure. `note` explains marks in a line of its own.
    """
    named = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    entries = {label: handle for handle, label in named}
    width, size = figure.get_figwidth(), letters(figure)
    if not entries and not note:
        return
    lengths = [0.6 * size * len(label) + 4.2 * size for label in entries]  # points
    below = below or width < NARROW or max(lengths, default=0) > 72 * width / 3  # the data need the width more
    columns = _columns(lengths, 72 * width - 12) if below else 1
    note = note and wrapped(note if below else note.replace("; ", ";\n"), width if below else width / 3.2, size - 0.5)
    drawn = figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center" if below else "outside right upper",
        ncols=columns,
        columnspacing=1.2,
        handlelength=2.2,
        title=note,
        alignment="left",
        frameon=False,
        fontsize=size,
    )
    drawn.get_title().set(fontsize=size - 0.5, color=GREY)
    if below and grow:
        rows = math.ceil(len(entries) / columns) + (note.count("\n") + 1 if note else 0)
        figure.set_figheight(figure.get_figheight() + 0.021 * size * rows + 0.08)


def _columns(lengths: Sequence[float], room: float) -> int:
    """In how many columns, filled as evenly as matplotlib fills them, entries of these lengths fit into `room`."""
    for count in range(len(lengths), 1, -1):
        if sum(max(column) for column in np.array_split(lengths, count)) <= room:
            return count
    return 1


def wrapped(text: str, width: float, size: float = 8.5) -> str:
    """`text` in lines that fit `width` inches at `size` points."""
    return "\n".join(textwrap.fill(line, max(8, int(72 * width / (0.56 * size)))) for line in text.split("\n"))


def broken(name: str, letters: int) -> str:
    """A variant's name in lines of about `letters` letters, broken at its underscores, dashes and blanks."""
    lines = [""]
    for piece in name.replace("_", "_\0").replace("-", "-\0").replace(" ", " \0").split("\0"):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > letters:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip(" ") for line in lines)


def note_at(axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **style: Any) -> Annotation:
    """Text beside a point that stays readable where lines cross it."""
    size = letters(figure_of(axes))
    look: dict[str, Any] = {"fontsize": size - 0.5, "color": INK, "path_effects": HALO} | style
    return axes.annotate(text, at, offset, textcoords="offset points", **look)


def name_points(axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], spans: Sequence[Bbox]) -> None:
    """A name beside each point where it covers no other name, point, text or span, tied to it where it stands apart.

    `points` are in data units, `spans` (boxes to keep clear, of intervals) too. Call it last, when axes and legend
    stand: it lays the figure out and places the names one by one, the most crowded first, each at the nearest place
    that is free.
    """
    figure = figure_of(axes)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    pixels, scale = axes.transData.transform(np.asarray(points, dtype=float)), figure.dpi / 72
    taken = [Bbox.from_extents(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in pixels]
    taken += [span.transformed(axes.transData).padded(2 * scale) for span in spans]
    taken += [text.get_window_extent(renderer) for text in axes.texts if text.get_text()]
    alone = [np.sort(np.hypot(*(pixels - pixel).T))[:3].sum() for pixel in pixels]
    for index in np.argsort(alone):
        label = note_at(axes, names[index], points[index], (0, 0), annotation_clip=False)
        size = label.get_window_extent(renderer)
        x, y, box = min(
            ((x, y, _shifted(pixels[index], size, x * scale, y * scale)) for x, y in _PLACES),
            key=lambda place: _cost(place, taken, axes.bbox, scale) + 40 * _nearer(place, pixels, index, scale),
        )
        nearest = np.clip(pixels[index], box.min, box.max)
        offset = (box.min - pixels[index]) / scale
        label.set(x=offset[0], y=offset[1], ha="left", va="bottom")
        label.set_in_layout(False)  # what was placed in a layout must not change it
        taken.append(box.padded(1.5 * scale))
        if math.hypot(x, y) > TIED:
            line: dict[str, Any] = {"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 0, "shrinkB": 3}
            end = (nearest - pixels[index]) / scale
            axes.annotate("", points[index], end, textcoords="offset points", arrowprops=line, zorder=1)


# Offsets in points of the nearest edge of a name from its point: around it first, then further and further out.
_PLACES = [
    (r * math.cos(a), r * math.sin(a))
    for r in (7, 11, 16, 22, 29, 37, 46, 56, 67)
    for a in np.radians([0, 180, 90, 270, 45, 135, 315, 225, 20, 160, 340, 200, 65, 115, 245, 295])
]


def _shifted(pixel: np.ndarray, size: Bbox, x: float, y: float) -> Bbox:
    """A box of `size` whose edge towards the pixel stands (x, y) from it."""
    right, up = (0.0 if abs(v) < 1e-6 else math.copysign(1, v) for v in (round(x, 3), round(y, 3)))
    x0 = pixel[0] + x - size.width * (1 - right) / 2
    y0 = pixel[1] + y - size.height * (1 - up) / 2
    return Bbox.from_bounds(x0, y0, size.width, size.height)


def _cost(place: tuple[float, float, Bbox], taken: Sequence[Bbox], within: Bbox, scale: float) -> float:
    """How far off a place is, and far more where it covers something or leaves the axes."""
    x, y, box = place
    covered = sum(
        max(0.0, min(box.x1, b.x1) - max(box.x0, b.x0)) * max(0.0, min(box.y1, b.y1) - max(box.y0, b.y0)) for b in taken
    )
    outside = max(0, within.x0 - box.x0) + max(0, box.x1 - within.x1)
    outside += max(0, within.y0 - box.y0) + max(0, box.y1 - within.y1)
    return math.hypot(x, y) + (1e3 + covered if covered > 0 else 0) + 1e3 * outside


def _nearer(place: tuple[float, float, Bbox], pixels: np.ndarray, index: int, scale: float) -> bool:
    """Whether a name without a line to its point stands as near to another point."""
    x, y, box = place
    away = np.hypot(*(pixels - np.clip(pixels, box.min, box.max)).T)
    away[index] = math.inf
    return math.hypot(x, y) <= TIED and bool((away < (math.hypot(x, y) + 1) * scale).any())


def save(figure: Figure, path: Path, dpi: int = 200) -> tuple[Path, Path]:
    """Write `path`.png (`dpi` dots per inch) and `path`.svg (text as text); returns both.

    The same figure gives the same bytes: no date is written, and names inside the svg come from a fixed salt.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    png, svg = (path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg"))
    figure.savefig(png, dpi=dpi)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gptlib"}):
        figure.savefig(svg, metadata={"Date": None})
    return png, svg
