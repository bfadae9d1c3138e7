"""What cannot work later is found on stand-ins of a recipe's sets before the teacher begins."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, List, Value
from sentence_transformers.base.model_card import BaseModelCardData

from st_jv5.choices import STAGES
from st_jv5.cli import train as main
from st_jv5.recipe import train
from st_jv5.recipe.config import DataSet
from st_jv5.recipe.context import Run
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.run import preflight
from st_jv5.recipe.strict import RecipeError
from st_jv5.recipe.trial import RandomVectors
from tests.conftest import real_texts
from tests.recipe.test_full_size import shrunk

ROWS = 200
CLASSES = [f"class {i}" for i in range(5)]


def stand_in(name: str, spec: DataSet, place: int) -> Dataset:
    """Short rows with a public set's columns; labels are numbered classes, or lists of such."""
    texts, columns, features = real_texts(), {}, {}
    for number, (role, column) in enumerate(spec.columns.items()):
        if role == "score":
            columns[column], features[column] = [i / ROWS for i in range(ROWS)], Value("float32")
        elif role == "label":
            several = place % 2
            feature = ClassLabel(names=CLASSES)
            columns[column] = [[i % 5] if several else i % 5 for i in range(ROWS)]
            features[column] = List(feature) if several else feature
        else:
            columns[column] = [f"{texts[(i + 7 * number) % 64][:40]} {i} {name}"
                               for i in range(ROWS)]  # fmt: skip
            features[column] = Value("string")
    return Dataset.from_dict(columns, Features(features))


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory, backbones) -> Callable[[str], str]:
    """``stand_ins(name)``: a shipped recipe whose sets lie in parquet files beside it."""
    made: dict[str, str] = {}

    def recipe_of(name: str) -> str:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            path = Path(shrunk(name, folder, backbones, full=False))
            whole, tree = load_recipe(path), yaml.safe_load(path.read_text())
            for place, (data_set, spec) in enumerate(whole.data_sets.items()):
                file = folder / f"{data_set}.parquet"
                stand_in(data_set, spec, place).to_parquet(file)
                tree["data_sets"][data_set]["path"] = str(file)
            path.write_text(yaml.safe_dump(tree, sort_keys=False))
            made[name] = str(path)
        return made[name]

    return recipe_of


@pytest.mark.parametrize("name", ["small", "nano"])
def test_a_shipped_recipe_is_tried_whole_before_the_teacher_begins(name, stand_ins, monkeypatch):
    # sentence-transformers would tokenise a thousand rows of each set for a card of its own.
    monkeypatch.setattr(BaseModelCardData, "compute_dataset_metrics", pytest.fail)
    run = Run(load_recipe(stand_ins(name)))
    preflight(run, STAGES[:3])
    assert not (run.folder.parent / "teacher").exists()
    assert {path.name for path in run.folder.iterdir()} == {"data"}


def first_of(run: Run, *kinds: str) -> str:
    """A set of one of these kinds, of those that the recipe trains on."""
    return next(name for name, spec in run.used_sets.items() if spec.kind in kinds)


