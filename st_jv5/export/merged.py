"""A folder of stock modules that old and new readers load alike."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from transformers import PreTrainedModel

from st_jv5.adapters import merge_task, router_of
from st_jv5.backbone import rope
from st_jv5.backbone.eos import save_tokenizer
from st_jv5.files import read_json, write_json, write_tensors, write_text
from st_jv5.folders.card import as_code, as_words
from st_jv5.modules.pooling import TokenPooling, pooling_mode
from st_jv5.task_table import DEFAULT_PROMPT_NAME

MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
"""Class names that sentence-transformers 2 to 6 know in ``sentence_transformers.models``, and vLLM,
TEI and llama.cpp look for; ``Dense`` is a rotation's alone."""

IDENTITY = "torch.nn.modules.linear.Identity"

ENGINES_POOLING = {
    "mean": {"said": "mean pooling", "TEI": "mean", "llama.cpp": "mean"},
    "cls": {"said": "first-token (cls) pooling", "TEI": "cls", "llama.cpp": "cls"},
    "lasttoken": {"said": "last-token pooling", "TEI": "last-token", "llama.cpp": "last"},
}
"""Mode -> what a card calls it, and what the engines' own ``--pooling`` does."""

OF = "[st_jv5](https://pypi.org/project/st-jv5/) model"
CARDS = Path(__file__).parent / "cards"
ALL_TASKS = "all_tasks"
"""The kind of an export of all tasks, in its card."""
FORMS = {
    "merged": "The adapter {task} of an {model}, merged into stock weights",
    "onnx": "The adapter {task} of an {model}, as one ONNX graph",
    "openvino": "The adapter {task} of an {model}, as one OpenVINO graph",
    "gguf": "The adapter {task} of an {model}, as GGUF for llama.cpp",
    ALL_TASKS: "An {model} with all its adapters, as one ONNX graph whose input names the task",
}
BY_TASK = (
    "`tasks.json` lists the tasks in the order of their numbers, which are the input `task`, and "
    "the prompts\nof each, one of which stands in front of a text."
)


def write_merged(
    model: SentenceTransformer, task: str, folder: Path, *, kind: str = "merged"
) -> PreTrainedModel:
    """Write one task as stock modules, with the card of the kind that they are to become.

    sentence-transformers 3 and transformers 4 cannot read what today's ``save_pretrained`` would
    write: other class names, other keys of pooling, ``dtype`` and theta, a tokenizer class that is
    new. Here every place carries both dialects.

    Returns:
        The merged backbone, in the dtype of the model.
    """
    router = router_of(model)
    stock = merge_task(model, task)
    backbone = stock.transformers_model
    assert backbone is not None
    backbone.save_pretrained(folder)
    rope.write_both_keys(folder / "config.json")
    config = read_json(folder / "config.json")
    config.pop("_name_or_path", None)
    write_json(folder / "config.json", {**config, "torch_dtype": config.get("dtype", "float32")})
    _write_tokenizer(stock, folder)
    width = router.get_embedding_dimension()
    pooling = TokenPooling(width, pooling_mode(model)).get_config_dict()
    pooling.pop("embedding_dimension")  # the old class takes no argument of that name
    settings: dict[str, dict[str, Any]] = {"Transformer": {}, "Pooling": pooling, "Normalize": {}}
    dense = next((module for module in stock if isinstance(module, Dense)), None)
    if dense is not None:
        settings["Dense"] = {"in_features": dense.in_features, "out_features": dense.out_features}
        settings["Dense"] |= {"bias": False, "activation_function": IDENTITY}
    told = []
    for index, module in enumerate(name for name in MODULES if name in settings):
        path = f"{index}_{module}" if index else ""
        type_ = f"sentence_transformers.models.{module}"
        told.append({"idx": index, "name": str(index), "path": path, "type": type_})
        if index:
            write_json(folder / path / "config.json", settings[module])
        if module == "Dense" and dense is not None:
            write_tensors(folder / path / "model.safetensors", dense.state_dict())
    write_text(folder / "modules.json", json.dumps(told, indent=2) + "\n")
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": model.max_seq_length, "do_lower_case": False},
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": stock.prompts,
            "default_prompt_name": model.default_prompt_name or DEFAULT_PROMPT_NAME,
            "similarity_fn_name": "cosine",
        },
    )
    write_text(folder / "README.md", card(model, task, kind))
    return backbone


