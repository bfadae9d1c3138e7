"""What stands around the server: the container, the unit, the examples."""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import yaml
from openai import OpenAI
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.commands.serve import add_commands
from st_jv5.serve.app import create_app
from st_jv5.task_table import TASKS
from tests import engines
from tests.conftest import ROOT
from tests.serve.conftest import ATOL, running
from tests.test_example_programs import PROGRAMS, head_of, requirements

DEPLOY = ROOT / "deploy"
CLIENTS = [path for path in PROGRAMS if "http://127.0.0.1:8000/v1" in head_of(path)]


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


def test_the_example_of_the_openai_client_runs(served, capsys):
    with running(create_app(served, ["st-jv5"])) as address:
        runpy.run_path(str(ROOT / "examples" / "openai_search.py"))["main"](f"{address}/v1")
    assert capsys.readouterr().out.count("?  ") == 2


@pytest.mark.full
@pytest.mark.parametrize("path", CLIENTS, ids=lambda path: path.stem)
def test_a_client_runs_with_its_packages_alone(path: Path, served, tmp_path):
    python = engines.venv(path.stem, *requirements(path), torch=False) / "python"
    with ExitStack() as stack:
        address = stack.enter_context(running(create_app(served, ["st-jv5"])))
        command = [python, path, f"{address}/v1"]
        if path.stem == "lancedb_search":
            command.append(tmp_path / "notes")
        if path.stem == "pgvector_search":
            command.append(stack.enter_context(engines.postgres()))
        done = subprocess.run(command, capture_output=True, text=True, env=engines.QUIET)
        assert done.returncode == 0, done.stderr
        with urlopen(f"{address}/metrics") as told:
            texts = re.search(r'texts_total\{task="retrieval"\} (\S+)', told.read().decode())
    assert "?" in done.stdout
    assert float(texts[1]) >= 4  # the documents and a question


@pytest.mark.full
def test_a_replica_of_ray_serve_answers_with_the_models_vectors(saved, tmp_path):
    python = engines.venv("ray_serve", "ray[serve]", torch=False, beside_this=True) / "python"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, ROOT / "examples" / "ray_serve.py", saved, str(port)]
    environment = {**engines.QUIET, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        until_healthy(server, f"http://127.0.0.1:{port}/health", tmp_path / "log")
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        texts = ["a cat", "The lungs take up oxygen."] * 40
        model = SentenceTransformer(saved)

        def ask(task: str) -> None:
            rows = client.embeddings.create(model=f"st-jv5/{task}", input=texts).data
            found = [row.embedding for row in rows]
            np.testing.assert_allclose(found, st_jv5.encode(model, texts, task), atol=ATOL)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, [*TASKS, "query", "base"] * 4))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def until_healthy(server: subprocess.Popen, address: str, log: Path) -> None:
    """Wait for a server that starts; an error with its log if it ends, or takes two minutes."""
    end = time.monotonic() + 120
    while True:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        with suppress(OSError), urlopen(address):
            return
        time.sleep(0.5)


@pytest.mark.full
def test_the_container_is_given_all_that_a_server_needs(saved, tmp_path):
    """Docker's own steps are not run: a wheel of what it copies, and a server from that wheel."""
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            *names, place = line.split()[1:]
            for name in names:
                goal = tmp_path / place.strip("/")
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, goal)
                else:
                    shutil.copy(ROOT / name, goal)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    kept = {path.relative_to(ROOT) for path in (ROOT / "st_jv5").rglob("*") if path.is_file()}
    kept = {path for path in kept if "__pycache__" not in path.parts}
    assert [path for path in kept if not (site / path).exists()] == []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "st_jv5", "serve", saved, "--port", str(port)]
    environment = {**engines.QUIET, "PYTHONPATH": str(site)}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path)
    try:
        until_healthy(server, f"http://127.0.0.1:{port}/health", tmp_path / "log")
        with urlopen(f"http://127.0.0.1:{port}/") as page:
            assert page.read() == (ROOT / "st_jv5" / "serve" / "page" / "index.html").read_bytes()
    finally:
        server.terminate()
        server.wait(60)
