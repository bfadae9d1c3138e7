"""The page of a run: the numbers of its record, in one file that a phone can show."""

from __future__ import annotations

import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from st_jv5.cli import main
from st_jv5.evaluation import page as pages
from st_jv5.evaluation.local_tasks import OfficeLongRetrieval, WordNetSTS
from st_jv5.evaluation.mteb_encoder import MTEBEncoder
from st_jv5.evaluation.page import COLOURS, Code, Page, Table, shade
from st_jv5.evaluation.plots import Bar, intervals, lines, losses, verdict_colour, with_gaps
from st_jv5.evaluation.record import main_rows, read_record
from st_jv5.evaluation.report import matrix_table, mean_curve
from st_jv5.evaluation.samples import gap_of_rows
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
    base, own = (100 * main_rows(rows, who)["WordNetSTS"]["main_score"]
                 for who in ("base", "clustering"))  # fmt: skip
    assert (matrix[0][1], matrix[0][4]) == (f"{base:.1f}", f"{own - base:+.1f}")
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
    assert rows[0]["machine"] in text
    assert rows[0]["commit"][:12] in text
    assert max(row["time"] for row in rows) in text
    assert page.asked
    for outside in page.asked:  # links inside the drawings, and an empty icon
        assert outside.startswith("#") or outside == "data:,"

    # The Markdown page has the same tables, and its plots beside it.
    text = (run / "report.md").read_text()
    cells = [cell.strip(" *") for cell in re.findall(r"(?<=\|)[^|\n]+(?=\|)", text)]
    cells = [cell for cell in cells if cell != "---"]
    assert cells == [cell for table in page.tables for row in table for cell in row]
    plots = re.findall(r"\((.*?\.svg)\)", text)
    assert plots == ["scores.svg", "dims.svg", "bytes-text-matching.svg", "bytes-retrieval.svg"]
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


# ------------------------------------------------------------------------------ colours and gaps


def luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance of red, green, blue in 0..255, as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
              for c in (one / 255 for one in colour)]  # fmt: skip
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def rgb(name: str, place: int) -> tuple[float, ...]:
    return tuple(int(COLOURS[name][place][i : i + 2], 16) for i in (1, 3, 5))


@pytest.mark.parametrize("half_width", [0.1, 1.3, 40.0])
@pytest.mark.parametrize("place", [-1.0, -0.4, 0.0, 0.4, 1.0])
def test_the_heat_map_shows_no_noise_as_colour(half_width, place):
    """However large a difference: where its interval holds 0, the cell is grey."""
    gap = place * half_width
    low, high = gap - half_width, gap + half_width
    assert shade(gap, low, high) == 0
    cell = Table(["task", "a"], [["x", gap]], shades={(0, 1): shade(gap, low, high)}).html()
    assert 'class="n noise">' in cell
    assert "--strength" not in cell
    assert verdict_colour(Bar("x", gap, low, high)) == COLOURS["quiet"][0]


def test_a_difference_beyond_noise_is_coloured_by_its_size_and_side():
    values = [shade(gap, gap - 0.1, gap + 0.1) for gap in (-20.0, -5.0, -0.2, 0.2, 5.0, 20.0)]
    assert values == [-1.0, -0.5, -0.02, 0.02, 0.5, 1.0]
    cells = [Table(["t", "a"], [["x", 1.0]], shades={(0, 1): value}).html() for value in values]
    sides = ["worse" if value < 0 else "better" for value in values]
    strengths = [int(re.search(r"--strength:(\d+)%", cell)[1]) for cell in cells]
    assert all(f"n {side}" in cell for side, cell in zip(sides, cells, strict=True))
    assert strengths[:3] == sorted(strengths[:3], reverse=True) == strengths[:2:-1]
    assert shade(5.0, float("nan"), float("nan")) is None


