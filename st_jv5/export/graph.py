"""ONNX and OpenVINO: one graph from tokens to unit vectors."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from st_jv5.adapters import router_of
from st_jv5.export.merged import keep_only
from st_jv5.export.parity import Array, Parity, compare, prompted, source_vectors
from st_jv5.files import read_json
from st_jv5.modules.pooling import pooling_mode
from st_jv5.modules.rotation import Rotation, rotation_in

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"
NEEDED = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "openvino int8": ("openvino", "nncf"),
}
KEPT = (
    "README.md", "config.json", "config_sentence_transformers.json", "tokenizer.json",
    "tokenizer_config.json",
)  # fmt: skip
"""What stays of the merged folder."""
PROTOBUF_LIMIT = 1 << 30
"""Bytes of weights that still go into one ONNX file, whose format ends at 2 GiB."""

Run = Callable[[dict[str, Array]], Array]


class TokensToVectors(nn.Module):
    """The whole model as one graph, for padding on either side.

    Args:
        backbone: Merged weights.
        absolute: Its positions are learned and absolute, so that padding in front would shift them.
        pooling: ``"mean"``, ``"cls"`` or ``"lasttoken"``.
        rotation: Rotation of the pooled states, if the model has one.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        absolute: bool,
        pooling: str,
        rotation: Rotation | None = None,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.rotation = None if rotation is None else rotation.stock(torch.float32).linear
        self.backbone = backbone
        self.absolute = absolute

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


def write(
    model: SentenceTransformer,
    task: str,
    backbone: PreTrainedModel,
    folder: Path,
    kind: str,
    int8: bool,
    texts: Sequence[str],
) -> list[Parity]:
    """Turn a merged folder into a graph's: tokenizer and prompts stay, the weights go."""
    keep_only(folder, KEPT)
    absolute = router_of(model).counts_from_the_left()
    graph = TokensToVectors(
        backbone.cpu().float().eval(), absolute, pooling_mode(model), rotation_in(model)
    ).cpu()
    if kind == "onnx":
        files = [(write_onnx(graph, folder / "model.onnx"), True)]
        if int8:
            files.append((quantize_onnx(files[0][0]), False))
    else:
        files = [(write_openvino(graph, folder / "openvino_model.xml"), True)]
        if int8:
            files.append((quantize_openvino(files[0][0]), False))
    start = start_onnx if kind == "onnx" else start_openvino
    named, vectors = source_vectors(model, task, texts)
    texts = prompted(folder, named)
    return [
        compare(kind, path, vectors, embed(start(path), folder, texts), bound)
        for path, bound in files
    ]


def embed(run: Run, folder: Path, texts: Sequence[str], batch_size: int = 16) -> Array:
    """Texts with their prompts through a graph: ``(n, D)``. Needs no transformers."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = read_json(folder / "tokenizer_config.json")
    tokenizer.enable_truncation(config["model_max_length"])
    pad = config["pad_token"]
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    vectors = []
    for begin in range(0, len(texts), batch_size):
        batch = tokenizer.encode_batch(list(texts[begin : begin + batch_size]))
        ids = np.array([each.ids for each in batch], dtype=np.int64)
        mask = np.array([each.attention_mask for each in batch], dtype=np.int64)
        vectors.append(run({"input_ids": ids, "attention_mask": mask}))
    return np.concatenate(vectors)


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


def write_onnx(graph: nn.Module, path: Path) -> Path:
    """Any number of texts and tokens; weights beyond 1 GiB go to ``model.onnx.data``."""
    size = sum(p.numel() * p.element_size() for p in graph.parameters())
    shape = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            graph,
            _example(),
            path,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamo=True,
            dynamic_shapes=(shape, shape),
            external_data=size > PROTOBUF_LIMIT,
            verbose=False,
        )
    return path


def quantize_onnx(path: Path) -> Path:
    """int8 weights per channel, int8 activations by their own range."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = path.with_name("model_int8.onnx")
    with _quiet():
        quantize_dynamic(
            path,
            target,
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": 1},
        )
    return target


def start_onnx(path: Path) -> Run:
    """A session on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, Array]) -> Array:
        found: Array = session.run([OUTPUT], inputs)[0]
        return found

    return run


def write_openvino(graph: nn.Module, path: Path) -> Path:
    """float32, any number of texts and tokens."""
    import openvino

    shape = openvino.PartialShape([-1, -1])
    with torch.no_grad(), _quiet():
        converted = openvino.convert_model(
            graph,
            example_input=dict(zip(INPUTS, _example(), strict=True)),
            input=[(name, shape, openvino.Type.i64) for name in INPUTS],
        )
    converted.outputs[0].get_tensor().set_names({OUTPUT})
    openvino.save_model(converted, str(path), compress_to_fp16=False)
    return path


def quantize_openvino(path: Path) -> Path:
    """int8 weights, float activations."""
    import nncf
    import openvino

    target = path.with_name("openvino_model_int8.xml")
    with _quiet():
        small = nncf.compress_weights(
            openvino.Core().read_model(str(path)), mode=nncf.CompressWeightsMode.INT8_ASYM
        )
    openvino.save_model(small, str(target), compress_to_fp16=False)
    return target


def start_openvino(path: Path) -> Run:
    """A model on the CPU, in float32 (its own default there is bfloat16 where the CPU has it)."""
    import openvino

    model = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(inputs: dict[str, Array]) -> Array:
        found: Array = model(inputs)[OUTPUT].copy()
        return found

    return run
