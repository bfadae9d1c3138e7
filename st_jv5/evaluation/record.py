"""``results.json``: what one model scored, and how each score came about."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from st_jv5.evaluation.mteb_encoder import ADAPTER_OF_TYPE
from st_jv5.files import read_json, write_json
from st_jv5.machine.about import commit, machine, now
from st_jv5.task_table import BASE

Row = dict[str, Any]
Key = tuple[str, str | None, int, str, int]
"""Task, adapter, dim, precision, max tokens: what one score belongs to."""

PACKAGES = ("st-jv5", "mteb", "sentence-transformers", "transformers", "torch")


def key_of(row: Row) -> Key:
    """What a row is the score of."""
    return row["task"], row["adapter"], row["dim"], row["precision"], row["max_tokens"]


class Record:
    """The scores of one model in a folder, whole on disk after each.

    ``results.json`` has the model, its weights' hash, the commands that wrote it, int8's ranges
    and ``results``: a row per score with task, type, its data's revision or hash, the kind of its
    text where that is known, adapter, prompts, dim, precision, bytes per vector, parameters of the
    model, dtype, max tokens, versions, commit, machine, time, main score, all scores, samples, and
    seconds of encoding and scoring.
    ``run_log.jsonl`` gets a line per score when it is computed.

    Args:
        folder: Results of one model; another's results there are an error.
        model: Path or label.
        weights: The name that the encoder gives mteb, which is made from the weights' hash.
        command: The command that writes here, for those who want the same.
        tasks: Names of tasks, in the order in which their rows are kept.
    """

    def __init__(
        self,
        folder: str | Path,
        model: str,
        weights: str,
        command: str = "",
        tasks: Sequence[str] = (),
    ) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "results.json"
        self.tree: dict[str, Any] = {
            "model": model,
            "weights": weights,
            "commands": [],
            "ranges": {},
        }
        if self.path.exists():
            self.tree = read_json(self.path)
            if self.tree.get("weights") != weights:
                raise ValueError(
                    f"{self.folder} has the results of {self.tree.get('model')!r} with other "
                    f"weights ({self.tree.get('weights')}, not {weights}); choose another --output"
                )
        if command and command not in self.tree["commands"]:
            self.tree["commands"].append(command)
        self.rows: dict[Key, Row] = {key_of(row): row for row in self.tree.get("results", [])}
        self._order = list(dict.fromkeys([*(row["task"] for row in self.rows.values()), *tasks]))

    def has(self, key: Key, revision: str, data: str) -> bool:
        """Whether this score is there, computed with the same prompts and settings on this data."""
        row = self.rows.get(key, {})
        return (row.get("revision"), row.get("data")) == (revision, data)

    def results(self) -> list[Row]:
        """The rows, task by task."""
        return sorted(self.rows.values(), key=lambda row: self._order.index(row["task"]))

    def add(self, row: Row) -> None:
        """Keep a score; one of the same key, of other prompts or other data, gives way."""
        about = {"versions": versions(), "commit": commit(), "machine": machine(), "time": now()}
        row = plain({**row, **about})
        self.rows[key_of(row)] = row
        write_json(self.path, {**self.tree, "results": self.results()})
        line = {key: value for key, value in row.items() if key not in ("scores", "samples")}
        with (self.folder / "run_log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


@cache
def versions() -> dict[str, str]:
    """Those installed; read once, for a package's metadata is a file to parse."""
    return {name: version(name) for name in PACKAGES}


def plain(value: Any) -> Any:
    """What strict JSON can hold: plain numbers, None for NaN (some of mteb's side scores are)."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, float):  # numpy's float64 is one
        return None if math.isnan(value) else float(value)
    return value


def read_record(folder: str | Path) -> dict[str, Any]:
    """A folder's ``results.json``."""
    path = Path(folder) / "results.json"
    if not path.is_file():
        raise ValueError(f"no results.json in {folder}; st-jv5 eval writes one")
    tree = read_json(path)
    if not isinstance(tree.get("results"), list):
        raise ValueError(f"{path} is not a record of st-jv5 eval: it has no list `results`")
    return tree


def is_routed(row: Row) -> bool:
    """Whether the row's adapter is the one that its task's type is routed to."""
    return row["adapter"] in (None, ADAPTER_OF_TYPE[row["type"]])


def main_rows(rows: Iterable[Row], adapter: str | None = None) -> dict[str, Row]:
    """Task -> its plainest row: the widest dim, float32 where there is one, the most tokens.

    Args:
        rows: Results of one model.
        adapter: The adapter whose rows are wanted; None: the one that the task is routed to, else
            the base, else any.
    """
    best_rows: dict[str, Row] = {}

    def rank(row: Row) -> tuple[Any, ...]:
        precise = row["precision"] == "float32"
        route = (is_routed(row), row["adapter"] == BASE)
        return (*route, row["dim"], precise, row["max_tokens"] or 0)

    for row in rows:
        if adapter is not None and row["adapter"] != adapter:
            continue
        best = best_rows.get(row["task"])
        if best is None or rank(row) > rank(best):
            best_rows[row["task"]] = row
    return best_rows
