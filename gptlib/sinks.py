"""Optional sinks: finished runs replayed from their files to W&B, MLflow, TensorBoard, or a tracker's single file.

A sink is a copy for looking at; the files stay the truth, and nothing here is called by a training, a notebook or a
report. Every run has a fixed identity, so that exporting again replaces or completes what is there and doubles nothing.
Libraries are imported when their sink is asked for. Sources: the public clients of wandb, mlflow and tensorboardX.
"""

import hashlib
import importlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gptlib import records
from gptlib.experiment_log import ExperimentConfig, ExperimentLog
from gptlib.fields import RunConfig
from gptlib.report.html import MOVED_ASIDE

PROJECT = "gptlib"
MLFLOW = "pip install mlflow-skinny sqlalchemy alembic"  # the full mlflow brings its pages to look at
NOT_METRICS = ("variant", "run_id", "seed", "attempt", "step")  # of a line of metrics.jsonl: who and when
Row = dict[str, Any]


class SinkError(ValueError):
    """An export that is not possible: one line that says why and what to do."""


# --- what is replayed -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replay:
    """A training run as its files have it. Losses in nats/token, times in ms in `rows` and in s in `result`."""

    folder: Path
    study: str
    stage: str
    variant: str
    record: dict[str, Any]  # the experiment's config.json
    hypothesis: dict[str, Any]  # hypothesis.json; empty for a baseline
    summary: dict[str, Any]  # the experiment's summary.json; empty while its runs go on
    result: dict[str, Any]
    rows: list[Row]  # metrics.jsonl, of the attempt that `result` is of, by step

    @property
    def seed(self) -> int:
        return int(self.result["seed"])

    @property
    def name(self) -> str:
        return f"{self.variant}/{self.seed}"

    @property
    def group(self) -> str:
        return f"{self.study}/{self.stage}"

    @property
    def identity(self) -> str:
        """16 hex: the place, the seed, the attempt, and the fingerprint or, of an imported run, its log's checksum."""
        what = self.record.get("fingerprint") or self.record.get("imported_from")
        who = [self.study, self.stage, self.variant, self.result["run_id"], self.seed, self.result["attempt"], what]
        return _hash(who)

    @cached_property
    def begin(self) -> datetime:
        """When the experiment was asked for; of an imported one, when its files were written."""
        said = self.record.get("start_time")
        if said:
            return datetime.fromisoformat(said)
        return datetime.fromtimestamp((self.folder / "result.json").stat().st_mtime, UTC)

    def settings(self) -> dict[str, Any]:
        """What was asked for, flat: the resolved configuration, the difference to the baseline, the hypothesis."""
        known = {key: self.record.get(key) for key in ("fingerprint", "dataset", "device", "difference")}
        flat = flatten(self.record.get("config")) | {"seed": self.seed} | flatten(known)
        return flat | flatten({"hypothesis": self.hypothesis})

    def outcome(self) -> dict[str, Any]:
        """What came out, flat: the fields of result.json, and of the experiment its comparison and verdict."""
        found = flatten({key: value for key, value in self.result.items() if key != "schema_version"})
        comparison = self.summary.get("comparison") or {}
        found |= flatten({"verdict": comparison.get("verdict"), "comparison": comparison})
        return found | flatten({"confounders": self.summary.get("confounders")})

    def digest(self) -> str:
        """Of everything that a sink is told."""
        return _hash([self.settings(), self.outcome(), self.rows])

    def milliseconds(self, row: Row) -> int:
        """When a line was written, as Unix time: training time alone passes, as in every curve of ours."""
        return round(1000 * self.begin.timestamp() + row.get("train_time_ms", 0))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted keys; a list becomes its JSON text; what is empty (None, {}, []) is left out."""
    if isinstance(value, dict):
        inner = (flatten(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items())
        return {key: item for found in inner for key, item in found.items()}
    if value is None or value == []:
        return {}
    return {prefix: json.dumps(value) if isinstance(value, list) else value}


def metrics(row: Row) -> dict[str, float]:
    """The measurements of a line of metrics.jsonl."""
    return {key: value for key, value in row.items() if key not in NOT_METRICS and value is not None}


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """Those that can be plotted; a truth value is none."""
    return {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def collect(folder: Path) -> tuple[list[Replay], list[Path]]:
    """Finished runs of a study, a stage, an experiment, or the one run `folder`; and those without a result yet.

    A run counts when it is of its experiment's fingerprint; experiments that were moved aside count when they are
    named. Raises SinkError where there is no run, RecordError where a file cannot be read.
    """
    folder = folder.resolve()
    if folder.parent.name == "runs" and (folder / "metrics.jsonl").exists():
        runs = [folder]
    elif (folder / "config.json").exists():
        runs = sorted(folder.glob("runs/[!.]*"))
    else:
        configs = [*folder.glob("[!.]*/config.json"), *folder.glob("[!.]*/[!.]*/config.json")]
        places = sorted(path.parent for path in configs if not MOVED_ASIDE.search(path.parent.name))
        runs = [run for place in places for run in sorted(place.glob("runs/[!.]*"))]
    runs = [run for run in runs if _belongs(run)]
    waiting = [run for run in runs if not (run / "result.json").exists()]
    if not runs:
        raise SinkError(f"{folder}: no runs; give a study (outputs/NAME), an experiment or a run with a record")
    found = [_replay(run) for run in runs if run not in waiting]
    return sorted(found, key=lambda run: (run.group, run.variant, run.result["run_id"])), waiting


def _belongs(run: Path) -> bool:
    """Whether a run is of its experiment's numbers; an imported run has no run.json and always is."""
    if not (run / "run.json").exists():
        return (run / "result.json").exists()
    wanted = records.read_json(run.parent.parent / "config.json").get("fingerprint")
    return bool(records.read_json(run / "run.json").get("fingerprint") == wanted)


