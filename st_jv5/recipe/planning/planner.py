"""What a recipe will cost: tokens, operations, memory, rows."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from tokenizers import Tokenizer

from st_jv5.batching import default_budget, row_chunks
from st_jv5.recipe.config import LABELLED, PAIRED, AdapterPhase, DataSet, Phase
from st_jv5.recipe.context import Run
from st_jv5.recipe.data.rows import Rows
from st_jv5.recipe.planning.cost import Array, Chunk, Costs, Weights, optimizer_bytes, read_config
from st_jv5.recipe.planning.probe import Machine, probe
from st_jv5.roles import NO_TEXTS, is_negative
from st_jv5.task_table import PROMPTS, TASKS
from st_jv5.teacher.sources import resolve_model

Column = tuple[str, str | None]
"""Texts that the teacher embeds: where they stand, and the teacher's prompt before them."""

GIB = 1 << 30


CHARACTERS_PER_TOKEN = 4.7
"""Characters per token of English text in WordPiece, measured on wikipedia extracts; used if there
is no tokenizer."""


TEXT_BYTES = 32
"""Bytes of a text on disk besides its characters: its end, its hash and its row of the teacher's
store."""


DRAWING_BYTES = 12
"""Bytes of a row in a process' memory: its place in the order of a pass. All else is mapped."""


SPECIAL_TOKENS = 2


SAMPLE = 1000
"""Texts of a role that are tokenised."""


DRAWN = 100
"""Batches of a data set that are drawn from their lengths: their mean is the time, the largest the
memory."""


REHEARSED = 12
"""Steps that the probe repeats for each kind of phase, the largest among them."""


MOST_CHUNKS = 8
"""Chunks, at most, that a step of the probe is made of."""


OF_A_PROCESS = ("process", "kernels and holes", "teacher's vectors")
"""Memory that is counted on a CPU alone; the vectors' pages are mapped, and read at random."""


@dataclass(frozen=True)
class SetFacts:
    """How much there is in a data set."""

    rows: int | None
    tokens: dict[str, Array]
    """Role -> tokens of some of its texts, uncut, or their mean alone; empty: not known, and the
    limit is taken."""
    disk: float | None = None
    """Bytes of the rows once they are prepared; None: not known."""


@dataclass(frozen=True)
class PhasePlan:
    """What one phase costs."""

    name: str
    steps: int
    devices: int
    tokens: float
    """Tokens of all steps, with padding, and with those that the base reads for relational
    distillation."""
    flops: float
    seconds: float | None
    """Here; None where it was not measured."""
    memory: dict[str, float]
    """What for -> bytes per device."""

    @property
    def bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def on_device(self) -> float:
        """Bytes without those that only a process on a CPU holds."""
        return self.bytes - sum(self.memory.get(part, 0.0) for part in OF_A_PROCESS)


@dataclass(frozen=True)
class TeacherPlan:
    """What the teacher's vectors cost."""

    texts: int | None
    tokens: float
    flops: float
    seconds: float | None
    disk: float


