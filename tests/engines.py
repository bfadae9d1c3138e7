"""Engines that need an environment of their own: made once under out/venvs, by pip and npm."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

ENVIRONMENTS = Path(__file__).parent.parent / "out" / "venvs"
TORCH = "torch==2.13.0"


def venv(name: str, *requirements: str) -> Path:
    """The folder of its commands."""
    folder = ENVIRONMENTS / name
    done = folder / "done"
    wanted = "\n".join(requirements)
    if not done.exists() or done.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        for packages in ([TORCH], requirements):
            install = [folder / "bin" / "pip", "install", "--quiet", *packages]
            subprocess.run(install, check=True)
        done.write_text(wanted)
    return folder / "bin"


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
