"""One graph with all adapters, whose task is an input."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from st_jv5.adapters import router_of
from st_jv5.engines.graph import TokensToVectors, write_onnx
from st_jv5.modules.routed_linear import RoutedLinear
from st_jv5.task_table import BASE

TASK = "task"


@dataclass
class Rows:
    """What the layers see of the running batch's tasks."""

    adapter: Tensor | None = None
    """``(n,)`` or, one for all rows, ``(1,)``: index of the adapter, of the base any."""
    has_adapter: Tensor | None = None
    """As many, ``(n, 1, 1)``: 1, or 0 for the base."""


class TaskLinear(nn.Module):
    """A linear layer with every adapter's update: a row takes that of its task.

    Args:
        layer: Its weight is shared, its adapters are copied.
        names: The adapters by index; one that does not touch the layer adds nothing there.
        rows: Of the running batch.
    """

    def __init__(self, layer: RoutedLinear, names: Iterable[str], rows: Rows) -> None:
        super().__init__()
        base = layer.get_base_layer()
        self.weight, self.bias = base.weight, base.bias
        self.rows = rows
        rank = max(half.weight.shape[0] for half in layer.lora_A.values())
        down, up = [], []
        for name in names:
            a = base.weight.new_zeros(rank, base.in_features)
            b = base.weight.new_zeros(base.out_features, rank)
            for _, scaling in layer.parts(name):
                own = layer.lora_A[name].weight
                a[: len(own)] = own
                b[:, : len(own)] = layer.lora_B[name].weight * scaling
            down.append(a.T)
            up.append(b.T)
        self.down = nn.Parameter(torch.stack(down), requires_grad=False)  # (tasks, in, rank)
        self.up = nn.Parameter(torch.stack(up), requires_grad=False)  # (tasks, rank, out)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, tokens, in)`` -> ``(n, tokens, out)``."""
        adapter, has_adapter = self.rows.adapter, self.rows.has_adapter
        assert adapter is not None
        assert has_adapter is not None
        low = torch.bmm(x, self.down.index_select(0, adapter)) * has_adapter
        update = torch.bmm(low, self.up.index_select(0, adapter))
        # One multiplication that adds to the update, and the bias last, where engines join it with
        # what follows: each further pass over the states would take as long as an adapter.
        flat = torch.addmm(update.reshape(-1, update.shape[-1]), x.flatten(0, 1), self.weight.T)
        states = flat.reshape(update.shape)
        return states if self.bias is None else states + self.bias


class AllTasks(TokensToVectors):
    """A model with all its adapters as one graph; the base is the last of its tasks.

    Args:
        model: An st_jv5 model with adapters, which is left as it is.
    """

    inputs: ClassVar[tuple[str, ...]] = (*TokensToVectors.inputs, TASK)

    def __init__(self, model: SentenceTransformer) -> None:
        self.names = list(router_of(model).tasks)
        rows = Rows()
        with torch.inference_mode(False), torch.no_grad():
            backbone = copy.deepcopy(router_of(model).model).cpu().float()
            _replace(backbone, self.names, rows)
        super().__init__(model, backbone)
        self.rows = rows

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor, task: Tensor
    ) -> Tensor:
        """Unit rows ``(n, D)`` of tokens, mask ``(n, tokens)`` and tasks ``(n,)``."""
        adapters = len(self.names)
        self.rows.adapter = task.clamp(max=adapters - 1)
        self.rows.has_adapter = (task < adapters).to(torch.float32)[:, None, None]
        return super().forward(input_ids, attention_mask)


def task_names(model: SentenceTransformer) -> list[str]:
    """The tasks of :class:`AllTasks` by index; an error for a model without adapters."""
    names = list(router_of(model).tasks)
    if not names:
        raise ValueError("this model has no adapters; its one task is base")
    return [*names, BASE]


def write_all_tasks(model: SentenceTransformer, path: Path) -> Path:
    """``input_ids, attention_mask (n, tokens), task (n,) -> sentence_embedding (n, D)``."""
    write_onnx(AllTasks(model), path)
    _share_one_task(path)
    return path


def _replace(module: nn.Module, names: Iterable[str], rows: Rows) -> None:
    for name, child in module.named_children():
        if isinstance(child, RoutedLinear):
            setattr(module, name, TaskLinear(child, names, rows))
        else:
            _replace(child, names, rows)


def _share_one_task(path: Path) -> None:
    """Cut ``task`` to one entry where all rows have the same.

    Then an adapter is not copied once for each row, and a batch of one task takes little longer
    than a merged graph.
    """
    import onnx
    from onnx import helper

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    for node in graph.node:
        if node.op_type != "Shape":  # of the rows there are
            node.input[:] = ["rows_task" if name == TASK else name for name in node.input]
    for name, value in (("task_zero", 0), ("task_one", 1)):
        constant = helper.make_tensor(name, onnx.TensorProto.INT64, [1], [value])
        graph.initializer.append(constant)
    first = [
        helper.make_node("ReduceMax", [TASK], ["task_most"], keepdims=1),
        helper.make_node("ReduceMin", [TASK], ["task_least"], keepdims=1),
        helper.make_node("Equal", ["task_most", "task_least"], ["task_is_one"]),
        helper.make_node("Shape", [TASK], ["task_rows"]),
        helper.make_node("Where", ["task_is_one", "task_one", "task_rows"], ["task_end"]),
        helper.make_node("Slice", [TASK, "task_zero", "task_end"], ["rows_task"]),
    ]
    nodes = [*first, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # it says that there is an adapter for each row
    onnx.save(model, path)
