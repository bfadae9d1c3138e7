"""What heads keep of the adapters, and what they cost beside them.

python -m eval.studies.heads out/laptop/model --out out/heads
python -m eval.studies.heads out/laptop/model --out out/heads-linear --hidden 0

Heads are fitted on texts of the train split (:func:`training_texts`), and scored as the adapters
and the base are, each task with the adapter of its type. Forwards are in bfloat16 where the
hardware multiplies it.
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
from eval.studies.rotation import CHARACTERS, COLUMNS, TASKS, forwards, training_pairs
from st_jv5.encoding import encode, encode_all_tasks, head_vectors
from st_jv5.evaluation.corpora import rows
from st_jv5.evaluation.local_tasks import local_tasks
from st_jv5.evaluation.mteb_encoder import MTEBEncoder, adapter_for
from st_jv5.evaluation.near_far import INTERVALS, Scores, near_and_far
from st_jv5.evaluation.page import Cell, Page, Plot, Table
from st_jv5.evaluation.plots import against
from st_jv5.evaluation.record import Row, main_rows, read_record
from st_jv5.evaluation.scoring import Settings, evaluate
from st_jv5.modules.heads import HEAD
from st_jv5.precision import Array, unit
from st_jv5.task_table import BASE

MORE = {"wikipedia": {"title"}}
"""Kind of text -> columns that training texts come from, beside those of pairs."""
NEIGHBOURS = 10
TIMED = 500
"""Texts that are timed."""
WAYS = {"base": "base", "heads": "heads", "adapters": "four adapters"}
"""Way -> its name in the figure."""


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


def training_texts(most: int = 0) -> list[str]:
    """Texts of the train split of all near kinds, shuffled; so many of them, or all (0)."""
    columns = {
        kind: sorted({column for pair in pairs for column in pair} | MORE.get(kind, set()))
        for kind, pairs in COLUMNS.items()
    }
    texts = dict.fromkeys(
        row[column][:CHARACTERS]
        for kind, own in columns.items()
        for row in rows(kind, "train")
        for column in own
        if row[column]
    )
    found = list(texts)
    random.Random(0).shuffle(found)
    return found[: most or None]


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


def speeds(model: SentenceTransformer, documents: Sequence[str]) -> dict[str, float]:
    """Way -> texts a second whose vectors of all tasks it computes; the base's have no task."""
    ways: dict[str, Callable[[], Any]] = {
        "base": lambda: encode(model, documents, task=BASE),
        "heads": lambda: encode_all_tasks(model, documents, mode=HEAD),
        "adapters": lambda: encode_all_tasks(model, documents),
    }
    return {way: len(documents) / seconds(act) for way, act in ways.items()}


def overlaps(
    model: SentenceTransformer, queries: Sequence[str], documents: Sequence[str]
) -> dict[str, float]:
    """Task -> how many hits a head's index shares with the adapter's, in percent."""
    by_adapter, by_head = (
        [encode_all_tasks(model, texts, mode=mode) for texts in (queries, documents)]
        for mode in (None, HEAD)
    )
    return {
        task: overlap(by_head[1][task], by_adapter[1][task], asked, by_adapter[0][task])
        for task, asked in by_head[0].items()
    }


def figure(
    records: Mapping[str, Sequence[Row]], rates: Mapping[str, float], kinds: Sequence[str]
) -> Plot:
    """Mean scores over texts a second, near and far."""
    sides = {way: main_rows(found) for way, found in records.items()}
    tasks = list(sides["adapters"])
    scores = Scores(sides, tasks)
    panels = {
        f"{group}, mean of {len(own)}": {
            name: (rates[way], scores.mean(way, own).bar(name)) for way, name in WAYS.items()
        }
        for group, own in near_and_far(tasks, kinds).items()
        if own
    }
    about = "Mean scores over texts a second whose vectors of all tasks are computed. " + INTERVALS
    return against("heads", about, panels, "texts a second, all tasks")


def run(
    name: str, folder: Path, tasks: Sequence[str], kinds: Sequence[str], hidden: int, most: int
) -> Page:
    """Fit heads, and score base, heads and adapters."""
    model = SentenceTransformer(name)
    texts = training_texts(most)
    began = time.monotonic()
    fitted = st_jv5.fit_heads(model, texts, hidden=hidden, show_progress_bar=True)
    minutes = (time.monotonic() - began) / 60
    print(f"heads fitted in {minutes:.0f} min: {fitted}", flush=True)
    model.save_pretrained(str(folder / "model"))
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
    made = f"{len(texts):,} texts, fitted in {minutes:.0f} minutes."
    found.add("Scores", f"{made} Cosine with the adapter on held-out rows: {cosines}.",
              table(records))  # fmt: skip
    pairs = random.Random(2).sample(training_pairs(seed=1), TIMED)
    queries, documents = (list(dict.fromkeys(own)) for own in zip(*pairs, strict=True))
    rates = speeds(model, documents)
    said = f"Texts a second, {len(documents)} texts; heads and adapters compute all tasks."
    speed = Table(["way", "texts a second"], [[WAYS[way], rate] for way, rate in rates.items()])
    found.add("Speed", said, speed, figure(records, rates, kinds))
    shared = overlaps(model, queries, documents)
    said = "Of ten hits, the share that the adapter's own index has too, in percent."
    found.add("Hits", said, Table(["task", "shared"], [[*pair] for pair in shared.items()]))
    return found


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--trained-on", nargs="+", default=list(COLUMNS), metavar="KIND")
    parser.add_argument("--hidden", type=int, default=2048, help="width of the hidden layer")
    parser.add_argument("--texts", type=int, default=0, help="fit on so many; 0: on all")
    args = parser.parse_args()
    with forwards():
        found = run(args.model, args.out, args.tasks, args.trained_on, args.hidden, args.texts)
    found.write(args.out)
    print(found.markdown())


if __name__ == "__main__":
    main()
