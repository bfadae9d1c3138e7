"""What computes a model's vectors: torch in one of two dtypes, or on a CPU a graph of all tasks."""

from __future__ import annotations

import copy
import logging
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor

from st_jv5.adapters import router_of
from st_jv5.choices import AUTO, ENGINES
from st_jv5.engines.all_tasks import TASK, task_names, write_all_tasks
from st_jv5.engines.graph import (
    Run,
    check_installed,
    quantize_onnx,
    quantize_openvino,
    start_onnx,
    start_openvino,
)
from st_jv5.files import read_json, whole_folder, write_json
from st_jv5.fingerprint import fingerprint
from st_jv5.machine.cuda import without_cudnn_attention
from st_jv5.modules.heads import HEAD
from st_jv5.modules.locks import STARTING, forkable_lock
from st_jv5.modules.owner import sharing
from st_jv5.task_table import BASE, Blend, TaskName, unknown_name

logger = logging.getLogger(__name__)

TORCH, BFLOAT16 = ENGINES[:2]
VARIABLE = "ST_JV5_CACHE"
FORMAT = "1"
"""Version of the graphs that are kept; with another, all are made again."""
CHOICE = "choice.json"

Runs = Sequence[tuple[TaskName | None, int]]
"""Task and number of rows, one after the other; a model without tasks has None."""


class Engine(Protocol):
    """A model's forward."""

    device: torch.device
    """Where it computes."""

    def __call__(self, features: dict[str, Any], runs: Runs, asked: Mapping[str, Any]) -> Tensor:
        """Unit rows ``(n, dim)`` of tokens; ``asked`` has the model's own ``dim`` and ``mode``."""


class TorchEngine:
    """The model itself.

    On a GPU it runs without cuDNN's attention, which is slow where each batch has a new shape.

    Args:
        model: Any text model; it is brought out of training.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        if in_training(model):
            model.eval()  # which alone takes as long as a layer
        self.model, self.device = model, model.device

    def __call__(self, features: dict[str, Any], runs: Runs, asked: Mapping[str, Any]) -> Tensor:
        task = runs[0][0]
        named = {} if task is None else {"task": task}
        if len(runs) > 1:
            features["runs"] = list(runs)
        with without_cudnn_attention() if self.device.type == "cuda" else nullcontext():
            output = self.model(batch_to_device(features, self.device), **named, **asked)
        found: Tensor = output["sentence_embedding"]
        return found


def in_training(module: torch.nn.Module) -> bool:
    """Whether a module, or any inside it, is in training: asked in an eighth of eval()'s time."""
    waiting: list[torch.nn.Module | None] = [module]
    while waiting:
        one = waiting.pop()
        if one is not None:
            if one.training:
                return True
            waiting += one._modules.values()
    return False


class GraphEngine:
    """A graph of all tasks, for the backbone; the cut to a dim is the model's own."""

    def __init__(self, model: SentenceTransformer, run: Run) -> None:
        self.model, self.run, self.names = model, run, task_names(model)
        self.device = torch.device("cpu")

    def __call__(self, features: dict[str, Any], runs: Runs, asked: Mapping[str, Any]) -> Tensor:
        numbers = [self.names.index(self.adapter(task)) for task, _ in runs]
        rows = len(features["input_ids"])
        counts = [count for _, count in runs] if len(runs) > 1 else rows
        inputs = {name: features[name].numpy() for name in ("input_ids", "attention_mask")}
        vectors = torch.from_numpy(self.run({**inputs, TASK: np.repeat(numbers, counts)}))
        cut: Tensor = self.model[-1]({"sentence_embedding": vectors}, **asked)["sentence_embedding"]
        return cut

    def adapter(self, task: TaskName | None) -> str:
        """The adapter that a task means, or the base; an error for a blend."""
        adapter = router_of(self.model).resolve(task) or BASE
        if isinstance(adapter, Blend):
            raise ValueError(
                f"this engine has adapters, and no blend such as {adapter!r}; make it an adapter "
                f"(st_jv5.blend_tasks) and name that"
            )
        return adapter


def check_engine(model: SentenceTransformer, name: str, mode: str | None = None) -> None:
    """An error, that says what to do, for an engine that is not known or cannot run this model."""
    if name not in (*ENGINES, AUTO):
        raise ValueError(unknown_name("engine", name, [*ENGINES, AUTO], "st_jv5"))
    if mode == HEAD and name != TORCH:
        raise ValueError(f"heads are computed by torch, not by the engine {name!r}")
    if name in (TORCH, BFLOAT16, AUTO):
        return
    if model.device.type != "cpu":
        raise ValueError(f"the engine {name!r} runs on a CPU; this model is on {model.device}")
    task_names(model)
    kind, _, int8 = name.partition("-")
    for package in {"onnx", kind}:  # every graph is made as ONNX
        check_installed(package, bool(int8) and package == kind)


