"""``st-jv5 serve`` with more asked of it than it can do, and killed; the last line is JSON.

    python -m eval.studies.overload --model out/demo/model --minutes 10 --kills 2

Clients ask for one to eight texts at a time, under tasks drawn at random. One that is told 429
waits as it was told, and asks again; so does one whose connection breaks. Every vector is compared
with ``encode_mixed``'s. The server is killed (SIGKILL) and started anew, evenly over the time.

    answered, refused, broken    texts; answers of 429; connections that broke
    lost                         texts that were asked for and never answered
    apart                        most that an element of two vectors of one text differs
    memory                       MiB of the server's process, by minute (a new process: from little)
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException
from typing import Any

import numpy as np
import psutil

import st_jv5
from eval.studies.load import APART, Array, Texts, server
from st_jv5.jina import load_model

POOL = 200
"""Different texts; each is asked for under every task."""
MOST_WAITING = 4096
"""Tokens that may wait: a few seconds' work."""
FLAGS = ("--max-waiting-tokens", str(MOST_WAITING), "--max-tokens", str(MOST_WAITING))
PATIENCE_SECONDS = 120.0
"""After the end, for what was asked before it."""

Wanted = dict[tuple[str, str], Array]


class Asked:
    """What clients saw, counted in all."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.apart = 0.0
        self._lock = threading.Lock()

    def count(self, name: str, number: int = 1, apart: float = 0.0) -> None:
        """So many more."""
        with self._lock:
            self.counts[name] += number
            self.apart = max(self.apart, apart)


def ask(port: int, texts: list[str], task: str, end: float, asked: Asked) -> list[Array]:
    """The vectors of a request, however often it must be asked; none if no answer ever comes."""
    body = json.dumps({"model": f"m/{task}", "input": texts, "encoding_format": "base64"})
    while time.monotonic() < end + PATIENCE_SECONDS:
        connection = HTTPConnection("127.0.0.1", port)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/embeddings", body, headers)
            answer = connection.getresponse()
            raw = answer.read()
        except (OSError, HTTPException):
            asked.count("broken")
            time.sleep(0.5)
            continue
        finally:
            connection.close()
        if answer.status == 200:
            rows = json.loads(raw)["data"]
            return [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows]
        if answer.status not in (429, 503):
            raise RuntimeError(f"{answer.status}: {raw[:200]!r}")
        asked.count("refused")
        time.sleep(float(answer.headers["Retry-After"]))
    return []


def client(port: int, wanted: Wanted, seed: int, end: float, asked: Asked) -> None:
    """Ask until the end, and compare."""
    source = random.Random(seed)
    pool = sorted({text for text, _ in wanted})
    tasks = sorted({task for _, task in wanted})
    while time.monotonic() < end:
        texts, task = source.sample(pool, source.randint(1, 8)), source.choice(tasks)
        asked.count("asked", len(texts))
        if found := ask(port, texts, task, end, asked):
            right = np.stack([wanted[text, task] for text in texts])
            apart = float(np.abs(np.stack(found) - right).max())
            asked.count("answered", len(found), apart)


def overload(model: str, clients: int, minutes: float, kills: int) -> dict[str, Any]:
    """So many clients for so long, of servers that are killed so often."""
    loaded, texts, source = load_model(model), Texts(), random.Random(0)
    pool = [texts.draw(source) for _ in range(POOL)]
    wanted: Wanted = {}
    for task in st_jv5.tasks(loaded):
        rows = st_jv5.encode_mixed(loaded, pool, [task] * POOL)
        wanted.update({(text, task): row for text, row in zip(pool, rows, strict=True)})
    asked, memory, part = Asked(), list[float](), 60 * minutes / (kills + 1)
    with ExitStack() as stack:
        process, port = stack.enter_context(server(model, *FLAGS))
        end = time.monotonic() + 60 * minutes
        threads = stack.enter_context(ThreadPoolExecutor(clients))
        running = [threads.submit(client, port, wanted, n, end, asked) for n in range(clients)]
        for life in range(kills + 1):
            until = time.monotonic() + part
            while (left := until - time.monotonic()) > 0:
                time.sleep(min(left, 60))
                memory.append(round(psutil.Process(process.pid).memory_info().rss / 2**20))
            if life < kills:
                process.kill()
                process.wait()
                process, _ = stack.enter_context(server(model, "--port", str(port), *FLAGS))
        for one in running:
            one.result()
    if not asked.apart <= APART:
        raise SystemExit(f"a vector differs from encode_mixed's by {asked.apart:.2e}")
    counts = {name: asked.counts[name] for name in ("answered", "refused", "broken")}
    lost = asked.counts["asked"] - asked.counts["answered"]
    return {**counts, "lost": lost, "apart": asked.apart, "memory": memory}


def main() -> None:
    """One line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="out/demo/model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kills", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(overload(args.model, args.clients, args.minutes, args.kills)))


if __name__ == "__main__":
    main()
