"""A whole study: what is registered first, which notebooks are executed in which order, and its report.

All ablations at once, over several bases or repeated with fresh seeds; in stages, see staged.py. Running a study again
finishes what is missing.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gptlib import records
from gptlib.config import ConfigError, fingerprint, from_anywhere, project_root
from gptlib.study.budget import stage_costs
from gptlib.study.hypothesis import Ablation, combine, load_ablation
from gptlib.study.noise import note_noise
from gptlib.study.plan import plan_experiment
from gptlib.study.prices import load_prices
from gptlib.study.registration import register
from gptlib.study.stability import stable_rates
from gptlib.study.staged import run_stages
from gptlib.study.steps import Notebooks, Place, Step, progress
from gptlib.study.studies import Study, load_study

SAID = ("registration", "decision")  # what the report also speaks of


@dataclass(frozen=True)
class Outcome:
    """What a study left: its executed notebooks, the analysis last, and one line per notebook that did not finish."""

    folder: Path
    notebooks: list[Path]
    failures: list[str]


def run_study(name: str | Path, outputs: Path, overrides: tuple[str, ...] = (), profile: str = "") -> Outcome:
    """Run what is missing of a study. A notebook that fails is reported, and all the others still run.

    Raises ConfigError for bad input, RecordError when the same study is running already.
    """
    study = load_study(name, overrides, profile)
    with records.exclusive(outputs / study.name):
        return _Run(study, outputs).all()


class _Run:
    def __init__(self, study: Study, outputs: Path) -> None:
        self.study, self.outputs, self.folder = study, outputs, outputs / study.name
        self.ablations = {from_anywhere("ablations", name): load_ablation(name) for name in study.ablations}
        named = dict(zip(study.ablations, self.ablations.items(), strict=True))
        self.pairs = [(named[a], named[b]) for a, b in study.interactions]
        self.notebooks = Notebooks(self.folder, study.notebooks_at_once)
        self.searched: dict[str, list[float]] = {}  # of study.stable_lr, what was found
        self.places = [
            Place(
                base,
                study.stage_of(base),
                study.seeds,
                study.overrides,
                "" if base == study.bases[0] else Path(base).stem,
            )
            for base in study.bases
        ]
        self.repeats = [
            Place(study.bases[0], f"{study.stage}-{n:02d}", study.seeds_of(n), study.overrides, f"repeat-{n:02d}")
            for n in range(2, study.repeats + 1)
        ]
        for place in self.places:
            _ = place.config  # every base is there and valid before anything runs
        if study.stages:
            stage_costs(study, load_prices())  # and so is every arm of every stage, and its device
        print(f"study {study.name}: {study.question}", flush=True)

    # ---- the steps

    def _parameters(self, place: Place, **more: Any) -> dict[str, Any]:
        common = {"overrides": place.overrides, "outputs": str(self.outputs)}
        return {"base": from_anywhere("base", place.base)} | common | more

    def data_step(self, place: Place) -> Step:
        notebook, name = _notebook("00_data"), f"data-{place.label}".removesuffix("-")
        inputs = place.config.data.model_dump(mode="json"), records.numeric_source_hash(), _digest(notebook)
        return Step(name, notebook, self._parameters(place), self.folder / f"{name}.ipynb", key=fingerprint(inputs))

    def experiment_step(self, place: Place, ablation: Ablation | None) -> Step:
        """The step of a place's baseline (None) or of an ablation of it."""
        asked = self.outputs, self.study.name, place.stage, place.config, place.seeds
        first = plan_experiment(*asked, ablation, _say)
        where = {"study": self.study.name, "stage": place.stage, "seeds": place.seeds}
        declared = ablation.model_dump(mode="json") if ablation else {}
        return Step(
            f"{place.label}.{first.variant}".removeprefix("."),
            _notebook("10_baseline" if ablation is None else "20_ablations"),
            self._parameters(place, **where, **declared),
            first.folder / "notebook.ipynb",
            first,
            partial(plan_experiment, *asked, ablation),
        )

    def analysis_step(self, main: Place, steps: dict[str, list[Step]], names: list[str]) -> Step:
        """The report on the ablations `names` at `main`, with what is finished at the other places.

        `steps`: those of every stage, finished or not.
        """
        plans = {stage: [step.plan for step in steps[stage] if step.plan and step.is_done()] for stage in steps}
        finished = {stage: {plan.variant for plan in plans[stage]} for stage in plans}
        names = [name for name in names if self.ablations[name].variant in finished[main.stage]]
        wanted = {self.ablations[name].variant for name in names}
        ladder = {
            from_anywhere("base", place.base): place.stage
            for place in self.places
            if place != main and place.stage in finished and wanted | {"baseline"} <= finished[place.stage]
        }
        repeats = {place.stage: place.seeds for place in self.repeats if wanted <= finished[place.stage]}
        pairs = [[a, b] for (a, x), (b, y) in self.pairs if combine(x, y).variant in finished[main.stage]]
        missing = [step.name for stage in steps for step in steps[stage] if not step.is_done()]
        parameters = self._parameters(
            main, study=self.study.name, stage=main.stage, seeds=main.seeds, ablations=names, interactions=pairs,
            ladder=ladder, repeats=repeats, missing=missing, stable_lr=self.searched,
        )  # fmt: skip
        ends = [records.read_json(p.folder / "summary.json")["end_time"] for done in plans.values() for p in done]
        said = [records.read_json(path) for name in SAID if (path := self.folder / f"{name}.json").exists()]
        said = [{key: value for key, value in one.items() if key not in ("written", "git")} for one in said]
        notebook = _notebook("90_analysis")
        key = fingerprint([parameters, ends, said, _digest(notebook)])
        return Step("analysis", notebook, parameters, self.folder / "analysis.ipynb", key=key)

    # ---- running them

    def all(self) -> Outcome:
        start = time.monotonic()
        register(self.study, self.ablations.values(), self.folder)
        data = [self.data_step(place) for place in self.places]
        self.notebooks.execute(data)
        if self.study.stages:
            main, steps = run_stages(self)  # no place before the first stage has its runs, so nothing to report on
        else:
            main, steps = self.places[0], self._all_at_once()
            self._search_rates(steps[main.stage])
        analysis = [self.analysis_step(main, steps, self._reported(main, steps))] if main else []
        self.notebooks.execute(analysis)
        note_noise(self.outputs, [step.plan for stage in steps.values() for step in stage if step.plan])
        print(f"study {self.study.name}: {time.monotonic() - start:.0f} s", flush=True)
        copies = [step.copy for step in (*data, *(step for stage in steps.values() for step in stage), *analysis)]
        return Outcome(self.folder, [copy for copy in copies if copy.exists()], self.notebooks.failures)

    def _search_rates(self, steps: list[Step]) -> None:
        """The largest rates that arms bear, searched once the arms are there; what was found is in the analysis."""
        plans = {step.plan.variant: step.plan for step in steps if step.plan and step.is_done()}
        for name, grid in self.study.stable_lr.items():
            plan = plans.get("baseline" if name == "baseline" else load_ablation(name).variant)
            try:
                found = stable_rates(plan, grid) if plan else None
            except (ValueError, OSError) as error:  # of configurations, records and data
                self.notebooks.failures.append(f"stable_lr of {name} did not finish ({error})")
                continue
            if found:
                self.searched[name if name == "baseline" else from_anywhere("ablations", name)] = grid
                print(f"stable_lr of {name}: {found.text()}", flush=True)

    def _reported(self, main: Place, steps: dict[str, list[Step]]) -> list[str]:
        """The ablations with all seeds of `main`: not what left a race before, whose other runs nobody asked for."""
        whole = {step.plan.variant for step in steps[main.stage] if step.plan and list(step.plan.seeds) == main.seeds}
        return [name for name, ablation in self.ablations.items() if ablation.variant in whole]

    def _all_at_once(self) -> dict[str, list[Step]]:
        asked = [None, *self.ablations.values(), *(combine(a, b) for (_, a), (_, b) in self.pairs)]
        by_stage = {place.stage: self.planned(place, asked) for place in self.places}
        # a repeat's first notebook trains its baseline
        by_stage |= {place.stage: self.planned(place, list(self.ablations.values())) for place in self.repeats}
        steps = [step for stage in by_stage.values() for step in stage]
        pending = [step for step in steps if not step.is_done()]
        print(f"{len(steps) - len(pending)} of {len(steps)} experiments are done already", flush=True)
        with progress(pending):
            self.notebooks.execute([step for step in pending if step.plan and step.plan.ablation is None])
            self.notebooks.execute([step for step in pending if step.plan and step.plan.ablation])
        return by_stage

    def planned(self, place: Place, asked: Sequence[Ablation | None]) -> list[Step]:
        """A step for each of `asked`; what cannot be matched or measured at this base is reported and left out."""
        steps = []
        for ablation in asked:
            try:
                steps.append(self.experiment_step(place, ablation))
            except ConfigError as error:
                if ablation is None:
                    raise
                name = f"{Path(place.base).stem}.{ablation.variant}"
                self.notebooks.failures.append(f"{name} was not started ({error})")
        return steps


def _say(line: str) -> None:
    print(line, flush=True)


def _notebook(name: str) -> Path:
    return project_root() / "notebooks" / f"{name}.ipynb"


def _digest(notebook: Path) -> str:
    return hashlib.sha256(notebook.read_bytes()).hexdigest()
