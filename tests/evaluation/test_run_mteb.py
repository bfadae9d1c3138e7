"""Scores through mteb: the right ones, kept, and never another model's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask, AbsTaskSTS
from mteb.mocks import ALL_MOCK_TASK_TEST_GRID
from mteb.models.model_implementations.jina_models import JinaV5TextWrapper
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.cli import evaluate as main
from st_jv5.evaluation import PRECISIONS
from st_jv5.evaluation.choose import choose_tasks
from st_jv5.evaluation.local_tasks import (
    LOCAL_TASKS,
    GlossExamplePairs,
    OfficeBitextGerman,
    OfficeLongRetrieval,
    TopicClassification,
    WikipediaReranking,
    WikipediaRetrieval,
    WordNetSTS,
)
from st_jv5.evaluation.mteb_encoder import ADAPTER_OF_TYPE, MTEBEncoder
from st_jv5.evaluation.record import key_of
from st_jv5.evaluation.samples import Samples
from st_jv5.evaluation.scoring import Settings, evaluate
from st_jv5.evaluation.task_families import described
from st_jv5.recipe.results.measure import ChanceEncoder
from st_jv5.task_table import PROMPTS
from tests.conftest import MINILM, real_texts, with_adapters


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformer:
    model = SentenceTransformer(MINILM)
    model.max_seq_length = 32
    return model


def test_samples_reproduce_mtebs_main_scores(minilm, tmp_path, small_tasks):
    encoder = MTEBEncoder(minilm, remember=True)
    tasks = [
        WikipediaRetrieval(),
        WikipediaReranking(),
        OfficeLongRetrieval(),
        OfficeBitextGerman(),
        GlossExamplePairs(),
        WordNetSTS(),
    ]
    rows = evaluate(encoder, tasks, tmp_path)
    found = {row["task"]: row for row in rows}
    long = found["OfficeLongRetrieval"]["scores"]["test"][0]
    assert 0 < long["ndcg_at_10_from_0"] <= 1
    for name, row in found.items():
        samples = Samples(**row["samples"])
        score = samples.scores(np.arange(len(samples.values))[None])[0]
        assert score == pytest.approx(row["main_score"], abs=2e-5), name
        # MiniLM knows little German; few of 150 synsets are near each other.
        least = {"OfficeBitextGerman": 0.2, "WordNetSTS": 0.1}.get(name, 0.3)
        assert least < score < 1, name
    assert json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)[
        "results"
    ] == list(rows)
    (chance,) = evaluate(ChanceEncoder(), [WikipediaRetrieval()], tmp_path / "chance")
    assert chance["main_score"] < 0.15


# ------------------------------------------------------------------------- never a stale score


def perturbed(model: SentenceTransformer) -> SentenceTransformer:
    """The next checkpoint of a run: weights a little further."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def test_two_checkpoints_in_one_cache_keep_two_results(model, tmp_path, small_tasks):
    cache = tmp_path / "cache"
    (first,) = evaluate(MTEBEncoder(model), [WordNetSTS()], tmp_path / "a", cache=cache)
    perturbed(model)
    (second,) = evaluate(MTEBEncoder(model), [WordNetSTS()], tmp_path / "b", cache=cache)
    (alone,) = evaluate(MTEBEncoder(model), [WordNetSTS()], tmp_path / "c")
    assert second["main_score"] == alone["main_score"] != first["main_score"]
    assert len(list(cache.rglob("WordNetSTS.json"))) == 2


def test_a_changed_prompt_adapter_dim_precision_or_length_is_scored_anew(
    model, tmp_path, small_tasks
):
    cache, folder = tmp_path / "cache", tmp_path / "one"

    def scores(where, cache=None, **settings) -> dict[str, float]:
        rows = evaluate(
            MTEBEncoder(model), [WordNetSTS()], where, Settings(**settings), cache=cache
        )
        return {str(key_of(row)): row["main_score"] for row in rows}

    steps = [
        {},
        {"adapters": "none"},
        {"adapters": "clustering"},
        {"dims": (8,)},
        {"precisions": ("binary",)},
        {"precisions": ("int8",)},
        {"max_tokens": (12,)},
    ]
    kept: dict[str, float] = {}
    for number, settings in enumerate(steps):
        now = scores(folder, cache, **settings)
        new = {key: value for key, value in now.items() if key not in kept}
        assert len(new) == 1
        assert new == scores(tmp_path / f"alone-{number}", **settings)
        kept = now
    assert len(set(kept.values())) == len(steps)
    model.prompts["document"] = "Something else entirely: "
    changed = scores(folder, cache)
    assert changed.keys() == kept.keys()  # the same score, of another prompt
    assert changed != kept
    assert [k for k in kept if changed[k] != kept[k]] == [next(iter(kept))]


