"""Text matching: CoSENT where pairs have scores, InfoNCE and distillation where they have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from st_jv5 import functional as F
from st_jv5.losses.composite import CompositeLoss, Weight
from st_jv5.losses.distill import ProjectedCosineDistillLoss
from st_jv5.losses.embed import EmbeddingLoss
from st_jv5.losses.gor import GORLoss
from st_jv5.losses.infonce import InfoNCELoss
from st_jv5.losses.labels import is_scores
from st_jv5.vector_source import VectorRows


class CoSENTLoss(EmbeddingLoss):
    """Rank scored pairs by cosine.

    The same formula as sentence-transformers' ``CoSENTLoss`` with ``scale = 1/temperature``. This
    one takes a temperature, as all losses of st_jv5 do, and raises an error for NaN scores that
    names their rows.

    Args:
        model: The model being trained.
        temperature: Positive.

    Inputs:
        two text columns; labels float or int ``(B,)``, similarity scores on any scale.

    Returns:
        ``{"cosent": scalar >= 0}``; equal scores give 0.

    Example:
        >>> rows = torch.eye(2)
        >>> loss = CoSENTLoss(student)
        >>> equal_scores = torch.ones(2)
        >>> loss.compute_loss_from_embeddings([rows, rows], equal_scores)["cosent"].item()
        0.0

    References:
        Section 3 of arXiv:2602.15547, text-matching.
    """

    def __init__(self, model: SentenceTransformer, temperature: float = 0.05) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        self.model = model
        self.temperature = temperature

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None
    ) -> dict[str, Tensor]:
        """See the class; ``embeddings`` are unit rows ``(B, D)`` of the two columns."""
        if labels is None or not is_scores(labels):
            raise ValueError("CoSENT needs one similarity score per pair as the column 'label'")
        if len(embeddings) != 2:
            raise ValueError(f"CoSENT needs two text columns, got {len(embeddings)}")
        cosines = (embeddings[0] * embeddings[1]).sum(dim=-1)
        scores = labels.flatten().to(cosines.device)
        return {"cosent": F.cosent(cosines, scores, self.temperature)}

    def get_config_dict(self) -> dict[str, Any]:
        return {"temperature": self.temperature}


class CoSENTDistillLoss(CompositeLoss):
    """The paper's text-matching loss: the kind of labels in a batch decides which terms it trains.

    A batch with scores (one number per pair) trains CoSENT only. A batch with rows of the teacher
    store, or with teacher vectors, trains ``1 * InfoNCE + 2 * distill``. All three terms are logged
    for every batch; terms that it does not train are 0.

    Args:
        model: The model being trained.
        teacher_dim: Width of the teacher's vectors. None, for training without a teacher, leaves
            distillation out; then batches without scores need no labels.
        temperature: Temperature of InfoNCE.
        cosent_temperature: Temperature of CoSENT.
        infonce_weight: Weight of InfoNCE in a batch without scores, a number or a
            :class:`Schedule`.
        distill_weight: Weight of distillation in a batch without scores.
        gor_weight: Weight of :class:`GORLoss` in a batch without scores. 0, as in the paper, leaves
            it out. With hard negatives it keeps the student from getting worse on other kinds of
            text.
        learn_temperature: Whether InfoNCE's temperature is learned (:class:`InfoNCELoss`).
        false_negative_margin: See :class:`InfoNCELoss`; None keeps all negatives.
        mask_equal_texts: Whether equal texts are left out of InfoNCE's negatives.
        train_projection: Whether the projection is trained, too
            (:class:`ProjectedCosineDistillLoss`).
        own_map_dims: Matryoshka dims with a separate projection.
        store: The teacher store that int labels are rows of.
        composite: Arguments of :class:`CompositeLoss`, such as ``dims``.

    Returns:
        ``{"cosent": ..., "infonce": ..., "distill": ...}``, weighted.

    Example:
        >>> loss = CoSENTDistillLoss(student, teacher_dim=384)
        >>> loss.active_terms(torch.tensor([0.1, 0.9]))
        ['cosent']
        >>> loss.active_terms(torch.tensor([[0, 1], [2, 3]]))
        ['infonce', 'distill']

    References:
        Section 3 of arXiv:2602.15547, text-matching.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        teacher_dim: int | None,
        *,
        temperature: float = 0.02,
        cosent_temperature: float = 0.05,
        infonce_weight: Weight = 1.0,
        distill_weight: Weight = 2.0,
        gor_weight: Weight = 0.0,
        learn_temperature: bool = False,
        false_negative_margin: float | None = None,
        mask_equal_texts: bool = True,
        train_projection: bool = True,
        own_map_dims: Sequence[int] | None = None,
        store: VectorRows | None = None,
        **composite: Any,
    ) -> None:
        infonce = InfoNCELoss(
            model,
            temperature,
            learn_temperature=learn_temperature,
            false_negative_margin=false_negative_margin,
            mask_equal_texts=mask_equal_texts,
            store=store,
        )
        terms: dict[str, tuple[nn.Module, Weight]] = {
            "cosent": (CoSENTLoss(model, cosent_temperature), 1.0),
            "infonce": (infonce, infonce_weight),
        }
        if teacher_dim is not None:
            distill = ProjectedCosineDistillLoss(
                model,
                teacher_dim,
                train_projection=train_projection,
                store=store,
                own_map_dims=own_map_dims,
            )
            terms["distill"] = (distill, distill_weight)
        if gor_weight:
            terms["gor"] = (GORLoss(model), gor_weight)
        super().__init__(model, terms, **composite)

    def active_terms(self, labels: Tensor | None) -> Sequence[str]:
        if labels is None and "distill" in self.losses:
            raise ValueError(
                "a text-matching batch needs the column 'label': scores, or teacher rows or vectors"
            )
        unscored = [name for name in self.losses if name != "cosent"]
        return ["cosent"] if is_scores(labels) else unscored
