"""A model as an ordinary mteb encoder, with the right adapter and prompt for each task type."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from st_jv5.encoding import encode
from st_jv5.fingerprint import fingerprint
from st_jv5.modules import AdapterRouter
from st_jv5.precision import (
    Array,
    bytes_per_vector,
    check_precision,
    ranges_of,
    stored,
    unit,
)
from st_jv5.task_table import BASE, DEFAULT_PROMPT_NAME

ADAPTER_OF_TYPE: Mapping[str, str] = {
    "Retrieval": "retrieval",
    "Reranking": "retrieval",
    "InstructionReranking": "retrieval",
    "InstructionRetrieval": "retrieval",
    "Any2AnyRetrieval": "retrieval",
    "Regression": "retrieval",
    "Clustering": "clustering",
    "Classification": "classification",
    "MultilabelClassification": "classification",
    "STS": "text-matching",
    "PairClassification": "text-matching",
    "BitextMining": "text-matching",
    "Summarization": "text-matching",
}
"""mteb's task type -> the adapter that is used for it."""


def adapter_for(task_type: str, modalities: Sequence[str] = ("text",)) -> str:
    """The adapter of an mteb task type; an error for an unknown type, or one not of text alone."""
    if set(modalities) != {"text"}:
        raise ValueError(f"only text can be encoded, but a {task_type} task has {list(modalities)}")
    if task_type not in ADAPTER_OF_TYPE:
        raise ValueError(
            f"no adapter is known for mteb's task type {task_type!r}; known: "
            f"{', '.join(ADAPTER_OF_TYPE)}"
        )
    return ADAPTER_OF_TYPE[task_type]


RETRIEVAL_TYPES = frozenset(
    {"Retrieval", "Reranking", "InstructionReranking", "InstructionRetrieval", "Any2AnyRetrieval"}
)
"""Types with documents in an index, which can be rescored."""
COMPARED_TYPES = RETRIEVAL_TYPES | {"STS"}
"""Types that are scored at every precision; the others train something on the vectors."""
RESCORED = 40
"""Documents per query that ``binary-rescored`` ranks again: four times nDCG@10's ten."""


