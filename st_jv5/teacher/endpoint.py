"""A teacher behind a server that speaks OpenAI's embeddings API."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from st_jv5.teacher.shard import Array
from st_jv5.teacher.sources import stacked
from st_jv5.teacher.store import Space


class EndpointTeacher:
    """A server that speaks OpenAI's ``/v1/embeddings``: vLLM, TEI, llama.cpp, infinity, OpenAI.

    Requests go through the ``openai`` client (``pip install "st-jv5[endpoint]"``), several at a
    time; it tries again, waiting longer each time, on 408, 409, 429, 5xx and lost connections.
    The prompt is put before each text here. Where the input is cut is up to the server: give it
    the space's ``max_tokens`` (``extra_body={"truncate_prompt_tokens": 512}`` for vLLM), and
    compare with ``st-jv5 teacher verify``.

    Args:
        url: Up to ``/v1``, such as ``http://localhost:8000/v1``.
        model: The model's name at the server.
        key_env: Environment variable that holds the key; local servers want none. The key itself
            is kept nowhere.
        batch_size: Texts per request.
        concurrency: Requests under way at once.
        retries: Further tries of a request.
        timeout_seconds: For one request.
        extra_body: More fields for each request.

    Example:
        >>> EndpointTeacher("http://localhost:8000/v1", "my-teacher").describe()["by"]
        'http://localhost:8000/v1'
    """

    def __init__(
        self,
        url: str,
        model: str,
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
                from openai import OpenAI
            except ImportError as error:
                raise ValueError('an endpoint needs: pip install "st-jv5[endpoint]"') from error
            self._client = OpenAI(
                base_url=self.url,
                api_key=os.environ.get(self.key_env) or "none",
                max_retries=self.retries,
                timeout=self.timeout_seconds,
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
            found = list(pool.map(self._request, asked))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            self._client.close()  # nothing waits for an answer that is no longer wanted
            self._client = None
            raise
        pool.shutdown()
        vectors = np.empty((len(texts), found[0].shape[1]), dtype=np.float32)
        for batch, part in zip(batches, found, strict=True):
            if part.shape[1] != vectors.shape[1]:
                raise ValueError(
                    f"{self.url} gave vectors of {vectors.shape[1]} and of {part.shape[1]} dims; "
                    f"the latter for {texts[batch[0]][:200]!r}"
                )
            vectors[batch] = part
        return vectors

    def _request(self, texts: list[str]) -> Array:
        from openai import APIConnectionError, APIStatusError

        try:
            answer = self.client.embeddings.create(
                model=self.model, input=texts, extra_body=self.extra_body or None
            )
        except APIStatusError as error:
            raise ValueError(
                f"{self.url} answered {error.status_code} to {len(texts)} texts, the longest "
                f"{texts[0][:200]!r}: {error.message[:500]}"
            ) from error
        except APIConnectionError as error:  # timeouts too
            raise ValueError(
                f"{self.url} did not answer within {self.timeout_seconds:g} s, "
                f"{self.retries + 1} times: {error}; what is stored stays, run again to go on"
            ) from error
        rows = sorted(answer.data, key=lambda row: row.index)
        if [row.index for row in rows] != list(range(len(texts))):
            raise ValueError(f"{self.url} gave {len(rows)} vectors for {len(texts)} texts")
        return stacked([row.embedding for row in rows], texts)

    def describe(self) -> dict[str, Any]:
        """The server, without anything that could be secret."""
        return {"by": _without_secrets(self.url), "model": self.model}


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{Path(parts.path).as_posix()}"
