"""What a study would run and cost, said without running it; and that what is printed works when it is pasted."""

import itertools
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptlib import cli, records
from gptlib.accounting import run_flops
from gptlib.config import ConfigError, load_config, project_root
from gptlib.notebook import AblationParameters, BaselineParameters
from gptlib.study.dry_run import dry_run
from gptlib.study.hypothesis import load_ablation
from gptlib.study.prices import load_prices

STUDIES = 200  # simulated of each design


def lines(name: str | Path, outputs: Path, *overrides: str, device: str = "here") -> list[str]:
    return "\n".join(dry_run(name, outputs, overrides, STUDIES, device=device)).splitlines()


def commands(said: list[str]) -> list[list[str]]:
    """The words of every command, as a shell reads them."""
    return [shlex.split(line) for line in said if "papermill" in line]


def given(words: list[str]) -> dict[str, Any]:
    """The parameters of a command, as papermill reads and merges them."""
    values: dict[str, Any] = {}
    for flag, value in itertools.pairwise(words):
        if flag == "-f":
            values |= yaml.safe_load((project_root() / value).read_text())
        if flag == "-y":
            values |= yaml.safe_load(value)
    return values


def test_a_plain_study_is_priced_on_a_device_of_the_price_list(tmp_path: Path) -> None:
    """FLOPs at 0.4 of the peak; 18 runs, and of the search at most two for each factor."""
    config, listed = load_config("cs336_tinystories_17m"), load_prices().of("H100")
    seconds = run_flops(config, config.data.vocab_size) / (0.4 * 1e12 * listed.tflops)
    said = lines("cs336", tmp_path, device="H100")
    each = f"baseline: 3 runs, each {seconds:.0f} s, ${seconds / 3600 * listed.dollars_per_hour:.2g}"
    assert any(each in line for line in said)
    assert "largest stable rate of no_norm: at most 10 runs, factors 1, 0.3333, 0.1667, 0.0667, 0.0333" in "\n".join(
        said
    )
    assert "in all: 28 runs" in said[-1]


# --- staged studies ---------------------------------------------------------------------------------------------


def test_the_documents_study_says_what_its_money_buys(tmp_path: Path) -> None:
    said = lines("speedrun_staged", tmp_path / "none")
    text = "\n".join(said)
    for line in (
        "stage B, check: 3,000 steps of 524,288 tokens, seeds 142, 143, 144, on 4 x A100",
        "  each run has 8 ranks, which gptlib starts by itself (torch.distributed.run)",
        "  of these at most 6 runs without a pivot, $60.00; at worst 9 runs, $90.00",
        "  all 4 arms at full length with 5 seeds: $168.00",
        "  these stages: $16.00 + $60.00 + $84.00 = $160.00, 5 % saved; at worst $190.00",
        "  without baselines in B and C it would be $95.00, with the reserve, 43 % saved; but then nothing is compared "
        "there",
        "  budget: $96.00, of which $7.00 are a reserve for a pivot",
        "  it does not suffice for the plan: $71.00 are missing",
        "  it does not suffice for the worst case: $94.00 are missing",
        "  a run of B costs 1.19 of a full one: leave B out, full runs tell more",
        "  a pivot costs $30.00, the reserve for it is $7.00",
    ):
        assert line in said
    assert "this study: $" in text and "at most $190.00" in text
    assert (
        "budget=96: the smallest design (all arms, 5 seeds) may cost 168" in text and "The planner would take" in text
    )
    assert not (tmp_path / "none").exists()


def test_every_experiment_of_every_stage_has_a_command_with_valid_parameters(tmp_path: Path) -> None:
    found = [given(words) for words in commands(lines("speedrun_staged", tmp_path))]
    assert [values["stage"] for values in found] == 4 * ["A"] + 4 * ["B"] + 4 * ["C"]
    arms = [None, *(load_ablation(name) for name in ("palm_parallel", "curriculum", "depth_warm"))]
    for values, ablation in zip(found, 3 * arms, strict=True):
        if ablation is None:
            parameters: Any = BaselineParameters(**values)
        else:
            parameters = AblationParameters(**values)
            assert parameters.ablation() == ablation
            ablation.apply(parameters.config)
        steps, ranks, seed = {"A": (1000, 1, 42), "B": (3000, 4, 142), "C": (5100, 8, 242)}[values["stage"]]
        assert (parameters.config.train.steps, parameters.config.hardware.ranks) == (steps, ranks)
        assert parameters.seeds[0] == seed and parameters.outputs == str(tmp_path)


