"""What the stages of a run share: its settings, models, store, and marks of what is done."""

from __future__ import annotations

import gc
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from sentence_transformers import SentenceTransformer
from transformers.trainer_utils import set_seed

import st_jv5
from st_jv5.checksums import of_file
from st_jv5.files import write_json
from st_jv5.folders.licenses import Licenses
from st_jv5.jina import is_jina_v5, load_model
from st_jv5.machine.about import commit, has_fast_bfloat16, machine, now
from st_jv5.machine.cpu import give_back_memory
from st_jv5.modules import AdapterRouter
from st_jv5.recipe.config import (
    LABELLED,
    PAIRED,
    DataSet,
    Phase,
    Recipe,
    Teacher,
    fingerprint,
    published_name,
)
from st_jv5.recipe.data.decontaminate import read_hashes
from st_jv5.recipe.data.prepare import held_texts, read_held_out, read_rows
from st_jv5.recipe.data.rows import Rows
from st_jv5.student.own_way import OwnWay
from st_jv5.task_table import PROMPTS
from st_jv5.teacher import (
    ColumnStores,
    EndpointTeacher,
    LocalTeacher,
    SeveralTeachers,
    TeacherStore,
)
from st_jv5.teacher.sources import resolve_model
from st_jv5.vector_source import VectorRows, Vectors

RANK, WORLD_SIZE, LOCAL_RANK = (
    int(os.environ.get(name, default))
    for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
)
"""This process among those that torchrun started."""


T = TypeVar("T")

NO_TEACHER = "none"
"""Stands in the place of a teacher's name among the licences, where there was none."""


