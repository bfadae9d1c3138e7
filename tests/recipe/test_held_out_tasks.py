"""A recipe on somebody's own files: rows held out are its evaluation, and its result is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from st_jv5.choices import STAGES
from st_jv5.cli import train as main
from st_jv5.evaluation import corpora
from st_jv5.evaluation.own_tasks import own_tasks
from st_jv5.files import read_json
from st_jv5.publish.self_test import ABSOLUTE, self_test
from st_jv5.recipe.context import Run
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.results import measure
from st_jv5.recipe.results.measure import (
    about_own,
    check_choices,
    check_held_out,
    chosen_tasks,
    near_and_far_of,
    own_tasks_of,
    validation_means,
    without_far,
)
from st_jv5.recipe.run import preflight
from st_jv5.recipe.strict import RecipeError
from tests.conftest import real_texts
from tests.recipe.test_config import DEMO

PHASE = {"steps": 2, "batch_size": 4, "checkpoint_steps": 1, "fit_projection": 0}
ADAPTER = {**PHASE, "rank": 4, "alpha": 4}


def own(folder: Path, base: str, **changed: Any) -> str:
    """A recipe on three files, all paths absolute."""
    texts = real_texts(64)
    files: dict[str, list[dict[str, Any]]] = {
        "faq": [{"query": f"{i} {t[:30]}", "positive": f"{t} {i}"} for i, t in enumerate(texts)],
        "topics": [{"text": f"{t} {i}", "label": "ab"[i % 2]} for i, t in enumerate(texts)],
        "other": [{"query": t[-30:], "positive": f"{t} other"} for t in texts[:32]],
    }
    data_sets: dict[str, Any] = {}
    for name, rows in files.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        kind = "labelled" if name == "topics" else "pairs"
        columns = {role: role for role in rows[0]}
        data_sets[name] = {"path": str(path), "kind": kind, "columns": columns, "license": "mit"}
        data_sets[name]["held_out"] = 16 if name != "other" else 0
    tree = {
        "name": "own",
        "output": str(folder / "out"),
        "teacher": {"model": base, "max_tokens": 16, "license": "mit"},
        "student": {
            "base": base,
            "license": "apache-2.0",
            "max_tokens": 16,
            "matryoshka_dims": [16, 48],
        },
        "data_sets": data_sets,
        "stage1": {**PHASE, "data": {"faq": 1}},
        "adapters": {
            "retrieval": {**ADAPTER, "data": {"faq": 1}},
            "classification": {**ADAPTER, "data": {"topics": 1}},
        },
        "evaluation": {"resamples": 50, "dims": [48]},
        "precision": "float32",
        **changed,
    }
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


TASKS = ["faq (held out)", "topics (held out)", "topics (held out, clustering)"]


def test_rows_held_out_are_measured_beside_the_start_and_the_teacher(
    backbones, tmp_path, capsys, caplog, monkeypatch
):
    monkeypatch.setattr(corpora, "DATA", tmp_path / "no checkout")
    path = own(tmp_path, backbones["bert"])
    main([path])
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    header = next(line for line in lines if line.startswith("| task |"))
    who = ["student before training (start)", "base (stage 1)", "teacher", "this model"]
    assert header == f"| task | {' | '.join(who)} | this model above the start | verdict | metric |"
    rows = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("|")}
    for task in TASKS:
        assert rows[task].count("[") == len(who) + 1, task  # with intervals
    assert "\nNear, this model: " in printed
    assert "No far task was measured: whether training hurt on other text is not known." in printed
    assert "no far task among the tasks of held-out rows" in caplog.text
    out = tmp_path / "out"
    assert set(read_json(out / "report" / "summary.json")["routed"]) == {*TASKS, "near"}
    corpus = read_json(out / "evaluation" / "model" / "results.json")["results"][0]
    assert (corpus["task"], corpus["type"]) == ("faq (held out)", "Retrieval")

    # The folder may be published as it is.
    assert self_test(out / "model")
    for file in (out / "model").rglob("*.json"):
        assert str(tmp_path) not in file.read_text(), file
        assert backbones["bert"] not in file.read_text(), file
    card = (out / "model" / "README.md").read_text()
    assert not ABSOLUTE.search(card)
    for words in (
        "distilled from `" + Path(backbones["bert"]).name,
        "| faq | faq.jsonl | mit |",
        "Tasks called `(held out)` are of rows of the data sets above",
        "| topics (held out) |",
        "type: local/faq-held-out",
        "Reproduce: `st-jv5 train own.yaml` with st-jv5",
    ):
        assert words in card, words
    by_task = {line.split(" | ")[0].strip("| "): line for line in card.splitlines()
               if line.endswith(" | seen |") or line.endswith(" | |")}  # fmt: skip
    assert [by_task[task].endswith(" | seen |") for task in TASKS] == [False, True, True]


def test_rows_of_a_set_that_no_phase_trains_on_are_far(backbones, tmp_path):
    path = own(tmp_path, backbones["bert"])
    run = Run(load_recipe(path, ["data_sets.other.held_out=8"]))
    found = near_and_far_of(run.recipe, chosen_tasks(run))
    assert found == {"near": TASKS, "far": ["other (held out)"]}
    assert without_far(run) == ""


def test_no_document_under_test_is_trained_on_and_some_for_training_are_distractors(
    backbones, tmp_path
):
    run = Run(load_recipe(own(tmp_path, backbones["bert"])))
    held, rest = run.held_out("faq"), run.rows["faq"]
    task = own_tasks_of(run)["faq (held out)"]
    task.load_data()
    data = task.dataset["default"]["test"]
    assert len(data["queries"]) == len(held) == 16
    assert set(data["corpus"]["text"]) == {*held.column("positive"), *rest.column("positive")}
    assert {*data["queries"]["text"]}.isdisjoint(rest.column("query"))


def test_a_recipe_that_chooses_does_so_on_one_half_and_reports_on_the_other(backbones, tmp_path):
    run = Run(load_recipe(own(tmp_path, backbones["bert"], keep=[0.0, 0.5])))
    parts = {}
    for split in ("test", "validation"):
        task = chosen_tasks(run, split)[0]
        task.load_data()
        parts[task.metadata.name] = {*task.dataset["default"]["test"]["queries"]["text"]}
    assert list(parts) == ["faq (held out)", "faq (held out, validation)"]
    one, other = parts.values()
    assert one.isdisjoint(other)
    assert one | other == {*run.held_out("faq").column("query")}


def test_what_is_measured_is_what_is_named_else_own_rows_else_all_local_tasks(
    backbones, tmp_path, monkeypatch
):
    def names(*settings: str) -> list[str]:
        run = Run(load_recipe(own(tmp_path, backbones["bert"]), settings))
        return [task.metadata.name for task in chosen_tasks(run)]

    assert names() == TASKS
    both = ["WordNetSTS", "faq (held out)"]
    assert names("evaluation.tasks=[WordNetSTS, faq (held out)]") == both
    assert names("evaluation=none") == []
    with pytest.raises(RecipeError, match=r"unknown 'faq'; known: faq \(held out\), topics"):
        names("evaluation.tasks=[faq]")
    none_held = ["data_sets.faq.held_out=0", "data_sets.topics.held_out=0"]
    assert len(names(*none_held)) == 33
    monkeypatch.setattr(corpora, "DATA", tmp_path / "no checkout")
    assert names(*none_held) == []
    run = Run(load_recipe(own(tmp_path, backbones["bert"], keep=[0.0, 0.5]), none_held))
    with pytest.raises(RecipeError, match="no task to choose by; name one"):
        preflight(run, ["stage1"])


def test_strengths_that_no_validation_task_can_choose_among_are_refused(backbones, tmp_path):
    path = own(tmp_path, backbones["bert"])
    several = ["adapters.classification.strengths=[0.5, 1.0]"]
    run = Run(load_recipe(path, [*several, "data_sets.topics.held_out=0"]))  # pairs alone are left
    told = "adapters.classification.strengths .* no validation task is one of classification"
    with pytest.raises(RecipeError, match=told):
        preflight(run, ["adapters"])
    with pytest.raises(ValueError, match="no validation task belongs to classification"):
        validation_means(run, None, "classification", tmp_path / "scores")
    check_choices(Run(load_recipe(path, several)))


def test_tasks_of_held_out_rows_are_made_once_in_a_run(backbones, tmp_path, monkeypatch):
    made = []

    def counted(name, *args, **settings):
        made.append((name, settings["part"]))
        return own_tasks(name, *args, **settings)

    monkeypatch.setattr(measure, "own_tasks", counted)
    several = ["adapters.classification.strengths=[0.5, 1.0]"]
    run = Run(load_recipe(own(tmp_path, backbones["bert"], keep=[0.0, 0.5]), several))
    check_choices(run)
    check_held_out(run)
    about_own(run)
    assert chosen_tasks(run) == chosen_tasks(run)
    parts = [(name, part) for name in ("faq", "topics")
             for part in ("held out", "held out, validation")]  # fmt: skip
    assert sorted(made) == parts


@pytest.mark.parametrize(
    ("precisions", "texts"), [("[float32, binary]", 0), ("[float32, int8]", 3 * 48)]
)
def test_texts_for_int8s_ranges_are_read_where_int8_is_asked_for(
    precisions, texts, backbones, tmp_path, monkeypatch
):
    class EnoughError(Exception):
        pass

    def first(*args, calibration, **settings):
        assert len(calibration) == texts
        raise EnoughError

    path = own(tmp_path, backbones["bert"])
    run = Run(load_recipe(path, [f"evaluation.precisions={precisions}"]))
    monkeypatch.setattr(measure, "require", lambda folder, stage: backbones["bert"])
    monkeypatch.setattr(measure, "evaluate", first)
    with pytest.raises(EnoughError):
        measure.measure(run)


def test_a_process_that_measures_nothing_makes_no_tasks(backbones, tmp_path, monkeypatch):
    from st_jv5.recipe import run as module

    monkeypatch.setattr(module, "RANK", 1)
    monkeypatch.setattr(measure, "own_tasks", pytest.fail)
    monkeypatch.setattr(module, "try_phases", lambda run, names: None)
    preflight(Run(load_recipe(own(tmp_path, backbones["bert"], keep=[0.0, 0.5]))), STAGES)


def test_an_existing_recipe_measures_what_it_did():
    run = Run(load_recipe(DEMO))
    assert [task.metadata.name for task in chosen_tasks(run)] == [*run.recipe.evaluation.tasks]


def test_what_cannot_be_asked_of_rows_is_told_before_any_work(backbones, tmp_path, caplog):
    path = own(tmp_path, backbones["bert"])
    run = Run(load_recipe(path, ["data_sets.topics.held_out=2"]))
    preflight(run, ["evaluation"])
    assert "data_sets.topics: no clustering, for 0 of its labels have 5 texts" in caplog.text
    assert own_tasks("faq", []).left_out == ["faq: there are no rows under test"]