class MTEBEncoder(AbsEncoder):
    """An mteb encoder around any SentenceTransformer, with adapters for an st_jv5 model.

    Args:
        model: An st_jv5 model runs the adapter that fits each task's type, and puts the query
            prompt before mteb's queries only. Any other model uses its own prompts ``query`` and
            ``document``, if it has them.
        adapter: Use this adapter, or ``"base"``, for every task.
        dim: Cut the vectors to this many dims (their length is 1 again); None is the full width.
        precision: Precision at which the vectors of queries and documents are stored; one of
            :data:`~st_jv5.choices.PRECISIONS`.
        ranges: ``(2, dim)``, needed for int8: the result of :meth:`ranges_of` for texts that are
            not under test.
        remember: Keep all vectors at full width in memory until :meth:`forget`, so that no text is
            encoded twice for several tasks, dims and precisions.
        engine: What computes, as for :func:`st_jv5.encode`; for an st_jv5 model only.

    Example:
        >>> encoder = MTEBEncoder(student, dim=64)
        >>> encoder.mteb_model_meta.name.startswith("st_jv5/")
        True
    """

    def __init__(
        self,
        model: SentenceTransformer,
        adapter: str | None = None,
        *,
        dim: int | None = None,
        precision: str = "float32",
        ranges: Array | None = None,
        remember: bool = False,
        engine: str | None = None,
    ) -> None:
        self.model, self.engine = model, engine
        self._memory: dict[tuple[str, str, str, int], _Vectors] | None = {} if remember else None
        self.clock = {"encode": 0.0}
        """Seconds spent in :meth:`encode`; shared with the encoders that :meth:`at` gives."""
        self._name = f"st_jv5/{fingerprint(model)}"
        self._set(adapter, dim, precision, ranges)

    def _set(
        self, adapter: str | None, dim: int | None, precision: str, ranges: Array | None
    ) -> None:
        check_precision(precision)
        width = self.model.get_embedding_dimension()
        if dim is not None and not 1 <= dim <= width:
            raise ValueError(f"dim must lie in 1..{width}, not {dim}")
        self.adapter, self.dim, self.precision, self.ranges = adapter, dim, precision, ranges
        if dim == width:
            self.dim = None
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={"name": self._name, "revision": self.settings()}
        )

    def at(
        self,
        adapter: str | None = None,
        *,
        dim: int | None = None,
        precision: str = "float32",
        ranges: Array | None = None,
    ) -> MTEBEncoder:
        """An encoder with other settings; model, memory and clock are shared with this one."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._set(adapter, dim, precision, ranges)
        return other

    def forget(self) -> None:
        """Drop the remembered vectors."""
        if self._memory is not None:
            self._memory.clear()

    def remember_nothing(self) -> None:
        """From now on keep no vectors in memory."""
        self._memory = None

    def settings(self) -> str:
        """What else decides the vectors, as mteb's revision."""
        own = {name: dict(t.prompts) for name, t in getattr(self.model[0], "tasks", {}).items()}
        told = json.dumps([dict(self.model.prompts), own], sort_keys=True)
        prompts = hashlib.sha256(told.encode())
        parts = [
            f"adapter={self.adapter or 'auto'}",
            f"dim={self.dim or 'full'}",
            self.precision,
            self.dtype(),
            f"tokens={self.model.max_seq_length}",
            f"prompts={prompts.hexdigest()[:8]}",
        ]
        if self.engine is not None:
            parts.append(f"engine={self.engine}")
        if self.ranges is not None:
            parts.append(f"ranges={hashlib.sha256(self.ranges.tobytes()).hexdigest()[:8]}")
        return ",".join(parts)

    def dtype(self) -> str:
        """The dtype of the forwards: autocast's where it is on, the weights' elsewhere."""
        device = self.model.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else self.model.dtype
        return str(dtype).removeprefix("torch.")

    def route(self, task_type: str, prompt_type: PromptType | None) -> tuple[str | None, str]:
        """Adapter and prompt for one task type and side; no adapter for a model of others."""
        name = "query" if prompt_type == PromptType.query else DEFAULT_PROMPT_NAME
        prompt = self.model.prompts.get(name, "")
        router = self.model[0]
        if not isinstance(router, AdapterRouter):
            return None, prompt
        adapter = (self.adapter or adapter_for(task_type)) if router.tasks else BASE
        known = adapter in router.tasks  # if not, encoding will say so
        return adapter, (router.prompt_for(adapter, prompt) or "") if known else prompt

    def describe(self, task_type: str) -> dict[str, Any]:
        """How a task of this type is encoded, for the record of its score."""
        adapter, document = self.route(task_type, None)
        dim = self.dim or self.model.get_embedding_dimension()
        return {
            "adapter": adapter,
            "prompts": {"query": self.route(task_type, PromptType.query)[1], "document": document},
            "dim": dim,
            "precision": self.precision,
            "bytes": bytes_per_vector(dim, self.precision),
            "parameters": sum(weights.numel() for weights in self.model.parameters()),
            "dtype": self.dtype(),
            "max_tokens": self.model.max_seq_length,
        }

    def ranges_of(self, texts: Sequence[str], task_type: str) -> Array:
        """int8 ranges at this dim, from texts not under test (half of them queries for retrieval).

        Returns:
            float32 ``(2, dim)``.
        """
        sides: list[tuple[list[str], PromptType | None]] = [(list(texts), None)]
        if task_type in RETRIEVAL_TYPES:
            sides = [(list(texts[::2]), PromptType.query), (list(texts[1::2]), PromptType.document)]
        with self._timed():
            return ranges_of(np.concatenate([self._rows(t, task_type, side) for t, side in sides]))

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> Array:
        """Encode mteb's batches: float32 ``(n, dim)``, unit rows as they are stored."""
        texts = [text for batch in inputs for text in batch["text"]]
        adapter_for(task_metadata.type, task_metadata.modalities)
        with self._timed():
            rows = self._rows(texts, task_metadata.type, prompt_type, **kwargs)
            if self.precision == "binary-rescored" and prompt_type == PromptType.query:
                return rows
            return stored(rows, self.precision, self.ranges)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.clock["encode"] += time.perf_counter() - started

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines; at ``binary-rescored`` only the nearest documents are ranked by them.

        The ``RESCORED`` documents nearest to a query by Hamming distance are ranked by the cosine
        of the query's float vector with their binary one, and stand before all others.
        """
        if self.precision != "binary-rescored":
            return super().similarity(embeddings1, embeddings2)
        queries = torch.as_tensor(embeddings1)
        documents = torch.as_tensor(embeddings2, dtype=queries.dtype, device=queries.device)
        signs = torch.where(queries > 0, 1.0, -1.0).to(queries.dtype) / queries.shape[1] ** 0.5
        coarse, fine = signs @ documents.T, queries @ documents.T
        nearest = coarse.topk(min(RESCORED, coarse.shape[1]), dim=1).indices
        return (coarse - 4).scatter(1, nearest, fine.gather(1, nearest))

    def _rows(
        self, texts: Sequence[str], task_type: str, prompt_type: PromptType | None, **kwargs: Any
    ) -> Array:
        """Unit rows of this encoder's dim, each text encoded once."""
        task, prompt = self.route(task_type, prompt_type)
        side = "query" if prompt_type == PromptType.query else "document"
        key = (task or side, prompt, self.dtype(), self.model.max_seq_length)
        known = _Vectors() if self._memory is None else self._memory.setdefault(key, _Vectors())
        new = [text for text in dict.fromkeys(texts) if text not in known.index]
        if new:
            if task is None:
                by_side = getattr(self.model, f"encode_{side}")  # the route of a Router, if any
                vectors = by_side(new, prompt=prompt, convert_to_numpy=True, **kwargs)
            else:
                vectors = encode(self.model, new, task=task, prompt=prompt, engine=self.engine)
            known.add(new, np.asarray(vectors, dtype=np.float32))
        return known.rows(texts, self.dim)


class _Vectors:
    """Texts and their vectors."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.vectors: Array = np.zeros((0, 0), dtype=np.float32)
        self._cut: tuple[int | None, Array] | None = None

    def add(self, texts: Sequence[str], vectors: Array) -> None:
        self.index.update(
            zip(texts, range(len(self.index), len(self.index) + len(texts)), strict=True)
        )
        self.vectors = np.concatenate([self.vectors, vectors]) if len(self.vectors) else vectors
        self._cut = None

    def rows(self, texts: Sequence[str], dim: int | None) -> Array:
        """Cut to ``dim``, unit; the last dim's cut is kept, since all precisions ask for it."""
        if self._cut is None or self._cut[0] != dim:
            self._cut = dim, unit(self.vectors[:, :dim])
        return self._cut[1].take([self.index[text] for text in texts], axis=0)
