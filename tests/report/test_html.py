"""The index and the notebook pages, parsed as a browser would parse them."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest

from gptlib.report.html import notebook_html, write_index

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
VOID = {"meta", "link", "img", "br", "hr", "col", "input"}


class Page(HTMLParser):
    """Text, tags with attributes, and whether every tag was closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = self.code = self.title = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] in (["style"], ["script"]):
            self.code += data
        elif self.open[-1:] == ["title"]:
            self.title += data
        else:
            self.text += data

    def all(self, tag: str, attribute: str) -> list[str]:
        return [attrs.get(attribute) or "" for name, attrs in self.tags if name == tag and attribute in attrs]


def experiment(outputs: Path, name: str, summary: Any, *files: str) -> Path:
    folder = outputs / name
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(summary if isinstance(summary, str) else json.dumps(summary))
    for file in files:
        (folder / file).write_bytes(PNG)
    return folder


def summary(**more: Any) -> dict[str, Any]:
    losses = {"mean": 2.5, "ci_95": [2.4, 2.6]}
    counts = {"n_runs": 3, "successful_runs": 3, "diverged_runs": 0, "failed_runs": 0}
    return {
        "status": "complete",
        "difference": {},
        "statistics": counts | {"val_loss": losses, "excess": {"mean": 1.25, "ci_95": [1.15, 1.35]}},
        "comparison": None,
    } | more


def test_index_shows_losses_changes_verdicts_and_existing_files(tmp_path: Path) -> None:
    experiment(tmp_path, "quick/full/baseline", summary(), "loss_curves.png", "notebook.html", "experiment.log")
    changed = {"model.qk_norm": [True, False], "train.steps": [1, 0]}
    compared = {"verdict": "worse", "difference": 0.0123, "reason": "p < 0.01 & <clear>"}
    experiment(tmp_path, "quick/full/no_qk", summary(difference=changed, comparison=compared), "notebook.ipynb")
    (tmp_path / "quick" / "report.html").write_text("")
    (tmp_path / "data" / "stories-1" / "x").mkdir(parents=True)
    page = Page(write_index(tmp_path))
    assert not page.open
    for expected in ("2.5000 ± 0.1000", "1.2500 ± 0.1000", "true → false", "1 → 0", "+0.0123", "p < 0.01 & <clear>"):
        assert expected in page.text
    assert "worse" in page.all("b", "class")
    assert page.all("img", "src") == ["quick/full/baseline/loss_curves.png"]
    links = page.all("a", "href")
    assert {"quick/report.html", "quick/full/baseline/experiment.log", "quick/full/no_qk/notebook.ipynb"} <= set(links)
    assert all((tmp_path / link).is_file() for link in links)
    assert len(links) == 5


def test_index_escapes_names(tmp_path: Path) -> None:
    experiment(tmp_path, "a&b/<i>/x <script>1<&script> #%", summary(), "loss_curves.png")
    page = Page(write_index(tmp_path))
    assert "x <script>1<&script> #%" in page.text
    assert not {"script", "i"} & {tag for tag, _ in page.tags}
    assert page.all("img", "src") == ["a%26b/%3Ci%3E/x%20%3Cscript%3E1%3C%26script%3E%20%23%25/loss_curves.png"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"status": ', "not valid JSON"),
        ("[1, 2]", "not of the form of a summary"),
        ('{"difference": {"a": 1}}', "not of the form of a summary"),
        ('{"statistics": {"val_loss": {"mean": 1, "ci_95": "wide"}}}', "not of the form of a summary"),
        ('{"statistics": {"val_loss": {"mean": null, "ci_95": [null, null]}}, "comparison": null}', "–"),
        ("{}", "–"),
    ],
)
def test_a_bad_summary_is_a_row_that_says_so(tmp_path: Path, content: str, says: str) -> None:
    experiment(tmp_path, "s/full/bad", content)
    experiment(tmp_path, "s/full/good", summary())
    page = Page(write_index(tmp_path))
    assert says in page.text
    assert str(tmp_path) not in page.text
    assert "2.5000 ± 0.1000" in page.text


def test_index_leaves_out_replaced_records_and_bears_an_empty_folder(tmp_path: Path) -> None:
    assert "No finished experiment" in Page(write_index(tmp_path)).text
    experiment(tmp_path, "s/full/gelu.20260102T030405", summary())
    experiment(tmp_path, "s/full/gelu.v2", summary())
    page = Page(write_index(tmp_path))
    assert "gelu.v2" in page.text
    assert "20260102" not in page.text
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["index.html"]


def test_index_needs_no_network(tmp_path: Path) -> None:
    experiment(tmp_path, "s/full/a", summary())
    assert "http" not in write_index(tmp_path).read_text()


def notebook(path: Path, *cells: Any, **metadata: Any) -> Path:
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells), metadata=metadata), path)
    return path


def test_notebook_page_is_self_contained_and_hides_its_inputs(tmp_path: Path) -> None:
    v4 = nbformat.v4
    png = base64.b64encode(PNG).decode()
    outputs = [
        v4.new_output("display_data", data={"image/png": png, "text/plain": "<Figure>"}),
        v4.new_output("stream", text="final loss 2.21"),
    ]
    (tmp_path / "beside.png").write_bytes(PNG)
    source = notebook(
        tmp_path / "n.ipynb",
        v4.new_markdown_cell("intro\n\n## Is *QK-norm* worth it? & more ##\n\n[paper](https://arxiv.org/abs/1)"),
        v4.new_markdown_cell("# Later heading\n\n![beside](beside.png)"),
        v4.new_code_cell("secret_input = 1", outputs=outputs, execution_count=1),
        widgets={"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2, "version_minor": 0}},
    )
    notebook_html(source, tmp_path / "n.html")
    page = Page(tmp_path / "n.html")
    assert page.title == "Is *QK-norm* worth it? & more"
    assert "secret_input" not in page.text
    assert "final loss 2.21" in page.text
    images = page.all("img", "src")
    assert len(images) == 2
    assert all(src.startswith("data:image/png;base64,") for src in images)
    assert png in images[1].replace("\n", "")
    assert page.all("link", "href") == page.all("script", "src") == []
    code = re.sub(r"/\*.*?\*/|http://www\.w3\.org/\d+/\w+", "", page.code, flags=re.DOTALL)  # comments, SVG's namespace
    assert not re.search("https?://", code)  # so no import(), url() or @import from the network
    assert page.all("a", "href").count("https://arxiv.org/abs/1") == 1  # a link that a person follows may stay


def test_notebook_without_a_heading_is_named_after_its_file(tmp_path: Path) -> None:
    source = notebook(tmp_path / "plain.ipynb", nbformat.v4.new_code_cell("1"))
    notebook_html(source, tmp_path / "plain.html")
    assert Page(tmp_path / "plain.html").title == "plain"


@pytest.mark.parametrize("content", [None, "{", '{"cells": 3}'])
def test_unreadable_notebook_is_named_and_nothing_is_written(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "n.ipynb").write_text(content)
    with pytest.raises(ValueError, match=r"n\.ipynb: not a readable notebook"):
        notebook_html(tmp_path / "n.ipynb", tmp_path / "n.html")
    assert not (tmp_path / "n.html").exists()
