"""A staged study: screen (A), check (B), race (C). What goes on, and why, is written to decision.json after each stage.

The decisions are those of gptlib/stats/staging.py, which the planner simulates too. Running a study again repeats them
on the same records. A stage does not start where its worst case exceeds what is left of the budget; its first run is a
canary, whose failure stops the rest; the race refuses a checkout with uncommitted changes.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gptlib import records
from gptlib.stats.staging import Rule, boundaries, check, look, pivot, race_interval, screen
from gptlib.stats.target import one_sample
from gptlib.study.budget import Budget, BudgetError, stage_costs
from gptlib.study.experiment import Experiment, execute, judge, summarise
from gptlib.study.hypothesis import Ablation
from gptlib.study.prices import load_prices, past_runs
from gptlib.study.registration import ROLES
from gptlib.study.reuse import reuse_runs
from gptlib.study.steps import Notebooks, Place, Step, progress
from gptlib.study.studies import StageName, Study


class StageStopped(ValueError):
    """A stage that may not start or go on: one line that says why, and what to do."""


class Conductor(Protocol):
    """What the stages need of the study that is being run."""

    study: Study
    outputs: Path
    folder: Path
    ablations: dict[str, Ablation]
    notebooks: Notebooks
    places: list[Place]

    def planned(self, place: Place, asked: Sequence[Ablation | None]) -> list[Step]: ...


def run_stages(run: Conductor) -> tuple[Place, dict[str, list[Step]]]:
    """Run screen, check and race as far as they go.

    Returns the place whose experiments the report is about (the last stage that was judged) and the steps by stage.
    """
    return _Stages(run).all()


class _Stages:
    def __init__(self, run: Conductor) -> None:
        assert run.study.stages is not None, "a study without stages"
        self.run, self.staging, self.rule = run, run.study.stages, run.study.stages.rule()
        self.by_name = {ablation.variant: ablation for ablation in run.ablations.values()}
        self.steps: dict[str, list[Step]] = {}
        self.judged: list[dict[str, Any]] = []
        self.place = self._place("C")
        self.pivoted = 0.0  # dollars of the reserve that pivots were allowed

    # ---- the three stages

    def all(self) -> tuple[Place, dict[str, list[Step]]]:
        verdict, claims = "", list[dict[str, Any]]()
        try:
            promoted = self._check(*self._screen())
            if promoted:
                verdict, claims = self._race(promoted)
            else:
                verdict = "no candidate: no variant beat the baseline in the check, so nothing was raced"
        except StageStopped as stop:
            self.run.notebooks.failures.append(str(stop))
            verdict = f"not finished: {stop}"
        self._write(verdict, claims)
        for line in (verdict, *(f"{claim['variant']}: {claim['reason']}" for claim in claims)):
            print(line, flush=True)
        return self.place, self.steps

    def _screen(self) -> tuple[list[str], list[str]]:
        """The variants that are kept, and those in reserve for a pivot, the best first."""
        names = list(self.by_name)
        if self.staging.A is None:
            return names, []
        losses = self._losses("A", names, self.staging.A.seeds)
        found = screen(losses, self.rule)
        reasons = []
        for kept, rank, excess in zip(found.kept, found.rank, found.excess, strict=True):
            place = f"rank {rank + 1} of {len(names)}"
            if not math.isfinite(excess):
                reasons.append("diverged")
            elif kept:
                reasons.append(f"kept: {place}, {_apart(excess)}")
            elif rank >= self.rule.kept(len(names)):
                reasons.append(f"dropped: {place}, and {self.rule.kept(len(names))} are kept")
            else:
                reasons.append(f"dropped: {_apart(excess)}, more than the {self.rule.slack:g} allowed")
        self._judge("A", names, losses, found.kept, reasons)
        kept_names = [name for name, kept in zip(names, found.kept, strict=True) if kept]
        turns = [pivot(found, turn, self.rule) for turn in range(self.rule.pivots)]
        return kept_names, [name for turn in turns for name, next_one in zip(names, turn, strict=True) if next_one]

    def _check(self, kept: list[str], spare: list[str]) -> list[str]:
        """The variants that may race."""
        if self.staging.B is None:
            return kept
        checked: list[str] = []
        for turn, candidates in enumerate([kept, *([name] for name in spare)]):
            if not candidates:
                continue
            checked += candidates
            losses = self._losses("B", checked, self.staging.B.seeds, pivot=bool(turn))
            found = check(losses, np.isin(checked, candidates), self.rule)
            self._judge("B", checked, losses, found, self._check_reasons(checked, candidates, losses, found))
            if found.any():
                return [name for name, promoted in zip(checked, found, strict=True) if promoted]
        return []

    def _check_reasons(
        self, checked: list[str], candidates: list[str], losses: np.ndarray, found: np.ndarray
    ) -> list[str]:
        reasons = []
        means = losses.mean(-1)
        for name, mean, promoted in zip(checked, means[1:], found, strict=True):
            if not math.isfinite(mean):
                reasons.append("diverged")
            elif name not in candidates:
                reasons.append("dropped: checked before the pivot, and did not beat the baseline")
            elif promoted:
                reasons.append("promoted: better than the baseline, and within one standard error of the best")
            elif mean >= means[0]:
                reasons.append("dropped: not better than the baseline")
            else:
                reasons.append("dropped: more than one standard error behind the best, or no place left in the race")
        return reasons

    def _race(self, racing: list[str]) -> tuple[str, list[dict[str, Any]]]:
        """The verdict in words, and what is said of each variant that raced."""
        if records.git_info()["dirty"]:
            raise StageStopped("stage C: the checkout has changes that no commit holds; commit them, then run again")
        entered = list(racing)
        limits = boundaries(self.rule.alpha, self.rule.looks, len(entered))
        ended: dict[str, dict[str, Any]] = {}
        made: dict[str, np.ndarray] = {}
        for number, (seeds, limit) in enumerate(zip(self.rule.looks, limits, strict=True), 1):
            names = [name for name in entered if name not in ended]
            losses = np.full((1 + len(entered), seeds), np.nan)  # one that has left lends the runs that it made
            own = [0, *(1 + entered.index(name) for name in names)]
            losses[own] = self._losses("C", names, self.staging.C.seeds[:seeds])
            for name in ended:
                losses[1 + entered.index(name), : len(made[name])] = made[name]
            going = np.isin(entered, names)
            found = look(losses, going, limit, self.rule)
            difference, low, high = race_interval(losses, going, limits[-1])
            reasons = []
            for name in names:
                i = entered.index(name)
                made[name] = losses[i + 1]
                p, at = float(found.p[i]), f"look {number} of {len(limits)} ({seeds} seeds)"
                last = number == len(limits) or found.claimed.any()
                numbers = {"difference": difference[i], "low": low[i], "high": high[i], "p_value": p}
                reason = f"p = {p:.3g} at {at}, boundary {limit:.3g}"
                if found.claimed[i]:
                    verdict, reason = "better", f"better: {reason}"
                elif not np.isfinite(losses[i + 1]).all():
                    verdict, reason = "undecided", f"undecided: a run diverged at {at}, so it leaves the race"
                    numbers = dict.fromkeys(numbers)
                elif last or not found.racing[i]:
                    why = "the race is over" if last else f"above {self.rule.futility:g}, so it leaves the race"
                    verdict, reason = "undecided", f"undecided: {reason}; {why}"
                else:
                    reasons.append(f"goes on: {reason}")
                    continue
                reasons.append(reason)
                shown = {key: None if value is None else float(value) for key, value in numbers.items()}
                ended[name] = {"variant": name, "verdict": verdict, "reason": reason, "seeds": seeds, **shown}
            on = (found.racing | found.claimed)[np.array(own[1:]) - 1]
            self._judge("C", names, losses[own], on, reasons, look=number)
            if len(ended) == len(entered):
                break
        claims = [ended[name] for name in entered]
        self._write("", claims)
        self._summarise(entered)
        better = [claim["variant"] for claim in claims if claim["verdict"] == "better"]
        chance = f"at a chance of {self.rule.alpha:g} for any false claim"
        return f"{' and '.join(better)} better than the baseline, {chance}" if better else f"no claim, {chance}", claims

    # ---- running a stage

    def _place(self, name: StageName, seeds: Sequence[int] = ()) -> Place:
        base, stage = self.run.places[0], self.staging.stages()[name]
        own = self.staging.overrides(name, base.config)
        return Place(base.base, name, list(seeds) or stage.seeds, {**base.overrides, **own}, name)

    def _losses(self, name: StageName, variants: list[str], seeds: Sequence[int], pivot: bool = False) -> np.ndarray:
        """Final losses `(1 + variants, seeds)`, the baseline first, nan where a run diverged. Raises StageStopped."""
        place = self._place(name, seeds)
        baseline, *others = self.run.planned(place, [None, *(self.by_name[variant] for variant in variants)])
        steps = [baseline, *others]
        known = {step.name: step for step in self.steps.get(name, [])}
        self.steps[name] = list((known | {step.name: step for step in steps}).values())
        if len(steps) <= len(variants):
            raise StageStopped(f"stage {name}: an experiment of it cannot be made; see the lines above")
        assert baseline.plan is not None, "the step of an experiment has a plan"
        if self.staging.reuse_baseline:
            for seed, origin in reuse_runs(baseline.plan).items():
                print(f"stage {name}: the baseline's run of seed {seed} is that of {origin}", flush=True)
        pending = [step for step in steps if not step.is_done()]
        runs = sum(len(step.plan.pending()) for step in steps if step.plan)
        if runs:
            self._pay(name, runs, len(steps), len(seeds), pivot)
            self._canary(name, baseline)
        with progress(pending):
            self.run.notebooks.execute([step for step in pending if step is baseline])
            self.run.notebooks.execute([step for step in pending if step is not baseline])
        if unfinished := [step.name for step in steps if not step.is_done()]:
            raise StageStopped(f"stage {name}: {', '.join(unfinished)} did not finish; run again to go on")
        self.place = place
        finals = [Experiment(step.plan).finals(self._metric()) for step in steps if step.plan]
        return np.array([[arm.get(seed, math.nan) for seed in seeds] for arm in finals])

    def _pay(self, name: StageName, runs: int, arms: int, seeds: int, pivot: bool) -> None:
        """Refuse what the budget does not allow: the runs to do now, in the race those of all looks to come."""
        if name == "C":
            runs += arms * (self.rule.looks[-1] - seeds)
        prices = load_prices()
        past = past_runs(self.run.outputs, prices)
        cost = next(cost for cost in stage_costs(self.run.study, prices, past) if cost.name == name)
        budget = Budget.of(self.run.study, self.run.outputs, prices, self.pivoted)
        try:
            budget.allow(name, runs * cost.price, pivot)
        except BudgetError as error:
            raise StageStopped(str(error)) from None
        self.pivoted += runs * cost.price if pivot else 0.0

    def _canary(self, name: StageName, baseline: Step) -> None:
        """The first run of a stage, alone: the rest is not started where it fails."""
        plan = baseline.plan
        assert plan is not None, "the step of an experiment has a plan"
        if len(plan.pending()) < len(plan.seeds):
            return
        print(f"stage {name}: one run first", flush=True)
        first = execute(dataclasses.replace(plan, seeds=plan.seeds[:1])).results[0]
        if first["status"] != "finished":
            run = records.run_folder(plan.folder, 0, plan.seeds[0])
            said = "diverged" if first["status"] == "diverged" else f"failed ({first.get('error', 'no message')})"
            raise StageStopped(
                f"stage {name}: its first run {said}, the rest was not started; see {run / 'stdout.log'}"
            )

    def _metric(self) -> str:
        return next(iter(self.by_name.values())).analysis.metric

    # ---- the record

    def _judge(
        self,
        name: StageName,
        variants: list[str],
        losses: np.ndarray,
        on: np.ndarray,
        reasons: list[str],
        look: int = 0,
    ) -> None:
        """Add a stage, or a look of the race, to decision.json."""
        base = losses[0].mean()
        arms = [
            {
                "variant": variant,
                "mean": _number(row.mean()),
                "difference": _number(row.mean() - base),
                "goes_on": bool(goes),
                "reason": reason,
            }
            for variant, row, goes, reason in zip(variants, losses[1:], on, reasons, strict=True)
        ]
        entry = {"stage": name, "role": ROLES[name], **({"look": look} if look else {})}
        entry |= {"seeds": losses.shape[1], "baseline_mean": float(base), "arms": arms}
        self.judged.append(entry)
        self._write("not finished", [])
        for arm in arms:
            print(f"stage {name}: {arm['variant']}: {arm['reason']}", flush=True)

    def _write(self, verdict: str, claims: Sequence[Mapping[str, Any]]) -> None:
        record = {
            "schema_version": records.SCHEMA_VERSION,
            "study": self.run.study.name,
            "rule": _rule(self.rule),
            "metric": self._metric(),
            "stages": self.judged,
            "verdict": verdict,
            "claims": list(claims),
            "target": self._target(claims),
            "written": records.utc_now(),
        }
        records.write_json(self.run.folder / "decision.json", record)

    def _target(self, claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
        """Whether the mean loss of the arms of the race is at most the target, by a one-sided t test."""
        if self.staging.target is None or not claims:
            return None

        arms = [step.plan for step in self.steps["C"] if step.plan and step.is_done()]
        losses = {plan.variant: list(Experiment(plan).finals(self._metric()).values()) for plan in arms}
        return [
            {"variant": name, **dataclasses.asdict(one_sample(values, self.staging.target, alpha=self.rule.alpha))}
            for name, values in losses.items()
            if len(values) > 1
        ]

    def _summarise(self, variants: list[str]) -> None:
        """Write the verdicts of the race into the summaries of its experiments."""
        plans = {step.plan.variant: step.plan for step in self.steps["C"] if step.plan}
        for name in variants:
            plan = plans[name]
            assert plan.ablation is not None, "the baseline has no verdict"
            baseline, variant = Experiment(dataclasses.replace(plan.baseline(), seeds=plan.seeds)), Experiment(plan)
            summarise(variant, judge(baseline, variant, plan.ablation.analysis), baseline)


def _rule(rule: Rule) -> dict[str, Any]:
    return dataclasses.asdict(rule) | {"slack": _number(rule.slack), "looks": list(rule.looks)}


def _apart(excess: float) -> str:
    return f"{abs(excess):.1f} standard errors {'better' if excess < 0 else 'worse'} than the baseline"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
