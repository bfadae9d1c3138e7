"""What a look-up of queries keeps of a model's scores, and how fast it is.

    python -m eval.studies.query_table out/laptop/model --output out/query_table
    python -m eval.studies.query_table MPNET --encoder out/laptop/model --output out/query_encoder

The table learns from the train split's queries alone; the documents' vectors are the model's own.
Scored are the local retrieval tasks: near, of the training data's kinds of text, and far. With
``--encoder`` a small model's queries are mapped onto the model's documents instead.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from st_jv5 import encode
from st_jv5.adapters import merge_task
from st_jv5.evaluation.corpora import rows
from st_jv5.evaluation.local_tasks import local_tasks
from st_jv5.evaluation.near_far import INTERVALS, Scores
from st_jv5.evaluation.page import Cell, Page, Plot, Table
from st_jv5.evaluation.plots import against
from st_jv5.evaluation.samples import Samples, ndcg_at_10
from st_jv5.files import write_json
from st_jv5.modules import AdapterRouter
from st_jv5.query_table import fit_query_encoder, fit_query_table
from st_jv5.quiet import shows_bars

Array = np.ndarray[Any, Any]

NEAR = ("WikipediaRetrieval", "WordNetRetrieval", "OfficeHelpRetrieval", "DebianRetrieval")
FAR = ("DocstringRetrieval", "FactbookRetrieval")
QUERIES = (
    ("wikipedia", "description"),
    ("wikipedia", "title"),
    ("wordnet", "lemmas"),
    ("wordnet", "example"),
    ("office_help", "title"),
    ("debian", "short"),
)
"""Data file and column of the texts that a table learns from."""
GROUPS = {"near": NEAR, "far": FAR}
SHOWN = "look-up, 128 a batch"
"""The look-up's speed in the figure."""
TOP = 50
"""Documents of a query that are kept for its nDCG@10."""
TIMED = 20_000
"""Queries that the look-up is timed on; the model is timed on a tenth."""


def training_queries() -> list[str]:
    """Of the train split, without repeats and without those of one character."""
    texts = (row[column].strip() for name, column in QUERIES for row in rows(name, "train"))
    return list(dict.fromkeys(text for text in texts if len(text) > 1))


def row_of(queries: Array, documents: Array, data: Any) -> dict[str, Any]:
    """A task's nDCG@10 from vectors, as a record keeps it."""
    ids, scores = np.array(data["corpus"]["id"]), queries @ documents.T
    nearest = np.argpartition(-scores, min(TOP, len(ids) - 1), axis=1)[:, :TOP]
    values = [
        ndcg_at_10(
            dict(zip(ids[own].tolist(), found[own].tolist(), strict=True)),
            data["relevant_docs"][query],
        )
        for own, found, query in zip(nearest, scores, data["queries"]["id"], strict=True)
    ]
    return {
        "main_score": float(np.mean(values)),
        "samples": Samples("mean", values).to_json(),
    }


def scored(
    whole: SentenceTransformer, fast: SentenceTransformer, split: str
) -> dict[str, dict[str, dict[str, Any]]]:
    """Side -> task -> row: the model's own queries, and the fast ones, on the same documents."""
    found: dict[str, dict[str, dict[str, Any]]] = {"model": {}, "look-up": {}}
    tasks = local_tasks(split)
    suffix = "" if split == "test" else "Validation"
    for name in (*NEAR, *FAR):
        task = tasks[name + suffix]()
        task.load_data()
        data = task.dataset["default"]["test"]
        asked = list(data["queries"]["text"])
        documents = encode(whole, list(data["corpus"]["text"]), prompt=prompt(whole, "document"))
        own = encode(whole, asked, prompt=prompt(whole, "query"))
        found["model"][name] = row_of(own, documents, data)
        found["look-up"][name] = row_of(fast.encode_query(asked), documents, data)
    return found


def prompt(model: SentenceTransformer, name: str) -> str:
    """By name; none where the model has none."""
    return model.prompts.get(name) or ""


