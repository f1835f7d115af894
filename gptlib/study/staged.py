"""A staged study: screen (A), check (B), race (C). What goes on, and why, is written to decision.json after each stage.

The decisions are those of gptlib/stats/staging.py, which the planner simulates too. Running a study again repeats them
on the same records. A stage does not start where its worst case exceeds what is left of the budget; its first run is a
canary, whose failure stops the rest; no run of the race is made in a checkout with uncommitted changes.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np

from gptlib import records
from gptlib.stats.staging import Look, Rule, boundaries, check, look, pivot, race_interval, screen
from gptlib.stats.target import one_sample
from gptlib.study.budget import Budget, BudgetError, stage_costs
from gptlib.study.experiment import Experiment, execute, judge, summarise
from gptlib.study.hypothesis import Ablation
from gptlib.study.plan import Plan
from gptlib.study.prices import dollars, load_prices, past_runs
from gptlib.study.registration import decision
from gptlib.study.reuse import reuse_runs
from gptlib.study.steps import Notebooks, Place, Step, progress
from gptlib.study.studies import ROLES, StageName, Study

P = ParamSpec("P")
T = TypeVar("T")


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


def run_stages(run: Conductor) -> tuple[Place | None, dict[str, list[Step]]]:
    """Run screen, check and race as far as they go.

    Returns the place whose experiments the report is about (the last stage or look of the race whose runs are all
    there, None before the first) and the steps by stage.
    """
    return _Stages(run).all()


class _Stages:
    def __init__(self, run: Conductor) -> None:
        assert run.study.stages is not None, "a study without stages"
        self.run, self.staging, self.rule = run, run.study.stages, run.study.stages.rule()
        self.by_name = {ablation.variant: ablation for ablation in run.ablations.values()}
        self.steps: dict[str, list[Step]] = {}
        self.judged: list[dict[str, Any]] = []
        self.place: Place | None = None
        self.pivoted = 0.0  # dollars that pivots have cost

    # ---- the three stages

    def all(self) -> tuple[Place | None, dict[str, list[Step]]]:
        verdict, claims = "", list[dict[str, Any]]()
        try:
            promoted = self._check(*self._screen())
            if promoted:
                verdict, claims = self._race(promoted)
            else:
                last = self.judged[-1]["role"]
                verdict = f"no candidate: no variant was good enough in the {last}, so nothing was raced"
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
        found = _decide("A", screen, losses, self.rule)
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
            self.pivoted += self._price("B", candidates) * len(candidates) * len(self.staging.B.seeds) if turn else 0.0
            found = _decide("B", check, losses, np.isin(checked, candidates), self.rule)
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

    def _race(self, entered: list[str]) -> tuple[str, list[dict[str, Any]]]:
        """The verdict in words, and what is said of each variant that raced."""
        limits = boundaries(self.rule.alpha, self.rule.looks, len(entered))
        losses = np.full((1 + len(entered), self.rule.looks[-1]), np.nan)  # one that has left lends the runs it made
        claims: dict[str, dict[str, Any]] = {}  # of those that have left the race
        for number, (seeds, limit) in enumerate(zip(self.rule.looks, limits, strict=True), 1):
            going = np.array([name not in claims for name in entered])
            racing = [name for name in entered if name not in claims]
            rows = np.flatnonzero([True, *going])
            losses[rows, :seeds] = self._losses("C", racing, self.staging.C.seeds[:seeds])
            seen = losses[:, :seeds]
            found = _decide("C", look, seen, going, limit, self.rule)
            numbers = dict(zip(("difference", "low", "high"), race_interval(seen, going, limits[-1]), strict=True))
            over = number == len(limits) or bool(found.claimed.any())
            at = f"at look {number} of {len(limits)} ({seeds} seeds)"
            reasons = []
            for i in map(int, np.flatnonzero(going)):
                whole = bool(np.isfinite(seen[i + 1]).all())
                verdict, why = self._verdict(found, i, whole, over)
                seen_here = f"p = {found.p[i]:.3g} {at}, boundary {limit:.3g}" if whole else f"a run diverged {at}"
                reasons.append(f"{verdict or 'goes on'}: {seen_here}{why}")
                if verdict:
                    values = {"p_value": float(found.p[i])} | {key: float(row[i]) for key, row in numbers.items()}
                    shown = values if whole else dict.fromkeys(values)
                    claim = {"variant": entered[i], "verdict": verdict, "reason": reasons[-1], "seeds": seeds}
                    claims[entered[i]] = claim | shown
            on = (found.racing | found.claimed)[going]
            self._judge("C", racing, losses[rows, :seeds], on, reasons, look=number)
            if len(claims) == len(entered):
                break
        said = [claims[name] for name in entered]
        better = [claim["variant"] for claim in said if claim["verdict"] == "better"]
        what = f"{' and '.join(better)} better than the baseline" if better else "no claim"
        verdict = f"{what}, at a chance of {self.rule.alpha:g} for any false claim"
        self._write(verdict, said)
        self._summarise(entered)
        return verdict, said

    def _verdict(self, found: Look, i: int, whole: bool, over: bool) -> tuple[str, str]:
        """Verdict on variant `i` at a look, empty where it goes on, and why; `whole`: none of its runs diverged."""
        if found.claimed[i]:
            return "better", ""
        if not whole:
            return "undecided", ", so it leaves the race"
        if found.p[i] > self.rule.futility:
            return "undecided", f"; above {self.rule.futility:g}, so it leaves the race"
        return ("undecided", "; the race is over") if over else ("", "")

    # ---- running a stage

    def _place(self, name: StageName, seeds: Sequence[int] = ()) -> Place:
        base, stage = self.run.places[0], self.staging.stages()[name]
        own = self.staging.overrides(name, base.config)
        return Place(base.base, name, list(seeds) or stage.seeds, {**base.overrides, **own}, name)

    def _losses(self, name: StageName, variants: list[str], seeds: Sequence[int], pivot: bool = False) -> np.ndarray:
        """Final losses `(1 + variants, seeds)`, the baseline first, nan where a run diverged. Raises StageStopped."""
        place = self._place(name, seeds)
        steps = self.run.planned(place, [None, *(self.by_name[variant] for variant in variants)])
        if len(steps) <= len(variants):
            raise StageStopped(f"stage {name}: an experiment of it cannot be made; see the lines above")
        plans = [step.plan for step in steps if step.plan]
        if self.staging.reuse_baseline:
            for seed, origin in reuse_runs(self._to_the_end(plans[0])).items():
                print(f"stage {name}: the baseline's run of seed {seed} is that of {origin}", flush=True)
        to_run = any(plan.pending() for plan in plans)
        if to_run:
            self._allow(name, variants, plans, pivot)
        known = {step.name: step for step in self.steps.get(name, [])} | {step.name: step for step in steps}
        self.steps[name] = list(known.values())
        if to_run:
            _canary(name, plans[0])
        pending = [step for step in steps if not self._is_made(step)]
        with progress(pending):
            self.run.notebooks.execute([step for step in pending if step is steps[0]])
            self.run.notebooks.execute([step for step in pending if step is not steps[0]])
        if unfinished := [step.name for step in steps if not self._is_made(step)]:
            raise StageStopped(f"stage {name}: {', '.join(unfinished)} did not finish; run again to go on")
        self.place = place
        finals = [Experiment(plan).finals(self._metric()) for plan in plans]
        return np.array([[arm.get(seed, math.nan) for seed in seeds] for arm in finals])

    def _to_the_end(self, plan: Plan) -> Plan:
        """A plan with all seeds that its stage may come to: in the race those of the last look."""
        whole = self.staging.C.seeds[: self.rule.looks[-1]]
        return dataclasses.replace(plan, seeds=tuple(whole)) if plan.stage == "C" else plan

    def _is_made(self, step: Step) -> bool:
        """Whether a step is done; in a race that is run again, at this look or at a later one."""
        plan = step.plan
        if step.is_done() or plan is None or plan.stage != "C" or not step.copy.exists():
            return step.is_done()
        later = [tuple(self.staging.C.seeds[:seeds]) for seeds in self.rule.looks if seeds > len(plan.seeds)]
        return any(dataclasses.replace(plan, seeds=seeds).is_complete() for seeds in later)

    def _allow(self, name: StageName, variants: list[str], plans: Sequence[Plan], pivot: bool) -> None:
        """Refuse what may not start: a race of uncommitted code, and what the budget cannot pay, to the end."""
        if name == "C" and records.git_info()["dirty"]:
            raise StageStopped("stage C: the checkout has changes that no commit holds; commit them, then run again")
        if self.staging.budget_dollars is None:
            return
        runs = sum(len(self._to_the_end(plan).pending()) for plan in plans)
        budget = Budget.of(self.run.study, self.run.outputs, load_prices(), self.pivoted)
        try:
            budget.allow(name, runs * self._price(name, variants), pivot)
        except BudgetError as error:
            raise StageStopped(str(error)) from None

    def _price(self, name: StageName, variants: Sequence[str]) -> float:
        """Dollars of a run of the dearest of the baseline and `variants`."""
        prices = load_prices()
        costs = stage_costs(self.run.study, prices, past_runs(self.run.outputs, prices))
        estimates = next(cost.estimates for cost in costs if cost.name == name)
        return max(estimates[arm].dollars for arm in ("baseline", *variants))

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
        known = decision(self.run.outputs, self.run.study.name)
        if not known or known["stages"][: len(self.judged)] != self.judged:  # else it was decided before, and alike
            self._write("not finished", [])
        for arm in arms:
            print(f"stage {name}: {arm['variant']}: {arm['reason']}", flush=True)
        budget = Budget.of(self.run.study, self.run.outputs, load_prices(), self.pivoted)
        left = "" if math.isinf(budget.total) else f", {dollars(budget.remaining)} of {dollars(budget.total)} are left"
        print(f"stage {name}: the study has cost {dollars(budget.spent)} so far{left}", flush=True)

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
        }
        known = decision(self.run.outputs, self.run.study.name) or {}
        if record | {"written": known.get("written")} != known:
            records.write_json(self.run.folder / "decision.json", record | {"written": records.utc_now()})

    def _target(self, claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
        """Whether the mean loss of the arms of the race is at most the target, by a one-sided t test.

        An arm may have stopped at any look, so each is tested at alpha / looks (Bonferroni); an arm of which a run
        diverged is left out, since the losses of the rest are a selection.
        """
        if self.staging.target is None or not claims:
            return None
        arms = [step.plan for step in self.steps["C"] if step.plan and self._is_made(step)]
        losses = {plan.variant: list(Experiment(plan).finals(self._metric()).values()) for plan in arms}
        alpha = self.rule.alpha / len(self.rule.looks)
        return [
            {"variant": plan.variant, **dataclasses.asdict(one_sample(values, self.staging.target, alpha=alpha))}
            for plan, values in zip(arms, losses.values(), strict=True)
            if len(values) == len(plan.seeds)
        ]

    def _summarise(self, variants: list[str]) -> None:
        """Write the verdicts of the race into the summaries of its experiments."""
        plans = {step.plan.variant: step.plan for step in self.steps["C"] if step.plan}
        for name in variants:
            plan = plans[name]
            assert plan.ablation is not None, "the baseline has no verdict"
            baseline, variant = Experiment(dataclasses.replace(plan.baseline(), seeds=plan.seeds)), Experiment(plan)
            comparison = judge(baseline, variant, plan.ablation.analysis)
            known = variant.summary()["comparison"] or {}
            if dataclasses.asdict(comparison) | {"metric": known.get("metric")} != known:
                summarise(variant, comparison, baseline)


def _canary(name: StageName, baseline: Plan) -> None:
    """The first run of a stage, alone: the rest is not started where it fails or diverges."""
    first = dataclasses.replace(baseline, seeds=baseline.seeds[:1])
    if first.pending():
        print(f"stage {name}: one run first", flush=True)
        execute(first)
    ((_, _, run),) = first.runs()
    result = records.read_json(run / "result.json")
    if result["status"] != "finished":
        said = "diverged" if result["status"] == "diverged" else f"failed ({result.get('error') or 'no message'})"
        raise StageStopped(f"stage {name}: its first run {said}, the rest was not started; see {run / 'stdout.log'}")


def _decide(name: StageName, rule: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a rule of stats/staging.py says; where it cannot judge these losses, the stage stops."""
    try:
        return rule(*args, **kwargs)
    except ValueError as error:
        raise StageStopped(f"stage {name}: {error}") from None


def _rule(rule: Rule) -> dict[str, Any]:
    return dataclasses.asdict(rule) | {"slack": _number(rule.slack), "looks": list(rule.looks)}


def _apart(excess: float) -> str:
    return f"{abs(excess):.1f} standard errors {'better' if excess < 0 else 'worse'} than the baseline"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