def test_bad_input_is_refused_before_the_first_line(tmp_path: Path) -> None:
    study = yaml.safe_load((project_root() / "params/studies/staged_quick.yaml").read_text())
    study["stages"]["C"]["device"] = "H10"
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    with pytest.raises(ConfigError, match="device 'H10' is not in"):
        next(dry_run(file, tmp_path))


def test_a_budget_that_suffices_is_said_to(tmp_path: Path) -> None:
    file = tmp_path / "rich.yaml"
    text = (project_root() / "params/studies/speedrun_staged.yaml").read_text()
    file.write_text(text.replace("budget_dollars: 96", "budget_dollars: 300"))
    said = lines(file, tmp_path)
    assert "  it suffices for the plan" in said and "  it suffices for the worst case" in said
    assert "budget=" not in "\n".join(said)


# --- the others -------------------------------------------------------------------------------------------------


def test_a_study_without_stages(tmp_path: Path) -> None:
    """4 seeds of 7 experiments, and a grid of 16 points for both arms on 2 seeds: 28 + 64."""
    said = lines("quickstart", tmp_path)
    assert [line for line in said if line.startswith("in all: 92 runs, ")]
    assert any(line.startswith("  adamw_time: 68 runs, 64 of them to tune both arms, each ") for line in said)
    assert len(commands(said)) == 7


def test_a_ladder_with_an_interaction_has_commands_for_every_base(tmp_path: Path) -> None:
    found = [given(words) for words in commands(lines("ladder", tmp_path))]
    assert [v["stage"] for v in found] == [
        s for s in ("full", "full-ladder_small", "full-ladder_large") for _ in range(6)
    ]
    pair = AblationParameters(**found[5])
    assert pair.variant == "no_qk_norm_x_higher_lr" and len(pair.change) == 2


# --- as a command -----------------------------------------------------------------------------------------------


def test_the_command_prints_it_and_imports_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from gptlib.study.dry_run import dry_run
print(*dry_run("speedrun_staged", Path({str(tmp_path)!r}), (), 20), sep="\\n")
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=project_root(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "stage C, race" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    call = ["gptlib", "study", "novels", "--dry-run", "--set", "train.steps=7", "--outputs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", call)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (None, 0)
    assert ": 7 steps of " in capsys.readouterr().out and list(tmp_path.iterdir()) == []


def test_a_pasted_command_works(outputs: Path, tmp_path: Path, overrides: dict[str, Any], own_slots: None) -> None:
    """Both arms of a stage of a tiny study, with a folder that a shell would split."""
    stages = {"A": {"overrides": {"train.steps": "x1/2"}, "seeds": [1, 2]}, "C": {"seeds": [3, 4, 5]}, "looks": [3]}
    values = {"name": "tiny", "question": "Which?", "base": "smoke", "overrides": overrides, "stages": stages}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values | {"ablations": ["gelu"]}))
    place = tmp_path / "it's here"
    outputs.rename(place)
    said = [line.strip() for line in lines(tmp_path / "tiny.yaml", place) if "papermill" in line]
    assert len(said) == 4 and "20_ablations" in said[1]
    done = subprocess.run(["sh", "-c", said[1]], cwd=project_root(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for variant in ("baseline", "gelu"):
        folder = place / "tiny" / "A" / variant
        assert records.read_json(folder / "summary.json")["status"] == "complete"
        asked = records.read_json(folder / "config.json")
        assert asked["seeds"] == [1, 2] and asked["config"]["train"]["steps"] == 2
    again = "\n".join(lines(tmp_path / "tiny.yaml", place))
    assert "time measured on 2 runs, the last tiny/A/baseline" in again and "spent so far: $" in again
