"""What the figures show, read back from their artists; looks are for eyes."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gptlib.data.dataset import Dataset
from gptlib.data.tokenizers import Efficiency
from gptlib.fields import RunConfig
from gptlib.matching import Match
from gptlib.report import plots, style
from gptlib.schedules import lr_multiplier
from gptlib.stats.compare import Comparison, two_sample
from gptlib.study.arms import Arms, GridPoint


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")))  # type: ignore[attr-defined]


def test_differences_are_sorted_and_carry_verdict_and_margin() -> None:
    base = np.array([2.30, 2.31, 2.29, 2.305])
    shifts = {"worst": 0.2, "same": 0.001, "best": -0.1}
    noise = np.array([0.002, -0.001, 0.001, -0.002])
    compared = {name: two_sample(base, base + shift + noise, margin=0.05) for name, shift in shifts.items()}
    compared["single"] = two_sample(base[:1], base[1:2] + 0.02)
    figure = plots.differences(compared)
    figure.draw_without_rendering()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["worst", "single", "same", "best"]  # from the bottom up
    verdicts = {t.get_text(): to_hex(str(t.get_color())) for t in figure.axes[0].texts}
    assert {"better", "worse", "equivalent within 0.05", "undecided"} <= set(verdicts)
    assert len({verdicts[v] for v in ("better", "worse", "equivalent within 0.05", "undecided")}) == 4
    bands = [(bar.get_x(), bar.get_width()) for bar in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert bands == [pytest.approx((-0.05, 0.1))] * 3
    low, high = figure.axes[0].get_xlim()
    assert low < min(c.low for c in compared.values() if c.low is not None)
    assert high > max(c.high for c in compared.values() if c.high is not None)


def test_no_text_of_the_forest_plot_leaves_the_figure_or_overlaps() -> None:
    one = Comparison("welch", 3, 3, -0.1234, -12.34, -0.2, -0.05, 0.05, 0.01, 0.02, 0.5, 0.1, None, "worse", "")
    figure = plots.differences({"a_variant_with_a_long_name": one, "b": two_sample([1.0, 2], [1.1, 2.2], margin=99)})
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize("width, verdict", [(3.2, "equivalent"), (6.4, "equivalent within 0.5")])
def test_names_and_verdicts_stand_above_the_intervals_of_a_narrow_forest(width: float, verdict: str) -> None:
    compared = {"a_variant_with_a_long_name": two_sample([2.0, 2.1, 2.05], [2.01, 2.08, 2.06], margin=0.5)}
    compared["lost"] = Comparison("welch", 3, 0, None, None, None, None, 0.05, None, 0.0, None, None, None, "worse", "")
    figure = plots.differences(compared, width=width)
    figure.draw_without_rendering()
    said = {text.get_text() for text in figure.axes[0].texts}
    assert {"a_variant_with_a_long_name", "lost"} < said and any(t.endswith(f"  {verdict}") for t in said)
    assert any("no finished runs" in text for text in said)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert not any(label.get_text() for label in figure.axes[0].get_yticklabels())


def test_seed_lines_join_the_runs_of_one_seed() -> None:
    frame = pd.DataFrame(
        [("gelu", 7, 2.2), ("gelu", 8, math.inf), ("baseline", 8, 2.1), ("baseline", 7, 2.0)],
        columns=["variant", "seed", "final_val_loss"],
    )
    figure = plots.seed_losses(frame)
    figure.draw_without_rendering()
    lines = [line.get_ydata() for line in figure.axes[0].get_lines() if line.get_label() == "one seed"]
    assert np.array(lines) == pytest.approx(np.array([[2.0, 2.2], [2.1, math.nan]]), nan_ok=True)
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == ["baseline", "gelu\n(1 without a loss)"]


# --- schedules --------------------------------------------------------------------------------------------------


def lines_of(figure: Figure) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    lines = figure.axes[0].get_lines()
    return {str(line.get_label()): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in lines}


def described(figure: Figure) -> None:
    """Title, and both axes with their names; the ends of an interaction are named in words."""
    (axes,) = figure.axes
    figure.draw_without_rendering()
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert axes.get_title("left") and axes.get_ylabel() and (axes.get_xlabel() or ticks[0].startswith("without "))


RATES, DECAY, MOMENTUM = "learning rates / their peaks", "weight decay / its peak", "Muon's momentum"


def test_schedule_is_the_multiplier_of_the_run() -> None:
    config = RunConfig()
    figure = plots.schedule(config)
    x, y = lines_of(figure)[RATES]
    described(figure)
    assert x[-1] == config.train.steps
    assert y[::100] == pytest.approx([lr_multiplier(config.schedule, p) for p in (0, 0.25, 0.5, 0.75, 1)])


def test_schedule_draws_decay_and_momentum_where_there_are_any(tiny: Any) -> None:
    changes = {
        "schedule.cooldown": 0.5,
        "schedule.weight_decay": "linear",
        "schedule.momentum.warmup": 0.5,
        "optim.muon.weight_decay": 0.1,
    }
    drawn = lines_of(plots.schedule(tiny(changes)))
    assert set(drawn) == {RATES, DECAY, MOMENTUM}
    assert drawn[DECAY][1][::100] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert drawn[MOMENTUM][1][::100] == pytest.approx([0.85, 0.9, 0.95, 0.95, 0.95])
    assert drawn[RATES][1][::100] == pytest.approx([1, 1, 1, 0.5, 0])
    assert set(lines_of(plots.schedule(tiny()))) == {RATES, MOMENTUM}
    adamw = {"optim.matrices": "adamw", "optim.muon.weight_decay": 0.1}
    assert set(lines_of(plots.schedule(tiny(adamw)))) == {RATES}, "what Muon would do is of no interest"
    assert set(lines_of(plots.schedule(tiny(adamw | {"optim.adamw.weight_decay": 0.1})))) == {RATES, DECAY}


# --- tuning -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tuned(tiny: Any) -> Any:
    """Both arms with grids of given losses: {arm: [(values, loss), ...]}."""
    config = tiny()

    def make(grids: dict[str, list[tuple[dict[str, Any], float | None]]]) -> Arms:
        points = [GridPoint(arm, arm, values, config, loss) for arm in grids for values, loss in grids[arm]]
        return Arms(config, config, Match("steps", (), config, {}, {}), tuple(points))

    return make


MUON, ADAMW = "optim.muon.lr", "optim.adamw.matrix_lr"
GRIDS: dict[str, list[tuple[dict[str, Any], float | None]]] = {
    "baseline": [({MUON: 0.04}, 3.1), ({MUON: 0.02}, 3.0), ({MUON: 0.01}, 3.2)],
    "variant": [({ADAMW: 0.003}, 3.3), ({ADAMW: 0.006}, 3.25), ({ADAMW: 0.012}, math.inf)],
}


def marks(figure: Figure, marker: str) -> dict[str, list[tuple[float, float]]]:
    """Points of a marker by colour."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in figure.axes[0].get_lines():
        if line.get_marker() == marker:
            points = zip(np.atleast_1d(line.get_xdata()), np.atleast_1d(line.get_ydata()), strict=True)
            found.setdefault(to_hex(line.get_color()), []).extend((float(x), float(y)) for x, y in points)
    return found


