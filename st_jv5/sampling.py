"""One data set per batch, drawn by weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from sentence_transformers.base.sampler import MultiDatasetDefaultBatchSampler


class WeightedBatchSampler(MultiDatasetDefaultBatchSampler):
    """Each batch comes from one data set, drawn by weight; a set that runs out starts anew.

    The host draws by size (proportional) or in turn (round robin). The order depends on the seed
    and the epoch alone. One epoch has as many batches as all the sets together.

    Use :func:`weighted` as ``args.multi_dataset_batch_sampler``.
    """

    weights: Mapping[str, float]

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        starts = [0, *accumulate(len(dataset) for dataset in self.dataset.datasets)]
        weights = torch.tensor(list(self.weights.values()), dtype=torch.float64)
        passes = [0] * len(self.batch_samplers)
        iterators = [self._one_pass(index, 0) for index in range(len(passes))]
        for _ in range(len(self)):
            chosen = int(torch.multinomial(weights, 1, generator=generator))
            batch = next(iterators[chosen], None)
            if batch is None:
                passes[chosen] += 1
                iterators[chosen] = self._one_pass(chosen, passes[chosen])
                batch = next(iterators[chosen], None)
            if batch is None:
                raise ValueError(
                    f"{list(self.weights)[chosen]!r} gives no whole batch: too few rows whose "
                    f"texts all differ; add rows or shrink the batch"
                )
            yield [starts[chosen] + index for index in batch]

    def _one_pass(self, index: int, number: int) -> Iterator[list[int]]:
        # The samplers share the host's one generator: each pass seeds it anew before it shuffles.
        sampler = self.batch_samplers[index]
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self.epoch + 1000 * number)
        return iter(sampler)

    def __len__(self) -> int:
        return sum(len(sampler) for sampler in self.batch_samplers)


@dataclass(frozen=True)
class Weighted:
    """Makes the sampler for the host's trainer; a class, so that training arguments pickle."""

    weights: Mapping[str, float]

    def __call__(self, dataset: Any, **kwargs: Any) -> WeightedBatchSampler:
        if len(dataset.datasets) != len(self.weights):
            raise ValueError(f"{len(dataset.datasets)} data sets but {len(self.weights)} weights")
        sampler = WeightedBatchSampler(dataset, **kwargs)
        sampler.weights = self.weights
        sizes = zip(self.weights, sampler.batch_samplers, strict=True)
        if empty := [name for name, batches in sizes if not len(batches)]:
            raise ValueError(f"no whole batch in: {', '.join(empty)}; add rows or shrink the batch")
        return sampler


def weighted(weights: Mapping[str, float]) -> Weighted:
    """A sampler for ``args.multi_dataset_batch_sampler``.

    Args:
        weights: Data set -> weight > 0, for every data set in the order of the DatasetDict.

    Example:
        >>> args.multi_dataset_batch_sampler = weighted({"titles": 2, "questions": 1})
    """
    if not weights or min(weights.values()) <= 0:
        raise ValueError(f"every data set needs a weight above 0, got {dict(weights)}")
    return Weighted(dict(weights))
