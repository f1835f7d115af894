"""Sinks: which runs are replayed, what is told of them, and that a second export doubles nothing.

What a library has written is read back; one that is not installed is skipped, with the command that installs it.
"""

import json
import math
import struct
import sys
from types import SimpleNamespace

import pytest
import torch

from gptlib import cli, records
from gptlib.experiment_log import compare_experiments, load_experiment_log
from gptlib.importers import import_logs
from gptlib.sinks import SinkError, collect, export, flatten
from gptlib.study import experiment as experiment_module
from gptlib.study.experiment import execute
from gptlib.study.plan import plan_experiment
from gptlib.train import run_from_folder

HYPOTHESIS = {"variant": "gelu", "hypothesis": "GELU is no worse.", "change": {"model.activation": "gelu"}}
LOSSES = {0: (None, 5.5), 1: (5.0, None), 2: (4.0, 3.5)}  # step: training loss, validation loss


def write_run(experiment, index, seed, attempts=1, fingerprint="f0", losses=LOSSES, **result):
    """A run whose earlier attempts ended after one step with a loss of 9."""
    run = records.run_folder(experiment, index, seed)
    records.write_json(run / "run.json", {"fingerprint": fingerprint, "attempt": attempts})
    who = {"run_id": index, "seed": seed}
    for attempt in range(1, attempts):
        row = {"attempt": attempt, "step": 1, "train_time_ms": 5.0, "train_loss": 9.0}
        records.append_jsonl(run / "metrics.jsonl", who | row)
    for step, (train, val) in losses.items():
        row = {"attempt": attempts, "step": step, "train_time_ms": 10.0 * step, "tokens": 100 * step}
        row |= {} if train is None else {"train_loss": train + seed, "lr": 0.1, "grad_norm": 1.5}
        records.append_jsonl(run / "metrics.jsonl", who | row | ({} if val is None else {"val_loss": val + seed}))
    whole = {"status": "finished", "success": True, "final_step": 2, "final_val_loss": 3.5 + seed, "switches": []}
    whole |= {"final_train_loss": 4.0 + seed, "time_seconds": 0.02, "memory": {"tensor_mib": 7.0}}
    identity = {"schema_version": 1, **who, "attempt": attempts, "fingerprint": fingerprint}
    records.write_json(run / "result.json", identity | whole | result)
    return run


@pytest.fixture
def experiment(tmp_path):
    """A variant with a hypothesis and a verdict; its second run needed two attempts."""
    folder = tmp_path / "outputs" / "mini" / "full" / "gelu"
    config = {"model": {"num_layers": 2, "skip_attention": [], "window_pattern": "L"}, "train": {"steps": 2}}
    record = {"fingerprint": "f0", "config": config, "start_time": "2026-01-02T03:04:05+00:00", "device": "cpu"}
    records.write_json(folder / "config.json", record | {"difference": {"model.activation": ["relu2", "gelu"]}})
    records.write_json(folder / "hypothesis.json", HYPOTHESIS)
    comparison = {"verdict": "undecided", "difference": -0.25, "p_value": None}
    records.write_json(folder / "summary.json", {"comparison": comparison, "accounting": {"total": 321}})
    write_run(folder, 0, 1)
    write_run(folder, 1, 2, attempts=2)
    return folder


