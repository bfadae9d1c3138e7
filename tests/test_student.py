"""Students: which layers, dims, tokens and dropout they get."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import ModernBertConfig, ModernBertModel, XLMRobertaConfig, XLMRobertaModel

import st_jv5
from tests.conftest import MINILM, with_adapters


def test_layers_by_index_are_the_bases_own():
    teacher = SentenceTransformer(MINILM)
    student = st_jv5.new_student(MINILM, layers=[0, 2, 5])
    kept = student[0].model.encoder.layer
    assert len(kept) == student[0].config.num_hidden_layers == 3
    for ours, theirs in zip(kept, (0, 2, 5), strict=True):
        expected = teacher[0].model.encoder.layer[theirs].attention.self.query.weight
        assert torch.equal(ours.attention.self.query.weight, expected)


@pytest.mark.parametrize(("count", "kept"), [(1, [0]), (2, [0, 5]), (3, [0, 2, 5]), (6, None)])
def test_layers_by_count_are_evenly_spaced_with_both_ends(count, kept):
    by_count = st_jv5.new_student(MINILM, layers=count)
    by_index = st_jv5.new_student(MINILM, layers=kept)
    assert by_count[0].base_sha256() == by_index[0].base_sha256()


@pytest.mark.parametrize("layers", [0, 7, [], [0, 6], [-1, 2], [2, 1], [1, 1]])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(ValueError, match="layers must"):
        st_jv5.new_student(MINILM, layers=layers)


def test_dropout_of_the_backbone_is_zero():
    student = st_jv5.new_student(MINILM, layers=1).train()
    features = student.preprocess(["a text of some length"])
    one, other = (student(dict(features))["sentence_embedding"] for _ in range(2))
    assert torch.equal(one, other)


def test_dims_default_to_the_papers_below_the_width_and_the_width(backbones):
    assert st_jv5.new_student(backbones["bert"])[0].matryoshka_dims == (32, 48)
    with pytest.raises(ValueError, match=r"must lie in 1..48, not \[64\]"):
        st_jv5.new_student(backbones["bert"], matryoshka_dims=[64])


def test_a_student_of_a_loaded_model_starts_from_its_backbone(backbones, architecture, texts):
    model = with_adapters(st_jv5.new_student(backbones[architecture]))
    again = st_jv5.new_student(model)
    assert again[0].base_sha256() == model[0].base_sha256()
    assert st_jv5.tasks(again) == []


def test_dtype_is_honoured(backbones):
    student = st_jv5.new_student(backbones["qwen3"], dtype=torch.bfloat16)
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}


def test_saved_pruned_students_load_with_their_layers(backbones, architecture, texts, tmp_path):
    student = st_jv5.new_student(backbones[architecture], layers=[0, 2])
    student.save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path))
    assert loaded[0].config.num_hidden_layers == 2
    assert (loaded.encode(texts) == student.encode(texts)).all()


# -------------------------------------------------------------------------------- other bases


@pytest.fixture(params=["modernbert", "xlm-roberta"])
def other_base(request, backbones, tmp_path) -> str:
    """A small random backbone of another family, with the small BERT's tokenizer."""
    tokenizer = SentenceTransformer(backbones["bert"]).tokenizer
    shape = {"vocab_size": len(tokenizer), "hidden_size": 48, "num_hidden_layers": 4,
             "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.1,
             "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    torch.manual_seed(0)
    if request.param == "modernbert":
        ids = dict.fromkeys(("cls_token_id", "bos_token_id"), tokenizer.cls_token_id)
        ends = dict.fromkeys(("sep_token_id", "eos_token_id"), tokenizer.sep_token_id)
        model = ModernBertModel(ModernBertConfig(**shape, **ids, **ends, local_attention=16))
    else:
        model = XLMRobertaModel(XLMRobertaConfig(**shape, max_position_embeddings=80))
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_other_families_are_students_too(other_base, texts, tmp_path):
    """Padding on either side, layers by list, four adapters, saved and loaded, merged."""
    model = with_adapters(st_jv5.new_student(other_base, layers=[0, 1, 3]))
    assert model[0].config.num_hidden_layers == 3
    together = model.encode(texts[:12], task="clustering", batch_size=12)
    alone = np.concatenate([model.encode([text], task="clustering") for text in texts[:12]])
    np.testing.assert_allclose(together, alone, atol=2e-5)
    model.tokenizer.padding_side = "left"
    left = model.encode(texts[:12], task="clustering", batch_size=12)
    np.testing.assert_allclose(left, together, atol=2e-5)
    model.tokenizer.padding_side = "right"
    base = model.encode(texts[:12], task="base")
    assert np.abs(base - together).max() > 1e-2
    model.save_pretrained(str(tmp_path / "saved"))
    loaded = SentenceTransformer(str(tmp_path / "saved"))
    assert np.array_equal(loaded.encode(texts[:12], task="clustering", batch_size=12), together)
    merged = st_jv5.merge_task(model, "clustering")
    np.testing.assert_allclose(merged.encode(texts[:12], batch_size=12), together, atol=2e-5)