class OwnPairs(AbsTaskSTS):
    """Somebody's own task, whose data may change under its name."""

    min_score, max_score = 0, 8

    metadata = described("OwnPairs", "STS", "cosine_spearman", "Near or not?")
    scores = tuple(range(9))

    def load_data(self, *args: object, **settings: object) -> None:
        texts = real_texts()
        rows = [
            {"sentence1": texts[i], "sentence2": texts[i + 9], "score": score}
            for i, score in enumerate(self.scores)
        ]
        self.dataset = DatasetDict({"test": Dataset.from_list(rows)})
        self.data_loaded = True


def test_an_own_task_whose_data_has_changed_is_scored_anew(model, tmp_path, monkeypatch):
    """Its name and revision stayed, and so did its old score."""
    (first,) = evaluate(MTEBEncoder(model), [OwnPairs()], tmp_path)
    monkeypatch.setattr(OwnPairs, "scores", OwnPairs.scores[::-1])
    (second,) = evaluate(MTEBEncoder(model), [OwnPairs()], tmp_path)
    assert second["main_score"] == pytest.approx(-first["main_score"])
    assert second["main_score"] != 0
    assert second["data"] != first["data"]
    asked = []
    monkeypatch.setattr(MTEBEncoder, "encode", lambda *args, **kwargs: asked.append(args))
    (third,) = evaluate(MTEBEncoder(model), [OwnPairs()], tmp_path)  # the same data: as it stands
    assert (third, asked) == (second, [])
    shutil.copytree(tmp_path / "mteb", tmp_path / "again" / "mteb")  # mteb's cache knows it, too
    (fourth,) = evaluate(MTEBEncoder(model), [OwnPairs()], tmp_path / "again")
    assert (fourth["main_score"], asked) == (pytest.approx(second["main_score"], abs=1e-5), [])


def test_a_task_of_mteb_at_another_revision_is_scored_anew(model, tmp_path):
    task = next(t for t in ALL_MOCK_TASK_TEST_GRID if t.metadata.name == "MockSTSTask")
    kept = []
    for revision in ("one", "one", "two"):
        again = deepcopy(task)
        dataset = {**again.metadata.dataset, "revision": revision}
        again.__class__ = type("MockSTSTask", (type(task),), {"__module__": "mteb.tasks"})
        again.__class__.metadata = task.metadata.model_copy(update={"dataset": dataset})
        evaluate(MTEBEncoder(model), [again], tmp_path)
        log = (tmp_path / "run_log.jsonl").read_text().splitlines()
        kept.append([json.loads(line)["data"] for line in log])
    assert kept == [["one"], ["one"], ["one", "two"]]
    result = json.loads(next(tmp_path.rglob("MockSTSTask.json")).read_text())
    assert result["dataset_revision"] == "two"


def test_another_models_folder_is_refused(model, tmp_path, small_tasks):
    evaluate(MTEBEncoder(model), [WordNetSTS()], tmp_path, label="one")
    with pytest.raises(ValueError, match="has the results of 'one' with other weights"):
        evaluate(MTEBEncoder(perturbed(model)), [WordNetSTS()], tmp_path)


def test_a_run_that_was_killed_before_its_record_gets_its_samples_again(
    model, tmp_path, small_tasks
):
    (whole,) = evaluate(MTEBEncoder(model), [WordNetSTS()], tmp_path)
    (tmp_path / "results.json").unlink()  # mteb's cache has the score
    (again,) = evaluate(MTEBEncoder(model), [WordNetSTS()], tmp_path)
    assert again["samples"] == whole["samples"]
    assert again["main_score"] == whole["main_score"]


def test_the_log_says_how_each_score_came_about(model, tmp_path, small_tasks):
    settings = Settings(dims=(48, 8), precisions=("float32", "binary"))
    evaluate(MTEBEncoder(model), [WordNetSTS()], tmp_path, settings)
    lines = [json.loads(line) for line in (tmp_path / "run_log.jsonl").read_text().splitlines()]
    assert [(line["dim"], line["precision"]) for line in lines] == [
        (48, "float32"),
        (48, "binary"),
        (8, "float32"),
        (8, "binary"),
    ]
    for line in lines:
        assert line["adapter"] == "text-matching"
        assert line["prompts"]["document"] == "Document: "
        assert (line["dtype"], line["max_tokens"]) == ("float32", 64)
        assert set(line["versions"]) >= {"mteb", "torch", "st-jv5"}


