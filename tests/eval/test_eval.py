"""Scores, their samples, and the encoder that mteb sees."""

from __future__ import annotations

import json

import mteb
import numpy as np
import pytest
from mteb.types import PromptType
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sklearn.metrics import average_precision_score, ndcg_score

from eval.local_tasks import (
    LOCAL_TASKS,
    GlossExamplePairs,
    OfficeBitextGerman,
    OfficeLongRetrieval,
    WikipediaReranking,
    WikipediaRetrieval,
    WikipediaRetrievalFrench,
    WikipediaRetrievalSpanish,
    WordNetSTS,
)
from eval.run_mteb import choose_tasks, evaluate, main
from eval.samples import Samples, ndcg_at_10, paired_bootstrap
from st_jv5.evaluation import ADAPTER_OF_TYPE, MTEBEncoder
from st_jv5.evaluation.mteb_encoder import adapter_for
from tests.conftest import MINILM, with_adapters
from training import corpora
from training.measure import ChanceEncoder

# ------------------------------------------------------------------------------------- samples


def test_ndcg_is_sklearns():
    draw = np.random.default_rng(0)
    for _ in range(20):
        gains = (draw.random(30) < 0.2).astype(float)
        gains[0] = 1
        values = draw.random(30)
        scores = {str(i): float(v) for i, v in enumerate(values)}
        relevant = {str(i): 1 for i in np.flatnonzero(gains)}
        expected = ndcg_score(gains[None], values[None], k=10)
        assert ndcg_at_10(scores, relevant) == pytest.approx(expected)


def test_each_statistic_is_the_known_one():
    draw = np.random.default_rng(0)
    values, gold = draw.random(50), np.round(draw.random(50), 1)
    labels = (gold > 0.5).astype(float)
    whole = np.arange(50)[None]
    assert Samples("mean", values.tolist()).scores(whole)[0] == pytest.approx(values.mean())
    spearman = Samples("spearman", values.tolist(), gold.tolist()).scores(whole)[0]
    assert spearman == pytest.approx(spearmanr(values, gold)[0])
    precision = Samples("average_precision", values.tolist(), labels.tolist()).scores(whole)[0]
    assert precision == pytest.approx(average_precision_score(labels, values))


def test_the_paired_bootstrap_tells_a_gap_from_noise():
    draw = np.random.default_rng(1)
    base = draw.random(400)
    same = Samples("mean", base.tolist())
    better = Samples("mean", (base + 0.05 + 0.1 * draw.standard_normal(400)).tolist())
    low, high = paired_bootstrap(better, same)
    assert 0.03 < low < 0.05 < high < 0.08
    noise = Samples("mean", (base + 0.1 * draw.standard_normal(400)).tolist())
    low, high = paired_bootstrap(noise, same)
    assert low < 0 < high
    with pytest.raises(ValueError, match="not of the same samples"):
        paired_bootstrap(same, Samples("mean", [1.0]))


# --------------------------------------------------------------------------------- local tasks


def test_local_tasks_read_the_test_split_and_share_no_training_text():
    from training.corpora import rows

    task = WikipediaRetrieval()
    task.load_data()
    data = task.dataset["default"]["test"]
    train = {row["extract"] for row in rows("wikipedia", "train")}
    assert len(data["corpus"]) == 980
    assert not train & set(data["corpus"]["text"])
    queries = dict(zip(data["queries"]["id"], data["queries"]["text"], strict=True))
    assert len(set(queries.values())) == len(queries)  # equal queries share their documents
    assert max(len(documents) for documents in data["relevant_docs"].values()) > 3


def test_each_language_has_its_own_articles():
    sizes = {}
    for task in (WikipediaRetrieval(), WikipediaRetrievalFrench(), WikipediaRetrievalSpanish()):
        task.load_data()
        data = task.dataset["default"]["test"]
        sizes[task.metadata.name] = len(data["corpus"])
        assert set(data["relevant_docs"]) == set(data["queries"]["id"])
    assert list(sizes.values()) == [980, 1006, 618]


def test_a_long_document_holds_each_of_its_pages_at_the_offset_that_is_told():
    pages = corpora.rows("office_help", "test")
    documents = corpora.joined_pages(pages, 8000, seed=0)
    bodies = {page["page"]: page["body"] for page in pages}
    held = [page for document in documents for page in document.offsets]
    assert sorted(held) == sorted(bodies)
    for document in documents:
        assert len(document.text) >= 8000
        for page, offset in document.offsets.items():
            assert document.text[offset:].startswith(bodies[page])
    ten = [{"page": str(i), "body": "x" * 10} for i in range(10)]
    assert [len(d.offsets) for d in corpora.joined_pages(ten, 40, seed=0)] == [4, 6]


