"""One optimizer step of the retrieval loss, in one process or as one of several."""

from __future__ import annotations

import gc
import itertools
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from transformers import TrainerCallback

import st_jv5
from st_jv5 import batching, functional

BATCH, TEACHER_DIM = 4, 10
LAYOUTS: dict[str, dict[str, int]] = {
    "plain": {},  # the whole batch is one chunk
    "chunked": {},  # several forwards, score matrices in chunks of a few rows
    "gradcache": {"mini_batch_size": 3, "mini_batch_tokens": 60},
}


@dataclass(frozen=True)
class Case:
    """How a step is computed; its gradients must not depend on it."""

    task: str
    layout: str
    accumulation: int
    dims: tuple[int, ...] | None
    gather: bool = False

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in asdict(self).values()).replace(" ", "")


DIMS = (None, (8, 16, 48))


def cases() -> list[Case]:
    """Those of one process."""
    return [
        Case(*settings)
        for settings in itertools.product(("base", "retrieval"), LAYOUTS, (1, 4), DIMS)
    ]


def gathered_cases(which: str) -> list[Case]:
    """Those of two, all or few; the backbone's own differ in the parameters alone: left out.

    Few: each layout once, with and without gathering among them.
    """
    settings = itertools.product(LAYOUTS, (1, 4), DIMS, (False, True))
    if which == "few":
        return [Case("retrieval", layout, 4, DIMS[1], layout != "plain") for layout in LAYOUTS]
    return [Case("retrieval", *each) for each in settings]


def student_and_loss(
    backbone: str, case: Case, **settings: Any
) -> tuple[SentenceTransformer, st_jv5.CompositeLoss]:
    """In float64, without dropout, every parameter away from its start.

    The backbone must be BERT: Qwen3 and EuroBERT norm their states in float32.
    """
    torch.manual_seed(0)
    model = st_jv5.new_student(backbone, matryoshka_dims=(8, 16, 48))
    st_jv5.add_task(model, "retrieval", rank=4, dropout=0.0)
    for name, tensor in model[0].adapter_tensors("retrieval").items():
        if ".lora_B." in name:
            torch.nn.init.normal_(tensor, std=0.1)
    loss = st_jv5.losses.retrieval_loss(
        model,
        TEACHER_DIM,
        temperature=0.3,
        learn_temperature=True,
        dims=case.dims,
        gather_across_devices=case.gather,
        **settings,
    ).double()
    torch.nn.init.normal_(model[0].projection.linear.weight)
    torch.nn.init.normal_(model[0].projection.linear.bias)
    return model, loss


def data(count: int = 32) -> Dataset:
    """Rows of which some share a query, a positive or a negative."""
    from tests.conftest import real_texts

    texts = real_texts()
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(count, 2, TEACHER_DIM, generator=generator)  # float32: the collator's
    vectors[..., 0] = torch.arange(count)[:, None]  # tells the rows
    columns = {"query": (0, 13), "positive": (20, 11), "negative_1": (40, 7)}
    return Dataset.from_dict(
        {
            **{
                name: [f"{texts[i % different + begin]} {i % different}" for i in range(count)]
                for name, (begin, different) in columns.items()
            },
            "label": vectors.tolist(),
        }
    )


class Recorder(TrainerCallback):
    """Keeps the gradients of the first step."""

    def __init__(self, loss: torch.nn.Module) -> None:
        self.loss = loss
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if not self.gradients:
            self.gradients = {
                name.replace("model.module.", "model."): p.grad.clone()
                for name, p in self.loss.named_parameters()
                if p.grad is not None
            }


class RecordingTrainer(st_jv5.AdapterTrainer):
    """Keeps the rows of each batch."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        if not hasattr(self, "rows"):
            self.rows: list[list[int]] = []
        self.rows.append(inputs["label"][:, 0, 0].long().tolist())
        return super().compute_loss(model, inputs, *args, **kwargs)


def step(backbone: str, case: Case, folder: Path) -> dict[str, Any]:
    """Train one step; gives the gradients and the rows of each of its batches."""
    model, loss = student_and_loss(backbone, case, **LAYOUTS[case.layout])
    small = case.layout == "chunked"
    functional.CHUNK_ELEMENTS = 30 if small else 1 << 20
    batching.BUDGET["cpu"] = 80 if small else 1 << 20
    recorder = Recorder(loss)
    trainer = RecordingTrainer(
        model,
        SentenceTransformerTrainingArguments(
            output_dir=str(folder),
            max_steps=1,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=case.accumulation,
            max_grad_norm=0.0,
            dataloader_drop_last=True,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        tasks=case.task,
        train_dataset=data(),
        loss=loss,
        callbacks=[recorder],
    )
    trainer.train()
    return {"gradients": recorder.gradients, "rows": trainer.rows}


def run(backbone: str, folder: Path, port: int, rank: int, which: str) -> None:
    """Few or all cases, in one of two processes; each leaves its own file."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
    )
    torch.set_num_threads(1)
    gc.freeze()  # every trainer ends with a full collection
    for case in gathered_cases(which):
        found = step(backbone, case, folder / "trainer")
        torch.save(found, folder / f"{case.name}.{rank}.pt")
    torch.distributed.destroy_process_group()
