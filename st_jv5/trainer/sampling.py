"""Batches: which rows go together, and in which order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any

import torch
from sentence_transformers.base.sampler import MultiDatasetDefaultBatchSampler
from sentence_transformers.util.distributed import get_world_size
from torch.utils.data import BatchSampler

PASSES = 1000
"""A further pass within an epoch is shuffled as the epoch so much later."""


class EpochBatchSampler(BatchSampler):
    """A batch sampler whose batches depend on its seed and the number of the epoch alone.

    Around any batch sampler. Each pass seeds the random numbers again: sentence-transformers'
    default sampler continues with those of the last epoch, which a resumed run has not drawn. A
    sampler that gives fewer batches than its length starts again, and one that gives more is cut:
    a resumed run counts its epochs by that length.

    Args:
        sampler: Gives lists of row numbers; ``len`` is its batches in an epoch.
        generator: The random numbers that it draws from.
        seed: Seed of the run.
        is_over: True: an epoch gives no batch, because the run has done all its steps.
    """

    def __init__(
        self,
        sampler: BatchSampler,
        generator: torch.Generator,
        seed: int,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self.inner = sampler
        self.generator = generator
        self.seed = seed
        self.epoch = 0
        self.is_over = is_over
        self.batch_size, self.drop_last = sampler.batch_size, sampler.drop_last

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[list[int]]:
        left = 0 if self.is_over() else len(self)
        number = 0
        while left:
            batches = one_pass(self.inner, self.generator, self.seed, self.epoch, number)
            given = 0
            for batch in islice(batches, left):
                yield batch
                given += 1
            left -= given
            number += 1
            if not given:
                raise ValueError(
                    "the data gives no whole batch: too few rows whose texts all differ; add rows "
                    "or shrink the batch"
                )


def one_pass(
    sampler: BatchSampler, generator: torch.Generator | None, seed: int, epoch: int, number: int
) -> Iterator[list[int]]:
    """The batches of one pass over a sampler; random numbers are seeded when it begins.

    Args:
        sampler: Told the epoch if it wants to know.
        generator: The random numbers that it draws from.
        seed: Seed of the run.
        epoch: The epoch, from 0.
        number: The pass within the epoch, from 0.
    """
    shuffle = epoch + PASSES * number
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(shuffle)
    if generator is not None:
        generator.manual_seed(seed + shuffle)
    yield from sampler


class WeightedBatchSampler(MultiDatasetDefaultBatchSampler):
    """Batch sampler that draws the data set of each batch by weight; a used-up set starts again.

    (sentence-transformers' own samplers draw by size, or in turn.) The order depends only on the
    seed and the epoch. One epoch has as many batches as all the sets together. The processes of a
    distributed run get consecutive batches, and those come from one set, so that every step has one
    data set.

    Use :func:`weighted` as ``args.multi_dataset_batch_sampler``.
    """

    names: list[str]
    weights: torch.Tensor
    batch_size: int | None
    """None: the batches vary in size, which accelerate has to know."""
    most_batches: list[float] | None = None
    """Most batches of each data set over all epochs; None: no end."""

    def __iter__(self) -> Iterator[list[int]]:
        starts = [0, *accumulate(len(dataset) for dataset in self.dataset.datasets)]
        passes = [0] * len(self.batch_samplers)
        iterators = [self._one_pass(index, 0) for index in range(len(passes))]
        drawn = [0] * len(passes)
        for epoch in range(self.epoch if self.most_batches else 0):
            for _ in self._choices(epoch, drawn):
                pass  # what earlier epochs took counts; a resumed run has not drawn it
        for chosen in self._choices(self.epoch, drawn):
            batch = next(iterators[chosen], None)
            if batch is None:
                passes[chosen] += 1
                iterators[chosen] = self._one_pass(chosen, passes[chosen])
                batch = next(iterators[chosen], None)
            if batch is None:
                raise ValueError(
                    f"{self.names[chosen]!r} gives no whole batch: too few rows whose texts all "
                    f"differ; add rows or shrink the batch"
                )
            yield [starts[chosen] + index for index in batch]

    def _choices(self, epoch: int, drawn: list[int]) -> Iterator[int]:
        """The data set of each batch of an epoch; ``drawn`` counts the batches of each set."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        weights = self.weights.clone()
        for number in range(len(self)):
            if number % get_world_size() == 0:
                if self.most_batches:
                    left = torch.tensor(self.most_batches) > torch.tensor(drawn)
                    weights = torch.where(left, self.weights, 0.0)
                    if not bool(left.any()):
                        raise ValueError(
                            f"every data set has been read as often as max_epochs allows, after "
                            f"{sum(drawn)} batches; train fewer steps, or raise max_epochs"
                        )
                chosen = int(torch.multinomial(weights, 1, generator=generator))
            drawn[chosen] += 1
            yield chosen

    def _one_pass(self, index: int, number: int) -> Iterator[list[int]]:
        return one_pass(self.batch_samplers[index], self.generator, self.seed, self.epoch, number)

    def __len__(self) -> int:
        return sum(len(sampler) for sampler in self.batch_samplers)


@dataclass(frozen=True)
class Weighted:
    """Makes the sampler for the trainer; a class, so that training arguments pickle."""

    weights: Mapping[str, float] | None
    temperature: float = 1.0
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    max_epochs: float | Mapping[str, float] | None = None

    @property
    def names(self) -> list[str]:
        """The data sets that the settings name, in their order."""
        return list(self.weights or self.batch_sizes)

    def __call__(self, dataset: Any, **kwargs: Any) -> WeightedBatchSampler:
        count = len(dataset.datasets)
        if self.names and count != len(self.names):
            raise ValueError(f"{count} data sets but {len(self.names)} named: {self.names}")
        sampler = WeightedBatchSampler(dataset, **kwargs)
        sampler.names = self.names or [f"data set {index}" for index in range(count)]
        for name, batch_sampler in zip(sampler.names, sampler.batch_samplers, strict=True):
            batch_sampler.batch_size = self.batch_sizes.get(name, batch_sampler.batch_size)
            if not len(batch_sampler):
                raise ValueError(f"no whole batch in: {name}; add rows or shrink the batch")
        sizes = [len(batch_sampler) for batch_sampler in dataset.datasets]
        weights = list(self.weights.values()) if self.weights else sizes
        sampler.weights = torch.tensor(weights, dtype=torch.float64) ** (1 / self.temperature)
        if self.max_epochs is not None:
            most = self.max_epochs
            sampler.most_batches = [
                max(1, int(epochs * len(batch_sampler) + 1e-6)) if epochs is not None else math.inf
                for batch_sampler, epochs in zip(
                    sampler.batch_samplers,
                    map(most.get, sampler.names) if isinstance(most, Mapping) else [most] * count,
                    strict=True,
                )
            ]
        if (
            len(
                {
                    (batch_sampler.batch_size, batch_sampler.drop_last)
                    for batch_sampler in sampler.batch_samplers
                }
            )
            > 1
        ):
            sampler.batch_size = None
        return sampler


def weighted(
    weights: Mapping[str, float] | None = None,
    *,
    temperature: float = 1.0,
    batch_sizes: Mapping[str, int] | None = None,
    max_epochs: float | Mapping[str, float] | None = None,
) -> Weighted:
    """Make a value for ``args.multi_dataset_batch_sampler``: data sets are drawn by weight.

    Each batch has rows of one data set. With ``args.batch_sampler = BatchSamplers.NO_DUPLICATES``
    no text is in a batch twice.

    Args:
        weights: Data set -> weight > 0, for every data set, in the order of the DatasetDict; None:
            the weight is the number of rows.
        temperature: Probabilities are proportional to the weights to the power of
            ``1/temperature``; a value above 1 makes them more equal.
        batch_sizes: Data set -> rows per batch (and process), for data sets that do not use
            ``args.per_device_train_batch_size``. If ``weights`` is None, for all data sets, in
            order.
        max_epochs: Most passes over one data set. After that the set is not drawn any more, and the
            others take its place; its last pass may be cut short. One number for all, or a dict
            from data set to number (data sets that it does not name have no limit). None: no limit.

    Raises:
        ValueError: During training, no data set is left to draw from.

    Example:
        >>> args.multi_dataset_batch_sampler = weighted({"titles": 2, "questions": 1})
        >>> args.multi_dataset_batch_sampler = weighted(
        ...     {"short": 2, "long": 1}, batch_sizes={"long": 16}, max_epochs=10
        ... )
        >>> args.multi_dataset_batch_sampler = weighted(temperature=2.0)
    """
    if weights is not None and (not weights or min(weights.values()) <= 0):
        raise ValueError(f"every data set needs a weight above 0, got {dict(weights)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    each = max_epochs if isinstance(max_epochs, Mapping) else {"": max_epochs}
    for name, epochs in each.items():
        if epochs is not None and not epochs > 0:
            of = f" of {name}" if name else ""
            raise ValueError(f"max_epochs{of} must be positive, not {epochs}")
        if name and weights and name not in weights:
            raise ValueError(f"max_epochs: no data set {name!r} among {', '.join(weights)}")
    batch_sizes = dict(batch_sizes or {})
    if weights and (unknown := [name for name in batch_sizes if name not in weights]):
        raise ValueError(f"batch_sizes: no data set {unknown[0]!r} among {', '.join(weights)}")
    if bad := [name for name, size in batch_sizes.items() if size < 1]:
        raise ValueError(f"batch_sizes: {bad[0]!r} must be positive, not {batch_sizes[bad[0]]}")
    return Weighted(dict(weights) if weights else None, temperature, batch_sizes, max_epochs)
