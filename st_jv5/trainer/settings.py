"""Checks of a trainer's settings, before it is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

from st_jv5.adapters import router_of
from st_jv5.task_table import BASE, unknown_name
from st_jv5.trainer.sampling import Weighted


def check_arguments(args: SentenceTransformerTrainingArguments) -> None:
    """Refuse what an adapter's trainer cannot do."""
    if args.fsdp:
        raise ValueError(
            "fsdp is not supported: the projection is read beside the model, where its weights "
            "would be shards. DDP (torchrun) is: weights, gradients and AdamW's moments of a "
            "student take 16 bytes a parameter on each device"
        )
    if args.torch_compile and args.gradient_checkpointing:
        raise ValueError(
            "torch_compile does not go with gradient_checkpointing, which would run an "
            "adapter's layers again uncompiled. A loss's mini_batch_tokens saves memory, too"
        )


def check_gpus(count: int) -> None:
    """Refuse to train on several GPUs in one process.

    Args:
        count: GPUs that this process would train on.

    Raises:
        ValueError: More than one; tells how to start a process on each, or to use one alone.

    Example:
        >>> check_gpus(1)
    """
    if count > 1:
        raise ValueError(
            f"one process sees {count} GPUs: transformers would train with DataParallel, with "
            f"{count} times as many rows in a batch. Start a process on each (torchrun "
            f"--nproc-per-node {count} ...), or let it see one (CUDA_VISIBLE_DEVICES=0)"
        )


def check_names(
    data: Any,
    eval_dataset: Any,
    tasks: str | Mapping[str, str],
    max_tokens: int | Mapping[str, int] | None,
    args: SentenceTransformerTrainingArguments,
) -> None:
    """Settings by data set must name the data sets that there are."""
    if not isinstance(data, dict):
        if not isinstance(tasks, str) or isinstance(max_tokens, Mapping):
            raise ValueError("tasks or max_tokens by data set need a DatasetDict to train on")
        return
    known = [*data, *(eval_dataset if isinstance(eval_dataset, dict) else ())]
    for what, named in (("tasks", tasks), ("max_tokens", max_tokens)):
        for name in named if isinstance(named, Mapping) else ():
            if name not in known:
                told = unknown_name("data set", name, known, "train_dataset")
                raise ValueError(f"{what}: {told}")
    if isinstance(tasks, Mapping):
        if missing := [name for name in data if name not in tasks]:
            raise ValueError(f"tasks has no task for the data set {missing[0]!r}")
        if BASE in tasks.values() and set(tasks.values()) != {BASE}:
            raise ValueError("the base cannot be trained together with adapters")
        if args.router_mapping:
            raise ValueError("tasks by data set make the router_mapping; drop args.router_mapping")
    check_eval_names(data, eval_dataset, tasks, args.prompts)
    sampler = args.multi_dataset_batch_sampler
    if isinstance(sampler, Weighted) and sampler.names and sampler.names != list(data):
        raise ValueError(
            f"weighted names {sampler.names}, but train_dataset has {list(data)}; both "
            f"need the same order"
        )


def check_eval_names(
    data: Mapping[str, Dataset],
    eval_dataset: Any,
    tasks: str | Mapping[str, str],
    prompts: Any,
) -> None:
    """Each evaluated data set must say whose task it has, and whose prompts of the user's own."""
    by_name = isinstance(prompts, dict) and any(isinstance(one, dict) for one in prompts.values())
    if eval_dataset is None:
        return
    if not isinstance(eval_dataset, dict):
        if by_name or not prompts or not isinstance(tasks, str):
            raise ValueError(
                f"eval_dataset is one data set, but train_dataset has {', '.join(data)}, each with "
                f"its own prompts; name it: eval_dataset={{{next(iter(data))!r}: ...}}"
            )
        return
    for name in eval_dataset:
        if not isinstance(tasks, str) and name not in tasks:
            raise ValueError(
                f"eval_dataset: {name!r} has no task; name it as in train_dataset "
                f"({', '.join(data)}), or put it into tasks"
            )
        if by_name and name not in prompts:
            raise ValueError(
                f"args.prompts has no prompts for the data set {name!r} of eval_dataset"
            )


def check_loss_names(loss: Any) -> None:
    """A loss by data set becomes a module of torch, by the data set's name."""
    for name in loss if isinstance(loss, dict) else ():
        if "." in name:
            raise ValueError(
                f"loss: the data set's name {name!r} has a dot, which torch allows in no loss's "
                f"name; rename the data set, or give one loss for all"
            )


def check_tokens(model: SentenceTransformer, max_tokens: int | Mapping[str, int]) -> None:
    """Texts cannot be cut beyond the backbone's positions."""
    most = getattr(router_of(model).config, "max_position_embeddings", math.inf)
    for limit in max_tokens.values() if isinstance(max_tokens, Mapping) else [max_tokens]:
        if not 1 <= limit <= most:
            raise ValueError(f"max_tokens must lie in 1..{most}, the backbone's, not {limit}")