def native_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 faster than float32."""
    return has_fast_bfloat16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@dataclass
class Run:
    """One run of a recipe: its settings, and what its stages share."""

    recipe: Recipe
    report_to: tuple[str, ...] = ("none",)
    """sentence-transformers' trackers: tensorboard, trackio, wandb, ..."""
    path: str = ""
    """Path of the recipe, as it was given."""
    resume_anyway: bool = False
    """Whether a phase continues from a checkpoint of other data, arguments or versions."""
    scratch: Path | None = None
    """For a look that leaves no trace (the plan): rows are prepared here, those that the output
    folder has are read there, and rows that a set of the Hub holds out are not asked for."""
    _made: dict[Any, Any] = field(default_factory=dict)
    _sources: dict[int, LocalTeacher | EndpointTeacher] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.recipe.folder

    @property
    def command(self) -> str:
        """What gives the same again, for records and the card; no absolute path is in it."""
        path = Path(self.path or f"{self.recipe.name}.yaml")
        if path.is_absolute() and path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        return f"st-jv5 train {published_name(path.as_posix())}"

    @property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def bfloat16(self) -> bool:
        asked = self.recipe.precision
        return native_bfloat16() if asked == "auto" else asked == "bfloat16"

    def forwards(self) -> AbstractContextManager[Any]:
        """The precision of forwards outside the trainer."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16)

    @cached_property
    def rows(self) -> dict[str, Rows]:
        """Data set -> its rows, for those that a phase trains on."""
        return {name: self.read(name) for name in self.used_sets}

    @property
    def _places(self) -> tuple[Path, Path | None]:
        """Where rows are prepared, and where they may be ready."""
        own = self.folder / "data"
        return (self.scratch, own) if self.scratch else (own, None)

    def read(self, name: str) -> Rows:
        """A data set's rows, those with a test text left out."""
        spec, seed = self.recipe.data_sets[name], self.recipe.seed
        folder, ready = self._places
        barred, held = self._barred, self._held
        return read_rows(name, spec, seed, folder, barred=barred, held=held, ready=ready)

    def held_out(self, name: str) -> Rows:
        """The rows of a data set that no phase trains on: ``held_out`` of them, or fewer.

        They have the roles of the set; ``rows[name]`` are the others.
        """
        spec, seed = self.recipe.data_sets[name], self.recipe.seed
        folder, ready = self._places
        return read_held_out(name, spec, seed, folder, barred=self._barred, ready=ready)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What is made of the run once, and kept for those who ask again."""
        if key not in self._made:
            self._made[key] = make()
        found: T = self._made[key]
        return found

    @cached_property
    def _held(self) -> frozenset[int]:
        """Hashes of the texts of every held-out row of the recipe."""
        sets = self.recipe.data_sets.items()
        parts = [n for n, spec in sets if spec.held_out and (spec.is_local or not self.scratch)]
        return frozenset[int]().union(*(held_texts(self.held_out(name)) for name in parts))

    @cached_property
    def _barred(self) -> frozenset[int]:
        return frozenset[int]().union(*map(read_hashes, self.recipe.decontaminate))

    @property
    def used_sets(self) -> dict[str, DataSet]:
        """The data sets that a phase trains on."""
        used = {name for phase in self.recipe.phases.values() for name in phase.mix}
        used |= {*self.recipe.student.vocabulary}
        return {name: spec for name, spec in self.recipe.data_sets.items() if name in used}

    @cached_property
    def labels(self) -> dict[str, frozenset[str]]:
        """Kind of text -> the labels of it that a phase trains on."""
        found: dict[str, set[str]] = defaultdict(set)
        for phase in self.recipe.phases.values():
            for name in phase.data:
                spec = self.recipe.data_sets[name]
                if spec.kind == "labelled":
                    found[spec.kind_of_text] |= self.rows[name].labels
        return {kind: frozenset(labels) for kind, labels in found.items()}

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """The recipe's teachers, first to last."""
        first = (self.recipe.teacher,) if self.recipe.teacher else ()
        return (*first, *self.recipe.more_teachers)

    def source(self, number: int) -> LocalTeacher | EndpointTeacher:
        """What computes a teacher's vectors; it is loaded when it is used."""
        if number not in self._sources:
            spec = self.teachers[number]
            if spec.endpoint is not None:
                settings = asdict(spec.endpoint) | {"model": spec.endpoint.model or spec.model}
                self._sources[number] = EndpointTeacher(**settings)
            else:
                auto = spec.dtype == "auto"
                self._sources[number] = LocalTeacher(
                    spec.model,
                    spec.revision,
                    pooling=spec.pooling,
                    dtype=None if auto else spec.dtype,
                    autocast=auto and self.bfloat16,
                    device=spec.device or (f"cuda:{LOCAL_RANK}" if self.device == "cuda" else None),
                )
        return self._sources[number]

    def release(self) -> None:
        """Let go of the teachers and their memory; one that is asked later is loaded again."""
        if self._sources:
            self._sources.clear()
            gc.collect()  # a model and its card point at each other
            give_back_memory()
            torch.cuda.empty_cache()

    def teacher(self, number: int = 0) -> SentenceTransformer:
        """A teacher as a model, for evaluation; one behind an endpoint has none here."""
        source, spec = self.source(number), self.teachers[number]
        assert isinstance(source, LocalTeacher)
        model = source.model
        model.max_seq_length = min(spec.max_tokens, model.max_seq_length or spec.max_tokens)
        return model

    def spaces(self, prompt_name: str | None) -> list[TeacherStore]:
        """Each teacher's vectors behind one of its prompts; None is ``teacher.prompt``."""
        return [self.space(number, prompt_name) for number in range(len(self.teachers))]

    def space(self, number: int, prompt_name: str | None) -> TeacherStore:
        """One teacher's vectors, its space made if it is new."""
        spec = self.teachers[number]
        store = TeacherStore.open(self.folder / spec.store, create=True)
        key: dict[str, Any] = {
            "teacher": spec.source or spec.model,
            "revision": spec.revision,
            "prompt": spec.prompt if prompt_name is None else spec.prompts[prompt_name],
            "max_tokens": spec.max_tokens,
            "dtype": spec.store_dtype,
            "pooling": spec.pooling,
        }
        known = [space.dim for space in store.spaces() if asdict(space) | key == asdict(space)]
        dim = known[0] if len(known) == 1 else self.source(number).dim()
        return store.space(**key, dim=dim, shards=None if known else spec.shards)

    def roles(self, phase: Phase) -> list[str]:
        """The roles of a phase's data sets whose texts the teacher embeds; none without one."""
        if not self.teachers:
            return []
        kinds = {self.recipe.data_sets[name].kind for name in phase.data}
        roles = ["query", "positive"] if kinds & PAIRED else []
        asks = bool(kinds & LABELLED) and phase.asks_of_labelled
        if "texts" in kinds or asks or phase.replay:
            roles.append("text")
        return roles

    def role_stores(self, phase: Phase) -> dict[str, Vectors]:
        """Where the vectors of each role's texts are read."""
        weights = [spec.weight for spec in self.teachers]
        found: dict[str, Vectors] = {}
        for role in self.roles(phase):
            spaces = self.spaces(phase.teacher_prompts.get(role))
            found[role] = spaces[0] if len(spaces) == 1 else SeveralTeachers(spaces, weights)
        return found

    def loss_store(self, phase: Phase, roles: Mapping[str, Vectors]) -> VectorRows | None:
        """Where a phase's loss reads by column: one place, one per column, or (None) nowhere.

        Args:
            phase: The phase, which names prompts of the teacher.
            roles: What :meth:`role_stores` gave.
        """
        asked = phase.teacher_prompts
        if "query" not in roles:
            return roles.get("text")
        if asked.get("query") == asked.get("positive"):
            return roles["query"]
        return ColumnStores([roles["query"], roles["positive"]])

    def told_of(self, store: Vectors | VectorRows) -> dict[str, Any]:
        """What a model records of the teachers whose vectors it was trained on; without paths."""
        names = {
            each.source or each.model: published_name(each.model, each.source)
            for each in self.teachers
        }

        def clean(told: Any) -> Any:
            if isinstance(told, dict):
                return {key: clean(value) for key, value in told.items()}
            if isinstance(told, list):
                return [clean(value) for value in told]
            return names.get(told, told) if isinstance(told, str) else told

        return dict(clean(store.describe()))

    @cached_property
    def prompts(self) -> dict[str, str]:
        """The student's: name -> text."""
        asked = self.recipe.student.prompts
        if asked == "own":
            name = resolve_model(self.recipe.student.name)
            return dict(PROMPTS) if is_jina_v5(name) else OwnWay.of(name).prompts()
        return dict(PROMPTS) if asked == "paper" else dict.fromkeys(PROMPTS, "")

    def new_student(self) -> SentenceTransformer:
        """The student before any training: made of the base, or the finished model as it is."""
        set_seed(self.recipe.seed)
        student = self._finished() if self.recipe.student.model else self._made_of_base()
        self.tell_licenses(student[0].licenses)
        return student

    def _finished(self) -> SentenceTransformer:
        model = load_model(resolve_model(self.recipe.student.model))
        if isinstance(model[0], AdapterRouter):
            return model
        length = model.max_seq_length
        student = st_jv5.new_student(model)
        student.max_seq_length = min(length or student.max_seq_length, student.max_seq_length)
        return student

    def _made_of_base(self) -> SentenceTransformer:
        spec = self.recipe.student
        student = st_jv5.new_student(
            resolve_model(spec.base),
            layers=spec.layers
            if isinstance(spec.layers, int) or spec.layers is None
            else list(spec.layers),
            append_eos=spec.append_eos,
            matryoshka_dims=spec.matryoshka_dims or None,
            vocabulary=self._words() if spec.vocabulary else None,
            pooling=spec.pooling or None,
            prompts=self.prompts,
        )
        self.cut_inputs(student)
        return student

    def cut_inputs(self, student: SentenceTransformer) -> None:
        """Cut a student's inputs where the recipe says."""
        student.max_seq_length = min(self.recipe.student.max_tokens, student.max_seq_length)

    def tell_licenses(self, licenses: Licenses) -> None:
        """Put what the recipe says of licences in the place of what was said before.

        A finished st_jv5 model records the licences of its base, teachers and data; these are kept.
        """
        spec, base = self.recipe.student, licenses.base
        unnamed = published_name(spec.name)
        if not spec.model or not base or base.get(unnamed) == "unknown":
            base.pop(unnamed, None)
            base[published_name(spec.name, spec.source)] = spec.license
        if not spec.model:
            licenses.teacher, licenses.data = {}, {}
        licenses.teacher.pop(NO_TEACHER, None)
        for each in self.teachers:
            licenses.teacher[published_name(each.model, each.source)] = each.license
        if not licenses.teacher:
            licenses.teacher[NO_TEACHER] = "not needed"
        for name, data_set in self.used_sets.items():
            licenses.data[name] = data_set.license

    def _words(self) -> Iterator[str]:
        """Texts whose tokens the student keeps, its prompts among them."""
        yield from self.prompts.values()
        for name in self.recipe.student.vocabulary:
            for role in self.rows[name].roles:
                yield from self.rows[name].column(role)

    def log_of(self, phase: str) -> Path:
        """A phase's record, by the name of its settings."""
        return self.folder / phase.replace(".", "/") / "log.json"

    @cached_property
    def start_hash(self) -> str | None:
        """Hash of the weights of a finished model in a folder; None if the base is trained."""
        folder = Path(resolve_model(self.recipe.student.model or "."))
        if not self.recipe.student.model or not folder.is_dir():
            return None
        files = sorted(folder.rglob("*.safetensors"))
        return fingerprint([[str(file.relative_to(folder)), of_file(file)] for file in files])

    @property
    def base(self) -> Path:
        """The frozen model that the adapters stand on."""
        return self.folder / "base" / "model"


def record_settings(run: Run) -> None:
    """Write the resolved settings, versions, commit, machine and precision beside the results."""
    packages = ("st-jv5", "sentence-transformers", "transformers", "peft", "torch", "datasets")
    write_json(
        run.folder / "run.json",
        {
            "command": run.command,
            "recipe": asdict(run.recipe),
            "text_kinds": sorted(run.recipe.text_kinds),
            "versions": {name: version(name) for name in packages},
            "python": sys.version.split()[0],
            "commit": commit(),
            "machine": machine(),
            "time": now(),
            "device": run.device,
            "threads": torch.get_num_threads(),
            "precision": "bfloat16" if run.bfloat16 else "float32",
        },
    )


# ------------------------------------------------------------------------- what is done