def test_tuning_shows_every_loss_the_best_and_what_diverged(tuned: Any) -> None:
    figure = plots.tuning(tuned(GRIDS))
    described(figure)
    baseline, variant = to_hex(style.INK), to_hex(style.PALETTE[0])
    losses, best, lost = (marks(figure, marker) for marker in ("o", "s", "x"))
    assert losses == {baseline: [(0.01, 3.2), (0.02, 3.0), (0.04, 3.1)], variant: [(0.003, 3.3), (0.006, 3.25)]}
    assert best == {baseline: [(0.02, 3.0)], variant: [(0.006, 3.25)]}
    assert [x for x, _ in lost[variant]] == [0.012] and set(lost) == {variant}
    said = texts(figure)
    assert f"baseline: {MUON}" in said and f"variant: {ADAMW}" in said and "diverged" in said
    assert figure.axes[0].get_xscale() == "log"


def test_an_arm_keeps_its_colour_where_the_other_has_no_grid(tuned: Any) -> None:
    figure = plots.tuning(tuned({"variant": GRIDS["variant"]}))
    assert set(marks(figure, "o")) == {to_hex(style.PALETTE[0])}


def test_of_a_second_tuned_key_the_best_value_is_drawn(tuned: Any) -> None:
    decay = "optim.muon.weight_decay"
    grid = [({MUON: lr, decay: wd}, 3 + lr + wd) for lr in (0.01, 0.02) for wd in (0.0, 0.1)]
    figure = plots.tuning(tuned({"baseline": grid, "variant": grid}))
    best = marks(figure, "s")[to_hex(style.INK)]
    assert best == [(0.01, 3.01)] and set(best) <= set(marks(figure, "o")[to_hex(style.INK)])


