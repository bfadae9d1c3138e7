"""The paper's four compositions, with its weights as defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_jv5.losses.composite import CompositeLoss, Weight
from st_jv5.losses.distill import ProjectedCosineDistillLoss
from st_jv5.losses.gor import GORLoss
from st_jv5.losses.infonce import Direction, InfoNCELoss
from st_jv5.losses.labels import names_classes
from st_jv5.losses.relational_kd import RelationalKDLoss, Teacher
from st_jv5.losses.scheduled import CoSENTDistillLoss
from st_jv5.vector_source import VectorRows


def retrieval_loss(
    model: SentenceTransformer,
    teacher_dim: int | None,
    *,
    temperature: float = 0.02,
    learn_temperature: bool = False,
    infonce_weight: Weight = 1.0,
    distill_weight: Weight = 2.0,
    gor_weight: Weight = 1.0,
    train_projection: bool = True,
    own_map_dims: Sequence[int] | None = None,
    false_negative_margin: float | None = None,
    mask_equal_texts: bool = True,
    store: VectorRows | None = None,
    **composite: Any,
) -> CompositeLoss:
    """``1 * InfoNCE + 2 * distill + 1 * GOR`` (section 3 of arXiv:2602.15547).

    A weight is a number or a :class:`Schedule`; a term of weight 0 is left out.
    ``teacher_dim=None``, for training without a teacher, leaves distillation out. The paper does
    not say whether stage 2 trains the projection further; by default it is trained (our choice).
    The other settings are those of the terms; ``composite`` are arguments of
    :class:`CompositeLoss`, such as ``dims``.

    Example:
        >>> sorted(retrieval_loss(student, teacher_dim=384).weights.items())
        [('distill', 2.0), ('gor', 1.0), ('infonce', 1.0)]
    """
    terms: dict[str, tuple[Any, Weight]] = {}
    if infonce_weight:
        infonce = InfoNCELoss(
            model,
            temperature,
            learn_temperature=learn_temperature,
            false_negative_margin=false_negative_margin,
            mask_equal_texts=mask_equal_texts,
            store=store,
        )
        terms["infonce"] = (infonce, infonce_weight)
    if distill_weight and teacher_dim is not None:
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
    return CompositeLoss(model, terms, **composite)


def text_matching_loss(
    model: SentenceTransformer, teacher_dim: int | None, **overrides: Any
) -> CoSENTDistillLoss:
    """CoSENT on scored batches, ``1 * InfoNCE + 2 * distill`` on the others.

    ``teacher_dim=None``, for training without a teacher, leaves distillation out.

    Example:
        >>> sorted(text_matching_loss(student, teacher_dim=384).weights.items())
        [('cosent', 1.0), ('distill', 2.0), ('infonce', 1.0)]
    """
    return CoSENTDistillLoss(model, teacher_dim, **overrides)


def clustering_loss(
    model: SentenceTransformer,
    teacher_dim: int | None,
    *,
    infonce_weight: Weight = 0.0,
    temperature: float = 0.05,
    rkd_weight: Weight = 0.0,
    rkd_teacher: Teacher = "base",
    train_projection: bool = True,
    own_map_dims: Sequence[int] | None = None,
    store: VectorRows | None = None,
    **composite: Any,
) -> CompositeLoss:
    """Distillation, as in stage 1. The paper's teacher has a prompt that asks for the topic.

    Args:
        teacher_dim: Width of the teacher's vectors. None, for training without a teacher, leaves
            distillation out; then the labels of all batches must hold classes.
        infonce_weight: Weight of InfoNCE, in both directions, in batches whose labels hold classes
            (:func:`~st_jv5.losses.labels.class_ids`): texts of one class are drawn together, away
            from all others. These batches are not distilled. 0, as in the paper: there are no such
            batches.
        temperature: Temperature of InfoNCE.
        rkd_weight: Weight of relational distillation, in the same batches.
        rkd_teacher: As in :func:`classification_loss`.

    Example:
        >>> clustering_loss(student, teacher_dim=384).weights
        {'distill': 1.0}
    """
    terms: dict[str, tuple[Any, Weight]] = {}
    if teacher_dim is not None:
        distill = ProjectedCosineDistillLoss(
            model,
            teacher_dim,
            train_projection=train_projection,
            store=store,
            own_map_dims=own_map_dims,
        )
        terms["distill"] = (distill, 1.0)
    if infonce_weight:
        both: tuple[Direction, ...] = ("query_to_doc", "doc_to_query")
        infonce = InfoNCELoss(model, temperature, directions=both, mask_equal_classes=True)
        terms["infonce"] = (infonce, infonce_weight)
    if rkd_weight:
        terms["rkd"] = (RelationalKDLoss(model, rkd_teacher, store=store), rkd_weight)
    return _DistilledOrTold(model, terms, **composite)


class _DistilledOrTold(CompositeLoss):
    """Distils texts; batches whose labels hold classes train the other terms."""

    def active_terms(self, labels: Tensor | None) -> Sequence[str]:
        others = [name for name in self.losses if name != "distill"]
        if others and ("distill" not in self.losses or names_classes(labels)):
            return others
        return ["distill"]


def classification_loss(
    model: SentenceTransformer,
    teacher_dim: int | None = None,
    *,
    temperature: float = 0.02,
    learn_temperature: bool = False,
    rkd_weight: Weight = 20.0,
    rkd_teacher: Teacher = "base",
    include_diagonal: bool = True,
    mask_equal_texts: bool = True,
    mask_equal_classes: bool = False,
    store: VectorRows | None = None,
    **composite: Any,
) -> CompositeLoss:
    """``InfoNCE(q->d) + InfoNCE(d->q) + 20 * relational distillation`` from the base.

    Args:
        teacher_dim: Ignored: relational distillation works with any width. It is here because the
            four compositions take the same arguments.
        rkd_teacher: Whose distances are kept. ``"base"``, as in the paper: the base without
            adapter. ``"labels"``: the teacher's vectors, whose rows in ``store`` are the labels.
        mask_equal_classes: See :class:`InfoNCELoss`. The paper does not do it. It is better, since
            some texts of a batch have the same class as the query.

    Example:
        >>> classification_loss(student).weights
        {'infonce': 1.0, 'rkd': 20.0}
    """
    infonce = InfoNCELoss(
        model,
        temperature,
        directions=("query_to_doc", "doc_to_query"),
        learn_temperature=learn_temperature,
        mask_equal_texts=mask_equal_texts,
        mask_equal_classes=mask_equal_classes,
    )
    terms: dict[str, tuple[Any, Weight]] = {"infonce": (infonce, 1.0)}
    if rkd_weight:
        rkd = RelationalKDLoss(model, rkd_teacher, include_diagonal=include_diagonal, store=store)
        terms["rkd"] = (rkd, rkd_weight)
    return CompositeLoss(model, terms, **composite)
