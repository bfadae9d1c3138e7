"""Every phase tried on its first rows before the teacher begins, random vectors in its place."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_jv5.backbone import rope
from st_jv5.machine.cpu import give_back_memory
from st_jv5.recipe.config import LABELLED, AdapterPhase, Phase
from st_jv5.recipe.context import RANK, WORLD_SIZE, Run
from st_jv5.recipe.data.rows import Rows
from st_jv5.recipe.data.training_sets import replay_set, training_set
from st_jv5.recipe.strict import RecipeError
from st_jv5.recipe.train import (
    arguments,
    batch_rows,
    draws_of,
    make_trainer,
    put_adapter,
    rows_here,
)
from st_jv5.task_table import BASE
from st_jv5.teacher.shard import Array, halves, hash_texts
from st_jv5.teacher.store import as_rows
from st_jv5.vector_source import Vectors

logger = logging.getLogger("st_jv5.recipe")

FIRST_ROWS = 64
"""Rows of a data set that a trial has."""
TRIED_ROWS = 4
"""Rows of a batch that a loss is tried on."""


class RandomVectors:
    """Stands in a teacher store's place: a random vector for any text, the same for equal texts."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def describe(self) -> dict[str, Any]:
        """Description that there is no teacher."""
        return {"teacher": "none", "dim": self.dim}

    def state(self) -> list[Any]:
        """It never changes."""
        return ["random"]

    def find(self, hashes: Array) -> Array:
        """A number for each text."""
        return (halves(hashes)[0] >> np.uint64(1)).astype(np.int64)

    def rows(self, texts: Sequence[str], missing_ok: bool = False) -> Array:
        """A number for each text."""
        return self.find(hash_texts(texts))

    def gather(
        self,
        rows: Array | Tensor | Sequence[int],
        *,
        missing_ok: bool = False,
        device: torch.device | str | None = None,
        pin_memory: bool = False,
    ) -> Tensor:
        """Vectors that a row's number decides, ``(..., dim)``."""
        rows = as_rows(rows)
        places = np.arange(1, self.dim + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (rows[..., None].astype(np.uint64) + places) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(31)
        mixed *= np.uint64(0x94D049BB133111EB)
        vectors = (mixed >> np.uint64(40)).astype(np.float32) / 2**23 - 1
        return torch.from_numpy(vectors).to(device)


def try_phases(run: Run, names: Sequence[str]) -> None:
    """Build the data sets of phases, and try each loss on its first rows.

    What is found here would else stop a run after the teacher's whole pass: a data set too small
    for a batch, a loss that cannot take a set's columns, a tracker that is not installed.

    Args:
        run: Its recipe.
        names: Names of phases, as in ``Recipe.phases``.

    Raises:
        RecipeError: Names the phase and the data set.
    """
    if not names:
        return
    with _named("student"):
        student = run.new_student()
        run.cut_inputs(student)
    for name in names:
        phase = run.recipe.phases[name]
        task = name.removeprefix("adapters.") if isinstance(phase, AdapterPhase) else BASE
        with _named(name), TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            if isinstance(phase, AdapterPhase):
                put_adapter(student, task, phase)
            _try_phase(run, student, task, name, phase, Path(folder))
    del student
    give_back_memory()


def _try_phase(
    run: Run, student: SentenceTransformer, task: str, name: str, phase: Phase, folder: Path
) -> None:
    stores: dict[str, Vectors] = dict.fromkeys(
        run.roles(phase), RandomVectors(student.get_embedding_dimension() or 1)
    )
    sets = {}
    for data_set in phase.mix:
        with _named(f"data_sets.{data_set}"):
            sets[data_set] = _first_set(run, phase, data_set, stores, folder / data_set)
            _check_rows(run, name, phase, data_set, sets[data_set])
    if phase.theta is not None:
        rope.train_at(student, phase.theta, task)
    args = arguments(run, phase, folder / "checkpoints", sets)
    if args.n_gpu > 1:
        args._n_gpu = 1  # a few rows on one; before training `preflight` asks for torchrun
    trainer = make_trainer(run, student, task, phase, sets, stores, args)
    student.train()
    assert isinstance(trainer.train_dataset, dict)
    for data_set, rows in trainer.train_dataset.items():
        with _named(f"data_sets.{data_set}"):
            batch = trainer.data_collator([rows[i] for i in range(min(TRIED_ROWS, len(rows)))])
            with trainer.compute_loss_context_manager():
                trainer.compute_loss(student, trainer._prepare_inputs(batch))


def _first_set(
    run: Run, phase: Phase, name: str, stores: Mapping[str, Vectors], folder: Path
) -> Dataset:
    """A training set of a data set's first rows; of labelled ones of all, which are then kept."""
    spec, rows, seed = run.recipe.data_sets[name], run.rows[name], run.recipe.seed
    if name in phase.replay:
        return replay_set(rows.first(FIRST_ROWS, folder), stores["text"])
    if spec.kind in LABELLED:
        draws = draws_of(run, phase, name)
        return training_set(spec, rows, stores, seed, phase.asks_of_labelled, draws)
    first = training_set(replace(spec, negatives=0), rows.first(FIRST_ROWS, folder), stores, seed)
    if spec.negatives:
        first = _with_others(rows, first, spec.negatives)
    return first


def _with_others(rows: Rows, first: Dataset, negatives: int) -> Dataset:
    """Positives of other rows in the place of negatives that are mined once there are vectors."""
    if (count := len(rows.distinct("positive"))) <= negatives:
        raise RecipeError(
            f"{negatives} hard negatives are to be mined among {count} distinct positives; add "
            f"rows, or lower data_sets.{rows.name}.negatives"
        )
    positives, labels = first["positive"][:], first["label"][:]
    first = first.remove_columns("label")
    for i in range(1, negatives + 1):
        place = i % len(positives)
        first = first.add_column(f"negative_{i}", positives[place:] + positives[:place])
    return first.add_column("label", labels)


def _check_rows(run: Run, phase_name: str, phase: Phase, name: str, first: Dataset) -> None:
    """Log a data set too small for a full batch; raise an error if no batch is possible."""
    spec, rows = run.recipe.data_sets[name], run.rows[name]
    if name in phase.replay:  # each text by itself: as many rows at least
        whole = rows.dataset.select_columns(rows.roles[:1])
    else:
        whole = first if spec.kind in LABELLED else rows.dataset.select_columns(rows.roles)
    here = batch_rows(phase, {name: whole})[name]
    wanted = rows_here(phase, phase.batch_sizes.get(name, phase.batch_size))
    if here < min(2, wanted):
        distinct = [f"{len(rows.distinct(role))} distinct in {role}" for role in rows.roles]
        raise RecipeError(
            f"a batch needs two rows whose texts all differ, better {wanted} (batch_size), and the "
            f"{len(rows)} rows of {spec.named} ({', '.join(distinct)}) hold no two; add rows"
        )
    if here < wanted and RANK == 0:
        logger.warning(
            "%s: %s has %s rows, of which %s or so have no text in common: its batches hold as "
            "many, not %s (%d of %d devices' in each of %d processes)",
            phase_name, name, f"{len(whole):,}", f"{here:,}", f"{wanted:,}",
            max(1, phase.devices // WORLD_SIZE), phase.devices, WORLD_SIZE,
        )  # fmt: skip


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Put a place before the message of what goes wrong there."""
    try:
        yield
    except RecipeError as error:
        text = str(error)
        raise RecipeError(text if where in text else f"{where}: {text}") from error
    except (OSError, ValueError, TypeError, FloatingPointError, ImportError, RuntimeError) as error:
        raise RecipeError(f"{where}: {error}") from error
