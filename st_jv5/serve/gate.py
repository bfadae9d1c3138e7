"""First checks of every request: API key, size, open requests; it also catches all errors."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import traceback
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from st_jv5.serve.errors import ApiError, broken
from st_jv5.serve.limits import Limits
from st_jv5.serve.metrics import Metrics

logger = logging.getLogger(__name__)

OPEN = ("/", "/page.css", "/page.js", "/health", "/ready", "/docs", "/openapi.json")
"""Paths that need no key: they show nothing of the model or of anyone's texts."""
OPEN_BELOW = "/static-offline-docs/"
UNCOUNTED = ("/health", "/ready", "/metrics")
"""Paths that answer even if the server is busy."""


class Gate:
    """The outermost layer of the application.

    Args:
        app: The application that answers accepted requests.
        limits: ``max_bytes``, ``max_requests`` and ``read_seconds`` are used here.
        keys: API keys, of which a request needs one; without keys every request is accepted.
        metrics: Counts.
    """

    def __init__(
        self, app: ASGIApp, *, limits: Limits, keys: Sequence[str], metrics: Metrics
    ) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.keys = [key.encode() for key in keys]
        self.open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        counted = scope["path"] not in UNCOUNTED
        self.open += counted
        try:
            refused = self._refused(scope)
            if refused is None:
                await self.app(scope, self._bounded(receive), sending)
        except Exception as error:
            places = "".join(traceback.format_tb(error.__traceback__))  # a message may hold a text
            logger.error("%s: %s at\n%s", scope["path"], type(error).__name__, places)
            refused = broken()
        finally:
            self.open -= counted
        if refused is not None and not status:
            await refused.response()(scope, receive, sending)
        path = getattr(scope.get("route"), "path", "other") or "other"
        self.metrics.requests.labels(path, status).inc()
        self.metrics.seconds.labels(path).observe(time.monotonic() - begin)

    def _refused(self, scope: Scope) -> ApiError | None:
        """The reason why a request is refused before it is read, if any."""
        headers = dict(scope["headers"])
        if self.keys and not self._is_open(scope["path"]) and not self._has_key(headers):
            told = "a key is needed: Authorization: Bearer KEY"
            if b"authorization" in headers:
                told = "this key is not known here"
            asked = {"WWW-Authenticate": "Bearer"}
            return ApiError(401, told, code="invalid_api_key", headers=asked)
        if self.open > self.limits.max_requests:
            told = f"{self.limits.max_requests} requests are open; try again in 1 s"
            return ApiError(429, told, code="overloaded", headers={"Retry-After": "1"})
        size = headers.get(b"content-length", b"0")
        if size.isdigit() and int(size) > self.limits.max_bytes:
            return self._too_large()
        return None

    def _is_open(self, path: str) -> bool:
        return path in OPEN or path.startswith(OPEN_BELOW)

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        found = [hmac.compare_digest(given.strip(), key) for key in self.keys]  # all of them
        return any(found) and kind.lower() == b"bearer"

    def _too_large(self) -> ApiError:
        told = f"a request must not have more than {self.limits.max_bytes} bytes"
        return ApiError(413, told, code="too_many_bytes")

    def _bounded(self, receive: Receive) -> Receive:
        """The body, read up to the limits of size and time."""
        until = time.monotonic() + self.limits.read_seconds
        size, whole = 0, False

        async def bounded() -> Message:
            nonlocal size, whole
            if whole:  # what comes now is the client's going away
                return await receive()
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                told = f"the request took more than {self.limits.read_seconds:g} s to come in"
                raise ApiError(408, told, code="request_timeout") from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > self.limits.max_bytes:
                raise self._too_large()
            return message

        return bounded
