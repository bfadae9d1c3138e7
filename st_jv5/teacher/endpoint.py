"""A teacher behind a server that speaks OpenAI's embeddings API."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from st_jv5.teacher.shard import Array
from st_jv5.teacher.sources import stacked
from st_jv5.teacher.store import Space

MAX_TEXT_BYTES = 1 << 20
"""Most bytes of an answer for each text: several times 8,192 numbers in words."""
STREAM = "SyncByteStream"
"""What the openai client's HTTP library, of whichever name, calls what it reads an answer from."""


class EndpointTeacher:
    """A server that speaks OpenAI's ``/v1/embeddings``: vLLM, TEI, llama.cpp, infinity, OpenAI.

    Requests go through the ``openai`` client (``pip install "st-jv5[endpoint]"``), several at a
    time; it tries again, waiting longer each time, on 408, 409, 429, 5xx and lost connections. The
    prompt is put in front of each text before it is sent. The server cuts long texts: set it to the
    space's ``max_tokens`` (``extra_body={"truncate_prompt_tokens": 512}`` for vLLM), and check the
    result with ``st-jv5 teacher verify``.

    The server is not trusted. An answer is read up to :data:`MAX_TEXT_BYTES` bytes per text and
    until the timeout, and it must have one vector for each text. Redirects are not followed. No
    message shows the key, even if the server sends it back.

    Args:
        url: The server's address up to ``/v1``, such as ``http://localhost:8000/v1``.
        model: The model's name at the server.
        key_env: Environment variable that holds the key; local servers need none. The key itself is
            not stored anywhere.
        batch_size: Texts per request.
        concurrency: Number of requests that are sent at a time.
        retries: How often a failed request is sent again.
        timeout_seconds: Limit, in seconds, each for connecting, for the beginning of the answer and
            for all of it.
        extra_body: Further fields of each request.

    Example:
        >>> EndpointTeacher("http://localhost:8000/v1", "my-teacher").describe()["by"]
        'http://localhost:8000/v1'
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_env: str = "OPENAI_API_KEY",
        batch_size: int = 32,
        concurrency: int = 8,
        retries: int = 6,
        timeout_seconds: float = 120.0,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be like http://host:8000/v1, not {_without_secrets(url)!r}")
        if parts.username or parts.password or parts.query:
            raise ValueError(f"put the key into the environment ({key_env}), not into the url")
        for name, value in (
            ("batch_size", batch_size),
            ("concurrency", concurrency),
            ("timeout_seconds", timeout_seconds),
        ):
            if value <= 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if retries < 0:
            raise ValueError(f"retries must be >= 0, not {retries}")
        self.url, self.model, self.key_env = url, model, key_env
        self.batch_size, self.concurrency = batch_size, concurrency
        self.retries, self.timeout_seconds = retries, timeout_seconds
        self.extra_body = dict(extra_body or {})
        self._client: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    @property
    def client(self) -> Any:
        """The ``openai`` client."""
        if self._client is None:
            try:
                from openai import DefaultHttpxClient, OpenAI
            except ImportError as error:
                raise ValueError('an endpoint needs: pip install "st-jv5[endpoint]"') from error
            self._client = OpenAI(
                base_url=self.url,
                api_key=self._key() or "none",
                max_retries=self.retries,
                timeout=self.timeout_seconds,
                default_headers={"Accept-Encoding": "identity"},  # nothing unfolds to gigabytes
                http_client=DefaultHttpxClient(
                    follow_redirects=False, event_hooks={"response": [self._bound]}
                ),
            )
        return self._client

    def dim(self) -> int:
        """Width of its vectors, found by embedding one text."""
        return int(self._request(["dim"]).shape[1])

    def embed(self, texts: Sequence[str], space: Space, batch_tokens: int | None = None) -> Array:
        """Longest first, ``batch_size`` texts a request (``batch_tokens`` is not used)."""
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        batches = [
            order[begin : begin + self.batch_size]
            for begin in range(0, len(order), self.batch_size)
        ]
        _ = self.client  # made here, not by several threads at once
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            asked = [[space.prompt + texts[i] for i in batch] for batch in batches]
            answers = list(pool.map(self._request, asked))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            self._client.close()  # nothing waits for an answer that is no longer wanted
            self._client = None
            raise
        pool.shutdown()
        vectors = np.empty((len(texts), answers[0].shape[1]), dtype=np.float32)
        for batch, part in zip(batches, answers, strict=True):
            if part.shape[1] != vectors.shape[1]:
                raise ValueError(
                    f"{self.url} gave vectors of {vectors.shape[1]} and of {part.shape[1]} dims; "
                    f"the latter for {texts[batch[0]][:200]!r}"
                )
            vectors[batch] = part
        return vectors

    def _bound(self, response: Any) -> None:
        """Let no more of an answer be read than there can be, and no longer."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise RefusedError("sends a compressed answer, which was not asked for")
        (base,) = (kind for kind in type(response.stream).__mro__ if kind.__name__ == STREAM)
        most = MAX_TEXT_BYTES * (self.batch_size + 1)
        kind = type("Bounded", (base,), {"__iter__": _bounded, "close": response.stream.close})
        bounded = kind()
        bounded.parts = response.stream
        bounded.most, bounded.seconds = most, self.timeout_seconds
        response.stream = bounded

    def _request(self, texts: list[str]) -> Array:
        from openai import APIConnectionError, APIStatusError

        about = f"{len(texts)} texts, the longest {texts[0][:200]!r}"
        try:
            answer = self.client.embeddings.with_raw_response.create(
                model=self.model, input=texts, extra_body=self.extra_body or None
            )
            raw = answer.http_response.content
            if key := self._key():
                raw = raw.replace(key.encode(), b"***")  # messages show parts of it
            return self._vectors(raw, texts)
        except APIStatusError as error:
            problem = f"answered {error.status_code} to {about}: {error.message}"
            if location := error.response.headers.get("location"):
                problem = (
                    f"sends {about} on to {_without_secrets(location)}; if that is the server you "
                    f"mean, name it"
                )
        except APIConnectionError as error:  # timeouts too
            cause = error.__cause__ if isinstance(error.__cause__, RefusedError) else error
            problem = (
                f"did not answer within {self.timeout_seconds:g} s, {self.retries + 1} times: "
                f"{cause}; what is stored is kept; run it again to continue"
            )
        except (RefusedError, ValueError) as error:
            problem = f"{error} ({about})"
        # Not as the cause: the client's errors hold the answer, and so perhaps the key.
        raise ValueError(f"{self.url} {self._without_key(problem)[:1000]}") from None

    def _key(self) -> str:
        return os.environ.get(self.key_env, "").strip()

    def _without_key(self, told: str) -> str:
        return told.replace(self._key(), "***") if self._key() else told

    def _vectors(self, raw: bytes, texts: list[str]) -> Array:
        """The vectors of an answer; :class:`RefusedError` if it is none to these texts."""
        try:
            answer = json.loads(raw)
        except (ValueError, RecursionError):
            raise RefusedError(f"sent no JSON, but {raw[:60]!r}") from None
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
            raise RefusedError("gave an answer without a list of vectors under 'data'")
        if len(data) != len(texts):
            raise RefusedError(f"gave {len(data)} vectors for {len(texts)} texts")
        rows = {row["index"]: row for row in data if type(row.get("index")) is int}
        if set(rows) != set(range(len(texts))):
            raise RefusedError(f"gave vectors whose indices are not 0..{len(texts) - 1}")
        return stacked([_floats(rows[i].get("embedding")) for i in range(len(texts))], texts)

    def describe(self) -> dict[str, Any]:
        """The server, without anything that could be secret."""
        return {"by": _without_secrets(self.url), "model": self.model}


class RefusedError(Exception):
    """The server sent an answer that cannot be used: without end, or without vectors."""


def _bounded(self: Any) -> Iterator[bytes]:
    """The parts of an answer, up to a size and a time."""
    begin, size = time.monotonic(), 0
    for part in self.parts:
        size += len(part)
        if size > self.most:
            raise RefusedError(f"gave more than {self.most} bytes without an end")
        if time.monotonic() - begin > self.seconds:
            raise RefusedError(f"took more than {self.seconds:g} s for an answer that it had begun")
        yield part


def _floats(told: Any) -> Any:
    """A vector as it was sent: numbers, or float32 in base64, for which the client asks."""
    if not isinstance(told, str):
        return told
    try:
        return np.frombuffer(base64.b64decode(told, validate=True), dtype="<f4")
    except ValueError:
        return told


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{Path(parts.path).as_posix()}"
