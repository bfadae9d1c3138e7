"""``st-jv5 serve`` under load, beside ``encode_mixed`` on the same texts; the last line is JSON.

    python -m eval.studies.load --model out/demo/model

Closed loop: each of so many clients sends one text of 5 to 300 words under a task drawn at random,
and the next when it has the vector. Then ``encode_mixed`` computes what was asked, in one call, and
every vector is compared. Server and clients share this machine's cores; on Linux, ``--cores 0 1``
gives the server, and then ``encode_mixed``, the first of them and the clients the other.

    texts_per_second   that were answered
    p50, p99           milliseconds of a request
    of_encode_mixed    texts_per_second / those of encode_mixed
    apart              most that an element of two vectors of one text differs

``--beside NAME=URL`` asks another server, which runs already, in turn with this one: the same
texts, none longer than the model takes, by OpenAI's request, with the model's name NAME. It needs
one task, and no prompt.

    python -m eval.studies.load --tasks retrieval --beside other=http://localhost:8080/v1/embeddings

    texts_per_second, p50, p99   as above
    least_cosine                 of the first 100 vectors, with those of encode_mixed
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.evaluation.corpora import rows
from st_jv5.jina import load_model
from st_jv5.serve.tokens import TokenCounter

LEAST_WORDS, MOST_WORDS = 5, 300
APART = 1e-5
"""Most that an element of two vectors of one text may differ."""
START_SECONDS = 120.0
COMPARED = 100
"""Vectors of another server that are compared."""
LEAST_COSINE = 0.999
"""Of another server's vectors; below, it computes something else."""

Array = np.ndarray[Any, Any]


@dataclass
class Answered:
    """What one client was answered."""

    texts: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    vectors: list[Array] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Texts:
    """Passages of real text, of any number of words.

    Args:
        fits: Whether a text may be drawn.
    """

    def __init__(self, fits: Callable[[str], bool] = lambda text: True) -> None:
        self.fits = fits
        pages = [row["body"] for row in rows("office_help", "train")]
        extracts = [row["extract"] for row in rows("wikipedia", "train")]
        self.words = " ".join([*extracts, *pages]).split()

    def draw(self, source: random.Random) -> str:
        """One of them."""
        while True:
            count = source.randint(LEAST_WORDS, MOST_WORDS)
            begin = source.randrange(len(self.words) - count)
            if self.fits(text := " ".join(self.words[begin : begin + count])):
                return text