def test_the_values_of_a_tuning_can_be_read(tuned: Any) -> None:
    grid: list[tuple[dict[str, Any], float | None]] = [({MUON: lr}, 3.0) for lr in (0.01, 0.02, 0.04, 0.08)]
    figure = plots.tuning(tuned({"baseline": grid, "variant": [({ADAMW: lr / 7}, 3.0) for lr in (0.01, 0.04, 0.08)]}))
    figure.draw_without_rendering()
    ticks = [t for w in (True, False) for t in figure.axes[0].get_xticklabels(minor=w) if t.get_text()]
    boxes = [t.get_window_extent() for t in ticks if t.get_window_extent().width]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_words_can_be_tuned_too_and_what_is_not_done_yet_is_left_out(tuned: Any) -> None:
    kinds = [({"schedule.kind": "linear"}, 3.0), ({"schedule.kind": "cosine"}, None)]
    figure = plots.tuning(tuned({"baseline": kinds, "variant": kinds}))
    described(figure)
    assert figure.axes[0].get_xscale() == "linear"


def dataset_of(tokens: np.ndarray) -> Dataset:
    """Both splits have these tokens in two shards; eot is 0."""
    dataset = object.__new__(Dataset)
    dataset.eot, dataset.vocab_size = 0, 10
    dataset._shards = {split: np.array_split(tokens, [len(tokens) // 3]) for split in ("train", "val")}
    return dataset


@pytest.mark.parametrize("lengths", [[111_539], [3000, 3100, 6000], [4] * 10, [1], list(range(100, 170)) * 5])
def test_every_document_is_seen_in_the_histogram(lengths: list[int]) -> None:
    dataset: Any = SimpleNamespace(
        documents=lambda *_: [np.zeros(length) for length in lengths], tokens=lambda *_: [np.zeros(5)]
    )
    figure = plots.document_lengths(dataset, 64)
    described(figure)
    (axes,) = figure.axes
    bars = [bar for bar in axes.patches if bar.get_height() > 0]  # type: ignore[attr-defined]
    assert sum(bar.get_height() for bar in bars) == len(lengths)  # type: ignore[attr-defined]
    assert all(bar.get_width() >= axes.get_xlim()[1] / 80 for bar in bars)  # type: ignore[attr-defined]


def test_large_datasets_are_sampled_and_the_title_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "READ_TOKENS", 640)
    small, large = dataset_of(np.arange(640) % 10), dataset_of(np.arange(6400) % 10)
    read = large.tokens("train", 640)
    assert sum(map(len, read)) == 640 and len(read) == 32 and read[0][0] == 0 and read[-1][-1] == 9
    for figure in (plots.token_frequencies(small), plots.document_lengths(small, 8)):
        assert "tokens)" not in figure.axes[0].get_title(loc="left")
    for figure in (plots.token_frequencies(large), plots.document_lengths(large, 8)):
        described(figure)
        assert "(640 of 6,400 tokens)" in figure.axes[0].get_title(loc="left")
    described(plots.document_lengths(dataset_of(np.ones(700, dtype=int)), 8))  # no eot, so no document


# --- tokenizers -------------------------------------------------------------------------------------------------


def test_every_tokenizer_stands_at_its_vocabulary_and_reach() -> None:
    found = [
        Efficiency("BPE 512", 512, 500, 1000, 3.0, 0.1, 0.1),
        Efficiency("byte", 257, 1000, 1000, 4.5, 0.0, 0.1),
        Efficiency("GPT-2", 50_257, 250, 1000, 2.5, 0.0, 0.1),
    ]
    figure = plots.tokenizer_efficiency(found)
    described(figure)
    points = {str(line.get_label()): (line.get_xdata()[0], line.get_ydata()[0]) for line in figure.axes[0].get_lines()}
    assert points["byte: 1,000 tokens"] == (257, 1.0) and points["BPE 512: 500 tokens"] == (512, 2.0)
    assert points["GPT-2: 250 tokens"] == (50_257, 4.0) and figure.axes[0].get_xscale() == "log"
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 3 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


# --- sizes and interactions -------------------------------------------------------------------------------------


def sizes(**more: Any) -> pd.DataFrame:
    rows = [
        {"parameters": n, "variant": v, "difference": d, "low": d - 0.02, "high": d + 0.02, "verdict": "worse"}
        for n, shift in ((200_000, 0.0), (800_000, 0.1))
        for v, d in (("gelu", 0.1 + shift), ("no_rope", 0.3 + shift))
    ]
    rows[3] |= more
    return pd.DataFrame(rows)


def test_effects_by_size_have_their_intervals_at_their_size() -> None:
    figure = plots.effects_by_size(sizes())
    described(figure)
    (axes,) = figure.axes
    lines, bars, _ = zip(*(container.lines for container in axes.containers), strict=True)  # type: ignore[attr-defined]
    assert [list(line.get_ydata()) for line in lines] == [pytest.approx([0.1, 0.2]), pytest.approx([0.3, 0.4])]
    assert list(lines[0].get_xdata()) == pytest.approx([200_000, 800_000], rel=0.05)
    assert all(a < b for a, b in zip(lines[0].get_xdata(), lines[1].get_xdata(), strict=True)), "side by side"
    assert [round(y, 6) for y in bars[0][0].get_ydata()] == [0.08, 0.18]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["200,000", "800,000"]
    assert "gelu" in texts(figure) and "no_rope" in texts(figure) and "below zero is better" in texts(figure)


def test_effects_without_an_interval_are_points() -> None:
    figure = plots.effects_by_size(sizes().assign(low=None, high=None))
    described(figure)
    assert list(figure.axes[0].containers[0].lines[0].get_ydata()) == pytest.approx([0.1, 0.2])  # type: ignore[attr-defined]


def test_a_variant_that_diverged_at_a_size_is_not_left_out() -> None:
    figure = plots.effects_by_size(sizes(difference=None, low=None, high=None))
    described(figure)
    drawn = [line for line in figure.axes[0].get_lines() if line.get_marker() == "x"]
    assert [list(np.atleast_1d(line.get_xdata())) for line in drawn] == [[pytest.approx(800_000, rel=0.05)]]
    assert "diverged" in texts(figure)


def test_an_interaction_has_a_line_with_and_a_line_without() -> None:
    losses = [{1: 3.0, 2: 3.2}, {1: 3.1, 2: 3.3}, {1: 2.9, 2: 3.1}, {2: 3.6, 1: 3.4, 3: 9.0}]
    figure = plots.interaction(("gelu", "no_rope"), losses)
    described(figure)
    means = {str(line.get_label()): line for line in figure.axes[0].get_lines() if line.get_linewidth() > 2}
    assert list(means["without no_rope"].get_ydata()) == pytest.approx([3.1, 3.2])
    assert list(means["with no_rope"].get_ydata()) == pytest.approx([3.0, 3.5])
    thin = [list(line.get_ydata()) for line in figure.axes[0].get_lines() if line.get_linewidth() < 1]
    assert thin == [[3.0, 3.1], [3.2, 3.3], [2.9, 3.4], [3.1, 3.6]]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["without gelu", "with gelu"]


def test_no_text_of_an_interaction_leaves_the_figure() -> None:
    losses = [{1: 3.0, 2: 3.2}] * 4
    figure = plots.interaction(("no_value_embeds", "learned_positions"), losses)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in (*figure.legends[0].get_texts(), figure.axes[0]._left_title)]  # type: ignore[attr-defined]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_an_interaction_of_which_a_cell_is_missing_says_so() -> None:
    figure = plots.interaction(("gelu", "no_rope"), [{1: 3.0}, {1: 3.1}, {1: 2.9}, {}])
    described(figure)
    assert "with no_rope" in texts(figure), "a line that cannot be drawn has its name"
