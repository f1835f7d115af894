"""A whole study: its notebooks executed by papermill, in order, several at once, done ones skipped.

Each notebook is a papermill process of its own, so that a killed kernel ends one experiment and not the study. What
counts as done is the experiment's own record, never what papermill says. Running a study again finishes what is
missing.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from gptlib import records
from gptlib.config import ConfigError, fingerprint, load_config, params_file, project_root
from gptlib.launch import bound_module, record_failure
from gptlib.study.hypothesis import Ablation, combine, load_ablation
from gptlib.study.plan import Plan, plan_experiment
from gptlib.study.studies import Study, load_study

POLL_SECONDS = 0.5


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


@dataclass(frozen=True)
class Outcome:
    """What a study left: its executed notebooks, the analysis last, and one line per notebook that did not finish."""

    folder: Path
    notebooks: list[Path]
    failures: list[str]


def run_study(name: str | Path, outputs: Path, overrides: tuple[str, ...] = ()) -> Outcome:
    """Run what is missing of a study. A notebook that fails is reported, and all the others still run.

    Raises ConfigError for bad input, RecordError when the same study is running already.
    """
    study = load_study(name, overrides)
    with records.exclusive(outputs / study.name):
        return _Run(study, outputs).all()


class _Run:
    def __init__(self, study: Study, outputs: Path) -> None:
        self.study, self.outputs, self.folder = study, outputs, outputs / study.name
        self.ablations = {_from_anywhere("ablations", name): load_ablation(name) for name in study.ablations}
        named = dict(zip(study.ablations, self.ablations.items(), strict=True))
        self.pairs = [(named[a], named[b]) for a, b in study.interactions]
        self.configs = {base: load_config(base, study.overrides) for base in study.bases}
        self.failures: list[str] = []
        self.ended = threading.Event()
        print(f"study {study.name}: {study.question}", flush=True)

    # ---- the steps

    def _parameters(self, base: str, **more: Any) -> dict[str, Any]:
        common = {"overrides": self.study.overrides, "outputs": str(self.outputs)}
        return {"base": _from_anywhere("base", base)} | common | more

    def _place(self, base: str) -> dict[str, Any]:
        return {"study": self.study.name, "stage": self.study.stage_of(base), "seeds": self.study.seeds}

    def data_step(self, base: str) -> Step:
        notebook, name = _notebook("00_data"), "data" if base == self.study.bases[0] else f"data-{Path(base).stem}"
        inputs = self.configs[base].data.model_dump(mode="json"), records.numeric_source_hash(), _digest(notebook)
        return Step(name, notebook, self._parameters(base), self.folder / f"{name}.ipynb", key=fingerprint(inputs))

    def experiment_step(self, base: str, ablation: Ablation | None) -> Step:
        """The step of a base's baseline (None) or of an ablation of it."""
        place = self.outputs, self.study.name, self.study.stage_of(base), self.configs[base], self.study.seeds

        first = plan_experiment(*place, ablation, _say)
        declared = ablation.model_dump(mode="json") if ablation else {}
        parameters = self._parameters(base, **self._place(base), **declared)
        notebook = _notebook("10_baseline" if ablation is None else "20_ablations")
        name = first.variant if base == self.study.bases[0] else f"{Path(base).stem}.{first.variant}"
        return Step(
            name,
            notebook,
            parameters,
            first.folder / "notebook.ipynb",
            first,
            partial(plan_experiment, *place, ablation),
        )

    def analysis_step(self, steps: dict[str, list[Step]]) -> Step:
        """The report on the first base, with the effects of finished ablations at the others."""
        main, *others = self.study.bases
        done = {base: [step.plan for step in steps[base] if step.plan and step.is_done()] for base in steps}
        finished = {base: {plan.variant for plan in plans} for base, plans in done.items()}
        names = [name for name, ablation in self.ablations.items() if ablation.variant in finished[main]]
        wanted = {"baseline", *(self.ablations[name].variant for name in names)}
        ladder = {_from_anywhere("base", b): self.study.stage_of(b) for b in others if wanted <= finished[b]}
        pairs = [[a, b] for (a, x), (b, y) in self.pairs if combine(x, y).variant in finished[main]]
        missing = [step.name for base in steps for step in steps[base] if not step.is_done()]
        parameters = self._parameters(
            main, **self._place(main), ablations=names, interactions=pairs, ladder=ladder, missing=missing
        )
        ends = [records.read_json(p.folder / "summary.json")["end_time"] for plans in done.values() for p in plans]
        notebook = _notebook("90_analysis")
        key = fingerprint([parameters, ends, _digest(notebook)])
        return Step("analysis", notebook, parameters, self.folder / "analysis.ipynb", key=key)

    # ---- running them

    def all(self) -> Outcome:
        start = time.monotonic()
        data = [self.data_step(base) for base in self.study.bases]
        self._execute_all(data)
        asked = [None, *self.ablations.values(), *(combine(a, b) for (_, a), (_, b) in self.pairs)]
        by_base = {base: self._planned(base, asked) for base in self.study.bases}
        steps = [step for base in by_base for step in by_base[base]]
        pending = [step for step in steps if not step.is_done()]
        print(f"{len(steps) - len(pending)} of {len(steps)} experiments are done already", flush=True)
        with _progress(pending):
            self._execute_all([step for step in pending if step.plan and step.plan.ablation is None])
            self._execute_all([step for step in pending if step.plan and step.plan.ablation])
        analysis = self.analysis_step(by_base)
        self._execute_all([analysis])
        print(f"study {self.study.name}: {time.monotonic() - start:.0f} s", flush=True)
        copies = [step.copy for step in (*data, *steps, analysis)]
        return Outcome(self.folder, [copy for copy in copies if copy.exists()], self.failures)

    def _planned(self, base: str, asked: Sequence[Ablation | None]) -> list[Step]:
        """A step for each of `asked`; what cannot be matched or measured at this base is reported and left out."""
        steps = []
        for ablation in asked:
            try:
                steps.append(self.experiment_step(base, ablation))
            except ConfigError as error:
                if ablation is None:
                    raise
                self.failures.append(f"{Path(base).stem}.{ablation.variant} was not started ({error})")
        return steps

    def _execute_all(self, steps: list[Step]) -> None:
        with ThreadPoolExecutor(self.study.notebooks_at_once) as pool:
            try:
                results = pool.map(self._execute, [step for step in steps if not step.is_done()])
                self.failures += [failure for failure in results if failure]
            except BaseException:  # an interrupt above all: its notebooks end with the study
                self.ended.set()
                raise

    def _execute(self, step: Step) -> str:
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


def _say(line: str) -> None:
    print(line, flush=True)


def _from_anywhere(kind: Literal["base", "ablations"], name: str) -> str:
    """A name of params/ as it is, a path made absolute: notebooks run in a folder of their own."""
    return name if Path(name).name == name and not Path(name).suffix else str(params_file(kind, name).resolve())


def _notebook(name: str) -> Path:
    return project_root() / "notebooks" / f"{name}.ipynb"


def _digest(notebook: Path) -> str:
    return hashlib.sha256(notebook.read_bytes()).hexdigest()


def _papermill(notebook: Path, copy: Path, parameters: Path, log: Any, ended: threading.Event) -> int:
    command = [*bound_module("papermill"), str(notebook), str(copy), "-f", str(parameters)]
    command += ["--kernel", "python3", "--no-progress-bar", "--cwd", str(notebook.parent)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    while process.poll() is None and not ended.wait(0.1):
        pass
    process.terminate()
    return process.wait()


@contextlib.contextmanager
def _progress(steps: list[Step]) -> Iterator[None]:
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