@contextmanager
def server(model: str, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """``st-jv5 serve`` in a process of its own; yields it and its port."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "st_jv5", "serve", model, "--name", "m", *flags]
        if "--port" not in flags:
            command += ["--port", "0"]
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            end = time.monotonic() + START_SECONDS
            while not (found := re.search(r"running on http://\S+:(\d+)", log.read_text())):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"the server did not start:\n{log.read_text()}")
                time.sleep(0.1)
            yield process, int(found[1])
        finally:
            process.terminate()
            process.wait()


def taken_whole(model: SentenceTransformer) -> Callable[[str], bool]:
    """Whether the model takes a text uncut; not every server cuts those that are too long."""
    counter = TokenCounter.of(model[0])
    return lambda text: counter.counts([text])[0] <= (counter.most or math.inf)


@dataclass(frozen=True)
class Asked:
    """A server, and how it is asked."""

    port: int
    model: str = "m/{task}"
    """The model's name in a request."""
    host: str = "127.0.0.1"
    path: str = "/v1/embeddings"

    @classmethod
    def beside(cls, told: str) -> Asked:
        """Of ``NAME=URL``."""
        name, _, url = told.partition("=")
        parts = urlsplit(url)
        if not name or parts.scheme != "http" or not parts.hostname:
            raise SystemExit(f"--beside takes NAME=http://HOST:PORT/PATH, not {told!r}")
        return cls(parts.port or 80, name, parts.hostname, parts.path)


def client(asked: Asked, texts: Texts, tasks: list[str], seed: int, end: float) -> Answered:
    """Ask, one text after the other, until the end."""
    told, source = Answered(), random.Random(seed)
    connection = HTTPConnection(asked.host, asked.port)
    headers = {"Content-Type": "application/json"}
    while time.monotonic() < end:
        text, task = texts.draw(source), source.choice(tasks)
        model = asked.model.replace("{task}", task)
        body = json.dumps({"model": model, "input": text, "encoding_format": "base64"})
        begin = time.perf_counter()
        connection.request("POST", asked.path, body, headers)
        answer = connection.getresponse()
        raw = answer.read()
        told.seconds.append(time.perf_counter() - begin)
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {raw[:200]!r}")
        vector = base64.b64decode(json.loads(raw)["data"][0]["embedding"])
        told.texts.append(text)
        told.tasks.append(task)
        told.vectors.append(np.frombuffer(vector, "<f4"))
    connection.close()
    return told


def asked_by_all(
    asked: Asked, texts: Texts, tasks: list[str], clients: int, seconds: float
) -> tuple[Answered, float]:
    """What so many clients were answered in so long, and the seconds until the last answer."""
    begin = time.monotonic()
    with ThreadPoolExecutor(clients) as threads:
        seeds = range(1000 * clients, 1001 * clients)
        end = begin + seconds
        told = list(threads.map(lambda seed: client(asked, texts, tasks, seed, end), seeds))
    served = time.monotonic() - begin
    names = [one.name for one in fields(Answered)]
    return Answered(*([x for one in told for x in getattr(one, name)] for name in names)), served


def speed(told: Answered, clients: int, served: float) -> dict[str, float]:
    """Texts a second, and milliseconds of a request."""
    p50, p99 = np.percentile([1000 * second for second in told.seconds], [50, 99])
    return {
        "clients": clients,
        "texts": len(told.texts),
        "texts_per_second": round(len(told.texts) / served, 1),
        "p50": round(float(p50), 1),
        "p99": round(float(p99), 1),
    }


def load(
    model: SentenceTransformer,
    port: int,
    texts: Texts,
    tasks: list[str],
    clients: int,
    seconds: float,
    cores: Sequence[int] | None = None,
) -> dict[str, Any]:
    """So many clients for so long; then the same texts by ``encode_mixed``."""
    told, served = asked_by_all(Asked(port), texts, tasks, clients, seconds)
    if cores:
        os.sched_setaffinity(0, cores[:1])
    begin = time.monotonic()
    wanted = st_jv5.encode_mixed(model, told.texts, told.tasks)
    alone = time.monotonic() - begin
    if cores:
        os.sched_setaffinity(0, cores[1:])
    if not (apart := float(np.abs(np.stack(told.vectors) - wanted).max())) <= APART:
        raise SystemExit(f"a vector differs from encode_mixed's by {apart:.2e}")
    return {
        "server": "st-jv5",
        **speed(told, clients, served),
        "encode_mixed": round(len(told.texts) / alone, 1),
        "of_encode_mixed": round(alone / served, 3),
        "apart": apart,
    }


def load_beside(
    model: SentenceTransformer,
    asked: Asked,
    texts: Texts,
    tasks: list[str],
    clients: int,
    seconds: float,
) -> dict[str, Any]:
    """The same of another server."""
    told, served = asked_by_all(asked, texts, tasks, clients, seconds)
    found = np.stack(told.vectors[:COMPARED])
    wanted = st_jv5.encode_mixed(model, told.texts[:COMPARED], told.tasks[:COMPARED])
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    least = float((found * wanted).sum(axis=1).min())
    if not least >= LEAST_COSINE:
        raise SystemExit(f"{asked.model} gives other vectors: a cosine with ours is {least:.4f}")
    return {"server": asked.model, **speed(told, clients, served), "least_cosine": least}


def main() -> None:
    """A line for each server and number of clients."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="out/demo/model")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tasks", nargs="+", help="default: all of the model's")
    parser.add_argument("--beside", nargs="+", metavar="NAME=URL", default=[])
    parser.add_argument("--cores", type=int, nargs=2, metavar=("SERVER", "CLIENTS"))
    args = parser.parse_args()
    others = [Asked.beside(told) for told in args.beside]
    model = load_model(args.model)
    tasks = args.tasks or st_jv5.tasks(model)
    if others and len(tasks) > 1:
        raise SystemExit("servers beside this one serve one task; name it with --tasks")
    texts = Texts(taken_whole(model)) if others else Texts()
    if args.cores:  # a new process or thread keeps to the core of its maker
        os.sched_setaffinity(0, args.cores[:1])
    found = []
    with server(args.model) as (_, port):
        if args.cores:
            os.sched_setaffinity(0, args.cores[1:])
        short = min(3.0, args.seconds)
        for one in [Asked(port), *others]:  # a warm-up
            asked_by_all(one, texts, tasks, 4, short)
        for clients in args.clients * args.rounds:
            rows = [load(model, port, texts, tasks, clients, args.seconds, args.cores)]
            for other in others:
                rows.append(load_beside(model, other, texts, tasks, clients, args.seconds))
            for row in rows:
                print("   ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            found += rows
    print(json.dumps(found))


if __name__ == "__main__":
    main()
