"""docs/acceptance.md: every item is there once, what it names exists, and its quick commands print what it says.

Also shown here: what no other test shows of the items - the files and fields of a record, peaks of memory, the three
generators, what the analysis leaves behind - and that docs/troubleshooting.md quotes what is really said.
"""

import ast
import contextlib
import io
import os
import pkgutil
import platform
import random
import re
import resource
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import typer
from PIL import Image

from gptlib import analysis, cli, records
from gptlib.device import Place
from gptlib.importers import import_logs
from gptlib.study.hypothesis import load_ablation
from gptlib.train import run_from_folder, seed_everything

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("acceptance", "troubleshooting")}
ITEMS = [f"S{document}-{n:02d}" for document, last in enumerate((39, 42, 19, 15, 11)) for n in range(1, last + 1)]
OLD, NEW = (3.2831, 3.2842, 3.2825, 3.2837, 3.2829), (3.2761, 3.2772, 3.2755, 3.2767, 3.2759)  # final losses of LOGS


@dataclass(frozen=True)
class Line:
    """A row of docs/acceptance.md."""

    item: str
    asked: str
    answered: str
    shown_by: str
    prints: str


def table_rows(page):
    """The cells of all rows but the heads."""
    rows = [[cell.strip() for cell in row.strip("|").split(" |")] for row in page.splitlines() if row.startswith("| ")]
    return [cells for cells in rows if cells[0] not in ("item", "what you see")]


LINES = [Line(*cells) for cells in table_rows(PAGES["acceptance"])]
QUOTED = sorted({word for page in PAGES.values() for word in re.findall(r"`([^`]+)`", page)})
NODES = [word for word in QUOTED if "::" in word]
COMMANDS = sorted({line.shown_by.strip("`") for line in LINES if "::" not in line.shown_by})
QUICK = sorted({line.shown_by.strip("`") for line in LINES if line.prints})


def test_every_item_is_there_once():
    assert Counter(line.item.split()[0] for line in LINES) == Counter(ITEMS)
    assert all(re.fullmatch(r"S\d-\d\d( ?\[(M|I|P2|!)\])+", line.item) for line in LINES)
    assert all(line.asked and line.answered and line.shown_by.count("`") == 2 for line in LINES)


# --- what the pages name exists ---------------------------------------------------------------------------------


