"""The page at ``/``: whole in itself, and in a browser."""

from __future__ import annotations

import os
import re
import shutil

import pytest

import st_jv5
from st_jv5.serve.app import PAGE, create_app
from st_jv5.task_table import BASE, TASKS
from tests.serve.conftest import NAME, running

BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")


def test_the_page_asks_no_other_server_and_writes_no_html(client):
    page, script = client.get("/").text, client.get("/page.js").text
    assert "default-src 'self'" in page
    for text in (page, script, client.get("/page.css").text):
        assert not re.search(r"https?://", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document.write|\beval\b", script)


def test_all_that_the_script_looks_for_is_on_the_page():
    page, script = ((PAGE / name).read_text() for name in ("index.html", "page.js"))
    ids = set(re.findall(r'\bid="(\w+)"', page))
    assert set(re.findall(r'\bby\("(\w+)"\)', script)) <= ids
    labelled = set(re.findall(r'<label for="(\w+)"', page))
    assert labelled == {"texts", "corpus", "left", "right", "key"} <= ids


@pytest.mark.full
@pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH, and CHROMIUM names none")
@pytest.mark.parametrize(
    ("width", "scheme"), [(360, "light"), (360, "dark"), (1280, "light"), (1280, "dark")]
)
def test_the_page_compares_two_adapters_by_keyboard_alone(served, width, scheme):
    playwright = pytest.importorskip("playwright.sync_api")
    expect = playwright.expect
    app = create_app(served, [NAME], keys=["secret"])
    with running(app) as address, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        asked, troubles = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        status = tab.locator("#status")
        tab.goto(address)
        expect(status).to_have_class("error")  # without the key
        tab.focus("#texts")
        tab.keyboard.press("Control+a")
        tab.keyboard.type("<b>one</b>\na second text")
        for typed in ("", "", "", "secret", "\n"):  # summary, adapters, key, button
            tab.keyboard.press("Tab")
            tab.keyboard.type(typed)
        expect(status).to_have_text("2 texts, 12 sentences")
        assert tab.inner_text("#name") == NAME
        options = tab.eval_on_selector_all("#left option", "all => all.map(one => one.text)")
        assert options == [*TASKS, BASE]
        tab.focus("#left")
        tab.keyboard.type("clust")
        tab.keyboard.press("Tab")
        tab.keyboard.type("base")
        tab.focus("#texts")
        tab.keyboard.press("Control+Enter")
        expect(tab.locator("#results h2")).to_have_text(["clustering", BASE])
        cells = tab.locator("#results section").nth(0).locator(".wide").nth(1).locator("td")
        one, two = st_jv5.encode(served, ["<b>one</b>", "a second text"], "clustering")
        assert abs(float(cells.nth(1).inner_text()) - float(one @ two)) < 1e-3
        assert tab.locator("#results b").count() == 0
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert troubles == []
        assert all(url.startswith((address, "data:")) for url in asked)
        if picture := os.environ.get("KEEP_SCREENSHOTS"):
            tab.screenshot(path=f"{picture}/serve-{width}-{scheme}.png", full_page=True)
        browser.close()
