"""Run mteb tasks with the right adapter and prompt for each task type.

python eval/run_mteb.py --model out/demo/model --local --languages eng
python eval/run_mteb.py --model org/model --benchmark "MTEB(eng, v2)" --output out/eval
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import datasets
import mteb
from mteb.abstasks import AbsTask
from mteb.cache import ResultCache
from sentence_transformers import SentenceTransformer
from sklearn.exceptions import UndefinedMetricWarning
from tqdm.auto import tqdm

import st_jv5  # noqa: F401 - makes our modules loadable
from eval.local_tasks import LOCAL_TASKS
from eval.samples import Samples, samples_of
from st_jv5.evaluation import ADAPTER_OF_TYPE, MTEBEncoder
from st_jv5.evaluation.mteb_encoder import adapter_for
from st_jv5.files import read_json, write_json
from st_jv5.tasks import unknown_name


def evaluate(
    encoder: Any,
    tasks: Sequence[AbsTask],
    folder: str | Path,
    batch_size: int = 32,
    label: str = "mteb",
) -> dict[str, Any]:
    """Evaluate one model and write ``folder/results.json`` after every task.

    ``encoder`` is an mteb encoder with ``describe(task_type)``, such as
    :class:`~st_jv5.evaluation.MTEBEncoder`. Tasks that stand there already
    for the same weights and settings are not run again.

    Returns:
        The record: ``model`` and, per task, type, adapter, prompts, dim, precision, main score, all
        scores, and the samples that comparisons need.
    """
    path = Path(folder) / "results.json"
    meta = encoder.mteb_model_meta
    record: dict[str, Any] = {
        "model": meta.name,
        "settings": meta.revision,
        "versions": {name: version(name) for name in ("mteb", "sentence-transformers", "torch")},
        "tasks": {},
    }
    if path.exists():
        before = read_json(path)
        if (before["model"], before["settings"]) == (meta.name, meta.revision):
            record["tasks"] = before["tasks"]
    datasets.disable_progress_bars()
    todo = [task for task in tasks if task.metadata.name not in record["tasks"]]
    for task in tqdm(todo, desc=label, unit="task", disable=not todo):
        record["tasks"][task.metadata.name] = _evaluate_task(
            encoder, task, Path(folder), batch_size
        )
        write_json(path, record)
    return record


def _evaluate_task(encoder: Any, task: AbsTask, folder: Path, batch_size: int) -> dict[str, Any]:
    name, kind = task.metadata.name, task.metadata.type
    with warnings.catch_warnings():
        # Five experiments of eight texts a label leave some label unpredicted: no news.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        result = mteb.evaluate(
            encoder,
            task,
            cache=ResultCache(folder / "mteb"),
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
            prediction_folder=folder / "predictions",
            show_progress_bar=False,
            co2_tracker=False,
        ).task_results[0]
    samples: Samples | None = None
    predictions = folder / "predictions" / task.prediction_file_name
    if predictions.exists() and name in {local.metadata.name for local in LOCAL_TASKS}:
        loaded = json.loads(predictions.read_text())["default"]["test"]
        task.load_data()
        samples = samples_of(task, loaded)
        if kind == "Clustering":
            levels = result.scores["test"][0]["v_measures"]
            samples = Samples("mean", [v for level in levels.values() for v in level])
        predictions.unlink()
    return {
        "type": kind,
        **encoder.describe(kind),
        "main_score": result.get_score(),
        "metric": task.metadata.main_score,
        "scores": result.scores,
        "samples": samples and samples.to_json(),
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
    parser.add_argument("--dry-run", action="store_true", help="list what would run, and how")
    parser.add_argument("--adapter", help="one adapter, or base, for every task")
    parser.add_argument("--dim", type=int, help="cut the vectors to this many dims")
    parser.add_argument("--batch-size", type=int, default=32, help="texts per forward")
    parser.add_argument("--output", default="out/eval", help="folder of results.json")
    args = parser.parse_args(argv)
    tasks = choose_tasks(args.tasks, args.benchmark, args.local, args.types, args.languages)
    model = SentenceTransformer(args.model)
    if args.adapter and args.adapter not in (known := [*getattr(model[0], "tasks", {}), "base"]):
        raise SystemExit(unknown_name("adapter", args.adapter, known, args.model))
    encoder = MTEBEncoder(model, adapter=args.adapter, dim=args.dim, remember=args.local)
    if args.dry_run:
        for task in tasks:
            name, kind = task.metadata.name, task.metadata.type
            how = encoder.describe(kind)
            prompts = ", ".join(f"{side} {prompt!r}" for side, prompt in how["prompts"].items())
            print(f"{name:<28} {kind:<22} {how['adapter'] or '-':<16} dim {how['dim']}  {prompts}")
        return
    record = evaluate(encoder, tasks, args.output, args.batch_size)
    for name, found in record["tasks"].items():
        route = found["adapter"] or "-"
        print(f"{name:<28} {route:<16} {found['metric']:<18} {100 * found['main_score']:6.2f}")


if __name__ == "__main__":
    main()
