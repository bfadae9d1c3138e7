"""Who computes a teacher's vectors: a local model, a server, or a function."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from st_jv5.encoding import encode
from st_jv5.teacher.store import Array, Space

DTYPES = ("float32", "float16", "bfloat16")


@runtime_checkable
class Teacher(Protocol):
    """Anything that embeds texts for a space."""

    def embed(self, texts: Sequence[str], space: Space, batch_tokens: int | None = None) -> Array:
        """Vectors ``(n, dim)`` of ``n`` texts, each behind the space's prompt."""
        ...

    def dim(self) -> int:
        """Width of its vectors."""
        ...

    def describe(self) -> dict[str, Any]:
        """What is worth knowing of how it computes; stands in the store."""
        ...


def as_teacher(teacher: Any) -> Teacher:
    """A SentenceTransformer, a function of texts, or a :class:`Teacher` as a Teacher."""
    if isinstance(teacher, SentenceTransformer):
        return LocalTeacher(teacher)
    if isinstance(teacher, Teacher):
        return teacher
    if callable(teacher):
        return FunctionTeacher(teacher)
    raise ValueError(
        f"a teacher must be a SentenceTransformer, a LocalTeacher, an EndpointTeacher or a "
        f"function of a list of texts, not {teacher!r}"
    )


def resolve_model(name: str) -> str:
    """A Hub id or folder as it is; ``package:NAME/FOLDER`` as the folder inside the package."""
    if not name.startswith("package:"):
        return name
    package, _, folder = name.removeprefix("package:").partition("/")
    try:
        return str(files(package) / folder)
    except ModuleNotFoundError as error:
        raise ValueError(f"{name}: pip install {package.replace('_', '-')}") from error


class LocalTeacher:
    """A SentenceTransformer on this machine, loaded when it is first needed.

    Args:
        model: A Hub id, a folder, ``package:NAME/FOLDER``, or a loaded model.
        revision: Of a Hub model.
        pooling: Pool so instead of the model's own way: ``lasttoken``, ``mean``, ``cls``. A plain
            transformers checkpoint has no way of its own, and the host then takes the mean.
        dtype: Of the weights: float32, float16, bfloat16; None as the model is stored.
        autocast: Run the forwards in bfloat16 whatever the weights; False leaves it to the caller.
        device: Such as ``cuda:1``; None is the host's choice.

    Example:
        >>> LocalTeacher(teacher_folder, dtype="bfloat16").dim()
        384
    """

    def __init__(
        self,
        model: str | SentenceTransformer,
        revision: str = "",
        pooling: str = "",
        dtype: str | None = None,
        autocast: bool = False,
        device: str | None = None,
    ) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)} or None, not {dtype!r}")
        self.name = model if isinstance(model, str) else None
        self.settings = (revision, pooling, dtype, autocast, device)
        self._model = None if isinstance(model, str) else model
        if self._model is not None and (revision, pooling, dtype, device) != ("", "", None, None):
            raise ValueError("revision, pooling, dtype and device are for a model to be loaded")
        self.autocast = autocast

    def __reduce__(self) -> Any:
        name = self.name  # another process may run in another folder
        if name is not None and Path(name).is_dir():
            name = str(Path(name).resolve())
        return LocalTeacher, (name or self.model, *self.settings)

    @property
    def model(self) -> SentenceTransformer:
        """The model, loaded now if it was not."""
        if self._model is None:
            assert self.name is not None
            revision, pooling, dtype, _, device = self.settings
            model = SentenceTransformer(
                resolve_model(self.name),
                revision=revision or None,
                device=device,
                model_kwargs={"dtype": getattr(torch, dtype)} if dtype else {},
            )
            if pooling:
                places = [i for i, module in enumerate(model) if isinstance(module, Pooling)]
                if len(places) != 1:
                    raise ValueError(f"{self.name} has {len(places)} stock Pooling modules, not 1")
                width = model[places[0]].embedding_dimension
                model[places[0]] = Pooling(width, pooling_mode=pooling)
            self._model = model
        return self._model

    def dim(self) -> int:
        """Width of its vectors."""
        return int(self.model.get_embedding_dimension())

    def embed(self, texts: Sequence[str], space: Space, batch_tokens: int | None = None) -> Array:
        """In batches by tokens, sorted by length; cut at the space's max_tokens."""
        model = self.model
        before, device = model.max_seq_length, model.device.type
        model.max_seq_length = min(space.max_tokens, before or space.max_tokens)
        try:
            with torch.autocast(device, torch.bfloat16) if self.autocast else nullcontext():
                return encode(model, texts, prompt=space.prompt, batch_tokens=batch_tokens)
        finally:
            model.max_seq_length = before

    def describe(self) -> dict[str, Any]:
        """Precision and device."""
        device, dtype = self.model.device.type, self.model.dtype
        if self.autocast:
            dtype = torch.bfloat16
        elif torch.is_autocast_enabled(device):  # the caller's
            dtype = torch.get_autocast_dtype(device)
        forwards = str(dtype).removeprefix("torch.")
        return {"by": "SentenceTransformer", "forwards": forwards, "device": device}


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
        if parts.username or parts.password:
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
        widths = {len(row.embedding) for row in rows}
        if len(widths) > 1:
            raise ValueError(
                f"{self.url} gave vectors of {sorted(widths)} dims; texts from {texts[0][:200]!r}"
            )
        return np.array([row.embedding for row in rows], dtype=np.float32)

    def describe(self) -> dict[str, Any]:
        """The server, without anything that could be secret."""
        return {"by": _without_secrets(self.url), "model": self.model}


class FunctionTeacher:
    """A function from a list of texts, the prompt before each, to vectors ``(n, dim)``.

    Example:
        >>> FunctionTeacher(lambda texts: [[len(text), 1.0] for text in texts]).dim()
        2
    """

    def __init__(self, function: Callable[[list[str]], Any]) -> None:
        self.function = function

    def dim(self) -> int:
        """Width of its vectors, found by embedding one text."""
        return int(np.asarray(self.function(["dim"])).shape[1])

    def embed(self, texts: Sequence[str], space: Space, batch_tokens: int | None = None) -> Array:
        """In one call."""
        found = self.function([space.prompt + text for text in texts])
        return found.detach().cpu().float().numpy() if isinstance(found, torch.Tensor) else found

    def describe(self) -> dict[str, Any]:
        """The function's name."""
        return {"by": getattr(self.function, "__name__", type(self.function).__name__)}


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{Path(parts.path).as_posix()}"
