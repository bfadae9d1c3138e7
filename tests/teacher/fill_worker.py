"""A filling that the parent process kills; a module of its own, so that a fork server loads it."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer

from st_jv5.teacher import TeacherStore, fill

CHUNK_TEXTS = 4


def space(folder: str) -> TeacherStore:
    """The space that is filled."""
    store = TeacherStore.open(folder, create=True)
    return store.space("tiny", prompt="say: ", max_tokens=24, dim=48, shards=4)


def run(backbone: str, texts: list[str], folder: str) -> None:
    """Fill to the end, from wherever it is."""
    torch.set_num_threads(1)
    teacher = SentenceTransformer(backbone, device="cpu")
    fill(space(folder), teacher, texts, chunk_texts=CHUNK_TEXTS, batch_tokens=64)
