"""One queue and one thread before a model: texts of all requests and tasks share its batches."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from bisect import insort
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sentence_transformers import SentenceTransformer

from st_jv5.adapters import router_of
from st_jv5.batching import default_budget
from st_jv5.encoding import SHARED_TOKENS, Array, NotFiniteError, encode_mixed
from st_jv5.engines.running import TorchEngine, engine_of
from st_jv5.machine.cpu import give_back_memory
from st_jv5.serve.limits import Limits
from st_jv5.task_table import BASE, Blend, TaskName

logger = logging.getLogger(__name__)

WINDOW = 1024
"""Texts, of those that wait longest, that a batch is chosen from."""
SPARE_TOKENS = 16
"""Tokens of padding that cost less than a forward more."""
PADDED = {"cpu": 1 / 16}
"""Device -> most that lengths in a batch differ by, as a share of the longest."""
PADDED_ELSEWHERE = 1 / 4
"""The same on a GPU, where larger batches are worth more padding."""
WARM_TEXT = "warm " * 300
"""Long enough that an adapter is merged."""
TIDY_BATCHES = 256
"""Batches between two times that freed memory is given back."""
MOST_RETRY_SECONDS = 60


class OverloadedError(Exception):
    """The queue is full; the client may try again after ``retry_seconds``."""

    def __init__(self, retry_seconds: int) -> None:
        super().__init__(f"too much is waiting for the model; try again in {retry_seconds} s")
        self.retry_seconds = retry_seconds


class StoppingError(Exception):
    """The server is stopping and accepts no more requests."""


@dataclass(eq=False)
class Job:
    """The texts of one request."""

    texts: Sequence[str]
    tokens: Sequence[int]
    task: TaskName
    prompt_name: str | None
    adapter: str | Blend
    """The adapter: a batch has texts of one adapter, or a few texts of several."""
    future: Future[Array]
    arrived: float
    left: int
    vectors: Array | None = None

    def put(self, index: int, vector: Array) -> None:
        """Store the vector of a text; the last one ends the job."""
        if self.vectors is None:
            self.vectors = np.empty((len(self.texts), len(vector)), dtype=np.float32)
        self.vectors[index] = vector
        self.left -= 1
        if not self.left:
            with suppress(InvalidStateError):  # nobody waits for it any more
                self.future.set_result(self.vectors)

    def fail(self, error: BaseException) -> None:
        """End the job with an error."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Piece(NamedTuple):
    """A waiting text. The lowest turn comes first; of equal turns, the lowest number."""

    turn: int
    number: int
    job: Job
    place: int
    """Among the job's texts."""

    @property
    def tokens(self) -> int:
        """Tokens of the text, with prompt and special tokens."""
        return self.job.tokens[self.place]


def chosen(waiting: Sequence[Piece], budget: int, padded: float) -> list[Piece]:
    """Choose the next batch: the first waiting text, and others that fit it.

    The others are texts of the same adapter, nearest in length first, up to ``budget`` padded
    tokens and while padding stays small. If these are few, short texts of other adapters are added,
    as in :func:`st_jv5.encode_mixed`.

    Args:
        waiting: Waiting texts in the order of their turns, at least one.
        budget: Most padded tokens; the first text is taken even if it is longer.
        padded: Most that their lengths differ by, as a share of the longest; 16 tokens are always
            allowed.
    """
    first, window = waiting[0], waiting[:WINDOW]
    same = [piece for piece in window if piece.job.adapter == first.job.adapter]
    same.sort(key=lambda piece: abs(piece.tokens - first.tokens))
    found: list[Piece] = []
    least = most = first.tokens
    for piece in same:
        low, high = min(least, piece.tokens), max(most, piece.tokens)
        if found and high * (len(found) + 1) > budget:
            break
        if high - low <= max(SPARE_TOKENS, padded * high):
            found.append(piece)
            least, most = low, high
    if sum(piece.tokens for piece in found) > SHARED_TOKENS:
        return found
    totals: Counter[str | Blend] = Counter()
    for piece in window:
        adapter = piece.job.adapter
        if adapter == first.job.adapter or totals[adapter] + piece.tokens > SHARED_TOKENS:
            continue
        if max(most, piece.tokens) * (len(found) + 1) <= budget:
            found.append(piece)
            totals[adapter] += piece.tokens
            most = max(most, piece.tokens)
    return found


