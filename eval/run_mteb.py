"""Run mteb tasks with the right adapter and prompt for each task type.

python eval/run_mteb.py --model out/demo/model --local --languages eng
python eval/run_mteb.py --model out/demo/model --local --adapters all --dims 384 128 32 \\
    --precision float32 int8 binary binary-rescored
python eval/run_mteb.py --model org/model --benchmark "MTEB(eng, v2)"
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import datasets
import mteb
import numpy as np
from mteb.abstasks import AbsTask
from mteb.cache import ResultCache
from mteb.results import TaskResult
from sentence_transformers import SentenceTransformer
from sklearn.exceptions import UndefinedMetricWarning
from tqdm.auto import tqdm

import st_jv5
from eval.local_tasks import LOCAL_TASKS
from eval.record import Record, Row, key_of, read_record
from eval.report import run_page
from eval.samples import Samples, samples_of
from st_jv5.evaluation import ADAPTER_OF_TYPE, MTEBEncoder
from st_jv5.evaluation.mteb_encoder import COMPARED_TYPES, RETRIEVAL_TYPES, adapter_for
from st_jv5.evaluation.precision import PRECISIONS, check_precision
from st_jv5.jina import is_jina_v5
from st_jv5.modules import AdapterRouter
from st_jv5.tasks import BASE, unknown_name
from st_jv5.texts import read_texts
from training.corpora import rows


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
        own: str | None = None
        adapters: list[str | None] = [None]
        if isinstance(model[0], AdapterRouter):
            known = [*model[0].tasks, BASE]
            own = {"auto": adapter_for(kind), "all": adapter_for(kind), "none": BASE}.get(
                self.adapters, self.adapters
            )
            own = own if own in known else BASE
            adapters = [*known] if self.adapters == "all" else [own]
        dims: list[int | None] = [*sorted(self.dims, reverse=True)] or [None]
        precisions = [
            precision
            for precision in (self.precisions if kind in COMPARED_TYPES else ("float32",))
            if kind in RETRIEVAL_TYPES or precision != "binary-rescored"
        ]
        return [
            Point(adapter, dim, precision)
            for adapter in adapters
            for dim in (dims if adapter == own else dims[:1])
            for precision in (precisions if adapter == own else ["float32"])
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
    """Score one model at all settings, into ``folder`` (see :class:`~eval.record.Record`).

    One encode pass serves all dims and precisions of an adapter. Scores that stand in the folder
    are not computed again; mteb's own cache keeps them, too, under a name made from the weights and
    a revision made from the settings.

    Args:
        encoder: An :class:`~st_jv5.evaluation.MTEBEncoder`, whose own adapter, dim and precision
            give way to the settings; or any mteb encoder with ``describe(task_type)``, scored as
            it is.
        tasks: mteb's tasks, or local ones.
        folder: Of this model alone.
        settings: None: the adapter of each task's type, full width, float32.
        batch_size: Texts per forward, for models that are not ours (ours go by tokens).
        label: Of the progress bar, and the model's name in the record.
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
    cache = ResultCache(Path(cache or Path(folder) / "mteb"))
    datasets.disable_progress_bars()
    local = {task.metadata.name for task in LOCAL_TASKS}
    whole = {id(task): (copy(task.rng_state), deepcopy(task.np_rng)) for task in tasks}
    plan: dict[tuple[int | None, str | None], list[tuple[AbsTask, Point | None]]] = {}
    limits: list[int | None] = [*sorted(settings.max_tokens, reverse=True)] or [None]
    for tokens in limits:
        for task in tasks:
            ours = isinstance(encoder, MTEBEncoder)
            kind = task.metadata.type
            for point in settings.points(encoder.model, kind) if ours else [None]:
                plan.setdefault((tokens, point and point.adapter), []).append((task, point))
    undefined: list[str] = []
    with tqdm(total=sum(map(len, plan.values())), desc=label, unit="score") as bar:
        for (tokens, adapter), steps in plan.items():
            with _prepared(encoder, adapter, tokens):
                for number, (task, point) in enumerate(steps):
                    name, kind = task.metadata.name, task.metadata.type
                    bar.set_postfix_str(name)
                    at = point and _at(encoder, kind, point, record, calibration)
                    at = at or encoder
                    about = {"task": name, "type": kind, **at.describe(kind)}
                    about["revision"] = at.mteb_model_meta.revision
                    if not record.has(key_of(about), about["revision"]):
                        # A task draws from one stream of random numbers: each score from its start.
                        task.rng_state, task.np_rng = map(deepcopy, whole[id(task)])
                        row = about | _score(at, task, record.folder, batch_size, cache)
                        if math.isnan(row["main_score"]):
                            undefined.append(f"{row['metric']} of {key_of(row)}")
                        else:
                            record.add(row)
                    last = number + 1 == len(steps) or steps[number + 1][0] is not task
                    if last and point and name not in local:
                        encoder.forget()
                    bar.update()
    if undefined:
        raise ValueError(
            f"not a number: {'; '.join(undefined)}. All vectors of a text's side may be equal (are "
            f"inputs cut within the prompt?); the other scores are kept"
        )
    return record.results()


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
        with nullcontext() if adapter in (None, BASE) else st_jv5.merged(model, adapter):
            yield
    finally:
        model.max_seq_length = before


