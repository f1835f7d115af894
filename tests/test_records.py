"""Records: whole or absent, torn lines tolerated, one holder at a time, nothing overwritten."""

import json
import subprocess
import sys

import pytest

from gptlib import records
from gptlib.config import load_config, with_changes
from gptlib.records import RecordError


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path):
    path = tmp_path / "x.json"
    records.write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        records.write_json(path, {"a": float("nan")})
    assert records.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_an_unwritable_place_is_one_line_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="choose another `outputs` folder"):
        records.write_json(tmp_path / "file" / "x.json", {})
    with (
        pytest.raises(RecordError, match="choose another `outputs` folder"),
        records.exclusive(tmp_path / "file" / "x"),
    ):
        pass


def test_torn_lines_are_tolerated_and_closed_before_the_next(tmp_path):
    path = tmp_path / "m.jsonl"
    records.append_jsonl(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    records.append_jsonl(path, {"step": 3})
    assert records.read_jsonl(path) == [{"step": 1}, {"step": 3}]
    assert records.read_jsonl(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", "a\0b", "é", "x" * 81, "-x", ".hidden"])
def test_names_stay_inside_the_outputs_folder(tmp_path, name):
    with pytest.raises(RecordError, match="letters, digits"):
        records.experiment_folder(tmp_path, "study", "full", name)


def test_a_second_taker_is_refused_and_told_who_holds_it(tmp_path):
    code = (
        "import sys, pathlib; from gptlib import records\n"
        "with records.exclusive(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "e")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RecordError, match=f"in use by process {holder.pid}"), records.exclusive(tmp_path / "e"):
        pass
    holder.kill()
    holder.communicate()
    with records.exclusive(tmp_path / "e"):  # a killed holder leaves nothing locked
        assert (tmp_path / "e" / ".holder").exists()


def test_moving_aside_keeps_both(tmp_path):
    for number in range(3):
        (tmp_path / "v").mkdir()
        (tmp_path / "v" / "n").write_text(str(number))
        records.move_aside(tmp_path / "v")
    kept = sorted((p / "n").read_text() for p in tmp_path.glob("v.*"))
    assert kept == ["0", "1", "2"] and not (tmp_path / "v").exists()


def test_the_fingerprint_covers_numbers_and_data_but_not_the_path():
    base = load_config("smoke")
    reference = records.experiment_fingerprint(base, "d", "cpu")
    assert reference == records.experiment_fingerprint(with_changes(base, {"data.path": "elsewhere"}), "d", "cpu")
    others = [
        records.experiment_fingerprint(with_changes(base, {"optim.muon.lr": 0.021}), "d", "cpu"),
        records.experiment_fingerprint(with_changes(base, {"hardware.threads": 2}), "d", "cpu"),
        records.experiment_fingerprint(base, "other data", "cpu"),
        records.experiment_fingerprint(base, "d", "cuda"),
    ]
    assert reference not in others and len(set(others)) == 4


def test_the_fingerprint_covers_what_hellaswags_file_says_and_not_where_it_lies(tmp_path):
    def found(path):
        return records.experiment_fingerprint(with_changes(load_config("smoke"), {"eval.hellaswag": path}), "d", "cpu")

    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / f"{name}.jsonl").write_text(content)
    a, b, c = (found(str(tmp_path / f"{name}.jsonl")) for name in "abc")
    assert a == b and len({a, c, found("tiny"), found("")}) == 4
    with pytest.raises(records.RecordError, match=r"lost.jsonl: cannot be read \(.*\); check eval.hellaswag$"):
        found(str(tmp_path / "lost.jsonl"))


def test_the_environment_holds_no_environment_variables(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-5f1c")
    text = json.dumps(records.environment() | records.git_info())
    assert "canary" not in text and "torch" in text
