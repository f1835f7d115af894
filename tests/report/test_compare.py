"""Records side by side: judged at a step, paired by seed, with a target, and what cannot be answered."""

import shutil
from pathlib import Path

import pytest
from scipy import stats

from gptlib.importers import import_logs
from gptlib.records import RecordError, write_text
from gptlib.report.compare import comparison_lines, read_arms, summary_lines, target_lines
from gptlib.study.hypothesis import Analysis

OLD, NEW = {1: 3.281, 2: 3.284, 3: 3.279}, {2: 3.2835, 3: 3.278, 4: 3.29}


@pytest.fixture
def record(tmp_path):
    """Writes a record with a validation of twice the final loss at step 5, and of the final loss at 10."""

    def write(name: str, finals: dict[int, object], seed: str = "seed,") -> Path:
        rows = [
            f"{i},{s if seed else ''}{',' if seed else ''}{step},{x}"
            for i, (s, final) in enumerate(finals.items())
            for step, x in ((5, 7.0 + i), (10, final))
        ]
        write_text(tmp_path / "logs" / f"{name}.csv", "\n".join([f"run,{seed}step,val_loss", *rows]) + "\n")
        [folder] = import_logs([tmp_path / "logs" / f"{name}.csv"], tmp_path / "outputs").folders
        return folder

    return write


def test_pairs_are_made_by_seed(record) -> None:
    arms = read_arms([record("old", OLD), record("new", NEW)])
    [line] = comparison_lines(arms, Analysis(test="paired"))
    p_value = stats.ttest_rel([3.2835, 3.278], [3.284, 3.279]).pvalue
    assert "new against old: undecided (-0.00075 nats/token" in line and f"p = {p_value:.2g}; paired)" in line


def test_seeds_that_are_not_known_cannot_be_paired(record) -> None:
    arms = read_arms([record("old", OLD), record("new", NEW, seed="")])
    with pytest.raises(ValueError, match="the logs of new do not say their seeds; use --test welch"):
        comparison_lines(arms, Analysis(test="paired"))
    assert "welch" in comparison_lines(arms, Analysis())[0]


def test_several_variants_have_corrected_p_values(record) -> None:
    arms = read_arms([record("old", OLD), record("new", NEW), record("far", {1: 3.1, 2: 3.11, 3: 3.12})])
    lines = comparison_lines(arms, Analysis(test="pooled"))
    raw = [stats.ttest_ind(list(arm.values()), list(OLD.values())).pvalue for arm in (NEW, {1: 3.1, 2: 3.11, 3: 3.12})]
    assert (
        f"p = {raw[1]:.2g}, p (Holm) = {2 * raw[1]:.2g}; pooled" in lines[1] and "far against old: better" in lines[1]
    )


def test_all_runs_at_one_step(record) -> None:
    folders = [record("old", OLD)]
    assert summary_lines(read_arms(folders, step=5))[2].startswith("| old | 3 | 8.00000 | 1.00000 | 5.51586 to")
    with pytest.raises(RecordError, match="no evaluation at step 7 .the last before: 5.; choose another"):
        read_arms(folders, step=7)


def test_a_target_with_known_noise_takes_one_run(record) -> None:
    arms = read_arms([record("one", {1: 3.276})])
    p_value = stats.norm.cdf(-0.004 / 0.0013)
    assert target_lines(arms, 3.28, 0.0013, 0.01)[0].startswith(
        f"one: mean <= 3.28 shown at 0.01: p = {p_value:.3g} (z test)"
    )
    assert target_lines(arms, 3.28, None, 0.01)[0].startswith("one: mean <= 3.28 undecided: ")


def test_diverged_runs_leave_nothing_decided(record) -> None:
    arms = read_arms([record("old", OLD), record("new", NEW | {5: "nan"})])
    assert "| new | 3 of 4 (1 diverged) |" in summary_lines(arms)[3]
    [line] = comparison_lines(arms, Analysis())
    assert "new against old: undecided" in line and "1 of 4 runs diverged" in line
    assert target_lines(arms, 3.28, None, 0.01)[1] == "new: mean <= 3.28 undecided: 1 of 4 runs diverged"


def test_names_tell_records_apart(record, tmp_path) -> None:
    folder, new = record("old", OLD), record("new", NEW)
    other = shutil.copytree(folder, tmp_path / "other" / "old")
    assert [arm.name for arm in read_arms([folder, new])] == ["old", "new"]
    assert [arm.name for arm in read_arms([folder, other])] == ["logs/old", "other/old"]
    with pytest.raises(RecordError, match="given twice"):
        read_arms([folder, folder])


def test_a_folder_of_others_is_sent_to_the_importer(tmp_path) -> None:
    with pytest.raises(RecordError, match="no finished record .no summary.json.*gptlib import-log"):
        read_arms([tmp_path])
    for name in ("summary.json", "config.json"):
        write_text(tmp_path / name, "{}")
    with pytest.raises(RecordError, match="not a record of gptlib; use `gptlib import-log` on it first"):
        read_arms([tmp_path])
