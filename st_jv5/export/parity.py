"""Compare an export with its source on real text."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from st_jv5.adapters import router_of
from st_jv5.encoding import encode
from st_jv5.files import read_json
from st_jv5.modules.merging import fold

Array = np.ndarray[Any, Any]

BOUNDS = {"merged": 0.99999, "onnx": 0.9999, "openvino": 0.9999, "gguf": 0.999}
"""Least cosine of an export's vector with its source's."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Cosines between the vectors of the same texts, before and after the export."""

    what: str
    """The file that was run."""
    texts: int
    least: float
    mean: float
    bound: float | None
    """Least value that ``least`` may have; None: no bound."""

    def __str__(self) -> str:
        bound = "no bound" if self.bound is None else f"bound {self.bound}"
        told = f"least cosine {self.least:.7f}, mean {self.mean:.7f} ({bound})"
        return f"{self.what}: {self.texts} texts, {told}"


def parity_texts() -> list[str]:
    """200 real texts of 3 to 2,040 characters in six languages; ``about`` names their licences.

    Example:
        >>> len(parity_texts())
        200
    """
    stored = read_json(Path(__file__).parent / "texts.json")
    return [text for source, found in stored.items() if source != "about" for text in found]


def source_vectors(
    model: SentenceTransformer, task: str, texts: Sequence[str]
) -> tuple[list[tuple[str, str]], Array]:
    """The texts, each with the name of one of the task's prompts in turn, and their vectors.

    Those of a model in half precision are computed in float32 (:func:`widened`): the rounding of
    its forwards alone would be beyond the bound of a merged folder.
    """
    if model.dtype in (torch.bfloat16, torch.float16):
        model = widened(model, task)
    names = list(router_of(model).tasks[task].prompts) if task in router_of(model).tasks else []
    names = [name for name in names if name in model.prompts] or list(model.prompts)
    named = [(names[index % len(names)], text) for index, text in enumerate(texts)]
    vectors = np.zeros((len(named), model.get_embedding_dimension()), dtype=np.float32)
    for name in names:
        rows = [index for index, (own, _) in enumerate(named) if own == name]
        if rows:
            vectors[rows] = encode(
                model, [named[index][1] for index in rows], task=task, prompt_name=name
            )
    return named, vectors


@torch.no_grad()
def widened(model: SentenceTransformer, task: str) -> SentenceTransformer:
    """A float32 copy of a model in half precision, with the very weights that an export has.

    The task's adapter is folded in before, so that both are rounded to the model's precision once.
    """
    wide = copy.deepcopy(model)
    router = router_of(wide)
    if (adapter := router.resolve(task)) is not None:
        for _, layer in router.lora_layers():
            if adapter in layer.lora_A:
                layer.get_base_layer().weight.copy_(fold(layer, adapter))
                layer.lora_B[adapter].weight.zero_()
    return wide.float()


def prompted(folder: Path, named: Sequence[tuple[str, str]]) -> list[str]:
    """The texts behind the prompts that an export's own config names."""
    prompts = read_json(folder / "config_sentence_transformers.json")["prompts"]
    return [prompts[name] + text for name, text in named]


def compare(kind: str, what: str | Path, source: Any, found: Any, bound: bool = True) -> Parity:
    """Cosines row by row; an error if the least lies below the kind's bound or is no number."""
    source, found = (np.asarray(rows, dtype=np.float64) for rows in (source, found))
    if source.shape != found.shape:
        raise ValueError(f"{what} gave {found.shape} vectors, its source {source.shape}")
    lengths = np.linalg.norm(source, axis=1) * np.linalg.norm(found, axis=1)
    cosines = (source * found).sum(axis=1) / lengths
    limit = BOUNDS[kind] if bound else None
    name = kind if kind == "merged" else Path(what).name
    parity = Parity(
        what=name,
        texts=len(cosines),
        least=float(cosines.min()),
        mean=float(cosines.mean()),
        bound=limit,
    )
    if limit is not None and not parity.least >= limit:
        worst = int(np.argmin(np.nan_to_num(cosines, nan=-2.0)))
        raise ValueError(
            f"{parity.what} differs from its source: text {worst} of {len(cosines)} has cosine "
            f"{cosines[worst]:.7f}, below {limit}; nothing was written"
        )
    return parity
