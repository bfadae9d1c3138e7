"""Who computes a teacher's vectors: a local model, a function, or a server (endpoint.py)."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from importlib.resources import files
from pathlib import Path
from statistics import mode
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from st_jv5.encoding import encode
from st_jv5.teacher.shard import DTYPES, Array
from st_jv5.teacher.store import Space


@runtime_checkable
class Teacher(Protocol):
    """Interface of teachers: it embeds texts for a space of a store."""

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
        revision: Branch, tag or commit of a Hub model.
        pooling: Pooling to use instead of the model's: ``lasttoken``, ``mean`` or ``cls``. For a
            plain transformers checkpoint, which names none, sentence-transformers takes the mean.
        dtype: Dtype of the weights: float32, float16, bfloat16; None as the model is stored.
        autocast: Run forward passes in bfloat16, whatever the dtype of the weights; False leaves
            the precision to the caller.
        device: A torch device such as ``cuda:1``; None: sentence-transformers chooses.

    Example:
        >>> LocalTeacher(teacher_folder, dtype="bfloat16").dim()
        384
    """

    def __init__(
        self,
        model: str | SentenceTransformer,
        revision: str = "",
        *,
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
            raise ValueError(
                "revision, pooling, dtype and device apply only to a model that is still to be "
                "loaded"
            )
        self.autocast = autocast

    def __reduce__(self) -> Any:
        name = self.name  # another process may run in another folder
        if name is not None and Path(name).is_dir():
            name = str(Path(name).resolve())
        revision, pooling, dtype, autocast, device = self.settings
        make = partial(LocalTeacher, pooling=pooling, dtype=dtype, autocast=autocast, device=device)
        return make, (name or self.model, revision)

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
                model_kwargs={"dtype": DTYPES[dtype]} if dtype else {},
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
        """Vectors, in batches by tokens, sorted by length; cut at the space's max_tokens."""
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


def stacked(given: Any, texts: Sequence[str]) -> Array:
    """What a teacher gave for texts, as float32 ``(n, dim)``.

    Raises:
        ValueError: It is not a vector of numbers for each text, all as wide; names the first text
            whose vector is none, or has not the usual width.
    """
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu().float().numpy()
    if not isinstance(given, np.ndarray | Sequence) or isinstance(given, str | bytes):
        raise ValueError(f"the teacher gave {type(given).__name__} for {_named(texts)}{WANTED}")
    if len(given) != len(texts):
        raise ValueError(f"the teacher gave {len(given)} vectors for {_named(texts)}")
    rows = [_row(vector, text) for vector, text in zip(given, texts, strict=True)]
    usual = mode(map(len, rows)) if rows else 0
    for row, text in zip(rows, texts, strict=True):
        if len(row) != usual:
            raise ValueError(
                f"the teacher gave {len(row)} dims for {text[:200]!r}, but {usual} for others"
            )
    return np.stack(rows) if rows else np.empty((0, 0), np.float32)


WANTED = "; a teacher gives vectors (n, dim), numbers, one for each text"


def _row(vector: Any, text: str) -> Array:
    try:
        row = np.asarray(vector.tolist() if isinstance(vector, torch.Tensor) else vector)
        row = np.array(row.tolist()) if row.dtype == object else row
        if row.ndim == 1 and row.dtype.kind in "fiu":
            return row.astype(np.float32)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"the teacher gave {reprlib.repr(vector)} for {text[:200]!r}{WANTED}")


def _named(texts: Sequence[str]) -> str:
    return f"{len(texts)} texts, the first {texts[0][:200] if texts else None!r}"


class FunctionTeacher:
    """A teacher made from a function of texts, with the prompt in front, to vectors ``(n, dim)``.

    Example:
        >>> FunctionTeacher(lambda texts: [[len(text), 1.0] for text in texts]).dim()
        2
    """

    def __init__(self, function: Callable[[list[str]], Any]) -> None:
        self.function = function

    def dim(self) -> int:
        """Width of its vectors, found by embedding one text."""
        return self._vectors(["dim"]).shape[1]

    def embed(self, texts: Sequence[str], space: Space, batch_tokens: int | None = None) -> Array:
        """Vectors of the texts, in one call of the function."""
        return self._vectors([space.prompt + text for text in texts])

    def _vectors(self, texts: list[str]) -> Array:
        return stacked(self.function(texts), texts)

    def describe(self) -> dict[str, Any]:
        """The function's name."""
        return {"by": getattr(self.function, "__name__", type(self.function).__name__)}
