"""Routing, pooling and cutting: what encode promises, on four architectures."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from transformers import AutoModel

import st_jv5
from st_jv5.modules import AdapterRouter, LastTokenPooling, MatryoshkaTruncate
from st_jv5.task_table import TASKS
from tests.conftest import MINILM, with_adapters

PROMPTED = {"retrieval": "Document: ", "query": "Query: "}


def peft_reference(folder: str, task: str, texts: list[str]) -> np.ndarray:
    """AutoModel + PeftModel + last token + L2, text by text."""
    backbone = AutoModel.from_pretrained(folder)
    model = PeftModel.from_pretrained(backbone, f"{folder}/adapters/{task}").eval()
    tokenizer = SentenceTransformer(folder).tokenizer
    rows = []
    for text in texts:
        batch = tokenizer([f"Document: {text}"], return_tensors="pt", truncation=True)
        with torch.no_grad():
            rows.append(model(**batch).last_hidden_state[0, -1])
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1).numpy()


# --------------------------------------------------------------------------- the folder, everywhere


def test_a_saved_folder_equals_the_live_model_auto_model_and_peft(
    backbones, architecture, texts, tmp_path
):
    live = with_adapters(st_jv5.new_student(backbones[architecture]))
    live.save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path))
    for task in TASKS:
        expected = peft_reference(str(tmp_path), task, texts)
        assert len(np.unique(expected.round(4), axis=0)) > 60
        for side in ("left", "right"):
            for model in (live, loaded):
                model.tokenizer.padding_side = side
                batched = model.encode(texts, task=task, batch_size=64)
                single = model.encode(texts[:8], task=task, batch_size=1)
                np.testing.assert_allclose(batched, expected, atol=1e-5)  # merged, by its size
                np.testing.assert_allclose(single, expected[:8], atol=1e-6)


def test_a_fresh_adapter_is_the_base(backbones, architecture, texts):
    student = st_jv5.new_student(backbones[architecture])
    before = student.encode(texts)
    st_jv5.add_task(student, "retrieval")
    np.testing.assert_allclose(student.encode(texts, task="retrieval"), before, atol=1e-6)
    linears = {path.split(".")[-1] for path, _ in student[0].lora_layers()}
    assert not any("pooler" in path for path, _ in student[0].lora_layers())
    expected = {
        "bert": {"query", "key", "value", "dense"},
        "mpnet": {"q", "k", "v", "o", "dense"},
    }.get(architecture, {f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")})
    assert linears == expected


def test_switching_back_and_forth_gives_the_same_bits(model, texts):
    first = model.encode(texts, task="retrieval")
    other = model.encode(texts, task="clustering")
    assert np.array_equal(first, model.encode(texts, task="retrieval"))
    assert np.abs(first - other).max() > 0.05


def test_eight_threads_get_what_each_gets_alone(model, texts):
    tasks = [*TASKS, "base", "query", "retrieval", "clustering"]
    alone = [model.encode(texts, task=task, batch_size=8) for task in tasks]
    together: list[list[np.ndarray]] = [[] for _ in tasks]
    start = threading.Barrier(len(tasks))

    def work(index: int) -> None:
        start.wait()
        for _ in range(5):
            together[index].append(model.encode(texts, task=tasks[index], batch_size=8))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, found in zip(alone, together, strict=True):
        assert len(found) == 5
        for array in found:
            assert np.array_equal(expected, array)


def test_a_real_model_keeps_its_vectors_when_saved(texts, tmp_path):
    live = with_adapters(st_jv5.new_student(MINILM, layers=[0, 5]))
    live.save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path))
    for task in TASKS:
        assert np.array_equal(live.encode(texts, task=task), loaded.encode(texts, task=task))


# ------------------------------------------------------------------------------ tasks and prompts


def test_tasks_are_named_aliased_and_suggested(model, student, texts):
    with pytest.raises(ValueError, match="name one of: retrieval, text-matching"):
        model.encode(texts[:1])
    with pytest.raises(ValueError, match=r"unknown task 'retreival'.*did you mean 'retrieval'"):
        model.encode(texts[:1], task="retreival")
    base = model.encode(texts, task="base")
    for adapter in ("retrieval", "clustering"):
        assert np.abs(base - model.encode(texts, task=adapter)).max() > 0.05


def test_the_query_alias_takes_the_query_prompt(model, texts):
    named = model.encode(texts, task="retrieval", prompt_name="query")
    assert np.array_equal(named, model.encode(texts, task="query"))
    assert np.array_equal(named, model.encode_query(texts))
    documents = model.encode(texts, task="retrieval")
    assert np.array_equal(documents, model.encode_document(texts))
    assert np.array_equal(documents, model.encode(texts, task="document"))
    assert np.abs(named - documents).max() > 0.01
    assert np.array_equal(
        model.encode(texts, task="query", prompt=""),
        model.encode(texts, task="retrieval", prompt=""),
    )


def test_a_student_without_adapters_encodes_as_base(student, texts):
    expected = student.encode(texts, task="base")
    assert np.array_equal(student.encode(texts), expected)
    assert np.array_equal(student.encode_document(texts), expected)
    assert np.abs(student.encode_query(texts) - expected).max() > 0.01


def test_default_task_serves_callers_that_cannot_name_one(saved, texts):
    model = SentenceTransformer(saved, model_kwargs={"default_task": "text-matching"})
    assert np.array_equal(model.encode(texts), model.encode(texts, task="text-matching"))
    with pytest.raises(ValueError, match="unknown task 'nope'"):
        SentenceTransformer(saved, model_kwargs={"default_task": "nope"})


def test_a_task_of_ones_own_brings_its_prompts(student, texts, tmp_path):
    st_jv5.add_task(student, "legal", prompts={"query": "Frage: ", "document": "Text: "})
    student.save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path))
    plain = loaded.encode([f"Text: {t}" for t in texts], task="base", prompt="")
    assert np.array_equal(loaded.encode(texts, task="legal"), plain)


def test_bad_texts_are_named_before_any_forward(model):
    with pytest.raises(ValueError, match="text 1 of the batch is None"):
        model.preprocess(["fine", None], task="retrieval")
    with pytest.raises(ValueError, match=r"is 3.5"):
        model.preprocess([3.5], task="retrieval")


def test_the_trainer_task_is_not_taken_by_encode(model, texts):
    st_jv5.train_task(model, "clustering")
    with pytest.raises(ValueError, match="no default task"):
        model.encode(texts[:2])
    features = model.preprocess(texts[:4])
    trained = model(dict(features))["sentence_embedding"]
    chosen = model(dict(features), task="clustering")["sentence_embedding"]
    model.eval()
    assert trained.requires_grad
    assert torch.equal(
        model(dict(features))["sentence_embedding"],
        model(dict(features), task="clustering")["sentence_embedding"],
    )
    assert chosen.shape == trained.shape


def test_the_batch_may_name_its_task(model, texts):
    model.eval()
    features = model.preprocess(texts[:4])
    named = model({**features, "task": "query"})["sentence_embedding"]
    assert torch.equal(named, model(dict(features), task="retrieval")["sentence_embedding"])


# ----------------------------------------------------------------------------- cutting to a dim


@pytest.mark.parametrize("dim", [8, 16, 48])
def test_every_way_to_cut_gives_the_same_unit_rows(saved, texts, dim):
    model = SentenceTransformer(saved)
    full = model.encode(texts, task="clustering")[:, :dim]
    expected = full / np.linalg.norm(full, axis=1, keepdims=True)
    by_kwarg = model.encode(texts, task="clustering", dim=dim)
    by_constructor = SentenceTransformer(saved, truncate_dim=dim).encode(texts, task="clustering")
    with model.truncate_embeddings(dim):
        by_context = model.encode(texts, task="clustering")
    for found in (by_kwarg, by_constructor, by_context):
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    late = model.encode(texts, task="clustering", truncate_dim=dim, normalize_embeddings=True)
    np.testing.assert_allclose(late, expected, atol=1e-6)


def test_the_smaller_of_two_dims_wins(saved, texts):
    model = SentenceTransformer(saved, truncate_dim=16)
    assert model.encode(texts, task="clustering", dim=48).shape[1] == 16
    assert model.encode(texts, task="clustering", dim=8).shape[1] == 8


def test_dims_that_cannot_be_are_refused_and_untrained_ones_warn_once(model, texts, caplog):
    for dim in (0, -3, 49):
        with pytest.raises(ValueError, match=r"dim must lie in 1..48"):
            model.encode(texts[:2], task="base", dim=dim)
    for _ in range(2):
        model.encode(texts[:2], task="base", dim=20)
    warned = [r for r in caplog.records if "dim 20 was not trained" in r.getMessage()]
    assert len(warned) == 1


def test_encodes_own_cut_gives_unit_rows_too(saved, texts):
    model = SentenceTransformer(saved)
    expected = model.encode(texts, task="clustering", dim=16)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        found = other.encode(texts, task="clustering", truncate_dim=16)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_two_models_of_the_same_modules_each_have_their_own_dim_and_prompts(saved, texts):
    one = SentenceTransformer(saved)
    expected = one.encode(texts, task="query")
    other = SentenceTransformer(modules=list(one), truncate_dim=16, prompts={"query": "Q: "})
    assert np.array_equal(one.encode(texts, task="query"), expected)
    cut = other.encode(texts, task="query")
    assert cut.shape[1] == 16
    asked = one.encode([f"Q: {text}" for text in texts], task="retrieval", prompt="", dim=16)
    np.testing.assert_allclose(cut, asked, atol=1e-6)
    st_jv5.adapters.remove_task(other, "clustering")
    assert "clustering" not in st_jv5.tasks(one)  # the weights are one and the same
    del other
    assert np.array_equal(one.encode(texts, task="query"), expected)
    one.truncate_dim = 8
    assert one.encode(texts, task="query").shape[1] == 8


def test_truncate_dim_does_not_reach_a_loss(saved, texts):
    model = SentenceTransformer(saved, truncate_dim=8).eval()
    features = model.preprocess(texts[:2])
    assert model(features, task="base")["sentence_embedding"].shape[1] == 48


# -------------------------------------------------------------------------- pooling and EOS


def test_last_token_pooling_reads_the_same_state_from_every_padding():
    states = torch.arange(24.0).reshape(2, 3, 4)
    pooling = LastTokenPooling(4)
    right = pooling(
        {"token_embeddings": states, "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    )
    left = pooling(
        {
            "token_embeddings": states.roll(1, 1),
            "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        }
    )
    flat = pooling(
        {
            "token_embeddings": torch.cat([states[0, :2], states[1]])[None],
            "cu_seq_lens_q": torch.tensor([0, 2, 5]),
        }
    )
    expected = torch.stack([states[0, 1], states[1, 2]])
    assert torch.equal(right["sentence_embedding"], expected)
    assert torch.equal(flat["sentence_embedding"], expected)
    assert torch.equal(left["sentence_embedding"][0], states[0, 1])


def test_pooling_config_speaks_both_dialects(saved):
    config = json.loads((Path(saved) / "1_LastTokenPooling" / "config.json").read_text())
    assert config["pooling_mode"] == "lasttoken"
    assert config["pooling_mode_lasttoken"] is True
    assert config["pooling_mode_mean_tokens"] is False
    assert config["word_embedding_dimension"] == config["embedding_dimension"] == 48
    assert LastTokenPooling.load(saved, subfolder="1_LastTokenPooling").pooling_mode == "lasttoken"


def test_every_input_ends_with_eos_once_also_when_cut(backbones, architecture):
    student = st_jv5.new_student(backbones[architecture])
    tokenizer = student.tokenizer
    end = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    features = student.preprocess(["short", "long " * 500, ""])
    for ids, mask in zip(features["input_ids"], features["attention_mask"], strict=True):
        real = ids[mask.bool()].tolist()
        assert real[-1] in end
        assert len(real) <= 64
        assert real[-2:-1] != real[-1:]
    assert features["attention_mask"].sum(1).max() == 64


def test_append_eos_is_kept_by_the_saved_tokenizer(backbones, tmp_path):
    for append_eos in (True, False):
        folder = str(tmp_path / str(append_eos))
        st_jv5.new_student(backbones["qwen3"], append_eos=append_eos).save_pretrained(folder)
        tokenizer = SentenceTransformer(folder).tokenizer
        assert (tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id) is append_eos


def test_a_tokenizer_without_an_end_is_refused(backbones, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(backbones["qwen3"])
    tokenizer.eos_token = None
    AutoModel.from_pretrained(backbones["qwen3"]).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither an EOS nor a SEP token"):
        st_jv5.new_student(str(tmp_path))
    assert st_jv5.new_student(str(tmp_path), append_eos=False).encode(["x"]).shape == (1, 48)


# ------------------------------------------------------------------ traps of sentence-transformers


def test_trap_18_left_padding_does_not_shift_absolute_positions(texts):
    student = st_jv5.new_student(MINILM, layers=2)
    right = student.encode(texts)
    student.tokenizer.padding_side = "left"
    np.testing.assert_allclose(student.encode(texts), right, atol=1e-6)


def test_trap_19_a_chat_template_does_not_make_chats(backbones):
    student = st_jv5.new_student(backbones["qwen3"])
    assert student.tokenizer.chat_template
    ids = student.preprocess(["hello"], prompt="Query: ")["input_ids"][0].tolist()
    assert ids == [*student.tokenizer("Query: hello")["input_ids"]]
    assert "im_start" not in student.tokenizer.decode(ids)


def test_trap_20_an_adapter_added_inside_inference_mode_can_be_trained(student, texts):
    with torch.inference_mode():
        st_jv5.add_task(student, "retrieval")
        merged = st_jv5.merge_task(student, "retrieval")
    student.train()
    student(student.preprocess(texts[:3]))["sentence_embedding"].sum().backward()
    for parameter in merged.parameters():
        assert not parameter.is_inference()


@pytest.mark.parametrize("truncate_dim", [None, 8])
def test_trap_21_copies_pickles_and_processes_keep_their_vectors(saved, texts, truncate_dim):
    model = SentenceTransformer(saved, truncate_dim=truncate_dim)
    expected = model.encode(texts, task="retrieval")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other.encode(texts, task="retrieval"), expected)
        other.truncate_dim = 16
        assert other.encode(texts[:2], task="retrieval").shape[1] == 16
    assert model.truncate_dim == truncate_dim


@pytest.mark.full
def test_trap_21_a_pool_of_processes_encodes_alike(saved, texts):
    model = SentenceTransformer(saved, truncate_dim=8)
    expected = model.encode(texts, task="clustering")
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        found = model.encode(texts, pool=pool, chunk_size=16, task="clustering")
        with model.truncate_embeddings(4):  # after the pool's models were made
            cut = model.encode(texts, pool=pool, chunk_size=16, task="clustering")
            alone = model.encode(texts, task="clustering")
    finally:
        model.stop_multi_process_pool(pool)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(cut, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-6)


def test_trap_23_theta_stands_in_both_places_and_may_not_disagree(backbones, tmp_path):
    st_jv5.new_student(backbones["qwen3"]).save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert json.loads((tmp_path / "st_jv5.json").read_text())["theta_serve"] == config["rope_theta"]
    config["rope_theta"] = 12345.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"two thetas: rope_theta 12345.0"):
        SentenceTransformer(str(tmp_path))


def test_trap_24_the_hosts_onnx_backend_is_refused_with_the_way_out(saved):
    with pytest.raises(ValueError, match=r"backend 'onnx'.*st_jv5.merge_task"):
        SentenceTransformer(saved, backend="onnx")


def test_trap_25_an_empty_list_encodes_to_an_empty_array(model):
    # sentence-transformers returns it before any module runs.
    assert model.encode([], task="retrieval").shape == (0,)
    assert st_jv5.encode(model, [], task="retrieval").shape == (0, 48)


# ------------------------------------------------------------------ loading with and without us


def test_importing_us_makes_folders_load(saved):
    known = BaseModel._module_classes
    assert known["st_jv5.modules.adapter_router.AdapterRouter"] is AdapterRouter
    assert known["st_jv5.modules.matryoshka.MatryoshkaTruncate"] is MatryoshkaTruncate


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_without_the_import_trust_remote_code_loads(saved):
    code = (
        "from sentence_transformers import SentenceTransformer\n"
        f"model = SentenceTransformer({saved!r}, trust_remote_code=True)\n"
        "print(model.encode(['x'], task='retrieval').shape)"
    )
    assert run_python(code).stdout.strip() == "(1, 48)"


def test_without_us_the_reader_is_told_what_to_install(saved):
    path = Path(saved) / "config_sentence_transformers.json"
    config = json.loads(path.read_text())
    assert config["requirements"] == {"st-jv5": ">=0.1,<1"}
    config["requirements"] = {"st-jv5-absent": ">=0.1,<1"}
    path.write_text(json.dumps(config))
    with pytest.raises(ImportError, match=r"pip install.*st-jv5-absent>=0.1,<1"):
        SentenceTransformer(saved)


def test_a_host_without_the_registry_is_warned_about(monkeypatch, caplog):
    monkeypatch.delattr(BaseModel, "_module_classes")
    st_jv5._make_modules_loadable()
    assert "trust_remote_code=True" in caplog.text


def test_a_folder_that_lacks_a_file_names_it(saved):
    (Path(saved) / "adapters" / "clustering" / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"clustering has no adapter_model.safetensors"):
        SentenceTransformer(saved)


def test_an_adapter_that_does_not_fit_names_its_file(saved, backbones, tmp_path):
    other = with_adapters(st_jv5.new_student(backbones["eurobert"], layers=2))
    other.save_pretrained(str(tmp_path / "other"))
    part = "adapters/retrieval/adapter_model.safetensors"
    (Path(saved) / part).write_bytes((tmp_path / "other" / part).read_bytes())
    with pytest.raises(ValueError, match=r"adapters/retrieval.*was trained on another base"):
        SentenceTransformer(saved)


# ------------------------------------------------------------------------- dtypes and kernels


def test_dtype_and_attention_are_honoured(saved, texts):
    model = SentenceTransformer(
        saved, model_kwargs={"dtype": torch.bfloat16, "attn_implementation": "eager"}
    )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model[0].config._attn_implementation == "eager"
    exact = SentenceTransformer(saved).encode(texts, task="retrieval")
    found = model.encode(texts, task="retrieval").astype(np.float32)
    assert (exact * found).sum(1).min() / np.linalg.norm(found, axis=1).max() > 0.995


def test_gradient_checkpointing_recomputes_with_the_adapter(model, texts):
    st_jv5.train_task(model, "retrieval")
    model.train()
    for name, parameter in model.named_parameters():
        if "lora_dropout" in name:
            parameter.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(model.preprocess(texts[:4]))["sentence_embedding"].pow(3).sum().backward()
        return [p.grad.clone() for p in model[0].adapter_tensors("retrieval").values()]

    plain = gradients()
    model[0].model.gradient_checkpointing_enable({"use_reentrant": False})
    for one, other in zip(plain, gradients(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)
        assert other.abs().max() > 0


def test_encode_query_of_a_model_without_retrieval_takes_the_default_task(student, texts):
    st_jv5.add_task(student, "clustering")
    with pytest.raises(ValueError, match="no default task; name one of: clustering, base"):
        student.encode_query(texts[:2])
    student[0].default_task = "clustering"
    expected = student.encode(texts, task="clustering", prompt_name="query")
    assert np.array_equal(student.encode_query(texts), expected)


def test_asking_for_a_models_device_lists_no_layers(model, monkeypatch):
    seen = []
    walk = torch.nn.Module.named_modules
    counted = lambda self, *a, **k: seen.append(self) or walk(self, *a, **k)  # noqa: E731
    monkeypatch.setattr(torch.nn.Module, "named_modules", counted)
    assert model.device == torch.device("cpu")
    asked = len(seen)
    assert len([*model.modules()]) > 50
    assert asked < 5 < len(seen) - asked