@pytest.fixture
def gptlib(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gptlib", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out.splitlines(), printed.err

    return call


def test_a_study_a_stage_an_experiment_and_a_run_are_found(experiment):
    for folder in (experiment.parents[1], experiment.parent, experiment):
        replays, waiting = collect(folder)
        assert [replay.name for replay in replays] == ["gelu/1", "gelu/2"] and not waiting
        assert {replay.group for replay in replays} == {"mini/full"}
    (one,), _ = collect(records.run_folder(experiment, 1, 2))
    assert one.name == "gelu/2" and one.identity == collect(experiment)[0][1].identity


def test_only_rows_of_the_attempt_that_the_result_is_of_are_told(experiment):
    rows = collect(experiment)[0][1].rows
    assert [(row["step"], row.get("train_loss")) for row in rows] == [(0, None), (1, 7.0), (2, 6.0)]


def test_runs_in_order_without_what_is_not_of_the_experiment(experiment):
    for index in range(2, 11):
        write_run(experiment, index, index + 1)
    write_run(experiment, 11, 12, fingerprint="another")
    unfinished = write_run(experiment, 12, 13)
    (unfinished / "result.json").unlink()
    aside = experiment.with_name("gelu.20260101T000000")
    records.write_json(aside / "config.json", {"fingerprint": "f0", "config": {}})
    write_run(aside, 0, 99)
    replays, waiting = collect(experiment.parents[1])
    assert [replay.seed for replay in replays] == list(range(1, 12)) and waiting == [unfinished]
    assert [replay.seed for replay in collect(aside)[0]] == [99]
    lines = list(export(experiment, "json"))
    assert lines[-1] == f"not exported: {unfinished}: no result yet" and len(lines) == 12


def test_what_is_told_is_flat(experiment):
    replay = collect(experiment)[0][0]
    assert replay.settings() == {
        "model.num_layers": 2, "model.window_pattern": "L", "train.steps": 2, "seed": 1, "fingerprint": "f0",
        "device": "cpu", "difference.model.activation": '["relu2", "gelu"]', "hypothesis.variant": "gelu",
        "hypothesis.hypothesis": "GELU is no worse.", "hypothesis.change.model.activation": "gelu",
    }  # fmt: skip
    outcome = replay.outcome()
    assert outcome["final_val_loss"] == 4.5 and outcome["memory.tensor_mib"] == 7.0 and outcome["success"] is True
    assert outcome["verdict"] == "undecided" and outcome["comparison.difference"] == -0.25
    assert not {"comparison.p_value", "switches", "schema_version"} & set(outcome)
    nested = {"a": {"b": {"c": 1}, "d": {}}, "e": None, "f": [1, 2], "g": False}
    assert flatten(nested) == {"a.b.c": 1, "f": "[1, 2]", "g": False}


def test_an_identity_is_of_place_seed_attempt_and_numbers(experiment):
    first, second = (replay.identity for replay in collect(experiment)[0])
    again = write_run(experiment, 0, 1, attempts=2)
    retried = collect(again)[0][0].identity
    moved = experiment.rename(experiment.with_name("other"))
    elsewhere = collect(moved)[0][1].identity
    assert len({first, second, retried, elsewhere}) == 4


def test_a_verdict_changes_the_digest(experiment):
    before = [replay.digest() for replay in collect(experiment)[0]]
    assert before == [replay.digest() for replay in collect(experiment)[0]]
    records.write_json(experiment / "summary.json", {"comparison": {"verdict": "better"}})
    assert not set(before) & {replay.digest() for replay in collect(experiment)[0]}


@pytest.mark.parametrize(
    ("library", "to", "command"),
    [
        ("wandb", "wandb", "pip install wandb"),
        ("mlflow", "mlflow", "pip install mlflow-skinny sqlalchemy alembic"),
        ("tensorboardX", "tensorboard", "pip install tensorboardX"),
    ],
)
def test_a_missing_library_is_one_line_with_the_command(gptlib, experiment, monkeypatch, library, to, command):
    monkeypatch.setitem(sys.modules, library, None)
    status, out, error = gptlib(experiment, "--to", to)
    assert status == 2 and not out and error.count("\n") == 1 and error.endswith(f"{command}\n")
    assert not (experiment.parents[2] / "exports").exists()


def test_bad_input_is_one_line_and_status_2(gptlib, experiment, tmp_path, monkeypatch):
    for folder, arguments, message in [
        (tmp_path / "nothing", (), "no runs; give a study"),
        (experiment, ("--project", "p"), "json has no projects"),
        (experiment, ("--where", experiment / "config.json"), "choose another"),
    ]:
        status, _, error = gptlib(folder, "--to", "json", *arguments)
        assert status == 2 and message in error and error.count("\n") == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    status, _, error = gptlib(experiment, "--to", "mlflow", "--where", tmp_path)
    assert status == 2 and "MLFLOW_TRACKING_URI names another place" in error
    (records.run_folder(experiment, 0, 1) / "result.json").unlink()
    with pytest.raises(SinkError, match="none of its 1 runs has a result yet"):
        list(export(records.run_folder(experiment, 0, 1), "json"))


def test_a_run_becomes_a_trackers_file(gptlib, experiment):
    status, lines, _ = gptlib(experiment.parents[1], "--to", "json")
    files = sorted((experiment.parents[2] / "exports" / "json").iterdir())
    names = [f"experiment_mini_full_gelu_seed_{seed}_20260102_030405.json" for seed in (1, 2)]
    assert status == 0 and len(lines) == 2 and [file.name for file in files] == names
    log = load_experiment_log(files[1])
    assert (log.status, log.final_val_loss, log.final_train_loss, log.gradient_steps) == ("complete", 5.5, 6.0, 2)
    assert [(row["iteration"], row["val_loss"]) for row in log.evals] == [(0, 7.5), (2, 5.5)]
    keys = ("train_loss", "learning_rate", "grad_norm", "elapsed_seconds")
    assert [[row[key] for key in keys] for row in log.metrics] == [[7.0, 0.1, 1.5, 0.01], [6.0, 0.1, 1.5, 0.02]]
    assert log.duration_seconds == 0.02
    assert log.notes == "GELU is no worse." and log.config.num_layers == 2 and log.config.num_parameters == 321
    whole = json.loads(files[1].read_text())["record"]
    assert whole["settings"]["model.num_layers"] == 2 and whole["outcome"]["verdict"] == "undecided"
    before = [file.read_bytes() for file in files]
    _, again, _ = gptlib(experiment, "--to", "json")
    assert all(": replaced (" in line for line in again) and [file.read_bytes() for file in files] == before


def test_diverged_and_failed_runs_stay_what_they_are(experiment, tmp_path):
    losses = LOSSES | {2: (None, None)}  # a line leaves out what is no number
    write_run(experiment, 2, 3, losses=losses, status="diverged", success=False, final_val_loss=None, diverged_at=2)
    write_run(experiment, 3, 4, status="failed", success=False, final_val_loss=None, error="exit status 1")
    list(export(experiment, "json", where=tmp_path / "logs"))
    logs = [load_experiment_log(file) for file in sorted((tmp_path / "logs").iterdir())]
    assert [log.status for log in logs] == ["complete", "complete", "diverged", "failed"]
    assert logs[2].diverged_at == 2 and math.isnan(logs[2].metrics[-1]["train_loss"])
    assert logs[3].notes == "exit status 1" and math.isnan(logs[3].final_val_loss)
    (folder,) = import_logs([tmp_path / "logs"], tmp_path / "again").folders
    found = [result["status"] for result in records.read_jsonl(folder / "results.jsonl")]
    assert found == ["finished", "finished", "diverged", "failed"]


def test_a_record_of_other_fields_claims_only_name_and_seed(experiment, tmp_path):
    for config in ({}, {"model": {"a_field_of_old": 1}}):
        record = records.read_json(experiment / "config.json") | {"config": config}
        records.write_json(experiment / "config.json", record)
        list(export(experiment, "json", where=tmp_path / "logs"))
        log = load_experiment_log(next((tmp_path / "logs").glob("*seed_1_*")))
        known = log.config.model_dump(exclude_none=True)
        assert known == {"experiment_name": "mini_full_gelu", "seed": 1} and log.final_val_loss == 4.5


def test_trained_exported_and_imported_again(outputs, tiny, tmp_path, monkeypatch):
    """A real record and what import-log makes of its export agree on seeds, losses and curves."""

    def in_process(runs, *_):
        torch.set_num_threads(1)
        for run in runs:
            run_from_folder(run)

    monkeypatch.setattr(experiment_module, "launch", in_process)
    trained = execute(plan_experiment(outputs, "real", "full", tiny(), (5, 6), None, lambda _: None))
    list(export(outputs / "real", "json", where=tmp_path / "logs"))
    files = sorted((tmp_path / "logs").iterdir())
    log = load_experiment_log(files[0])
    assert (log.config.d_model, log.config.d_ff, log.config.max_iters) == (16, 64, 4)
    found = {numbers["best_val_loss"] for numbers in compare_experiments(files).values()}
    assert found == {result["best_val_loss"] for result in trained.results}
    (folder,) = import_logs([tmp_path / "logs"], tmp_path / "again").folders
    imported = records.read_jsonl(folder / "results.jsonl")
    for ours, theirs in zip(trained.results, imported, strict=True):
        keys = ("seed", "status", "final_val_loss", "best_val_loss", "final_step")
        assert {key: ours[key] for key in keys} == {key: theirs[key] for key in keys}
    curve = records.read_jsonl(records.run_folder(trained.plan.folder, 0, 5) / "metrics.jsonl")
    copy = records.read_jsonl(records.run_folder(folder, 0, 5) / "metrics.jsonl")
    for key in ("train_loss", "val_loss"):
        seen, kept = ({row["step"]: row[key] for row in rows if key in row} for rows in (curve, copy))
        assert seen == kept and seen


class Server:
    """wandb as far as the sink uses it: runs by id with their history, a resumed run goes on after its last step."""

    errors, Settings = SimpleNamespace(Error=RuntimeError), staticmethod(dict)

    def __init__(self):
        self.runs, self.breaks_after = {}, None

    def init(self, *, id, resume, **told):
        assert resume == "allow"
        run = self.runs.get(id) or SimpleNamespace(history=[], summary={}, resumed=False)
        run.resumed, run.told = id in self.runs, told
        run.step, run.offline, run.url = (run.history[-1][0] + 1 if run.history else 0), False, f"server/{id}"
        run.log, run.finish = lambda values, step: self.log(run, values, step), lambda exit_code: None
        self.runs[id] = run
        return run

    def log(self, run, values, step):
        if self.breaks_after is not None and step > self.breaks_after:
            raise self.errors.Error("the network is gone\nsecond line")
        run.history.append((step, values))


def test_online_runs_are_completed_and_never_doubled(experiment, monkeypatch):
    server = Server()
    monkeypatch.setitem(sys.modules, "wandb", server)
    server.breaks_after = 1
    with pytest.raises(SinkError, match=r"^W&B: the network is gone \(.*\)$"):
        list(export(experiment, "wandb"))
    server.breaks_after = None
    for verbs in (["completed", "written"], ["completed", "completed"]):
        lines = list(export(experiment, "wandb", "my_project"))
        assert [line.split(": ")[1].split(" (")[0] for line in lines] == verbs
    first, second = server.runs.values()
    assert [step for step, _ in first.history] == [step for step, _ in second.history] == [0, 1, 2]
    assert first.history[1][1] == {"train_time_ms": 10.0, "tokens": 100, "train_loss": 6.0, "lr": 0.1, "grad_norm": 1.5}
    assert first.summary["final_val_loss"] == 4.5 and first.summary["verdict"] == "undecided"
    said = {key: first.told[key] for key in ("project", "name", "group", "job_type")}
    assert said == {"project": "my_project", "name": "gelu/1", "group": "mini/full", "job_type": "gelu"}
    assert first.told["config"]["hypothesis.hypothesis"] == "GELU is no worse."


def wandb_records(path, pb):
    """Records of an offline run's file: a LevelDB log of 32 KiB blocks after a header of 7 bytes."""
    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts, place = parts + data[place + 7 : place + 7 + length], place + 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, parts = pb.Record(), b""
            record.ParseFromString(data[place - length : place] if kind == 1 else parts)
            yield record


def test_an_offline_run_is_read_back_and_replaced(gptlib, experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb = pytest.importorskip("wandb", reason="pip install wandb")
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    wandb.teardown()  # the mode is read once for a process
    for _ in range(2):
        status, lines, error = gptlib(experiment, "--to", "wandb", "--project", "p", "--where", tmp_path / "wb")
        assert status == 0, error
        assert len(lines) == len(list((tmp_path / "wb" / "wandb").glob("offline-run-*"))) == 2
    (file,) = (tmp_path / "wb" / "wandb").glob(f"offline-run-*/run-{collect(experiment)[0][0].identity}.wandb")
    found = {kind: [] for kind in ("run", "history", "summary")}
    for record in wandb_records(file, pb):
        if (kind := record.WhichOneof("record_type")) in found:
            found[kind].append(getattr(record, kind))
    (run, *_), rows = found["run"], []
    assert (run.project, run.display_name, run.run_group) == ("p", "gelu/1", "mini/full")
    assert run.host == "gptlib" and not run.HasField("git")  # nothing of the machine that exports
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["model.num_layers"] == 2 and config["hypothesis.hypothesis"] == "GELU is no worse."
    for entry in found["history"]:
        values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in entry.item}
        rows.append((entry.step.num, values.get("train_loss"), values.get("val_loss")))
    assert rows == [(0, None, 6.5), (1, 6.0, None), (2, 5.0, 4.5)]
    told = {item.key or item.nested_key[0]: item.value_json for entry in found["summary"] for item in entry.update}
    assert told["verdict"] == '"undecided"' and float(told["final_val_loss"]) == 4.5
    (file.parent / f"{file.name}.synced").touch()
    _, lines, _ = gptlib(records.run_folder(experiment, 0, 1), "--to", "wandb", "--where", tmp_path / "wb")
    assert "there already, and synced" in lines[0] and file.exists()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert gptlib(experiment, "--to", "wandb")[0] == 2


def test_a_database_of_mlflow_is_read_back(gptlib, experiment, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(name, reason="pip install mlflow-skinny sqlalchemy alembic")
    import mlflow

    arguments = (experiment, "--to", "mlflow", "--project", "p", "--where", tmp_path / "ml")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'ml' / 'mlflow.db'}")

    def runs():
        (place,) = [e.experiment_id for e in client.search_experiments() if e.name == "p"]
        return {run.info.run_name: run for run in client.search_runs([place])}

    status, lines, error = gptlib(*arguments)
    assert status == 0 and [line.split(" (")[0] for line in lines] == ["gelu/1: written", "gelu/2: written"], error
    first = runs()["gelu/1"]
    history = client.get_metric_history(first.info.run_id, "train_loss")
    begin = 1767323045000  # 2026-01-02T03:04:05Z in ms
    assert [(m.step, m.value, m.timestamp - begin) for m in history] == [(1, 6.0, 10), (2, 5.0, 20)]
    assert first.data.params["model.num_layers"] == "2" and first.info.status == "FINISHED"
    assert first.data.metrics["result.final_val_loss"] == 4.5
    assert first.data.tags["result.verdict"] == "undecided" and first.data.tags["gptlib.group"] == "mini/full"
    assert all("there already" in line for line in gptlib(*arguments)[1])
    records.write_json(experiment / "summary.json", {"comparison": {"verdict": "better"}})
    assert all(": replaced" in line for line in gptlib(*arguments)[1])
    assert len(runs()) == 2 and runs()["gelu/1"].data.tags["result.verdict"] == "better"
    client.set_tag(runs()["gelu/1"].info.run_id, "gptlib.digest", "of an export that was cut off")
    assert [line.split(" (")[0] for line in gptlib(*arguments)[1]] == ["gelu/1: replaced", "gelu/2: there already"]


def events(folder, pb):
    """Of a folder's files: TFRecords, length (8 bytes), its checksum (4), the event, its checksum (4)."""
    for file in sorted(folder.iterdir()):
        data, place = file.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = pb.Event()
            event.ParseFromString(data[place + 12 : place + 12 + length])
            yield event
            place += length + 16


def test_events_are_read_back_and_replaced(gptlib, experiment, tmp_path):
    pytest.importorskip("tensorboardX", reason="pip install tensorboardX")
    pb = pytest.importorskip("tensorboardX.proto.event_pb2")
    for verb in ("written", "replaced"):
        status, lines, error = gptlib(experiment, "--to", "tensorboard", "--where", tmp_path / "tb")
        assert status == 0 and all(verb in line for line in lines) and len(lines) == 2, error
    folder = tmp_path / "tb" / "mini" / "full" / "gelu" / "seed_1"
    assert {path.name for path in folder.parent.iterdir()} == {"seed_1", "seed_2"}
    found, texts = {}, {}
    for event in events(folder, pb):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value, event.wall_time))
            else:
                texts[value.tag] = b"".join(value.tensor.string_val).decode()
    assert found["train_loss"] == [(1, 6.0, pytest.approx(1767323045.01)), (2, 5.0, pytest.approx(1767323045.02))]
    assert [step_and_value[:2] for step_and_value in found["val_loss"]] == [(0, 6.5), (2, 4.5)]
    (settings,) = [text for tag, text in texts.items() if tag.startswith("settings")]
    assert "| model.num_layers | 2 |" in settings and any("| verdict | undecided |" in t for t in texts.values())


def test_tensorboard_itself_reads_the_events(experiment, tmp_path):
    pytest.importorskip("tensorboardX", reason="pip install tensorboardX")
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    list(export(experiment, "tensorboard", where=tmp_path))
    reader = EventAccumulator(str(tmp_path / "mini" / "full" / "gelu" / "seed_2"))
    reader.Reload()
    assert [(event.step, event.value) for event in reader.Scalars("val_loss")] == [(0, 7.5), (2, 5.5)]
