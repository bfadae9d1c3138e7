"""A vocabulary cut to a corpus: what the corpus reads stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

import st_jv5
from st_jv5.backbone.vocabulary import cut_vocabulary
from st_jv5.evaluation.corpora import rows
from tests.conftest import MINILM, real_texts


def words_of(student: SentenceTransformer, texts: list[str]) -> list[list[str]]:
    return [student.tokenizer.convert_ids_to_tokens(student.tokenizer(t).input_ids) for t in texts]


@pytest.fixture(scope="module")
def xlm_roberta(tmp_path_factory) -> str:
    """A small random XLM-R: a Unigram tokenizer, positions counted from the padding's id."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(real_texts(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
    )
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)
    folder = tmp_path_factory.mktemp("xlm-roberta")
    config = XLMRobertaConfig(
        vocab_size=len(fast), hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, initializer_range=0.1, max_position_embeddings=80,
    )  # fmt: skip
    XLMRobertaModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["bert", "mpnet", "qwen3", "eurobert", "xlm-roberta", "minilm"])
def test_the_corpus_keeps_its_tokens_and_vectors(kind, backbones, xlm_roberta, tmp_path):
    base = {**backbones, "xlm-roberta": xlm_roberta, "minilm": MINILM}[kind]
    corpus, other = real_texts()[:12], real_texts()[40:50]
    whole = st_jv5.new_student(base)
    cut = st_jv5.new_student(base, vocabulary=["Query: ", "Document: ", *corpus])
    assert len(cut.tokenizer) < len(whole.tokenizer)
    assert cut[0].config.vocab_size == len(cut.tokenizer)
    assert words_of(cut, corpus) == words_of(whole, corpus)
    assert np.array_equal(cut.encode(corpus), whole.encode(corpus))
    # Other texts are spelled otherwise, but spelled: nothing becomes unknown.
    unknown = cut.tokenizer.unk_token
    for before, after in zip(words_of(whole, other), words_of(cut, other), strict=True):
        assert len(after) >= len(before)
        assert after.count(unknown) == before.count(unknown)
    cut.save_pretrained(str(tmp_path / "cut"))
    loaded = SentenceTransformer(str(tmp_path / "cut"))
    assert words_of(loaded, other) == words_of(cut, other)
    assert np.array_equal(loaded.encode(other), cut.encode(other))


def test_a_cut_student_trains_its_adapters_and_goes_on_as_any(backbones, texts):
    cut = st_jv5.new_student(backbones["eurobert"], layers=2, vocabulary=texts)
    st_jv5.add_task(cut, "retrieval")
    again = st_jv5.new_student(cut, vocabulary=texts[:5])
    assert len(again.tokenizer) < len(cut.tokenizer)
    assert again[0].config.num_hidden_layers == 2


def test_most_of_minilm_that_no_gloss_needs_is_its_embeddings():
    glosses = [row["gloss"] for row in rows("wordnet", "validation")]
    whole = st_jv5.new_student(MINILM, layers=1)
    cut = st_jv5.new_student(MINILM, layers=1, vocabulary=glosses)
    sizes = [sum(p.numel() for p in student.parameters()) for student in (whole, cut)]
    assert sizes[0] - sizes[1] == 384 * (len(whole.tokenizer) - len(cut.tokenizer))
    assert len(cut.tokenizer) < 0.4 * len(whole.tokenizer)


@pytest.mark.parametrize(
    ("corpus", "message"),
    [([], "the corpus is empty"), (["a", None], "texts must be str, but text 1")],
)
def test_a_corpus_that_is_none_is_refused(corpus, message, backbones):
    with pytest.raises(ValueError, match=message):
        st_jv5.new_student(backbones["bert"], vocabulary=corpus)


def test_other_tokenizers_are_refused_by_kind(tmp_path):
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="a WordLevel tokenizer cannot be cut"):
        cut_vocabulary(tmp_path, ["a"])
