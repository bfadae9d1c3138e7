"""What ``st-jv5 eval`` does: mteb tasks with the right adapter and prompt for each task type."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mteb.abstasks import AbsTask
from sentence_transformers import SentenceTransformer

from st_jv5.evaluation.choose import choose_tasks
from st_jv5.evaluation.mteb_encoder import MTEBEncoder
from st_jv5.evaluation.near_far import as_text
from st_jv5.evaluation.own_tasks import file_tasks
from st_jv5.evaluation.record import Row, main_rows, read_record
from st_jv5.evaluation.report import near_far, run_page
from st_jv5.evaluation.scoring import Settings, evaluate
from st_jv5.jina import load_model
from st_jv5.modules import AdapterRouter
from st_jv5.precision import check_precision
from st_jv5.task_table import BASE, unknown_name
from st_jv5.texts import read_texts


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


def run_mteb(args: Namespace) -> None:
    """Score a model by the arguments of ``st-jv5 eval``; print scores, write record and report.

    Args:
        args: Parsed by :mod:`st_jv5.commands.evaluation`.

    Raises:
        ValueError: No such task, adapter or precision, or none that the model can run.
    """
    tasks = own_files(args.own)
    if args.tasks or args.benchmark or args.local or not tasks:
        named = (args.tasks, args.benchmark, args.local)
        tasks = [*choose_tasks(*named, types=args.types, languages=args.languages), *tasks]
    settings = Settings(
        args.adapters, tuple(args.dims), tuple(args.precision), tuple(args.max_tokens)
    )
    output = args.output or output_of(args.model)
    if args.start:
        read_record(args.start)  # before any long work
    model = load_model(args.model)
    check_settings(settings, model, args.model)
    if args.dry_run:
        print_plan(model, tasks, settings)
        return
    rows = evaluate(
        MTEBEncoder(model, remember=True),
        tasks,
        output,
        settings,
        batch_size=args.batch_size,
        label=args.model,
        cache=args.cache,
        calibration=read_texts(*args.calibrate[:2]) if args.calibrate else (),
        command=args.line,
    )
    chosen = {task.metadata.name for task in tasks}
    print_scores([row for row in rows if row["task"] in chosen])
    record = read_record(output)
    parts = near_far(record, main_rows(rows), args.trained_on, args.start)
    print(f"\n{as_text(parts)}\n")
    run_page(record, parts).write(Path(output))
    print(f"record: {output}/results.json\nreport: {output}/report.html")


def own_files(files: Sequence[str]) -> list[AbsTask]:
    """The tasks of files; what cannot be asked of a file is printed."""
    found: list[AbsTask] = []
    for file in files:
        made = file_tasks(file)
        for told in made.left_out:
            print(f"left out: {told}", file=sys.stderr)
        found += made.tasks
    return found


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


def print_scores(rows: Sequence[Row]) -> None:
    """A line per score, and where the time went."""
    tokens = len({row["max_tokens"] for row in rows}) > 1
    for row in rows:
        cut = f" {row['max_tokens']:>6} tokens" if tokens else ""
        print(
            f"{row['task']:<24} {row['adapter'] or '-':<14} {row['dim']:>5} "
            f"{row['precision']:<15}{cut} {row['metric']:<16} {100 * row['main_score']:6.2f}"
        )
    encode, score = (sum(row["seconds"][part] for row in rows) for part in ("encode", "score"))
    print(f"seconds: {encode:.1f} encoding, {score:.1f} scoring")
