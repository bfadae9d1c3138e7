"""ONNX and OpenVINO: one graph from tokens to unit vectors."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import PreTrainedModel

from st_jv5.adapters import router_of
from st_jv5.modules.pooling import pooling_mode
from st_jv5.modules.rotation import rotation_in

OUTPUT = "sentence_embedding"
NEEDED = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "openvino int8": ("openvino", "nncf"),
}
PROTOBUF_LIMIT = 1 << 30
"""Bytes of weights that still go into one ONNX file, whose format ends at 2 GiB."""

Array = np.ndarray[Any, Any]
Run = Callable[[dict[str, Array]], Array]


class TokensToVectors(nn.Module):
    """The whole model as one float32 graph, for padding on either side.

    Args:
        model: Gives pooling, rotation, and how positions are counted.
        backbone: With the weights that the graph is to have; it is changed.
    """

    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")

    def __init__(self, model: SentenceTransformer, backbone: PreTrainedModel) -> None:
        super().__init__()
        rotation = rotation_in(model)
        self.pooling = pooling_mode(model)
        self.rotation = None if rotation is None else rotation.stock(torch.float32).linear
        self.backbone = backbone
        # Learned, absolute positions: padding in front would shift them.
        self.absolute = router_of(model).counts_from_the_left()
        self.cpu().float().eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Unit rows ``(n, D)`` of tokens and mask ``(n, tokens)``."""
        told = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.absolute:
            told["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        states = self.backbone(**told)[0]
        vectors = self._pooled(states, attention_mask)
        if self.rotation is not None:
            vectors = self.rotation(vectors)
        return nn.functional.normalize(vectors, dim=-1)

    def _pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "mean":  # of any length: the row is made a unit one
            return (states * mask.unsqueeze(-1).to(states.dtype)).sum(dim=1)
        places = torch.arange(mask.shape[1], device=mask.device)
        if self.pooling == "cls":
            places = mask.shape[1] - places
        rows = torch.arange(states.shape[0], device=states.device)
        return states[rows, (mask * places).argmax(dim=1)]


def check_installed(kind: str, int8: bool) -> None:
    """An error that says what to install."""
    for package in NEEDED.get(f"{kind} int8" if int8 else kind, NEEDED.get(kind, ())):
        if find_spec(package) is None:
            wanted = package if package == "nncf" else f"'st-jv5[{kind}]'"
            raise ValueError(f"{kind} needs the package {package}: pip install {wanted}")


def _example() -> tuple[Tensor, Tensor]:
    return torch.ones(2, 7, dtype=torch.long), torch.ones(2, 7, dtype=torch.long)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of each operator that they do not know and that no graph here has."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def write_onnx(graph: TokensToVectors, path: Path) -> Path:
    """Any number of texts and tokens; weights beyond 1 GiB go to ``model.onnx.data``."""
    size = sum(p.numel() * p.element_size() for p in graph.parameters())
    texts, tokens = torch.export.Dim("texts"), torch.export.Dim("tokens")
    example = [*_example(), torch.zeros(2, dtype=torch.long)][: len(graph.inputs)]
    shapes = ({0: texts, 1: tokens}, {0: texts, 1: tokens}, {0: texts})[: len(graph.inputs)]
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            graph,
            tuple(example),
            path,
            input_names=list(graph.inputs),
            output_names=[OUTPUT],
            dynamo=True,
            dynamic_shapes=shapes,
            external_data=size > PROTOBUF_LIMIT,
            verbose=False,
        )
    return path


def quantize_onnx(path: Path, target: Path) -> Path:
    """int8 weights per channel, int8 activations by their own range; adapters stay as they are.

    All adapters of a layer are one tensor, which would get one range for all.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path, load_external_data=False).graph
    stacked = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 3}
    with _quiet():
        quantize_dynamic(
            path,
            target,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[n.name for n in graph.node if stacked & set(n.input)],
            extra_options={"DefaultTensorType": 1},
        )
    return target


def start_onnx(path: Path) -> Run:
    """A session on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, Array]) -> Array:
        found: Array = session.run([OUTPUT], inputs)[0]
        return found

    return run


def write_openvino(graph: TokensToVectors, path: Path) -> Path:
    """float32, any number of texts and tokens."""
    import openvino

    shape = openvino.PartialShape([-1, -1])
    with torch.no_grad(), _quiet():
        converted = openvino.convert_model(
            graph,
            example_input=dict(zip(graph.inputs, _example(), strict=True)),
            input=[(name, shape, openvino.Type.i64) for name in graph.inputs],
        )
    converted.outputs[0].get_tensor().set_names({OUTPUT})
    openvino.save_model(converted, str(path), compress_to_fp16=False)
    return path


def quantize_openvino(path: Path, target: Path) -> Path:
    """int8 weights, float activations."""
    import nncf
    import openvino

    with _quiet():
        small = nncf.compress_weights(
            openvino.Core().read_model(str(path)), mode=nncf.CompressWeightsMode.INT8_ASYM
        )
    openvino.save_model(small, str(target), compress_to_fp16=False)
    return target


def start_openvino(path: Path) -> Run:
    """A model on the CPU, in float32, with as many threads as torch has.

    OpenVINO's own default is bfloat16 where the CPU multiplies it.
    """
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    model = openvino.compile_model(str(path), "CPU", settings)

    def run(inputs: dict[str, Array]) -> Array:
        found: Array = model(inputs)[OUTPUT].copy()
        return found

    return run
