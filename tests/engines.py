"""Engines that need an environment of their own: made once under out/venvs, by pip and npm."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tarfile
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


def venv(name: str, *requirements: str, torch: bool = True) -> Path:
    """The folder of its commands."""
    folder = ENVIRONMENTS / name
    done = folder / "done"
    wanted = "\n".join(requirements)
    if not done.exists() or done.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        for packages in ([TORCH], requirements) if torch else (requirements,):
            install = [folder / "bin" / "pip", "install", "--quiet", *packages]
            subprocess.run(install, check=True)
        done.write_text(wanted)
    return folder / "bin"


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
