"""One data set per batch: by weight, by size, by temperature, each with its own batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers.base.sampler import BatchSamplers
from torch.utils.data import BatchSampler, ConcatDataset, RandomSampler, SequentialSampler

import st_jv5
from st_jv5.trainer import sampling
from tests.conftest import arguments


def sampler(lengths: list[int], seed: int = 0, **settings: Any) -> sampling.WeightedBatchSampler:
    """Over sets of so many rows, four rows a batch."""
    sets = [Dataset.from_dict({"text": [str(i) for i in range(n)]}) for n in lengths]
    inner = [BatchSampler(SequentialSampler(s), 4, drop_last=True) for s in sets]
    return st_jv5.trainer.weighted(**settings)(
        ConcatDataset(sets), batch_samplers=inner, generator=torch.Generator(), seed=seed
    )


def shares(lengths: list[int], **settings: Any) -> list[float]:
    """How often each set is drawn, over many seeds."""
    bounds = torch.tensor(lengths).cumsum(0)
    drawn = torch.zeros(len(lengths))
    for seed in range(60):
        for batch in sampler(lengths, seed, **settings):
            drawn[int(torch.searchsorted(bounds, batch[0], right=True))] += 1
    return (drawn / drawn.sum()).tolist()


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    one, same = sampler([32, 32]), sampler([32, 32])
    assert list(one) == list(same) == list(one)
    assert list(one) != list(sampler([32, 32], seed=1))
    same.set_epoch(1)
    assert list(one) != list(same)


@pytest.mark.parametrize(
    ("lengths", "settings", "expected"),
    [
        ([32, 32], {"weights": {"a": 1, "b": 7}}, [1 / 8, 7 / 8]),
        ([16, 48], {}, [1 / 4, 3 / 4]),
        ([32, 32], {"weights": {"a": 1, "b": 16}, "temperature": 2.0}, [1 / 5, 4 / 5]),
        ([32, 32], {"weights": {"a": 1, "b": 3}, "temperature": 0.5}, [1 / 10, 9 / 10]),
        ([12, 48], {"temperature": 2.0}, [1 / 3, 2 / 3]),
    ],
)
def test_sets_are_drawn_by_weight_or_size_to_the_power_of_one_over_temperature(
    lengths, settings, expected
):
    assert shares(lengths, **settings) == pytest.approx(expected, abs=0.06)


def test_a_set_may_have_a_batch_size_of_its_own():
    found = sampler([32, 32], weights={"a": 1, "b": 1}, batch_sizes={"b": 8})
    sizes = {(batch[0] >= 32, len(batch)) for batch in found}
    assert sizes == {(False, 4), (True, 8)}
    assert found.batch_size is None  # accelerate would drop the others
    assert sampler([32, 32], weights={"a": 1, "b": 1}).batch_size == 4


def test_processes_get_consecutive_batches_of_one_set(monkeypatch):
    monkeypatch.setattr(sampling, "get_world_size", lambda: 2)
    sets = [batch[0] >= 32 for batch in sampler([32, 32])]
    assert sets[::2] == sets[1::2]
    assert len(set(sets)) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"a": 0, "b": 1}}, "weight above 0"),
        ({"weights": {}}, "weight above 0"),
        ({"temperature": 0.0}, "temperature must be positive, not 0"),
        ({"weights": {"a": 1, "b": 1}, "batch_sizes": {"c": 4}}, "no data set 'c' among a, b"),
        ({"batch_sizes": {"a": 0, "b": 4}}, "'a' must be positive, not 0"),
        ({"weights": {"a": 1}}, r"2 data sets but 1 named: \['a'\]"),
        ({"weights": {"a": 1, "b": 1}, "batch_sizes": {"b": 33}}, "no whole batch in: b"),
    ],
)
def test_samplers_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        sampler([32, 32], **settings)


def trainer(model, texts, folder, workers: int = 0, **settings) -> st_jv5.AdapterTrainer:
    sets = {
        "short": Dataset.from_dict({"query": texts[:20] * 2, "positive": texts[20:40] * 2}),
        "long": Dataset.from_dict({"query": texts[40:60], "positive": texts[4:24]}),
    }
    args = arguments(
        folder,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        multi_dataset_batch_sampler=st_jv5.trainer.weighted(
            {"short": 1, "long": 1}, batch_sizes={"long": 2}
        ),
        dataloader_num_workers=workers,
        dataloader_drop_last=True,
    )
    return st_jv5.AdapterTrainer(
        model,
        args,
        tasks="retrieval",
        train_dataset=DatasetDict(sets),
        loss=st_jv5.losses.InfoNCELoss(model),
        **settings,
    )


def test_batches_are_the_same_for_any_number_of_workers(model, texts, tmp_path):
    orders = [
        [batch["texts"] for batch in trainer(model, texts, tmp_path, n).get_train_dataloader()]
        for n in (0, 2)
    ]
    assert orders[0] == orders[1]
    assert {len(batch) for batch in orders[0]} == {4, 2}


def test_no_text_stands_twice_in_a_batch(model, texts, tmp_path):
    for batch in trainer(model, texts, tmp_path).get_train_dataloader():
        found = [text for row in batch["texts"] for text in row.values()]
        assert len(set(found)) == len(found)


def test_each_set_is_cut_at_its_own_tokens_and_keeps_its_eos(model, texts, tmp_path):
    tokenizer = model.tokenizer
    widest = {"short": 0, "long": 0}
    found = trainer(model, texts, tmp_path, max_tokens={"long": 7})
    for batch in found.get_train_dataloader():
        ids, mask = batch["positive_input_ids"], batch["positive_attention_mask"]
        name = batch["dataset_name"]
        widest[name] = max(widest[name], ids.shape[1])
        last = ids[torch.arange(len(ids)), mask.sum(dim=1) - 1]
        assert set(last.tolist()) == {tokenizer.eos_token_id}
    assert widest["long"] == 7
    assert widest["short"] > 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": {"lang": 7}}, "max_tokens: unknown data set 'lang'.*did you mean 'long'"),
        ({"max_tokens": 0}, r"max_tokens must lie in 1..128, the backbone's, not 0"),
        ({"max_tokens": {"long": 129}}, "not 129"),
        ({"max_loss_ratio": 0.5}, "max_loss_ratio must be above 1, not 0.5"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_training(
    model, texts, tmp_path, settings, message
):
    with pytest.raises(ValueError, match=message):
        trainer(model, texts, tmp_path, **settings)


def test_weights_must_stand_in_the_order_of_the_data_sets(model, texts, tmp_path):
    sets = {name: Dataset.from_dict({"query": texts[:8]}) for name in ("a", "b")}
    args = arguments(
        tmp_path, multi_dataset_batch_sampler=st_jv5.trainer.weighted({"b": 1, "a": 2})
    )
    with pytest.raises(ValueError, match=r"names \['b', 'a'\], but train_dataset has \['a', 'b'\]"):
        st_jv5.AdapterTrainer(
            model,
            args,
            tasks="retrieval",
            train_dataset=sets,
            loss=st_jv5.losses.InfoNCELoss(model),
        )


def test_a_set_that_was_read_max_epochs_times_is_drawn_no_more():
    settings = {"weights": {"small": 9, "large": 1}, "max_epochs": 2}
    drawn = [0, 0]
    for epoch in range(2):  # 3 and 20 batches, so 23 an epoch
        one = sampler([12, 80], **settings)
        one.set_epoch(epoch)
        for batch in one:
            drawn[batch[0] >= 12] += 1
    assert drawn == [6, 40]


def test_max_epochs_may_differ_by_data_set():
    settings = {"weights": {"small": 9, "large": 1}, "max_epochs": {"small": 0.34}}
    drawn = [batch[0] >= 12 for batch in sampler([12, 80], **settings)]
    assert drawn.count(False) == 1
    assert len(drawn) == 23
    with pytest.raises(ValueError, match="max_epochs of small must be positive, not 0"):
        st_jv5.trainer.weighted({"small": 1}, max_epochs={"small": 0})
    with pytest.raises(ValueError, match="max_epochs: no data set 'smal' among small"):
        st_jv5.trainer.weighted({"small": 1}, max_epochs={"smal": 2})


def test_a_later_epoch_counts_what_earlier_ones_took_though_it_did_not_draw_them():
    settings = {"weights": {"small": 9, "large": 1}, "max_epochs": 2}
    goes_on, resumed = sampler([12, 80], **settings), sampler([12, 80], **settings)
    list(goes_on)
    for one in (goes_on, resumed):
        one.set_epoch(1)
    assert list(goes_on) == list(resumed)
    assert all(batch[0] >= 12 for batch in resumed)


# ---------------------------------------------------------------------------------- any sampler


class Given(BatchSampler):
    """So many batches of a promised number, of rows in random order."""

    def __init__(self, generator: torch.Generator, promised: int, given: int) -> None:
        self.generator, self.promised, self.given = generator, promised, given
        self.batch_size, self.drop_last = 2, True

    def __len__(self) -> int:
        return self.promised

    def __iter__(self):
        order = torch.randperm(2 * self.given, generator=self.generator).tolist()
        yield from (order[i : i + 2] for i in range(0, len(order), 2))


def epochs(promised: int, given: int, seed: int = 0) -> sampling.EpochBatchSampler:
    generator = torch.Generator()
    return sampling.EpochBatchSampler(Given(generator, promised, given), generator, seed)


@pytest.mark.parametrize("given", [3, 10, 14])
def test_an_epoch_has_the_promised_batches_and_depends_on_seed_and_number_alone(given):
    one = epochs(10, given)
    first, again = list(one), list(one)
    assert len(first) == len(one) == 10
    assert first == again
    one.set_epoch(1)
    second = list(one)
    later = epochs(10, given)
    later.set_epoch(1)
    assert second == list(later) != first
    assert first != list(epochs(10, given, seed=7))
    if given == 3:
        assert first[:3] != first[3:6]  # another pass, shuffled anew


def test_a_sampler_without_a_batch_says_so_rather_than_try_for_ever():
    with pytest.raises(ValueError, match="the data gives no whole batch: too few rows"):
        list(epochs(10, 0))


def test_sets_in_random_order_are_drawn_the_same_in_every_run():
    def drawn() -> list[list[int]]:
        generator = torch.Generator()
        sets = [list(range(12)), list(range(24))]
        inner = [BatchSampler(RandomSampler(s, generator=generator), 4, True) for s in sets]
        one = st_jv5.trainer.weighted({"a": 1, "b": 2})(
            ConcatDataset(sets), batch_samplers=inner, generator=generator, seed=3
        )
        one.set_epoch(2)
        return list(one)

    assert drawn() == drawn()


def test_when_no_set_is_left_it_says_so():
    one = sampler([12, 12], max_epochs=1)
    list(one)
    one.set_epoch(1)
    with pytest.raises(ValueError, match="as often as max_epochs allows, after 6 batches"):
        list(one)
    with pytest.raises(ValueError, match="max_epochs must be positive, not 0"):
        st_jv5.trainer.weighted(max_epochs=0)