def _replay(run: Path) -> Replay:
    experiment, result = run.parent.parent, records.read_json(run / "result.json")
    study, stage, variant = experiment.parts[-3:]
    beside = [experiment / f"{name}.json" for name in ("config", "hypothesis", "summary")]
    config, hypothesis, summary = (records.read_json(path) if path.exists() else {} for path in beside)
    rows = [row for row in records.read_jsonl(run / "metrics.jsonl") if row["attempt"] == result["attempt"]]
    rows.sort(key=lambda row: row["step"])
    return Replay(run, study, stage, variant, config, hypothesis, summary, result, rows)


# --- the command ------------------------------------------------------------------------------------------------


def export(folder: Path, to: str, project: str = "", where: Path | None = None) -> Iterator[str]:
    """Replay the runs of `folder` to a sink; yields a line for each. Raises SinkError and RecordError.

    `where` is the folder of what is written on this machine, `exports/<sink>` beside the studies if not given.
    """
    if project and to not in ("wandb", "mlflow"):
        raise SinkError(f"--project {project}: {to} has no projects; leave it out, or give --where")
    replays, waiting = collect(folder)
    if not replays:
        raise SinkError(f"{folder}: none of its {len(waiting)} runs has a result yet; export when one is finished")
    if to == "mlflow" and where and os.environ.get("MLFLOW_TRACKING_URI"):
        raise SinkError(f"--where {where}: MLFLOW_TRACKING_URI names another place; give one of them")
    where = (where or replays[0].folder.parents[4] / "exports" / to).resolve()
    sinks = {"wandb": _to_wandb, "mlflow": _to_mlflow, "tensorboard": _to_tensorboard, "json": _to_json}
    try:
        yield from sinks[to](replays, project, where)
    except OSError as error:
        raise SinkError(f"{where}: cannot be written ({error.strerror or error}); choose another --where") from None
    yield from (f"not exported: {run}: no result yet" for run in waiting)


