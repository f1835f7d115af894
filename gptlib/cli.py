"""The `gptlib` command: studies, single runs, data, reports and samples from a shell."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.core import TyperGroup

from gptlib.config import ConfigError, load_config, project_root

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Set = Annotated[list[str] | None, typer.Option("--set", help="override, e.g. optim.muon.lr=3e-4; repeatable")]
Outputs = Annotated[Path | None, typer.Option(help="folder of all records (default: outputs/ of the checkout)")]


class Unfinished(RuntimeError):
    """Some of the work failed; the rest is recorded, and the message says how to go on."""


def _outputs(folder: Path | None) -> Path:
    return (folder or project_root() / "outputs").resolve()


@app.command()
def study(name: Annotated[str, typer.Argument(help="a name in params/studies, or a file")], set: Set = None,
          outputs: Outputs = None,
          profile: Annotated[str, typer.Option(help="one of the study's profiles, e.g. cpu; its records lie in "
                                                    "outputs/NAME-PROFILE")] = "",
          dry_run: Annotated[bool, typer.Option("--dry-run", help="say commands, runs and costs, and run nothing")]
          = False,
          device: Annotated[str, typer.Option(help="of --dry-run: where a study without stages would run, a name in "
                                                   "params/prices.yaml")] = "here") -> None:  # fmt: skip
    """Run what is missing of a study through the notebooks; prints the path of its report."""
    if dry_run:
        from gptlib.study.dry_run import dry_run as lines

        for line in lines(name, _outputs(outputs), tuple(set or ()), profile=profile, device=device):
            print(line)
        return
    if device != "here":
        raise ConfigError(
            f"--device {device} only prices a --dry-run; runs take what hardware.device of the study says"
        )
    from gptlib.report.html import study_pages
    from gptlib.study.runner import run_study

    outcome = run_study(name, _outputs(outputs), tuple(set or ()), profile)
    report = study_pages(outcome.folder, outcome.notebooks)
    if outcome.failures:
        raise Unfinished("\n".join([*outcome.failures, f"report of what is there: {report}", "run again to finish"]))
    print(f"report: {report}")


@app.command()
def plan(variants: Annotated[int, typer.Option(min=1, help="changes that are to be compared with the baseline")],
         effect: Annotated[float, typer.Option(help="how large the effect of one may be (standard deviation of what is "
                                                    "thought possible), in the unit of the loss")],
         sigma: Annotated[float, typer.Option(help="standard deviation over seeds; 0: as measured earlier")] = 0,
         like: Annotated[str, typer.Option(help="of earlier studies, those whose class has this text")] = "",
         prices: Annotated[str, typer.Option(help="of a run of screen, check and race, with commas")] = "0.2,0.6,1",
         budget: Annotated[float, typer.Option(help="in the unit of the prices")] = float("inf"),
         alpha: float = 0.05, power: float = 0.7,
         reuse_baseline: Annotated[bool, typer.Option("--reuse-baseline", help="it was paid before")] = False,
         figure: Annotated[Path | None, typer.Option(help="also draw power against cost, .png or .svg")] = None,
         outputs: Outputs = None) -> None:  # fmt: skip
    """Simulate the designs of a study and name the cheapest that is powerful enough: before anything is spent."""
    from gptlib.report.science_plots import plan_figure
    from gptlib.stats.planner import plan_study
    from gptlib.study.noise import known_noise

    try:
        costs = [float(price) for price in prices.split(",")]
    except ValueError:
        raise ConfigError(f"--prices {prices}: give three numbers with commas between them") from None
    if not sigma:
        noise = known_noise(_outputs(outputs), like)
        sigma = noise.sigma
        print(f"sigma {sigma:.4g}, {noise.df:g} degrees of freedom, from {_outputs(outputs) / 'noise.jsonl'}\n")
    found = plan_study([effect] * variants, sigma, costs, budget=budget, alpha=alpha, power=power,
                       reuse_baseline=reuse_baseline)  # fmt: skip
    print("| design | expected cost | worst case | power | false claims | best lost |\n|---|---:|---:|---:|---:|---:|")
    for design in found.designs:
        name = f"**{design.name}**" if design == found.chosen else design.name
        print(f"| {name} | {design.expected_cost:.4g} | {design.worst_cost:.4g} | {design.power:.2f} | "
              f"{design.false_claims:.4f} | {design.lost:.2f} |")  # fmt: skip
    print(f"\ntake: {found.chosen.name} ({found.reason}); looks at {list(found.chosen.rule.looks)} seeds per arm")
    for warning in found.warnings:
        print(f"beware: {warning}")
    if figure is not None:
        try:
            plan_figure(found, power, "unit of the prices").savefig(figure, dpi=150)
        except OSError as error:
            raise ConfigError(f"--figure {figure}: cannot be written ({error.strerror}); choose another") from None
        print(f"figure: {figure}")


class PrepareByDefault(TyperGroup):
    """`gptlib data BASE` is `gptlib data prepare BASE`."""

    def parse_args(self, ctx, args):  # type: ignore[no-untyped-def]
        known = not args or args[0] in (*self.commands, "--help")
        return super().parse_args(ctx, args if known else ["prepare", *args])


data = typer.Typer(cls=PrepareByDefault, no_args_is_help=True)
app.add_typer(data, name="data", help="Prepare, check and export datasets; `gptlib data BASE` prepares.")


@data.command()
def prepare(base: Annotated[str, typer.Argument(help="a name in params/base, or a file")], set: Set = None,
            outputs: Outputs = None) -> None:  # fmt: skip
    """Prepare the dataset of a configuration; prints its folder."""
    from gptlib.data.dataset import prepare_dataset

    print(prepare_dataset(load_config(base, set or ()).data, _outputs(outputs), print))


@data.command()
def verify(path: Annotated[Path, typer.Argument(help="a dataset's folder, or a .bin or .npy file of token ids")],
           headerless: Annotated[bool, typer.Option("--headerless", help="the .bin is nanoGPT's")] = False,
           vocab_size: Annotated[int, typer.Option(help="of a single file; 0: not known")] = 0) -> None:  # fmt: skip
    """Check header, counts, checksums, ids, and that no validation document is a training document."""
    from gptlib.data import verify as module

    checks = wrong = 0
    for finding in module.verify(path, headerless, vocab_size):
        print(finding)
        checks, wrong = checks + 1, wrong + finding.wrong
    if wrong:
        raise ValueError(f"{path}: {wrong} of {checks} checks found something wrong")


@data.command()
def export(path: Annotated[Path, typer.Argument(help="a dataset's folder")],
           to: Annotated[Path, typer.Argument(help="folder of the .npy files")]) -> None:  # fmt: skip
    """Write a dataset's tokens as train_tokens.npy and val_tokens.npy (uint16); prints their paths."""
    from gptlib.data.dataset import SPLITS, open_dataset
    from gptlib.data.shards import write_npy

    dataset = open_dataset(path)
    try:
        to.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            write_npy(to / f"{split}_tokens.npy", dataset.tokens(split), dataset.eot)
            print(to / f"{split}_tokens.npy")
    except OSError as error:
        raise ConfigError(f"{to}: cannot be written ({error.strerror}); choose another folder") from None


