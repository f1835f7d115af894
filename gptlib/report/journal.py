"""A study's journal in Markdown, from its records alone: an entry per experiment, then the tables over all of them.

What only a person can say is left as empty headings. Experiments that are asked for, by the registration of the study
or by its file, and have no record are listed as not run.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from gptlib.report.entries import Entry, entries
from gptlib.report.tables import MISSING, lookup, number
from gptlib.study.prices import VOCABULARY
from gptlib.study.registration import decision

SHARES = (0, 10, 20, 50, 90, 100)  # per cent of the steps, the rows of "key metrics over training"
METRICS = (("train_loss", "{:.4f}"), ("val_loss", "{:.4f}"), ("lr", "{:.2e}"), ("tokens_per_second", "{:,.0f}"))
COMPARISON = "ablation_comparison.png"  # beside the stages of a study: the curves of all experiments
COURSE = {"no_norm_low_lr": "Layer norm", "post_norm": "Pre-norm against post-norm", "no_rope": "NoPE against RoPE",
          "silu_ffn": "SiLU against SwiGLU"}  # fmt: skip
FOR_THE_PERSON = ("Observations", "Lessons learned", "Next steps")


def journal(outputs: Path, study: str, stage: str = "full") -> str:
    """Markdown of the whole study. Raises RecordError where there is nothing to write about."""
    found = entries(outputs, study, stage)
    parts = [f"# Journal: {study}, stage {stage}"]
    parts += [_section(place, entry) for place, entry in enumerate(found, 1) if entry.record]
    parts += ["## Hyperparameter search summary", search_table(found)]
    parts += ["## Parameter efficiency", efficiency_table(found)]
    if boxes := deliverables(outputs, study, stage):
        parts += ["## Deliverables", boxes]
    parts += ["## Key findings"]
    return "\n\n".join(parts) + "\n"


def _section(place: int, entry: Entry) -> str:
    total = sum(result["time_seconds"] or 0 for result in entry.results)
    runs = f"{len(entry.results)} of {len(entry.record['seeds'])} runs"
    lines = [
        f"## Experiment {place}: {entry.name}\n",
        f"**Date**: {str(entry.record.get('start_time') or MISSING)[:10]}  ",
        f"**Duration**: {_clock(total)} of training, all runs together  ",
        f"**Status**: {entry.status}, {runs}\n",
    ]
    for heading, pairs in (("Configuration", _configuration(entry)), ("Results", _results(entry))):
        lines += [f"### {heading}\n", *(f"- {name}: {value}" for name, value in pairs), ""]
    lines += ["### Key metrics over training\n", metrics_table(entry), ""]
    return "\n".join([*lines, *(f"### {heading}\n" for heading in FOR_THE_PERSON)]).rstrip()


def _configuration(entry: Entry) -> Iterable[tuple[str, Any]]:
    config = entry.record["config"]
    data, model, optim, train, schedule = (config[key] for key in ("data", "model", "optim", "train", "schedule"))
    rows, context, adamw = train["batch_rows"], model["seq_len"], optim["adamw"]
    rates = {f"AdamW {key}": value for key, value in adamw.items() if key.endswith("_lr")}
    rates = {"Muon": optim["muon"]["lr"], **rates} if optim["matrices"] == "muon" else rates
    size = number(lookup(entry.summary, "accounting", "total"), "{:,.0f}")
    yield "Changed against the baseline", entry.change()
    yield "Model", f"GPT with {size} parameters, {model['activation']}, position {model['position']}"
    yield "Corpus", data["corpus"]
    yield "Vocabulary", f"{VOCABULARY.get(data['tokenizer'], data['vocab_size']):,} ({data['tokenizer']})"
    yield "Context length", context
    yield "Width, heads, layers", f"{model['model_dim']}, {model['num_heads']}, {model['num_layers']}"
    yield "Feed-forward width", model["mlp_hidden"] or f"{model['mlp_ratio'] * model['model_dim']:g}"
    yield "Batch", f"{rows} rows, {rows * context:,} tokens"
    yield "Learning rates", ", ".join(f"{name} {optim['lr_scale'] * value:.3g}" for name, value in rates.items())
    yield "Schedule", f"{schedule['kind']}, warmup {schedule['warmup'] * train['steps']:.0f} steps"
    yield "AdamW", f"betas {adamw['betas']}, weight decay {adamw['weight_decay']:g}, clipping {optim['grad_clip']:g}"
    yield "Iterations", f"{train['steps']:,}"
    yield "Device", entry.record["device"]


def _results(entry: Entry) -> Iterable[tuple[str, str]]:
    seen = [row["train_loss"] for rows in entry.metrics for row in rows if row.get("train_loss") is not None]
    counts = Counter(result["status"] for result in entry.results if result["status"] != "finished")
    yield "Best training loss of any run", number(min(seen, default=None))
    yield "Best validation loss of any run", number(min(entry.values("best_val_loss"), default=None))
    yield "Final training loss", entry.mean_text("final_train_loss")
    yield "Final validation loss", entry.mean_text("final_val_loss")
    yield "Tokens/s", number(entry.mean("tokens_per_second"), "{:,.0f}")
    yield "Training time of a run", _clock(entry.mean("time_seconds"))
    if counts:
        yield "Runs without a final loss", ", ".join(f"{count} {status}" for status, count in counts.items())


def metrics_table(entry: Entry) -> str:
    """Means over the runs at shares of the steps: of each value the last one logged since the row above."""
    rows, before = [], -1
    for step in dict.fromkeys(round(entry.record["config"]["train"]["steps"] * share / 100) for share in SHARES):
        since, values = [[r for r in log if before < r["step"] <= step] for log in entry.metrics], []
        for key, form in METRICS:
            last = [seen[-1] for log in since if (seen := [r[key] for r in log if r.get(key) is not None])]
            values.append(number(fmean(last) if last else None, form))
        rows.append([f"{step:,}", *values])
        before = step
    return table(["Iteration", "Train loss", "Val loss", "LR", "Tokens/s"], rows)


def search_table(found: Iterable[Entry]) -> str:
    """A row per experiment: what was changed, final losses, status, and what is said of it."""
    heads = ["Experiment", "Key changes", "Train loss", "Val loss", "Status", "Notes"]
    losses = ("final_train_loss", "final_val_loss")
    return table(heads, [[e.name, e.change(), *map(e.mean_text, losses), e.status, _note(e)] for e in found])


def _note(entry: Entry) -> str:
    verdict, percent = (lookup(entry.summary, "comparison", key) for key in ("verdict", "percent"))
    if verdict:
        return f"{verdict}, {number(percent, '{:+.2f} %')}"
    return f"expected: {entry.ablation.expect.text()}" if entry.ablation else "reference point"


def efficiency_table(found: Iterable[Entry]) -> str:
    """What parameters and time a run took for its best validation loss, the lowest of any run and evaluation."""
    rows = []
    for e in found:
        size, best = (
            number(lookup(e.summary, "accounting", "total"), "{:,.0f}"),
            min(e.values("best_val_loss"), default=None),
        )
        rows.append(
            [
                e.name,
                size,
                number(best),
                _clock(e.mean("time_seconds")),
                number(e.mean("samples_per_second"), "{:,.1f}"),
            ]
        )
    return table(["Experiment", "Parameters", "Best val loss", "Training time", "Samples/s"], rows)


# --- an analysis as plain text, and what a course asks for -------------------------------------------------------


def analysis_text(outputs: Path, study: str, stage: str = "full") -> str:
    """A paragraph per experiment: status, losses, and what was expected against what came. Raises RecordError."""
    parts = [f"Ablation analysis of {study}, stage {stage}"]
    decided = decision(outputs, study) or {"stages": []}
    ends = {arm["variant"]: (of["stage"], arm["reason"]) for of in decided["stages"] for arm in of["arms"]}
    for entry in entries(outputs, study, stage):
        lost = sum(result["status"] == "diverged" for result in entry.results)
        lines = [f"{entry.name}: {entry.change()}", f"  {entry.status}" + (f", {lost} runs diverged" if lost else "")]
        if not entry.results and entry.name in ends:
            lines[1] = "  stage {}: {}".format(*ends[entry.name])
        best = number(min(entry.values("best_val_loss"), default=None))
        lines += [f"  val loss {entry.mean_text('final_val_loss')}, best of any run {best}"] if entry.results else []
        verdict, percent, reason = (
            lookup(entry.summary, "comparison", key) for key in ("verdict", "percent", "reason")
        )
        if entry.ablation:
            lines += [f"  expected {entry.ablation.expect.text()}"]
        if entry.ablation and verdict:
            outcome = entry.ablation.expect.outcome(verdict, percent)
            lines += [f"  found {number(percent, '{:+.2f} %')}, {verdict} ({reason}); expectation {outcome}"]
        parts.append("\n".join(lines))
    if boxes := deliverables(outputs, study, stage):
        parts += ["Deliverables", boxes]
    return "\n\n".join(parts) + "\n"


def deliverables(outputs: Path, study: str, stage: str = "full") -> str:
    """What CS336 asks for its ablations, ticked where the records have it; empty for a study that has not all of them.

    Curves count where their picture is there, a commentary where a comparison was judged and says why.
    """
    found = {entry.name: entry for entry in entries(outputs, study, stage)}
    if not {*COURSE, "no_norm"} <= set(found):
        return ""

    def drawn(name: str) -> bool:
        return (outputs / study / stage / name / "loss_curves.png").is_file()

    slow, lines = found["no_norm_low_lr"], list[str]()
    stable = drawn(slow.name) and bool(slow.results) and all(r["status"] == "finished" for r in slow.results)
    for name, title in COURSE.items():
        boxes = [(f"commentary: the verdict on {name}", bool(lookup(found[name].summary, "comparison", "reason")))]
        if name == slow.name:
            curves = [("learning curve at the full rate: no_norm", drawn("no_norm"))]
            boxes = [*curves, (f"learning curve at a rate at which no run diverges: {name}", stable), *boxes]
        else:
            both = drawn("baseline") and drawn(name) and (outputs / study / COMPARISON).is_file()
            boxes = [(f"comparative learning curves: {COMPARISON}", both), *boxes]
        lines += [f"- {title}", *(f"  - [{'x' if done else ' '}] {what}" for what, done in boxes)]
    return "\n".join(lines)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))


def _clock(seconds: float | None) -> str:
    """HH:MM:SS."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"
