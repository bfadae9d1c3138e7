"""One model scored on tasks at many settings, one encode pass for each adapter."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import mteb
import numpy as np
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.cache import ResultCache
from mteb.results import TaskResult
from sentence_transformers import SentenceTransformer
from sklearn.exceptions import UndefinedMetricWarning
from tqdm.auto import tqdm

from st_jv5.adapters import merged
from st_jv5.evaluation.corpora import rows
from st_jv5.evaluation.mteb_encoder import COMPARED_TYPES, RETRIEVAL_TYPES, MTEBEncoder, adapter_for
from st_jv5.evaluation.record import Record, Row, key_of
from st_jv5.evaluation.samples import samples_of
from st_jv5.evaluation.task_families import Local
from st_jv5.modules import AdapterRouter
from st_jv5.task_table import BASE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The combinations at which tasks are scored."""

    adapters: str = "auto"
    """auto: the adapter of the task's type; none: the base; all: every adapter and the base; or one
    adapter's name. Under all, adapters other than the task's own are scored at the widest dim in
    float32 alone."""
    dims: tuple[int, ...] = ()
    """Cut to each of these; empty: the full width."""
    precisions: tuple[str, ...] = ("float32",)
    """How vectors are stored, for retrieval and STS; binary-rescored for retrieval alone. Other
    types are scored as float32."""
    max_tokens: tuple[int, ...] = ()
    """Cut inputs at each of these; empty: where the model cuts. Each takes an encode pass."""

    def points(self, model: SentenceTransformer, kind: str) -> list[Point]:
        """The adapters, dims and precisions of one task type."""
        routed: str | None = None
        adapters: list[str | None] = [None]
        if isinstance(model[0], AdapterRouter):
            known = [*model[0].tasks, BASE]
            routed = {"auto": adapter_for(kind), "all": adapter_for(kind), "none": BASE}.get(
                self.adapters, self.adapters
            )
            if routed not in known:
                if len(known) > 1:
                    logger.warning("no adapter %s among %s: %s as base", routed, known, kind)
                routed = BASE
            adapters = [*known] if self.adapters == "all" else [routed]
        dims: list[int | None] = [*sorted(self.dims, reverse=True)] or [None]
        precisions = [
            precision
            for precision in (self.precisions if kind in COMPARED_TYPES else ("float32",))
            if kind in RETRIEVAL_TYPES or precision != "binary-rescored"
        ]
        return [
            Point(adapter, dim, precision)
            for adapter in adapters
            for dim in (dims if adapter == routed else dims[:1])
            for precision in (precisions if adapter == routed else ["float32"])
        ]


class Point(NamedTuple):
    """One combination."""

    adapter: str | None
    dim: int | None
    precision: str


def evaluate(
    encoder: Any,
    tasks: Sequence[AbsTask],
    folder: str | Path,
    settings: Settings | None = None,
    *,
    batch_size: int = 32,
    label: str = "mteb",
    cache: str | Path | None = None,
    calibration: Sequence[str] = (),
    command: str = "",
) -> list[Row]:
    """Score one model at all settings into ``folder``: a :class:`~st_jv5.evaluation.record.Record`.

    Texts are encoded once per adapter, for all dims and precisions. Scores that are in the folder
    are not computed again; they are also in mteb's own cache, under a name made from the weights
    and a revision made from the settings. A score is computed again if the data has changed: if a
    task of mteb has another dataset revision, or one of your own tasks other data
    (:func:`data_revision`).

    Args:
        encoder: An :class:`~st_jv5.evaluation.MTEBEncoder`, whose own adapter, dim and precision
            give way to the settings; or any mteb encoder with ``describe(task_type)``, scored as
            it is.
        tasks: mteb's tasks, or local ones.
        folder: A folder for this model alone.
        settings: None: the adapter of each task's type, full width, float32.
        batch_size: Texts per forward, for models that are not ours (ours go by tokens).
        label: What the progress bar says, and the model's name in the record.
        cache: mteb's result cache; None is ``folder/mteb``.
        calibration: Texts for int8's ranges; empty takes some of the training split.
        command: To reproduce the scores; stands in the record.

    Returns:
        The record's rows.

    Raises:
        ValueError: The folder has another model's results; or, after all else is scored, some
            scores were not numbers.
    """
    settings = settings or Settings()
    names = [task.metadata.name for task in tasks]
    record = Record(folder, label, encoder.mteb_model_meta.name, command, names)
    scorer = _Scorer(encoder, record, batch_size, cache, calibration)
    datasets.disable_progress_bars()
    plan: dict[tuple[int | None, str | None], list[tuple[AbsTask, list[Point | None]]]] = {}
    limits: list[int | None] = [*sorted(settings.max_tokens, reverse=True)] or [None]
    for tokens in limits:
        for task in tasks:
            points: list[Point | None] = [None]
            if isinstance(encoder, MTEBEncoder):
                points = [*settings.points(encoder.model, task.metadata.type)]
            for adapter, own in groupby(points, key=lambda one: one.adapter if one else None):
                plan.setdefault((tokens, adapter), []).append((task, list(own)))
    total = sum(len(points) for steps in plan.values() for _, points in steps)
    with tqdm(total=total, desc=label, unit="score", disable=None) as bar:
        for (tokens, adapter), steps in plan.items():
            with _prepared(encoder, adapter, tokens):
                for task, points in steps:
                    bar.set_postfix_str(task.metadata.name)
                    scorer.score(task, points, bar)
    if scorer.undefined:
        raise ValueError(
            f"not a number: {'; '.join(scorer.undefined)}. All vectors of a text's side may be "
            f"equal (are inputs cut within the prompt?); the other scores are kept"
        )
    return record.results()


