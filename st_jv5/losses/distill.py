"""Embedding distillation through a projection."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_jv5 import functional as F
from st_jv5.losses.embed import EmbeddingLoss
from st_jv5.losses.labels import teacher_vectors
from st_jv5.projection import Placement, Projection


class ProjectedCosineDistillLoss(EmbeddingLoss):
    r"""Pull the student's vectors, projected, towards the teacher's.

    .. math:: L = \sum_{c} \frac{1}{B} \sum_i \left[1 - \cos(\psi(x^c_i), t^c_i)\right]

    over the columns ``c`` that have teacher vectors (queries and positives).

    The projection's home is the model: a model of ours that has one goes on with it, otherwise a
    new one is made and put there, saved and resumed with the model.

    Args:
        model: The student.
        teacher_dim: Width of the teacher's vectors.
        placement: ``"student_up"``, the paper's; ``"teacher_down"``, its ablation.
        train_projection: Whether the projection learns along (the paper's stage 1).
        projection: One to use instead of the model's.
        store: The teacher store that int labels are rows of.

    Inputs:
        text columns; labels int ``(B, C)``, rows of ``store``, -1 for none, or float ``(B, C, E)``.
        Columns beyond the first ``C`` (negatives) are not distilled.

    Returns:
        ``{"distill": scalar in 0..2C}``. A row without a vector is left out of its column's mean.

    Example:
        >>> loss = ProjectedCosineDistillLoss(student, teacher_dim=384, store=store)
        >>> student[0].projection is loss.projection
        True

    References:
        Eq. 1 of arXiv:2602.15547. Mean over the batch and sum over the columns: the paper's code
        is not published, and a sum over the batch would swamp stage 2's weights. The projection
        reads unit vectors (our choice). Differs from the stock ``EmbedDistillLoss``, which
        averages over columns, cannot skip rows and keeps the projection out of checkpoints.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        teacher_dim: int,
        placement: Placement = "student_up",
        train_projection: bool = True,
        projection: Projection | None = None,
        store: Any = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.store = store
        student_dim = model.get_embedding_dimension()
        own = getattr(model[0], "projection", None)
        chosen = projection or own
        if chosen is None:
            chosen = Projection(student_dim, teacher_dim, placement).to(model.dtype)
        asked = (student_dim, teacher_dim, placement)
        got = (chosen.student_dim, chosen.teacher_dim, chosen.placement)
        if got != asked:
            raise ValueError(
                f"the projection at hand is {got[0]} -> {got[1]} {got[2]}, but {asked[0]} -> "
                f"{asked[1]} {asked[2]} is needed; drop the old one with model[0].projection = None"
            )
        self.projection = chosen.to(model.device)
        if hasattr(model[0], "projection"):
            model[0].projection = self.projection
        self.projection.requires_grad_(train_projection)
        self.train_projection = train_projection

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None
    ) -> dict[str, Tensor]:
        """See the class; ``embeddings`` are unit rows ``(B, d)`` per column, ``d`` may be cut."""
        vectors, present = teacher_vectors(labels, self.store, like=embeddings[0])
        if vectors.shape[1] > len(embeddings):
            raise ValueError(
                f"labels name {vectors.shape[1]} columns, but the batch has {len(embeddings)}"
            )
        total = embeddings[0].new_zeros(())
        for column in range(vectors.shape[1]):
            student, teacher = self.projection(embeddings[column], vectors[:, column])
            distance = F.cosine_distance(student, teacher)
            total = total + F.mean_over_present(distance, present[:, column])
        return {"distill": total}

    def get_config_dict(self) -> dict[str, Any]:
        return {
            "teacher_dim": self.projection.teacher_dim,
            "placement": self.projection.placement,
            "train_projection": self.train_projection,
        }