@pytest.mark.parametrize("node", NODES)
def test_a_named_test_exists(node):
    path, name = node.split("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {f.name for f in tree.body if isinstance(f, ast.FunctionDef)}


@pytest.mark.parametrize(
    "word", [w for w in QUOTED if re.match(r"(gptlib|params|tests|docs|notebooks|benchmarks)/", w)]
)
def test_a_named_file_exists(word):
    assert list(ROOT.glob(word.split("::")[0]))


@pytest.mark.parametrize("word", [w for w in QUOTED if re.fullmatch(r"gptlib(\.\w+)+", w)])
def test_a_named_function_exists(word):
    assert callable(pkgutil.resolve_name(word))


@pytest.mark.parametrize("command", [c for c in QUOTED if c.startswith("gptlib ")])
def test_a_command_has_the_options_that_it_is_given(command):
    """And its arguments; a study or a base that it names is in params/."""
    part, words = typer.main.get_command(cli.app), shlex.split(command)[1:]
    context = typer.Context(part)
    while hasattr(part, "get_command"):
        name, *words = words
        part = part.get_command(context, name)
        assert part is not None, f"no command {name}"
    given = part.make_context(name, words).params
    for parameter, folder in (("study" if name == "journal" else "name", "studies"), ("base", "base")):
        value = given.get(parameter, "NAME")
        assert value.isupper() or value in ("", "adhoc") or (ROOT / "params" / folder / f"{value}.yaml").is_file()


@pytest.mark.parametrize("target", re.findall(r"`make ([^`]+)`", "".join(PAGES.values())))
def test_a_make_target_exists(target):
    name, *variables = target.split()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{name}:", makefile, re.MULTILINE)
    for variable in variables:
        key, value = variable.split("=")
        assert re.search(rf"\b{key}\b", makefile) and ("/" not in value or (ROOT / value).is_file())


# --- the quick commands -----------------------------------------------------------------------------------------


class Shell:
    """Runs the commands of the page in this process, on records and logs that it has made, below one folder."""

    def __init__(self, folder):
        self.outputs, logs = folder / "outputs", folder / "logs"
        for arm, losses in (("old", OLD), ("new", NEW)):
            for seed, loss in enumerate(losses):
                log = logs / arm / f"seed_{seed}.txt"
                log.parent.mkdir(parents=True, exist_ok=True)
                steps = ((0, 10.8258, 0), (50, 4.5, 2850), (100, loss, 5700 + seed))
                lines = (f"step:{s}/100 val_loss:{x:.4f} train_time:{t}ms step_avg:57.00ms\n" for s, x, t in steps)
                log.write_text("".join(lines))
        imported = import_logs([logs], self.outputs).folders
        names = {path.name: path for path in imported}
        self.record = self.outputs / "adhoc" / "full" / "baseline"
        self.yours = {"LOGS": logs, "OLD": names["old"], "NEW": names["new"], "FOLDER": folder / "npy"}
        status, said = self("gptlib train smoke --seeds 42,43")
        assert status == 0, said
        self.yours["RUN"] = self.record / "runs" / "run_0_seed_42"
        [self.yours["DATASET"]] = (self.outputs / "data").glob("stories-*")

    def __call__(self, command):
        """Its status, and what it printed."""
        program, *words = [str(self.yours.get(word, word)) for word in shlex.split(command)]
        if program != "gptlib":
            environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
            done = subprocess.run([program, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
            return done.returncode, done.stdout + done.stderr
        said, status = io.StringIO(), 0
        with (
            pytest.MonkeyPatch.context() as patched,
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            patched.setattr(sys, "argv", ["gptlib", *words])
            patched.setattr(cli, "_outputs", lambda folder: self.outputs)
            patched.setattr("gptlib.study.experiment.launch", launch_in_process)
            try:
                cli.main()
            except SystemExit as end:
                status = end.code or 0
        return status, said.getvalue()


def launch_in_process(runs, hardware, poll):
    """The launcher and its processes have tests of their own."""
    torch.set_num_threads(1)
    for run in runs:
        with (run / "stdout.log").open("w") as log, contextlib.redirect_stdout(log):
            run_from_folder(run)


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    return Shell(tmp_path_factory.mktemp("acceptance"))


@pytest.mark.parametrize("command", QUICK)
def test_a_quick_command_prints_what_the_page_says(shell, command):
    status, said = shell(command)
    assert status == 0, said
    promised = [line.prints for line in LINES if line.shown_by.strip("`") == command]
    promised = re.findall(r"`([^`]+)`", " ".join(promised))
    assert [words for words in promised if words not in said] == []


# --- what is shown here alone -----------------------------------------------------------------------------------


def test_a_record_has_the_files_and_fields_of_the_documents(shell):
    names = ["config.json", "environment.json", "experiment.log", "results.jsonl", "metrics.jsonl", "metrics.csv"]
    names += ["summary.json", "loss_curves.png", "runs/run_0_seed_42/stdout.log", "runs/run_1_seed_43/stdout.log"]
    assert [name for name in names if not (shell.record / name).is_file()] == []

    fields = {"run_id", "seed", "final_val_loss", "final_train_loss", "time_seconds", "final_step", "success"}
    results = records.read_jsonl(shell.record / "results.jsonl")
    assert [(row["run_id"], row["seed"]) for row in results] == [(0, 42), (1, 43)]
    assert all(fields <= set(row) for row in results)

    rows = records.read_jsonl(shell.record / "metrics.jsonl")
    trained = [row for row in rows if row["train_loss"] is not None]
    assert {row["run_id"] for row in trained} == {0, 1} and any(row["val_loss"] is not None for row in trained)
    assert all(row["step_avg_ms"] * row["step"] == pytest.approx(row["train_time_ms"]) for row in trained)
    last = {row["run_id"]: row["train_time_ms"] / 1000 for row in rows}
    assert [last[row["run_id"]] for row in results] == pytest.approx([row["time_seconds"] for row in results])

    summary = records.read_json(shell.record / "summary.json")
    assert datetime.fromisoformat(summary["end_time"]) and {"git_info", "gpu_info"} <= set(summary)
    statistics = summary["statistics"]
    assert (statistics["n_runs"], statistics["successful_runs"]) == (2, 2)
    finals = [row["final_val_loss"] for row in results]
    half = 12.706205 * np.std(finals, ddof=1) / 2**0.5  # Student's 97.5 % point with one degree of freedom
    assert statistics["val_loss"]["ci_95"] == pytest.approx([np.mean(finals) - half, np.mean(finals) + half])
    assert {"mean", "std", "min", "max", "median", "ci_95", "best"} <= set(statistics["val_loss"])
    assert {"mean", "std", "total"} == set(statistics["time"])


def test_a_record_says_where_it_comes_from(shell):
    environment = records.read_json(shell.record / "environment.json")
    assert environment["packages"]["torch"] == torch.__version__ and environment["packages"]["numpy"] == np.__version__
    assert environment["python"] == platform.python_version() and isinstance(environment["gpus"], list)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert environment["git"]["commit"] == (head or None)
    assert environment["command"][1:] == ["train", "smoke", "--seeds", "42,43"]
    assert records.read_json(shell.record / "summary.json")["experiment_name"] == "adhoc/full/baseline"
    assert records.read_json(shell.record / "config.json")["config"]["train"]["steps"] == 24


def test_peaks_are_those_of_torch_and_of_the_process(monkeypatch):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    on_cpu = Place(torch.device("cpu")).peak_memory()
    assert set(on_cpu) == {"resident_peak_mib"} and on_cpu["resident_peak_mib"] >= before / 2**20 > 10
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 5 * 2**20)
    on_gpu = Place(torch.device("cuda")).peak_memory()
    assert (on_gpu["allocated_peak_mib"], on_gpu["reserved_peak_mib"]) == (3, 5)


def test_the_three_generators_are_seeded():
    def drawn(seed):
        seed_everything(seed)
        return random.random(), np.random.random(), float(torch.rand(()))

    assert drawn(7) == drawn(7) and all(a != b for a, b in zip(drawn(7), drawn(8), strict=True))


def test_the_analysis_leaves_its_figure_and_its_text(shell):
    figure, axes = plt.subplots()
    axes.plot([0, 1], [2, 1])
    analysis.write_comparison(SimpleNamespace(outputs=str(shell.outputs), study="adhoc", stage="full"), figure, figure)
    plt.close(figure)
    assert Image.open(shell.outputs / "adhoc" / "ablation_comparison.png").width > 500
    mean = records.read_json(shell.record / "summary.json")["statistics"]["val_loss"]["mean"]
    assert f"val loss {mean:.4f}" in (shell.outputs / "adhoc" / "ablation_analysis.txt").read_text()
    assert "### Key metrics over training" in (shell.outputs / "adhoc" / "appendix.md").read_text()


def test_the_papers_that_the_log_names_are_cited():
    """Attention, RoPE, decoupled weight decay, cosine with restarts."""
    sources = "".join(load_ablation(path).source for path in (ROOT / "params" / "ablations").glob("*.yaml"))
    assert [i for i in ("1706.03762", "2104.09864", "1711.05101", "1608.03983") if i not in sources] == []


def messages():
    """Every string of the package, with … for what is filled in."""
    for path in (ROOT / "gptlib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_remedy_quotes_what_is_really_said():
    rows = table_rows(PAGES["troubleshooting"])
    assert len(rows) > 25 and all(len(cells) == 4 and cells[2] and cells[3].strip("`") in NODES for cells in rows)
    seen = [quote for cells in rows for quote in re.findall(r"`([^`]+)`", cells[0]) if " " in quote]
    said = list(messages())
    patterns = {quote: ".*".join(map(re.escape, quote.split("…"))) for quote in seen}
    assert len(seen) > 15
    assert [quote for quote, p in patterns.items() if not any(re.search(p, one, re.DOTALL) for one in said)] == []
