"""Static HTML without a network: a notebook as a report, and an index of everything below an outputs folder."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from gptlib.records import RecordError, read_json, write_text
from gptlib.report.tables import MISSING, lookup, mean_text, number, runs_text

# nbconvert's page loads MathJax, require.js, mermaid and widgets from the network: nothing of it is kept.
OFFLINE_TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_css -%}
<style>main { max-width: 62rem; margin: 0 auto; padding: 1rem; } .jp-OutputArea-output img { max-width: 100%; }</style>
{%- endblock -%}
"""
LINKS = {"report": "notebook.html", "notebook": "notebook.ipynb", "log": "experiment.log"}
MOVED_ASIDE = re.compile(r"\.\d{8}T\d{6}(-\d+)?$")  # records.move_aside: replaced by a newer record


@dataclass
class Row:
    """One experiment of the index; `error` stands for everything else where its summary cannot be read."""

    stage: str
    variant: str
    error: str = ""
    status: str = ""
    difference: list[tuple[str, str, str]] = field(default_factory=list)  # key, baseline's value, variant's value
    loss: str = MISSING
    excess: str = MISSING
    runs: str = MISSING
    seconds: str = MISSING
    verdict: str = ""
    effect: str = ""
    reason: str = ""
    picture: str = ""
    links: dict[str, str] = field(default_factory=dict)

    @property
    def verdict_class(self) -> str:
        return self.verdict.split()[0] if self.verdict else ""


def notebook_html(notebook: Path, html: Path) -> None:
    """Write `notebook` as one self-contained page: outputs and text, inputs hidden, images embedded, no scripts.

    The notebook is not executed. Raises ValueError when it cannot be read.
    """
    import nbformat
    from nbconvert import HTMLExporter

    try:
        content = nbformat.read(notebook, as_version=4)
    except Exception as error:  # nbformat raises its own, JSON's and the file system's errors
        raise ValueError(f"{notebook}: not a readable notebook ({error}); execute it again") from None
    exporter = HTMLExporter(raw_template=OFFLINE_TEMPLATE, embed_images=True)
    exporter.exclude_input = exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    place = {"metadata": {"name": _title(content, notebook.stem), "path": str(notebook.parent)}}
    write_text(html, exporter.from_notebook_node(content, resources=place)[0])


def study_pages(folder: Path, notebooks: Iterable[Path]) -> Path:
    """Pages of a study's executed notebooks where they are missing or older, and the index; returns the report.

    The report, `folder`/report.html, is the page of analysis.ipynb.
    """
    report = folder / "report.html"
    for notebook in notebooks:
        page = report if notebook.stem == "analysis" else notebook.with_suffix(".html")
        if not page.exists() or page.stat().st_mtime_ns < notebook.stat().st_mtime_ns:
            notebook_html(notebook, page)
    write_index(folder.parent)
    return report


def write_index(outputs: Path) -> Path:
    """Write outputs/index.html over every outputs/<study>/<stage>/<variant>/summary.json and return its path."""
    studies: dict[str, list[Row]] = {}
    for summary in sorted(outputs.glob("*/*/*/summary.json")):
        if not MOVED_ASIDE.search(summary.parent.name):
            studies.setdefault(summary.relative_to(outputs).parts[0], []).append(_row(summary, outputs))
    for rows in studies.values():
        rows.sort(key=lambda row: (row.stage, bool(row.error), bool(row.difference), row.variant))
    reports = {study: _href(outputs / study / "report.html", outputs) for study in studies}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("index.html.j2").render(studies=studies, reports=reports)
    write_text(outputs / "index.html", page)
    return outputs / "index.html"


def _row(path: Path, outputs: Path) -> Row:
    folder = path.parent
    row = Row(stage=folder.parent.name, variant=folder.name, picture=_href(folder / "loss_curves.png", outputs))
    row.links = {name: link for name, file in LINKS.items() if (link := _href(folder / file, outputs))}
    try:
        _fill(row, read_json(path))
    except (RecordError, OSError) as error:
        row.error = str(error).removeprefix(f"{path}: ")
    except (AttributeError, TypeError, ValueError) as error:  # JSON, but not of the form of a summary
        row.error = f"not of the form of a summary ({error}); move the folder away and run again"
    return row


def _fill(row: Row, summary: dict[str, Any]) -> None:
    for key, (old, new) in (summary.get("difference") or {}).items():
        row.difference.append((key, _value(old), _value(new)))
    row.status = str(summary.get("status") or MISSING)
    row.loss = mean_text(lookup(summary, "statistics", "val_loss"))
    row.excess = mean_text(lookup(summary, "statistics", "excess"))
    row.seconds = number(lookup(summary, "statistics", "time", "mean"), "{:,.1f} s")
    row.runs = runs_text(summary)
    row.verdict = str(lookup(summary, "comparison", "verdict") or "")
    row.reason = str(lookup(summary, "comparison", "reason") or "")
    row.effect = number(lookup(summary, "comparison", "difference"), "{:+.4f}") if row.verdict else ""


def _href(file: Path, outputs: Path) -> str:
    """Relative link to `file`, or "" where it does not exist."""
    return quote(file.relative_to(outputs).as_posix()) if file.is_file() else ""


def _value(value: Any) -> str:
    """A configuration value as it is written in YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def _title(notebook: Any, default: str) -> str:
    """Text of the notebook's first heading."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    heading = re.search(r"^#+\s+(.+?)\s*#*$", "\n".join(cells), re.MULTILINE)
    return heading.group(1) if heading else default
