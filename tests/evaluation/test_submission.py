"""A submission is what mteb's own loader reads, under the model's name on the Hub."""

from __future__ import annotations

import mteb
import pytest
from datasets import Dataset

from st_jv5.evaluation.local_tasks import WordNetSTS
from st_jv5.evaluation.mteb_encoder import MTEBEncoder
from st_jv5.evaluation.record import read_record
from st_jv5.evaluation.scoring import Settings, evaluate
from st_jv5.evaluation.submission import model_meta, submission_name, write_submission
from tests.conftest import real_texts

NAME = "me/mini@" + 40 * "a"


def sts_benchmark() -> mteb.AbsTask:
    """mteb's own task, with a few rows in the place of those on the Hub."""
    task = mteb.get_task("STSBenchmark")
    texts = real_texts()[:24]
    rows = {"sentence1": texts[:12], "sentence2": texts[12:24], "score": [i % 5 for i in range(12)]}
    task.dataset, task.data_loaded = {"test": Dataset.from_dict(rows)}, True
    return task


def test_mtebs_loader_reads_what_was_written_and_local_tasks_are_told(model, tmp_path, small_tasks):
    rows = evaluate(MTEBEncoder(model), [sts_benchmark(), WordNetSTS()], tmp_path / "run")
    score = {row["task"]: row["main_score"] for row in rows}["STSBenchmark"]
    meta = model_meta(model, NAME)
    folder = tmp_path / "submission"
    record = read_record(tmp_path / "run")
    left_out = write_submission(record, model, meta, folder, tmp_path / "run" / "mteb")
    assert left_out == ["WordNetSTS: mteb does not know the task"]
    place = folder / "results" / "me__mini" / (40 * "a")
    assert {path.name for path in place.iterdir()} >= {"STSBenchmark.json", "model_meta.json"}
    assert not list(folder.rglob("WordNetSTS.json"))

    loaded = mteb.ResultCache(folder).load_results(
        models=["me/mini"], tasks=["STSBenchmark"], include_remote=False, validate_and_filter=True
    )
    ((result,),) = (found.task_results for found in loaded.model_results)
    assert result.get_score() == pytest.approx(score, abs=1e-4)
    assert result.dataset_revision == mteb.get_task("STSBenchmark").metadata.revision
    told = mteb.models.ModelMeta.model_validate_json_resolved(
        (place / "model_meta.json").read_text()
    )
    assert (told.name, told.revision) == ("me/mini", 40 * "a")
    assert told.embed_dim == model.get_embedding_dimension()
    assert told.n_parameters == sum(weights.numel() for weights in model.parameters())


def test_scores_of_cut_vectors_are_not_submitted_as_the_models(model, tmp_path):
    evaluate(MTEBEncoder(model), [sts_benchmark()], tmp_path, Settings(dims=(8,)))
    with pytest.raises(ValueError, match="STSBenchmark: scored at 8 dims, float32, not in full"):
        write_submission(
            read_record(tmp_path), model, model_meta(model, NAME), tmp_path, tmp_path / "mteb"
        )


def test_a_model_without_a_name_on_the_hub_is_refused_before_any_work(tmp_path):
    assert submission_name(str(tmp_path), NAME) == NAME
    for model, name in ((str(tmp_path), ""), (str(tmp_path), "me/mini"), ("me/not-here", "")):
        with pytest.raises(ValueError, match=r"--submission-name organisation/model@commit"):
            submission_name(model, name)


def test_the_cards_licence_goes_along(model, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\nbase_model: a/b\n---\n# x\n")
    meta = model_meta(model, NAME, str(tmp_path))
    assert (meta.license, meta.adapted_from) == ("cc-by-nc-4.0", "a/b")