PAIRS, SCORED, LABELLED = ("pairs", "texts"), ("scored",), ("labelled",)
FAULTS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, list[Any]], str], Any], str]] = {
    "a column is missing": (PAIRS, lambda rows, one: rows.pop(one), "has no column"),
    "every text is empty": (
        PAIRS,
        lambda rows, one: rows.update({one: [""] * ROWS}),
        "no row of .* passes `where` and has its texts: .* 200 have an empty text",
    ),
    "texts are numbers": (
        PAIRS, lambda rows, one: rows.update({one: list(range(ROWS))}), "holds int64, not text",
    ),
    "texts are lists": (
        PAIRS, lambda rows, one: rows.update({one: [["a"]] * ROWS}), "not text",
    ),
    "all rows are one": (
        PAIRS,
        lambda rows, one: rows.update({c: [values[0]] * ROWS for c, values in rows.items()}),
        r"a batch needs two rows whose texts all differ, better \d+ \(batch_size\), and the 1 rows "
        r"of .*\(1 distinct in .*\) hold no two; add rows",
    ),
    "a score is missing": (
        SCORED, lambda rows, one: rows[one].__setitem__(7, None), "no score in row 7 ",
    ),
    "a score is text": (
        SCORED,
        lambda rows, one: rows.update({one: ["high", *map(str, rows[one][1:])]}),
        "'high' in row 0 ",
    ),
    "a score is not finite": (
        SCORED, lambda rows, one: rows[one].__setitem__(3, float("nan")), "no score in row 3 ",
    ),
    "a label is missing": (
        LABELLED,
        lambda rows, one: rows.update({one: [None, *["a"] * (ROWS - 1)]}),
        "no label in row 0 ",
    ),
    "there is one label": (
        LABELLED,
        lambda rows, one: rows.update({one: ["a"] * ROWS}),
        "texts in 1 labels leave no anchor with a positive and 7 negatives; add texts of other "
        "labels, or lower data_sets",
    ),
}  # fmt: skip
"""What is wrong -> the kinds of sets it is planted in, how, and what is said of it."""


@pytest.mark.parametrize("name", ["small", "nano"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_data_is_named_before_the_teacher_begins(fault, name, stand_ins, tmp_path):
    kinds, plant, message = FAULTS[fault]
    run = Run(load_recipe(stand_ins(name)))
    data_set = first_of(run, *kinds)
    spec = run.recipe.data_sets[data_set]
    rows = Dataset.from_parquet(spec.path, cache_dir=str(tmp_path)).to_dict()
    role = {SCORED: "score", LABELLED: "label"}.get(kinds, next(iter(spec.columns)))
    plant(rows, spec.columns[role])
    path = tmp_path / "broken.parquet"
    Dataset.from_dict(rows).to_parquet(path)
    broken = load_recipe(stand_ins(name), [f"data_sets.{data_set}.path={path}"])
    with pytest.raises(RecipeError, match=rf"data_sets.{data_set}\b.*{message}"):
        preflight(Run(broken), STAGES[:3])
    assert not (run.folder.parent / "teacher").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage1.loss={nope: 1}", "stage1: .*nope"),
        ("adapters.retrieval.loss={temperature: -1}", "adapters.retrieval: .*temperature"),
    ],
)
def test_a_loss_that_cannot_be_made_is_named_by_its_phase(override, message, stand_ins):
    with pytest.raises(RecipeError, match=message):
        preflight(Run(load_recipe(stand_ins("small"), [override])), STAGES[:3])


def test_a_tracker_that_is_not_installed_is_named_before_the_teacher_begins(stand_ins):
    with pytest.raises(RecipeError, match=r"--report-to nope: "):
        preflight(Run(load_recipe(stand_ins("small")), ("nope",)), STAGES[:3])


# ------------------------------------------------------------------------------------ small sets


