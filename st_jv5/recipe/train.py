"""One phase of training: data sets, loss and arguments, handed to the trainer."""

from __future__ import annotations

import logging
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from st_jv5.adapters import add_task, router_of
from st_jv5.backbone import rope
from st_jv5.encoding import encode
from st_jv5.files import write_json
from st_jv5.losses import (
    CompositeLoss,
    ProjectedCosineDistillLoss,
    classification_loss,
    clustering_loss,
    retrieval_loss,
    text_matching_loss,
)
from st_jv5.machine.cpu import give_back_memory
from st_jv5.projection import Projection
from st_jv5.quiet import shows_bars
from st_jv5.recipe.config import LABELLED, AdapterPhase, Phase
from st_jv5.recipe.context import RANK, WORLD_SIZE, Run
from st_jv5.recipe.data.training_sets import replay_set, teacher_roles, training_set
from st_jv5.recipe.processes import PATIENCE
from st_jv5.recipe.strict import RecipeError
from st_jv5.task_table import BASE
from st_jv5.trainer import AdapterTrainer
from st_jv5.trainer.resuming import CannotResumeError, last_checkpoint
from st_jv5.trainer.sampling import weighted
from st_jv5.vector_source import Vectors

logger = logging.getLogger("st_jv5.recipe")

LOSSES: dict[str, Callable[..., CompositeLoss]] = {
    # Stage 1 is distillation alone; its recipe may give the other two terms a weight.
    BASE: partial(retrieval_loss, infonce_weight=0.0, distill_weight=1.0, gor_weight=0.0),
    "retrieval": retrieval_loss,
    "text-matching": text_matching_loss,
    "clustering": clustering_loss,
    "classification": classification_loss,
}


