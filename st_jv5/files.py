"""Files and folders, whole or not at all: a temporary one beside the target, then a rename."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; it becomes ``path`` when the block ends, and vanishes if it fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a folder beside the target; it becomes the target when the block ends well."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already and is not empty; choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON; keys keep their order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


MAX_JSON_BYTES = 64 << 20
"""The largest JSON file that is read: twice a big tokenizer's."""

MAX_JSON_ITEMS = 6_000_000
"""Most commas and brackets of a JSON file, each of which may cost a hundred bytes of memory."""


def check_regular(path: str | Path) -> int:
    """The size of a file, in bytes; an error if it is none, such as a pipe, or is not there."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a regular file (a folder, pipe or device)")
    return status.st_size


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; an error names the file."""
    value = read_any_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def read_json_list(path: str | Path) -> list[Any]:
    """Read a JSON list; an error names the file."""
    value = read_any_json(path)
    if not isinstance(value, list):
        raise ValueError(f"{path} must hold a JSON list, not {type(value).__name__}")
    return value


def read_any_json(path: str | Path) -> Any:
    """Read JSON of any kind; an error names the file, also one too large or nested too deep."""
    path = Path(path)
    try:
        if (size := check_regular(path)) > MAX_JSON_BYTES:
            raise ValueError(f"{size} bytes are more than {MAX_JSON_BYTES}")
        text = path.read_text(encoding="utf-8")
        if sum(map(text.count, ",[{")) > MAX_JSON_ITEMS:
            raise ValueError(f"it has more than {MAX_JSON_ITEMS} values")
        return json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} cannot be read as JSON: it is nested too deep") from error


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors.

    One key of metadata: of several, the library shuffles the order, and equal weights would have
    other bytes.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as temporary:
        save_file(whole, temporary, metadata=dict(metadata or {"format": "pt"}))
