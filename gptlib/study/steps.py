"""Notebooks executed by papermill: one step each, several at once, done ones skipped, with a progress bar over runs.

Each notebook is a papermill process of its own, so that a killed kernel ends one experiment and not the study. What
counts as done is the experiment's own record, never what papermill says.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gptlib import records
from gptlib.config import load_config
from gptlib.fields import RunConfig
from gptlib.launch import bound_module, record_failure
from gptlib.study.plan import Plan

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Place:
    """Experiments that share a baseline: a base with overrides, the stage their folders lie in, and their seeds."""

    base: str
    stage: str
    seeds: list[int]
    overrides: dict[str, Any]
    label: str = ""  # before the names of its steps; empty for the first place

    @property
    def config(self) -> RunConfig:
        return load_config(self.base, self.overrides)


@dataclass
class Step:
    """One notebook to execute: where its copy goes, and the record that proves it done."""

    name: str
    notebook: Path
    parameters: dict[str, Any]
    copy: Path
    plan: Plan | None = None  # None: 00_data and 90_analysis, which are done when their copy is
    replan: Callable[[], Plan] | None = None  # once a tuning that its plan waits for is done
    key: str = ""  # identity of the inputs of a notebook without a plan

    def is_done(self) -> bool:
        if self.plan is None:
            mark = self.copy.with_suffix(".done")
            return self.copy.exists() and mark.exists() and mark.read_text() == self.key
        return self.is_recorded() and self.copy.exists()

    def is_recorded(self) -> bool:
        """Whether its experiment is finished."""
        if self.plan and self.replan and self.plan.arms and self.plan.arms.pending:
            self.plan = self.replan()
        return self.plan is not None and self.plan.is_complete()


class Notebooks:
    """Executes the steps of a study in its folder; `failures` has one line for every one that did not finish."""

    def __init__(self, folder: Path, at_once: int) -> None:
        self.folder, self.at_once = folder, at_once
        self.failures: list[str] = []
        self.ended = threading.Event()

    def execute(self, steps: list[Step]) -> None:
        """Execute those of `steps` that are not done; an interrupt ends them all."""
        with ThreadPoolExecutor(self.at_once) as pool:
            try:
                results = pool.map(self._execute_one, [step for step in steps if not step.is_done()])
                self.failures += [failure for failure in results if failure]
            except BaseException:  # an interrupt above all: its notebooks end with the study
                self.ended.set()
                raise

    def _execute_one(self, step: Step) -> str:
        """Execute one notebook; returns '' or one line that says what went wrong and where to look."""
        scratch = self.folder / f".{step.name}.ipynb"
        parameters, log = scratch.with_suffix(".json"), self.folder / "logs" / f"{step.name}.log"
        records.write_json(parameters, step.parameters)  # JSON is YAML
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as file:
            code = _papermill(step.notebook, scratch, parameters, file, self.ended)
        parameters.unlink()
        if code == 0 and step.plan is None:
            os.replace(scratch, step.copy)
            records.write_text(step.copy.with_suffix(".done"), step.key)
        elif code == 0 and step.is_recorded():
            os.replace(scratch, step.copy)
        else:
            return self._failure(step, scratch, code, log)
        return ""

    def _failure(self, step: Step, scratch: Path, code: int, log: Path) -> str:
        """Keep the copy under a name that says so, and record runs that lost their notebook."""
        for _, _, run in step.plan.runs() if step.plan else ():
            if (run / "run.json").exists() and not (run / "result.json").exists():
                record_failure(run, "interrupted: its notebook ended first")
        if scratch.exists():
            step.copy.parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch, step.copy.with_name(f"{step.copy.stem}.failed.ipynb"))
        lines = log.read_text(errors="replace").strip().splitlines()
        said = lines[-1].strip() if lines and code else "some of its runs failed"
        return f"{step.name} did not finish ({said}); see {log}"


def _papermill(notebook: Path, copy: Path, parameters: Path, log: Any, ended: threading.Event) -> int:
    command = [*bound_module("papermill"), str(notebook), str(copy), "-f", str(parameters)]
    command += ["--kernel", "python3", "--no-progress-bar", "--cwd", str(notebook.parent)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    while process.poll() is None and not ended.wait(0.1):
        pass
    process.terminate()
    return process.wait()


@contextlib.contextmanager
def progress(steps: list[Step]) -> Iterator[None]:
    """A bar over all training steps of the experiments to do, with the time left, drawn by a watching thread."""
    planned = [plan for step in steps if step.plan for plan in _with_trials(step.plan)]
    plans = list({plan.folder: plan for plan in planned if plan.pending()}.values())
    total = sum(plan.config.train.steps * len(plan.seeds) for plan in plans)
    if not total:
        yield
        return
    ended = threading.Event()
    interactive = sys.stdout.isatty()
    form = "{percentage:3.0f}% |{bar:30}| {n_fmt}/{total_fmt} steps, {elapsed} gone, {remaining} left {postfix}"
    delay = 0 if interactive else float("inf")  # a log gets a line every ten seconds instead of a drawn bar
    bar = tqdm(total=total, bar_format=form, smoothing=0, file=sys.stdout, ascii=not interactive, delay=delay)

    def watch() -> None:
        last_line = time.monotonic()
        while not ended.wait(POLL_SECONDS):
            done = [_steps_done(plan) for plan in plans]
            bar.n = sum(done)
            running = [
                p.variant for p, n in zip(plans, done, strict=True) if 0 < n < p.config.train.steps * len(p.seeds)
            ]
            bar.set_postfix_str(" ".join(running), refresh=False)
            if interactive:
                bar.refresh()
            elif time.monotonic() - last_line > 10:
                last_line = time.monotonic()
                print(str(bar), flush=True)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        bar.n = sum(_steps_done(plan) for plan in plans)
        bar.close()


def _with_trials(plan: Plan) -> list[Plan]:
    """A plan, what it is tuned on, and the arm it is compared with."""
    return [*plan.tuning(), *([plan.baseline()] if plan.arms else []), plan]


def _steps_done(plan: Plan) -> int:
    """Training steps that the runs of a plan have logged, from the last line of each metrics file."""
    done = 0
    for run in plan.started_runs():
        path = run / "metrics.jsonl"
        with contextlib.suppress(OSError, ValueError, IndexError, KeyError), path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
            done += json.loads(file.read().splitlines()[-1])["step"]
    return done
