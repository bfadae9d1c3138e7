"""What a worker needs to compute shards of vectors: the model, the corpus, the folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_jv5.adapters import merged
from st_jv5.encoding import NotFiniteError, Progress, encode
from st_jv5.jina import load_model
from st_jv5.precision import Array, codes
from st_jv5.vectors.corpus import Corpus
from st_jv5.vectors.folder import RANGES, VectorFolder

logger = logging.getLogger(__name__)


def has_ranges(folder: VectorFolder) -> bool:
    """Whether int8's ranges are there, and as they were written."""
    if not (folder.path / RANGES).exists():
        return False
    try:
        _ = folder.ranges
    except ValueError as error:
        logger.warning("%s", error)
        return False
    return True


@dataclass(frozen=True)
class Settings:
    """What decides the vectors, in words, so that another process can follow."""

    model: str
    revision: str | None
    dtype: str | None
    max_tokens: int | None
    task: str | None
    prompt: str
    dim: int | None
    batch_tokens: int | None
    mode: str | None = None

    def load(self, device: str | None = None) -> SentenceTransformer:
        """The model."""
        model = load_model(self.model, self.revision, dtype=self.dtype, device=device)
        if self.max_tokens is not None:
            added = getattr(model.tokenizer, "num_special_tokens_to_add", int)()
            if self.max_tokens <= added:
                raise ValueError(
                    f"max_tokens must be more than {added}, which the tokenizer adds to every "
                    f"text, not {self.max_tokens}"
                )
            model.max_seq_length = min(self.max_tokens, model.max_seq_length or self.max_tokens)
        return model

    def encode(
        self, model: SentenceTransformer, texts: Sequence[str], bar: bool | Progress = False
    ) -> Array:
        """float32 ``(n, dim)``."""
        return encode(
            model,
            texts,
            task=self.task,
            prompt=self.prompt,
            dim=self.dim,
            batch_tokens=self.batch_tokens,
            mode=self.mode,
            show_progress_bar=bar,
        )


class Work:
    """Computes shards; one per process."""

    def __init__(self, settings: Settings, corpus: Corpus, folder: Path) -> None:
        self.settings, self.corpus, self.folder = settings, corpus, folder
        self.model: SentenceTransformer | None = None

    def from_anywhere(self) -> Work:
        """This work for a process that runs in another folder: every path absolute."""
        model, corpus = self.settings.model, copy(self.corpus)
        if Path(model).is_dir():
            model = str(Path(model).resolve())
        if not corpus.hub:
            corpus.files = [str(Path(path).resolve()) for path in corpus.files]
        return Work(replace(self.settings, model=model), corpus, self.folder.resolve())

    def run(self, numbers: Sequence[int], bar: Progress) -> None:
        """Compute and write shards, ascending."""
        folder, wanted = VectorFolder(self.folder), set(numbers)
        model = self.model = self.model or self.settings.load()
        task = self.settings.task
        with nullcontext() if task is None else merged(model, task):
            for number, block in enumerate(self.corpus.blocks(folder.shard_rows)):
                if number not in wanted:
                    continue
                try:
                    vectors = self.settings.encode(model, block.texts, bar)
                except NotFiniteError as error:
                    raise ValueError(
                        f"row {block.first + error.index} (id {block.ids[error.index]!r}) of "
                        f"{self.corpus.name}: {error}"
                    ) from error
                folder.write(number, block.ids, codes(vectors, folder.precision, folder.ranges))
                bar.update(len(block.texts) - len(set(block.texts)))  # equal ones are done once
                wanted.remove(number)
                if not wanted:
                    return
        raise ValueError(f"{self.corpus.name} ended before shard {min(wanted)}: it has changed")
