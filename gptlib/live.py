"""An experiment run under the eyes of its reader: one picture, redrawn in place, and one status line."""

import io
import time

import pandas as pd
import PIL.Image
from IPython.display import HTML, Image, display
from matplotlib.figure import Figure

from gptlib.report import plots
from gptlib.study.experiment import Experiment, execute, metrics_frame
from gptlib.study.plan import Plan

PICTURE_DPI = 80
MIN_REDRAW_SECONDS = 1.0
MAX_REDRAW_SHARE = 0.03  # of the time; drawing competes with training for the same cores


def picture(figure: Figure) -> Image:
    """The figure as a PNG of 128 colours, half the size: a notebook keeps its pictures inside itself."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=PICTURE_DPI)
    with PIL.Image.open(full) as picture:
        picture.convert("RGB").quantize(128).save(small, format="png", optimize=True)
    return Image(data=small.getvalue(), format="png")


class LiveCurves:
    """The loss curves of running plans, redrawn in place, and one status line."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._total = plan.config.train.steps * len(plan.seeds)
        self._start = self._next = time.monotonic()
        self._figure = Figure(figsize=(7, 3.6), layout="constrained")
        self._status = display(HTML("starting …"), display_id=True)
        self._picture = display(picture(self._draw(metrics_frame(plan))), display_id=True)
        self._before = self._done(metrics_frame(plan)), self._tokens(metrics_frame(plan))

    def _draw(self, frame: pd.DataFrame) -> Figure:
        title = f"{self._plan.variant}: validation loss while training"
        return plots.loss_curves(frame, title=title, figure=self._figure)

    @staticmethod
    def _done(frame: pd.DataFrame) -> int:
        return int(frame.groupby("run_id")["step"].max().sum()) if len(frame) else 0

    @staticmethod
    def _tokens(frame: pd.DataFrame) -> float:
        return float(frame.groupby("run_id")["tokens"].max().sum()) if "tokens" in frame else 0.0

    def update(self, last: bool = False) -> None:
        """Redraw if it is time to; never more than a small share of the time."""
        now = time.monotonic()
        if now < self._next and not last:
            return
        frame = metrics_frame(self._plan)
        self._status.update(HTML(self._status_line(frame, now - self._start)))
        self._picture.update(picture(self._draw(frame)))
        spent = time.monotonic() - now
        self._next = now + max(MIN_REDRAW_SECONDS, spent / MAX_REDRAW_SHARE)

    def _status_line(self, frame: pd.DataFrame, elapsed: float) -> str:
        done = self._done(frame)
        rate = (done - self._before[0]) / elapsed if elapsed > 0 else 0.0
        speed = (self._tokens(frame) - self._before[1]) / elapsed if elapsed > 0 else 0.0
        bar = f'<progress value="{done}" max="{self._total}"></progress>'
        if not any((run / "stdout.log").exists() for run in self._plan.started_runs()):
            return f"{bar} waiting for a free core or GPU: other runs of this machine hold them all"
        parts = [f"{bar} {done}/{self._total} steps of {len(self._plan.seeds)} runs"]
        parts.append(f"{speed:,.0f} tokens/s")
        if rate > 0 and done < self._total:
            parts.append(f"about {_clock((self._total - done) / rate)} left")
        return " · ".join(parts)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def run(plan: Plan, wait: bool = False) -> Experiment:
    """Execute a plan with a live picture; a finished record of the same numbers is reused.

    `wait` waits for another process that works on the same experiment, which is otherwise refused (RecordError).
    """
    if plan.is_complete():
        display(HTML(f"{plan.variant}: a finished record with the same fingerprint is reused"))
        return Experiment(plan)
    live = LiveCurves(plan)
    experiment = execute(plan, live.update, wait)
    live.update(last=True)
    return experiment
