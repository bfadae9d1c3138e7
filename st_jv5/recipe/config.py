"""The settings of a recipe: frozen dataclasses, read strictly from YAML.

The YAML file needs only the settings that differ from the defaults. Unknown keys, wrong types and
values out of range raise :class:`~st_jv5.recipe.strict.RecipeError` with the dotted path of the
setting.
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
    """A file, a folder or a pattern such as ``faq/*.jsonl``, or a list of these; or the Hub id of a
    data set.

    Files are .jsonl, .json (a list of objects, or an object a line), .csv, .tsv, .txt (a text a
    line, as column ``text``) or .parquet; all but .parquet also compressed, as .gz or .zst. A
    folder means its files of these kinds, a pattern the files that match it (``**`` matches folders
    at any depth), in the order of their names; other files in a folder are ignored. Paths are
    relative to the recipe's folder (or to ``data_folder``); ``~`` is the home folder. A path that
    exists, has a file's ending, begins with ``.``, ``/`` or ``~``, or has a ``*`` is never taken
    for a Hub id."""
    columns: dict[str, str] = field(default_factory=dict)
    """Role -> column. The roles depend on ``kind``. pairs: query, positive, and negative_1, ... if
    the set has hard negatives; scored: query, positive, score; texts and paragraphs: text;
    labelled: text, label; long: query, positive; synset_pairs: none.

    If ``columns`` is left out for your own files, the roles follow from the columns' names, in
    upper or lower case: those of :data:`st_jv5.roles.NAMES`, such as question, answer, negative_1,
    label, score, text. A column may hold lists: a list of positives becomes one row for each, and
    from a list of negatives (``negative_1: neg, negative_2: neg``) each role takes one. Positives
    and negatives may be FlagEmbedding's lists of texts (``pos``, ``neg``) or Tevatron's lists of
    passages with a ``text`` and maybe a ``title`` (``positive_passages``,
    ``negative_passages``). A set whose roles follow from names gets as many negatives as half of
    its first 4,096 rows have, but seven at most.

    A row whose query, positive or text is missing, empty or blank is dropped and counted. A missing
    hard negative is replaced by one of another row, drawn by the seed: a query is compared with the
    negatives of all rows of its batch in any case."""
    kind: Literal[
        "", "pairs", "scored", "texts", "labelled", "paragraphs", "long", "synset_pairs"
    ] = ""
    """What a row becomes. Empty: the kind that its columns mean (query and positive: pairs, or
    scored with a score; text: texts, or labelled with a label). paragraphs splits each text, and
    the parts of one text get the same label; long joins positives into documents of ``characters``,
    and each query's positive is the document that contains its own; synset_pairs are WordNet
    glosses, scored by path similarity."""
    subset: str = ""
    """Configuration of a Hub data set."""
    split: str = "train"
    """Split of a Hub data set."""
    revision: str = ""
    """Branch, tag or commit of a Hub data set."""
    where: dict[str, str] = field(default_factory=dict)
    """Column -> pattern that a row must match. ``*`` matches any text, ``|`` separates
    alternatives, and an alternative that begins with ``!`` excludes the rows that match it."""
    limit: int | None = None
    """Most rows to use, drawn by the recipe's seed."""
    held_out: int = 0
    """Number of rows to keep out of training, for evaluation: of pairs, scored pairs or texts with
    one label each, as no task can be made of others. They are drawn by a hash of their text (for
    pairs: of the positive) and the seed, before ``limit`` applies. So rows that are added to the
    files later may become held out, but no row that was trained on. A row of any other data set of
    the recipe is not trained on, either, if its query, positive or text is that of a held-out
    row."""
    license: str = "unknown"
    """Licence of the text, for the model card."""
    negatives: int = 0
    """Hard negatives per row. For pairs they are mined by the teacher among the set's positives;
    for labelled texts they are texts of other labels."""
    characters: int = 8_000
    """Least length of a joined document, in characters (for ``kind: long``)."""
    rows: int | None = None
    """Number of rows, for the plan, if the data set is not on this disk."""
    tokens: dict[str, float] = field(default_factory=dict)
    """Role -> mean number of tokens of its texts, for the plan. If it is left out, tokens are
    counted in the file; if there is no file here, the limit is assumed."""
    text_kind: str = ""
    """Kind of text, such as wikipedia. Empty: the file's name without its ending, or the last part
    of a Hub id. The report separates tasks on kinds of text that were trained on (near) from all
    others (far)."""
    source: str = ""
    """Where the data set's name and columns were looked up."""
    verified: bool = True
    """False: name and columns were written from memory and not looked up; the plan says so."""
    folder: str = field(default="", compare=False)
    """Folder that ``path`` is relative to. Empty: the recipe's own folder, or its
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
    """Address up to ``/v1``, such as ``http://localhost:8000/v1``."""
    model: str = ""
    """The model's name at the server; empty: ``teacher.model``."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key; a local server needs none."""
    batch_size: int = 32
    """Texts per request."""
    concurrency: int = 8
    """Number of requests that are sent at a time."""
    retries: int = 6
    """How often a failed request is sent again, each time after a longer wait."""
    timeout_seconds: float = 120.0
    """Time limit of a request, in seconds."""
    extra_body: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Further fields of each request, such as ``truncate_prompt_tokens: 512`` for vLLM."""


@dataclass(frozen=True)
class Teacher:
    """The large model, whose vectors the student learns from."""

    model: str
    """Hub id, folder, or ``package:NAME/FOLDER`` for a model inside a Python package."""
    revision: str = ""
    """Branch, tag or commit of a Hub model."""
    prompt: str = ""
    """Text put in front of each text."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Prompt name -> text: further prompts, which a phase can choose by ``teacher_prompts``."""
    max_tokens: int = 512
    """The teacher's inputs are cut to this many tokens."""
    pooling: str = ""
    """Pooling, if it is not the model's own: lasttoken, mean or cls."""
    weight: float = 1.0
    """With several teachers (``more_teachers``): weight of this teacher's cosine."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Dtype of the teacher's weights. auto: as they are stored, with forward passes at the recipe's
    ``precision``."""
    device: str = ""
    """Torch device, such as ``cuda:1``; empty: the fastest one."""
    endpoint: Endpoint | None = None
    """Server that computes the teacher's vectors, so that the model is not loaded here."""
    source: str = ""
    """Hub id to write in the store and the model card, if ``model`` is not one."""
    license: str = "unknown"
    """Licence of the teacher's weights, for the model card."""
    store: str = "../teacher"
    """Folder of the teacher's vectors, relative to the recipe's output. Recipes whose outputs are
    in the same folder share it."""
    shards: int = 16
    """Number of shards of a new space of the store: this many processes can fill it at a time."""
    store_dtype: Literal["float16", "float32", "bfloat16"] = "float16"
    """Dtype of the stored vectors."""
    config: dict[str, bool | int | float | str] = field(default_factory=dict)
    """The teacher's architecture, as in its ``config.json``, for the plan, if the model is not on
    this disk."""


@dataclass(frozen=True)
class Student:
    """The small model."""

    base: str = ""
    """The model that stage 1 trains; written like ``teacher.model``."""
    model: str = ""
    """A finished model to train adapters on, in place of ``base``: folder or Hub id of an st_jv5
    model, of a published jina-embeddings-v5-text model, or of any sentence-transformers model. Its
    base and its other adapters are not changed. An adapter that the recipe names and the model has
    is trained further."""
    source: str = ""
    """Hub id to write in the model card, if ``base`` or ``model`` is not one."""
    license: str = "unknown"
    """Licence of the base's weights, for the model card. An st_jv5 model carries its own."""
    layers: tuple[int, ...] | int | None = None
    """Blocks to keep: their indices, or how many. None: all."""
    append_eos: bool | None = None
    """End every input with EOS or SEP. None: do so if the last token is pooled."""
    pooling: Literal["", "mean", "cls", "lasttoken"] = ""
    """How the states of a text's tokens become one vector. Empty: as the base does, and the last
    token if the base names no pooling."""
    prompts: Literal["own", "paper", "none"] = "own"
    """own: the base's prompts, and the paper's if it names none; paper: "Query: " and "Document: ";
    none: empty prompts."""
    matryoshka_dims: tuple[int, ...] = ()
    """Dims to train; empty: the default dims."""
    max_tokens: int = 512
    """Inputs are cut to this many tokens, in training and in use."""
    vocabulary: tuple[str, ...] = ()
    """Data sets whose tokens are kept; all other tokens are dropped. Empty: keep the whole
    vocabulary."""
    serve_theta: float | None = None
    """RoPE's theta of the finished model. None: the base's."""
    rotate: bool = False
    """Rotate the base's vectors (``st_jv5.rotate``) before adapters are trained, so that vectors
    lose less when they are cut to a few dims."""
    config: dict[str, bool | int | float | str] = field(default_factory=dict)
    """The student's architecture, like ``teacher.config``."""

    @property
    def name(self) -> str:
        """The base, or the finished model."""
        return self.model or self.base

    @property
    def base_name(self) -> str:
        """Its name for readers, such as all-MiniLM-L6-v2."""
        name = self.source or self.name
        package = name.removeprefix("package:")
        return package if package != name else Path(name).name


@dataclass(frozen=True)
class Phase:
    """One training run: of the base, or of one adapter."""

    data: dict[str, float]
    """Data set -> weight with which a batch is drawn from it."""
    steps: int
    """Number of optimizer steps."""
    replay: dict[str, float] = field(default_factory=dict)
    """Further data sets -> weight. Each of their texts is distilled by itself. Text of other kinds
    keeps the student from getting worse on such text."""
    replay_weight: float = 1.0
    """Weight of distillation in a batch of ``replay``."""
    max_epochs: float = 10.0
    """Most passes over one data set; after that the set is not drawn any more."""
    batch_size: int = 64
    """Rows per step and device."""
    batch_sizes: dict[str, int] = field(default_factory=dict)
    """Data set -> rows per step and device, for data sets that differ from ``batch_size``."""
    devices: int = 1
    """Number of batches of a step. With as many processes, each takes one batch; fewer processes
    take several together, so that a step always has the same rows. A data set with fewer rows gives
    those that it has."""
    max_tokens: dict[str, int] = field(default_factory=dict)
    """Data set -> limit in tokens, for data sets whose limit is not ``student.max_tokens``."""
    temperature: float = 1.0
    """Data sets are drawn with probabilities proportional to their weights to the power of
    1/temperature."""
    learning_rate: float = 1.0e-4
    """Peak learning rate; it falls linearly to 0 after the warm-up."""
    temperature_rate: float = 1.0e-3
    """Peak learning rate of the logarithm of a learned temperature (``loss: {learn_temperature:
    true}``)."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly from 0."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    fit_projection: int = 20_000
    """Number of texts, drawn from all of the phase's data sets, on which a new projection is fitted
    by least squares before the first step. 0: it starts as a rectangular identity, which joins
    unrelated spaces."""
    own_map_dims: tuple[int, ...] = ()
    """Matryoshka dims at which a cut student vector has a separate projection, instead of the first
    columns of the full one."""
    theta: float | None = None
    """RoPE's theta during this phase. None: the base's."""
    gradient_checkpointing: bool = False
    """Keep only the input of each block, and run the block again in the backward pass."""
    dim_weights: tuple[float, ...] = ()
    """One weight per Matryoshka dim; empty: all the same."""
    checkpoint_steps: int = 500
    """Steps between checkpoints; an interrupted phase resumes from the last one."""
    teacher_prompts: dict[str, str] = field(default_factory=dict)
    """Role (query, positive, text) -> name of one of the teacher's ``prompts``. Roles that are not
    named get ``teacher.prompt``."""
    loss: dict[str, int | float | bool | str | Schedule] = field(default_factory=dict)
    """Arguments of the task's loss, such as ``temperature: 0.05``. A weight may change over the
    steps: ``gor_weight: {start: 0.0, end: 1.0, steps: 100}``. A loss that compares the texts of a
    step with each other is computed over all processes together, so that it does not depend on
    their number; ``gather_across_devices: false`` computes it in each process by itself."""

    @property
    def mix(self) -> dict[str, float]:
        """All data sets that a batch is drawn from, with their weights."""
        return {**self.data, **self.replay}

    def share(self, data_set: str) -> float:
        """Share of the batches, in 0..1, if no data set is used up."""
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
    """LoRA dropout. None: 0.05 for classification, 0.1 for all other tasks."""
    average: tuple[int, ...] = ()
    """Average the checkpoints of these steps and the last one; empty: use the last one only."""
    strengths: tuple[float, ...] = (1.0,)
    """Factors by which the adapter's update may be multiplied. Of several, one is chosen by the
    adapter's validation tasks, in the way described at ``keep``, where the base takes the place of
    the model before training."""


@dataclass(frozen=True)
class Evaluation:
    """What is measured at the end."""

    skip: bool = False
    """Measure nothing; ``evaluation: none`` means the same."""
    tasks: tuple[str, ...] = ()
    """Names of tasks: local tasks, and those of rows that data sets hold out (``faq (held out)``).
    Empty: the tasks of held-out rows; if there are none, all local tasks."""
    split: Literal["test", "validation"] = "test"
    """Choose settings on validation; report on test. Held-out rows are the test split; if ``keep``
    or ``strengths`` has several values to choose from, half of them are the validation split."""
    resamples: int = 1000
    """Number of bootstrap resamples for each interval."""
    dims: tuple[int, ...] = ()
    """Dims at which the model is scored; empty: the student's dims."""
    precisions: tuple[Precision, ...] = ("float32",)
    """Precisions of stored vectors at which retrieval and STS are scored."""
    blends: dict[str, dict[str, float]] = field(default_factory=dict)
    """Name -> adapter -> weight: blends of the finished adapters, measured on every task."""
    beside: dict[str, str] = field(default_factory=dict)
    """Label -> another model, written like ``teacher.model``, to measure on the same tasks. The
    student's base is always measured; the report compares with it."""


@dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on."""

    name: str
    """Name of the run, for its output folder and the model card."""
    student: Student
    data_sets: dict[str, DataSet]
    adapters: dict[str, AdapterPhase]
    """Task -> settings of its training."""
    teacher: Teacher | None = None
    """The teacher. It is not needed if no loss reads its vectors: if adapters are trained by
    InfoNCE only (``distill_weight: 0``), or from labels."""
    stage1: Phase | None = None
    """Training of the base. A recipe with a finished model (``student.model``) has none."""
    long: Phase | None = None
    """A second phase of stage 1, on long texts, after ``stage1``."""
    keep: tuple[float, ...] | None = None
    """Share of the student before training that stays in the base's weights: 0 none, 1 all. Of
    several shares, each is scored on the validation tasks, and the one with the best mean of near
    and far is taken. Shares are passed over if the far mean is below that of the student before
    training, or a family of far tasks more than half a point below. None: 0.5 if the student starts
    as a whole sentence-transformers model with its own pooling and prompts, else 0."""
    more_teachers: tuple[Teacher, ...] = ()
    """Further teachers. The student learns from all teachers at once: from their unit vectors,
    weighted and joined side by side."""
    output: str = ""
    """Folder of the run; empty: out/NAME."""
    seed: int = 0
    """Seed of all random draws."""
    decontaminate: tuple[str, ...] = ()
    """Files of hashed test texts, made by ``st-jv5 decontaminate``; rows that contain one of these
    texts are dropped."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of forward passes (weights stay float32). auto: bfloat16 if the hardware computes
    it natively, else float32."""
    loader_workers: int = 0
    """Processes that tokenise batches ahead. 0: the trainer tokenises between steps. They help if a
    GPU waits for its batches; on two cores they gain nothing. The batches are the same."""
    compile: bool = False
    """Compile each layer of the backbone in training (``torch_compile`` of the trainer): on a GPU a
    step takes about half the time, after the first steps have waited for the compiler."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    limits: str = "See the scores."
    """Text for the model card: what the model is not for, and what its scores do not show."""

    @property
    def base_phases(self) -> dict[str, Phase]:
        """The phases that train the backbone, by name, in order."""
        both = {"stage1": self.stage1, "long": self.long}
        return {name: phase for name, phase in both.items() if phase is not None}

    @property
    def phases(self) -> dict[str, Phase]:
        """All phases, by the name of their settings, in order."""
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
