"""The look of the figures: colours that everyone can tell apart, names beside points, files that are the same again."""

import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from gptlib.report import style

# Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
# Ottosson 2020: from linear sRGB to the responses of the cones, and from their cube roots to OKLab.
TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def oklab(colour: str, vision: str = "normal") -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return TO_LAB @ np.cbrt(TO_LMS @ np.clip(VISIONS[vision] @ linear, 0, 1))


NAMES = ["baseline", *(f"v{i}" for i in range(7))]


def test_oklab_is_right_where_it_is_known() -> None:
    assert oklab("white") == pytest.approx([1, 0, 0], abs=1e-5)
    assert oklab("red") == pytest.approx([0.628, 0.225, 0.126], abs=1e-3)


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_that_share_a_line_are_far_apart_for_every_eye(vision: str) -> None:
    looks = style.styles(NAMES)
    pairs = [(a, b) for a, b in itertools.combinations(looks, 2) if looks[a]["ls"] == looks[b]["ls"]]
    assert len(pairs) == 5
    apart = [np.linalg.norm(oklab(looks[a]["color"], vision) - oklab(looks[b]["color"], vision)) for a, b in pairs]
    assert min(apart) > 0.13  # one in a hundred of it can just be told side by side


def test_in_grey_print_lines_differ_in_kind_or_in_lightness() -> None:
    looks = style.styles(NAMES)
    for a, b in itertools.combinations(looks, 2):
        grey = abs(oklab(looks[a]["color"])[0] - oklab(looks[b]["color"])[0])
        assert looks[a]["ls"] != looks[b]["ls"] or grey > 0.1, (a, b)
    markers = style.marks(NAMES)
    assert len({markers[name] for name in NAMES if name != "baseline"}) == 7


def test_the_baseline_comes_first_and_no_two_of_many_look_alike() -> None:
    looks = style.styles(["a", "baseline", "b", "a"])
    assert list(looks) == ["baseline", "a", "b"] and looks["baseline"] == {"color": style.INK, "ls": "-"}
    many = style.styles(map(str, range(28)))
    assert len({tuple(look.values()) for look in many.values()}) == 28


# --- names beside points ----------------------------------------------------------------------------------------


def named(width: float, points: list[tuple[float, float]], names: list[str]) -> tuple[Figure, list[Bbox]]:
    figure, (axes,) = style.new_axes("Points", (width, 3.0))
    axes.plot(*zip(*points, strict=True), "o")
    axes.margins(0.2)
    style.name_points(axes, points, names, [Bbox.from_extents(0, -0.5, 0, 0.5)])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return figure, [text.get_window_extent(canvas.get_renderer()) for text in axes.texts if text.get_text()]


@pytest.mark.parametrize("width", [3.2, 6.4])
@pytest.mark.parametrize("spread", [1.0, 0.15, 0.0])
def test_names_cover_no_point_no_interval_and_no_other_name(width: float, spread: float) -> None:
    random = np.random.default_rng(3)
    points = [(float(x), float(y)) for x, y in random.normal(size=(8, 2)) * [spread, 1]]
    figure, boxes = named(width, [*points, (0, -2), (0, 2)], [f"variant_{i}" for i in range(8)] + ["low", "high"])
    assert len(boxes) == 10
    axes = figure.axes[0]
    pixels = axes.transData.transform(points)
    bar = Bbox(axes.transData.transform([(0, -0.5), (0, 0.5)])).padded(0.5)
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(*pixel) for pixel in pixels) and not box.overlaps(bar)
        assert axes.bbox.x0 - 1 <= box.x0 and box.x1 <= axes.bbox.x1 + 1


def test_a_name_that_stands_apart_has_a_line_to_its_point() -> None:
    crowd = [(0.0, 0.001 * i) for i in range(6)] + [(0.0, 1.0)]
    figure, _ = named(6.4, crowd, [f"variant_{i}" for i in range(7)])
    tied = {tuple(text.xy) for text in figure.axes[0].texts if not text.get_text()}  # type: ignore[attr-defined]
    assert len(tied) >= 3 and (0.0, 1.0) not in tied


# --- legends and text -------------------------------------------------------------------------------------------


def test_a_legend_goes_under_the_axes_where_the_data_need_the_width() -> None:
    for width, name, below in (
        (7.6, "gelu", False),
        (7.6, "a_name_that_takes_half_of_the_width", True),
        (3.2, "gelu", True),
    ):
        figure, (axes,) = style.new_axes("Legend", (width, 3.0))
        axes.plot([1, 2], label=name)
        style.legend(figure, below=False)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box = figure.legends[0].get_window_extent(canvas.get_renderer())
        assert (box.y1 <= axes.bbox.y0) == below and (box.x0 >= axes.bbox.x1) != below, (width, name)
        assert (figure.get_figheight() > 3) == below


@pytest.mark.parametrize("width", [3.2, 6.4])
def test_no_legend_is_wider_than_its_figure(width: float) -> None:
    names = [
        "gelu",
        "no_qk_norm",
        "no_value_embeds",
        "learned_positions",
        "adamw_everywhere_tuned",
        "deep",
        "relu2_glu",
    ]
    for count in range(1, len(names) + 1):
        figure, (axes,) = style.new_axes("Legend", (width, 3.0))
        for name in names[-count:]:
            axes.plot([1, 2], "o-", label=name)
        style.legend(figure)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box = figure.legends[0].get_window_extent(canvas.get_renderer())
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, count


def test_names_are_broken_where_they_have_a_joint() -> None:
    assert style.broken("adamw_everywhere_tuned", 16) == "adamw_\neverywhere_tuned"
    assert style.broken("no qk-norm", 5) == "no\nqk-\nnorm"
    assert style.broken("unbreakable", 4) == "unbreakable"


# --- files ------------------------------------------------------------------------------------------------------


def drawn() -> Figure:
    figure, (axes,) = style.new_axes("Réproducible − 1", (3.2, 2.4))
    axes.fill_between([0, 1], [0, 1], [1, 2], label="band")
    axes.plot([0, 1], [0, 1], clip_on=True, label="a line")
    style.legend(figure)
    return figure


def test_a_figure_is_written_twice_with_the_same_bytes(tmp_path: Path) -> None:
    first = style.save(drawn(), tmp_path / "new" / "lr-0.3")
    again = style.save(drawn(), tmp_path / "again")
    assert [path.name for path in first] == ["lr-0.3.png", "lr-0.3.svg"]
    assert [a.read_bytes() for a in first] == [b.read_bytes() for b in again]


def test_svg_has_its_text_as_text_and_png_its_resolution(tmp_path: Path) -> None:
    png, svg = style.save(drawn(), tmp_path / "figure", dpi=100)
    found = {"".join(e.itertext()).strip() for e in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {"Réproducible − 1", "a line", "band"} <= found
    with Image.open(png) as picture:
        assert picture.width == 320
