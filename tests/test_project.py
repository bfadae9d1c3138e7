"""What the repository says of itself: versions, and the workflows' commands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import st_jv5

ROOT = Path(__file__).parents[1]
WORKFLOWS = ROOT / ".github" / "workflows"


def test_one_version_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == st_jv5.__version__


def test_workflows_call_targets_and_tests_that_there_are():
    text = "".join(path.read_text() for path in WORKFLOWS.glob("*.yml"))
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {*re.findall(r"run: make ([\w-]+)", text)} == {"check", "test"} <= {*targets}


def test_workflows_run_on_the_oldest_python_that_is_allowed():
    tests = yaml.safe_load((WORKFLOWS / "test.yml").read_text())
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    versions = tests["jobs"]["everywhere"]["strategy"]["matrix"]["python"]
    assert versions[0] == oldest


def test_a_workflow_tests_the_lowest_versions_that_are_allowed():
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    floors = dict(re.match(r"([\w-]+)>=([\d.]+)", one).groups() for one in required if ">=" in one)
    tests = yaml.safe_load((WORKFLOWS / "test.yml").read_text())
    steps = tests["jobs"]["lowest-dependencies"]["steps"]
    installed = re.findall(r"([\w-]+)==([\d.]+)", " ".join(step.get("run", "") for step in steps))
    assert {name: version.removesuffix(".0") for name, version in installed} == floors


def test_every_entry_of_the_log_is_in_its_index_and_every_link_hits_an_entry():
    notes = ROOT / "notes"
    entries = {
        (month.name, anchor(title))
        for month in notes.glob("[0-9]*.md")
        for title in re.findall(r"^## (.+)$", month.read_text(encoding="utf-8"), re.MULTILINE)
    }
    links = re.findall(r"\]\(([\w.-]+)#([^)]+)\)", (notes / "log.md").read_text(encoding="utf-8"))
    assert sorted(links) == sorted(entries)


def anchor(title: str) -> str:
    """As GitHub makes it of a heading: small letters, no punctuation, a hyphen for each space."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
