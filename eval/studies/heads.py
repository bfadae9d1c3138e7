"""What heads keep of the adapters, and what they cost beside them.

python -m eval.studies.heads out/laptop/model --out out/heads
python -m eval.studies.heads out/laptop/model --out out/heads-linear --hidden 0

Heads are fitted on texts of the train split, and scored as the adapters and the base are, each task
with the adapter of its type.
"""

from __future__ import annotations

import random
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

import st_jv5
from eval.studies.rotation import TASKS, training_pairs
from st_jv5.encoding import encode_all_tasks, head_vectors
from st_jv5.evaluation.local_tasks import local_tasks
from st_jv5.evaluation.mteb_encoder import MTEBEncoder, adapter_for
from st_jv5.evaluation.near_far import Scores
from st_jv5.evaluation.page import Cell, Page, Table
from st_jv5.evaluation.record import Row, main_rows, read_record
from st_jv5.evaluation.scoring import Settings, evaluate
from st_jv5.modules.heads import HEAD
from st_jv5.precision import Array, unit
from st_jv5.task_table import BASE

NEIGHBOURS = 10
TIMED = 500
"""Texts that are timed."""


class HeadEncoder(MTEBEncoder):
    """Every task by the head of its adapter, on the base's remembered vectors."""

    def settings(self) -> str:
        return f"{super().settings()},mode={HEAD}"

    def _rows(self, texts: Sequence[str], task_type: str, prompt_type: Any, **kwargs: Any) -> Array:
        task, _ = self.route(task_type, prompt_type)
        if task == BASE:
            return super()._rows(texts, task_type, prompt_type, **kwargs)
        base: MTEBEncoder = self.at(BASE)
        vectors = base._rows(texts, task_type, prompt_type, **kwargs)
        return unit(head_vectors(self.model, vectors, str(task))[:, : self.dim])


def overlap(one: Array, other: Array, queries: Array, own: Array) -> float:
    """Mean share of the ten nearest documents that two indexes have in common, in percent.

    Args:
        one: Documents ``(n, D)`` of the first, which ``queries`` search.
        other: Those of the second, in the same order, which ``own`` search.
        queries: ``(m, D)``.
        own: ``(m, D)``, of the same texts.
    """
    sides = ((queries, one), (own, other))
    near = [np.argsort(-(q @ d.T), axis=1)[:, :NEIGHBOURS] for q, d in sides]
    same = [len(set(a) & set(b)) for a, b in zip(*near, strict=True)]
    return 100 * float(np.mean(same)) / NEIGHBOURS


def table(records: Mapping[str, Sequence[Row]]) -> Table:
    """By adapter: the means of base, heads and adapters, the share and the part of the gain."""
    sides = {way: main_rows(found) for way, found in records.items()}
    tasks = list(sides["adapters"])
    scores = Scores(sides, tasks)
    body: list[list[Cell]] = []
    by_adapter: dict[str, list[str]] = {}
    for task in tasks:
        by_adapter.setdefault(adapter_for(sides["adapters"][task]["type"]), []).append(task)
    for adapter, own in by_adapter.items():
        base, heads, best = (scores.mean(way, own) for way in ("base", "heads", "adapters"))
        gain = (heads - base).percent_of(best - base)
        share = heads.percent_of(best)
        means: list[Cell] = [base.value, heads.value, best.value]
        body.append([adapter, len(own), *means, share.shown(), gain.value])
    head = ["", "tasks", "base", "heads", "adapters", "% of the adapter", "% of its gain"]
    return Table(head, body)


def seconds(act: Callable[[], Any], rounds: int = 3) -> float:
    """The least of some rounds."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        act()
        found.append(time.perf_counter() - started)
    return min(found)


def told(model: SentenceTransformer) -> list[str]:
    """Speed beside four adapters; and how many hits a head's index shares with the adapter's."""
    pairs = random.Random(2).sample(training_pairs(seed=1), TIMED)
    queries, documents = (list(dict.fromkeys(texts)) for texts in zip(*pairs, strict=True))
    adapters = seconds(lambda: encode_all_tasks(model, documents))
    heads = seconds(lambda: encode_all_tasks(model, documents, mode=HEAD))
    lines = [f"All tasks of {len(documents)} texts: {adapters:.2f} s by adapters, {heads:.2f} s by "
             f"heads, {adapters / heads:.1f} times as fast."]  # fmt: skip
    by_adapter, by_head = (
        [encode_all_tasks(model, texts, mode=mode) for texts in (queries, documents)]
        for mode in (None, HEAD)
    )
    for task in by_head[0]:
        (asked, index), (own_asked, own) = (
            [side[task] for side in found] for found in (by_head, by_adapter)
        )
        shared = overlap(index, own, asked, own_asked)
        lines.append(f"{task}: {shared:.1f}% of ten hits are those of the adapter's own index.")
    return lines


def run(name: str, folder: Path, tasks: Sequence[str], hidden: int) -> Page:
    """Fit heads, and score base, heads and adapters."""
    model = SentenceTransformer(name)
    texts = list(dict.fromkeys(text for pair in training_pairs() for text in pair))
    fitted = st_jv5.fit_heads(model, texts, hidden=hidden, show_progress_bar=True)
    plain, heads = MTEBEncoder(model, remember=True), HeadEncoder(model, remember=True)
    records = {}
    for way, encoder, adapters in (
        ("base", plain, "none"),
        ("adapters", plain, "auto"),
        ("heads", heads, "auto"),
    ):
        loaded = [local_tasks()[task]() for task in tasks]
        evaluate(encoder, loaded, folder / way, Settings(adapters), label=way)
        records[way] = read_record(folder / way)["results"]
    found = Page("Heads")
    cosines = ", ".join(f"{task} {cosine:.4f}" for task, cosine in fitted.items())
    found.add("Scores", f"Cosine with the adapter on held-out rows: {cosines}.", table(records))
    found.add("Speed, and hits", *told(model))
    return found


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--hidden", type=int, default=2048, help="width of the hidden layer")
    args = parser.parse_args()
    found = run(args.model, args.out, args.tasks, args.hidden)
    found.write(args.out)
    print(found.markdown())


if __name__ == "__main__":
    main()