def train(
    run: Run,
    student: SentenceTransformer,
    task: str,
    phase: Phase,
    checkpoints: Path,
    loss: CompositeLoss | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Run the trainer for one phase, going on from its last checkpoint if there is one.

    Args:
        run: Data, stores and precision.
        student: The model that learns.
        task: What is trained: a task of the model, or the base.
        phase: Steps, batches, rates.
        checkpoints: Folder of the trainer's checkpoints; ``log.json`` goes beside it.
        loss: Instead of the task's own.
        callbacks: Callbacks of transformers, besides the trainer's.
    """
    stores = run.role_stores(phase)
    sets = training_sets(run, phase, stores)
    run.release()  # from here on the stored vectors are enough
    if phase.theta is not None:
        rope.train_at(student, phase.theta, task)
    if phase.fit_projection and student[0].projection is None and stores:
        fit(run, student, phase, stores)
    args = arguments(run, phase, checkpoints, sets)
    trainer = make_trainer(run, student, task, phase, sets, stores, args, loss, callbacks)
    trainer.add_callback(spent := _Spent())
    if RANK == 0:
        name = checkpoints.parent.name
        logger.info("training %s: %s steps on %s", name, f"{phase.steps:,}", ", ".join(sets))
    try:
        trainer.train(
            resume_from_checkpoint=last_checkpoint(checkpoints), resume_anyway=run.resume_anyway
        )
    except CannotResumeError as error:
        raise RecipeError(
            f"{error}\nRemove {checkpoints} to train this phase anew, or go on with --resume-anyway"
        ) from error
    if RANK == 0:
        told = {**spent.so_far(), "history": trainer.state.log_history}
        write_json(checkpoints.parent / "log.json", told)
    student.eval()


def put_adapter(student: SentenceTransformer, task: str, phase: AdapterPhase) -> None:
    """Give a student the adapter that a phase trains: a fresh one, or the one that it has already.

    Raises:
        RecipeError: The phase asks for another shape than that of the adapter that is there.
    """
    router = router_of(student)
    if task not in router.tasks:
        add_task(student, task, rank=phase.rank, alpha=phase.alpha, dropout=phase.dropout)
        return
    config = router.model.peft_config[task]
    own = {"rank": config.r, "alpha": config.lora_alpha, "dropout": None, "strengths": (1.0,)}
    for setting, value in own.items():
        if (asked := getattr(phase, setting)) != value:
            told = f"write {setting}: {value}" if setting in ("rank", "alpha") else "leave it out"
            raise RecipeError(
                f"adapters.{task}.{setting} is {asked}, but the model has this adapter already, "
                f"and it is trained further as it is; {told}"
            )


def training_sets(run: Run, phase: Phase, stores: Mapping[str, Vectors]) -> dict[str, Dataset]:
    """Data set -> its rows as the trainer takes them, for all that a phase draws from."""
    sets = {}
    for name in phase.data:
        spec, rows, draws = run.recipe.data_sets[name], run.rows[name], draws_of(run, phase, name)
        sets[name] = training_set(
            spec, rows, stores, run.recipe.seed, phase.asks_of_labelled, draws
        )
    return sets | {name: replay_set(run.rows[name], stores["text"]) for name in phase.replay}


def arguments(
    run: Run, phase: Phase, checkpoints: Path, sets: Mapping[str, Dataset]
) -> SentenceTransformerTrainingArguments:
    """A phase's settings, as the trainer takes them."""
    return SentenceTransformerTrainingArguments(
        output_dir=str(checkpoints),
        max_steps=phase.steps,
        per_device_train_batch_size=rows_here(phase, phase.batch_size),
        learning_rate=phase.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=phase.warmup_steps,
        weight_decay=phase.weight_decay,
        max_grad_norm=phase.max_grad_norm,
        bf16=run.bfloat16,
        gradient_checkpointing=phase.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        disable_tqdm=not shows_bars(),
        torch_compile=run.recipe.compile,
        tf32=False if run.recipe.compile else None,  # compiling would turn it on, and leave it on
        use_cpu=run.device == "cpu",
        ddp_timeout=int(PATIENCE.total_seconds()),
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        multi_dataset_batch_sampler=weighted(
            phase.mix,
            temperature=phase.temperature,
            batch_sizes=batch_rows(phase, sets),
            max_epochs={name: phase.max_epochs / draws_of(run, phase, name) for name in phase.mix},
        ),
        dataloader_drop_last=True,
        dataloader_num_workers=run.recipe.loader_workers,
        logging_steps=max(1, phase.steps // 20),
        save_strategy="steps",
        save_steps=phase.checkpoint_steps,
        save_total_limit=None if getattr(phase, "average", ()) else 2,
        report_to=list(run.report_to),
        seed=run.recipe.seed,
    )


def make_trainer(
    run: Run,
    student: SentenceTransformer,
    task: str,
    phase: Phase,
    sets: Mapping[str, Dataset],
    stores: Mapping[str, Vectors],
    args: SentenceTransformerTrainingArguments,
    loss: CompositeLoss | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> AdapterTrainer:
    """The trainer of a phase; ``loss`` is instead of the task's own."""
    loss = loss or make_loss(run, student, task, phase, stores)
    replay = make_replay_loss(run, student, phase, stores) if phase.replay else None
    student.model_card_data.set_widget_examples = _no_examples
    student.model_card_data.extract_dataset_metadata = _no_metadata
    return AdapterTrainer(
        student,
        args,
        tasks=task,
        train_dataset=DatasetDict(sets),
        max_tokens=phase.max_tokens or None,
        temperature_rate=phase.temperature_rate,
        loss={name: replay if name in phase.replay else loss for name in sets} if replay else loss,
        callbacks=list(callbacks),
    )


def _no_examples(dataset: Any) -> None:
    """Our card has none; sentence-transformers would read whole columns for its own."""


def _no_metadata(**_: Any) -> list[dict[str, Any]]:
    """Nor what is known of the data sets; a thousand rows of each would be tokenised for it."""
    return []


class _Spent(TrainerCallback, ExportableState):
    """Seconds and peak memory of a phase; checkpoints keep those of the steps before them."""

    def __init__(self) -> None:
        self.before: dict[str, float] = {}
        self.started: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = state.stateful_callbacks.get(type(self).__name__, {})
        self.before = kept.get("attributes", {})
        give_back_memory()  # what the phase before has left
        reset_peak_memory()
        self.started = time.time()

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": self.so_far()}

    def so_far(self) -> dict[str, float]:
        """Seconds and peak memory of this run and of those that it continues."""
        if self.started is None:  # the host asks once then: what was before is not the phase's
            return {}
        seconds = self.before.get("seconds", 0.0) + time.time() - self.started
        peak = max(self.before.get("peak_memory_mib", 0.0), peak_memory_mib())
        return {"seconds": round(seconds, 1), "peak_memory_mib": peak}


def draws_of(run: Run, phase: Phase, name: str) -> int:
    """How often a data set's positives and negatives are drawn: once for each pass over it.

    Only labelled texts have any to draw.
    """
    rows = run.rows[name]
    if name in phase.replay or run.recipe.data_sets[name].kind not in LABELLED or not rows:
        return 1
    return max(1, math.ceil(min(phase.passes(name, len(rows)), phase.max_epochs)))


def check_epochs(run: Run, name: str, phase: Phase) -> None:
    """The phase's data sets must hold its steps without more passes than ``max_epochs``."""
    batches = 0
    told = []
    for data_set in phase.mix:
        rows = run.rows[data_set]
        count = len(rows.distinct() if data_set in phase.replay else rows)
        size = phase.batch_sizes.get(data_set, phase.batch_size) * phase.devices
        whole = count // min(size, count)  # a small set's batches have the rows that it has
        batches += max(1, int(phase.max_epochs * whole))
        told.append(f"{data_set}: {count} rows, {size} a step")
    if batches < phase.steps:
        raise RecipeError(
            f"{name}.steps: {phase.steps} steps, but its data sets hold {batches} batches within "
            f"max_epochs {phase.max_epochs:g} ({'; '.join(told)}); add text, lower steps, or raise "
            f"{name}.max_epochs"
        )


def rows_here(phase: Phase, batch_size: int) -> int:
    """Rows of a step in one process: all ``devices`` batches, shared out."""
    rows, left = divmod(batch_size * phase.devices, WORLD_SIZE)
    if left:
        raise RecipeError(
            f"a step's {phase.devices} x {batch_size} rows cannot be shared among "
            f"{WORLD_SIZE} processes"
        )
    return rows


def batch_rows(phase: Phase, sets: Mapping[str, Dataset]) -> dict[str, int]:
    """Data set -> rows of its batches in one process.

    As the recipe says, where the set has so many rows of which no two share a text; a smaller set
    gives batches of what it has, so that fewer processes than ``devices`` train on it, too.
    """
    found = {}
    for name, dataset in sets.items():
        wanted = rows_here(phase, phase.batch_sizes.get(name, phase.batch_size))
        found[name] = most_rows(dataset, wanted)
    return found


SPARE = 1.1
"""A set must hold so many times a batch's rows, where rows share texts: which of them go together
depends on their order. A batch of two is allowed where any two go together."""


def most_rows(dataset: Dataset, wanted: int) -> int:
    """How many rows, up to those wanted, a batch can have of which no two share a text.

    Counted as the sampler puts a batch together, on no more than 20 times the rows wanted.
    """
    enough = math.ceil(SPARE * wanted)
    seen: set[str] = set()
    count = rows = 0
    for row in islice(dataset, 20 * wanted):
        rows += 1
        texts = {str(text) for name, text in row.items() if name != "label"}
        if seen.isdisjoint(texts):
            seen |= texts
            count += 1
        if count == enough:
            return wanted
    if count < rows:
        count = max(min(count, 2), int(count / SPARE))
    return max(1, min(wanted, count))


def reset_peak_memory() -> None:
    """Let the peak be counted from now on, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float:
    """Most memory that was in use at once: the GPU's, or the process' own (Linux); else 0."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return round(int(line.split()[1]) / 2**10, 1)
    return 0.0


def fit(
    run: Run, student: SentenceTransformer, phase: Phase, stores: Mapping[str, Vectors]
) -> None:
    """Fit the projection on texts of all the phase's data sets, each by its weight.

    As in training, a query stands behind the query prompt, every other text behind the document
    prompt, and each is cut where the phase cuts it.
    """
    if phase.fit_projection <= (width := student.get_embedding_dimension()):
        raise RecipeError(
            f"fit_projection: {phase.fit_projection} texts are too few to fit {width} dims; "
            f"ask for more, or for 0: no fit"
        )
    most = student.max_seq_length
    texts = drawn_texts(run, phase, phase.fit_projection, most)
    count = sum(map(len, texts.values()))
    if count <= 2 * width:
        logger.warning("%d texts are too few to fit a projection; it stays as it is", count)
        return
    seen, wanted = [], []
    try:
        for (role, limit), found in texts.items():
            student.max_seq_length = limit
            prompt = "query" if role == "query" else "document"
            with run.forwards():
                vectors = encode(student, [*found], task=BASE, prompt_name=prompt)
            seen.append(torch.from_numpy(vectors))
            wanted.append(stores[role].gather(stores[role].rows([*found])))
    finally:
        student.max_seq_length = most
    fitted = Projection.fitted(
        torch.cat(seen),
        torch.cat(wanted),
        info=run.told_of(next(iter(stores.values()))),
        own_map_dims=phase.own_map_dims,
    )
    student[0].projection = fitted.to(student.device)


def drawn_texts(
    run: Run, phase: Phase, count: int, most: int
) -> dict[tuple[str, int], dict[str, None]]:
    """About so many texts of all a phase's data sets, each by its weight.

    Returns:
        Role, and the tokens where the phase cuts its texts (``most``, where it does not say) ->
        texts, each once.
    """
    draw, asks = random.Random(run.recipe.seed), phase.asks_of_labelled
    whole = sum(phase.mix.values())
    texts: dict[tuple[str, int], dict[str, None]] = defaultdict(dict)
    for name, weight in phase.mix.items():
        spec, rows = run.recipe.data_sets[name], run.rows[name]
        if name in phase.replay:
            roles = {"text": rows.distinct()}
        else:
            roles = {role: rows.distinct(role) for role in teacher_roles(spec, asks)}
        starts = [0, *accumulate(map(len, roles.values()))]
        own_count = min(starts[-1], round(count * weight / whole))
        drawn = np.array(draw.sample(range(starts[-1]), own_count), dtype=np.int64)
        for (role, numbers), begin, end in zip(roles.items(), starts, starts[1:], strict=False):
            own = drawn[(drawn >= begin) & (drawn < end)] - begin
            limit = phase.max_tokens.get(name, most)
            texts[role, limit].update(dict.fromkeys(rows.texts(numbers[own])))
    return texts


def drawn_pairs(run: Run, phase: Phase, count: int) -> list[tuple[str, str]]:
    """About so many queries and positives of a phase's data sets, each by its weight.

    Scored pairs are left out: theirs may mean different things.
    """
    draw, pairs = random.Random(run.recipe.seed), list[tuple[str, str]]()
    specs = run.recipe.data_sets
    sets = {n: w for n, w in phase.mix.items() if specs[n].kind in ("pairs", "long")}
    whole = sum(sets.values())
    for name, weight in sets.items():
        rows = run.rows[name]
        own = min(len(rows), round(count * weight / whole))
        drawn = np.array(sorted(draw.sample(range(len(rows)), own)), dtype=np.int64)
        sides = (rows.texts(rows.numbers(role)[drawn]) for role in ("query", "positive"))
        pairs += zip(*sides, strict=True)
    return pairs


def make_replay_loss(
    run: Run, student: SentenceTransformer, phase: Phase, stores: Mapping[str, Vectors]
) -> CompositeLoss:
    """Distillation alone, of single texts; the projection is the phase's."""
    settings = dict[str, Any](phase.loss)
    distill = ProjectedCosineDistillLoss(
        student,
        stores["text"].dim,
        store=stores["text"],
        train_projection=settings.get("train_projection", True),
    )
    return CompositeLoss(
        student,
        {"distill": (distill, phase.replay_weight)},
        dims=student[0].matryoshka_dims,
        dim_weights=phase.dim_weights or None,
        **{n: value for n, value in settings.items() if n.startswith("mini_batch_")},
    )


def make_loss(
    run: Run,
    student: SentenceTransformer,
    task: str,
    phase: Phase,
    stores: Mapping[str, Vectors],
) -> CompositeLoss:
    """The task's loss at the student's dims, reading the teacher's vectors of each role.

    One that holds texts of a step against each other does so over all processes: distillation
    alone is the mean over texts, whoever has them.
    """
    store = run.loss_store(phase, stores)
    loss = LOSSES[task](
        student,
        store.dim if store else None,
        store=store,
        dims=student[0].matryoshka_dims,
        dim_weights=phase.dim_weights or None,
        **({"own_map_dims": phase.own_map_dims} if phase.own_map_dims else {}),
        **dict[str, Any](phase.loss),
    )
    if "gather_across_devices" not in phase.loss:
        loss.gather_across_devices = set(loss.losses) != {"distill"}
    if student[0].projection is not None and store is not None:
        student[0].projection.info = run.told_of(store)
    return loss
