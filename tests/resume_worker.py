"""Runs in processes of their own; a module of its own, so that a fork server can load it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
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
    loss = st_jv5.losses.retrieval_loss(
        model,
        TEACHER_DIM,
        learn_temperature=True,
        dims=(8, 16, 48),
        dims_per_step=2,
        gor_weight=st_jv5.losses.Schedule(0.0, 2.0, steps=STEPS // 2, begin=5, shape="cosine"),
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
            multi_dataset_batch_sampler=st_jv5.trainer.weighted(
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
    trainer.train(resume_from_checkpoint=st_jv5.trainer.last_checkpoint(folder))
    trained = {name: p.detach() for name, p in loss.named_parameters()}
    history = [
        {k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    torch.save({"weights": trained, "history": history}, Path(folder) / "final.pt")


# ------------------------------------------------------------------------------ every sampler

EPOCHS = 3
SINGLE = [str(sampler.value) for sampler in BatchSamplers]
SEVERAL = [
    f"{name} {one}" for name in ("proportional", "round_robin", "weighted") for one in SINGLE
]


class SaveAt(TrainerCallback):
    """Saves at the steps that are asked for, which may depend on the number of all steps."""

    def __init__(self, choose: Callable[[int, int], set[int]]) -> None:
        self.choose = choose
        self.steps: set[int] = set()

    def on_train_begin(self, args, state, control, **kwargs):
        self.steps = self.choose(state.max_steps // EPOCHS, state.max_steps)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step in self.steps


def every_step(epoch: int, last: int) -> set[int]:
    return set(range(1, last + 1))


def few_steps(epoch: int, last: int) -> set[int]:
    """At the end of an epoch, within a later one, at the end."""
    return {epoch, 2 * epoch + 1, last}


def classed(texts: list[str], world: int) -> DatasetDict:
    """Two sets with classes and with texts that stand in several rows; as many for each process."""
    sets = {}
    for name, begin, rows in (("one", 0, 22 * world), ("other", 20, 15 * world)):
        positives = [text[:24] for text in (2 * texts)[begin : begin + rows]]
        sets[name] = Dataset.from_dict(
            {
                "query": [f"{text} {begin}" for text in positives],
                "positive": [*positives[: rows - 6], *positives[:6]],
                "label": [row % 3 for row in range(rows)],
            }
        )
    return DatasetDict(sets)


def sampled(
    backbone: str,
    texts: list[str],
    kind: str,
    folder: Path,
    world: int,
    callbacks: list[TrainerCallback],
) -> st_jv5.AdapterTrainer:
    """A trainer with a batch sampler, or with one of several data sets before it."""
    *several, inner = kind.split()
    torch.manual_seed(0)
    model = st_jv5.new_student(backbone)
    st_jv5.add_task(model, "retrieval", rank=2, dropout=0.1)
    samplers: dict[str, Any] = {"batch_sampler": inner}
    if several:
        samplers["multi_dataset_batch_sampler"] = (
            st_jv5.trainer.weighted({"one": 1, "other": 2})
            if several == ["weighted"]
            else several[0]
        )
    sets = classed(texts, world)
    return st_jv5.AdapterTrainer(
        model,
        SentenceTransformerTrainingArguments(
            output_dir=str(folder),
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2 // world,
            learning_rate=1e-2,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            **samplers,
        ),
        tasks="retrieval",
        train_dataset=sets if several else sets["one"],
        loss=st_jv5.GORLoss(model),
        callbacks=callbacks,
    )


def resume_all(
    backbone: str,
    texts: list[str],
    kinds: list[str],
    choose: Callable[[int, int], set[int]],
    folder: str,
    rank: int,
    world: int,
    port: int,
) -> None:
    """Train with each sampler, go on from checkpoints, and leave the steps that changed a bit."""
    gc.freeze()
    torch.set_num_threads(1)
    if world > 1:
        found = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ.update({name: str(value) for name, value in found.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    told = {}
    for kind in kinds:
        saved = SaveAt(choose)
        own = Path(folder) / kind.replace(" ", "-")
        whole = sampled(backbone, texts, kind, own, world, [saved])
        whole.train()
        wrong = []
        for step in sorted(saved.steps):
            again = sampled(backbone, texts, kind, own, world, [])
            again.train(resume_from_checkpoint=str(own / f"checkpoint-{step}"))
            pairs = zip(whole.model.parameters(), again.model.parameters(), strict=True)
            if again.state.global_step != whole.state.global_step or not all(
                torch.equal(one, other) for one, other in pairs
            ):
                wrong.append(step)
        told[kind] = {"checkpoints": len(saved.steps), "wrong": wrong}
    torch.save(told, Path(folder) / f"told-{rank}.pt")
    if world > 1:
        torch.distributed.destroy_process_group()