def data_revision(task: AbsTask) -> str:
    """What identifies a task's data: for mteb's own tasks, which are on the Hub, mteb's revision.

    For any other task: a hash of everything that it loads. With a name, or a revision that somebody
    has to change by hand, scores of old data would be kept when the data changes.
    """
    if type(task).__module__.partition(".")[0] == "mteb" or isinstance(task, AbsTaskAggregate):
        return task.metadata.revision
    loaded = task.data_loaded
    if not loaded:
        task.load_data()
    if isinstance(task, AbsTaskRetrieval):  # as evaluating does, if the data is in the old form
        task.convert_v1_dataset_format_to_v2(None)
    found = _hash_of(task.dataset)
    if not loaded and not isinstance(task, Local):
        task.unload_data()  # there may be many, and large ones
    return found


def _hash_of(data: Any) -> str:
    if isinstance(data, datasets.Dataset):
        plain = data.with_format(None)
        data = {column: plain[column][:] for column in plain.column_names}
    if isinstance(data, Mapping):
        data = {str(key): _hash_of(data[key]) for key in sorted(data, key=str)}
    text = json.dumps(data, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """What JSON does not know: sets in order, anything else as Python writes it."""
    return sorted(value) if isinstance(value, Set) else repr(value)


@contextmanager
def _prepared(encoder: Any, adapter: str | None, tokens: int | None) -> Iterator[None]:
    """Cut inputs at ``tokens``; fold the adapter into the weights: the same vectors, faster."""
    if not isinstance(encoder, MTEBEncoder):
        yield
        return
    model, before = encoder.model, encoder.model.max_seq_length
    if tokens is not None:
        model.max_seq_length = tokens
    try:
        with nullcontext() if adapter in (None, BASE) else merged(model, adapter):
            yield
    finally:
        model.max_seq_length = before


def calibration_texts() -> list[str]:
    """128 short texts of the training split, which cost little beside those under test."""
    columns = [("wikipedia", "description"), ("wikipedia", "extract")]
    columns += [("wordnet", "lemmas"), ("wordnet", "gloss")]
    each = [[row[column][:100] for row in rows(name, "train")][:32] for name, column in columns]
    return [text for texts in zip(*each, strict=True) for text in texts]


class _Scorer:
    """Scores tasks with one encoder into one record."""

    def __init__(
        self,
        encoder: Any,
        record: Record,
        batch_size: int,
        cache: str | Path | None,
        calibration: Sequence[str],
    ) -> None:
        self.encoder, self.record, self.batch_size = encoder, record, batch_size
        self.cache = ResultCache(Path(cache or record.folder / "mteb"))
        self.calibration = list(calibration)
        self.undefined: list[str] = []
        """Scores that were not numbers."""
        self.revisions: dict[str, str] = {}
        """Task -> what identifies its data."""

    def score(self, task: AbsTask, points: Sequence[Point | None], bar: Any) -> None:
        """A task at all points of one adapter, those that the record has left out."""
        name, kind = task.metadata.name, task.metadata.type
        foreign = not isinstance(task, Local)
        if name not in self.revisions:
            self.revisions[name] = data_revision(task)
        todo: list[tuple[Any, Row]] = []
        for point in points:
            at = self.encoder if point is None else self.encoder_at(point, kind)
            about = {"task": name, "type": kind, **at.describe(kind)}
            about["revision"] = at.mteb_model_meta.revision
            about["data"] = self.revisions[name]
            about["text_kind"] = getattr(task, "text_kind", None)
            if self.record.has(key_of(about), about["revision"], about["data"]):
                bar.update()
            else:
                todo.append((at, about))
        if foreign and len(todo) == 1 and isinstance(todo[0][0], MTEBEncoder):
            todo[0][0].remember_nothing()  # a corpus may be larger than memory
        # A task draws from one stream of random numbers: each score from its start.
        numbers = deepcopy((task.rng_state, task.np_rng))
        if todo and not task.data_loaded and not isinstance(task, AbsTaskAggregate):
            task.load_data()
        for at, about in todo:
            row = about | self.one(at, task)
            task.rng_state, task.np_rng = deepcopy(numbers)
            if math.isnan(row["main_score"]):
                self.undefined.append(f"{row['metric']} of {key_of(row)}")
            else:
                self.record.add(row)
            bar.update()
        if foreign:
            if task.data_loaded:
                task.unload_data()
            if isinstance(self.encoder, MTEBEncoder):
                self.encoder.forget()

    def encoder_at(self, point: Point, kind: str) -> MTEBEncoder:
        """The encoder of a point; int8's ranges come from texts that are not under test."""
        plain: MTEBEncoder = self.encoder.at(point.adapter, dim=point.dim)
        if point.precision != "int8":
            return plain.at(**point._asdict())
        sides = "queries and documents" if kind in RETRIEVAL_TYPES else "documents"
        key = f"{plain.mteb_model_meta.revision},{sides}"
        known = self.record.tree["ranges"]
        if key not in known:
            texts = self.calibration or calibration_texts()
            low, high = plain.ranges_of(texts, kind)
            known[key] = {"texts": len(texts), "low": low.tolist(), "high": high.tolist()}
        ranges = np.array([known[key]["low"], known[key]["high"]], dtype=np.float32)
        return plain.at(**point._asdict(), ranges=ranges)

    def one(self, encoder: Any, task: AbsTask) -> dict[str, Any]:
        """One score through mteb, with its samples."""
        meta = encoder.mteb_model_meta
        data = self.revisions[task.metadata.name]
        dataset = {**task.metadata.dataset, "revision": data}  # for mteb's record of the score
        task.metadata = task.metadata.model_copy(update={"dataset": dataset})
        place = self.record.folder / "predictions" / meta.name / meta.revision
        predictions = place / task.prediction_file_name
        clock = getattr(encoder, "clock", {"encode": 0.0})
        encoded, started = clock["encode"], time.perf_counter()

        def run(strategy: str) -> TaskResult:
            with warnings.catch_warnings():
                # Five experiments of eight texts a label leave some label unpredicted: no news.
                warnings.simplefilter("ignore", UndefinedMetricWarning)
                return mteb.evaluate(
                    encoder,
                    task,
                    cache=self.cache,
                    overwrite_strategy=strategy,
                    encode_kwargs={"batch_size": self.batch_size, "show_progress_bar": False},
                    prediction_folder=place,
                    show_progress_bar=False,
                    co2_tracker=False,
                ).task_results[0]

        cached = self.cache.load_task_result(task.metadata.name, meta)
        # mteb itself keeps a result that is whole, whatever its data was.
        stale = cached is not None and cached.dataset_revision != data
        result = run("always" if stale else "only-missing")
        local = isinstance(task, Local) and task.metadata.type != "Clustering"
        if local and not predictions.exists():  # mteb's cache has the score alone
            result = run("always")
        samples = samples_of(task, result, predictions)
        shutil.rmtree(self.record.folder / "predictions", ignore_errors=True)
        seconds = time.perf_counter() - started
        encoding = clock["encode"] - encoded
        return {
            "metric": task.metadata.main_score,
            "main_score": float(result.get_score()),
            "scores": result.scores,
            "samples": samples and samples.to_json(),
            "seconds": {"encode": round(encoding, 3), "score": round(seconds - encoding, 3)},
        }