def _at(
    encoder: MTEBEncoder, kind: str, point: Point, record: Record, calibration: Sequence[str]
) -> MTEBEncoder:
    """The encoder of a point, with ranges from texts that are not under test."""
    if point.precision != "int8":
        return encoder.at(*point)
    side = "queries and documents" if kind in RETRIEVAL_TYPES else "documents"
    key = f"{encoder.at(point.adapter, point.dim).mteb_model_meta.revision}, {side}"
    known = record.tree["ranges"]
    if key not in known:
        texts = list(calibration) or calibration_texts()
        low, high = encoder.at(point.adapter, point.dim).ranges_of(texts, kind)
        known[key] = {"texts": len(texts), "low": low.tolist(), "high": high.tolist()}
    ranges = np.array([known[key]["low"], known[key]["high"]], dtype=np.float32)
    return encoder.at(*point, ranges=ranges)


def calibration_texts() -> list[str]:
    """256 short texts of the training split."""
    columns = [("wikipedia", "description"), ("wikipedia", "extract")]
    columns += [("wordnet", "lemmas"), ("wordnet", "gloss")]
    each = [[row[column] for row in rows(name, "train")][:64] for name, column in columns]
    return [text for texts in zip(*each, strict=True) for text in texts]


def _score(
    encoder: Any, task: AbsTask, folder: Path, batch_size: int, cache: ResultCache
) -> dict[str, Any]:
    """One score through mteb, with its samples."""
    kind, meta = task.metadata.type, encoder.mteb_model_meta
    place = folder / "predictions" / meta.name / meta.revision
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
                cache=cache,
                overwrite_strategy=strategy,
                encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
                prediction_folder=place,
                show_progress_bar=False,
                co2_tracker=False,
            ).task_results[0]

    result = run("only-missing")
    sampled = isinstance(task, LOCAL_TASKS) and kind != "Clustering"
    if sampled and not predictions.exists():  # mteb's cache has the score alone
        result = run("always")
    samples: Samples | None = None
    if sampled:
        task.load_data()
        samples = samples_of(task, json.loads(predictions.read_text())["default"]["test"])
    elif isinstance(task, LOCAL_TASKS):
        levels = result.scores["test"][0]["v_measures"]
        samples = Samples("mean", [v for level in levels.values() for v in level])
    shutil.rmtree(folder / "predictions", ignore_errors=True)
    seconds = time.perf_counter() - started
    encoding = clock["encode"] - encoded
    return {
        "metric": task.metadata.main_score,
        "main_score": float(result.get_score()),
        "scores": result.scores,
        "samples": samples and samples.to_json(),
        "seconds": {"encode": round(encoding, 3), "score": round(seconds - encoding, 3)},
    }


