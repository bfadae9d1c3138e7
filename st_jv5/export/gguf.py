"""GGUF, by llama.cpp's own converter, and back through its own tool."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_jv5.export.merged import ENGINES_POOLING, keep_only
from st_jv5.export.parity import Array, Parity, compare, prompted, source_vectors
from st_jv5.modules.pooling import pooling_mode
from st_jv5.modules.rotation import rotation_in

CONVERTER = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"
SEPARATOR = "<|next text|>"
SPECIAL = 2
"""Tokens that a tokenizer puts around a text."""
SEQUENCES = 256
"""Texts that llama.cpp may hold at once; a smaller batch than that stops it."""
FILE = "model-f16.gguf"
KEPT = ("README.md", "config_sentence_transformers.json", "tokenizer_config.json")


def find_llama_cpp(given: str | Path | None) -> Path:
    """The checkout that has the converter: the argument's, or the environment's ``LLAMA_CPP``."""
    place = given or os.environ.get(VARIABLE)
    if not place:
        raise ValueError(
            f"gguf needs llama.cpp's {CONVERTER}: git clone https://github.com/ggml-org/llama.cpp, "
            f"then name that folder with --llama-cpp or the environment's {VARIABLE}"
        )
    if not (Path(place) / CONVERTER).is_file():
        raise ValueError(f"{place} has no {CONVERTER}; name a checkout of llama.cpp")
    return Path(place)


def check_modules(model: SentenceTransformer) -> None:
    """An error for what llama.cpp has no place for."""
    if rotation_in(model) is not None:
        raise ValueError(
            "gguf cannot hold a rotation after the pooling; remove it first "
            "(st_jv5.rotation.unrotate(model)): full-width cosines are the same without it, but "
            "its vectors cannot be compared with rotated ones, nor cut to as few dims"
        )


def find_embedder(checkout: Path) -> str | None:
    """``llama-embedding``: the checkout's, or the path's."""
    built = checkout / "build" / "bin" / "llama-embedding"
    return str(built) if built.is_file() else shutil.which("llama-embedding")


def write(
    model: SentenceTransformer, task: str, folder: Path, checkout: Path, texts: Sequence[str]
) -> list[Parity]:
    """Convert a merged folder in place; compared if a ``llama-embedding`` is at hand."""
    done = subprocess.run(
        [
            sys.executable, str(checkout / CONVERTER), str(folder),
            "--outfile", str(folder / FILE), "--outtype", "f16", "--model-name", task,
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    if done.returncode or not (folder / FILE).is_file():
        raise ValueError(f"{CONVERTER} failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")
    keep_only(folder, (FILE, *KEPT))
    if (embedder := find_embedder(checkout)) is None:
        return []
    texts = fitting(model, task, texts)
    named, vectors = source_vectors(model, task, texts)
    texts = prompted(folder, named)
    pooling = ENGINES_POOLING[pooling_mode(model)]["llama.cpp"]
    found = llama_vectors(embedder, folder / FILE, texts, model.max_seq_length, pooling)
    return [compare("gguf", folder / FILE, vectors, found)]


def fitting(model: SentenceTransformer, task: str, texts: Sequence[str]) -> list[str]:
    """Texts cut until they fit the model, which llama.cpp leaves to its caller."""
    longest = max(model.prompts.values(), key=len, default="")
    kept = []
    for text in texts:
        while len(model.tokenizer.tokenize(longest + text)) + SPECIAL > model.max_seq_length:
            text = text[: len(text) * 3 // 4].rstrip()
        kept.append(text)
    return kept


def llama_vectors(
    embedder: str, path: Path, texts: Sequence[str], tokens: int, pooling: str
) -> list[Array]:
    """Run ``llama-embedding``: unit vectors, pooled as its ``--pooling`` names it."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "texts"
        prompts.write_text(SEPARATOR.join(texts), encoding="utf-8")
        size = str(max(tokens, SEQUENCES))
        done = subprocess.run(
            [
                embedder, "-m", str(path), "-f", str(prompts), "--embd-separator", SEPARATOR,
                "--no-escape", "--pooling", pooling, "--embd-normalize", "2",
                "--embd-output-format", "json", "-c", size, "-b", size, "-ub", size,
            ],
            capture_output=True,
            text=True,
        )  # fmt: skip
    if done.returncode:
        raise ValueError(f"{embedder} failed:\n{done.stderr.strip()[-2000:]}")
    rows = json.loads(done.stdout)["data"]
    return [row["embedding"] for row in sorted(rows, key=lambda row: row["index"])]
