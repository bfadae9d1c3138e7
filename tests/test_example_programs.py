"""The programs in examples/ run on a small model.

Those of servers and their clients are in tests/serve/test_around.py, that of an ONNX graph in
tests/export/test_export.py.
"""

from __future__ import annotations

import ast
import json
import math
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.cli import make_parser
from st_jv5.task_table import TASKS
from tests.conftest import ROOT, real_texts

EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOK = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))


def head_of(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def requirements(path: Path) -> list[str]:
    """What an example's head says to install."""
    (line,) = re.findall("^pip install (.+)$", head_of(path), re.M)
    return shlex.split(line)


def functions(name: str) -> dict[str, Callable]:
    """What a program defines."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


# ------------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_is_short_and_its_head_says_how_to_install_and_start_it(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40
    assert requirements(path)
    assert f"\npython examples/{path.name} " in head_of(path)
    for arguments in re.findall("^st-jv5 ([^&\n]+)", head_of(path), re.M):
        make_parser().parse_args(shlex.split(arguments))


def test_the_list_has_every_example_and_what_its_head_says_to_install():
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\S+)\]\((\S+)\) \| .+ \| `(.+)`", page, re.M)
    assert all(name == link for name, link, _ in rows)
    listed = {name: install.split() for name, _, install in rows if name.endswith(".py")}
    assert listed == {path.name: requirements(path) for path in PROGRAMS}
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert files == {"README.md", *(name for name, _, _ in rows)}


def test_the_notebook_has_no_outputs():
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 3
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


# -------------------------------------------------------------------------------- those that train


@pytest.fixture
def pairs_file(tmp_path) -> str:
    texts = real_texts()
    rows = [{"query": texts[i], "positive": texts[i + 1]} for i in range(0, 40, 2)]
    path = tmp_path / "faq.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.chdir(tmp_path)


def test_fine_tuning_adds_an_adapter_and_holds_it_against_the_base(saved, pairs_file, capsys):
    functions("fine_tune_adapter")["main"](saved, pairs_file, "out", steps=2)
    assert re.search(
        r"^4 held-out pairs: base [\d.]+%, faq [\d.]+%$", capsys.readouterr().out, re.M
    )
    before, after = SentenceTransformer(saved), SentenceTransformer("out/model")
    assert st_jv5.tasks(after) == [*TASKS, "faq"]
    for task in (*TASKS, "base"):
        assert (before.encode("a cat", task=task) == after.encode("a cat", task=task)).all()
    assert np.abs(after.encode("a cat", task="faq") - after.encode("a cat", task="base")).max() > 0


def test_a_loss_of_ones_own_is_trained_beside_infonce(saved, pairs_file, capsys):
    program = functions("own_loss")
    program["main"](saved, pairs_file, "out", steps=10)
    assert {"'infonce'", "'uniform'"} <= set(re.findall(r"'\w+'", capsys.readouterr().out))
    assert "spread" in st_jv5.tasks(SentenceTransformer("out/model"))
    # Of n orthonormal rows: n cosines are 1, the others 0.
    value = program["Uniformity"]().compute_loss_from_embeddings([torch.eye(5)], None)
    assert value.item() == pytest.approx(math.log((1 + 4 * math.exp(-4)) / 5))


def test_a_base_is_distilled_from_two_teachers(backbones, tmp_path):
    texts = real_texts(20)
    (tmp_path / "texts.txt").write_text("\n".join([*texts, "", texts[0]]), encoding="utf-8")
    teachers = backbones["bert"], backbones["mpnet"]
    functions("two_teachers")["main"](backbones["eurobert"], "texts.txt", "out", *teachers, steps=2)
    base = SentenceTransformer("out/base")
    assert base.encode("a cat", task="base").shape == (48,)
    told = json.loads(Path("out/base/projection.json").read_text(encoding="utf-8"))
    assert told["teacher_dim"] == 96  # both teachers' vectors, side by side


# --------------------------------------------------------------------------- those that encode


def test_a_line_that_is_asked_for_is_the_nearest_by_each_adapter(saved, tmp_path, capsys):
    lines = ["The lungs take up oxygen.", "A prime has two divisors.", "", "Paris is a city."]
    (tmp_path / "notes.txt").write_text("\n".join(lines), encoding="utf-8")
    functions("encode_and_search")["main"](saved, "notes.txt", lines[1])
    told = capsys.readouterr().out
    found = re.findall(r"^(\S+)\n  (\S+)  (.+)(?:\n  .+){2}$", told, re.M)
    assert [task for task, _, _ in found] == list(TASKS)
    assert {one[1:] for one in found if one[0] != "retrieval"} == {("1.00", lines[1])}


def test_the_notebooks_cells_run_one_after_the_other(saved, tmp_path, capsys):
    (tmp_path / "out" / "demo").mkdir(parents=True)
    Path(saved).rename(tmp_path / "out" / "demo" / "model")
    space: dict[str, object] = {}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), space)
    told = capsys.readouterr().out.splitlines()
    assert told[0].split()[:5] == [*TASKS, "base"]
    assert all(re.match(r" +(-?\d\.\d\d +){5}\w", line) for line in told[1:5])
    assert [line.split("?")[0] for line in told[5:]] == [q[:-1] for q in space["questions"]]