class Batcher:
    """Takes texts from any thread and computes them in one, batch by batch.

    Requests share the model by tokens. The turn of a text is the number of tokens before it in its
    own request, plus the turn that is being served when the request arrives. So a request of one
    text that arrives during a request of 2,000 texts is finished first.

    Args:
        model: An st_jv5 model.
        limits: ``max_waiting_tokens`` and ``batch_wait_ms`` are used here.
        batch_tokens: Padded tokens of a batch; None chooses by the device.
        observe: Called with texts, tokens and seconds of each batch.
        engine: What computes, as for :func:`st_jv5.encode`.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        limits: Limits,
        batch_tokens: int | None = None,
        observe: Callable[[int, int, float], None] = lambda texts, tokens, seconds: None,
        engine: str | None = None,
    ) -> None:
        self.model, self.limits, self.observe, self.engine = model, limits, observe, engine
        self.budget = batch_tokens or default_budget(model.device.type)
        self.padded = PADDED.get(model.device.type, PADDED_ELSEWHERE)
        self.waiting_tokens = 0
        self._waiting: list[Piece] = []
        self._changed = threading.Condition()
        self._turn = self._number = 0
        self._tokens_per_second = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="st_jv5-model", daemon=True)

    @property
    def waiting_texts(self) -> int:
        """Number of texts that are not in a batch yet."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether the server accepts no more requests."""
        return self._stopping

    def start(self) -> None:
        """Start the engine, merge the adapters, which no request is to wait for, and begin."""
        for task in router_of(self.model).tasks or [BASE]:
            encode_mixed(
                self.model, [WARM_TEXT], [task], batch_tokens=self.budget, engine=self.engine
            )
        self._thread.start()

    def close(self) -> None:
        """Accept no more texts, finish those that wait, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def check_room(self, tokens: int = 0) -> None:
        """An error if so many more tokens cannot wait."""
        if self._stopping:
            raise StoppingError("the server is stopping")
        if self.waiting_tokens and self.waiting_tokens + tokens > self.limits.max_waiting_tokens:
            seconds = self.waiting_tokens / max(self._tokens_per_second, 1.0)
            raise OverloadedError(int(min(max(seconds, 1), MOST_RETRY_SECONDS)))

    def submit(
        self,
        texts: Sequence[str],
        tokens: Sequence[int],
        task: TaskName,
        prompt_name: str | None = None,
    ) -> Future[Array]:
        """Queue the texts of a request; cancelling the future drops those that still wait.

        Args:
            texts: One text or more.
            tokens: Number of tokens of each text.
            task: A task, an alias or a blend.
            prompt_name: None is the task's default.

        Returns:
            A future of ``(n, width)`` unit rows, float32.

        Raises:
            OverloadedError: Too many tokens wait.
            StoppingError: After :meth:`close`.
        """
        adapter = router_of(self.model).resolve(task) or BASE
        future: Future[Array] = Future()
        now = time.monotonic()
        job = Job(texts, tokens, task, prompt_name, adapter, future, now, len(texts))
        with self._changed:
            self.check_room(sum(tokens))
            turn = self._turn
            for index, size in enumerate(tokens):
                insort(self._waiting, Piece(turn, self._number, job, index))
                self._number += 1
                turn += size
            self.waiting_tokens += sum(tokens)
            self._changed.notify_all()
        future.add_done_callback(lambda _: self._drop(job))
        return future

    def _drop(self, job: Job) -> None:
        """Forget what still waits of a job that has ended: nobody asks for it any more."""
        with self._changed:
            if job.left:
                self._remove([piece for piece in self._waiting if piece.job is job])

    def _remove(self, pieces: Collection[Piece], within: int | None = None) -> None:
        """Take pieces out of the first so many that wait: a long queue is not walked each time."""
        gone = {piece.number for piece in pieces}
        self.waiting_tokens -= sum(piece.tokens for piece in pieces)
        self._waiting[:within] = [p for p in self._waiting[:within] if p.number not in gone]

    # ----------------------------------------------------------------------------- the one thread

    def _work(self) -> None:
        number, compute = 0, engine_of(self.model, self.engine)
        with (
            router_of(compute.model).merging.unchanging()
            if isinstance(compute, TorchEngine)
            else nullcontext()
        ):
            while batch := self._next():
                self._run(batch)
                number += 1
                if number % TIDY_BATCHES == 0:
                    give_back_memory()

    def _next(self) -> list[Piece]:
        """The next batch; none when all is done and the server stops."""
        with self._changed:
            while True:
                while not self._waiting:
                    if self._stopping:
                        return []
                    self._changed.wait()
                first = self._waiting[0]
                until = first.job.arrived + self.limits.batch_wait_ms / 1000
                left = until - time.monotonic()
                if left <= 0 or self._stopping or self.waiting_tokens >= self.budget:
                    batch = chosen(self._waiting, self.budget, self.padded)
                    self._turn = max(self._turn, first.turn)
                    self._remove(batch, WINDOW)
                    return batch
                self._changed.wait(left)

    def _run(self, batch: Sequence[Piece]) -> None:
        """Compute a batch; where that fails, each request of it alone, so that one fails alone."""
        begin = time.monotonic()
        try:
            vectors = encode_mixed(
                self.model,
                [piece.job.texts[piece.place] for piece in batch],
                [piece.job.task for piece in batch],
                prompt_names=[piece.job.prompt_name for piece in batch],
                batch_tokens=self.budget,
                engine=self.engine,
            )
        except Exception as error:
            jobs = list(dict.fromkeys(piece.job for piece in batch))
            if len(jobs) == 1:
                _tell(error)
                jobs[0].fail(_own_index(error, batch))
                return
            for job in jobs:
                self._run([piece for piece in batch if piece.job is job])
            return
        tokens = sum(piece.tokens for piece in batch)
        seconds = time.monotonic() - begin
        speed = tokens / max(seconds, 1e-6)
        self._tokens_per_second = 0.8 * (self._tokens_per_second or speed) + 0.2 * speed
        self.observe(len(batch), tokens, seconds)
        for piece, vector in zip(batch, vectors, strict=True):
            piece.job.put(piece.place, vector)


def _own_index(error: Exception, batch: Sequence[Piece]) -> Exception:
    """The same error, by the index that a text has in its request."""
    if isinstance(error, NotFiniteError):
        return NotFiniteError(batch[error.index].place, error.text)
    return error


def _tell(error: Exception) -> None:
    """Log what happened and where, but no message: it may hold a text."""
    places: Any = "".join(traceback.format_tb(error.__traceback__))
    logger.error("a batch failed with %s at\n%s", type(error).__name__, places)
