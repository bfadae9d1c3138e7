"""What the shell sees: every command, its example, and the recipes that come along."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from st_jv5 import cli
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.shipped import CHECKOUT
from tests.conftest import ROOT


def commands(parser: argparse.ArgumentParser, name: str = "st-jv5") -> dict[str, str]:
    """Whole name -> help of each command that does something."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        return {name: parser.format_help()}
    found: dict[str, str] = {}
    for word, inner in groups[0].choices.items():
        found |= commands(inner, f"{name} {word}")
    return found


COMMANDS = commands(cli.make_parser())


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_shows_an_example_that_it_takes(name):
    _, _, examples = COMMANDS[name].partition("example:\n")
    lines = re.findall(r"^  .*?(?:st-jv5|-m st_jv5) (.*)", examples, re.M)
    assert lines, f"{name} --help shows no example"
    for line in lines:
        assert f"st-jv5 {line}".startswith(name)
        cli.make_parser().parse_args(shlex.split(line))


def test_the_commands_are_these():
    known = {name.split()[1] for name in COMMANDS}
    assert known >= {"train", "plan", "teach", "eval", "compare", "recipes", "encode", "search",
                     "export", "check", "publish", "choose", "doctor", "teacher"}  # fmt: skip


@pytest.mark.parametrize("script", ["training/run.py", "eval/run_mteb.py", "eval/compare.py"])
def test_a_checkouts_script_is_the_command_in_three_lines(script):
    lines = [line for line in (ROOT / script).read_text().splitlines() if line.strip()]
    _, *code = lines  # the docstring
    assert len(code) == 3


def test_recipes_are_listed_with_what_they_are(capsys):
    cli.main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["demo", "laptop", "nano", "small"]
    assert "jina-embeddings-v5-text-small at full size" in lines[-1]


def test_a_recipe_is_copied_with_the_one_that_it_extends_and_loads_there(tmp_path, capsys):
    cli.main(["recipes", "copy", "nano", "--to", str(tmp_path / "mine")])
    written = capsys.readouterr().out.split()
    assert [Path(path).name for path in written] == ["nano.yaml", "small.yaml"]
    assert load_recipe(written[0]) == load_recipe(CHECKOUT / "nano.yaml")
    with pytest.raises(SystemExit, match=r"nano\.yaml is there already; choose another folder"):
        cli.main(["recipes", "copy", "nano", "--to", str(tmp_path / "mine")])
    with pytest.raises(SystemExit, match=r"unknown recipe 'smal'; .*'small'"):
        cli.main(["recipes", "copy", "smal", "--to", str(tmp_path)])
    with pytest.raises(SystemExit, match="name a recipe"):
        cli.main(["recipes", "copy"])


def test_a_recipes_name_alone_is_answered_with_the_command_that_copies_it():
    with pytest.raises(SystemExit, match="to copy a recipe: st-jv5 recipes copy demo"):
        cli.main(["recipes", "demo"])


def test_the_copy_of_a_recipe_on_the_checkouts_text_says_where_that_is(tmp_path, capsys):
    cli.main(["recipes", "copy", "demo", "--to", str(tmp_path)])
    assert "set data_folder to a checkout" in capsys.readouterr().out
    tree = yaml.safe_load((tmp_path / "demo.yaml").read_text())
    name = next(iter(tree["data_sets"]))
    spec = load_recipe(tmp_path / "demo.yaml").data_sets[name]
    assert spec.place(str(spec.path)) == tmp_path.parent.parent / str(spec.path)


def test_without_matplotlib_a_page_says_what_would_draw_its_plots(tmp_path, monkeypatch):
    from st_jv5.evaluation import page, plots

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plots.pyplot.cache_clear()
    try:
        plot = plots.lines("curve", "scores by dims", {"one": [(1, 2), (2, 3)]}, "dims")
        whole = page.Page("title")
        whole.add("plots", plot)
        whole.write(tmp_path)
    finally:
        plots.pyplot.cache_clear()
    assert 'pip install "st-jv5[plots]"' in (tmp_path / "report.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]


def test_the_doctors_page_has_what_was_measured(tmp_path):
    from st_jv5.commands.models import doctor_page
    from st_jv5.doctor import Probe

    probes = [
        Probe("torch", 10.0, 1.0, 50.25, "as it is"),
        Probe("onnx", 31.5, 0.9999, 50.0, "export"),
    ]
    text = doctor_page(["device: cpu"], probes).html()
    assert 'scope="row">onnx<' in text
    assert "31.5" in text
    assert "50.25" in text
    assert "<svg" in text
    assert "device: cpu" in text
    assert "<svg" not in doctor_page(["device: cpu"], []).html()