def table(found: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """nDCG@10 of each side and the share that is kept, with 95% intervals."""
    scores = Scores(found, [*NEAR, *FAR])
    header = ["nDCG@10", "model", "look-up", "% of the model"]
    lines: list[list[Cell]] = []
    groups = {f"{name}: mean of {len(own)}": own for name, own in GROUPS.items()}
    for label, tasks in {**{name: (name,) for name in (*NEAR, *FAR)}, **groups}.items():
        own, fast = (scores.mean(side, tasks) for side in found)
        lines.append([label, own.shown(), fast.shown(), fast.percent_of(own).shown()])
    return Table(header, lines)


def figure(found: dict[str, dict[str, dict[str, Any]]], rates: dict[str, int]) -> Plot:
    """nDCG@10 over queries a second, near and far."""
    scores = Scores(found, [*NEAR, *FAR])
    places = {"model": rates["model"], "look-up": rates[SHOWN]}
    panels = {
        f"{name}, mean of {len(own)}": {
            side: (rate, scores.mean(side, own).bar(side)) for side, rate in places.items()
        }
        for name, own in GROUPS.items()
    }
    about = f"nDCG@10 over queries a second on one core. {INTERVALS}"
    return against("look-up", about, panels, "queries a second")


def per_second(run: Callable[[list[str]], Any], texts: Sequence[str], passes: int = 3) -> int:
    """Texts a second of processor time, the best of some passes; one thread."""
    best, texts = float("inf"), list(texts)
    run(texts[:64])
    for _ in range(passes):
        began = time.process_time()
        run(texts)
        best = min(best, time.process_time() - began)
    return round(len(texts) / best)


def speeds(whole: SentenceTransformer, fast: SentenceTransformer) -> dict[str, int]:
    """Queries a second of the model and of the look-up, in turns of one run."""
    texts = training_queries()
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:TIMED]]
    few = texts[: TIMED // 10]
    model = prompt(whole, "query")
    return {
        "model": per_second(lambda own: encode(whole, own, prompt=model), few, passes=1),
        **{
            f"look-up, {size} a batch": per_second(
                lambda own, size=size: fast.encode_query(own, batch_size=size),  # type: ignore[misc]
                texts,
            )
            for size in (32, 128, 1024)
        },
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, save, score, time; print and keep the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("--encoder", default="", help="folder of a small model, for its queries")
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--queries", type=int, default=0, help="learn from so many; 0: from all")
    parser.add_argument("--output", default="out/query_table")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    queries = training_queries()
    if args.queries:
        order = np.random.default_rng(0).permutation(len(queries))[: args.queries]
        queries = [queries[i] for i in order]
    whole, *small = (stock(folder) for folder in (args.model, args.encoder) if folder)
    began = time.time()
    if small:
        fast = fit_query_encoder(whole, queries, small[0], show_progress_bar=shows_bars())
    else:
        fast = fit_query_table(whole, queries, show_progress_bar=shows_bars())
    seconds = round(time.time() - began)
    output = Path(args.output)
    fast.save_pretrained(str(output / "model"))
    found = scored(whole, fast, args.split)
    rates = speeds(whole, fast)
    page = Page("Look-up queries")
    page.add("Scores", f"{len(queries):,} queries, fitted in {seconds} s.", table(found))
    speed = Table(["", "queries a second"], [[side, f"{rate:,}"] for side, rate in rates.items()])
    page.add("Speed", speed, figure(found, rates))
    page.write(output)
    print(page.markdown())
    kept = {"split": args.split, "queries": len(queries), "seconds": seconds}
    write_json(output / "results.json", {**kept, "per_second": rates, "results": found})


def stock(folder: str) -> SentenceTransformer:
    """A model as stock modules, its retrieval adapter merged, so that each run encodes alike."""
    model = SentenceTransformer(folder, device="cpu")
    return merge_task(model, "retrieval") if isinstance(model[0], AdapterRouter) else model


if __name__ == "__main__":
    main()
