"""``st-jv5 serve`` under load, beside ``encode_mixed`` on the same texts; the last line is JSON.

    python -m eval.studies.load --model out/demo/model

Closed loop: each of so many clients sends one text of 5 to 300 words under a task drawn at random,
and the next when it has the vector. Then ``encode_mixed`` computes what was asked, in one call, and
every vector is compared. Server and clients share this machine's cores.

    texts_per_second   that were answered
    p50, p99           milliseconds of a request
    of_encode_mixed    texts_per_second / those of encode_mixed
    apart              most that an element of two vectors of one text differs
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.evaluation.corpora import rows
from st_jv5.jina import load_model

LEAST_WORDS, MOST_WORDS = 5, 300
APART = 1e-5
"""Most that an element of two vectors of one text may differ."""
START_SECONDS = 120.0

Array = np.ndarray[Any, Any]


@dataclass
class Answered:
    """What one client was answered."""

    texts: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    vectors: list[Array] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Texts:
    """Passages of real text, of any number of words."""

    def __init__(self) -> None:
        pages = [row["body"] for row in rows("office_help", "train")]
        extracts = [row["extract"] for row in rows("wikipedia", "train")]
        self.words = " ".join([*extracts, *pages]).split()

    def draw(self, source: random.Random) -> str:
        """One of them."""
        count = source.randint(LEAST_WORDS, MOST_WORDS)
        begin = source.randrange(len(self.words) - count)
        return " ".join(self.words[begin : begin + count])


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


def client(port: int, texts: Texts, tasks: list[str], seed: int, end: float) -> Answered:
    """Ask, one text after the other, until the end."""
    told, source = Answered(), random.Random(seed)
    connection = HTTPConnection("127.0.0.1", port)
    headers = {"Content-Type": "application/json"}
    while time.monotonic() < end:
        text, task = texts.draw(source), source.choice(tasks)
        body = json.dumps({"model": f"m/{task}", "input": text, "encoding_format": "base64"})
        begin = time.perf_counter()
        connection.request("POST", "/v1/embeddings", body, headers)
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


def load(
    model: SentenceTransformer, port: int, texts: Texts, clients: int, seconds: float
) -> dict[str, float]:
    """So many clients for so long; then the same texts by ``encode_mixed``."""
    tasks = st_jv5.tasks(model)
    begin = time.monotonic()
    end = begin + seconds
    with ThreadPoolExecutor(clients) as threads:
        seeds = range(1000 * clients, 1001 * clients)
        told = list(threads.map(lambda seed: client(port, texts, tasks, seed, end), seeds))
    served = time.monotonic() - begin
    given = [text for one in told for text in one.texts]
    asked = [task for one in told for task in one.tasks]
    found = np.stack([vector for one in told for vector in one.vectors])
    begin = time.monotonic()
    wanted = st_jv5.encode_mixed(model, given, asked)
    alone = time.monotonic() - begin
    if not (apart := float(np.abs(found - wanted).max())) <= APART:
        raise SystemExit(f"a vector differs from encode_mixed's by {apart:.2e}")
    p50, p99 = np.percentile([1000 * s for one in told for s in one.seconds], [50, 99])
    return {
        "clients": clients,
        "texts": len(given),
        "texts_per_second": round(len(given) / served, 1),
        "p50": round(float(p50), 1),
        "p99": round(float(p99), 1),
        "encode_mixed": round(len(given) / alone, 1),
        "of_encode_mixed": round(alone / served, 3),
        "apart": apart,
    }


def main() -> None:
    """A line for each number of clients."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--model", default="out/demo/model")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    model = load_model(args.model)
    texts = Texts()
    found = []
    with server(args.model) as (_, port):
        load(model, port, texts, 4, min(3.0, args.seconds))  # a warm-up
        for clients in args.clients:
            found.append(load(model, port, texts, clients, args.seconds))
            print("   ".join(f"{name} {value:g}" for name, value in found[-1].items()), flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
