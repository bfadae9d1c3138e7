"""A run that the parent process kills; a module of its own, so that a fork server can load it."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from transformers import TrainerCallback

import st_jv5

TEACHER_DIM, STEPS = 10, 40


def data(texts: list[str]) -> DatasetDict:
    """Two sets of pairs with teacher vectors."""
    sets = {}
    for name, begin in (("short", 0), ("long", 24)):
        generator = torch.Generator().manual_seed(begin)
        vectors = torch.randn(20, 2, TEACHER_DIM, generator=generator)
        sets[name] = Dataset.from_dict(
            {
                "query": [f"{text} {begin}" for text in texts[begin : begin + 20]],
                "positive": texts[begin + 20 : begin + 40],
                "label": vectors.tolist(),
            }
        )
    return DatasetDict(sets)


class Steps(TrainerCallback):
    """Tells the parent how far the run is."""

    def __init__(self, step: Any) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        self.step.value = state.global_step


def run(backbone: str, texts: list[str], task: str, folder: str, step: Any) -> None:
    """Train to the end, from the last checkpoint if there is one; leave the weights."""
    gc.freeze()  # a trainer ends with a full collection
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = st_jv5.new_student(backbone, matryoshka_dims=(8, 16, 48))
    if task != "base":
        st_jv5.add_task(model, task, rank=4, dropout=0.1)
    loss = st_jv5.retrieval_loss(
        model,
        TEACHER_DIM,
        learn_temperature=True,
        dims=(8, 16, 48),
        dims_per_step=2,
        gor_weight=st_jv5.Schedule(0.0, 2.0, steps=STEPS // 2, begin=5, shape="cosine"),
    )
    trainer = st_jv5.AdapterTrainer(
        model,
        SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            warmup_steps=4,
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            multi_dataset_batch_sampler=st_jv5.weighted(
                {"short": 2, "long": 1}, batch_sizes={"long": 2}
            ),
            save_steps=3,
            save_total_limit=2,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        tasks=task,
        max_tokens={"long": 12},
        train_dataset=data(texts),
        loss=loss,
        callbacks=[Steps(step)],
    )
    trainer.train(resume_from_checkpoint=st_jv5.last_checkpoint(folder))
    trained = {name: p.detach() for name, p in loss.named_parameters()}
    history = [
        {k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    torch.save({"weights": trained, "history": history}, Path(folder) / "final.pt")
