"""How often ``st_jv5.choose_task`` finds what serves a local task best, from a few examples.

python eval/run_mteb.py --model out/laptop/model --local --adapters all --output out/eval/laptop
python -m eval.studies.choosing --model out/laptop/model --record out/eval/laptop

Examples are drawn from a task's validation split, and the choice is judged on its test split: it is
right where the test score of the chosen is the best, or within noise of the best.
"""

from __future__ import annotations

import random
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mteb.abstasks import AbsTask
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.adapters import router_of
from st_jv5.choosing import Choice, choice_of, of_labelled, of_pairs, of_scored
from st_jv5.evaluation.local_tasks import local_tasks
from st_jv5.evaluation.mteb_encoder import RETRIEVAL_TYPES, adapter_for
from st_jv5.evaluation.near_far import Scores
from st_jv5.evaluation.page import Cell, Table
from st_jv5.evaluation.record import Row, main_rows, read_record
from st_jv5.task_table import BASE

HEADER = ["task", "type", "best on test", "chosen most", "right %", "base right", "routed right",
          "loses", "certain %", "certain, worse %"]  # fmt: skip


def examples_of(task: AbsTask, count: int, draw: random.Random) -> tuple[str, list[Any]]:
    """Kind, and so many examples of a loaded local task."""
    kind = task.metadata.type
    if kind in RETRIEVAL_TYPES:
        split = task.dataset["default"]["test"]
        documents = dict(zip(split["corpus"]["id"], split["corpus"]["text"], strict=True))
        queries = dict(zip(split["queries"]["id"], split["queries"]["text"], strict=True))
        relevant = split["relevant_docs"]
        chosen = draw.sample(sorted(relevant), min(count, len(relevant)))
        return "pairs", [(queries[q], documents[draw.choice(sorted(relevant[q]))]) for q in chosen]
    split = task.dataset["test"]
    columns = {
        "BitextMining": ("pairs", "sentence1", "sentence2"),
        "PairClassification": ("scored", "sentence1", "sentence2", "labels"),
        "STS": ("scored", "sentence1", "sentence2", "score"),
        "Classification": ("labelled", "text", "label"),
        "Clustering": ("labelled", "sentences", "labels"),
    }[kind]
    rows = draw.sample(range(len(split)), min(count, len(split)))
    found = split.select(rows)
    return columns[0], list(zip(*(found[name] for name in columns[1:]), strict=True))


class Vectors:
    """Texts as one candidate encodes them on one side, each once."""

    def __init__(self, model: SentenceTransformer, candidate: str, prompt_name: str) -> None:
        self.model, self.candidate, self.prompt_name = model, candidate, prompt_name
        self.known: dict[str, Any] = {}

    def __call__(self, texts: Sequence[str]) -> Any:
        """float32 ``(n, D)``."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        rows = st_jv5.encode(self.model, new, task=self.candidate, prompt_name=self.prompt_name)
        self.known |= dict(zip(new, rows, strict=True))
        return np.stack([self.known[text] for text in texts])


def choose(sides: Mapping[str, Mapping[str, Vectors]], kind: str, examples: list[Any]) -> Choice:
    """What ``choose_task`` chooses, from vectors that are kept between draws.

    Args:
        sides: Candidate -> query and document -> its vectors.
        kind: Of the examples.
        examples: As ``choose_task`` takes them.
    """
    first, second = ([row[column] for row in examples] for column in (0, 1))
    statistics: dict[Any, Any] = {}
    for name, side in sides.items():
        document = side["document"]
        if kind == "pairs":
            statistics[name] = of_pairs(side["query"](first) @ document(second).T, examples)
        elif kind == "labelled":
            vectors = document(first)
            statistics[name] = of_labelled(vectors @ vectors.T, second)
        else:
            cosines = (document(first) * document(second)).sum(axis=1)
            statistics[name] = of_scored(cosines, [row[2] for row in examples])
    return choice_of(statistics, kind, len(examples))


def judged(task: str, rows: Mapping[str, Row], choices: Sequence[Choice]) -> list[Cell]:
    """A task's line: how often its choices are right.

    Args:
        task: Its name.
        rows: Candidate -> row of the record.
        choices: One for each draw of examples.
    """
    scores = Scores({name: {task: row} for name, row in rows.items()}, [task])
    of = {name: scores.mean(name, [task]) for name in rows}
    best = max(of, key=lambda name: of[name].value)
    good = {name: name == best or (of[best] - of[name]).verdict != "better" for name in of}
    chosen = [str(choice.task) for choice in choices]
    certain = [
        name
        for name, choice in zip(chosen, choices, strict=True)
        if name != BASE and choice.above_base[name].is_certain
    ]
    worse = [name for name in certain if of[name].value < of[BASE].value]
    return [
        task,
        rows[best]["type"],
        f"{best} {of[best].value:.1f}",
        max(dict.fromkeys(chosen), key=chosen.count),
        100 * float(np.mean([good[name] for name in chosen])),
        100.0 * good[BASE],
        100.0 * good.get(adapter_for(rows[best]["type"]), good[BASE]),
        f"{np.mean([of[best].value - of[name].value for name in chosen]):.2f}",
        100 * len(certain) / len(chosen),
        100 * len(worse) / len(chosen),
    ]


def run(model: SentenceTransformer, rows: Sequence[Row], draws: int, count: int) -> Table:
    """Draw examples of every task that the record has for all candidates, and judge the choices."""
    candidates = [BASE, *router_of(model).tasks]
    by_candidate = {name: main_rows(rows, name) for name in candidates}
    sides = {
        name: {side: Vectors(model, name, side) for side in ("query", "document")}
        for name in candidates
    }
    lines = []
    for name, kind_of_task in local_tasks("validation").items():
        test = name.removesuffix("Validation")
        own = {one: found[test] for one, found in by_candidate.items() if test in found}
        if len(own) < len(candidates) or not all(row["samples"] for row in own.values()):
            continue
        task = kind_of_task()
        task.load_data()
        draw = random.Random(test)
        drawn = [examples_of(task, count, draw) for _ in range(draws)]
        choices = [choose(sides, kind, list(dict.fromkeys(found))) for kind, found in drawn]
        lines.append(judged(test, own, choices))
        print(*lines[-1], sep="  ", flush=True)
    means = [float(np.mean([float(line[x]) for line in lines])) for x in range(4, len(HEADER))]  # type: ignore[arg-type]
    means_line: list[Cell] = [f"mean of {len(lines)}", "", "", "", *means]
    return Table(HEADER, [*lines, means_line])


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--record", required=True, help="of eval/run_mteb.py --adapters all")
    parser.add_argument("--draws", type=int, default=20, help="of examples, per task")
    parser.add_argument("--examples", type=int, default=64, help="of each draw")
    args = parser.parse_args()
    model = SentenceTransformer(args.model)
    print(run(model, read_record(args.record)["results"], args.draws, args.examples).markdown())


if __name__ == "__main__":
    main()
