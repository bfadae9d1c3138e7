"""A recipe that trains adapters of a finished model alone, with a teacher or without one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.cli import train as main
from st_jv5.folders.configs import read_json
from st_jv5.publish.hub import publish
from st_jv5.publish.self_test import ABSOLUTE, self_test
from st_jv5.recipe.context import Run
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.planning.plan import plan_page
from st_jv5.recipe.strict import RecipeError
from tests.conftest import real_texts

WITHOUT_TEACHER = {"distill_weight": 0}
PHASE = {"steps": 2, "batch_size": 4, "checkpoint_steps": 1, "learning_rate": 0.01}
ADAPTER = {**PHASE, "data": {"faq": 1}, "rank": 4, "alpha": 4, "loss": WITHOUT_TEACHER}


def faq(folder: Path, count: int = 24) -> Path:
    """A file of pairs."""
    texts = real_texts(2 * count)
    rows = [{"ask": q[:40], "answer": a} for q, a in zip(texts[::2], texts[1::2], strict=True)]
    path = folder / "faq.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(folder: Path, model: str, **changed: Any) -> str:
    """A recipe with one adapter on a finished model, all paths absolute."""
    columns = {"query": "ask", "positive": "answer"}
    tree = {
        "name": "own",
        "output": str(folder / "out"),
        "student": {"model": model, "max_tokens": 16},
        "data_sets": {"faq": {"path": str(faq(folder)), "columns": columns, "license": "mit"}},
        "adapters": {"retrieval": dict(ADAPTER)},
        "evaluation": "none",
        "precision": "float32",
        **changed,
    }
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


@pytest.mark.parametrize("published", ["qwen3"], indirect=True)
def test_one_adapter_of_a_published_model_is_trained_and_all_else_keeps_its_bits(
    published, tmp_path, capsys, caplog, monkeypatch
):
    path = recipe(tmp_path, published[1])
    main([path])
    out = tmp_path / "out"
    before, after = st_jv5.load_jina_v5(published[1]), SentenceTransformer(str(out / "model"))
    assert st_jv5.tasks(after) == st_jv5.tasks(before)
    changed = {
        name
        for name, tensor in before[0].state_dict().items()
        if not torch.equal(tensor, after[0].state_dict()[name])
    }
    assert changed
    assert all("lora" in name and "retrieval" in name for name in changed)
    assert after.max_seq_length == before.max_seq_length  # cut at 16 in training alone
    assert not (out / "teacher").exists()
    assert not (out.parent / "teacher").exists()
    assert "no teacher: no loss reads its vectors" in caplog.text

    # It may be published as it is.
    assert any("licences: base, teacher and data stated" in one for one in self_test(out / "model"))
    assert any("own" in one for one in publish(out / "model", "team/own", dry_run=True))
    card = (out / "model" / "README.md").read_text()
    assert not ABSOLUTE.search(card)
    assert "license: cc-by-nc-4.0" in card
    assert "| faq | faq.jsonl | mit | 24 |" in card
    assert "trained on the frozen `jina`" in card
    assert "Nothing was measured: the recipe says `evaluation: none`" in card
    assert "Reproduce: `st-jv5 train own.yaml` with st-jv5" in card
    assert "Nothing was measured" in capsys.readouterr().out
    assert read_json(out / "run.json")["command"] == "st-jv5 train own.yaml"
    assert "![retrieval: the weighted terms" in (out / "report" / "report.md").read_text()

    # The same again trains nothing; other weights under the start's name are another start.
    monkeypatch.setattr("st_jv5.recipe.run.train", lambda *_: pytest.fail("it trained"))
    weights = (out / "model" / "model.safetensors").read_bytes()
    main([path])
    assert (out / "model" / "model.safetensors").read_bytes() == weights
    file = Path(published[1], "model.safetensors")
    tensors = {name: tensor + 1 for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(SystemExit, match="made with other settings"):
        main([path])


def test_a_licence_that_is_added_later_reaches_a_stock_model_and_its_card(
    backbones, tmp_path, caplog
):
    stock = str(tmp_path / "stock")
    SentenceTransformer(backbones["bert"]).save_pretrained(stock)
    data = {"path": str(faq(tmp_path)), "columns": {"query": "ask", "positive": "answer"}}
    main([recipe(tmp_path, stock, data_sets={"faq": data})])
    out = tmp_path / "out" / "model"
    told = "licence not stated: base stock, data faq. `st-jv5 check` and `publish` refuse"
    assert told in caplog.text
    with pytest.raises(ValueError, match="names no license"):
        self_test(out)
    weights = (out / "model.safetensors").read_bytes()
    stated = {"model": stock, "max_tokens": 16, "license": "apache-2.0", "source": "team/mini"}
    data_sets = {"faq": {**data, "license": "mit"}}
    main([recipe(tmp_path, stock, student=stated, data_sets=data_sets)])
    assert (out / "model.safetensors").read_bytes() == weights
    assert any("the card says apache-2.0" in line for line in self_test(out))
    assert read_json(out / "st_jv5.json")["licenses"] == {
        "base": {"team/mini": "apache-2.0"},
        "teacher": {"none": "not needed"},
        "data": {"faq": "mit"},
    }
    assert "base_model: team/mini" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"student": {}}, "student needs either base, .* it has neither"),
        ({"student": {"base": "a/b", "model": "a/b"}}, "it has both"),
        ({"student": {"base": "a/b"}}, "stage1 is missing: it trains student.base"),
        ({"keep": [0.5]}, "keep does not go with student.model"),
        ({"student": {"model": "a/b", "layers": 2}}, "student.layers does not go with"),
        ({"stage1": {**PHASE, "data": {"faq": 1}}}, "stage1 does not go with student.model"),
        ({"adapters": {}}, "adapters is empty, so nothing would be trained"),
        (
            {"adapters": {"retrieval": {**ADAPTER, "loss": {}}}},
            r"adapters.retrieval.loss: its distillation needs a teacher's vectors, and the recipe "
            r"has no teacher; name one, or set adapters.retrieval.loss: \{distill_weight: 0\}",
        ),
        (
            {"adapters": {"retrieval": {**ADAPTER, "replay": {"faq": 1}, "data": {"faq": 1}}}},
            "adapters.retrieval.replay",
        ),
        ({"adapters": {"clustering": ADAPTER}}, "clustering.data.faq: texts without labels"),
    ],
)
def test_what_does_not_go_with_a_finished_model_is_named(tmp_path, changed, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe(tmp_path, "a/b", **changed))


def test_the_result_may_not_take_the_place_of_its_start(tmp_path):
    with pytest.raises(RecipeError, match="where the result would go"):
        load_recipe(recipe(tmp_path, str(tmp_path / "out" / "model")))


def test_an_adapter_that_is_there_is_trained_in_its_own_shape(saved, tmp_path):
    wider = {"retrieval": {**ADAPTER, "rank": 8}}
    with pytest.raises(SystemExit, match=r"retrieval.rank is 8, but .* write rank: 4"):
        main([recipe(tmp_path, saved, adapters=wider)])
    assert not (tmp_path / "out" / "base").exists()


def test_models_that_cannot_be_had_and_trackers_that_are_not_installed_are_told_at_once(
    saved, tmp_path, monkeypatch
):
    monkeypatch.setattr("st_jv5.recipe.run.try_phases", lambda *_: pytest.fail("it began"))
    with pytest.raises(SystemExit, match=r"student.model: team/mini is not a folder .*hf download"):
        main([recipe(tmp_path, "team/mini")])
    with pytest.raises(
        SystemExit, match=r"student.model: /no/such is not a folder here, and not an id"
    ):
        main([recipe(tmp_path, "/no/such")])
    path = recipe(tmp_path, saved)
    with pytest.raises(SystemExit, match=r"--report-to nope: unknown; known: none, all, azure"):
        main([path, "--report-to", "nope"])

    def absent() -> None:
        raise RuntimeError("Tracker requires comet-ml to be installed.")

    monkeypatch.setitem(st_jv5.recipe.run.INTEGRATION_TO_CALLBACK, "comet_ml", absent)
    with pytest.raises(SystemExit, match=r"--report-to comet_ml: .*\(pip install comet-ml\)"):
        main([path, "--report-to", "comet_ml"])
    assert not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize("published", ["eurobert"], indirect=True)
def test_the_plan_of_a_recipe_without_teacher_or_stage1_counts_its_adapter_alone(
    published, tmp_path
):
    run = Run(load_recipe(recipe(tmp_path, published[1])))
    told = plan_page(run, measured=False).markdown()
    assert "| adapters.retrieval | 2 |" in told
    assert "0 texts, 0.00 GiB on disk" in told
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_a_finished_model_is_measured_beside_what_it_was(saved, tmp_path, capsys):
    columns = {"query": "ask", "positive": "answer"}
    data = {"path": str(faq(tmp_path)), "columns": columns, "license": "mit", "held_out": 8}
    settings = {"resamples": 20, "dims": [48]}
    main([recipe(tmp_path, saved, data_sets={"faq": data}, evaluation=settings)])
    printed = capsys.readouterr().out
    for column in ("saved (start)", "base", "this model", "this model above the start"):
        assert f" | {column} | " in printed
    assert "before training" not in printed
    folder = tmp_path / "out" / "evaluation"
    start, after = (
        read_json(folder / who / "results.json")["results"] for who in ("start", "model")
    )
    assert [row["adapter"] for row in start] == ["retrieval"]  # with the adapter that it had
    assert {row["adapter"] for row in after} == {"base", *st_jv5.tasks(SentenceTransformer(saved))}
    assert "its base without adapters" not in printed
    summary = read_json(tmp_path / "out" / "report" / "summary.json")
    assert summary["start"]["faq (held out)"] == start[0]["main_score"]