@pytest.mark.parametrize("place", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_on_every_shade_and_lines_on_the_paper(place):
    paper, ink = rgb("paper", place), rgb("ink", place)
    strength = int(re.search(r"\d+", pages._shade_attributes(1.0)[1])[0]) / 100
    for side in ("better", "worse"):
        mixed = tuple(strength * a + (1 - strength) * b
                      for a, b in zip(rgb(side, place), paper, strict=True))  # fmt: skip
        assert contrast(ink, mixed) > 7, side
    assert contrast(ink, rgb("noise", place)) > 7
    for name in COLOURS.keys() - {"paper", "rule", "panel", "noise"}:
        assert contrast(rgb(name, place), paper) > 4.5, name


def test_the_matrix_is_grey_where_the_adapters_samples_do_not_tell_it_from_the_base():
    draw = np.random.default_rng(0)
    values = draw.random(200)
    noisy = values + 0.2 * draw.standard_normal(200)

    def row(adapter: str, values: Any) -> dict[str, Any]:
        samples = {"statistic": "mean", "values": list(values)}
        return {"task": "A", "type": "Retrieval", "adapter": adapter, "dim": 8, "max_tokens": 9,
                "precision": "float32", "main_score": float(np.mean(values)), "samples": samples,
                "metric": "m"}  # fmt: skip

    found = [row("base", values), row("retrieval", noisy), row("clustering", values - 0.05)]
    _, low, high = gap_of_rows(found[1], found[0])
    assert low < 0 < high
    table = matrix_table(found)
    assert table.header == ["task", "base", "retrieval", "clustering"]
    assert table.shades == {(0, 2): 0.0, (0, 3): pytest.approx(-0.5)}
    assert table.bold == {(0, 2)}
    found[2]["data"] = "other rows"  # not scores of the same samples
    assert matrix_table(found) is None


def test_a_term_has_a_gap_where_no_step_had_it():
    found = with_gaps([(24, 1.5), (12, 0.0), (36, 0.5)])
    assert str(found) == "[(12, nan), (24, 1.5), (36, 0.5)]"
    plot = losses("x", "about", {"cosent": [(12, 0.0), (24, 1.5)], "distill": [(12, 1.0)]}, "t")
    assert plot.svg.count(">cosent<") == plot.svg.count(">distill<") == 1  # a panel each


def test_a_curve_is_the_mean_over_tasks_that_have_all_its_points():
    rows = [
        {"task": task, "precision": "float32", "dim": dim, "main_score": score}
        for task, dim, score in (("a", 8, 0.2), ("a", 16, 0.4), ("b", 8, 0.4), ("b", 16, 0.6),
                                 ("c", 16, 0.0))
    ]  # fmt: skip
    (points,) = mean_curve(rows, "dim").values()
    assert points == [(8, pytest.approx(30.0)), (16, pytest.approx(50.0))]


def test_a_table_names_its_rows_columns_and_numbers():
    table = Table(["task", "score", "word"], [["a", 1.25, "b"], ["c", None, "d"]], caption="In %.")
    html = table.html()
    assert "<caption><span>In %.</span></caption>" in html
    assert html.count('scope="col"') == 3
    assert html.count('scope="row"') == 2
    assert 'scope="col" class="n">score' in html
    assert "<td>b</td>" in html  # words stand on the left
    assert 'tabindex="0"' in html  # the keyboard scrolls it
    assert table.markdown().startswith("In %.\n\n| task |")


def test_the_page_has_an_anchor_for_each_section_and_both_colour_schemes():
    page = Page("title")
    page.add("One, two", "take `base`", Code("a: 1", "settings"))
    page.add("Three", intervals("x", "about", {"far": [Bar("a", 1.0, 0.5, 1.5)]}, "points"))
    html = page.html()
    assert 'href="#one-two"' in html
    assert 'id="one-two"' in html
    assert "<code>base</code>" in html
    assert "<details><summary>settings</summary>" in html
    assert "prefers-color-scheme: dark" in html
    drawing = html[html.index("<svg") : html.index("</svg>")]
    assert "var(--ink)" in drawing
    assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r"#\w+(?=[)\"])", "", drawing))
    assert not re.search(r' id="(figure|axes|line2d|text|patch)_', drawing)  # twice on one page


# ----------------------------------------------------------------------------------- a browser

BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")


@pytest.mark.full
@pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH, and CHROMIUM names none")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_a_browser_shows_the_page_without_asking_for_more(run, width, scheme):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
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
        paper = "getComputedStyle(document.body).backgroundColor"
        assert tab.evaluate(paper) == ("rgb(255, 255, 255)" if scheme == "light" else
                                       "rgb(21, 24, 29)")  # fmt: skip
        if axe := os.environ.get("AXE"):  # axe.min.js of the npm package axe-core
            tab.evaluate(Path(axe).read_text())
            found = tab.evaluate("axe.run()")["violations"]
            assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
        picture = os.environ.get("KEEP_SCREENSHOTS")
        if picture:
            tab.screenshot(path=f"{picture}/report-{width}-{scheme}.png", full_page=True)
        browser.close()


def test_lines_show_every_seed():
    plot = lines(
        "x", "about", {"a": [(1, 2), (2, 3)]}, "step", faint={"a": [[(1, 1), (2, 2)], [(1, 3)]]}
    )
    thin = re.findall(r"stroke-width: 0.7", plot.svg)
    assert len(thin) == 2
    assert "<text" in plot.svg