def test_long_documents_are_scored_by_the_place_of_the_page():
    task = OfficeLongRetrieval()
    task.load_data()
    data = task.dataset["default"]["test"]
    titles = dict(zip(data["queries"]["id"], data["queries"]["text"], strict=True))
    qrels = data["relevant_docs"]
    results = {  # right for the first part alone
        query: dict(qrels[query]) if task.offsets[title] < 2000 else {}
        for query, title in titles.items()
    }
    scores = task.task_specific_scores({}, qrels, results, "test", "default")
    assert scores["ndcg_at_10_from_0"] == 1
    assert scores["ndcg_at_10_from_2000"] == scores["ndcg_at_10_from_6000"] == 0
    counts = [scores[f"queries_from_{begin}"] for begin in (0, 2000, 6000)]
    assert sum(counts) == len(titles)
    assert min(counts) >= 20


def test_reranking_candidates_share_words_and_hold_the_relevant():
    task = WikipediaReranking()
    task.load_data()
    data = task.dataset["default"]["test"]
    corpus = dict(zip(data["corpus"]["id"], data["corpus"]["text"], strict=True))
    texts = dict(zip(data["queries"]["id"], data["queries"]["text"], strict=True))
    for query, ids in data["top_ranked"].items():
        assert set(data["relevant_docs"][query]) <= set(ids)
        assert 30 <= len(ids) <= 30 + len(data["relevant_docs"][query])

    def shared(query: str, ids: list[str]) -> float:
        asked = set(texts[query].lower().split())
        return float(np.mean([len(asked & set(corpus[i].lower().split())) for i in ids]))

    some = list(texts)[:50]
    near = np.mean([shared(query, data["top_ranked"][query]) for query in some])
    assert near > 1.5 * np.mean([shared(query, list(corpus)) for query in some])


def test_parallel_pages_are_the_same_page_and_told_apart():
    for lang, count in (("de", 180), ("ru", 140), ("ja", 90)):
        pairs = corpora.parallel_openings("test", lang, 400)
        assert len(pairs) > count
        english = {row["body"][:400]: row["page"] for row in corpora.rows("office_help", "test")}
        other = corpora.rows("office_help", "test", lang)
        pages = {row["body"][:400]: row["page"] for row in other}
        assert all(english[one] == pages[two] for one, two in pairs)
        assert len({one for one, _ in pairs}) == len({two for _, two in pairs}) == len(pairs)


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformer:
    model = SentenceTransformer(MINILM)
    model.max_seq_length = 32
    return model


def test_samples_reproduce_mtebs_main_scores(minilm, tmp_path, monkeypatch):
    from eval import local_tasks

    names = ("wikipedia", "wordnet", "office_help")
    short = {name: corpora.rows(name, "test")[:150] for name in names}
    monkeypatch.setattr(local_tasks, "rows", lambda name, split, lang="en": short[name])
    encoder = MTEBEncoder(minilm, remember=True)
    tasks = [
        WikipediaRetrieval(),
        WikipediaReranking(),
        OfficeLongRetrieval(),
        OfficeBitextGerman(),
        GlossExamplePairs(),
        WordNetSTS(),
    ]
    monkeypatch.setattr(
        local_tasks,
        "similarity_pairs",
        lambda r, count, seed: corpora.similarity_pairs(r, 60, seed),
    )
    record = evaluate(encoder, tasks, tmp_path)
    long = record["tasks"]["OfficeLongRetrieval"]["scores"]["test"][0]
    assert 0 < long["ndcg_at_10_from_0"] <= 1
    for name, found in record["tasks"].items():
        samples = Samples(**found["samples"])
        score = samples.scores(np.arange(len(samples.values))[None])[0]
        assert score == pytest.approx(found["main_score"], abs=2e-5), name
        least = 0.2 if name == "OfficeBitextGerman" else 0.3  # MiniLM knows little German
        assert least < score < 1, name
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["tasks"].keys() == record["tasks"].keys()
    chance = evaluate(ChanceEncoder(), [WikipediaRetrieval()], tmp_path / "chance")
    assert chance["tasks"]["WikipediaRetrieval"]["main_score"] < 0.15


