"""The published folder layout, built small with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import AutoModel, PreTrainedTokenizerFast

import st_jv5
from st_jv5.files import read_json, write_json
from st_jv5.folders import licenses
from st_jv5.jina import load_model
from st_jv5.publish.hub import publish
from st_jv5.task_table import TASKS
from tests.conftest import arguments


def refuse(*_: object) -> str:
    raise AssertionError("it asked whether to trust remote code")


def test_vectors_equal_auto_model_and_peft(published, texts, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", refuse)
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
            prompts=st_jv5.trainer.trainer_prompts(model, task, pairs),
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


def test_settings_of_the_host_reach_the_model(published, texts):
    model = st_jv5.load_jina_v5(
        published[1], dtype="bfloat16", default_task="clustering", device="cpu", truncate_dim=32
    )
    assert model.dtype == torch.bfloat16
    found = model.encode(texts[:4])
    assert found.shape == (4, 32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-2)  # bfloat16's rounding


def test_the_licence_is_told_once_and_goes_along(published, texts, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(licenses, "_shown", set())
    model = st_jv5.load_jina_v5(published[1])
    st_jv5.load_jina_v5(published[1])
    assert caplog.text.count("the weights of jina are cc-by-nc-4.0, not for commercial use") == 1
    model.save_pretrained(str(tmp_path / "ours"))
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card
    again = SentenceTransformer(str(tmp_path / "ours"))
    student = st_jv5.new_student(again, layers=2)
    from_folder = st_jv5.new_student(str(tmp_path / "ours"), layers=2)
    for one in (again, student, from_folder):
        assert one[0].licenses.binding() == "cc-by-nc-4.0"
    student[0].licenses.teacher = {"t": "mit"}
    student[0].licenses.data = {"d": "mit"}
    student.save_pretrained(str(tmp_path / "student"))
    (tmp_path / "student" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    with pytest.raises(ValueError, match=r"jina are cc-by-nc-4.0 and stay so.*'apache-2.0'"):
        publish(tmp_path / "student", "team/mine", dry_run=True)


def test_a_revision_is_honoured_for_backbone_tokenizer_and_adapters(
    published, texts, tmp_path, hub
):
    def commit() -> None:
        files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        hub.commits.setdefault("jinaai/v5", []).append(
            {n: p.read_bytes() for n, p in files.items()}
        )

    folder = Path(published[1])
    hub.private["jinaai/v5"] = False
    commit()
    first = hub.commit_id("jinaai/v5", 0)
    expected = st_jv5.load_jina_v5(folder).encode(texts[:4], task="clustering")
    # Then everything changes: backbone, tokens and adapters.
    for path in folder.rglob("*model.safetensors"):
        tensors = load_file(path)
        save_file({n: 1.3 * t for n, t in tensors.items()}, path, {"format": "pt"})
    words = read_json(folder / "tokenizer.json")
    words["normalizer"] = {"type": "Lowercase"}
    write_json(folder / "tokenizer.json", words)
    commit()
    for settings in ({"revision": first}, {}):
        model = st_jv5.load_jina_v5("jinaai/v5", cache_folder=str(tmp_path / "c"), **settings)
        found = model.encode(texts[:4], task="clustering")
        assert np.array_equal(found, expected) == bool(settings)
        assert (model.tokenizer("A") == model.tokenizer("a")) == (not settings)
    fetched = {path.name for path in (tmp_path / "c").rglob("*")}
    assert "adapter_model.safetensors" in fetched
    assert not [name for name in fetched if name.endswith(".py")]  # no code was even fetched


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
    with pytest.raises(ValueError, match=r"1_Pooling/config.json does not pool the last token"):
        st_jv5.load_jina_v5(backbones["qwen3"])


@pytest.mark.parametrize("name", ["nowhere", "out/no/model"])
def test_a_model_that_is_not_there_is_named(name):
    with pytest.raises(OSError, match=f"^{name} is not a folder here"):
        load_model(name)
