"""Bring notebooks into the form in which they are committed: outputs, counts, ids and tags stay, run noise goes.

With --check nothing is written: what breaks the rules for committed notebooks is listed, and the exit status is 1.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode
from nbstripout import strip_output

MAX_BYTES = 200_000
MAX_CODE_LINES = 15
NOISE = [
    *("metadata.papermill", "metadata.widgets", "metadata.signature", "metadata.language_info.version"),
    *("cell.metadata.papermill", "cell.metadata.execution", "cell.metadata.ExecuteTime"),
    *("cell.metadata.collapsed", "cell.metadata.scrolled"),
]
TOP_FOLDERS = "home|Users|root|mnt|media|opt|scratch|srv|tmp|var|private|workspace|content"
CHECKOUT = Path(__file__).resolve().parents[1]
MACHINE_PATH = re.compile(
    rf"(?:(?<![\w.:/~<-])/(?:{TOP_FOLDERS})/|file:///|\b[A-Z]:\\+Users\\|{re.escape(str(CHECKOUT))})[^\s\"'<>]*"
)


def normalised(text: str) -> str:
    """The committed form of a notebook. Raises nbformat.ValidationError or ValueError where it is not a notebook."""
    notebook = nbformat.reads(text, as_version=4)
    strip_output(notebook, keep_output=True, keep_count=True, keep_id=True, extra_keys=NOISE)
    # How a stream is cut into pieces depends on the clock.
    notebook, _ = CoalesceStreamsPreprocessor(enabled=True).preprocess(notebook, {})
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def problems(text: str) -> Iterator[str]:
    """What keeps a notebook from being committed, one line per finding."""
    try:
        if normalised(text) != text:
            yield "not normalised: `python tools/normalise_notebooks.py` does it"
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
    except (nbformat.ValidationError, ValueError) as error:
        yield f"not a valid notebook: {str(error).splitlines()[0]}"
        return
    if len(text.encode()) > MAX_BYTES:
        yield f"{len(text.encode()) // 1000} kB; references stay under {MAX_BYTES // 1000} kB"
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    if sum("parameters" in tags(cell) for cell in code) != 1:
        yield "needs exactly one code cell tagged `parameters`"
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "was not run from top to bottom: the execution counts are not 1, 2, 3, ..."
    for number, cell in enumerate(notebook.cells):
        yield from (f"cell {number}: {finding}" for finding in cell_problems(cell))


def cell_problems(cell: NotebookNode) -> Iterator[str]:
    outputs = cell.get("outputs", [])
    lines = [line for line in cell.source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if cell.cell_type == "code" and "parameters" not in tags(cell) and len(lines) > MAX_CODE_LINES:
        yield f"{len(lines)} lines of code; over {MAX_CODE_LINES} they belong in the package"
    if "nbval-check-output" in tags(cell) and not outputs:
        yield "is tagged nbval-check-output but has no stored output"
    if any(output.output_type == "error" for output in outputs):
        yield "stores an error"
    for found in MACHINE_PATH.findall(f"{cell.source}\n{shown_text(outputs)}"):
        yield f"holds the path of one machine: {found}"


def tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def shown_text(outputs: list[NotebookNode]) -> str:
    """Everything in `outputs` that is text; pictures hold arbitrary base64."""
    data = [value for output in outputs for kind, value in output.get("data", {}).items() if "image/" not in kind]
    texts = [output.get("text", "") for output in outputs] + data
    return "\n".join(text if isinstance(text, str) else json.dumps(text) for text in texts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; list problems and exit 1 if there are any")
    arguments = parser.parse_args()
    if absent := [str(path) for path in arguments.notebooks if not path.is_file()]:
        parser.error(f"no such file: {', '.join(absent)}")
    findings = 0
    for path in arguments.notebooks:
        text = path.read_text(encoding="utf-8")
        if arguments.check:
            for finding in problems(text):
                findings += 1
                print(f"{path}: {finding}", file=sys.stderr)
        elif (new := normalised(text)) != text:
            beside = path.with_name(f".{path.name}.new")
            beside.write_text(new, encoding="utf-8", newline="\n")
            os.replace(beside, path)
    return min(findings, 1)


if __name__ == "__main__":
    sys.exit(main())
