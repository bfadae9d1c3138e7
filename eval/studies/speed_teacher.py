"""The teacher part of ``eval/studies/speed.py``: what reading teacher vectors costs."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers.sentence_transformer.data_collator import (
    SentenceTransformerDataCollator,
)
from torch import Tensor
from tqdm.auto import tqdm

from st_jv5.commands.teacher import size_on_disk
from st_jv5.losses import clustering_loss
from st_jv5.recipe.context import Run
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.teach import teach, wanted
from st_jv5.teacher import TeacherStore
from st_jv5.teacher.shard import hash_texts

RECIPE = Path(__file__).parents[2] / "training" / "recipes" / "demo.yaml"
SMALL, LARGE = 10_000, 1_000_000
"""Rows of the synthetic stores."""
LARGE_DIM = 1024
BATCH_ROWS = 1024
"""Rows of one gather: 512 queries and their positives."""


def teacher(args: Namespace) -> dict[str, float]:
    """The table and its ratios."""
    run = demo_run(args.teacher, args.output)
    teach(run)
    (store,) = run.spaces(None)
    (texts,) = wanted(run).values()
    extra = size_on_disk(store) / (2 * store.dim * len(texts)) - 1
    print(
        f"{len(texts)} texts of the demo, {store.dim} dims: {extra:+.2%} bytes beyond the vectors"
    )
    result = {**step_shares(run, store, args.batch_size, args.rounds), "disk_overhead": extra}
    Path(args.output).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output) as folder:
        result |= synthetic(Path(folder), args.rounds)
    keys = ("gather_share", "vs_lists", "disk_overhead", "gather_growth", "open_seconds")
    return {key: round(result[key], 4) for key in keys}


def demo_run(teacher_model: str, output: str) -> Run:
    """The demo's recipe with another teacher, its store beside the output."""
    settings = [f"teacher.model={teacher_model}", f"output={output}/run"]
    if Path(teacher_model).is_dir():
        settings.append(f"teacher.source={Path(teacher_model).resolve().name}")
    else:
        settings.append(f"teacher.source={teacher_model}")
    return Run(load_recipe(RECIPE, settings))


# ------------------------------------------------------------------- beside a training step


def step_shares(run: Run, store: TeacherStore, batch_size: int, rounds: int) -> dict[str, float]:
    """Gathering a batch against a step of stage 1, and against lists through the collator."""
    student = run.new_student().train()
    dims = student[0].matryoshka_dims
    loss = clustering_loss(student, store.dim, dims=dims, store=store)
    collate = SentenceTransformerDataCollator(preprocess_fn=student.preprocess)
    rows = run.rows["wikipedia-descriptions"]
    seconds: dict[str, list[float]] = {key: [] for key in ("step", "gather", "ours", "lists")}
    for number in tqdm(range(rounds + 1), desc="rounds", unit="round"):
        chosen = [rows[i] for i in random.Random(number).sample(range(len(rows)), batch_size)]
        columns = [[row[role] for row in chosen] for role in ("query", "positive")]
        labels = np.stack([store.rows(column) for column in columns], axis=1)
        features = [
            {k: v.to(student.device) if isinstance(v, Tensor) else v for k, v in one.items()}
            for one in (student.preprocess(column) for column in columns)
        ]
        vectors = store.gather(labels).float()
        with_rows = [{"label": row} for row in labels.tolist()]
        with_lists = [{"label": row} for row in vectors.tolist()]

        def step(features: Any = features, labels: Any = labels) -> None:
            student.zero_grad()
            with run.forwards():
                terms = loss(features, torch.from_numpy(labels))
            torch.stack(list(terms.values())).sum().backward()

        def ours(with_rows: Any = with_rows) -> Tensor:
            return store.gather(collate(with_rows)["label"]).float()

        def lists(with_lists: Any = with_lists) -> Tensor:
            found: Tensor = collate(with_lists)["label"]
            return found

        def gather(labels: Any = labels) -> Tensor:
            return store.gather(labels, device=student.device)

        if number == 0:  # a warm-up, and the proof that both give the same
            step()
            if not torch.equal(ours(), lists()):
                raise SystemExit("the gathered vectors differ from the lists")
            continue
        for key, way in (("step", step), ("gather", gather), ("ours", ours), ("lists", lists)):
            seconds[key].append(seconds_of(way))
    print(f"\nseconds, {batch_size} pairs, {rounds} rounds:")
    tell(seconds)
    pairs = list(zip(seconds["gather"], seconds["step"], strict=True))
    against = list(zip(seconds["lists"], seconds["ours"], strict=True))
    return {
        "gather_share": statistics.median(a / b for a, b in pairs),
        "vs_lists": statistics.median(a / b for a, b in against),
    }


