"""A small student from a big backbone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from st_jv5.backbone.blocks import transformer_blocks
from st_jv5.backbone.vocabulary import cut_vocabulary
from st_jv5.files import read_json
from st_jv5.folders.licenses import Licenses
from st_jv5.modules import AdapterRouter, MatryoshkaTruncate
from st_jv5.modules.adapter_router import SETTINGS_FILE
from st_jv5.modules.pooling import MODES, pooling_module
from st_jv5.student.own_way import OwnWay
from st_jv5.task_table import DEFAULT_PROMPT_NAME, PROMPTS

MATRYOSHKA_DIMS = (32, 64, 128, 256, 512, 768, 1024)
"""The paper's dims (small); a student keeps those below its width, and its width."""

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "dropout")


def new_student(
    base: str | Path | SentenceTransformer,
    *,
    layers: Sequence[int] | int | None = None,
    append_eos: bool | None = None,
    matryoshka_dims: Sequence[int] | None = None,
    dtype: torch.dtype | str | None = None,
    vocabulary: Iterable[str] | None = None,
    pooling: str | None = None,
    prompts: Mapping[str, str] | None = None,
) -> SentenceTransformer:
    """Build a student: a backbone, pooling, a Matryoshka module that cuts vectors, and prompts.

    If the base is a sentence-transformers model, the student keeps its pooling and prompts, so it
    starts with the base's vectors. A plain transformers folder names neither: then the student
    pools the last token and gets the paper's prompts.

    The backbone's dropout is set to 0, as in the paper's students (Qwen3 and EuroBERT train without
    dropout): a student that starts with exactly its target's vectors would not have them under
    dropout.

    Args:
        base: Hub id, folder, or a SentenceTransformer whose backbone and tokenizer are copied. From
            an st_jv5 model the licences that it names are copied, too.
        layers: Indices of the blocks to keep, in order; or how many to keep, evenly spaced, with
            the first and the last among them. None keeps all.
        append_eos: True: end every input with EOS or SEP; an error if the tokenizer has neither.
            None: do so if the last token is pooled, since its state is then the embedding.
            Otherwise the tokenizer is left as it is.
        matryoshka_dims: Dims to train, each at most the width. None takes the values of
            :data:`MATRYOSHKA_DIMS` below the width, and the width itself.
        dtype: Dtype of the weights; None takes the one in the base's config. Trained weights become
            float32 when training begins, whatever the dtype is (:func:`~st_jv5.train_task`).
        vocabulary: Texts whose tokens are kept; all other tokens are dropped
            (:func:`~st_jv5.backbone.vocabulary.cut_vocabulary`). None keeps all tokens.
        pooling: ``"mean"``, ``"cls"`` (the first token, which in a causal decoder sees no other) or
            ``"lasttoken"``. None takes the base's pooling, and the last token if the base names
            none.
        prompts: Prompt name -> text, with the names ``"query"`` and ``"document"`` among them. They
            become the model's ``prompts``: the base is trained with them, and
            :func:`~st_jv5.add_task` copies them. None takes the base's prompts: empty texts for a
            sentence-transformers model without prompts, the paper's for a plain transformers
            folder.

    Returns:
        A model without adapters; its vectors are the base's.

    Raises:
        ValueError: The base pools in a way that a student cannot, or has a layer behind its
            pooling, and ``pooling`` is not given.

    Example:
        >>> student = new_student(teacher_folder, layers=[0, 2, 5])
        >>> student.encode(["hello"]).shape
        (1, 384)
    """
    own = OwnWay.of(base)
    pooling = own.pooling_mode() if pooling is None else pooling
    if pooling not in MODES:
        raise ValueError(f"pooling must be one of {', '.join(MODES)}, not {pooling!r}")
    prompts = own.prompts() if prompts is None else dict(prompts)
    if missing := set(PROMPTS) - set(prompts):
        raise ValueError(f"prompts lack {min(missing)!r}; they are {prompts}")
    append_eos = pooling == "lasttoken" if append_eos is None else append_eos
    if vocabulary is not None and not isinstance(base, SentenceTransformer):
        base = new_student(base, append_eos=append_eos, pooling=pooling, prompts=prompts)
    if isinstance(base, SentenceTransformer):
        with tempfile.TemporaryDirectory() as folder:
            _save_stock(base, folder)
            if vocabulary is not None:
                cut_vocabulary(folder, vocabulary)
            student = new_student(
                folder,
                layers=layers,
                append_eos=append_eos,
                matryoshka_dims=matryoshka_dims,
                dtype=dtype,
                pooling=pooling,
                prompts=prompts,
            )
        student.max_seq_length = min(student.max_seq_length, base.max_seq_length)
        if isinstance(base[0], AdapterRouter):
            student[0].licenses = deepcopy(base[0].licenses)
        return student
    config = AutoConfig.from_pretrained(base)
    router = AdapterRouter(
        str(base),
        append_eos=append_eos,
        model_kwargs={} if dtype is None else {"dtype": dtype},
        config_kwargs={name: 0.0 for name in DROPOUTS if hasattr(config, name)},
    )
    if (settings := Path(base) / SETTINGS_FILE).is_file():  # an st_jv5 model
        router.licenses = Licenses.read(read_json(settings).get("licenses", {}), settings)
    if layers is not None:
        _keep_layers(router.model, layers)
    width = router.get_embedding_dimension()
    if matryoshka_dims is None:
        matryoshka_dims = [*(dim for dim in MATRYOSHKA_DIMS if dim < width), width]
    if not matryoshka_dims or min(matryoshka_dims) < 1 or max(matryoshka_dims) > width:
        raise ValueError(f"matryoshka_dims must lie in 1..{width}, not {list(matryoshka_dims)}")
    router.base_prompts = dict(prompts)
    router.matryoshka_dims = tuple(sorted(set(matryoshka_dims)))
    return SentenceTransformer(
        modules=[router, pooling_module(width, pooling), MatryoshkaTruncate()],
        prompts=prompts,
        default_prompt_name=DEFAULT_PROMPT_NAME,
        similarity_fn_name="cosine",
    )


def _save_stock(model: SentenceTransformer, folder: str) -> None:
    backbone = model.transformers_model
    if backbone is None:
        raise ValueError(f"{type(model[0]).__name__} has no transformers backbone to start from")
    router = model[0]
    state = router.base_state_dict() if isinstance(router, AdapterRouter) else None
    backbone.save_pretrained(folder, state_dict=state)
    model.tokenizer.save_pretrained(folder)


def _keep_layers(backbone: PreTrainedModel, layers: Sequence[int] | int) -> None:
    path, blocks = transformer_blocks(backbone)
    if isinstance(layers, int):
        if not 1 <= layers <= len(blocks):
            raise ValueError(f"layers must lie in 1..{len(blocks)}, not {layers}")
        layers = [round(i) for i in torch.linspace(0, len(blocks) - 1, layers).tolist()]
    layers = list(layers)
    if not layers or min(layers) < 0 or max(layers) >= len(blocks):
        raise ValueError(f"layers must be indices in 0..{len(blocks) - 1}, not {layers}")
    if sorted(set(layers)) != layers:
        raise ValueError(f"layers must be ascending, each once, not {layers}")
    kept = nn.ModuleList(blocks[index] for index in layers)
    for index, block in enumerate(kept):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010 - not a tensor or module
    parent, _, name = path.rpartition(".")
    setattr(backbone.get_submodule(parent), name, kept)
    config = backbone.config
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in layers]
    config.num_hidden_layers = len(layers)