def check_blend(model: SentenceTransformer, name: str, blend: Mapping[str, float]) -> None:
    """An error, that says what to do, if an engine cannot compute a blend of several adapters."""
    engine = engine_of(model, name)
    if isinstance(engine, GraphEngine):
        engine.adapter(blend)


def engine_of(model: SentenceTransformer, name: str | None, mode: str | None = None) -> Engine:
    """A model's engine, started once while its weights are the same.

    Args:
        model: An st_jv5 model; any text model for ``"torch"``.
        name: One of :data:`~st_jv5.choices.ENGINES`; ``"auto"`` is the one that ``st-jv5 doctor``
            chose for this model on this machine; None is torch.
        mode: The model's ``mode``.
    """
    if name is None or name == TORCH:
        return TorchEngine(model)
    check_engine(model, name, mode)
    with _starting, torch.inference_mode(False):
        state = _state(model)
        known, engines = _started.get(model, (None, {}))
        if known != state:
            engines = {}
        if name not in engines:
            engines[name] = _start(model, _chosen(model) if name == AUTO else name)
        _started[model] = state, engines
        return engines[name]


_starting = forkable_lock(STARTING)
_started: WeakKeyDictionary[SentenceTransformer, tuple[Any, dict[str, Engine]]]
_started = WeakKeyDictionary()


def _state(model: SentenceTransformer) -> list[Any]:
    """Where each weight lies, and how often it was written to, as torch counts it."""
    with router_of(model).registry.changing:
        weights = [*model.parameters(), *model.buffers()]
    return [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]


def _start(model: SentenceTransformer, name: str) -> Engine:
    own = sharing(model)  # an engine must not keep the model, by which it is found, alive
    if name == TORCH:
        return TorchEngine(own)
    if name == BFLOAT16:
        return TorchEngine(_in_bfloat16(own, model))
    start = start_onnx if name.startswith("onnx") else start_openvino
    return GraphEngine(own, start(graph_file(model, name)))


def _in_bfloat16(own: SentenceTransformer, model: SentenceTransformer) -> SentenceTransformer:
    """Copies of the modules in bfloat16, which belong to the model still: it says where to cut."""
    modules = {
        name: copy.deepcopy(module, {id(model): model}).to(torch.bfloat16)
        for name, module in model._modules.items()
        if module is not None
    }
    return cast(SentenceTransformer, sharing(own, _modules=modules))


# ------------------------------------------------------------------------- what is kept on disk


def engine_folder(model: SentenceTransformer) -> Path:
    """Where a model's graphs and the doctor's choice are kept, by its weights.

    Under the environment's ``ST_JV5_CACHE``, or ``~/.cache/st_jv5``.
    """
    root = Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "st_jv5")
    return root / "engines" / f"{fingerprint(model)}-{FORMAT}"


def graph_file(model: SentenceTransformer, name: str) -> Path:
    """An engine's graph, made where it is not kept yet."""
    name = "onnx" if name == "openvino" else name  # which reads it
    folder = engine_folder(model) / name
    file = folder / ("openvino_model_int8.xml" if name == "openvino-int8" else "model.onnx")
    if not file.exists():
        own = folder.with_name(f"{name}-{os.getpid()}")
        with whole_folder(own) as partial:
            if name == "onnx":
                write_all_tasks(model, partial / file.name)
            else:
                quantize = quantize_onnx if name == "onnx-int8" else quantize_openvino
                quantize(graph_file(model, "onnx"), partial / file.name)
        try:
            own.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(own)
    return file


def keep_choice(model: SentenceTransformer, engine: str, about: str) -> None:
    """What ``engine="auto"`` takes from now on, for this model on this machine."""
    folder = engine_folder(model)
    folder.mkdir(parents=True, exist_ok=True)
    choice = {"engine": engine, "about": about, "machine": platform.node()}
    write_json(folder / CHOICE, choice)


def _chosen(model: SentenceTransformer) -> str:
    """The doctor's choice, which is logged; torch if there is none."""
    path = engine_folder(model) / CHOICE
    told = read_json(path) if path.exists() else {}
    if told.get("machine") != platform.node():
        logger.warning(
            'engine="auto" takes torch: this model was not measured on this machine; '
            '"st-jv5 doctor MODEL" does it, once'
        )
        return TORCH
    logger.warning('engine="auto" takes %s', told["about"])
    check_engine(model, told["engine"])
    return str(told["engine"])