@pytest.mark.parametrize(
    ("rows", "positives", "said"),
    [
        (6, 6, "faq has 6 rows, of which 6 or so have no text in common: its batches hold as many"),
        (40, 5, "faq has 40 rows, of which 4 or so have no text in common: its batches hold as m"),
        (40, 1, r"40 rows of .*faq.jsonl \(40 distinct in query, 1 distinct in positive\) hold no"),
    ],
)
def test_few_rows_or_few_answers_are_told_with_their_numbers_before_the_teacher_begins(
    rows, positives, said, stand_ins, tmp_path, caplog
):
    path = tmp_path / "faq.jsonl"
    pairs = [
        {"question": f"question {i}", "answer": f"answer {i % positives}"} for i in range(rows)
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    tree = yaml.safe_load(Path(stand_ins("small")).read_text())
    tree["data_sets"] = {"faq": {"path": str(path)}}
    tree["stage1"] = {"data": {"faq": 1}, "steps": 2, "batch_size": 8}
    tree |= {"adapters": {}, "output": str(tmp_path / "out")}
    tree.pop("long", None)
    recipe = tmp_path / "own.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    try:
        preflight(Run(load_recipe(recipe)), STAGES[:2])
        told = caplog.text
    except RecipeError as error:
        told = str(error)
    assert re.search(said, told)


def test_steps_that_the_rows_do_not_hold_are_told_with_rows_and_batch(stand_ins, tmp_path):
    path = tmp_path / "faq.csv"
    path.write_text("question,answer\n" + "".join(f"q {i},a {i}\n" for i in range(12)))
    tree = yaml.safe_load(Path(stand_ins("small")).read_text())
    tree["data_sets"] = {"faq": {"path": str(path)}}
    tree["stage1"] = {"data": {"faq": 1}, "steps": 99, "batch_size": 8}
    tree |= {"adapters": {}, "output": str(tmp_path / "out")}
    tree.pop("long", None)
    recipe = tmp_path / "own.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    with pytest.raises(RecipeError, match=r"stage1.steps: 99 steps.* 10 batches within max_epochs "
                       r"10 \(faq: 12 rows, 8 a step\); add text"):  # fmt: skip
        preflight(Run(load_recipe(recipe)), STAGES[:2])


def rows_of(*texts: str) -> Dataset:
    return Dataset.from_dict(
        {"query": list(texts), "positive": [f"d {i}" for i in range(len(texts))]}
    )


def test_a_batch_has_the_rows_asked_for_or_what_a_small_set_holds():
    assert train.most_rows(rows_of(*map(str, range(100))), 64) == 64
    assert train.most_rows(rows_of(*map(str, range(30))), 64) == 30
    shared = rows_of(*(str(i // 4) for i in range(100)))  # 25 distinct queries
    assert 20 < train.most_rows(shared, 64) < 25
    assert train.most_rows(shared, 20) == 20
    assert train.most_rows(rows_of("a", "a", "b", "b"), 4) == 2
    assert train.most_rows(rows_of("a", "a"), 4) == 1


def test_sets_smaller_than_a_step_take_part_in_fewer_processes_than_devices(tiny, tmp_path, caplog):
    """Steps of 8 x 4 rows in one process; the sets have 24."""
    recipe = tiny(tmp_path, devices=8, max_epochs=100)
    main([recipe, "--only", "teacher"])
    assert "wordnet-lemmas has 24 rows" in caplog.text
    assert "not 32 (8 of 8 devices' in each of 1 processes)" in caplog.text
    main([recipe, "--only", "stage1"])
    assert (tmp_path / "out" / "stage1" / "done.json").exists()


def test_equal_scores_are_no_equal_texts(stand_ins, tmp_path, caplog):
    run = Run(load_recipe(stand_ins("small")))
    data_set = first_of(run, *SCORED)
    columns = run.recipe.data_sets[data_set].columns
    rows = {column: [f"{column} {i}" for i in range(ROWS)] for column in columns.values()}
    path = tmp_path / "alike.parquet"
    Dataset.from_dict(rows | {columns["score"]: [0.5] * ROWS}).to_parquet(path)
    preflight(
        Run(load_recipe(stand_ins("small"), [f"data_sets.{data_set}.path={path}"])), STAGES[:3]
    )
    assert "no text in common" not in caplog.text


def test_random_vectors_are_a_texts_own_and_spread_evenly():
    store = RandomVectors(64)
    rows = store.rows(["a", "b", "a", *map(str, range(500))])
    vectors = store.gather(rows)
    assert torch.equal(vectors[0], vectors[2])
    unit = torch.nn.functional.normalize(vectors[2:], dim=1)
    cosines = (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
    assert abs(float(cosines.mean())) < 0.02
    assert float(cosines.std()) == pytest.approx(1 / np.sqrt(64), rel=0.1)
