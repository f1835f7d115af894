"""Share of a folder's run logs that are imported, and the time that takes: a Markdown table.

    .venv/bin/python benchmarks/import_logs.py FOLDER

A run log is a text file with a validation line: a loss of validation and a number, wherever it stands. Whether the
importer reads it as a run is another question, and the share is the answer. Files without such a line (packages'
lists, standard errors, manifests) are counted by themselves. Records go to a temporary folder; the time is that of
`gptlib import-log`, files written, one process.
"""

import argparse
import re
import tempfile
import time
from pathlib import Path

from gptlib import records
from gptlib.importers import SUFFIXES, import_logs

VALIDATION = re.compile(rb"^(?!\s*#).*(val_loss:|val loss |\btel:)\d", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder.resolve()
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in SUFFIXES]
    logs = {f"{folder.name}/{path.relative_to(folder)}" for path in files if VALIDATION.search(path.read_bytes())}
    with tempfile.TemporaryDirectory() as outputs:
        start = time.perf_counter()
        found = import_logs([folder], Path(outputs))
        seconds = time.perf_counter() - start
    missed = sorted(logs & {skipped.source for skipped in found.skipped})
    size = sum(path.stat().st_size for path in files) / 1e6
    print(f"{records.cpu_name()}\n")
    print("| files | MB | run logs | imported | runs | experiments | seconds |")
    print("|---|---|---|---|---|---|---|")
    share = f"{len(logs) - len(missed)} ({(len(logs) - len(missed)) / len(logs):.1%})"
    counts = f"{sum(found.folders.values())} | {len(found.folders)} | {seconds:.1f}"
    print(f"| {len(files)} | {size:.0f} | {len(logs)} | {share} | {counts} |")
    others = [skipped for skipped in found.skipped if skipped.source not in logs]
    print("\n".join(["", f"Not imported though run logs: {len(missed)}", *missed, "", f"Not run logs: {len(others)}"]))
    for skipped in others:
        print(f"- {skipped.source}: {skipped.reason}")


if __name__ == "__main__":
    main()
