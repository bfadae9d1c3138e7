"""The host's trainer, told which adapter it trains and with which prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from transformers.trainer import TRAINING_ARGS_NAME

from st_jv5.adapters import router_of, train_task
from st_jv5.tasks import BASE, BASE_TASK, Task, column_prompts


class AdapterTrainer(SentenceTransformerTrainer):
    """SentenceTransformerTrainer for one adapter (or the base) of a model of ours.

    Freezes everything but the task, and fills ``args.prompts`` from the model's task table unless
    they are given. Checkpoints hold the adapters and the projection: ``model.save`` writes both.

    Args:
        model: A model of ours.
        args: The host's training arguments.
        tasks: The adapter to train, or ``"base"``.
        trainer_kwargs: Everything else that the host's trainer takes.

    Example:
        >>> trainer = AdapterTrainer(student, args, tasks="base", train_dataset=pairs, loss=loss)
        >>> trainer.args.prompts
        {'query': 'Query: ', 'positive': 'Document: '}
    """

    def __init__(
        self,
        model: SentenceTransformer,
        args: SentenceTransformerTrainingArguments | None = None,
        *,
        tasks: str,
        train_dataset: Dataset | DatasetDict | dict[str, Dataset] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        train_task(model, tasks)
        if args is None:
            args = SentenceTransformerTrainingArguments(output_dir="tmp_trainer")
        if not args.prompts and train_dataset is not None:
            args.prompts = trainer_prompts(model, tasks, train_dataset)
        super().__init__(model=model, args=args, train_dataset=train_dataset, **trainer_kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # As the host's, without the model card: a checkpoint needs none, and the card's usage
        # snippet would encode with every save.
        output_dir = output_dir or self.args.output_dir
        self.model.save_pretrained(output_dir, create_model_card=False)
        torch.save(self.args, Path(output_dir) / TRAINING_ARGS_NAME)


def trainer_prompts(
    model: SentenceTransformer, task: str, train_dataset: Dataset | dict[str, Dataset]
) -> dict[str, Any]:
    """``args.prompts`` for a plain SentenceTransformerTrainer: the prompts of one task's columns.

    Args:
        model: A model of ours.
        task: An adapter, or ``"base"``.
        train_dataset: One data set, or several by name.

    Returns:
        column -> prompt, or data set -> column -> prompt.

    Example:
        >>> trainer_prompts(student, "base", pairs)
        {'query': 'Query: ', 'positive': 'Document: '}
    """
    router = router_of(model)
    name = None if task == BASE else router.resolve(task)
    table: Task = router.tasks[name] if name else BASE_TASK
    if isinstance(train_dataset, dict):
        return {key: column_prompts(table, ds.column_names) for key, ds in train_dataset.items()}
    return column_prompts(table, train_dataset.column_names)
