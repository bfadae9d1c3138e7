"""Score distillation, which the paper compares embedding distillation with."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, normalize

from st_jv5.functional import at_full_precision
from st_jv5.losses.embed import EmbeddingLoss
from st_jv5.losses.labels import present, teacher_vectors


@at_full_precision
def score_divergence(
    queries: Tensor,
    documents: Tensor,
    teacher_queries: Tensor,
    teacher_documents: Tensor,
    temperature: float,
) -> Tensor:
    r"""How the student's ranking of a batch's documents differs from the teacher's.

    .. math:: \frac{1}{B} \sum_i KL(softmax_j(t^q_i \cdot t^d_j / \tau) \,\|\,
        softmax_j(q_i \cdot d_j / \tau))

    Args:
        queries: ``(B, D)`` unit rows.
        documents: ``(B, D)`` unit rows.
        teacher_queries: ``(B, E)``.
        teacher_documents: ``(B, E)``.
        temperature: Of both sides, positive.

    Returns:
        A scalar ``>= 0``; 0 where both sides have the same cosines.
    """
    teacher = [
        normalize(rows.to(queries.dtype), dim=-1) for rows in (teacher_queries, teacher_documents)
    ]
    own = log_softmax(queries @ documents.T / temperature, dim=1)
    target = log_softmax(teacher[0] @ teacher[1].T / temperature, dim=1)
    return kl_div(own, target, reduction="batchmean", log_target=True)


class ScoreDistillLoss(EmbeddingLoss):
    """KL divergence of in-batch scores, which asks for no projection.

    Differs from the stock ``DistillKLDivLoss``: all documents of the batch are candidates, as in
    InfoNCE, the teacher's scores come from its stored vectors, and there is no factor
    ``temperature ** 2`` (AdamW would not see it).

    Args:
        model: The student.
        temperature: Of both sides; the paper's is not published.
        store: The teacher store that int labels are rows of.

    Inputs:
        query and document columns; labels as for ``ProjectedCosineDistillLoss``, no -1.

    Returns:
        ``{"scores": scalar >= 0}``.
    """

    def __init__(
        self, model: SentenceTransformer, temperature: float = 0.05, store: Any = None
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        self.model, self.temperature, self.store = model, temperature, store

    def prepare(
        self, columns: list[dict[str, Any]] | None, labels: Tensor | None
    ) -> dict[str, Tensor | None]:
        """The teacher's vectors, gathered once for all dims."""
        device = columns[0]["attention_mask"].device if columns else None
        return {"labels": teacher_vectors(labels, self.store, device)}

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None
    ) -> dict[str, Tensor]:
        """See the class; ``embeddings`` are unit rows ``(B, D)`` per column."""
        teacher = teacher_vectors(labels, self.store, embeddings[0].device)
        if not bool(present(teacher).all()):
            raise ValueError("score distillation needs the teacher's vector of every text")
        queries, documents = embeddings[:2]
        value = score_divergence(queries, documents, teacher[:, 0], teacher[:, 1], self.temperature)
        return {"scores": value}

    def get_config_dict(self) -> dict[str, Any]:
        return {"temperature": self.temperature}
