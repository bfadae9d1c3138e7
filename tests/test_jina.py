"""The published folder layout, built small with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import AutoModel, PreTrainedTokenizerFast

import st_jv5
from st_jv5.tasks import TASKS
from tests.conftest import arguments


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


@pytest.mark.parametrize("task", ["retrieval", "legal"])
def test_fine_tuning_one_adapter_leaves_the_bits_of_all_else(published, texts, tmp_path, task):
    model = st_jv5.load_jina_v5(published[1])
    if task not in st_jv5.tasks(model):
        st_jv5.add_task(model, task, rank=4)
    st_jv5.train_task(model, task)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pairs = Dataset.from_dict({"query": texts[:16], "positive": texts[16:32]})
    SentenceTransformerTrainer(
        model=model,
        args=arguments(
            tmp_path / "run",
            prompts=st_jv5.trainer_prompts(model, task, pairs),
            save_strategy="no",
        ),
        train_dataset=pairs,
        loss=MultipleNegativesRankingLoss(model),
    ).train()
    model.save_pretrained(str(tmp_path / "tuned"))
    tuned = SentenceTransformer(str(tmp_path / "tuned"))
    assert st_jv5.tasks(tuned) == list(dict.fromkeys([*TASKS, task]))
    after = tuned.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == {name for name in before if f".{task}." in name}
    found = tuned.encode(texts, task=task)
    assert np.array_equal(found, model.encode(texts, task=task))


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
