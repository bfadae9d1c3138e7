"""Requests and answers as they stand in HTTP bodies: OpenAI's, Jina's and TEI's."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Kind = Literal["float", "base64", "binary", "ubinary"]
"""How a vector is written."""


def _fault(message: str, **context: Any) -> PydanticCustomError:
    return PydanticCustomError("value", message, context)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_input(value: object) -> object:
    """One text, several texts, or token ids of one or several; an error names the text's index."""
    if isinstance(value, str):
        check_text(value, 0)
        return value
    if not isinstance(value, list):
        raise _fault("must be a text, a list of texts, or token ids")
    if not value:
        raise _fault("must hold at least one text")
    if _is_id(value[0]):
        wrong = (i for i, item in enumerate(value) if not _is_id(item))
        kind = "a token id like those before it"
    elif isinstance(value[0], list):
        wrong = (i for i, ids in enumerate(value) if not isinstance(ids, list) or not _all_ids(ids))
        kind = "a list of token ids, not empty"
    else:
        wrong = (i for i, item in enumerate(value) if not isinstance(item, str))
        kind = "a text (a string)"
    if (index := next(wrong, None)) is not None:
        raise _fault("text {index} must be {kind}", index=index, kind=kind)
    if isinstance(value[0], str):
        for index, text in enumerate(value):
            check_text(text, index)
    return value


def _all_ids(ids: list[object]) -> bool:
    return bool(ids) and all(map(_is_id, ids))


def check_text(text: str, index: int) -> None:
    """Raise an error for half a surrogate pair, which no encoding can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _fault("text {index} has half a surrogate pair", index=index) from None


Texts = Annotated[str | list[str], BeforeValidator(check_input)]
Input = Annotated[str | list[str] | list[int] | list[list[int]], BeforeValidator(check_input)]


class Body(BaseModel):
    """A request; an unknown field is an error, since a misspelt one would have no effect."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name not in cls.model_fields:
                shown = name.encode("utf-8", "backslashreplace").decode()
                known = {"known": list(cls.model_fields), "name": shown}
                raise PydanticCustomError("unknown_field", "no field {name}", known)
        return value


class EmbeddingsRequest(Body):
    """OpenAI's and Jina's request, extended: any task, prompt or blend."""

    model: str = Field(description="the server's name for its model, or name/task")
    input: Input
    dimensions: int | None = Field(None, ge=1, description="cut to so many, unit length")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64 is float32, little end first"
    )
    embedding_type: Kind | None = Field(
        None, description="Jina's name for it; binary (int8) and ubinary (uint8) hold 8 signs each"
    )
    task: str | dict[str, float] | None = Field(
        None,
        description="a task of the model or base; an alias, such as query; Jina's names, such as "
        "retrieval.passage; or a blend of weights by task",
    )
    prompt_name: str | None = Field(None, description="default: the task's")
    mode: Literal["head"] | None = Field(
        None, description="head: the task's head on the base's vectors, in place of its adapter"
    )
    truncate: bool | None = Field(
        None, description="false refuses texts that are too long; else they are cut, as by encode"
    )
    normalized: Literal[True] = Field(True, description="vectors have unit length")
    late_chunking: Literal[False] = Field(False, description="not offered")
    user: str | None = Field(None, description="ignored")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = {self.encoding_format, self.embedding_type} - {None}
        if len(kinds) > 1:
            told = "encoding_format and embedding_type must not differ"
            raise PydanticCustomError("conflict", told, {"param": "embedding_type"})
        return self

    @property
    def kind(self) -> Kind:
        """How vectors are written."""
        return self.embedding_type or self.encoding_format or "float"


class EmbedRequest(Body):
    """TEI's request, extended by a task."""

    inputs: Texts
    truncate: bool | None = None
    normalize: Literal[True] = True
    truncation_direction: Literal["Right", "right"] = "Right"
    prompt_name: str | None = None
    dimensions: int | None = Field(None, ge=1)
    task: str | dict[str, float] | None = Field(None, description="default: the server's")


class Embedding(BaseModel):
    """A vector and its text's index."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that the model saw, with prompts and special tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """OpenAI's answer."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class ErrorBody(BaseModel):
    """What is wrong, and with what."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """OpenAI's error."""

    error: ErrorBody
