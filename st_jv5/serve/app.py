"""The ASGI application: its paths, from a request's body to the answer's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sentence_transformers import SentenceTransformer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from st_jv5.adapters import router_of
from st_jv5.encoding import NotFiniteError, head_vectors
from st_jv5.engines.running import TORCH, check_blend, check_engine, engine_of
from st_jv5.modules.heads import HEAD
from st_jv5.serve.answers import openai_answer, tei_answer
from st_jv5.serve.batcher import Batcher, OverloadedError, StoppingError
from st_jv5.serve.errors import ApiError, broken, on_api_error, on_bad_request, on_http_error
from st_jv5.serve.gate import Gate
from st_jv5.serve.limits import Limits
from st_jv5.serve.look_up import QueryTable, split
from st_jv5.serve.metrics import Metrics
from st_jv5.serve.naming import Asked, Names
from st_jv5.serve.tokens import TokenCounter
from st_jv5.serve.wire import EmbeddingsAnswer, EmbeddingsRequest, EmbedRequest, ErrorAnswer
from st_jv5.task_table import BASE

PAGE = Path(__file__).parent / "page"
GONE = 499
"""nginx's number for a client that went away; nobody reads it but the metrics."""
STATUSES = (400, 401, 404, 408, 413, 429, 500, 503)
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in STATUSES}
TOKEN_IDS = (
    "token ids are refused: most clients that send them have counted with a tokenizer that is not "
    "this model's, and the vectors would be of other words. Send texts (LangChain: "
    "check_embedding_ctx_length=False); --token-ids takes ids of this model's own tokenizer"
)


def create_app(
    model: SentenceTransformer,
    names: Sequence[str],
    limits: Limits | None = None,
    *,
    keys: Sequence[str] = (),
    token_ids: bool = False,
    batch_tokens: int | None = None,
    engine: str | None = None,
    task: str | None = None,
) -> FastAPI:
    """An ASGI application that serves an st_jv5 model.

    One thread computes the vectors. Do not change the model while the application runs.

    A model of :func:`st_jv5.fit_query_table` answers the task ``query`` by look-up, beside that
    thread, and all others as documents.

    Args:
        model: An st_jv5 model, or one of :func:`st_jv5.fit_query_table`.
        names: Names of the model in requests; a request may add a task, as in ``name/retrieval``.
        limits: Limits of requests and of the queue.
        keys: API keys; a request needs one of them. Without keys every request is answered.
        token_ids: Accept token ids of the model's own tokenizer in place of texts.
        batch_tokens: Most padded tokens of a batch; None chooses by the device.
        engine: What computes, as for :func:`st_jv5.encode`; it is started here.
        task: Task of requests that name none; None is the model's default task.

    Raises:
        ValueError: A name or key is empty, the task is unknown, the engine cannot run the model, or
            the model is of another kind.

    Example:
        >>> from starlette.testclient import TestClient
        >>> with TestClient(create_app(model, ["mine"])) as client:
        ...     body = {"model": "mine/query", "input": "who painted it?", "dimensions": 64}
        ...     answer = client.post("/v1/embeddings", json=body).json()
        >>> len(answer["data"][0]["embedding"])
        64
    """
    if not names or not all(names):
        raise ValueError("a served model needs a name")
    if not all(keys):
        raise ValueError("a key must not be empty: it would open to all")
    model, table = split(model)
    router_of(model).resolve(task or BASE)  # an error for one that is not known
    engine_of(model, engine)
    naming = Names(model, names, default=task, looks_up=table is not None)
    service = Service(model, table, naming, limits or Limits(), token_ids, batch_tokens, engine)
    app = FastAPIOffline(
        redoc_url=None,
        title="st_jv5",
        version="1",
        description=f"Embeddings of {names[0]}, by task.",
        lifespan=service.lifespan,
        favicon_url="data:,",
    )
    app.add_middleware(Gate, limits=service.limits, keys=keys, metrics=service.metrics)
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_bad_request)
    answers: Mapping[int | str, Any] = {200: {"model": EmbeddingsAnswer}, **ERRORS}
    app.post("/v1/embeddings", responses={**answers})(service.embeddings)
    app.post("/embed", responses={200: {"model": list[list[float]]}, **ERRORS})(service.embed)
    app.get("/v1/models")(service.models)
    app.get("/v1/models/{name:path}", responses={404: ERRORS[404]})(service.model_named)
    app.get("/health")(service.health)
    app.get("/ready")(service.ready)
    app.get("/metrics")(service.told_metrics)
    app.state.tasks = service.names.tasks()
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


