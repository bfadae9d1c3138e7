"""The encoder that mteb sees."""

from __future__ import annotations

from types import SimpleNamespace

import mteb
import numpy as np
import pytest
import torch
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer
from tokenizers import normalizers

import st_jv5
from st_jv5.evaluation import PRECISIONS, ranges_of, stored
from st_jv5.evaluation.local_tasks import LOCAL_TASKS
from st_jv5.evaluation.mteb_encoder import ADAPTER_OF_TYPE, RESCORED, MTEBEncoder, adapter_for
from st_jv5.task_table import Task
from tests.conftest import with_adapters


class Recorder:
    """Stands for mteb's task metadata."""

    def __init__(self, kind: str) -> None:
        self.type = kind
        self.modalities = ["text"]


def encoded(encoder: MTEBEncoder, kind: str, texts: list[str], side: PromptType | None = None):
    batches = [{"text": texts[:5]}, {"text": texts[5:]}]
    return encoder.encode(batches, task_metadata=Recorder(kind), prompt_type=side)


def test_every_task_type_gets_its_adapter_and_the_query_prompt_only_for_queries(model, texts):
    encoder = MTEBEncoder(model)
    for kind, adapter in ADAPTER_OF_TYPE.items():
        for side in (None, PromptType.document, PromptType.query):
            name = "query" if side == PromptType.query else "document"
            expected = model.encode(texts, task=adapter, prompt_name=name)
            np.testing.assert_allclose(encoded(encoder, kind, texts, side), expected, atol=1e-6)


def test_one_adapter_for_all_and_a_cut_dim(model, texts):
    encoder = MTEBEncoder(model, remember=True)
    full = encoded(encoder.at("base"), "STS", texts)
    np.testing.assert_allclose(full, model.encode(texts, task="base"), atol=1e-6)
    cut = encoded(encoder.at("base", dim=8), "STS", texts)
    np.testing.assert_allclose(cut, model.encode(texts, task="base", dim=8), atol=1e-6)


def test_a_model_with_a_route_for_queries_takes_it_for_mtebs_queries_alone(model, texts):
    fast = st_jv5.fit_query_table(model, texts, epochs=1)
    encoder = MTEBEncoder(fast, remember=True)
    for side, own in ((PromptType.query, fast.encode_query), (None, fast.encode_document)):
        found = encoded(encoder, "Retrieval", texts, side)
        np.testing.assert_allclose(found, own(texts), atol=1e-6)


def test_trap_26_mtebs_own_wrapper_gives_the_same_vectors_on_our_folder(saved, texts):
    from mteb.models.model_implementations.jina_models import JinaV5TextWrapper

    wrapper = JinaV5TextWrapper(saved, revision=None, model_prompts=dict(ADAPTER_OF_TYPE))
    encoder = MTEBEncoder(SentenceTransformer(saved))
    tasks = {task.metadata.type: task.metadata for task in LOCAL_TASKS}
    assert len(tasks) == 7
    for kind, metadata in tasks.items():
        for side in (None, PromptType.query):
            theirs = wrapper.encode(
                [{"text": texts}],
                task_metadata=metadata,
                hf_split="test",
                hf_subset="default",
                prompt_type=side,
            )
            ours = encoded(encoder, kind, texts, side)
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dim", [None, 16, 8])
def test_each_point_equals_a_separate_encode(model, texts, dim, precision):
    """Vectors cut and stored from one pass are those of an encode at that dim and precision."""
    encoder = MTEBEncoder(model, remember=True)
    encoded(encoder, "Retrieval", texts)  # the pass that all points share
    ranges = None
    if precision == "int8":
        ranges = encoder.at(dim=dim).ranges_of(texts[:40], "Retrieval")
        sides = (("query", texts[:40:2]), ("document", texts[1:40:2]))
        other = [
            model.encode(part, task="retrieval", prompt_name=name, dim=dim) for name, part in sides
        ]
        np.testing.assert_allclose(ranges, ranges_of(np.concatenate(other)), atol=1e-6)
    at = encoder.at(dim=dim, precision=precision, ranges=ranges)
    forwards = model.forward
    model.forward = None  # nothing is encoded again
    ours = encoded(at, "Retrieval", texts)
    model.forward = forwards
    separate = model.encode(texts, task="retrieval", prompt_name="document", dim=dim)
    # A value on the border of two codes may fall to either side.
    step = 0 if ranges is None else (ranges[1] - ranges[0]).max() / 255
    np.testing.assert_allclose(ours, stored(separate, precision, ranges), atol=1e-6 + 1.1 * step)
    assert at.describe("Retrieval")["dim"] == ours.shape[1] == (dim or 48)