class Planner:
    """Reads a recipe and what of its data lies on this disk."""

    def __init__(self, run: Run) -> None:
        self.run, self.recipe = run, run.recipe
        self.student = read_config(self.recipe.student, "student")
        teacher = self.recipe.teacher
        local = teacher is not None and teacher.endpoint is None
        self.teacher = read_config(teacher, "teacher") if teacher and local else None
        self.costs = Costs(self.student, run.bfloat16)
        self.machine: Machine | None = None
        self._temporary = TemporaryDirectory(ignore_cleanup_errors=True)
        self._look = replace(run, scratch=Path(self._temporary.name), _made={})
        self.facts = {name: self._facts(name, spec) for name, spec in run.used_sets.items()}

    def measure(self) -> None:
        """Time this machine, so that phases have seconds.

        Each is that of its forwards and backwards, chunk by chunk, and of the optimizer; reading
        texts, the loss's own maths and checkpoints (some percent) are not counted.
        """
        steps: dict[str, list[list[Chunk]]] = {}
        for name, phase in self.recipe.phases.items():
            own = [step for one in phase.mix for step in self._rehearsal(phase, one)]
            steps.setdefault(kind_of(*adapter_settings(name, phase)), []).extend(own)
            if is_cached(phase) or reads_base(name, phase):
                steps.setdefault("reading", []).extend(own)
        for kind, all_steps in steps.items():
            largest = max(all_steps, key=self.costs.kept)
            random.Random(self.recipe.seed).shuffle(all_steps)
            steps[kind] = [*all_steps[: REHEARSED - 1], largest]
        self.machine = probe(self.student, self.teacher, self.run.bfloat16, steps)

    def _rehearsal(self, phase: Phase, data_set: str) -> Iterator[list[Chunk]]:
        """Steps on a data set, no larger than a machine like this one trains with."""
        budget = default_budget(self.run.device)
        for chunks in self.batches(phase, data_set):
            one_by_one = [[chunk] for chunk in chunks]
            for step in one_by_one if is_cached(phase) else [chunks]:
                small = [(min(rows, max(1, budget // n)), min(n, budget)) for rows, n in step]
                yield small[:MOST_CHUNKS]

    # ---------------------------------------------------------------------------------- the data

    def _facts(self, name: str, spec: DataSet) -> SetFacts:
        told = {role: np.array([mean]) for role, mean in spec.tokens.items()}
        if not spec.is_local:
            rows = spec.limit or spec.rows
            return SetFacts(rows, told, self._disk(spec, rows, told))
        found = self._look.read(name)
        return SetFacts(len(found), {**self._lengths(found), **told}, found.bytes)

    def _disk(self, spec: DataSet, rows: int | None, told: dict[str, Array]) -> float | None:
        """Bytes of a set that is not here: its texts by their tokens, and what lies with each."""
        roles = [role for role in spec.columns if role not in NO_TEXTS]
        means = [told.get("positive" if is_negative(role) else role) for role in roles]
        if rows is None or any(mean is None for mean in means):
            return None
        tokens = sum(float(mean[0]) for mean in means if mean is not None)
        return rows * (tokens * CHARACTERS_PER_TOKEN + len(roles) * TEXT_BYTES)

    def _lengths(self, rows: Rows) -> dict[str, Array]:
        draw = random.Random(self.recipe.seed)
        drawn = np.array(draw.sample(range(len(rows)), min(SAMPLE, len(rows))), dtype=np.int64)
        texts = {role: rows.texts(rows.numbers(role)[drawn]) for role in rows.roles}
        return {role: np.array([*map(self._length, found)]) for role, found in texts.items()}

    @cached_property
    def prompt_tokens(self) -> int:
        """Tokens of the student's longest prompt; of the paper's, for a base that is not here."""
        spec = self.recipe.student
        here = spec.prompts != "own" or Path(resolve_model(spec.name)).is_dir()
        longest = max(map(len, (self.run.prompts if here else PROMPTS).values()))
        return math.ceil(longest / CHARACTERS_PER_TOKEN)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The student's, where it lies on this disk."""
        file = Path(resolve_model(self.recipe.student.name)) / "tokenizer.json"
        if not file.is_file():
            return None
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def _length(self, text: str) -> float:
        if self.tokenizer is None:
            return SPECIAL_TOKENS + len(text) / CHARACTERS_PER_TOKEN
        return len(self.tokenizer.encode(text).ids)

    def columns(self, name: str, limit: int, replayed: bool = False) -> list[Array]:
        """Tokens of some texts of each column, behind their prompt and cut at the limit."""
        spec, facts = self.recipe.data_sets[name], self.facts[name]
        if replayed:  # every text by itself
            texts = np.concatenate([*facts.tokens.values()] or [np.array([limit])])
            return [np.clip(texts + self.prompt_tokens, 1, limit)]
        if spec.kind == "texts":
            roles = ["text"]
        elif spec.kind in LABELLED:
            roles = ["text"] * (2 + (spec.negatives or 7))
        else:
            own = sum(map(is_negative, spec.columns))
            roles = ["query", "positive", *["positive"] * (own or spec.negatives)]
        known, whole = facts.tokens, np.array([limit])
        lengths = [known.get(role, known.get("query", whole)) for role in roles]
        return [np.clip(texts + self.prompt_tokens, 1, limit) for texts in lengths]

    def rows_of(self, phase: Phase, data_set: str) -> int | None:
        """What a phase reads of a data set in one pass; None: not known."""
        facts, spec = self.facts[data_set], self.recipe.data_sets[data_set]
        texts = 2 if data_set in phase.replay and spec.kind in PAIRED else 1
        return facts.rows and texts * facts.rows

    # -------------------------------------------------------------------------------- the phases

    def phases(self) -> Iterator[PhasePlan]:
        """Every phase that trains, in order."""
        for name, phase in self.recipe.phases.items():
            yield self._phase(name, phase)

    def _phase(self, name: str, phase: Phase) -> PhasePlan:
        rank, dropout = adapter_settings(name, phase)
        weights = self.costs.weights(rank)
        from_base, cached = reads_base(name, phase), is_cached(phase)
        settings = rank, phase.gradient_checkpointing, dropout
        tokens = flops = seconds = most = 0.0
        for data_set in phase.mix:
            batches = self.batches(phase, data_set)
            part = phase.steps * phase.share(data_set) / len(batches)  # steps of each
            for chunks in batches:
                rows, widths = np.array(chunks).T
                cost = self.costs.forward(widths, rank, True, *settings[1:])
                passes = [(kind_of(rank, dropout), rows * (cost.flops + cost.backward_flops))]
                if cached:
                    passes.append(("reading", rows * cost.flops))
                if from_base:
                    read = self.costs.forward(widths, trained=False)
                    passes.append(("reading", rows * read.flops))
                tokens += part * phase.devices * (1 + from_base) * rows @ widths
                flops += part * phase.devices * sum(work.sum() for _, work in passes)
                kept = [self.costs.kept([one], *settings) for one in chunks]
                most = max(most, max(kept) if cached else sum(kept))  # GradCache keeps one chunk's
                if self.machine is not None:
                    for kind, work in passes:
                        seconds += part * self.machine.speeds[kind].seconds(work, widths).sum()
        if self.machine is not None:
            seconds += phase.steps * weights.trained * self.machine.update
        return PhasePlan(
            name,
            phase.steps,
            phase.devices,
            tokens,
            flops,
            seconds if self.machine is not None else None,
            self._memory(phase, weights, most),
        )

    def batches(self, phase: Phase, data_set: str) -> list[list[Chunk]]:
        """Some batches of a data set on one device, cut into chunks as they are embedded."""
        limit = phase.max_tokens.get(data_set, self.recipe.student.max_tokens)
        columns = self.columns(data_set, limit, data_set in phase.replay)
        size = phase.batch_sizes.get(data_set, phase.batch_size)
        budget, most_rows = (phase.loss.get(f"mini_batch_{unit}") for unit in ("tokens", "size"))
        if not isinstance(budget, int):
            budget = default_budget(self.run.device)
        draw = np.random.default_rng(self.recipe.seed)
        found = []
        for _ in range(DRAWN):
            lengths = np.concatenate([draw.choice(texts, size) for texts in columns])
            whole = torch.from_numpy(np.ceil(lengths).astype(int))
            chunks = row_chunks(whole, budget, most_rows if isinstance(most_rows, int) else None)
            found.append([(len(rows), int(whole[rows].max())) for rows in chunks])
        return found

    def _memory(self, phase: Phase, weights: Weights, activations: float) -> dict[str, float]:
        found: dict[str, float] = dict(optimizer_bytes(weights))
        found["activations"] = activations
        if self.machine is not None and self.machine.process:
            texts = sum(count or 0 for count, _ in self._distilled(phase).values())
            own = self.machine.process, self.machine.holes, texts * self.row_bytes
            found |= zip(OF_A_PROCESS, own, strict=True)
        return found

    # ------------------------------------------------------------------------------- the teacher

    def teaching(self) -> TeacherPlan:
        """The vectors of every text that a phase distils or mines, each text once."""
        costs = Costs(self.teacher, self.run.bfloat16) if self.teacher is not None else None
        columns: dict[Column, tuple[int | None, Array]] = {}
        for phase in self.recipe.phases.values():
            columns = self._distilled(phase) | columns  # the first that names it
        texts: int | None = 0
        tokens = flops = seconds = 0.0
        for count, lengths in columns.values():
            texts = None if texts is None or count is None else texts + count
            tokens += (count or 0) * lengths.mean()
            if costs is not None:
                each = costs.forward(lengths, 0, False).flops
                flops += (count or 0) * each.mean()
                if self.machine is not None:
                    rows = np.maximum(1, default_budget(self.run.device) // lengths)
                    spent = self.machine.speeds["teacher"].seconds(rows * each, lengths) / rows
                    seconds += (count or 0) * spent.mean()
        measured = seconds if self.machine is not None else None
        return TeacherPlan(texts, tokens, flops, measured, (texts or 0) * self.row_bytes)

    def _distilled(self, phase: Phase) -> dict[Column, tuple[int | None, Array]]:
        """Columns of texts that a phase distils or mines: how many, and tokens of some."""
        if self.recipe.teacher is None:
            return {}
        most = self.recipe.teacher.max_tokens
        found: dict[Column, tuple[int | None, Array]] = {}
        for name in phase.mix:
            data_set, facts = self.recipe.data_sets[name], self.facts[name]
            distils = data_set.kind in ("pairs", "long", "texts") or name in phase.replay
            distils = distils or (data_set.kind in LABELLED and phase.asks_of_labelled)
            roles = [r for r in data_set.columns if r != "label" and not is_negative(r)]
            for role in roles if distils else ():
                rows = f"{data_set.named} {data_set.subset} {data_set.where} "
                if data_set.kind == "long" and role == "positive":  # other texts than its file's
                    rows += f"joined to {data_set.characters} "
                prompt = phase.teacher_prompts.get("text" if name in phase.replay else role)
                column = rows + data_set.columns[role], prompt
                lengths = facts.tokens.get(role, np.array([most]))
                found.setdefault(column, (facts.rows, np.clip(lengths, 1, most)))
        return found

    @property
    def row_bytes(self) -> int:
        """Bytes of a text in the teacher's store: its vector and its hash; 0 without a teacher."""
        if self.recipe.teacher is None:
            return 0
        width = self.teacher.hidden_size if self.teacher is not None else 0
        return width * (4 if self.recipe.teacher.store_dtype == "float32" else 2) + 16


def adapter_settings(name: str, phase: Phase) -> tuple[int, float]:
    """Rank and dropout of a phase's adapter; 0 where it trains the base."""
    if not isinstance(phase, AdapterPhase):
        return 0, 0.0
    table = TASKS[name.removeprefix("adapters.")].dropout
    return phase.rank, table if phase.dropout is None else phase.dropout


def kind_of(rank: int, dropout: float) -> str:
    """What the probe calls a phase's work."""
    if not rank:
        return "base"
    return "dropout" if dropout else "adapter"


def reads_base(name: str, phase: Phase) -> bool:
    """Whether the base embeds every batch, too: relational distillation from it."""
    weight = phase.loss.get("rkd_weight", 20 if name == "adapters.classification" else 0)
    return weight != 0 and not phase.asks_of_labelled


def is_cached(phase: Phase) -> bool:
    """Whether chunks run twice (GradCache)."""
    return bool(phase.loss.get("mini_batch_tokens") or phase.loss.get("mini_batch_size"))