def test_a_score_that_is_not_a_number_is_named_and_not_kept(model, tmp_path, small_tasks):
    tasks = [WordNetSTS(), WikipediaRetrieval()]
    with pytest.raises(ValueError, match=r"cosine_spearman of \('WordNetSTS', .* 4\).*are kept"):
        evaluate(MTEBEncoder(model), tasks, tmp_path, Settings(max_tokens=(4,)))  # the prompt alone
    kept = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [row["task"] for row in kept] == ["WikipediaRetrieval"]


# ----------------------------------------------------------------------------- the right score


def compare_with_mtebs_wrapper(folder: str, output: Path, tasks: Sequence[type[AbsTask]]) -> None:
    """Scores of local tasks by mteb's own wrapper and by ours."""
    wrapper = JinaV5TextWrapper(folder, revision=None, model_prompts=dict(ADAPTER_OF_TYPE))
    encoder = MTEBEncoder(SentenceTransformer(folder), remember=True)
    ours = evaluate(encoder, [task() for task in tasks], output)
    for row, task in zip(ours, tasks, strict=True):
        theirs = mteb.evaluate(wrapper, task(), cache=None, show_progress_bar=False)
        assert row["task"] == task.metadata.name
        expected = theirs.task_results[0].get_score()
        assert row["main_score"] == pytest.approx(expected, abs=1e-6), row["task"]


@pytest.mark.full
def test_mtebs_own_wrapper_gives_the_same_score_on_a_local_task_of_each_type(
    saved, tmp_path, small_tasks
):
    types = {task.metadata.type: task for task in LOCAL_TASKS}
    assert len(types) == 7
    compare_with_mtebs_wrapper(saved, tmp_path, list(types.values()))


@pytest.mark.full
@pytest.mark.timeout(900)
def test_mtebs_own_wrapper_gives_the_same_score_on_each_whole_local_task(tmp_path):
    # mteb's wrapper knows the published model's prompts alone.
    student = st_jv5.new_student(MINILM, layers=[0, 5], pooling="lasttoken", prompts=PROMPTS)
    model = with_adapters(student)
    model.max_seq_length = 64
    model.save_pretrained(str(tmp_path / "model"))
    assert len(LOCAL_TASKS) == 33
    compare_with_mtebs_wrapper(str(tmp_path / "model"), tmp_path / "eval", LOCAL_TASKS)


def test_each_point_of_the_curves_is_the_score_of_a_separate_evaluation(
    model, tmp_path, small_tasks
):
    tasks = [WikipediaReranking, WordNetSTS, TopicClassification]
    settings = Settings(dims=(48, 8), precisions=PRECISIONS)
    encoder = MTEBEncoder(model, remember=True)
    rows = evaluate(encoder, [task() for task in tasks], tmp_path / "curves", settings)
    counts = {task.metadata.name: 0 for task in tasks}
    for row in rows:
        counts[row["task"]] += 1
    # Rescoring is for retrieval alone; a classifier is trained on float32.
    assert list(counts.values()) == [10, 8, 2]
    for number, row in enumerate(rows):
        one = Settings(dims=(row["dim"],), precisions=(row["precision"],))
        (task,) = choose_tasks([row["task"]], [], local="")
        found = evaluate(MTEBEncoder(model), [task], tmp_path / str(number), one)
        (alone,) = [r for r in found if key_of(r) == key_of(row)]
        assert alone["main_score"] == pytest.approx(row["main_score"], abs=1e-6), key_of(row)
        assert alone["bytes"] == row["bytes"]


def test_mtebs_own_mock_tasks_of_every_text_type_are_scored_with_their_adapter(model, tmp_path):
    tasks = [task for task in ALL_MOCK_TASK_TEST_GRID if task.metadata.type in ADAPTER_OF_TYPE]
    tasks = [deepcopy(task) for task in tasks if task.metadata.modalities == ["text"]]
    types = {task.metadata.type for task in tasks}
    assert set(ADAPTER_OF_TYPE) - types == {"Any2AnyRetrieval"}  # whose mock tasks have images
    settings = Settings(dims=(8,), precisions=("float32", "binary-rescored"))
    rows = evaluate(MTEBEncoder(model, remember=True), tasks, tmp_path, settings)
    assert {row["task"] for row in rows} == {task.metadata.name for task in tasks}
    for row in rows:
        assert row["adapter"] == ADAPTER_OF_TYPE[row["type"]]
        assert row["dim"] == 8
    rescored = {row["type"] for row in rows if row["precision"] == "binary-rescored"}
    assert rescored == {"Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking"}
    # Where a task has one subset and split, its samples give its score; elsewhere none are kept.
    sampled = {row["task"] for row in rows if row["samples"]}
    assert {"MockSTSTask", "MockRerankingTask"} <= sampled
    assert not any("Multilingual" in name for name in sampled)


