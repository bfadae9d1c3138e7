"""Errors in the shape of OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from st_jv5.task_table import unknown_name

TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(HTTPException):
    """An error that is sent to the client; FastAPI lets it through, also while it reads a body.

    Args:
        status: HTTP status.
        message: Text for people.
        param: The field of the request that is wrong, such as ``dimensions`` or ``input[3]``.
        code: Name of the error for programs.
        headers: Headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.status, self.message, self.param, self.code = status, message, param, code

    def response(self) -> JSONResponse:
        """The answer."""
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {
            "message": self.message,
            "type": TYPES.get(self.status, fallback),
            "param": self.param,
            "code": self.code,
        }
        return JSONResponse({"error": error}, self.status, headers=self.headers)


def broken() -> ApiError:
    """An error of the server itself; the message names no text."""
    return ApiError(500, "the server failed; its log says where", code="internal_error")


async def on_api_error(request: Request, error: Exception) -> JSONResponse:
    """Answer to an error of an endpoint."""
    assert isinstance(error, ApiError)
    return error.response()


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer to an error of the framework: unknown path, wrong method, broken body."""
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    told = f"{error.detail}: {request.method} {request.url.path}"
    return ApiError(error.status_code, told, code=code, headers=error.headers).response()


async def on_bad_request(request: Request, error: Exception) -> JSONResponse:
    """Answer to a body with wrong fields: the first error."""
    assert isinstance(error, RequestValidationError)
    return _first_fault(error.errors()[0]).response()


def _first_fault(fault: Mapping[str, Any]) -> ApiError:
    where = [str(part) for part in fault["loc"][1:]]
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "json_invalid":
        message = f"the body is not JSON: {context.get('error')}, at character {where[-1]}"
        return ApiError(400, message, code="invalid_json")
    if kind == "unknown_field":
        message = unknown_name("field", context["name"], context["known"], "a request")
        return ApiError(400, message, param=context["name"], code="unknown_field")
    if kind == "conflict":
        return ApiError(400, fault["msg"], param=context["param"], code="conflict")
    if not where:
        message = "the body must be a JSON object, sent as application/json"
        return ApiError(400, message, code="invalid_body")
    param = where[0]
    if kind == "missing":
        return ApiError(400, f"{param} is missing", param=param, code="missing_field")
    message = f"{param}: {fault['msg']}"
    if "index" in context:
        param = f"{param}[{context['index']}]"
    return ApiError(400, message, param=param, code="invalid_value")
