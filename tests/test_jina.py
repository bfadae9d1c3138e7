"""The published folder layout, built small with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, PreTrainedTokenizerFast

import st_jv5
from st_jv5.tasks import TASKS

LINEARS = [f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")]


@pytest.fixture(params=["qwen3", "eurobert"])
def published(request, backbones, tmp_path) -> tuple[str, str]:
    """(stock backbone, folder in the published layout)"""
    stock = backbones[request.param]
    folder = tmp_path / "jina"
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
    (folder / "modeling.py").write_text("raise RuntimeError('remote code was run')")
    return stock, str(folder)


def test_vectors_equal_auto_model_and_peft(published, texts, tmp_path):
    stock, folder = published
    model = st_jv5.load_jina_v5(folder)
    assert st_jv5.tasks(model) == list(TASKS)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(stock)
    for task in TASKS:
        backbone = AutoModel.from_pretrained(stock)
        reference = PeftModel.from_pretrained(backbone, f"{folder}/adapters/{task}").eval()
        for name, prompt in (("query", "Query: "), ("document", "Document: ")):
            rows = []
            for text in texts[:12]:
                batch = tokenizer([prompt + text], return_tensors="pt", truncation=True)
                batch.pop("token_type_ids", None)
                with torch.no_grad():
                    rows.append(reference(**batch).last_hidden_state[0, -1])
            expected = torch.nn.functional.normalize(torch.stack(rows), dim=-1).numpy()
            found = model.encode(texts[:12], task=task, prompt_name=name)
            np.testing.assert_allclose(found, expected, atol=1e-5)
    model.save_pretrained(str(tmp_path / "ours"))
    again = SentenceTransformer(str(tmp_path / "ours"))
    found = again.encode(texts, task="clustering")
    assert np.array_equal(found, model.encode(texts, task="clustering"))


def test_what_cannot_be_read_is_named(published):
    _, folder = published
    with pytest.raises(ValueError, match=r"unknown task 'retreival'.*did you mean 'retrieval'"):
        st_jv5.load_jina_v5(folder, default_task="retreival")
    shutil.rmtree(Path(folder) / "adapters")
    with pytest.raises(ValueError, match=r"has no adapters/<task>/adapter_config.json"):
        st_jv5.load_jina_v5(folder)
    (Path(folder) / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model.safetensors"):
        st_jv5.load_jina_v5(folder)


def test_other_folders_are_refused(backbones):
    with pytest.raises(ValueError, match="model_type 'bert', not 'jina_embeddings_v5'"):
        st_jv5.load_jina_v5(backbones["bert"])
