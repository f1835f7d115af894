"""The numbers of a study in one small file: what is kept in docs/results/ behind every number in a document."""

from pathlib import Path
from typing import Any

from gptlib.records import RecordError, read_json

KEPT = (
    "variant", "status", "seeds", "difference", "statistics", "comparison", "match", "accounting",
    "tokens_per_second",
)  # fmt: skip
MACHINE = ("python", "platform", "cpu", "cores", "gpus", "packages", "source_hash")


def study_results(outputs: Path, study: str, stage: str = "full") -> dict[str, Any]:
    """Summaries of the finished experiments of a study with their final losses by seed. Raises RecordError if none."""
    experiments, environment, commit = [], dict[str, Any](), None
    for path in sorted((outputs / study / stage).glob("[!.]*/summary.json")):
        summary = read_json(path)
        if path.parent.name != summary["variant"] or "imported" in summary:  # moved aside, or of others
            continue
        finals = {
            str(result["seed"]): result["final_val_loss"]
            for result in map(read_json, sorted(path.parent.glob("runs/*/result.json")))
            if result["seed"] in summary["seeds"]
        }
        experiments.append({key: summary[key] for key in KEPT} | {"final_val_loss": finals})
        environment, commit = summary["environment"], summary["git_info"]["commit"]
    if not experiments:
        raise RecordError(f"{outputs / study / stage}: no finished experiment; run the study first")
    config = read_json(outputs / study / stage / "baseline" / "config.json")["config"]
    for section, key in (("data", "path"), ("eval", "hellaswag")):  # the place is the machine's, the name is not
        if config.get(section, {}).get(key):
            config[section][key] = Path(config[section][key]).name
    return {
        "study": study,
        "stage": stage,
        "commit": commit,
        "environment": {key: environment[key] for key in MACHINE},
        "baseline": config,
        "experiments": experiments,
    }
