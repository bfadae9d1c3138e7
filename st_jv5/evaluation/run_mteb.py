"""What ``st-jv5 eval`` does: mteb tasks with the right adapter and prompt for each task type."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mteb.abstasks import AbsTask
from sentence_transformers import SentenceTransformer

from st_jv5.evaluation.choose import choose_tasks
from st_jv5.evaluation.mteb_encoder import MTEBEncoder
from st_jv5.evaluation.near_far import as_text
from st_jv5.evaluation.own_tasks import tasks_of_files
from st_jv5.evaluation.record import Row, main_rows, read_record
from st_jv5.evaluation.report import near_far, run_page
from st_jv5.evaluation.scoring import Settings, evaluate
from st_jv5.evaluation.submission import model_meta, submission_name, write_submission
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


def run_mteb(
    model: str,
    output: str | Path | None = None,
    *,
    settings: Settings | None = None,
    tasks: Sequence[str] = (),
    benchmarks: Sequence[str] = (),
    local: str = "",
    own: Sequence[str | Path] = (),
    types: Sequence[str] = (),
    languages: Sequence[str] = (),
    trained_on: Sequence[str] = (),
    start: str = "",
    calibrate: Sequence[str] = (),
    batch_size: int = 32,
    cache: str | Path | None = None,
    command: str = "",
    dry_run: bool = False,
    submission: str = "",
    submission_as: str = "",
) -> None:
    """Score a model on tasks; print scores, write record and report.

    Args:
        model: Folder or Hub id.
        output: Folder of the record; None: by the model (:func:`output_of`).
        settings: Adapters, dims, precisions and tokens.
        tasks: As :func:`choose_tasks` takes them, and so are the next five.
        benchmarks: Of mteb.
        local: Split of the local tasks.
        own: Files of one's own.
        types: To keep.
        languages: To keep.
        trained_on: Kinds of text that the model was trained on: their tasks are near.
        start: Folder of the record of the model that training began with.
        calibrate: File, and column of it, of texts for int8's ranges.
        batch_size: Texts per forward, for models that are not ours.
        cache: mteb's result cache; None: in ``output``.
        command: To reproduce the scores; stands in the record.
        dry_run: Tell what would run, and how, and run nothing.
        submission: Folder for mteb's own result files, as its leaderboard takes them.
        submission_as: organisation/name of the model there; empty: ``model``, a Hub id.

    Raises:
        ValueError: No such task, adapter or precision, or none that the model can run.
    """
    settings = settings or Settings()
    made = tasks_of_files(own)
    for told in made.left_out:
        print(f"not asked: {told}", file=sys.stderr)
    chosen = choose_tasks(
        tasks, benchmarks, local, own=made.tasks, types=types, languages=languages
    )
    output = output or output_of(model)
    if start:
        read_record(start)  # before any long work
    name = submission_name(model, submission_as) if submission else ""
    if calibrate and "int8" not in settings.precisions:
        raise ValueError("--calibrate has texts for int8's ranges; add int8 to --precision")
    calibration = read_texts(*calibrate[:2]) if calibrate else ()
    loaded = load_model(model)
    check_settings(settings, loaded, model)
    if dry_run:
        print_plan(loaded, chosen, settings)
        return
    rows = evaluate(
        MTEBEncoder(loaded, remember=True),
        chosen,
        output,
        settings,
        batch_size=batch_size,
        label=model,
        cache=cache,
        calibration=calibration,
        command=command,
    )
    names = {task.metadata.name for task in chosen}
    print_scores([row for row in rows if row["task"] in names])
    record = read_record(output)
    parts = near_far(record, main_rows(rows), trained_on, start)
    print(f"\n{as_text(parts)}\n")
    run_page(record, parts).write(Path(output))
    print(f"record: {output}/results.json\nreport: {output}/report.html")
    if name:
        meta = model_meta(loaded, name, model)
        cache = cache or Path(output) / "mteb"
        for told in write_submission(record, loaded, meta, submission, cache, names):
            print(f"not submitted: {told}")
        print(f"submission: {submission}/results")


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