def test_rescoring_ranks_the_nearest_by_hamming_anew_by_the_float_query():
    draw = np.random.default_rng(0)
    queries, documents = (draw.standard_normal((n, 16)).astype(np.float32) for n in (5, 100))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    encoder = MTEBEncoder.__new__(MTEBEncoder)
    encoder.precision = "binary-rescored"
    signs = np.where(documents > 0, 1, -1) / 4
    scores = encoder.similarity(queries, stored(documents, "binary")).numpy()
    for query, found in zip(queries, scores, strict=True):
        hamming = (np.sign(query) != np.sign(documents)).sum(axis=1)
        order = np.argsort(-found)
        assert hamming[order[:RESCORED]].max() <= hamming[order[RESCORED:]].min()
        np.testing.assert_allclose(
            found[order[:RESCORED]], (signs @ query)[order[:RESCORED]], atol=1e-6
        )
        assert found[order[RESCORED:]].max() < -2


def test_the_name_under_which_mteb_caches_tells_models_and_settings_apart(model, backbones):
    encoder = MTEBEncoder(model)
    other = with_adapters(st_jv5.new_student(backbones["bert"]))
    names = {MTEBEncoder(m).mteb_model_meta.name for m in (model, other)}
    assert len(names) == 2
    ranges = np.stack([-np.ones(48), np.ones(48)]).astype(np.float32)
    revisions = [
        e.mteb_model_meta.revision
        for e in (
            encoder,
            encoder.at("base"),
            encoder.at("retrieval"),
            encoder.at(None, dim=8),
            encoder.at(precision="binary"),
            encoder.at(precision="int8", ranges=ranges),
            encoder.at(precision="int8", ranges=2 * ranges),
        )
    ]
    with torch.autocast("cpu", torch.bfloat16):
        revisions.append(encoder.at().mteb_model_meta.revision)
    model.max_seq_length = 8
    revisions.append(encoder.at().mteb_model_meta.revision)
    model.prompts["query"] = "Q: "
    revisions.append(encoder.at().mteb_model_meta.revision)
    assert len(set(revisions)) == 10


def test_the_same_weights_wired_otherwise_have_another_name(backbones):
    names = set()
    for eos in (True, False):
        names.add(MTEBEncoder(st_jv5.new_student(backbones["qwen3"], append_eos=eos))._name)
    student = st_jv5.new_student(backbones["qwen3"])
    names.add(MTEBEncoder(student)._name)
    student.transformers_model.config.rope_parameters["rope_theta"] = 5.0
    names.add(MTEBEncoder(student)._name)
    assert len(names) == 3


def test_a_tasks_own_prompt_is_told_and_counts(model, texts):
    encoder = MTEBEncoder(model)
    before = encoder.mteb_model_meta.revision
    old = encoded(encoder, "STS", texts)
    router = model[0]
    own = Task("text-matching", prompts={"document": "The same as: "})
    router.tasks["text-matching"] = own
    assert encoder.describe("STS")["prompts"]["document"] == "The same as: "
    assert encoder.at().mteb_model_meta.revision != before
    new = encoded(encoder, "STS", texts)
    np.testing.assert_allclose(new, model.encode(texts, task="text-matching"), atol=1e-6)
    assert np.abs(new - old).max() > 1e-3


def test_other_words_make_another_model(backbones):
    names = set()
    for change in (None, "truncation", "words"):
        student = st_jv5.new_student(backbones["eurobert"])
        if change == "truncation":  # every batch sets it
            student.tokenizer.backend_tokenizer.enable_truncation(5)
        elif change == "words":
            student.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
        names.add(MTEBEncoder(student)._name)
    assert len(names) == 2


def test_a_dim_or_precision_that_cannot_be_is_refused(model):
    with pytest.raises(ValueError, match=r"dim must lie in 1..48, not 49"):
        MTEBEncoder(model, dim=49)
    with pytest.raises(ValueError, match="unknown precision 'int4'"):
        MTEBEncoder(model).at(precision="int4")


def uncovered(tasks) -> set[str]:
    """Types of text tasks that the table does not know."""
    types = {task.metadata.type for task in tasks if set(task.metadata.modalities) == {"text"}}
    return types - set(ADAPTER_OF_TYPE)


def test_the_table_covers_every_text_type_of_the_installed_mteb_and_misses_a_new_one():
    tasks = list(mteb.get_tasks(exclude_superseded=False))
    assert uncovered(tasks) == set()
    assert len(ADAPTER_OF_TYPE) == 13
    new = SimpleNamespace(metadata=SimpleNamespace(type="Novelty", modalities=["text"]))
    assert uncovered([*tasks, new]) == {"Novelty"}
    with pytest.raises(ValueError, match="no adapter is known for mteb's task type 'Novelty'"):
        adapter_for("Novelty")
    with pytest.raises(ValueError, match="only text can be encoded"):
        adapter_for("Any2AnyRetrieval", ["image", "text"])
