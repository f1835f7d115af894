"""What ExperimentTracker knows of a run, and its files: read, compared, and told as a journal entry.

    experiment_logs/experiment_<name>_<UTC time>.json    configuration, history, summary: written whole or not at all
                    experiment_<name>_<UTC time>.jsonl   the history, line by line, until the finished log is saved
                    experiment_<name>_<UTC time>.steps.png  .time.png   loss curves over gradient steps and over time

`gptlib import-log experiment_logs` makes records of the logs, which are compared like our own. A loss that is no
number stands in the history as "nan" or "inf", since JSON has no such numbers, and the run counts as diverged.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError

from gptlib import records
from gptlib.config import ConfigError
from gptlib.yaml12 import suggestion

RATES = ("max_learning_rate", "learning_rate")  # two names of one field
KEY_POINTS = (0, 0.1, 0.2, 0.5, 0.9, 1)  # shares of the run that the journal entry shows
TOLD = ("experiment_name", "seed")  # repeated on each line, so that lines alone can be imported
Row = dict[str, Any]


class ExperimentConfig(BaseModel):
    """What is trained, and how: noted in the log, never acted upon. None: not said, so nothing is claimed of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment_name: str = "untitled"
    vocab_size: PositiveInt | None = None
    context_length: PositiveInt | None = None
    d_model: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    d_ff: PositiveInt | None = None
    num_layers: PositiveInt | None = None
    num_parameters: PositiveInt | None = None
    dropout: float | None = None
    rope_theta: float | None = None
    batch_size: PositiveInt | None = None
    max_iters: PositiveInt | None = None  # a run that ends well before them has no final loss when it is imported
    max_learning_rate: float | None = Field(None, validation_alias=AliasChoices(*RATES))
    min_learning_rate: float | None = None
    warmup_iters: int | None = None
    weight_decay: float | None = None
    betas: tuple[float, float] | None = None
    grad_clip: float | None = None
    seed: int | None = None  # with it, runs can be paired
    device: Annotated[str | None, BeforeValidator(lambda device: None if device is None else str(device))] = None

    def __init__(self, **values: Any) -> None:
        """Raises ConfigError: a line for each problem, with the nearest name for an unknown one."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError("\n".join(_problem(e) for e in error.errors())) from None

    @property
    def learning_rate(self) -> float | None:
        return self.max_learning_rate


def _problem(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        if key in RATES:
            return f"ExperimentConfig: {' and '.join(RATES)} are one field; give one of them"
        return f"ExperimentConfig: unknown name {key!r}{suggestion(key, [*ExperimentConfig.model_fields, *RATES])}"
    return f"ExperimentConfig: {key}={error['input']!r}: {error['msg']}"


# --- the log ----------------------------------------------------------------------------------------------------


@dataclass
class ExperimentLog:
    """What is known of a run. Values that were not measured are nan."""

    config: ExperimentConfig
    start_time: str = field(default_factory=records.utc_now)
    end_time: str | None = None
    status: str = "in progress"  # or "complete", "diverged": what finish() has found
    notes: str = ""
    gradient_steps: int = 0
    final_train_loss: float = math.nan
    final_val_loss: float = math.nan
    seconds: float | None = None  # from start() to finish()
    metrics: list[Row] = field(default_factory=list)
    evals: list[Row] = field(default_factory=list)

    @property
    def duration_seconds(self) -> float:
        """From the start to the end, or to the last line of a log that has none; evaluations included."""
        lines = (row["elapsed_seconds"] for rows in (self.metrics, self.evals) for row in rows[-1:])
        return max(lines, default=0.0) if self.seconds is None else self.seconds

    @property
    def best_val_loss(self) -> float:
        return min(_finite(self.evals, "val_loss"), default=math.nan)

    @property
    def best_train_loss(self) -> float:
        return min(_finite(self.metrics or self.evals, "train_loss"), default=math.nan)

    @property
    def tokens_per_sec(self) -> float:
        values = _finite(self.metrics, "tokens_per_sec")
        return statistics.fmean(values) if values else math.nan

    @property
    def diverged_at(self) -> int | None:
        """The iteration of the first loss that is not a number."""
        losses = ((row, row.get(key)) for row in self.metrics + self.evals for key in ("train_loss", "val_loss"))
        return min((row["iteration"] for row, x in losses if x is not None and not math.isfinite(x)), default=None)

    def summary(self) -> dict[str, Any]:
        """The numbers that runs are compared by."""
        names = ("best_val_loss", "best_train_loss", "final_val_loss", "final_train_loss", "duration_seconds")
        values = {name: getattr(self, name) for name in (*names, "tokens_per_sec", "gradient_steps", "diverged_at")}
        return values | {"samples_per_sec": self.tokens_per_sec / (self.config.context_length or math.nan)}

    def journal_entry(self) -> str:
        """Markdown: configuration, results and key metrics, with empty places for what only a person can say."""
        duration = str(timedelta(seconds=round(self.duration_seconds)))
        results = self.summary()
        losses = [f"{kind} {name}" for kind in ("best", "final") for name in ("train_loss", "val_loss")]
        lines = [f"### Experiment: {self.config.experiment_name}", "", f"**Date**: {self.start_time[:10]}"]
        lines += [f"**Duration**: {duration.zfill(8)}", f"**Status**: {self.status}", "", "#### Configuration"]
        lines += [f"- {key}: {value}" for key, value in self.config.model_dump().items() if value is not None]
        lines += ["", "#### Results"]
        lines += [f"- {name.replace('_', ' ')}: {results[name.replace(' ', '_')]:.4f}" for name in losses]
        lines += [f"- tokens/sec: {self.tokens_per_sec:.0f}", f"- gradient steps: {self.gradient_steps}"]
        lines += [] if self.diverged_at is None else [f"- diverged at iteration {self.diverged_at}"]
        lines += ["", "#### Key metrics over training", *self._key_metrics()]
        lines += [
            "",
            "#### Observations",
            f"- {self.notes}",
            "",
            "#### Lessons learned",
            "-",
            "",
            "#### Next steps",
            "-",
        ]
        return "\n".join(lines)

    def _key_metrics(self) -> list[str]:
        rows = {row["iteration"]: row for row in self.metrics} or {row["iteration"]: row for row in self.evals}
        last, losses = max(rows, default=0), {row["iteration"]: row["val_loss"] for row in self.evals}
        shown = sorted({min(rows, key=lambda iteration: abs(iteration - share * last)) for share in KEY_POINTS if rows})
        lines = ["| Iteration | Train Loss | Val Loss | LR | Tokens/sec |", "|---|---|---|---|---|"]
        for iteration in shown:
            row = rows[iteration]
            values = (row["train_loss"], losses.get(iteration), row.get("learning_rate"), row.get("tokens_per_sec"))
            cells = [
                "-" if v is None else f"{v:{f}}" for v, f in zip(values, (".4f", ".4f", ".2e", ".0f"), strict=True)
            ]
            lines.append(f"| {iteration} | {' | '.join(cells)} |")
        return lines

    def write(self, path: Path) -> None:
        """Raises RecordError. A log in progress is written without its metrics, which stand in the lines beside it."""
        done = self.status != "in progress"
        content = {"schema_version": records.SCHEMA_VERSION, "config": self.config.model_dump(mode="json")}
        content |= {key: getattr(self, key) for key in ("status", "start_time", "end_time", "notes")}
        content["summary"] = {k: v if v is None or math.isfinite(v) else None for k, v in self.summary().items()}
        content |= {"metrics": as_json(self.metrics if done else []), "evals": as_json(self.evals)}
        records.write_json(path, content, sync=done)


def _finite(rows: Iterable[Row], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None and math.isfinite(row[key])]


def as_json(rows: Iterable[Row]) -> list[Row]:
    """Rows with what is no number as "nan", "inf" or "-inf"."""
    return [{k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.items()} for r in rows]


def _read(rows: Iterable[Row]) -> list[Row]:
    return [{k: float(v) if isinstance(v, str) else v for k, v in r.items() if k not in TOLD} for r in rows]


def load_experiment_log(path: Path | str) -> ExperimentLog:
    """The log in a .json file; one that was not finished has everything that its loop said. Raises RecordError."""
    path = Path(path)
    content = records.read_json(path)
    try:
        log = ExperimentLog(ExperimentConfig(**content["config"]), metrics=_read(content["metrics"]))
        log.evals, summary = _read(content["evals"]), content["summary"]
        for key in ("status", "start_time", "end_time", "notes"):
            setattr(log, key, content[key])
        for key in ("final_train_loss", "final_val_loss"):
            setattr(log, key, math.nan if summary[key] is None else summary[key])
        log.gradient_steps = summary["gradient_steps"]
    except (KeyError, TypeError, ValueError) as error:
        raise records.RecordError(
            f"{path}: not a log of ExperimentTracker ({error}); try `gptlib import-log`"
        ) from None
    if log.status != "in progress":
        log.seconds = summary["duration_seconds"]
        return log
    lines = _read(records.read_jsonl(path.with_suffix(".jsonl")))
    log.metrics = [row for row in lines if "val_loss" not in row]
    log.evals = max(log.evals, [row for row in lines if "val_loss" in row], key=len)
    log.gradient_steps = max([log.gradient_steps, *(row["gradient_step"] for row in lines)])
    return log


def compare_experiments(paths: Iterable[Path | str]) -> dict[str, dict[str, Any]]:
    """{name: best_val_loss and the other numbers, status, seed}; runs that share a name go by their files' names."""
    logs = {Path(path): load_experiment_log(path) for path in paths}
    count = Counter(log.config.experiment_name for log in logs.values())
    found = {}
    for path, log in logs.items():
        name = log.config.experiment_name
        also = {"status": log.status, "seed": log.config.seed, "num_parameters": log.config.num_parameters}
        found[name if count[name] == 1 else path.stem.removeprefix("experiment_")] = log.summary() | also
    return found
