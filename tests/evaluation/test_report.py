"""The page of a run: the numbers of its record, in one file that a phone can show."""

from __future__ import annotations

import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from st_jv5.cli import main
from st_jv5.evaluation.local_tasks import OfficeLongRetrieval, WordNetSTS
from st_jv5.evaluation.mteb_encoder import MTEBEncoder
from st_jv5.evaluation.page import Page, Table, lines
from st_jv5.evaluation.record import main_rows, read_record
from st_jv5.evaluation.scoring import Settings, evaluate


@pytest.fixture
def run(model, tmp_path, small_tasks) -> Path:
    """A run with a matrix, curves and long documents."""
    tasks = [WordNetSTS(), OfficeLongRetrieval()]
    precisions = ("float32", "int8", "binary", "binary-rescored")
    settings = Settings("all", (48, 16, 8), precisions)
    evaluate(MTEBEncoder(model, remember=True), tasks, tmp_path / "run", settings, command="do it")
    longer = Settings("all", (48,), max_tokens=(64, 16))
    encoder = MTEBEncoder(model, remember=True)
    evaluate(encoder, [OfficeLongRetrieval()], tmp_path / "run", longer, command="again")
    main(["report", str(tmp_path / "run")])
    return tmp_path / "run"


class Tables(HTMLParser):
    """The cells of each table."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.asked: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True
        self.asked += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tables[-1][-1][-1] += data


def test_both_pages_have_the_scores_curves_matrix_settings_and_commands(run):
    record = read_record(run)
    rows = record["results"]
    page = Tables()
    page.feed((run / "report.html").read_text())
    by_header = {tuple(table[0]): table[1:] for table in page.tables}
    scores = by_header["task", "adapter", "metric", "score"]
    for (task, row), cells in zip(main_rows(rows).items(), scores, strict=True):
        shown = [task, row["adapter"], row["metric"], f"{100 * row['main_score']:.1f}"]
        assert cells == shown
    matrix = by_header["task", "base", "retrieval", "text-matching", "clustering", "classification"]
    assert matrix[0][4] == f"{100 * main_rows(rows, 'clustering')['WordNetSTS']['main_score']:.1f}"
    curves = by_header["task", "precision", "48 dims", "16 dims", "8 dims"]
    assert [cells[:2] for cells in curves] == [
        *(["WordNetSTS", precision] for precision in ("float32", "int8", "binary")),
        *(
            ["OfficeLongRetrieval", precision]
            for precision in ("float32", "int8", "binary", "binary-rescored")
        ),
    ]
    (narrow,) = [
        row
        for row in rows
        if (row["task"], row["dim"], row["precision"]) == ("WordNetSTS", 8, "binary")
    ]
    assert curves[2][4] == f"{100 * narrow['main_score']:.1f}"
    long = next(table for header, table in by_header.items() if header[0] == "max tokens")
    assert [cells[0] for cells in long] == ["16", "64"]
    text = (run / "report.html").read_text()
    assert "do it\nagain" in text
    assert record["weights"] in text
    for outside in page.asked:  # links inside the drawings, and an empty icon
        assert outside.startswith("#") or outside == "data:,"

    # The Markdown page has the same tables, and its plots beside it.
    text = (run / "report.md").read_text()
    cells = [cell.strip(" *") for cell in re.findall(r"(?<=\|)[^|\n]+(?=\|)", text)]
    cells = [cell for cell in cells if cell != "---"]
    assert cells == [cell for table in page.tables for row in table for cell in row]
    plots = re.findall(r"\((.*?\.svg)\)", text)
    assert plots == ["dims.svg", "bytes-WordNetSTS.svg", "bytes-OfficeLongRetrieval.svg"]
    assert all((run / plot).read_text().startswith("<svg") for plot in plots)


def test_what_was_not_measured_has_no_section(model, tmp_path, small_tasks):
    evaluate(MTEBEncoder(model), [WordNetSTS()], tmp_path)
    main(["report", str(tmp_path)])
    headings = re.findall(r"^## (.*)", (tmp_path / "report.md").read_text(), re.M)
    assert headings == ["Scores", "Settings"]


def test_a_folder_without_a_record_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"no results.json in .*absent"):
        main(["report", str(tmp_path / "absent")])
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(SystemExit, match="has no list `results`"):
        main(["report", str(tmp_path)])


def test_names_cannot_break_out_of_the_page():
    page = Page("<script>alert(1)</script>")
    page.add("a", Table(["<b>"], [["<img src=x>"]]), "1 < 2")
    assert not re.search("<script|<img|<b>", page.html())


# ----------------------------------------------------------------------------------- a browser

BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")


@pytest.mark.full
@pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH, and CHROMIUM names none")
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_the_page_without_asking_for_more(run, width):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 800})
        asked, troubles = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: troubles.append(message.text))
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        page = run / "report.html"
        tab.goto(page.as_uri())
        assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
        assert troubles == []
        # Nothing pushes the page wider than the screen: wide tables scroll in their own boxes.
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        # Text that is read: no smaller than 13 pixels in tables, 8 in drawings.
        sizes = "nodes => nodes.map(node => parseFloat(getComputedStyle(node).fontSize))"
        assert min(tab.eval_on_selector_all("p, td, th, pre", sizes)) >= 13
        heights = "nodes => nodes.map(node => node.getBoundingClientRect().height)"
        letters = tab.eval_on_selector_all("figure text", heights)
        assert len(letters) > 20
        assert min(letters) >= 8
        boxes = "nodes => nodes.map(node => node.getBoundingClientRect().right)"
        assert max(tab.eval_on_selector_all("figure svg", boxes)) <= width
        picture = os.environ.get("KEEP_SCREENSHOTS")
        if picture:
            tab.screenshot(path=f"{picture}/report-{width}.png", full_page=True)
        browser.close()


def test_lines_show_every_seed():
    plot = lines(
        "x", "about", {"a": [(1, 2), (2, 3)]}, "step", faint={"a": [[(1, 1), (2, 2)], [(1, 3)]]}
    )
    assert plot.svg.count('id="line2d_') >= 3
    assert "<text" in plot.svg