class Service:
    """What the paths share."""

    def __init__(
        self,
        model: SentenceTransformer,
        table: QueryTable | None,
        names: Names,
        limits: Limits,
        token_ids: bool,
        batch_tokens: int | None,
        engine: str | None,
    ) -> None:
        self.limits, self.token_ids = limits, token_ids
        self.names, self.table = names, table
        self.width = int(model.get_embedding_dimension() or 0)
        self.counter = TokenCounter.of(self.names.router)
        self.metrics = Metrics()
        self.batcher = Batcher(model, limits, batch_tokens, self.metrics.batch, engine)
        self.metrics.watch(self.batcher)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """The batcher's: what it has taken is finished when the server stops."""
        await run_in_threadpool(self.batcher.start)
        yield
        await run_in_threadpool(self.batcher.close)

    # ------------------------------------------------------------------------------- the paths

    async def embeddings(self, body: EmbeddingsRequest, request: Request) -> Response:
        """Vectors of texts, as OpenAI's and Jina's servers give them."""
        asked = self.names.asked(body.model, body.task, body.prompt_name, body.mode)
        self._check_dim(body.dimensions)
        vectors, tokens = await self._vectors(request, "input", body.input, asked, body.truncate)
        raw = await run_in_threadpool(
            openai_answer, vectors, body.dimensions, body.kind, body.model, tokens
        )
        return Response(raw, media_type="application/json")

    async def embed(self, body: EmbedRequest, request: Request) -> Response:
        """Vectors of texts, as text-embeddings-inference returns them."""
        asked = self.names.asked(None, body.task, body.prompt_name)
        self._check_dim(body.dimensions)
        vectors, _ = await self._vectors(request, "inputs", body.inputs, asked, body.truncate)
        raw = await run_in_threadpool(tei_answer, vectors, body.dimensions)
        return Response(raw, media_type="application/json")

    async def models(self) -> dict[str, Any]:
        """The names that ``model`` may have: the model's, alone and with each task behind it."""
        return {"object": "list", "data": self.names.listed()}

    async def model_named(self, name: str) -> dict[str, Any]:
        """One of the names of ``/v1/models``."""
        for found in self.names.listed():
            if found["id"] == name:
                return found
        self.names.asked(name, None, None)
        raise ApiError(404, f"no model {name!r}", param="model", code="model_not_found")

    async def health(self) -> dict[str, str]:
        """Whether the process works."""
        if not self.batcher.alive:
            raise ApiError(503, "the model's thread has ended", code="broken")
        return {"status": "ok"}

    async def ready(self) -> dict[str, str]:
        """Whether the server accepts requests."""
        if not self.batcher.alive or self.batcher.stopping:
            raise ApiError(503, "not ready", code="not_ready")
        return {"status": "ready"}

    async def told_metrics(self) -> Response:
        """Counters, for Prometheus."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    # ------------------------------------------------------------------- from texts to vectors

    def _check_dim(self, dim: int | None) -> None:
        if dim is not None and dim > self.width:
            told = f"dimensions must lie in 1..{self.width} (the model's width), not {dim}"
            raise ApiError(400, told, param="dimensions", code="invalid_value")

    async def _vectors(
        self, request: Request, field: str, given: Any, asked: Asked, truncate: bool | None
    ) -> tuple[Any, int]:
        """Vectors ``(n, width)`` and the tokens that they took."""
        if asked.looked_up:
            return await run_in_threadpool(self._looked_up, field, given, asked, truncate)
        try:
            self.batcher.check_room()
            texts, counts = await run_in_threadpool(self._read, field, given, asked, truncate)
            future = self.batcher.submit(texts, counts, asked.task, asked.prompt_name)
        except OverloadedError as error:
            retry = {"Retry-After": str(error.retry_seconds)}
            raise ApiError(429, str(error), code="overloaded", headers=retry) from None
        except StoppingError as error:
            raise ApiError(503, str(error), code="stopping") from None
        self._count(asked, counts)
        vectors = await self._answer(request, field, asyncio.wrap_future(future))
        if asked.head is not None:
            vectors = await run_in_threadpool(head_vectors, self.names.model, vectors, asked.head)
        return vectors, sum(counts)

    def _looked_up(
        self, field: str, given: Any, asked: Asked, truncate: bool | None
    ) -> tuple[Any, int]:
        """The same of queries, by the table."""
        assert self.table is not None
        texts, counts = self._read(field, given, asked, truncate)
        self._count(asked, counts)
        return self.table.vectors([asked.prompt + text for text in texts]), sum(counts)

    def _count(self, asked: Asked, counts: Sequence[int]) -> None:
        self.metrics.texts.labels(asked.label).inc(len(counts))
        self.metrics.tokens.labels(asked.label).inc(sum(counts))

    def _check_engine(self, asked: Asked) -> None:
        """An error for what the engine does not compute."""
        name = self.batcher.engine or TORCH
        try:
            check_engine(self.names.model, name, asked.head and HEAD)
            if isinstance(asked.task, Mapping):
                check_blend(self.names.model, name, asked.task)
        except ValueError as error:
            param = "mode" if asked.head else "task"
            raise ApiError(400, str(error), param=param, code="not_by_this_engine") from error

    async def _answer(self, request: Request, field: str, vectors: asyncio.Future[Any]) -> Any:
        """The vectors; they are dropped if they take too long or the client disconnects."""
        gone = asyncio.ensure_future(_gone(request))
        try:
            waiting: set[asyncio.Future[Any]] = {vectors, gone}
            await asyncio.wait(
                waiting,
                timeout=self.limits.timeout_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if vectors.done():
                return vectors.result()
            if gone.done():
                raise ApiError(GONE, "the client disconnected", code="gone")
            told = f"no vectors within {self.limits.timeout_seconds:g} s; send fewer texts at once"
            raise ApiError(503, told, code="timeout", headers={"Retry-After": "1"})
        except NotFiniteError as error:
            told = f"the vector of text {error.index} is NaN or infinite: the weights are broken"
            raise ApiError(500, told, param=f"{field}[{error.index}]", code="not_finite") from None
        except ApiError:
            raise
        except Exception:
            raise broken() from None  # the batcher has told where
        finally:
            gone.cancel()
            vectors.cancel()

    def _read(
        self, field: str, given: Any, asked: Asked, truncate: bool | None
    ) -> tuple[list[str], list[int]]:
        """A request's texts, and for each the number of tokens that the model will see."""
        self._check_engine(asked)
        texts = self._texts(field, given)
        counter = self.table.counter if asked.looked_up and self.table else self.counter
        counts = counter.counts([asked.prompt + text for text in texts])
        most = counter.most
        for index, count in enumerate(counts):
            if not count:
                told = f"text {index} has no token, and so no vector"
                raise ApiError(400, told, param=f"{field}[{index}]", code="empty_text")
            if truncate is False and most is not None and count > most:
                told = f"text {index} has {count} tokens, but the model takes {most}"
                raise ApiError(400, told, param=f"{field}[{index}]", code="text_too_long")
        if most is not None:
            self.metrics.cut.inc(sum(count > most for count in counts))
            counts = [min(count, most) for count in counts]
        if sum(counts) > self.limits.max_tokens:
            told = f"{sum(counts)} tokens are more than {self.limits.max_tokens}; send fewer texts"
            raise ApiError(413, told, param=field, code="too_many_tokens")
        return texts, counts

    def _texts(self, field: str, given: Any) -> list[str]:
        if isinstance(given, str):
            return [given]
        items = [given] if isinstance(given[0], int) else given
        if len(items) > self.limits.max_texts:
            told = f"{len(items)} texts are more than {self.limits.max_texts}; send fewer"
            raise ApiError(413, told, param=field, code="too_many_texts")
        if isinstance(items[0], str):
            return list(items)
        if not self.token_ids:
            raise ApiError(400, TOKEN_IDS, param=field, code="token_ids")
        texts = [self.counter.text_of(ids) for ids in items]
        if None in texts:
            index = texts.index(None)
            told = (
                f"text {index} has token ids that are not of this model's tokenizer, or not what "
                f"it would make of their text"
            )
            raise ApiError(400, told, param=f"{field}[{index}]", code="token_ids")
        return [text for text in texts if text is not None]


async def _gone(request: Request) -> None:
    """Return when the client has gone away; its request has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