def _library(name: str, command: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SinkError(f"this sink needs a library that is not installed ({error}): {command}") from None


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    """What MLflow takes in one call: at most 1,000 metrics, 100 parameters, 100 tags."""
    return (items[first : first + size] for first in range(0, len(items), size))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- Weights & Biases -------------------------------------------------------------------------------------------


def _to_wandb(replays: Sequence[Replay], project: str, where: Path) -> Iterator[str]:
    """Runs of a project, online or, with WANDB_MODE=offline, as folders that `wandb sync` sends later."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its crash reports are not what was asked for
    wandb = _library("wandb", "pip install wandb")
    if os.environ.get("WANDB_MODE") == "disabled":
        raise SinkError("WANDB_MODE=disabled: nothing would be written; unset it, or WANDB_MODE=offline")
    project = project or os.environ.get("WANDB_PROJECT") or PROJECT
    where.mkdir(parents=True, exist_ok=True)
    for replay in replays:
        folders = list(where.glob(f"wandb/offline-run-*-{replay.identity}"))
        if synced := [folder for folder in folders if any(folder.glob("*.synced"))]:
            yield f"{replay.name}: there already, and synced ({synced[0]})"
            continue
        for folder in folders:
            shutil.rmtree(folder)
        try:
            yield f"{replay.name}: {_wandb_run(wandb, replay, project, where)}"
        except wandb.errors.Error as error:
            raise SinkError(
                f"W&B: {_first_line(error)} (`wandb login`, or WANDB_MODE=offline for files only)"
            ) from None


def _wandb_run(wandb: Any, replay: Replay, project: str, where: Path) -> str:
    """Write one run; of a run that the server has, what it lacks. Nothing of this machine is told as the run's."""
    quiet = {"host": "gptlib", "disable_git": True, "save_code": False, "console": "off", "silent": True}
    run = wandb.init(
        project=project, id=replay.identity, resume="allow", dir=str(where), name=replay.name, group=replay.group,
        job_type=replay.variant, config=replay.settings(), allow_val_change=True,
        settings=wandb.Settings(**quiet, x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True),
    )  # fmt: skip
    first = run.step if run.resumed else 0  # the server's last step and one
    for row in replay.rows:
        if row["step"] >= first:
            run.log(metrics(row), step=row["step"])
    run.summary.update(replay.outcome())
    run.finish(exit_code=0 if replay.result["success"] else 1)
    return f"{'completed' if run.resumed else 'written'} ({Path(run.dir).parent if run.offline else run.url})"


# --- MLflow -----------------------------------------------------------------------------------------------------


def _to_mlflow(replays: Sequence[Replay], project: str, where: Path) -> Iterator[str]:
    """Runs of an MLflow experiment: on the server that MLFLOW_TRACKING_URI names, else in `where`/mlflow.db."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{where / 'mlflow.db'}"
    local = ("sqlalchemy", "alembic") if uri.startswith("sqlite:") else ()
    mlflow, *_ = [_library(name, MLFLOW) for name in ("mlflow", *local)]
    if str(where) in uri:
        where.mkdir(parents=True, exist_ok=True)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        name = project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = client.get_experiment_by_name(name)
        place = experiment.experiment_id if experiment else client.create_experiment(name)
        for replay in replays:
            yield f"{replay.name}: {_mlflow_run(mlflow, client, place, replay)} (experiment {name}, {uri})"
    except mlflow.exceptions.MlflowException as error:
        raise SinkError(
            f"MLflow at {uri}: {_first_line(error)}; check MLFLOW_TRACKING_URI, or unset it to write into a file"
        ) from None


def _mlflow_run(mlflow: Any, client: Any, experiment: str, replay: Replay) -> str:
    """Write one run; one of the same identity stays if it is whole and tells the same, and is replaced otherwise."""
    digest, said = replay.digest(), replay.hypothesis.get("hypothesis", "")
    there = client.search_runs([experiment], filter_string=f"tags.`gptlib.id` = '{replay.identity}'")
    if any(run.info.status != "RUNNING" and run.data.tags.get("gptlib.digest") == digest for run in there):
        return "there already"
    for run in there:
        client.delete_run(run.info.run_id)
    tags = {"gptlib.id": replay.identity, "gptlib.digest": digest, "gptlib.group": replay.group}
    tags |= {"mlflow.note.content": said} if said else {}
    begin, outcome = round(1000 * replay.begin.timestamp()), replay.outcome()
    made = client.create_run(experiment, begin, tags, replay.name).info.run_id
    entity = mlflow.entities
    points = [entity.Metric(key, value, replay.milliseconds(row), row["step"])
              for row in replay.rows for key, value in numbers(metrics(row)).items()]  # fmt: skip
    end = max([begin, *map(replay.milliseconds, replay.rows)])
    points += [entity.Metric(f"result.{key}", value, end, 0) for key, value in numbers(outcome).items()]
    texts = {key: value for key, value in outcome.items() if key not in numbers(outcome)}
    for some in _parts([entity.Param(key, str(value)) for key, value in replay.settings().items()], 100):
        client.log_batch(made, params=some)
    for some in _parts(points, 1000):
        client.log_batch(made, metrics=some)
    for some in _parts([entity.RunTag(f"result.{key}", str(value)) for key, value in texts.items()], 100):
        client.log_batch(made, tags=some)
    client.set_terminated(made, "FINISHED" if replay.result["success"] else "FAILED", end)
    return "replaced" if there else "written"


# --- TensorBoard ------------------------------------------------------------------------------------------------


def _to_tensorboard(replays: Sequence[Replay], project: str, where: Path) -> Iterator[str]:
    """A folder of events per run, `where`/<study>/<stage>/<variant>/seed_<seed>, each written anew and then swapped."""
    tensorboardx = _library("tensorboardX", "pip install tensorboardX")
    for replay in replays:
        folder = where / replay.group / replay.variant / f"seed_{replay.seed}"
        scratch = folder.with_name(f".{folder.name}")
        shutil.rmtree(scratch, ignore_errors=True)
        settings, outcome = replay.settings(), replay.outcome()
        with tensorboardx.SummaryWriter(str(scratch)) as writer:
            for row in replay.rows:
                for key, value in numbers(metrics(row)).items():
                    writer.add_scalar(key, value, row["step"], walltime=replay.milliseconds(row) / 1000)
            for title, values in (("settings", settings), ("outcome", outcome)):
                lines = "\n".join(f"| {key} | {value} |" for key, value in values.items())
                writer.add_text(title, f"| field | value |\n|---|---|\n{lines}")
        replaced = folder.exists()
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
        yield f"{replay.name}: {'replaced' if replaced else 'written'} ({folder})"


# --- the tracker's single file ----------------------------------------------------------------------------------


def _to_json(replays: Sequence[Replay], project: str, where: Path) -> Iterator[str]:
    """experiment_<name>_<UTC time>.json for each run, as ExperimentTracker leaves it: load_experiment_log reads it."""
    for replay in replays:
        name = f"{replay.study}_{replay.stage}_{replay.variant}_seed_{replay.seed}"
        path = where / f"experiment_{name}_{replay.begin.astimezone(UTC):%Y%m%d_%H%M%S}.json"
        verb = "replaced" if path.exists() else "written"
        experiment_log(replay).write(path)
        known = {"settings": replay.settings(), "outcome": replay.outcome()}
        records.write_json(path, records.read_json(path) | {"record": known})
        yield f"{replay.name}: {verb} ({path})"


def experiment_log(replay: Replay) -> ExperimentLog:
    """The run as a tracker tells it: an iteration is our step, so step 0 is before the first update.

    At the step of a divergence the loss is nan, by which a log is known to have diverged; our own lines leave it out.
    """
    result, diverged = replay.result, replay.result.get("diverged_at")
    log = ExperimentLog(_config(replay), replay.begin.isoformat())
    log.status = {"finished": "complete"}.get(result["status"], result["status"])
    log.notes, log.gradient_steps = result.get("error") or replay.hypothesis.get("hypothesis", ""), result["final_step"]
    log.seconds = result["time_seconds"]
    for key in ("final_train_loss", "final_val_loss"):
        setattr(log, key, math.nan if result[key] is None else result[key])
    for row in replay.rows:
        said = metrics(row)
        when = {"iteration": row["step"], "gradient_step": row["step"]}
        when |= {"elapsed_seconds": said.pop("train_time_ms", 0) / 1000}
        loss, val_loss = said.pop("train_loss", None), said.pop("val_loss", None)
        renamed = {"learning_rate": said.pop("lr", None), "tokens_per_sec": said.pop("tokens_per_second", None)}
        if val_loss is not None:
            log.evals.append(when | {"train_loss": loss, "val_loss": val_loss})
        if loss is not None:
            log.metrics.append(when | {"train_loss": loss} | renamed | said)
    if diverged is not None:
        end: Row = {"iteration": diverged, "gradient_step": diverged, "elapsed_seconds": result["time_seconds"] or 0.0}
        log.metrics = [row for row in log.metrics if row["iteration"] != diverged] + [end | {"train_loss": math.nan}]
    if result["status"] == "failed" and (last := (log.evals or log.metrics)[-1:]):
        last[0]["success"] = False  # so that import-log calls it failed, however near the end it came
    return log


def _config(replay: Replay) -> ExperimentConfig:
    """What ExperimentConfig has names for; the whole configuration stands in the file beside it. Rates are of matrices.

    Of an imported run, or one of a version with other fields, only name and seed are known.
    """
    said: dict[str, Any] = {"experiment_name": f"{replay.study}_{replay.stage}_{replay.variant}", "seed": replay.seed}
    if not (known := replay.record.get("config")):
        return ExperimentConfig(**said)
    try:
        config = RunConfig.model_validate(known)
    except ValidationError:
        return ExperimentConfig(**said)
    model, optim, steps = config.model, config.optim, config.train.steps
    rate = optim.matrix_lr
    return ExperimentConfig(
        **said, context_length=model.seq_len, d_model=model.model_dim, num_heads=model.num_heads,
        d_ff=model.mlp_dim, num_layers=model.num_layers,
        num_parameters=(replay.summary.get("accounting") or {}).get("total"), dropout=model.dropout,
        rope_theta=model.rope_theta if model.position == "rope" else None, batch_size=config.train.batch_rows,
        max_iters=steps, max_learning_rate=rate, min_learning_rate=rate * config.schedule.final,
        warmup_iters=round(config.schedule.warmup * steps),
        weight_decay=(optim.muon if optim.matrices == "muon" else optim.adamw).weight_decay, betas=optim.adamw.betas,
        grad_clip=optim.grad_clip, device=replay.result.get("device") or replay.record.get("device"),
    )  # fmt: skip
