"""ExperimentTracker: a few calls in anybody's training loop, and the log that they leave (experiment_log.py).

A tracker never stops a training: what it cannot write it says once and keeps for the next attempt. Metrics are written
as they come, so a killed loop loses nothing.
"""

import contextlib
import itertools
import math
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gptlib import records
from gptlib.experiment_log import (
    TOLD,
    ExperimentConfig,
    ExperimentLog,
    Row,
    as_json,
    compare_experiments,
    load_experiment_log,
)

__all__ = ["ExperimentConfig", "ExperimentLog", "ExperimentTracker", "compare_experiments", "load_experiment_log"]


class ExperimentTracker:
    """Call it around a training loop, in one process (rank 0); see docs/track_your_own_loop.md."""

    def __init__(self, config: ExperimentConfig, log_dir: Path | str = "experiment_logs") -> None:
        self.log = ExperimentLog(config)
        self.path = Path(log_dir).absolute() / "experiment.json"  # its name is chosen by start()
        self._started: float | None = None
        self._pending: deque[Row] = deque()  # lines that the disk has not yet taken
        self._warned = False

    def start(self) -> None:
        """Begin the clock and write the configuration. The first metrics do it where this is left out."""
        self._started, self.log.start_time = time.monotonic(), records.utc_now()
        with self._going_on():
            self._choose_name()
            self.log.write(self.path)

    def log_metrics(
        self,
        iteration: int,
        train_loss: Any,
        learning_rate: Any = None,
        tokens_per_sec: Any = None,
        iter_time_ms: Any = None,
    ) -> None:
        """After a training step. Numbers may be tensors of one element."""
        values = {"train_loss": train_loss, "learning_rate": learning_rate}
        values |= {"tokens_per_sec": tokens_per_sec, "iter_time_ms": iter_time_ms}
        self._add(self.log.metrics, iteration, values)

    def increment_gradient_step(self) -> None:
        """After each update of the weights: with gradient accumulation there are fewer of them than iterations."""
        self.log.gradient_steps += 1

    def log_eval(self, iteration: int, train_loss: Any, val_loss: Any) -> None:
        """After an evaluation; also writes the .json, so that a killed loop can be imported with what it reached."""
        self._add(self.log.evals, iteration, {"train_loss": train_loss, "val_loss": val_loss})

    def finish(self, train_loss: Any = None, val_loss: Any = None, notes: str = "") -> None:
        """After the last step. A final `val_loss` that log_eval has not seen becomes the evaluation of that step."""
        log = self.log
        train, val = self._number(train_loss), self._number(val_loss)
        if val is not None and str(val) not in [str(row["val_loss"]) for row in log.evals[-1:]]:
            last = max((row["iteration"] for rows in (log.metrics, log.evals) for row in rows[-1:]), default=0)
            self.log_eval(last, train, val)
        log.final_train_loss, log.final_val_loss = (math.nan if x is None else x for x in (train, val))
        log.notes, log.end_time, log.seconds = notes, records.utc_now(), self._elapsed()
        log.status = "complete" if log.diverged_at is None else "diverged"

    def save(self) -> None:
        """Write the log and its curves. Before finish() it is a log in progress."""
        with self._going_on():
            self.log.write(self.path)
            if self.log.status != "in progress":
                self.path.with_suffix(".jsonl").unlink(missing_ok=True)
            self._draw()

    def print_summary(self) -> None:
        print(self.log.journal_entry())

    def _choose_name(self) -> None:
        """A file that nobody has: runs of one name may start in the same second."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", self.log.config.experiment_name)[:80]
        stem = f"experiment_{name}_{datetime.now(UTC):%Y%m%d_%H%M%S}"
        self.path = self.path.with_name(f"{stem}.json")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(2):
            with contextlib.suppress(FileExistsError):
                self.path.with_suffix(".jsonl").touch(exist_ok=False)
                if not self.path.exists():
                    return
                self.path.with_suffix(".jsonl").unlink()
            self.path = self.path.with_name(f"{stem}-{number}.json")

    def _add(self, history: list[Row], iteration: int, values: Row) -> None:
        """Keep a row and write it: an evaluation first to the .json, which so never knows less than the lines."""
        if self._started is None:
            self.start()
        row: Row = {"iteration": int(iteration), "gradient_step": self.log.gradient_steps}
        row |= {"elapsed_seconds": round(self._elapsed(), 6)} | {k: self._number(v) for k, v in values.items()}
        history.append(row)
        said = {name: getattr(self.log.config, name) for name in TOLD}
        self._pending.extend(said | line for line in as_json([row]))
        with self._going_on():
            if history is self.log.evals:
                self.log.write(self.path)
            while self._pending:
                records.append_jsonl(self.path.with_suffix(".jsonl"), self._pending[0])
                self._pending.popleft()

    def _elapsed(self) -> float:
        return 0.0 if self._started is None else time.monotonic() - self._started

    def _number(self, value: Any) -> float | None:
        number = None
        if value is not None:
            with self._going_on():
                number = float(value)
        return number

    def _draw(self) -> None:
        import pandas as pd

        from gptlib.report.plots import loss_curves
        from gptlib.report.style import save

        axis = "gradient_step" if self.log.gradient_steps else "iteration"
        rows = [row | {"val_loss": None} for row in self.log.metrics]
        rows += [row | ({"train_loss": None} if rows else {}) for row in self.log.evals]
        frame = pd.DataFrame(rows, columns=[axis, "elapsed_seconds", "train_loss", "val_loss"], dtype=float)
        frame = frame.replace([math.inf, -math.inf], math.nan)
        frame = frame.rename(columns={axis: "step"}).assign(variant=self.log.config.experiment_name, seed=0)
        frame["train_time_ms"] = 1000 * frame["elapsed_seconds"]
        for x, name in (("step", "steps"), ("train_time_ms", "time")):
            figure = loss_curves(frame, x=x, title=f"{self.log.config.experiment_name}: loss curves")  # type: ignore[arg-type]
            save(figure, self.path.with_suffix(f".{name}"), dpi=110)

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """Whatever goes wrong inside is said once and stops nothing."""
        try:
            yield
        except Exception as error:
            if not self._warned:
                print(f"ExperimentTracker: {error}; the training goes on, its log may be incomplete", file=sys.stderr)
            self._warned = True
