"""How fast rows are prepared and read, and what memory a training process needs for them.

    python -m eval.studies.speed_rows --rows 10000000 --folder /tmp/rows

Makes a parquet file of pairs of made-up words, prepares them as a recipe does, fills a store of
narrow random vectors, and lets two processes draw batches at once. The folder is removed at the
end.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

from st_jv5.recipe.config import DataSet
from st_jv5.recipe.data.prepare import read_rows
from st_jv5.recipe.data.rows import Rows, Texts
from st_jv5.recipe.data.training_sets import training_set
from st_jv5.teacher import TeacherStore
from st_jv5.teacher.shard import first_of_each

WORDS = np.array(
    [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "rel", "stom")]
)
QUERY_WORDS, DOCUMENT_WORDS = 8, 32
BLOCK = 100_000
DIM = 8
BATCH = 512


def write_pairs(path: Path, rows: int) -> None:
    """Pairs of forty words, two in a hundred of them repeats."""
    draw = np.random.default_rng(0)
    writer = None
    for begin in range(0, rows, BLOCK):
        count = min(BLOCK, rows - begin)
        words = WORDS[draw.integers(len(WORDS), size=(count, QUERY_WORDS + DOCUMENT_WORDS))]
        numbers = np.where(draw.random(count) < 0.02, begin, np.arange(begin, begin + count))
        words[numbers == begin] = words[0]
        queries = [
            f"{' '.join(row)} {n}" for row, n in zip(words[:, :QUERY_WORDS], numbers, strict=True)
        ]
        documents = [
            f"{n} {' '.join(row)}" for row, n in zip(words[:, QUERY_WORDS:], numbers, strict=True)
        ]
        table = pa.table({"q": queries, "d": documents})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def spec_of(path: Path) -> DataSet:
    return DataSet(path=str(path), columns={"query": "q", "positive": "d"})


def fill(store: TeacherStore, rows: Rows) -> None:
    """A random vector for every text."""
    for role in rows.roles:
        hashes = rows.hashes(role)
        for begin in range(0, len(hashes), 1 << 20):
            block = np.array(hashes[begin : begin + (1 << 20)])
            block = block[first_of_each(block)[0]]
            store.add_hashed(block, torch.randn(len(block), DIM).half())


def mib(path: Path) -> float:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 2**20


def one_process(folder: Path) -> None:
    """What a training process does before its first step, and some batches."""
    process = psutil.Process()
    before = own_memory(process)
    started = time.time()
    rows = read_rows("pairs", spec_of(folder / "pairs.parquet"), 0, folder / "data")
    len(rows)
    opened = time.time() - started
    store = TeacherStore.open(folder / "store").space("random", dim=DIM)
    dataset = training_set(spec_of(folder / "pairs.parquet"), rows,
                           {"query": store, "positive": store}, 0)  # fmt: skip
    built = time.time() - started
    generator = torch.Generator()
    sampler = NoDuplicatesBatchSampler(dataset, BATCH, True, ["label"], generator, 0)
    read = 0
    for batch in islice(sampler, 40):
        read += len(dataset[batch]["label"])
    first = time.time() - started - built
    own = (own_memory(process) - before) / 2**20
    print(
        f"| a process | opened in {opened:.1f} s, set there after {built:.1f} s, {read} rows in "
        f"{first:.1f} s | {own:,.0f} MiB of its own, {process.memory_info().rss / 2**20:,.0f} MiB "
        f"with the model's libraries and mapped pages |"
    )


def own_memory(process: psutil.Process) -> int:
    """Bytes that no file backs: mapped pages are shared, and given back when others want them."""
    info = process.memory_info()
    return int(info.rss - getattr(info, "shared", 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder: Path = args.folder
    if args.process:
        one_process(folder)
        return
    if folder.exists():
        raise SystemExit(f"error: {folder} is there already; name a new folder")
    try:
        folder.mkdir(parents=True)
        write_pairs(folder / "pairs.parquet", args.rows)
        measure(folder, args.rows)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, count: int) -> None:
    words = QUERY_WORDS + DOCUMENT_WORDS
    print(f"{count:,} pairs of {words} words, {mib(folder):,.0f} MiB of parquet\n")
    print("| what | time | size |\n|---|---|---|")
    process = psutil.Process()
    started = time.time()
    rows = read_rows("pairs", spec_of(folder / "pairs.parquet"), 0, folder / "data")
    took = time.time() - started
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"| prepared | {took:.0f} s, {count / took:,.0f} rows/s | {mib(rows.folder):,.0f} MiB on "
        f"disk, {len(rows):,} rows; {own_memory(process) / 2**20:,.0f} MiB of memory after, "
        f"{most:,.0f} MiB at most with mapped pages |",
        flush=True,
    )
    started = time.time()
    texts = Texts([(rows, role) for role in rows.roles])
    print(f"| teacher's plan | {time.time() - started:.0f} s | {len(texts):,} texts |", flush=True)
    del texts
    store = TeacherStore.open(folder / "store", create=True).space("random", dim=DIM)
    fill(store, rows)
    command = [
        sys.executable,
        "-m",
        "eval.studies.speed_rows",
        "--folder",
        str(folder),
        "--process",
    ]
    for one in [subprocess.Popen(command) for _ in range(2)]:
        one.wait()


if __name__ == "__main__":
    main()
