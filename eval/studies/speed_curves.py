"""What curves cost beside a plain evaluation: ``python -m eval.studies.speed curves``."""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time

from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from st_jv5.choices import PRECISIONS
from st_jv5.evaluation.choose import choose_tasks
from st_jv5.evaluation.mteb_encoder import MTEBEncoder
from st_jv5.evaluation.scoring import Settings, evaluate
from st_jv5.teacher.sources import resolve_model

TASKS = ("WikipediaRetrieval", "WordNetRetrieval", "WikipediaReranking", "WordNetSTS")
DIMS = (384, 256, 128, 64, 32)
WAYS = {"plain": Settings(), "curves": Settings(dims=DIMS, precisions=PRECISIONS)}


def curves(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of encoding and scoring of both ways in turn, and their ratio."""
    model = SentenceTransformer(resolve_model(args.teacher))
    model.max_seq_length = min(args.max_tokens, model.max_seq_length)
    encoding: dict[str, list[float]] = {way: [] for way in WAYS}
    scoring: dict[str, list[float]] = {way: [] for way in WAYS}
    draw = random.Random(0)
    for _ in tqdm(range(args.rounds), unit="round", desc="curves"):
        for way in draw.sample(list(WAYS), len(WAYS)):
            encoder = MTEBEncoder(model, remember=True)
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                evaluate(encoder, choose_tasks(TASKS, [], local=""), folder, WAYS[way])
                whole = time.perf_counter() - started
            encoding[way].append(encoder.clock["encode"])
            scoring[way].append(whole - encoder.clock["encode"])
    print(f"\nseconds, {args.rounds} rounds, {len(DIMS)} dims x {len(PRECISIONS)} precisions:")
    for way in WAYS:
        for part, seconds in (("encoding", encoding[way]), ("scoring", scoring[way])):
            spread = f"{min(seconds):6.2f} to {max(seconds):6.2f}"
            print(f"  {way:7s} {part:9s} median {statistics.median(seconds):6.2f}   {spread}")
    ratios = [a / b for a, b in zip(encoding["curves"], encoding["plain"], strict=True)]
    return {
        "curve_encoding": round(statistics.median(ratios), 4),
        "plain_scoring": round(statistics.median(scoring["plain"]), 2),
        "curve_scoring": round(statistics.median(scoring["curves"]), 2),
    }