@app.command()
def train(base: Annotated[str, typer.Argument(help="a name in params/base, or a file")], set: Set = None,
          seeds: Annotated[str, typer.Option(help="comma-separated")] = "42", study: str = "adhoc", stage: str = "full",
          outputs: Outputs = None) -> None:  # fmt: skip
    """Train a configuration with several seeds, without a notebook; prints the summary."""
    from gptlib.notebook import finish
    from gptlib.study.experiment import execute
    from gptlib.study.hypothesis import distinct_seeds
    from gptlib.study.plan import plan_experiment

    try:
        numbers = distinct_seeds([int(seed) for seed in seeds.split(",")])
    except ValueError:
        raise ConfigError(f"--seeds {seeds}: give whole numbers, each once, with commas between them") from None
    plan = plan_experiment(_outputs(outputs), study, stage, load_config(base, set or ()), numbers, None, print)
    experiment = execute(plan)
    finish(experiment)
    print(experiment.describe())
    print(f"record: {plan.folder}")
    if experiment.count("failed"):
        raise Unfinished(
            f"{experiment.count('failed')} of {len(numbers)} runs failed; see {plan.folder / 'results.jsonl'}"
        )


@app.command()
def sample(run: Annotated[Path, typer.Argument(help="a run folder: outputs/<study>/<stage>/<variant>/runs/<run>")],
           prompt: str = "", tokens: int = 100, seed: int = 0, temperature: float = 0.8) -> None:  # fmt: skip
    """Let the model of a finished run write on from a prompt."""
    from gptlib.evaluate import sample_from_run

    print(sample_from_run(run, prompt, tokens, seed, temperature))


