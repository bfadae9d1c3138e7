"""A student pools as its base does and keeps its prompts, everywhere a vector is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mteb.types import PromptType
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from transformers import AutoModel

import st_jv5
from st_jv5.evaluation.mteb_encoder import MTEBEncoder
from st_jv5.files import read_json, write_json
from st_jv5.losses import GORLoss
from st_jv5.losses.embed import embed_columns
from st_jv5.modules import LastTokenPooling, TokenPooling
from st_jv5.publish.self_test import _try_task
from st_jv5.task_table import PROMPTS, TASKS
from tests.conftest import MINILM, adapted, arguments, trainable

MODES = ("mean", "cls", "lasttoken")
NONE = {"query": "", "document": ""}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stock(folder: str, pooling: str | tuple[str, ...], *more: torch.nn.Module, **settings):
    """A model of sentence-transformers, without us."""
    width = AutoModel.from_pretrained(folder).config.hidden_size
    return SentenceTransformer(
        modules=[Transformer(folder), Pooling(width, pooling), *more], **settings
    )


def pooled(folder: str, task: str, texts: list[str], mode: str) -> np.ndarray:
    """AutoModel + PeftModel + pooling by hand + L2, text by text."""
    backbone = AutoModel.from_pretrained(folder)
    model = PeftModel.from_pretrained(backbone, f"{folder}/adapters/{task}").eval()
    tokenizer = SentenceTransformer(folder).tokenizer
    rows = []
    for text in texts:
        batch = tokenizer([f"Document: {text}"], return_tensors="pt", truncation=True)
        with torch.no_grad():
            states = model(**batch).last_hidden_state[0]
        rows.append({"mean": states.mean(0), "cls": states[0], "lasttoken": states[-1]}[mode])
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1).numpy()


# -------------------------------------------------------------------------- the base's own vectors


@pytest.mark.parametrize("loaded", [False, True])
def test_an_untrained_student_of_minilm_has_minilms_own_vectors(texts, loaded, tmp_path):
    base, texts = SentenceTransformer(MINILM), texts[:12]
    expected = base.encode(texts)
    student = st_jv5.new_student(base if loaded else MINILM)
    student.save_pretrained(str(tmp_path))
    for one in (student, SentenceTransformer(str(tmp_path)), st_jv5.new_student(str(tmp_path))):
        for encode in (one.encode, one.encode_query, one.encode_document):
            np.testing.assert_allclose(encode(texts), expected, atol=1e-6)
        np.testing.assert_allclose(one.encode(texts, task="query"), expected, atol=1e-6)
        np.testing.assert_allclose(st_jv5.encode(one, texts), expected, atol=1e-6)


def test_a_cut_vocabulary_and_a_fresh_adapter_keep_them_too(texts):
    expected = SentenceTransformer(MINILM).encode(texts[:12])
    cut = st_jv5.new_student(MINILM, vocabulary=texts[:12])
    np.testing.assert_allclose(cut.encode(texts[:12]), expected, atol=1e-6)
    st_jv5.add_task(cut, "retrieval")
    np.testing.assert_allclose(cut.encode_query(texts[:12]), expected, atol=1e-6)


def test_each_base_says_how_it_pools_in_new_and_old_keys(backbones, mode, texts, tmp_path):
    base = stock(backbones["bert"], mode)
    base.save_pretrained(str(tmp_path / "new"))
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    old = {
        "word_embedding_dimension": 48,
        "pooling_mode_cls_token": mode == "cls",
        "pooling_mode_mean_tokens": mode == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_lasttoken": mode == "lasttoken",
    }
    write_json(tmp_path / "old" / "1_Pooling" / "config.json", old)
    expected = base.encode(texts, normalize_embeddings=True)
    for source in (base, tmp_path / "new", str(tmp_path / "old")):
        student = st_jv5.new_student(source, append_eos=False)
        assert student[1].pooling_mode == mode
        assert student.prompts == NONE
        np.testing.assert_allclose(student.encode(texts), expected, atol=1e-6)
    assert st_jv5.new_student(tmp_path / "new")[0].append_eos == (mode == "lasttoken")


def test_a_plain_folder_says_nothing_and_gets_the_last_token_and_the_papers_prompts(backbones):
    student = st_jv5.new_student(backbones["bert"])
    assert type(student[1]) is LastTokenPooling
    assert student.prompts == dict(PROMPTS)
    assert student[0].append_eos


def test_mean_and_cls_leave_the_tokenizer_alone(backbones):
    for mode in ("mean", "cls"):
        student = st_jv5.new_student(backbones["qwen3"], pooling=mode)
        assert student.tokenizer("a")["input_ids"][-1] != student.tokenizer.eos_token_id
    ended = st_jv5.new_student(backbones["qwen3"], pooling="mean", append_eos=True)
    assert ended.tokenizer("a")["input_ids"][-1] == ended.tokenizer.eos_token_id


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize(
    ("pooling", "more", "told"),
    [
        ("max", [], r"pools by max; pass pooling='mean', 'cls' or 'lasttoken'"),
        ("weightedmean", [], "pools by weightedmean; pass pooling="),
        (("cls", "mean"), [], r"pools by cls \+ mean; pass pooling="),
        ("mean", [Dense(48, 48)], r"has Dense besides its pooling, which a student would drop"),
    ],
)
def test_a_way_that_no_student_has_is_named_with_the_way_out(
    backbones, tmp_path, pooling, more, told, saved
):
    base = stock(backbones["bert"], pooling, *more)
    if saved:
        base.save_pretrained(str(tmp_path))
    source = str(tmp_path) if saved else base
    with pytest.raises(ValueError, match=told):
        st_jv5.new_student(source)
    assert st_jv5.new_student(source, pooling="mean")[1].pooling_mode == "mean"


def test_a_base_that_leaves_its_prompt_out_of_the_mean_is_refused(backbones):
    base = stock(backbones["bert"], "mean")
    base.set_pooling_include_prompt(False)
    with pytest.raises(ValueError, match=r"mean without the prompt's tokens .*pass pooling="):
        st_jv5.new_student(base)


def test_bad_arguments_are_named(backbones):
    with pytest.raises(ValueError, match="pooling must be one of mean, cls, lasttoken, not 'max'"):
        st_jv5.new_student(backbones["bert"], pooling="max")
    with pytest.raises(ValueError, match=r"prompts lack 'document'; they are \{'query'"):
        st_jv5.new_student(backbones["bert"], prompts={"query": "Q: "})


# ------------------------------------------------------------------------------- the saved folder


def test_every_mode_is_saved_with_both_dialects_and_loads_to_the_same_vectors(
    backbones, mode, texts, tmp_path
):
    model = adapted(backbones["bert"], pooling=mode)
    model.save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path))
    assert type(loaded[1]) is type(model[1])
    assert loaded[1].pooling_mode == mode
    for task in [*TASKS, "base"]:
        assert np.array_equal(loaded.encode(texts, task=task), model.encode(texts, task=task))
    name = "1_LastTokenPooling" if mode == "lasttoken" else "1_TokenPooling"
    config = read_json(tmp_path / name / "config.json")
    assert config["pooling_mode"] == mode
    key = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}[mode]
    assert next(k for k, value in config.items() if value is True) == f"pooling_mode_{key}"


OF_TODAY = {
    "word_embedding_dimension": 48,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
    "pooling_mode_weightedmean_tokens": False,
    "pooling_mode_lasttoken": True,
    "embedding_dimension": 48,
    "pooling_mode": "lasttoken",
    "include_prompt": True,
}
"""The pooling config of a folder that was saved before there was a choice."""


def test_a_folder_saved_before_there_was_a_choice_loads_to_the_same_vectors(saved, texts, tmp_path):
    folder = Path(saved)
    shutil.rmtree(folder / "1_LastTokenPooling")
    write_json(folder / "1_LastTokenPooling" / "config.json", OF_TODAY)
    kinds = ["adapter_router.AdapterRouter", "pooling.LastTokenPooling",
             "matryoshka.MatryoshkaTruncate"]  # fmt: skip
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"st_jv5.modules.{kind}"}
        for i, (path, kind) in enumerate(
            zip(("", "1_LastTokenPooling", "2_MatryoshkaTruncate"), kinds, strict=True)
        )
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    loaded = SentenceTransformer(saved)
    assert type(loaded[1]) is LastTokenPooling
    expected = pooled(saved, "retrieval", texts, "lasttoken")
    np.testing.assert_allclose(loaded.encode(texts, task="retrieval"), expected, atol=1e-5)
    again = st_jv5.new_student(saved)
    assert type(again[1]) is LastTokenPooling
    assert again.prompts == dict(PROMPTS)
    loaded.save_pretrained(str(tmp_path / "again"))
    written = read_json(tmp_path / "again" / "1_LastTokenPooling" / "config.json")
    assert list(written.items()) == list(OF_TODAY.items())


def test_a_last_token_module_takes_no_other_mode(tmp_path):
    write_json(tmp_path / "config.json", {**OF_TODAY, "pooling_mode": "mean"})
    with pytest.raises(ValueError, match="LastTokenPooling has no pooling_mode 'mean'"):
        LastTokenPooling.load(str(tmp_path))
    write_json(tmp_path / "config.json", {**OF_TODAY, "pooling_mode": "max"})
    with pytest.raises(ValueError, match="has no pooling_mode 'max'; it must be 'mean' or 'cls'"):
        TokenPooling.load(str(tmp_path))


# ----------------------------------------------------------------------- the same vector everywhere


@pytest.mark.parametrize("kind", ["bert", "eurobert", "qwen3"])
def test_alone_in_batches_and_padded_on_either_side_a_text_has_one_vector(
    backbones, kind, mode, texts, tmp_path
):
    model = adapted(backbones[kind], pooling=mode, prompts=PROMPTS)
    model.save_pretrained(str(tmp_path))
    expected = pooled(str(tmp_path), "retrieval", texts, mode)
    blind = (kind, mode) == ("qwen3", "cls")  # a causal decoder's first token sees no other
    assert len(np.unique(expected.round(4), axis=0)) in ([1] if blind else range(61, 65))
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        batched = model.encode(texts, task="retrieval", batch_size=64)
        np.testing.assert_allclose(batched, expected, atol=1e-5)
        alone = model.encode(texts[:8], task="retrieval", batch_size=1)
        np.testing.assert_allclose(alone, expected[:8], atol=1e-5)
        by_tokens = st_jv5.encode(model, texts, task="retrieval", batch_tokens=100)
        np.testing.assert_allclose(by_tokens, expected, atol=1e-5)
        tasks = [[*TASKS][i % 4] for i in range(len(texts))]
        mixed = st_jv5.encode_mixed(model, texts, tasks, batch_tokens=2000)
        np.testing.assert_allclose(mixed[::4], expected[::4], atol=1e-5)
    every = st_jv5.encode_all_tasks(model, texts)
    np.testing.assert_allclose(every["retrieval"], expected, atol=1e-5)
    merged = st_jv5.merge_task(model, "retrieval")
    assert merged[1].pooling_mode == mode
    merged.save_pretrained(str(tmp_path / "merged"))
    found = SentenceTransformer(str(tmp_path / "merged")).encode(texts)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if blind:
        with pytest.raises(ValueError, match=r"retrieval: the texts .* have the same vector"):
            [*_try_task(model, "retrieval")]
        return
    told = [*_try_task(model, "retrieval")]
    assert told[:3] == ["unit vectors", "different texts apart", "batch of 1"]
    assert ("long input ends with EOS" in told) == (mode == "lasttoken")


def test_padded_and_flattened_rows_pool_alike(mode):
    """Flash attention puts all texts into one row."""
    states = torch.arange(24.0).reshape(2, 3, 4)
    pooling = TokenPooling(4, mode)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    right = pooling({"token_embeddings": states, "attention_mask": mask})
    left = pooling(
        {
            "token_embeddings": torch.stack([states[0].roll(1, 0), states[1]]),
            "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        }
    )
    flat = pooling(
        {
            "token_embeddings": torch.cat([states[0, :2], states[1]])[None],
            "cu_seq_lens_q": torch.tensor([0, 2, 5]),
        }
    )
    real = [states[0, :2], states[1]]
    by_hand = {"mean": lambda s: s.mean(0), "cls": lambda s: s[0], "lasttoken": lambda s: s[-1]}
    expected = torch.stack([by_hand[mode](text) for text in real])
    for found in (right, left, flat):
        assert torch.equal(found["sentence_embedding"], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_mean_of_half_precision_states_is_summed_in_float32(dtype):
    """A sum of that many in half precision would stop short of 6,144."""
    states = torch.full((1, 4096, 2), 1.5, dtype=dtype)
    mask = torch.ones(1, 4096, dtype=torch.long)
    found = TokenPooling(2)({"token_embeddings": states, "attention_mask": mask})
    assert torch.equal(found["sentence_embedding"], states[:, 0])


# ---------------------------------------------------------------------------------------- training


def test_columns_that_are_embedded_together_have_the_vectors_of_each_alone(backbones, mode, texts):
    model = adapted(backbones["bert"], pooling=mode).eval()
    st_jv5.train_task(model, "retrieval")
    short, long = [text[:20] for text in texts[:6]], texts[6:12]
    together = embed_columns(model, [model.preprocess(short), model.preprocess(long)])
    for column, found in zip((short, long), together, strict=True):
        alone = [model(model.preprocess([text]))["sentence_embedding"][0] for text in column]
        torch.testing.assert_close(found, torch.stack(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", ["base", "retrieval"])
def test_a_step_of_training_changes_the_trained_weights(backbones, mode, task, pairs, tmp_path):
    model = adapted(backbones["bert"], pooling=mode)
    before = trainable(model)
    rows = pairs.remove_columns(["label"])
    st_jv5.AdapterTrainer(
        model, arguments(tmp_path, max_steps=1), tasks=task, train_dataset=rows, loss=GORLoss(model)
    ).train()
    moved = {name for name, now in trainable(model).items() if not torch.equal(now, before[name])}
    assert any(".lora_" in name for name in moved) == (task == "retrieval")
    assert all((".retrieval." in name) == (task == "retrieval") for name in moved)
    assert len(moved) > 20


# ----------------------------------------------------------------------------------------- prompts

ASKING = {"query": "Represent this: ", "document": ""}


@pytest.fixture
def asking(backbones) -> SentenceTransformer:
    """A student of a base that has a prompt for queries alone, as many have."""
    base = stock(backbones["bert"], "cls", prompts={"query": ASKING["query"]})
    return st_jv5.new_student(base)


def test_a_base_with_prompts_hands_them_on_and_adapters_follow(asking, texts, pairs, tmp_path):
    assert asking.prompts == ASKING
    plain = asking.encode(texts, prompt="")
    queries = asking.encode([ASKING["query"] + text for text in texts], prompt="")
    assert np.abs(plain - queries).max() > 1e-2
    np.testing.assert_allclose(asking.encode(texts), plain, atol=1e-6)
    np.testing.assert_allclose(asking.encode_query(texts), queries, atol=1e-6)
    for name in ("retrieval", "clustering"):
        st_jv5.add_task(asking, name)
    assert asking[0].tasks["retrieval"].prompts == ASKING
    assert asking[0].tasks["clustering"].prompts == {"document": ""}
    asking.save_pretrained(str(tmp_path))
    for model in (asking, SentenceTransformer(str(tmp_path))):  # fresh adapters are the base
        for found in (
            model.encode(texts, task="query"),
            model.encode_query(texts),
            model.encode(texts, task="retrieval", prompt_name="query"),
            st_jv5.encode(model, texts, task="query"),
            st_jv5.encode_mixed(model, texts, ["query"] * len(texts)),
        ):
            np.testing.assert_allclose(found, queries, atol=1e-5)
        for found in (
            model.encode(texts, task="retrieval"),
            model.encode_document(texts),
            st_jv5.encode_all_tasks(model, texts)["clustering"],
        ):
            np.testing.assert_allclose(found, plain, atol=1e-5)
        encoder = MTEBEncoder(model)
        assert encoder.route("Retrieval", PromptType.query) == ("retrieval", ASKING["query"])
        assert encoder.route("Retrieval", PromptType.document) == ("retrieval", "")
        for task, query in (("base", ASKING["query"]), ("retrieval", ASKING["query"]),
                            ("clustering", "")):  # fmt: skip
            told = st_jv5.trainer.trainer_prompts(model, task, pairs)
            assert told == {"query": query, "positive": "", "negative_1": ""}


def test_a_passage_prompt_is_the_document_prompt(backbones):
    base = stock(backbones["bert"], "mean", prompts={"query": "query: ", "passage": "passage: "})
    student = st_jv5.new_student(base)
    assert {name: student.prompts[name] for name in PROMPTS} == {
        "query": "query: ",
        "document": "passage: ",
    }


def test_prompts_of_ones_own_win_and_a_student_of_ours_keeps_them(backbones, texts, tmp_path):
    own = {"query": "Frage: ", "document": "Text: "}
    student = st_jv5.new_student(stock(backbones["bert"], "mean"), prompts=own)
    student.save_pretrained(str(tmp_path))
    for again in (st_jv5.new_student(student), st_jv5.new_student(str(tmp_path))):
        assert again.prompts == own
        assert again[1].pooling_mode == "mean"
        plain = again.encode([f"Frage: {text}" for text in texts], prompt="")
        np.testing.assert_allclose(again.encode(texts, task="query"), plain, atol=1e-6)


def test_prompts_set_on_a_model_are_what_its_base_encodes_and_trains_with(student, pairs):
    student.prompts = {"query": "Ask: ", "document": "Say: "}
    assert student[0].prompt_for("query", "Say: ") == "Ask: "
    assert st_jv5.trainer.trainer_prompts(student, "base", pairs)["query"] == "Ask: "
    st_jv5.add_task(student, "retrieval")
    assert student[0].tasks["retrieval"].prompts == student.prompts


def test_a_prompt_that_the_user_replaces_is_every_tasks(saved, texts, tmp_path):
    replaced = SentenceTransformer(saved, prompts={"query": "Ask: "})
    replaced.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path))
    for model in (replaced, again):
        expected = model.encode([f"Ask: {text}" for text in texts], task="retrieval", prompt="")
        for found in (
            model.encode(texts, task="query"),
            model.encode(texts, task="retrieval", prompt_name="query"),
            st_jv5.merge_task(model, "retrieval").encode_query(texts),
        ):
            np.testing.assert_allclose(found, expected, atol=1e-5)
        documents = SentenceTransformer(saved).encode(texts, task="clustering")
        assert np.array_equal(model.encode(texts, task="clustering"), documents)


def test_only_prompts_that_are_not_the_papers_stand_in_st_jv5_json(saved, asking, tmp_path):
    assert "prompts" not in read_json(Path(saved) / "st_jv5.json")
    asking.save_pretrained(str(tmp_path))
    told = read_json(tmp_path / "st_jv5.json")
    assert told["prompts"] == ASKING
    for wrong, message in (
        (["a"], "prompts must be texts"),
        ({"query": 7, "document": ""}, "prompts must be texts"),
        ({"query": ""}, "prompts lack 'document'"),
    ):
        write_json(tmp_path / "st_jv5.json", {**told, "prompts": wrong})
        with pytest.raises(ValueError, match=message):
            SentenceTransformer(str(tmp_path))


def test_a_tasks_two_prompts_need_a_model_with_two(backbones, model, tmp_path):
    student = st_jv5.new_student(backbones["eurobert"], prompts=NONE, pooling="lasttoken")
    with pytest.raises(ValueError, match=r"this model has '' for both, so prompt_name could not"):
        st_jv5.add_task(student, "legal", prompts={"query": "Law? ", "document": "Law: "})
    st_jv5.adapters.save_adapter(model, "retrieval", tmp_path)
    with pytest.raises(ValueError, match=r"'Query: ', and one for documents, 'Document: '"):
        st_jv5.adapters.load_adapter(student, tmp_path)
    st_jv5.add_task(student, "topics", prompts={"document": "Topic: "})
    assert student[0].prompt_for("topics", "") == "Topic: "


def test_normalize_alone_behind_the_pooling_is_no_loss(backbones, texts):
    base = stock(backbones["mpnet"], "mean", Normalize())
    np.testing.assert_allclose(
        st_jv5.new_student(base).encode(texts), base.encode(texts), atol=1e-6
    )