def test_one_pass_encodes_each_text_once(model, tmp_path, small_tasks, monkeypatch):
    from st_jv5.evaluation import mteb_encoder

    seen: list[tuple[str, str | None, str | None]] = []
    encode = mteb_encoder.encode

    def counted(model, texts, task=None, prompt=None, engine=None):
        seen.extend((text, task, prompt) for text in texts)
        return encode(model, texts, task=task, prompt=prompt, engine=engine)

    monkeypatch.setattr(mteb_encoder, "encode", counted)
    settings = Settings("all", dims=(48, 8), precisions=("float32", "int8", "binary"))
    encoder = MTEBEncoder(model, remember=True)
    rows = evaluate(encoder, [WordNetSTS(), WikipediaRetrieval()], tmp_path, settings)
    assert len(rows) == 2 * (6 + 4)  # each task's own adapter at all points, four others once
    assert len(seen) == len(set(seen)) > 1000


def test_long_documents_are_scored_at_each_length_that_is_read(model, tmp_path, small_tasks):
    before = model.max_seq_length
    settings = Settings(max_tokens=(16, 64))
    rows = evaluate(MTEBEncoder(model), [OfficeLongRetrieval()], tmp_path, settings)
    assert [row["max_tokens"] for row in rows] == [64, 16]
    assert rows[0]["main_score"] != rows[1]["main_score"]
    assert all("ndcg_at_10_from_6000" in row["scores"]["test"][0] for row in rows)
    assert model.max_seq_length == before


# -------------------------------------------------------------------------------- command line


def test_tasks_are_chosen_by_name(capsys):
    assert [t.metadata.name for t in choose_tasks(["WordNetSTS"], [], local="")] == ["WordNetSTS"]
    assert len(choose_tasks([], [], local="test")) == len(LOCAL_TASKS) == 33
    with pytest.raises(ValueError, match="nothing to run"):
        choose_tasks([], [], local="")
    with pytest.raises(ValueError, match=r"unknown task 'NoSuchTask'; .*: WikipediaRetrieval"):
        choose_tasks(["NoSuchTask"], [], local="")
    with pytest.raises(ValueError, match=r"^unknown .*did you mean 'WordNetSTS'\?; mteb"):
        choose_tasks(["WordNetSTSS"], [], local="")
    with pytest.raises(ValueError, match=r"^no benchmark 'MTEB\(en\)'; mteb says: [^\"]"):
        choose_tasks([], ["MTEB(en)"], local="")


