"""What stands around the server: the container, the unit, the examples."""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
import subprocess
import tomllib
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml

from st_jv5.commands.serve import add_commands
from st_jv5.serve.app import create_app
from tests import engines
from tests.conftest import ROOT
from tests.serve.conftest import running

DEPLOY = ROOT / "deploy"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def commands() -> dict[str, list[str]]:
    """The arguments that each file starts the server with."""
    docker = (DEPLOY / "Dockerfile").read_text()
    (first,) = [line for line in docker.splitlines() if line.startswith("ENTRYPOINT")]
    (rest,) = [line for line in docker.splitlines() if line.startswith("CMD")]
    program, *entry = ast.literal_eval(first.removeprefix("ENTRYPOINT "))
    unit = (DEPLOY / "st-jv5.service").read_text()
    (start,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert program in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    return {
        "Dockerfile": [*entry, *ast.literal_eval(rest.removeprefix("CMD "))],
        "compose.yaml": [*entry, *compose["services"]["embeddings"]["command"]],
        "st-jv5.service": shlex.split(start)[1:],
    }


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "st-jv5.service"])
def test_what_starts_the_server_uses_flags_that_it_has(name):
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    args = parser.parse_args(commands()[name])
    assert args.model.endswith("/model")
    assert (args.host == "0.0.0.0") == (name != "st-jv5.service")


def test_the_container_copies_what_is_there_and_does_not_run_as_root():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert copied
    assert all((ROOT / one).exists() for one in copied)
    user = next(i for i, line in enumerate(lines) if line == "USER serve")
    assert user < next(i for i, line in enumerate(lines) if line.startswith("ENTRYPOINT"))


def test_an_example_is_short_and_names_its_packages():
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) < 40
        assert requirements(path), path.name


def requirements(path: Path) -> list[str]:
    """What an example's head says to install."""
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("pip install ")]
    return line.split()[2:]


def test_the_example_of_the_openai_client_runs(served, capsys):
    with running(create_app(served, ["st-jv5"])) as address:
        runpy.run_path(str(ROOT / "examples" / "openai_search.py"))["main"](f"{address}/v1")
    assert capsys.readouterr().out.count("?  ") == 2


@pytest.mark.full
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_with_its_packages_alone(path: Path, served):
    python = engines.venv(path.stem, *requirements(path), torch=False) / "python"
    with running(create_app(served, ["st-jv5"])) as address:
        command = [python, path, f"{address}/v1"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=engines.QUIET
        )
        with urlopen(f"{address}/metrics") as told:
            texts = re.search(r'texts_total\{task="retrieval"\} (\S+)', told.read().decode())
    assert "?" in done.stdout
    assert float(texts[1]) >= 4  # the documents and a question
