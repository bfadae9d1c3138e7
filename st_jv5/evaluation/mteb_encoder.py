"""A model as an ordinary mteb encoder, with the right adapter and prompt for each task type."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from st_jv5.encoding import encode
from st_jv5.modules import AdapterRouter
from st_jv5.tasks import BASE, DEFAULT_PROMPT_NAME

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
"""mteb task type -> adapter."""


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


class MTEBEncoder(AbsEncoder):
    """An mteb encoder around a SentenceTransformer: ours, or any other.

    Args:
        model: A model of ours gets the adapter of each task's type and the query prompt for mteb's
            queries alone; any other model encodes with the prompts of that name that it has.
        adapter: Use this adapter (or ``"base"``) for every task instead.
        dim: Cut the vectors to this many dims, unit rows; None is the full width.
        remember: Keep every vector at full width in memory and encode no text twice, across tasks
            and dims; for small tasks that share texts.

    Example:
        >>> encoder = MTEBEncoder(student, dim=64)
        >>> encoder.mteb_model_meta.name.startswith("st_jv5/")
        True
    """

    def __init__(
        self,
        model: SentenceTransformer,
        adapter: str | None = None,
        dim: int | None = None,
        remember: bool = False,
    ) -> None:
        self.model = model
        self.adapter = adapter
        self.dim = dim
        self._memory: dict[tuple[str, str], dict[str, np.ndarray[Any, Any]]] | None = (
            {} if remember else None
        )
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={"name": f"st_jv5/{self.fingerprint()}", "revision": self.settings()}
        )

    def fingerprint(self) -> str:
        """Hash of all weights: two checkpoints never share mteb's cached results."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.float().numpy().data)
        return digest.hexdigest()[:16]

    def settings(self) -> str:
        """What else decides the vectors: adapter, dim, prompts and input length."""
        prompts = hashlib.sha256(repr(sorted(self.model.prompts.items())).encode())
        return (
            f"adapter={self.adapter or 'auto'},dim={self.dim or 'full'},{self.precision()},"
            f"tokens={self.model.max_seq_length},prompts={prompts.hexdigest()[:8]}"
        )

    def precision(self) -> str:
        """The dtype of the forwards: autocast's where it is on, the weights' elsewhere."""
        device = self.model.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else self.model.dtype
        return str(dtype).removeprefix("torch.")

    def at(self, adapter: str | None = None, dim: int | None = None) -> MTEBEncoder:
        """The same model, and memory, with another adapter and dim."""
        other = MTEBEncoder.__new__(MTEBEncoder)
        other.__dict__.update(self.__dict__)
        other.adapter, other.dim = adapter, dim
        other.mteb_model_meta = self.mteb_model_meta.model_copy(
            update={"revision": other.settings()}
        )
        return other

    def route(self, task_type: str, prompt_type: PromptType | None) -> tuple[str | None, str]:
        """Adapter and prompt for one task type and side; no adapter for a model of others."""
        name = "query" if prompt_type == PromptType.query else DEFAULT_PROMPT_NAME
        prompt = self.model.prompts.get(name, "")
        if not isinstance(self.model[0], AdapterRouter):
            return None, prompt
        if not self.model[0].tasks:
            return BASE, prompt
        return self.adapter or adapter_for(task_type), prompt

    def describe(self, task_type: str) -> dict[str, Any]:
        """How a task of this type is encoded, for the record of its score."""
        adapter, document = self.route(task_type, None)
        return {
            "adapter": adapter,
            "prompts": {"query": self.route(task_type, PromptType.query)[1], "document": document},
            "dim": self.dim or self.model.get_embedding_dimension(),
            "precision": self.precision(),
            "max_tokens": self.model.max_seq_length,
        }

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray[Any, Any]:
        """Encode mteb's batches: float32 ``(n, dim)``, unit rows."""
        texts = [text for batch in inputs for text in batch["text"]]
        adapter_for(task_metadata.type, task_metadata.modalities)
        task, prompt = self.route(task_metadata.type, prompt_type)
        known = {} if self._memory is None else self._memory.setdefault((task or "", prompt), {})
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            if task is None:
                vectors = self.model.encode(new, prompt=prompt, convert_to_numpy=True, **kwargs)
            else:
                name = "query" if prompt_type == PromptType.query else DEFAULT_PROMPT_NAME
                vectors = encode(self.model, new, task=task, prompt_name=name)
            known.update(zip(new, np.asarray(vectors, dtype=np.float32), strict=True))
        rows = np.stack([known[text] for text in texts])
        if self.dim is not None:
            rows = rows[:, : self.dim]
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