def test_a_task_of_the_hub_without_a_network_is_one_line(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    command = ["--model", saved, "--tasks", "STSBenchmark", "--output", str(tmp_path / "eval")]
    with pytest.raises(SystemExit, match=r"^error: .*mteb/stsbenchmark-sts"):
        main(command)


def test_tasks_are_filtered_by_type_and_language():
    english = choose_tasks([], [], local="test", languages=["eng"])
    assert len(english) == 28
    assert {lang for task in english for lang in task.metadata.languages} == {"eng"}
    german = choose_tasks([], [], local="test", languages=["eng", "deu"])
    names = {task.metadata.name for task in german} - {task.metadata.name for task in english}
    assert names == {"OfficeBitextGerman"}
    bitext = choose_tasks([], [], local="test", types=["BitextMining", "Reranking"])
    assert len(bitext) == 4
    with pytest.raises(
        ValueError, match=r"no task is left .* deu; their languages: deu, eng, fra, jpn, rus, spa"
    ):
        choose_tasks([], [], local="test", languages=["deu"])
    with pytest.raises(ValueError, match=r"unknown task type 'STSS'; mteb has: .*mean 'STS'"):
        choose_tasks([], [], local="test", types=["STSS"])


@pytest.mark.parametrize("kind", ["ours", "published", "stock"])
def test_a_dry_run_lists_tasks_adapters_and_prompts_and_runs_nothing(
    saved, published, tmp_path, capsys, monkeypatch, kind
):
    model = {"ours": saved, "published": published[1], "stock": MINILM}[kind]
    monkeypatch.setattr(MTEBEncoder, "encode", None)
    out = tmp_path / "eval"
    main(["--model", model, "--local", "--languages", "eng", "--dry-run", "--output", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 28
    assert not out.exists()
    routes = {line.split()[0]: line.split()[1:3] for line in lines}
    if kind == "stock":
        assert {adapter for _, adapter in routes.values()} == {"-"}
        return
    assert routes["WikipediaReranking"] == ["Reranking", "retrieval"]
    assert routes["TopicClustering"] == ["Clustering", "clustering"]
    assert all("'Query: '" in line and "'Document: '" in line for line in lines)


def test_a_dry_run_shows_every_combination(saved, capsys):
    command = ["--model", saved, "--tasks", "WikipediaRetrieval", "TopicClustering", "--dry-run"]
    main([*command, "--adapters", "all", "--dims", "8", "48", "--precision", "int8", "binary"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    own = [line for line in lines if "48,8" in line]
    assert [line.split()[2] for line in own] == ["retrieval", "clustering"]
    assert "int8,binary" in own[0]
    assert "float32" in own[1]
    main([*command, "--adapters", "none"])
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["base", "base"]


def test_the_command_prints_scores_writes_a_report_and_goes_on(
    saved, tmp_path, capsys, monkeypatch, small_tasks
):
    out = tmp_path / "eval"
    command = ["--model", saved, "--tasks", "WordNetSTS", "--output", str(out)]
    main(command)
    printed = capsys.readouterr().out
    assert "WordNetSTS" in printed
    assert "text-matching" in printed
    for name in ("report.html", "report.md"):
        assert "WordNetSTS" in (out / name).read_text()
        assert "Near and far are not separated" in (out / name).read_text()
    assert "| wordnet | 1 |" in printed
    assert "st-jv5 eval --model" in (out / "report.md").read_text()
    monkeypatch.setattr(MTEBEncoder, "encode", None)  # a second run encodes nothing
    main(command)
    assert capsys.readouterr().out == printed
    main([*command, "--trained-on", "wikipedia", "--start", str(out)])
    assert "Near: wikipedia. Far: wordnet." in capsys.readouterr().out
    # The same folder moved elsewhere is the same model.
    shutil.copytree(saved, tmp_path / "moved")
    main(["--model", str(tmp_path / "moved"), *command[2:]])


def test_a_published_folder_is_scored_as_what_it_holds(published, tmp_path, small_tasks):
    out = tmp_path / "eval"
    main(["--model", published[1], "--tasks", "WordNetSTS", "--output", str(out)])
    record = json.loads((out / "results.json").read_text())
    assert [row["adapter"] for row in record["results"]] == ["text-matching"]
    encoder = MTEBEncoder(st_jv5.load_jina_v5(published[1]))
    assert record["weights"] == encoder.mteb_model_meta.name


def test_a_model_without_the_tasks_adapter_says_so(student, tmp_path, small_tasks, caplog):
    st_jv5.add_task(student, "retrieval", rank=4)
    (row,) = evaluate(MTEBEncoder(student), [WordNetSTS()], tmp_path)
    assert row["adapter"] == "base"
    assert "no adapter text-matching among ['retrieval', 'base']: STS as base" in caplog.text


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("ours", ["--adapters", "retreival"], "unknown adapter 'retreival'.*mean 'retrieval'"),
        ("stock", ["--adapters", "all"], "has no adapters"),
        ("ours", ["--dims", "8", "49"], r"--dims must lie in 1..48.* not 49"),
        ("ours", ["--precision", "bin"], "unknown precision 'bin'"),
        ("ours", ["--max-tokens", "4096"], r"--max-tokens must lie in 1..128.* not 4096"),
        ("ours", ["--precision", "int8", "--calibrate", "absent.txt"], "no file absent.txt"),
        ("ours", ["--calibrate", "absent.txt"], "add int8 to --precision"),
        ("ours", ["--start", "absent"], "no results.json in absent"),
    ],
)
def test_what_a_model_cannot_do_is_said_at_once(saved, tmp_path, kind, arguments, message):
    command = ["--model", saved if kind == "ours" else MINILM, "--tasks", "WordNetSTS"]
    with pytest.raises(SystemExit, match=message):
        main([*command, "--output", str(tmp_path / "eval"), *arguments])
    assert not (tmp_path / "eval").exists()
