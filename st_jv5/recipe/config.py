"""A recipe's settings: frozen dataclasses, read strictly from YAML.

The YAML holds only what differs from the defaults. Unknown keys, wrong types and values out of
range raise :class:`~st_jv5.recipe.strict.RecipeError` with the dotted path of the setting.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from st_jv5.losses import Schedule


@dataclass(frozen=True)
class DataSet:
    """One source of training rows."""

    path: str
    """A parquet or jsonl file, seen from the recipe's folder (``~`` is the home folder), or a Hub
    id."""
    columns: dict[str, str]
    """Role -> column. pairs: query, positive, and negative_1, ... where the set has hard negatives;
    scored: query, positive, score; texts, paragraphs: text; labelled: text, label; long: query,
    positive; synset_pairs: none."""
    kind: Literal["pairs", "scored", "texts", "labelled", "paragraphs", "long", "synset_pairs"] = (
        "pairs"
    )
    """What a row becomes; paragraphs parts each text and labels the parts by their text; long joins
    positives into documents of ``characters``, and a query asks for the one that holds its own;
    synset_pairs scores WordNet glosses by path similarity."""
    subset: str = ""
    """Of a Hub data set: its configuration."""
    split: str = "train"
    """Of a Hub data set."""
    revision: str = ""
    """Of a Hub data set."""
    where: dict[str, str] = field(default_factory=dict)
    """Column -> pattern that a row must match: ``*`` allowed, several joined by ``|``, and ``!``
    before one that bars the row."""
    limit: int | None = None
    """Most rows to take, drawn by the recipe's seed."""
    license: str = "unknown"
    """Of the text; stands in the model card."""
    negatives: int = 0
    """Hard negatives per row, mined by the teacher among the set's positives (pairs), or texts of
    other labels (labelled)."""
    characters: int = 8_000
    """Least length of a joined document (long)."""
    rows: int | None = None
    """How many there are, for the plan, where the set is not on this disk."""
    tokens: dict[str, float] = field(default_factory=dict)
    """Role -> mean tokens of its texts, for the plan; else counted from the file, or the limit."""
    text_kind: str = ""
    """Kind of its text, such as wikipedia; empty: the file's name without its ending (a Hub id: its
    last part). The report tells tasks of the kinds that were trained on from all others."""
    source: str = ""
    """Where its name and columns were seen."""
    verified: bool = True
    """False: name and columns are from memory, and were not seen; the plan says so."""
    folder: str = ""
    """What ``path`` is seen from; where a recipe does not say, its own folder, or its
    ``data_folder``."""

    @property
    def is_file(self) -> bool:
        """Whether it lies on this disk; else it is the Hub's."""
        return Path(self.path).suffix in (".parquet", ".jsonl", ".json")

    @property
    def file(self) -> Path:
        """Where it lies on this disk."""
        return Path(self.folder, Path(self.path).expanduser())

    @property
    def kind_of_text(self) -> str:
        """``text_kind``, or what the path says."""
        path = Path(self.path)
        return self.text_kind or (path.stem if self.is_file else path.name)


@dataclass(frozen=True)
class Endpoint:
    """A server that speaks OpenAI's ``/v1/embeddings`` and has the teacher loaded."""

    url: str
    """Up to ``/v1``, such as ``http://localhost:8000/v1``."""
    model: str = ""
    """The model's name there; empty: as ``teacher.model``."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds its key; a local server wants none."""
    batch_size: int = 32
    """Texts per request."""
    concurrency: int = 8
    """Requests under way at once."""
    retries: int = 6
    """Further tries of a request, each after a longer wait."""
    timeout_seconds: float = 120.0
    """For one request."""
    extra_body: dict[str, bool | int | float | str] = field(default_factory=dict)
    """More fields of each request, such as ``truncate_prompt_tokens: 512`` for vLLM."""


