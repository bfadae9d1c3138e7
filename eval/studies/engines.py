"""The engines of a model on this CPU: texts a second, and what each costs on three local tasks.

python -m eval.studies.engines --model out/laptop/model --out out/engines

Beside the score of the doctor's own kind, by which ``engine="auto"`` is chosen, stand those of a
retrieval, an STS and a classification task, which need training/data. Then the time of a graph of
all tasks, as ONNX, over that of a graph of one merged task.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from st_jv5.adapters import merge_task, router_of
from st_jv5.choices import ENGINES
from st_jv5.doctor import halves, halves_score
from st_jv5.encoding import encode
from st_jv5.engines.all_tasks import TASK
from st_jv5.engines.graph import TokensToVectors, start_onnx, write_onnx
from st_jv5.engines.running import graph_file
from st_jv5.evaluation import MTEBEncoder
from st_jv5.evaluation.choose import choose_tasks
from st_jv5.evaluation.scoring import evaluate
from st_jv5.export import parity_texts

TASKS = ("OfficeHelpRetrieval", "WordNetSTS", "TopicClassification")
SIZES = (16, 32, 64, 128)
"""Tokens of a text."""
ROUNDS = 5


def seconds_of(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, in turn; a first round warms up and does not count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            begin = time.perf_counter()
            run()
            if number:
                found[name].append(time.perf_counter() - begin)
    return found


def speeds(
    model: SentenceTransformer, engines: Sequence[str], task: str, texts: Sequence[str]
) -> dict[str, float]:
    """Texts a second of each engine."""
    ways = {e: partial(encode, model, texts, task=task, engine=e) for e in engines}
    found = seconds_of(ways, ROUNDS)
    return {engine: len(texts) / statistics.median(own) for engine, own in found.items()}


def scores(model: SentenceTransformer, engine: str, folder: Path) -> dict[str, float]:
    """Main scores, of 100, by task."""
    encoder = MTEBEncoder(model, remember=True, engine=engine)
    rows = evaluate(encoder, choose_tasks(TASKS, [], ""), folder / engine, label=engine)
    return {row["task"]: 100 * row["main_score"] for row in rows}


def halves_of(model: SentenceTransformer, engine: str, task: str) -> float:
    """The doctor's score."""
    first, second = (encode(model, h, task=task, engine=engine) for h in halves(parity_texts()))
    return halves_score(first, second)


def over_merged(
    model: SentenceTransformer, task: str, sizes: Sequence[int], rounds: int
) -> Iterator[tuple[int, float, float]]:
    """Of 32 texts of each size: tokens, and the time over a merged graph's.

    First of a batch of one task, then of one with all tasks in turn.
    """
    backbone = merge_task(model, task).transformers_model
    assert backbone is not None
    draw = np.random.default_rng(0)
    tasks = np.arange(32) % len(router_of(model).tasks)
    with tempfile.TemporaryDirectory() as folder:
        file = write_onnx(TokensToVectors(model, backbone), Path(folder) / "merged.onnx")
        merged, graph = start_onnx(file), start_onnx(graph_file(model, "onnx"))
        for tokens in sizes:
            ids = draw.integers(1000, 20_000, (32, tokens))
            rows = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            ways = {
                "merged": partial(merged, rows),
                "one": partial(graph, {**rows, TASK: tasks * 0}),
                "mixed": partial(graph, {**rows, TASK: tasks}),
            }
            found = {name: np.array(own) for name, own in seconds_of(ways, rounds).items()}
            one, mixed = (float(np.median(found[n] / found["merged"])) for n in ("one", "mixed"))
            yield tokens, one, mixed


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    args = parser.parse_args()
    model = SentenceTransformer(args.model, device="cpu")
    task = next(iter(router_of(model).tasks))
    texts = parity_texts()[::2]
    per_second = speeds(model, args.engines, task, texts)
    print(f"{torch.get_num_threads()} thread(s); {len(texts)} texts, task {task}")
    print("engine".ljust(15), "texts/s", "mean", *TASKS, "halves", sep="  ", flush=True)
    for engine in args.engines:
        own = scores(model, engine, args.out)
        values = [np.mean(list(own.values())), *(own[name] for name in TASKS)]
        told = "  ".join(f"{value:.2f}" for value in [*values, halves_of(model, engine, task)])
        print(f"{engine:15s}  {per_second[engine]:.1f}  {told}", flush=True)
    for tokens, one, mixed in over_merged(model, task, SIZES, rounds=9):
        print(f"32 texts of {tokens} tokens: one task {one:.3f}, mixed {mixed:.3f} of merged")


if __name__ == "__main__":
    main()