# ------------------------------------------------------------------------------------- encoder


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
    cut = encoded(encoder.at("base", 8), "STS", texts)
    np.testing.assert_allclose(cut, model.encode(texts, task="base", dim=8), atol=1e-6)


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


def test_the_name_under_which_mteb_caches_tells_models_and_settings_apart(model, backbones):
    import st_jv5

    encoder = MTEBEncoder(model)
    other = with_adapters(st_jv5.new_student(backbones["bert"]))
    names = {MTEBEncoder(m).mteb_model_meta.name for m in (model, other)}
    assert len(names) == 2
    revisions = [
        e.mteb_model_meta.revision
        for e in (encoder, encoder.at("base"), encoder.at("retrieval"), encoder.at(None, 8))
    ]
    model.prompts["query"] = "Q: "
    revisions.append(MTEBEncoder(model).mteb_model_meta.revision)
    assert len(set(revisions)) == 5


def test_the_table_covers_every_text_type_of_the_installed_mteb():
    types = {
        task.metadata.type
        for task in mteb.get_tasks(exclude_superseded=False)
        if set(task.metadata.modalities) == {"text"}
    }
    assert types - set(ADAPTER_OF_TYPE) == set()
    assert len(ADAPTER_OF_TYPE) == 13
    with pytest.raises(ValueError, match="no adapter is known for mteb's task type 'Novelty'"):
        adapter_for("Novelty")
    with pytest.raises(ValueError, match="only text can be encoded"):
        adapter_for("Any2AnyRetrieval", ["image", "text"])


# -------------------------------------------------------------------------------- command line


def test_tasks_are_chosen_by_name(capsys):
    assert [t.metadata.name for t in choose_tasks(["WordNetSTS"], [], local=False)] == [
        "WordNetSTS"
    ]
    assert len(choose_tasks([], [], local=True)) == len(LOCAL_TASKS) == 16
    with pytest.raises(SystemExit, match="nothing to run"):
        choose_tasks([], [], local=False)
    with pytest.raises(SystemExit, match="local tasks: WikipediaRetrieval"):
        choose_tasks(["NoSuchTask"], [], local=False)


def test_tasks_are_filtered_by_type_and_language():
    english = choose_tasks([], [], local=True, languages=["eng"])
    assert len(english) == 11
    assert {lang for task in english for lang in task.metadata.languages} == {"eng"}
    german = choose_tasks([], [], local=True, languages=["eng", "deu"])
    names = {task.metadata.name for task in german} - {task.metadata.name for task in english}
    assert names == {"OfficeBitextGerman"}
    bitext = choose_tasks([], [], local=True, types=["BitextMining", "Reranking"])
    assert len(bitext) == 4
    with pytest.raises(SystemExit, match=r"no task is left .* deu .*eng, fra, jpn, rus, spa"):
        choose_tasks([], [], local=True, languages=["deu"])
    with pytest.raises(SystemExit, match=r"unknown task type 'STSS'; mteb has: .*mean 'STS'"):
        choose_tasks([], [], local=True, types=["STSS"])


def test_a_dry_run_lists_tasks_adapters_and_prompts_and_runs_nothing(
    saved, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(MTEBEncoder, "encode", None)
    out = tmp_path / "eval"
    main(["--model", saved, "--local", "--languages", "eng", "--dry-run", "--output", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    routes = {line.split()[0]: line.split()[1:3] for line in lines}
    assert routes["WikipediaReranking"] == ["Reranking", "retrieval"]
    assert routes["TopicClustering"] == ["Clustering", "clustering"]
    assert all("'Query: '" in line and "'Document: '" in line for line in lines)
    assert not out.exists()


def test_the_command_prints_adapter_and_score_and_goes_on(saved, tmp_path, capsys, monkeypatch):
    from eval import local_tasks

    monkeypatch.setattr(
        local_tasks,
        "similarity_pairs",
        lambda r, count, seed: corpora.similarity_pairs(r, 40, seed),
    )
    command = ["--model", saved, "--tasks", "WordNetSTS", "--output", str(tmp_path / "eval")]
    main(command)
    printed = capsys.readouterr().out
    assert "WordNetSTS" in printed
    assert "text-matching" in printed
    monkeypatch.setattr(MTEBEncoder, "encode", None)  # a second run encodes nothing
    main(command)
    assert capsys.readouterr().out == printed
    with pytest.raises(SystemExit, match="unknown adapter 'retreival'"):
        main([*command, "--adapter", "retreival"])
