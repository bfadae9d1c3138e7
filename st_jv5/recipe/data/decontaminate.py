"""The list of hashed test texts that training must not see, which ``st-jv5 decontaminate`` writes.

In a recipe: `decontaminate: [mteb-eng.hashes]`, or `--set decontaminate=[mteb-eng.hashes]`.

Texts are compared without case, punctuation and spacing. Of retrieval tasks the queries are listed
and, with --documents, the corpora: those are often the very text that is trained on (MS MARCO,
Wikipedia), and to see a document is not to see its question. Of other tasks all test texts are.
"""

from __future__ import annotations

import hashlib
import logging
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from st_jv5.files import whole_file
from st_jv5.recipe.strict import RecipeError

logger = logging.getLogger("st_jv5.recipe")

MAGIC = b"st_jv5 test texts 1\n"
WORDS = re.compile(r"\w+")


def text_hash(text: str) -> int:
    """64-bit hash of a text's words, whatever their case and what stands between them.

    A text without a word is hashed as it is.

    Example:
        >>> text_hash("Who painted the Sunflowers?") == text_hash("who painted the sunflowers")
        True
    """
    words = " ".join(WORDS.findall(text.casefold())) or text
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little")


def write_hashes(path: str | Path, hashes: Iterable[int]) -> int:
    """Write a list, whole or not at all; returns its length."""
    found = sorted(set(hashes))
    with whole_file(path) as temporary:
        temporary.write_bytes(MAGIC + struct.pack(f"<{len(found)}Q", *found))
    return len(found)


def read_hashes(path: str | Path) -> frozenset[int]:
    """Read a list.

    Raises:
        RecipeError: No such file, or not a whole list.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RecipeError(f"decontaminate: {error}; st-jv5 decontaminate writes it") from error
    body = content.removeprefix(MAGIC)
    if len(body) == len(content) or len(body) % 8:
        raise RecipeError(f"decontaminate: {path} is not a complete list of st-jv5 decontaminate")
    return frozenset(struct.unpack(f"<{len(body) // 8}Q", body))


def texts_of_task(task: Any, documents: bool) -> Iterator[str]:
    """The texts of a loaded mteb task's test splits.

    Args:
        task: A task of mteb whose data is loaded.
        documents: Whether to include the documents of retrieval tasks.
    """
    splits = task.metadata.eval_splits
    for part in _parts(task.dataset):
        for split in splits:
            if split not in part:
                continue
            found = part[split]
            if isinstance(found, Mapping) and "queries" in found:
                yield from _strings(found["queries"], skip=("id",))
                if documents:
                    yield from _strings(found["corpus"], skip=("id",))
            else:
                yield from _strings(found)


def _parts(dataset: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Tasks keep split -> rows, or language -> split -> rows."""
    nested = [v for v in dataset.values() if isinstance(v, Mapping) and "queries" not in v]
    yield from nested or [dataset]


def _strings(rows: Any, skip: Sequence[str] = ()) -> Iterator[str]:
    """Every text in a table's columns, lists of texts opened up."""

    def opened(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, tuple)):
            for one in value:
                yield from opened(one)

    for column in rows.column_names:
        if column not in (*skip, "label", "labels"):
            for value in rows[column]:
                yield from opened(value)


def hashes_of_tasks(tasks: Sequence[Any], documents: bool = False) -> set[int]:
    """Hashes of the test texts of mteb's tasks; each task is loaded, and let go.

    Args:
        tasks: Tasks of mteb, or local ones.
        documents: Whether the corpora of retrieval are listed, too.
    """
    hashes: set[int] = set()
    for task in tqdm(tasks, unit="task"):
        task.load_data()
        before = len(hashes)
        hashes.update(text_hash(text) for text in texts_of_task(task, documents))
        logger.info("%s: %d texts not seen before", task.metadata.name, len(hashes) - before)
        task.unload_data()
    return hashes