# ------------------------------------------------------------------------------- a million rows


def synthetic(folder: Path, rounds: int) -> dict[str, float]:
    """Opening a large store, and gathering from it and from a small one in turns."""
    stores = {size: synthetic_store(folder / str(size), size) for size in (SMALL, LARGE)}
    seconds: dict[str, list[float]] = {f"{size} rows": [] for size in stores}
    drawn = {size: all_rows(store) for size, store in stores.items()}
    draw = np.random.default_rng(0)
    for size, store in stores.items():  # every page once: what is timed is gathering, not paging in
        for part in np.array_split(drawn[size], max(1, size // 50_000)):
            store.gather(part)
    for _ in range(40 * rounds):
        for size, store in stores.items():
            rows = draw.choice(drawn[size], BATCH_ROWS)
            seconds[f"{size} rows"].append(seconds_of(partial(store.gather, rows)))
    print(f"\nseconds to gather {BATCH_ROWS} rows of {LARGE_DIM} dims, in turns:")
    tell(seconds)
    small, large = (statistics.median(found) for found in seconds.values())
    opened = [open_in_child(folder / str(LARGE)) for _ in range(3)]
    for one in opened:
        print(
            f"opening {LARGE} rows and finding 1024 texts: {one['seconds']:.3f} s, "
            f"{one['megabytes']:.0f} MB; then their vectors: {one['gather_seconds']:.3f} s"
        )
    slowest = max(one["seconds"] for one in opened)
    return {"gather_growth": large / small, "open_seconds": slowest}


def synthetic_store(folder: Path, count: int) -> TeacherStore:
    """Random vectors under the texts "0", "1", ..."""
    store = TeacherStore.open(folder, create=True).space("synthetic", dim=LARGE_DIM)
    generator = torch.Generator().manual_seed(0)
    for begin in tqdm(range(0, count, 100_000), desc=f"{count} rows", unit="block"):
        names = [str(i) for i in range(begin, min(begin + 100_000, count))]
        store.add_hashed(
            hash_texts(names),
            torch.randn(len(names), LARGE_DIM, generator=generator).to(torch.float16),
        )
    return store


def all_rows(store: TeacherStore) -> Any:
    """Every row of a space."""
    return np.concatenate([rows for _, rows in store.hashes()])


def open_in_child(folder: Path) -> dict[str, float]:
    """Seconds and memory of opening in a fresh process."""
    command = [sys.executable, "-m", "eval.studies.speed", "open", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"opening {folder} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def open_store(folder: str) -> dict[str, float]:
    """The child: open, find, gather."""
    names = [str(i) for i in range(0, LARGE, LARGE // 1024)][:1024]
    before = resident_bytes()
    begin = time.perf_counter()
    store = TeacherStore.open(folder).space("synthetic")
    rows = store.rows(names, missing_ok=True)
    seconds = time.perf_counter() - begin
    grown = resident_bytes() - before
    begin = time.perf_counter()
    store.gather(rows[rows >= 0])
    gather_seconds = time.perf_counter() - begin
    return {"seconds": seconds, "megabytes": grown / 1e6, "gather_seconds": gather_seconds}


def resident_bytes() -> int:
    """Memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def seconds_of(way: Callable[[], Any]) -> float:
    """One call."""
    begin = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def tell(seconds: dict[str, Sequence[float]] | dict[str, list[float]]) -> None:
    """Medians and spreads."""
    for name, found in seconds.items():
        spread = f"{min(found):9.5f} to {max(found):9.5f}"
        print(f"  {name:15s} median {statistics.median(found):9.5f}   {spread}")