def choose_tasks(
    names: Sequence[str],
    benchmarks: Sequence[str],
    local: bool,
    types: Sequence[str] = (),
    languages: Sequence[str] = (),
) -> list[AbsTask]:
    """Tasks by name and benchmark, the local ones by name or all of them.

    Args:
        names: Of mteb's tasks and of the local ones.
        benchmarks: Of mteb.
        local: All local tasks.
        types: Keep these task types alone.
        languages: ISO 639-3 codes; keep tasks all of whose languages are among them.
    """
    for kind in types:
        if kind not in ADAPTER_OF_TYPE:
            raise SystemExit(unknown_name("task type", kind, ADAPTER_OF_TYPE, "mteb"))
    own = {task.metadata.name: task for task in LOCAL_TASKS}
    tasks = [task() for task in own.values()] if local else []
    for name in names:
        if name in own:
            tasks.append(own[name]())
        else:
            try:
                tasks.append(mteb.get_task(name))
            except KeyError as error:
                raise SystemExit(f"{error}; local tasks: {', '.join(own)}") from error
    for name in benchmarks:
        tasks.extend(mteb.get_benchmark(name).tasks)
    for task in tasks:
        try:
            adapter_for(task.metadata.type, task.metadata.modalities)
        except ValueError as error:
            raise SystemExit(f"{task.metadata.name}: {error}") from error
    if not tasks:
        raise SystemExit("nothing to run: name --tasks, a --benchmark, or --local")
    kept = [
        task
        for task in tasks
        if (not types or task.metadata.type in types)
        and (not languages or set(task.metadata.languages) <= set(languages))
    ]
    if not kept:
        known = sorted({language for task in tasks for language in task.metadata.languages})
        raise SystemExit(
            f"no task is left of {len(tasks)} by --types {' '.join(types) or '(all)'} and "
            f"--languages {' '.join(languages) or '(all)'} ; their languages: {', '.join(known)}"
        )
    return kept


def output_of(model: str) -> str:
    """The folder of a model's results: ``out/eval/`` and its path or id in one word."""
    return "out/eval/" + "-".join(part for part in Path(model).parts if part not in ("/", ".."))


