"""Losses for SentenceTransformerTrainer: the paper's terms, and one loss that composes them."""

from st_jv5.losses.composite import CompositeLoss
from st_jv5.losses.distill import ProjectedCosineDistillLoss
from st_jv5.losses.gor import GORLoss
from st_jv5.losses.infonce import InfoNCELoss
from st_jv5.losses.recipes import (
    classification_loss,
    clustering_loss,
    retrieval_loss,
    text_matching_loss,
)
from st_jv5.losses.relational_kd import RelationalKDLoss
from st_jv5.losses.schedule import Schedule
from st_jv5.losses.scheduled import CoSENTDistillLoss, CoSENTLoss

__all__ = [
    "CoSENTDistillLoss",
    "CoSENTLoss",
    "CompositeLoss",
    "GORLoss",
    "InfoNCELoss",
    "ProjectedCosineDistillLoss",
    "RelationalKDLoss",
    "Schedule",
    "classification_loss",
    "clustering_loss",
    "retrieval_loss",
    "text_matching_loss",
]
