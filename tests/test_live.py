"""The live picture: what is shown while runs go on, and that it takes little of their time."""

import io

import pandas as pd
import PIL.Image
import pytest
from IPython.display import HTML, Image
from matplotlib.figure import Figure

from gptlib import live, notebook
from gptlib.report import plots
from gptlib.study.plan import plan_experiment


@pytest.fixture
def plan(outputs, tiny):
    return plan_experiment(outputs, "s", "full", tiny(), [42, 43])


def status(shown):
    return [thing.data for thing in shown if isinstance(thing, HTML)]


def pictures(shown):
    return [thing for thing in shown if isinstance(thing, Image)]


def test_a_picture_has_few_colours_and_the_size_of_its_figure():
    figure = Figure(figsize=(5, 3))
    figure.add_subplot().imshow([[x * y for x in range(60)] for y in range(60)])
    with PIL.Image.open(io.BytesIO(live.picture(figure).data)) as image:
        assert image.size == (400, 240) and len(image.getcolors(256)) <= 128


def test_a_run_is_shown_from_its_start_to_its_end_and_a_finished_record_is_not_run_again(
    plan, executed, shown, monkeypatch
):
    monkeypatch.setattr(live, "MIN_REDRAW_SECONDS", 0.0)
    monkeypatch.setattr(live, "MAX_REDRAW_SHARE", 1e6)
    notebook.finish(live.run(plan))
    said = status(shown)
    assert said[0] == "starting …" and "8/8 steps of 2 runs" in said[-1] and "left" not in said[-1]
    assert any("4/8 steps of 2 runs" in line and "left" in line for line in said)
    assert len(pictures(shown)) == 1 + 2 + 1, "the empty one, one after each run, the last"
    shown.clear()
    again = live.run(plan)
    assert status(shown) == ["baseline: a finished record with the same fingerprint is reused"]
    assert len(executed) == 2 and len(again.finals()) == 2


def test_redrawing_waits_its_time_but_for_the_last_picture(plan, shown, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(live, "picture", lambda figure: Image(b"", format="png"))
    curves = live.LiveCurves(plan)
    shown.clear()
    for second in (0.0, 0.5, 1.1, 1.9, 2.3):
        now[0] = second
        curves.update()
    assert len(pictures(shown)) == 3, "at 0, 1.1 and 2.3"
    curves.update(last=True)
    assert len(pictures(shown)) == 4


def test_a_slow_redraw_is_a_small_share_of_the_time(plan, shown, monkeypatch):
    now = [0.0]

    def draw(figure):
        now[0] += 0.3
        return Image(b"", format="png")

    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(live, "picture", draw)
    monkeypatch.setattr(plots, "loss_curves", lambda *_, figure, **__: figure)
    curves = live.LiveCurves(plan)
    shown.clear()
    while now[0] < 100:
        curves.update()
        now[0] += 0.1
    assert 3 <= 0.3 * len(pictures(shown)) <= 4


def test_the_status_says_what_it_waits_for_how_fast_it_goes_and_how_long_it_takes(plan, shown, monkeypatch):
    curves = live.LiveCurves(plan)
    assert "waiting for a free core or GPU" in curves._status_line(pd.DataFrame(), 5.0)
    monkeypatch.setattr(live.Plan, "started_runs", lambda plan: [plan.folder])
    plan.folder.mkdir(parents=True)
    (plan.folder / "stdout.log").write_text("")
    frame = pd.DataFrame({"run_id": [0, 0, 1], "step": [1, 2, 1], "tokens": [512, 1024, 512]})
    line = curves._status_line(frame, 90.0)
    assert "3/8 steps of 2 runs" in line and "17 tokens/s" in line and "about 2:30 left" in line