@dataclass(frozen=True)
class Teacher:
    """The big model."""

    model: str
    """Hub id, folder, or ``package:NAME/FOLDER`` for a model that a Python package carries."""
    revision: str = ""
    """Of a Hub model."""
    prompt: str = ""
    """Put before each text."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Other prompts by a name, which a phase's ``teacher_prompts`` asks for."""
    max_tokens: int = 512
    """Where its input is cut."""
    pooling: str = ""
    """How it pools, where that is not the model's own way: lasttoken, mean, cls."""
    weight: float = 1.0
    """Of its cosine among several teachers' (``more_teachers``)."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Of its weights. auto: as they are stored, forwards as the recipe's ``precision`` says."""
    device: str = ""
    """Such as ``cuda:1``; empty: the fastest there is."""
    endpoint: Endpoint | None = None
    """Ask a server for its vectors instead of loading it."""
    source: str = ""
    """Hub id to name in the store and the model card, where the above is none."""
    license: str = "unknown"
    """Of its weights; stands in the model card."""
    store: str = "../teacher"
    """Folder of its vectors, relative to the recipe's output: runs beside each other share it."""
    shards: int = 16
    """Of a new space of the store: how many processes can fill it at once."""
    store_dtype: Literal["float16", "float32", "bfloat16"] = "float16"
    """How its vectors are kept."""
    config: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Its architecture, as in its ``config.json``, for the plan where the model is not on this
    disk."""


@dataclass(frozen=True)
class Student:
    """The small model."""

    base: str
    """As ``teacher.model``."""
    source: str = ""
    """Hub id to name in the model card, where the above is none."""
    license: str = "unknown"
    """Of its weights; stands in the model card."""
    layers: tuple[int, ...] | int | None = None
    """Blocks to keep: indices, or how many."""
    append_eos: bool | None = None
    """End every input with EOS or SEP; None: where the last token is pooled."""
    pooling: Literal["", "mean", "cls", "lasttoken"] = ""
    """How tokens become one vector; empty: the base's own way, and the last token where it does not
    say."""
    prompts: Literal["own", "paper", "none"] = "own"
    """own: the base's, and the paper's where it does not say; paper: "Query: ", "Document: "; none:
    empty ones."""
    matryoshka_dims: tuple[int, ...] = ()
    """Dims to train; empty: the default ones."""
    max_tokens: int = 512
    """Where its input is cut, in training and when served."""
    vocabulary: tuple[str, ...] = ()
    """Data sets whose tokens are kept, all others dropped; empty: the whole vocabulary."""
    serve_theta: float | None = None
    """RoPE's theta of the finished model; None: the base's."""
    rotate: bool = False
    """Put the finished model's dims in the order of what they say, so that it can be cut to few."""
    config: dict[str, bool | int | float | str] = field(default_factory=dict)
    """As ``teacher.config``."""

    @property
    def base_name(self) -> str:
        """The base's name for people: all-MiniLM-L6-v2."""
        name = self.source or self.base
        package = name.removeprefix("package:")
        return package if package != name else Path(name).name