@app.command()
def report(outputs: Outputs = None) -> None:
    """Write outputs/index.html anew from the records; prints its path."""
    from gptlib.report.html import write_index

    print(write_index(_outputs(outputs)))


@app.command()
def results(study: str, stage: str = "full", outputs: Outputs = None) -> None:
    """Print the numbers of a study as JSON: the small file behind the numbers of a document."""
    from gptlib.report.results import study_results

    print(json.dumps(study_results(_outputs(outputs), study, stage), indent=1))


@app.command()
def journal(study: Annotated[str, typer.Argument(help="a study's folder below outputs, or a name in params/studies")],
            stage: str = "full", outputs: Outputs = None) -> None:  # fmt: skip
    """Print a study's journal in Markdown, with empty headings for what only a person can say."""
    from gptlib.report.journal import journal as text

    print(text(_outputs(outputs), study, stage), end="")


@app.command("import-log")
def import_log(files: Annotated[list[Path], typer.Argument(help="logs, or folders that hold them")],
               name: Annotated[str, typer.Option(help="[STAGE/]VARIANT: one experiment of everything")] = "",
               loss: Annotated[str, typer.Option(help="the loss to judge by, e.g. val_ema_loss")] = "val_loss",
               outputs: Outputs = None) -> None:  # fmt: skip
    """Read logs of other programs into outputs/imported/, to be compared like our own; prints the folders."""
    from gptlib.importers import import_logs

    found = import_logs(files, _outputs(outputs), name, loss)
    for skipped in found.skipped:
        print(f"not imported: {skipped.source}: {skipped.reason}")
    for note in found.notes:
        print(f"note: {note}")
    for folder, runs in found.folders.items():
        print(f"{folder}: {runs} runs")
    total = f"{found.files} of {found.files + len(found.skipped)} files"
    print(f"imported {total}: {sum(found.folders.values())} runs in {len(found.folders)} experiments")


@app.command("export")
def export_runs(folder: Annotated[Path, typer.Argument(help="a study (outputs/NAME), an experiment or a run")],
                to: Annotated[Literal["wandb", "mlflow", "tensorboard", "json"], typer.Option(help="the sink")],
                project: Annotated[str, typer.Option(help="of wandb; of mlflow, the experiment")] = "",
                where: Annotated[Path | None, typer.Option(help="folder of what is written here (default: "
                                                                "outputs/exports/SINK)")] = None) -> None:  # fmt: skip
    """Replay finished runs to Weights & Biases, MLflow, TensorBoard or a single file each; again doubles nothing."""
    from gptlib.sinks import export

    for line in export(folder, to, project, where):
        print(line)


@app.command()
def compare(folders: Annotated[list[Path], typer.Argument(help="records of experiments; the first is the baseline")],
            test: Annotated[Literal["welch", "paired", "pooled"], typer.Option(help="against the baseline")] = "welch",
            alpha: float = 0.01,
            margin: Annotated[float, typer.Option(help="smallest difference that matters, nats/token")] = 0.0,
            target: Annotated[float | None, typer.Option(help="test whether each mean is at or below it")] = None,
            sigma: Annotated[float | None, typer.Option(help="known std over runs, for a z test of --target")] = None,
            step: Annotated[int | None, typer.Option(help="judge all runs at this step")] = None) -> None:  # fmt: skip
    """Compare finished experiments, our own or imported ones: table, verdicts, claims about a target loss."""
    from gptlib.report.compare import comparison_lines, read_arms, summary_lines, target_lines
    from gptlib.study.hypothesis import Analysis

    if sigma is not None and target is None:
        raise ConfigError("--sigma belongs to --target; give both, or neither")
    if not (0 < alpha < 0.5 and margin >= 0):
        raise ConfigError(f"--alpha {alpha} --margin {margin}: give alpha between 0 and 0.5, and no negative margin")
    arms = read_arms(folders, step)
    answers = comparison_lines(arms, Analysis(test=test, alpha=alpha, margin=margin))
    claims = target_lines(arms, target, sigma, alpha) if target is not None else []
    print("\n".join([*summary_lines(arms), *([""] if answers or claims else []), *answers, *claims]))


def main() -> None:
    """The console script: bad input ends with one line and status 2, unfinished work with status 1."""
    try:
        app()
    except ValueError as error:  # bad input: configuration, records, data
        print(f"gptlib: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Unfinished as error:
        print(f"gptlib: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except SystemExit as end:
        if end.code == 130:  # what typer makes of an interrupt
            print("gptlib: interrupted; run again to finish what is missing", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
