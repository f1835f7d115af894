"""What a run costs: the price list, the times of earlier runs, and what is estimated from them, without torch."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from pydantic import Field

from gptlib import records
from gptlib.accounting import run_flops
from gptlib.config import ConfigError, fingerprint, project_root, validate
from gptlib.fields import RunConfig, Section
from gptlib.study.studies import Stage, StageName, Study
from gptlib.yaml12 import read_yaml, suggestion

# Share of the peak that training reaches where nothing was measured: 0.38 on 8 H100, 0.51 on 8 A100, 0.42 on one H200
# in the logs of modded-nanogpt's track 3 (0.18 on 8 L40S, with SOAP); 0.48 for the quickstart on a CPU core.
ASSUMED_MFU = 0.4
VOCABULARY = {"gpt2": 50_257, "byte": 257, "char": 100}  # for estimates before there is a tokenizer


# --- prices -----------------------------------------------------------------------------------------------------


class Device(Section):
    dollars_per_hour: float = Field(ge=0)  # of one
    tflops: float = Field(gt=0)  # peak of one, 10^12 FLOP/s: bf16 on a GPU, fp32 on a CPU core
    memory_gib: float | None = Field(None, gt=0)


class Prices(Section):
    """The price list, params/prices.yaml."""

    devices: dict[str, Device]

    def of(self, name: str) -> Device:
        """Raises ConfigError for a device that is not in the list."""
        if name not in self.devices:
            near = suggestion(name, self.devices)
            raise ConfigError(f"device {name!r} is not in params/prices.yaml: give it a price there{near}")
        return self.devices[name]


def load_prices(path: Path | None = None) -> Prices:
    """Read a price list, by default params/prices.yaml. Raises ConfigError."""
    path = path or project_root() / "params" / "prices.yaml"
    values, lines = read_yaml(path)
    return validate(Prices, values, {key: f"{path.name} line {line}" for key, line in lines.items()})


def dollars(amount: float) -> str:
    """`$8.40`, and `$0.0021` where cents would show nothing."""
    return f"${amount:,.2f}" if amount == 0 or abs(amount) >= 0.1 else f"${amount:.2g}"


# --- runs of earlier studies ------------------------------------------------------------------------------------


class PastRun(NamedTuple):
    """A finished run found below outputs/, of any study."""

    place: str  # <study>/<stage>/<variant>
    config: dict[str, Any]
    seed: int
    seconds: float  # training time
    devices: frozenset[str]  # names in the price list that it ran on
    current: bool  # made by the code that decides numbers as it is now


def past_runs(outputs: Path, prices: Prices) -> list[PastRun]:
    """All finished runs with their times, those left out that were only taken over from another study."""
    machine, source, found = (records.cpu_name(), records.gpu_names()), records.numeric_source_hash(), []
    for path in sorted(outputs.glob("*/*/*/config.json")):
        with contextlib.suppress(records.RecordError, KeyError):
            asked, there = records.read_json(path), records.read_json(path.with_name("environment.json"))
            place = "/".join(path.parent.relative_to(outputs).parts)
            here = {"here"} if (there["cpu"], there["gpus"]) == machine else set()
            for result in results_of(path.parent):
                if result.get("status") == "finished" and result["fingerprint"] == asked["fingerprint"]:
                    named = {
                        name
                        for name in prices.devices
                        if re.search(rf"\b{re.escape(name)}\b", result.get("device", ""))
                    }
                    where = frozenset(here | named)
                    now = there["source_hash"] == source
                    found.append(PastRun(place, asked["config"], result["seed"], result["time_seconds"], where, now))
    return found


def results_of(experiment: Path) -> Iterator[dict[str, Any]]:
    """Every attempt of every run made in this folder, failed and diverged ones included, each once."""
    last = [records.read_json(path) for path in sorted(experiment.glob("runs/*/result.json"))]
    attempts = {
        (row["run_id"], row["seed"], row["attempt"]): row
        for row in [*records.read_jsonl(experiment / "results.jsonl"), *last]
    }
    return (row for row in attempts.values() if "reused_from" not in row)


def _speed_key(config: RunConfig | Mapping[str, Any]) -> str:
    """What runs of one speed have in common: all but their length, seed, evaluation and the place of their data."""
    values = config.model_dump(mode="json") if isinstance(config, RunConfig) else dict(config)
    kept = {key: value for key, value in values.items() if key not in ("eval", "train", "data")}
    kept["rows"] = values["train"]["batch_rows"]
    return fingerprint(kept | {"data": {key: value for key, value in values["data"].items() if key != "path"}})


# --- estimates --------------------------------------------------------------------------------------------------


def vocabulary(config: RunConfig) -> int:
    """Size of the vocabulary, as nearly as it is known before there is a tokenizer."""
    return VOCABULARY.get(config.data.tokenizer, config.data.vocab_size)


@dataclass(frozen=True)
class Estimate:
    """Of one run: minutes of training, dollars, and in words where they are from."""

    minutes: float
    dollars: float
    source: str


def estimate(
    study: Study, name: StageName | None, config: RunConfig, prices: Prices, past: Iterable[PastRun] = (),
    device: str = "here",
) -> Estimate:  # fmt: skip
    """Of one run of `config` in a stage (None: of a study without stages, one rank to each `device`).

    What the study declares comes first; then what finished runs of the same configuration on the same device took for
    a step, of whatever length they were; else FLOPs over an assumed share of the peak. Raises ConfigError.
    """
    alone = Stage(seeds=study.seeds, device=device, devices=config.hardware.ranks)
    stage = study.stages.stages()[name] if study.stages and name else alone
    price, count = prices.of(stage.device), device_count(stage, config)
    key, steps = _speed_key(config), config.train.steps
    alike = [run for run in past if stage.device in run.devices and _speed_key(run.config) == key]
    if stage.minutes_per_run is not None:
        minutes, source = stage.minutes_per_run, "time declared"
    elif alike:
        minutes = fmean(run.seconds / run.config["train"]["steps"] for run in alike) * steps / 60
        source = f"time measured on {len(alike)} runs, the last {alike[-1].place}"
    else:
        minutes = run_flops(config, vocabulary(config)) / (count * price.tflops * 1e12 * ASSUMED_MFU) / 60
        peak = f"{price.tflops:g} TFLOP/s" + (" of a CPU core" if stage.device == "here" else "")
        source = f"time assumed, not measured: FLOPs at {ASSUMED_MFU:g} of the peak, {peak}"
    if stage.dollars_per_run is not None:
        return Estimate(minutes, stage.dollars_per_run, f"dollars declared; {source}")
    named = f"{count} x {stage.device}, {dollars(price.dollars_per_hour)} an hour each"
    return Estimate(minutes, minutes / 60 * count * price.dollars_per_hour, f"{source}; {named}")


def device_count(stage: Stage, config: RunConfig) -> int:
    """Devices that a run pays for; here those are CPU cores."""
    return config.hardware.ranks * config.hardware.threads if stage.device == "here" else stage.devices
