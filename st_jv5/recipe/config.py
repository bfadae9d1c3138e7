"""A recipe's settings: frozen dataclasses, read strictly from YAML.

The YAML holds only what differs from the defaults. Unknown keys, wrong types and values out of
range raise :class:`~st_jv5.recipe.strict.RecipeError` with the dotted path of the setting.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from st_jv5.choices import Precision
from st_jv5.losses import Schedule
from st_jv5.roles import kind_of
from st_jv5.texts import ending, stem


@dataclass(frozen=True)
class DataSet:
    """One source of training rows."""

    path: str | tuple[str, ...]
    """A file, a folder or a pattern such as ``faq/*.jsonl``, or a list of these; or a Hub id.

    Files are .jsonl, .json (a list of objects, or an object a line), .csv, .tsv, .txt (a text a
    line, as column ``text``) or .parquet; all but .parquet also packed, as .gz or .zst. A folder
    stands for its files of these kinds, a pattern for the files it fits (``**`` goes through
    folders), in the order of their names; other files in a folder are passed over. Paths are seen
    from the recipe's folder (``data_folder``); ``~`` is the home folder. A path that is there, has
    a file's ending, begins with ``.``, ``/`` or ``~``, or has a ``*`` is never a Hub id."""
    columns: dict[str, str] = field(default_factory=dict)
    """Role -> column. pairs: query, positive, and negative_1, ... where the set has hard negatives;
    scored: query, positive, score; texts, paragraphs: text; labelled: text, label; long: query,
    positive; synset_pairs: none.

    Left out for files of one's own, roles go by the columns' names, whatever their case: those of
    :data:`st_jv5.roles.NAMES`, such as question, answer, negative_1, label, score,
    text. A column of lists is spread: a list of positives makes a row of each, and of a list of
    negatives (``negative_1: neg, negative_2: neg``) each role takes one. Positives and negatives
    may be FlagEmbedding's lists of texts (``pos``, ``neg``) or Tevatron's lists of passages with a
    ``text`` and maybe a ``title`` (``positive_passages``, ``negative_passages``). By name, a set
    gets as many negatives as half of its first 4,096 rows have, seven at most.

    A row whose query, positive or text is missing, empty or blank is dropped and counted. A hard
    negative that is missing is replaced by one of another row, drawn by the seed: each query of a
    batch meets the negatives of all its rows anyway."""
    kind: Literal[
        "", "pairs", "scored", "texts", "labelled", "paragraphs", "long", "synset_pairs"
    ] = ""
    """What a row becomes; empty: what its columns say (query and positive: pairs, with a score:
    scored; text: texts, with a label: labelled). paragraphs parts each text and labels the parts by
    their text; long joins positives into documents of ``characters``, and a query asks for the one
    that holds its own; synset_pairs scores WordNet glosses by path similarity."""
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
    held_out: int = 0
    """Rows that no phase trains on, for evaluation, of pairs, scored pairs or texts with one label
    each: of others no task is made. They are drawn by a hash of their text (of pairs: the positive)
    and the seed, before ``limit`` counts: rows that are added later may become held out, but none
    that was trained on. No row of any data set of the recipe that has a query, a positive or a text
    of theirs is trained on."""
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
    folder: str = field(default="", compare=False)
    """What ``path`` is seen from; where a recipe does not say, its own folder, or its
    ``data_folder``."""

    def __post_init__(self) -> None:
        """The kind follows from the columns where it is not said."""
        if not self.kind and self.columns:
            object.__setattr__(self, "kind", kind_of(self.columns))

    @property
    def paths(self) -> tuple[str, ...]:
        """``path`` as a list."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def named(self) -> str:
        """``path`` in words."""
        return ", ".join(self.paths)

    def place(self, path: str) -> Path:
        """Where one of ``paths`` lies on this disk."""
        return Path(os.path.abspath(Path(self.folder, Path(path).expanduser())))

    @property
    def is_local(self) -> bool:
        """Whether it lies on this disk; else it is the Hub's."""
        if not isinstance(self.path, str):
            return True
        ends = ending(self.path) or Path(self.path).suffix.lower() in NO_HUB_ENDINGS
        begins = self.path.startswith((".", "/", "~")) or Path(self.path).is_absolute()
        deep = self.path.count("/") > 1 or bool(set("*?\\") & set(self.path))
        return bool(ends) or begins or deep or self.place(self.path).exists()

    @property
    def kind_of_text(self) -> str:
        """``text_kind``, or what the path says."""
        path = Path(self.paths[0])
        if self.text_kind or not self.is_local:
            return self.text_kind or path.name
        plain = stem(path)
        return path.parent.name if "*" in plain and ending(path) else plain


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

    base: str = ""
    """What stage 1 trains, as ``teacher.model``."""
    model: str = ""
    """In the place of ``base`` a finished model to train adapters on: a folder or Hub id of ours, a
    published jina-embeddings-v5-text, or any model of sentence-transformers. Its base is frozen and
    stays as it is, and so do its other adapters; one that the recipe names is trained further."""
    source: str = ""
    """Hub id to name in the model card, where the above is none."""
    license: str = "unknown"
    """Of its weights; stands in the model card. A model of ours says its own."""
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
    def name(self) -> str:
        """The base, or the finished model."""
        return self.model or self.base

    @property
    def base_name(self) -> str:
        """Its name for people: all-MiniLM-L6-v2."""
        name = self.source or self.name
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

    skip: bool = False
    """Measure nothing; ``evaluation: none`` says the same."""
    tasks: tuple[str, ...] = ()
    """Local tasks, and those of rows that data sets hold out (``faq (held out)``), by name. Empty:
    those of the rows held out; where there are none, all local tasks."""
    split: Literal["test", "validation"] = "test"
    """Choose settings on validation; report on test. Rows held out are the test; where ``keep`` or
    ``strengths`` has several to choose among, one half of them is the validation split."""
    resamples: int = 1000
    """Of the bootstrap behind every interval."""
    dims: tuple[int, ...] = ()
    """Dims of the score-by-dim curve; empty: the student's."""
    precisions: tuple[Precision, ...] = ("float32",)
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
    student: Student
    data_sets: dict[str, DataSet]
    adapters: dict[str, AdapterPhase]
    """Task -> its phase."""
    teacher: Teacher | None = None
    """Not needed where no loss reads its vectors, as when adapters are trained by contrast alone
    (``distill_weight: 0``) or from labels."""
    stage1: Phase | None = None
    """The training of the base; a recipe that names a finished model (``student.model``) has none.
    """
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
    """Lists of hashed test texts, made by ``st-jv5 decontaminate``: rows with one
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
        both = {"stage1": self.stage1, "long": self.long}
        return {name: phase for name, phase in both.items() if phase is not None}

    @property
    def phases(self) -> dict[str, Phase]:
        """All, by the name of their settings, in order."""
        adapters = {f"adapters.{task}": phase for task, phase in self.adapters.items()}
        return {**self.base_phases, **adapters}

    @property
    def chooses(self) -> bool:
        """Whether anything is chosen by its validation scores."""
        strengths = (phase.strengths for phase in self.adapters.values())
        return any(len(candidates) > 1 for candidates in (self.keep or (), *strengths))

    @property
    def text_kinds(self) -> frozenset[str]:
        """Kinds of text that any phase trains on."""
        names = {name for phase in self.phases.values() for name in phase.mix}
        return frozenset(self.data_sets[name].kind_of_text for name in names)

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.output or f"out/{self.name}")


NO_HUB_ENDINGS = (
    ".gz", ".zst", ".bz2", ".xz", ".zip", ".tar", ".tgz", ".7z", ".xlsx", ".xls", ".ods", ".ndjson",
    ".arrow", ".feather", ".pkl", ".yaml", ".yml", ".xml", ".html", ".pdf", ".docx", ".md", ".log",
)  # fmt: skip
"""Endings of files that are not read, but that no Hub id is taken to have."""

TOLD = ("source", "verified", "rows", "tokens", "license", "text_kind", "folder")
"""Settings of a data set that leave its rows as they are."""


def row_settings(spec: DataSet) -> dict[str, Any]:
    """The settings of a data set that decide its rows; ``held_out`` only where it is used."""
    settings = {key: value for key, value in asdict(spec).items() if key not in TOLD}
    if not spec.held_out:
        del settings["held_out"]
    return settings


PAIRED = {"pairs", "scored", "long", "synset_pairs"}
"""Kinds whose rows have a query and a positive."""

SCORED = {"scored", "synset_pairs"}
"""Kinds whose pairs have a score."""

HELD_OUT = ("pairs", "scored", "labelled")
"""Kinds whose rows can be held out: they are the source's own, and a task can be made of them."""

LABELLED = {"labelled", "paragraphs"}
"""Kinds whose texts have labels: of those of one label, each is another's positive."""


def published_name(name: str, source: str = "") -> str:
    """What others may read of a model or a file: its source, and never a path of this machine.

    Example:
        >>> published_name("/home/me/faq.jsonl"), published_name("org/model")
        ('faq.jsonl', 'org/model')
    """
    is_private = Path(name).is_absolute() or name.startswith("~")
    return source or (Path(name).name if is_private else name)


def fingerprint(settings: Any) -> str:
    """Hash of plain settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