def check_settings(settings: Settings, model: SentenceTransformer, name: str) -> None:
    """Find what this model cannot do before any long work starts."""
    known = [*getattr(model[0], "tasks", {}), BASE]
    if settings.adapters not in ("auto", "none", "all", *known):
        raise ValueError(unknown_name("adapter", settings.adapters, known, name))
    if settings.adapters not in ("auto", "none") and not isinstance(model[0], AdapterRouter):
        raise ValueError(f"{name} has no adapters; --adapters {settings.adapters} asks for them")
    for precision in settings.precisions:
        check_precision(precision)
    width = model.get_embedding_dimension()
    if wrong := [dim for dim in settings.dims if not 1 <= dim <= width]:
        raise ValueError(f"--dims must lie in 1..{width}, the width of {name}, not {wrong[0]}")
    backbone = model.transformers_model
    most = getattr(getattr(backbone, "config", None), "max_position_embeddings", None)
    for tokens in settings.max_tokens:
        if tokens < 1 or (most is not None and tokens > most):
            raise ValueError(f"--max-tokens must lie in 1..{most}, what {name} has, not {tokens}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or Hub id; any SentenceTransformer")
    parser.add_argument("--tasks", nargs="+", default=[], help="mteb or local task names")
    parser.add_argument("--benchmark", nargs="+", default=[], help='such as "MTEB(eng, v2)"')
    parser.add_argument("--local", action="store_true", help="all local tasks")
    parser.add_argument("--types", nargs="+", default=[], help="such as Retrieval STS")
    parser.add_argument(
        "--languages", nargs="+", default=[], help="such as eng deu: tasks in no other language"
    )
    parser.add_argument(
        "--adapters",
        default="auto",
        help="auto: by task type; none: the base; all: the whole matrix; or one adapter's name",
    )
    parser.add_argument("--dims", nargs="+", type=int, default=[], help="cut vectors to each")
    parser.add_argument(
        "--precision",
        nargs="+",
        default=["float32"],
        help=f"of stored vectors (retrieval, STS): {' '.join(PRECISIONS)}",
    )
    parser.add_argument(
        "--max-tokens", nargs="+", type=int, default=[], help="cut inputs at each of these"
    )
    parser.add_argument(
        "--calibrate",
        nargs="+",
        metavar=("FILE", "COLUMN"),
        help="texts for int8's ranges; by default some of the training split",
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would run, and how")
    parser.add_argument("--batch-size", type=int, default=32, help="texts per forward")
    parser.add_argument("--output", help="folder of results.json; by default out/eval/MODEL")
    parser.add_argument("--cache", help="mteb's result cache; by default OUTPUT/mteb")
    args = parser.parse_args(argv)
    tasks = choose_tasks(args.tasks, args.benchmark, args.local, args.types, args.languages)
    settings = Settings(
        args.adapters, tuple(args.dims), tuple(args.precision), tuple(args.max_tokens)
    )
    output = args.output or output_of(args.model)
    try:
        model = load_model(args.model)
        check_settings(settings, model, args.model)
        if args.dry_run:
            print_plan(model, tasks, settings)
            return
        found = evaluate(
            MTEBEncoder(model, remember=True),
            tasks,
            output,
            settings,
            batch_size=args.batch_size,
            label=args.model,
            cache=args.cache,
            calibration=read_texts(*args.calibrate[:2]) if args.calibrate else (),
            command=f"python eval/run_mteb.py {shlex.join(sys.argv[1:] if argv is None else argv)}",
        )
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    chosen = {task.metadata.name for task in tasks}
    print_scores([row for row in found if row["task"] in chosen])
    run_page(read_record(output)).write(Path(output))
    print(f"record: {output}/results.json\nreport: {output}/report.html")


def load_model(name: str) -> SentenceTransformer:
    """Any SentenceTransformer: ours, stock, or a published jina-embeddings-v5-text model."""
    return st_jv5.load_jina_v5(name) if is_jina_v5(name) else SentenceTransformer(name)


def print_plan(model: SentenceTransformer, tasks: Sequence[AbsTask], settings: Settings) -> None:
    """A line per task and adapter."""
    encoder = MTEBEncoder(model)
    for task in tasks:
        name, kind = task.metadata.name, task.metadata.type
        points = settings.points(model, kind)
        for adapter in dict.fromkeys(point.adapter for point in points):
            how = encoder.at(adapter).describe(kind)
            own = [point for point in points if point.adapter == adapter]
            dims = dict.fromkeys(str(point.dim or how["dim"]) for point in own)
            precisions = dict.fromkeys(point.precision for point in own)
            prompts = ", ".join(f"{side} {prompt!r}" for side, prompt in how["prompts"].items())
            tokens = ",".join(map(str, settings.max_tokens or [how["max_tokens"]]))
            print(
                f"{name:<24} {kind:<18} {how['adapter'] or '-':<14} dims {','.join(dims)}  "
                f"{','.join(precisions)}  tokens {tokens}  {prompts}"
            )


def print_scores(found: Sequence[Row]) -> None:
    """A line per score, and where the time went."""
    tokens = len({row["max_tokens"] for row in found}) > 1
    for row in found:
        cut = f" {row['max_tokens']:>6} tokens" if tokens else ""
        print(
            f"{row['task']:<24} {row['adapter'] or '-':<14} {row['dim']:>5} "
            f"{row['precision']:<15}{cut} {row['metric']:<16} {100 * row['main_score']:6.2f}"
        )
    encode, score = (sum(row["seconds"][part] for row in found) for part in ("encode", "score"))
    print(f"seconds: {encode:.1f} encoding, {score:.1f} scoring")


if __name__ == "__main__":
    main()
