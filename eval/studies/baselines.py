"""The same mathematics out of stock parts, for comparison: the retrieval composition, and encoding.

``1 * InfoNCE + 2 * distillation + 1 * GOR`` at several Matryoshka dims, twice: each stock loss with
its own forward, and all of them on one forward that is shared by hand. Where a stock class cannot
say what the paper says, the difference stands here: GOR's hinge at 1/D is a constant where it is
open, and the distillation's mean over two columns is half their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.losses import (
    EmbedDistillLoss,
    GlobalOrthogonalRegularizationLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import Tensor, nn
from torch.nn.functional import normalize

from st_jv5.projection import Projection
from st_jv5.student.own_way import OwnWay

Array = np.ndarray[Any, Any]


class StockLosses(nn.Module):
    """What both ways share: one stock loss per term, one distillation per dim.

    Args:
        model: The student.
        projection: Ours; each stock distillation starts from its first columns.
        dims: Matryoshka dims.
        temperature: Of InfoNCE.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        projection: Projection,
        dims: Sequence[int],
        temperature: float = 0.02,
    ) -> None:
        super().__init__()
        self.model = model
        self.dims = list(dims)
        self.infonce = MultipleNegativesRankingLoss(model, scale=1 / temperature)
        self.gor = GlobalOrthogonalRegularizationLoss(model, mean_weight=None, aggregation="sum")
        self.distill = nn.ModuleList()
        for dim in dims:
            with model.truncate_embeddings(dim):
                one = EmbedDistillLoss(model, "cosine", projection_dim=projection.teacher_dim)
            with torch.no_grad():
                one.projection.weight.copy_(projection.linear.weight[:, :dim])
                one.projection.bias.copy_(projection.linear.bias)
            self.distill.append(one)
        hinges = [2 / dim for dim in dims]
        self.hinge = sum(hinges) / len(hinges)
        """What GOR's hinge takes off the loss of two columns; a constant."""


class SeparateForwards(StockLosses):
    """Each stock loss does its own forward, under the stock MatryoshkaLoss.

    MatryoshkaLoss embeds once for all dims of a loss. It cannot wrap a projected distillation at
    several dims (the projection has one width): there is one such loss, and one forward, per dim.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        count = len(self.dims)
        weights = [1 / count] * count
        self.parts = nn.ModuleList(
            [
                MatryoshkaLoss(self.model, self.infonce, self.dims, weights),
                MatryoshkaLoss(self.model, _Summed(self.gor), self.dims, weights),
                *(
                    MatryoshkaLoss(self.model, one, [dim], [2 * 2 / count])
                    for dim, one in zip(self.dims, self.distill, strict=True)
                ),
            ]
        )

    def forward(self, columns: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        parts = [part([dict(one) for one in columns], labels) for part in self.parts]
        return torch.stack(parts).sum() + self.hinge


class SharedForward(StockLosses):
    """One forward per column, and the stock losses' own formulas on its embeddings at each dim."""

    def forward(self, columns: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        whole = [self.model(dict(one))["sentence_embedding"] for one in columns]
        total = torch.zeros(())
        for dim, distill in zip(self.dims, self.distill, strict=True):
            assert isinstance(distill, EmbedDistillLoss)
            cut = [normalize(rows[:, :dim], dim=-1) for rows in whole]
            infonce = self.infonce.compute_loss_from_embeddings(cut, None)
            gor = self.gor.compute_loss_from_embeddings(cut)["gor_second_moment"]
            vectors = distill.compute_loss_from_embeddings(cut, list(labels.unbind(dim=1)))
            total = total + (infonce + gor + 2 * 2 * vectors) / len(self.dims)
        return total + self.hinge


class _Summed(nn.Module):
    """MatryoshkaLoss takes no dict."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, columns: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        return torch.stack(list(self.loss(columns, labels).values())).sum()


def bare_backbone(folder: str, max_tokens: int) -> SentenceTransformer:
    """The backbone of a saved model under stock pooling: no adapter, no plugin."""
    transformer = Transformer(folder, max_seq_length=max_tokens)
    mode = OwnWay.of(folder).pooling_mode()
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=mode)
    return SentenceTransformer(modules=[transformer, pooling, Normalize()])


class UnmergedAdapters:
    """The published code's way: PEFT's adapters beside every layer, one switched on per call.

    Args:
        folder: A model of ours; its adapters are PEFT's own folders.
        max_tokens: Texts are cut there.
    """

    def __init__(self, folder: str, max_tokens: int) -> None:
        self.model = bare_backbone(folder, max_tokens)
        first, *others = sorted((Path(folder) / "adapters").iterdir())
        peft = PeftModel.from_pretrained(self.model[0].model, first, adapter_name=first.name)
        for path in others:
            peft.load_adapter(path, adapter_name=path.name)
        self.model[0].model = self.peft = peft

    def encode(self, texts: list[str], task: str, prompt: str, batch_size: int = 32) -> Array:
        """Switch, then sentence-transformers' encode."""
        self.peft.set_adapter(task)
        found: Array = self.model.encode(texts, prompt=prompt, batch_size=batch_size)
        return found