def keep_only(folder: Path, names: Sequence[str]) -> None:
    """Remove from a merged folder all but these files, for what is made of it."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in names:
            path.unlink()


def _write_tokenizer(stock: SentenceTransformer, folder: Path) -> None:
    save_tokenizer(stock.tokenizer, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    ending = stock.tokenizer("a")["input_ids"][-1]
    config = read_json(folder / "tokenizer_config.json")
    write_json(
        folder / "tokenizer_config.json",
        {
            **config,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": stock.max_seq_length,
            "model_input_names": ["input_ids", "attention_mask"],
            # Said by the post-processor already; llama.cpp's converter looks here, too.
            "add_eos_token": ending == stock.tokenizer.eos_token_id,
        },
    )


def prompts_of(model: SentenceTransformer, task: str) -> dict[str, str]:
    """Name -> text of a task's prompts, as ``encode`` puts them in front of texts."""
    router = router_of(model)
    prompts = dict(router.tasks[task].prompts if task in router.tasks else model.prompts)
    for name in prompts.keys() & model.prompts.keys():
        prompts[name] = router.prompt_for(task, model.prompts[name]) or ""
    return prompts


def card(model: SentenceTransformer, task: str, kind: str) -> str:
    """The licence, and how the task is run; of ``all_tasks`` its first adapter."""
    router = router_of(model)
    prompts = prompts_of(model, task)
    license_ = license_of(model)
    bound = f"\nThe weights are {as_words(license_)}: not for commercial use.\n"
    pad = model.tokenizer.pad_token
    text = prompts["document"] + "a text"
    pooling = ENGINES_POOLING[pooling_mode(model)]
    facts = {
        "metadata": ModelCardData(
            license=license_,
            library_name="sentence-transformers",
            pipeline_tag="sentence-similarity",
            tags=["sentence-transformers", "feature-extraction", "st_jv5"],
        ).to_yaml(),
        "task": task,
        "what": FORMS[kind].format(task=as_code(task), model=OF),
        "title": "All tasks" if kind == ALL_TASKS else task,
        "width": model.get_embedding_dimension(),
        "tokens": model.max_seq_length,
        "bound": bound if router.licenses.binding() else "",
        "prompts": BY_TASK if kind == ALL_TASKS else _told(prompts),
        "pooling": pooling["said"],
        "tei_pooling": pooling["TEI"],
        "llama_pooling": pooling["llama.cpp"],
        "text": _in_quotes(text),
        "another": _in_quotes(prompts["document"] + "another"),
        "asked": as_code(_in_quotes(text)),
        "shell_text": _for_a_shell(text),
        "pad": _in_quotes(pad),
        "pad_id": model.tokenizer.convert_tokens_to_ids(pad),
    }
    usage = Template((CARDS / f"{kind}.md").read_text(encoding="utf-8")).substitute(facts)
    whole = Template((CARDS / "card.md").read_text(encoding="utf-8"))
    return whole.substitute(facts, usage=usage.rstrip("\n"))


def _in_quotes(text: str) -> str:
    """A text as a literal of JSON and of Python, on one line."""
    return json.dumps(text, ensure_ascii=False)


def _for_a_shell(text: str) -> str:
    """A text as one argument of a command of bash, on one line."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + _in_quotes(text)[1:-1].replace("'", "\\'") + "'"


def _told(prompts: Mapping[str, str]) -> str:
    if not any(prompts.values()):
        return "No prompt stands in front of a text."
    lines = [
        f"- {as_words(name)}: {as_code(text) if text else 'none'}" for name, text in prompts.items()
    ]
    return "\n".join(["A prompt stands in front of every text:", "", *lines])


def license_of(model: SentenceTransformer) -> str | None:
    """What binds the weights; else what the model's card says."""
    text = getattr(model, "_model_card_text", None) or ""
    of_card = ModelCard(text, ignore_metadata_errors=True).data.get("license") if text else None
    found = router_of(model).licenses.binding() or of_card or model.model_card_data.license
    return str(found) if found else None