@dataclass(frozen=True)
class Phase:
    """One run of the trainer."""

    data: dict[str, float]
    """Data set -> weight with which a batch is drawn from it."""
    steps: int
    """Optimizer steps."""
    replay: dict[str, float] = field(default_factory=dict)
    """Further data sets -> weight: each of their texts by itself, distilled and nothing else. Text
    of other kinds keeps the student from forgetting what it knows of it."""
    replay_weight: float = 1.0
    """Of distillation in a batch of ``replay``."""
    max_epochs: float = 10.0
    """Most passes over one data set; one that was read so often is drawn no more."""
    batch_size: int = 64
    """Rows per step and device."""
    batch_sizes: dict[str, int] = field(default_factory=dict)
    """Data set -> rows per step and device, where they differ."""
    devices: int = 1
    """How many batches make a step. As many processes take one each; fewer take several in one
    batch, so that a step has the same rows. A data set with fewer rows gives those it has."""
    max_tokens: dict[str, int] = field(default_factory=dict)
    """Data set -> where its texts are cut, where that differs from ``student.max_tokens``."""
    temperature: float = 1.0
    """Draw with probabilities as the weights of ``data`` to the power of 1/temperature."""
    learning_rate: float = 1.0e-4
    """Peak; linear to 0 after the warm-up."""
    temperature_rate: float = 1.0e-3
    """Peak of a learned temperature's logarithm (``loss: {learn_temperature: true}``)."""
    warmup_steps: int = 0
    """Linear from 0."""
    weight_decay: float = 0.01
    """AdamW's."""
    max_grad_norm: float = 1.0
    """Clip above this norm."""
    fit_projection: int = 20_000
    """Texts, drawn from all of the phase's data sets, on which a projection that is not there yet
    is fitted by least squares before the first step; 0: it starts as a rectangular identity, which
    joins unrelated spaces."""
    own_map_dims: tuple[int, ...] = ()
    """Matryoshka dims at which a cut student meets a projection of its own, instead of the first
    columns of the whole one."""
    theta: float | None = None
    """RoPE's theta while it trains; None: the base's."""
    gradient_checkpointing: bool = False
    """Keep a block's input alone, and run the block again in the backward pass."""
    dim_weights: tuple[float, ...] = ()
    """One per Matryoshka dim; empty: all alike."""
    checkpoint_steps: int = 500
    """A checkpoint every so many steps; an interrupted phase goes on from the last."""
    teacher_prompts: dict[str, str] = field(default_factory=dict)
    """Role (query, positive, text) -> name of the teacher's prompt; where none is named:
    ``teacher.prompt``."""
    loss: dict[str, int | float | bool | str | Schedule] = field(default_factory=dict)
    """Overrides of the task's loss, such as ``temperature: 0.05``; a weight may move over the
    steps: ``gor_weight: {start: 0.0, end: 1.0, steps: 100}``. A loss that holds texts of a step
    against each other gathers those of all processes, so that it is the same at any number of
    them; ``gather_across_devices: false`` leaves each process to its own."""

    @property
    def mix(self) -> dict[str, float]:
        """All data sets that a batch is drawn from, with their weights."""
        return {**self.data, **self.replay}

    def share(self, data_set: str) -> float:
        """Of the batches, in 0..1, if no set is used up."""
        weights = {name: weight ** (1 / self.temperature) for name, weight in self.mix.items()}
        return weights[data_set] / sum(weights.values())

    def passes(self, data_set: str, rows: int) -> float:
        """How often the steps read a data set of so many rows, if nothing stops them."""
        size = self.batch_sizes.get(data_set, self.batch_size) * self.devices
        return self.steps * size * self.share(data_set) / rows

    @property
    def asks_of_labelled(self) -> bool:
        """Whether the loss needs teacher vectors of labelled texts."""
        return self.loss.get("rkd_teacher") == "labels"


@dataclass(frozen=True)
class AdapterPhase(Phase):
    """The training of one adapter."""

    rank: int = 32
    """LoRA rank."""
    alpha: int = 32
    """LoRA alpha."""
    dropout: float | None = None
    """LoRA dropout; None: the task table's."""
    average: tuple[int, ...] = ()
    """Average the checkpoints of these steps and the last one; empty: the last alone."""
    strengths: tuple[float, ...] = (1.0,)
    """Factors on the adapter's update. Several: each is scored on the adapter's validation tasks,
    and chosen among as ``keep`` is; the base stands for before training."""


@dataclass(frozen=True)
class Evaluation:
    """What is measured at the end."""

    tasks: tuple[str, ...] = ()
    """Local tasks by name; empty: all."""
    split: Literal["test", "validation"] = "test"
    """Choose settings on validation; report on test."""
    resamples: int = 1000
    """Of the bootstrap behind every interval."""
    dims: tuple[int, ...] = ()
    """Dims of the score-by-dim curve; empty: the student's."""
    precisions: tuple[Literal["float32", "float16", "int8", "binary", "binary-rescored"], ...] = (
        "float32",
    )
    """How vectors are stored, for the curves of retrieval and STS."""
    blends: dict[str, dict[str, float]] = field(default_factory=dict)
    """Name -> adapter -> weight: blends of the finished adapters to measure on every task."""
    beside: dict[str, str] = field(default_factory=dict)
    """Label -> another model to measure on the same tasks, as ``teacher.model``. The base that the
    student is made of is always measured, and what the report compares with."""


@dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on."""

    name: str
    """Names the output and the model card."""
    teacher: Teacher
    student: Student
    data_sets: dict[str, DataSet]
    stage1: Phase
    adapters: dict[str, AdapterPhase]
    """Task -> its phase."""
    long: Phase | None = None
    """Stage 1's second phase, on long texts, after ``stage1``."""
    keep: tuple[float, ...] | None = None
    """How much of the weights that training began with stays in the base: 0 none, 1 all. Several:
    each is scored on the validation tasks, and the best mean of near and far is taken among those
    that leave the far mean no lower than it was before training, and no family of far tasks more
    than half a point. None: half, where the student begins as a whole sentence-transformers model,
    pooled and prompted in its own way; else 0."""
    more_teachers: tuple[Teacher, ...] = ()
    """The student learns from all teachers at once: their vectors side by side, each of unit length
    and weighted."""
    output: str = ""
    """Folder of the run; empty: out/NAME."""
    seed: int = 0
    """Of everything that is drawn."""
    decontaminate: tuple[str, ...] = ()
    """Lists of hashed test texts, made by ``st_jv5.recipe.data.decontaminate``: rows with one
    are dropped."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forwards (weights stay float32). auto: bfloat16 where the hardware multiplies it
    natively, float32 elsewhere."""
    loader_workers: int = 0
    """Processes that tokenise batches ahead; 0: the trainer does it between steps. A GPU that waits
    for its batches wants some, on two cores they gain nothing. The batches are the same."""
    compile: bool = False
    """Train with each layer of the backbone compiled (``torch_compile`` of the trainer): about
    twice as fast a step on a GPU, once the first steps have waited for the compiler."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    limits: str = "See the scores."
    """For the model card: what the model is not for, and what its scores do not show."""

    @property
    def base_phases(self) -> dict[str, Phase]:
        """Those that train the backbone, by name, in order."""
        return {"stage1": self.stage1} | ({"long": self.long} if self.long else {})

    @property
    def phases(self) -> dict[str, Phase]:
        """All, by the name of their settings, in order."""
        adapters = {f"adapters.{task}": phase for task, phase in self.adapters.items()}
        return {**self.base_phases, **adapters}

    @property
    def text_kinds(self) -> frozenset[str]:
        """Kinds of text that any phase trains on."""
        names = {name for phase in self.phases.values() for name in phase.mix}
        return frozenset(self.data_sets[name].kind_of_text for name in names)

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.output or f"out/{self.name}")


ROLES: dict[str, set[str]] = {
    "pairs": {"query", "positive"},
    "scored": {"query", "positive", "score"},
    "texts": {"text"},
    "labelled": {"text", "label"},
    "paragraphs": {"text"},
    "long": {"query", "positive"},
    "synset_pairs": set(),
}
"""Kind of data set -> the roles that its columns must fill."""

TOLD = ("source", "verified", "rows", "tokens", "license", "text_kind", "folder")
"""Settings of a data set that leave its rows as they are."""

PAIRED = {"pairs", "scored", "long", "synset_pairs"}
"""Kinds whose rows have a query and a positive."""

LABELLED = {"labelled", "paragraphs"}
"""Kinds whose texts have labels: of those of one label, each is another's positive."""


def fingerprint(settings: Any) -> str:
    """Hash of plain settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_negative(role: str) -> bool:
    """Whether a role of a pair's columns is a hard negative: ``negative_1``, ..."""
    return role.startswith("negative_")
