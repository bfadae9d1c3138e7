"""What the trainer takes as data, told when it is built."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    Value,
    concatenate_datasets,
)

import st_jv5
from st_jv5.losses import GORLoss, InfoNCELoss
from st_jv5.task_table import TASKS, column_prompts
from st_jv5.trainer.data_sets import own_copy
from tests.conftest import arguments

TEXTS = {"query": ["one", "two", "three", "four"], "positive": ["a", "b", "c", "d"]}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"id": [6, 7, 8, 9]},
            r"column 'id' holds int64, not text \(its first row is 6\); drop it",
        ),
        ({"similarity": [0.5] * 4}, "'similarity' holds double.*are called label or score"),
        ({"negatives": [["x", "y"]] * 4}, r"'negatives' holds list<.*'x', 'y'.*texts.*want a col"),
        ({"date": pa.array([1, 2, 3, 4], pa.timestamp("s"))}, "'date' holds timestamp"),
        ({"nothing": pa.nulls(4)}, "'nothing' holds null, not text"),
        ({"negative_1": ["x", None, "y", None]}, "'negative_1' has no text in 2 of 4 rows: 1, 3;"),
        ({"score": [0.5, None, 1.0, 0.0]}, "'score' has no finite number in 1 of 4 rows: 1;"),
        ({"score": [0.5, 0.0, math.nan, math.inf]}, "'score' has no finite number.*: 2, 3;"),
        ({"label": [[0.5], [0.0], [math.nan], [1.0]]}, "'label' has no finite number.*: 2;"),
        ({"label": [[1, 2], [3, None], None, [4, 5]]}, "'label' has no finite number.*: 1, 2;"),
        ({"label": ["art", "art", "music", "art"]}, "'label' holds string.*class_encode_column"),
        ({"label": [0, 1, 0, 1], "score": [0.5] * 4}, r"the label columns \['label', 'score'\]"),
    ],
)
def test_columns_and_rows_that_cannot_be_trained_on_are_named(more, message):
    with pytest.raises(ValueError, match=rf"^eval_dataset\['dev'\].*{message}"):
        own_copy({"dev": Dataset(pa.table(TEXTS | more))}, "eval_dataset")


def test_rows_are_numbered_as_the_user_sees_them():
    score = [0.5, math.nan, 0.5, None]
    data = Dataset.from_dict(TEXTS | {"score": score})
    with pytest.raises(ValueError, match="in 1 of 2 rows: 1;"):
        own_copy(data.select([2, 1]), "train_dataset")
    with pytest.raises(ValueError, match="in 4 of 8 rows: 1, 3, 5, 7;"):
        own_copy(concatenate_datasets([data, data]), "train_dataset")
    with pytest.raises(ValueError, match="in 1 of 3 rows: 1;"):
        own_copy(data.select(range(3)), "train_dataset")
    own_copy(data.select([2, 0]), "train_dataset")


def test_a_teachers_vector_may_be_missing():
    vectors = [[[math.nan] * 3, [1.0, 2.0, 3.0]]] * 4
    own_copy(Dataset.from_dict(TEXTS | {"label": vectors}), "train_dataset")


def test_a_set_without_rows_or_text_is_named():
    data = Dataset.from_dict(TEXTS)
    with pytest.raises(ValueError, match=r"train_dataset\['faq'\] has no rows"):
        own_copy({"faq": data.select([])}, "train_dataset")
    with pytest.raises(ValueError, match=r"train_dataset has no text column, only \['label'\]"):
        own_copy(Dataset.from_dict({"label": [1, 2]}), "train_dataset")


def test_rows_that_a_transform_makes_are_not_judged_by_what_is_stored():
    data = Dataset.from_dict({"number": [1, 2]})
    data.set_transform(lambda rows: {"query": [str(one) for one in rows["number"]]})
    own_copy(data, "train_dataset")


def built(model, folder, data, **settings) -> st_jv5.AdapterTrainer:
    return st_jv5.AdapterTrainer(
        model,
        arguments(folder, max_steps=2, save_strategy="no"),
        tasks="retrieval",
        train_dataset=data,
        **{"loss": GORLoss(model), **settings},
    )


def test_the_trainer_looks_at_both_its_data_sets(model, tmp_path):
    good = Dataset.from_dict(TEXTS)
    bad = good.add_column("id", [1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"^train_dataset: column 'id'"):
        built(model, tmp_path, bad)
    with pytest.raises(ValueError, match=r"^eval_dataset\['dev'\]: column 'id'"):
        built(model, tmp_path, good, eval_dataset={"dev": bad})
    with pytest.raises(ValueError, match=r"^eval_dataset: column 'id'"):
        built(model, tmp_path, good).evaluate(bad)


def test_a_loss_by_data_set_wants_names_without_a_dot(model, tmp_path):
    data = Dataset.from_dict(TEXTS)
    with pytest.raises(ValueError, match=r"name 'faq-v1.0' has a dot"):
        built(model, tmp_path, {"faq-v1.0": data}, loss={"faq-v1.0": GORLoss(model)})
    assert built(model, tmp_path, {"faq-v1.0": data}).train().global_step == 2


def test_less_than_a_batch_is_refused_before_training(model, tmp_path):
    args = arguments(tmp_path, dataloader_drop_last=True)
    trainer = st_jv5.AdapterTrainer(
        model,
        args,
        tasks="retrieval",
        train_dataset=Dataset.from_dict(TEXTS).select(range(3)),
        loss=GORLoss(model),
    )
    with pytest.raises(ValueError, match="no whole batch of 4 rows for each of 1 processes"):
        trainer.train()


# ------------------------------------------------------------------------------------ streams


def stream(**settings) -> IterableDataset:
    def rows():
        for query, positive in zip(*TEXTS.values(), strict=True):
            yield {"query": query, "positive": positive}

    return IterableDataset.from_generator(rows, **settings)


FEATURES = Features({"query": Value("string"), "positive": Value("string")})


def test_a_stream_trains_behind_the_tasks_prompts(model, tmp_path):
    trainer = built(model, tmp_path, stream(features=FEATURES))
    batch = next(iter(trainer.get_train_dataloader()))
    first = model.tokenizer.decode(batch["query_input_ids"][0])
    assert first.startswith("Query: one")
    assert trainer.train().global_step == 2


def test_a_stream_without_features_is_told_what_it_lacks(model, tmp_path):
    with pytest.raises(ValueError, match="The provided `train_dataset` must have Features"):
        built(model, tmp_path, stream())


@pytest.mark.parametrize("kind", [IterableDatasetDict, DatasetDict, dict])
def test_several_streams_are_refused_when_the_trainer_is_built(model, tmp_path, kind):
    several = {"a": stream(features=FEATURES)}
    several = several if kind is dict else kind(several)
    with pytest.raises(ValueError, match="train_dataset is several IterableDatasets"):
        built(model, tmp_path, several, loss=InfoNCELoss(model))


# ------------------------------------------------------------------- which column is the query


@pytest.mark.parametrize(
    ("columns", "query"),
    [
        (["query", "positive", "negative_1"], "query"),
        (["answer", "question"], "question"),
        (["positive", "anchor"], "anchor"),
        (["Documents", "Queries"], "Queries"),
        (["title", "passage"], "title"),
        (["passage", "title", "negative_2"], "title"),
    ],
)
def test_the_query_is_told_by_the_columns_names(columns, query, caplog):
    prompts = column_prompts(TASKS["retrieval"], columns)
    assert [name for name, prompt in prompts.items() if prompt == "Query: "] == [query]
    assert not caplog.records


@pytest.mark.parametrize("columns", [["body", "title"], ["positive", "negative"]])
def test_where_names_do_not_tell_the_first_is_the_query_with_a_warning(columns, caplog):
    prompts = column_prompts(TASKS["retrieval"], columns)
    assert prompts == {columns[0]: "Query: ", columns[1]: "Document: "}
    assert f"{columns[0]!r} gets the prompt 'Query: '" in caplog.text
    caplog.clear()
    column_prompts(TASKS["clustering"], columns)  # one prompt for all
    column_prompts(TASKS["retrieval"], ["body"])
    assert not caplog.records
