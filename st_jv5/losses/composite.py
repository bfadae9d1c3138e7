"""Weighted terms over one forward."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss
from sentence_transformers.util.distributed import get_world_size
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from st_jv5.losses.embed import embed_columns
from st_jv5.losses.processes import (
    average_gradients,
    averaged_parameters,
    gather_embeddings,
    gather_rows,
    same_in_all_processes,
)
from st_jv5.losses.schedule import Schedule

Weight = float | Schedule
Terms = Mapping[str, tuple[nn.Module, Weight]]


class CompositeLoss(nn.Module):
    """A weighted sum of losses that share one forward per batch, at one or more Matryoshka dims.

    At each dim the embeddings are cut and normalised again, and every term is computed on them; a
    term's value is its weighted mean over the dims. Whatever a term needs besides the embeddings
    (teacher vectors, the base's vectors) is prepared once per batch.

    Args:
        model: The model being trained.
        terms: Name -> (loss, weight). The loss is one of st_jv5 or any sentence-transformers loss
            with ``compute_loss_from_embeddings``. The weight is a number >= 0, or a
            :class:`Schedule` of weights over the steps, which needs
            :class:`~st_jv5.AdapterTrainer`.
        dims: Matryoshka dims; None trains the full width only. The paper does not say which stages
            and losses use Matryoshka dims; that every one uses all dims is our choice.
        dim_weights: One weight per dim, scaled to sum to 1; None gives all dims the same weight.
        dims_per_step: How many dims to train in each step, drawn at random (the widest is always
            among them); None trains all.
        full_width_terms: Names of terms to compute at the widest dim only.
        mini_batch_size: GradCache: keep the activations of this many rows at a time, and compute
            all rows again in the backward pass. The whole batch need not fit in memory.
        mini_batch_tokens: GradCache with a limit in padded tokens instead of rows.
        gather_across_devices: Compute the loss on the batches of all processes together: the
            documents of every process are negatives of each query, with gradients.

    Attributes:
        step: The optimizer step, set by :class:`~st_jv5.AdapterTrainer`; None if it is not known.

    Inputs:
        text columns and labels, as the terms need them.

    Returns:
        Dict with one weighted scalar per term; the trainer logs them and trains on their sum.

    Example:
        >>> loss = CompositeLoss(student, {
        ...     "infonce": (InfoNCELoss(student), 1.0),
        ...     "gor": (GORLoss(student), 1.0),
        ... }, dims=(128, 384))
    """

    def __init__(
        self,
        model: SentenceTransformer,
        terms: Terms,
        *,
        dims: Sequence[int] | None = None,
        dim_weights: Sequence[float] | None = None,
        dims_per_step: int | None = None,
        mini_batch_size: int | None = None,
        mini_batch_tokens: int | None = None,
        full_width_terms: Sequence[str] = (),
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__()
        if not terms:
            raise ValueError("a composite loss needs at least one term")
        for name, (loss, weight) in terms.items():
            if not callable(getattr(loss, "compute_loss_from_embeddings", None)):
                raise ValueError(
                    f"term {name!r}: {type(loss).__name__} has no compute_loss_from_embeddings"
                )
            if not isinstance(weight, Schedule) and not 0 <= weight < math.inf:
                raise ValueError(f"term {name!r}: a weight is finite and >= 0, not {weight}")
        if unknown := [name for name in full_width_terms if name not in terms]:
            raise ValueError(f"full_width_terms: no term {unknown[0]!r}, only {', '.join(terms)}")
        width = model.get_embedding_dimension()
        dims = [width] if dims is None else list(dims)
        if not dims or min(dims) < 1 or max(dims) > width or len(set(dims)) != len(dims):
            raise ValueError(f"dims must be distinct and lie in 1..{width}, not {dims}")
        for name, (loss, _) in terms.items():
            narrowest = max(dims) if name in full_width_terms else min(dims)
            if narrowest < width and getattr(loss, "projection_dim", None) is not None:
                raise ValueError(
                    f"term {name!r}: the stock {type(loss).__name__} projects the full width "
                    f"alone; name it in full_width_terms, or use ProjectedCosineDistillLoss"
                )
        dim_weights = [1.0] * len(dims) if dim_weights is None else list(dim_weights)
        if len(dim_weights) != len(dims) or min(dim_weights) < 0 or sum(dim_weights) <= 0:
            raise ValueError(f"{len(dims)} dims need as many weights >= 0, got {dim_weights}")
        if dims_per_step is not None and not 1 <= dims_per_step <= len(dims):
            raise ValueError(f"dims_per_step must lie in 1..{len(dims)}, not {dims_per_step}")
        for name, value in (
            ("mini_batch_size", mini_batch_size),
            ("mini_batch_tokens", mini_batch_tokens),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, not {value}")
        self.model = model
        self.mini_batch_size = mini_batch_size
        self.mini_batch_tokens = mini_batch_tokens
        self.losses = nn.ModuleDict({name: loss for name, (loss, _) in terms.items()})
        # DDP averages the gradients of what the model's forward uses. A term's own parameters (a
        # temperature) are used outside of it; the projection, in the model, is its loss's care.
        in_model = {id(parameter) for parameter in model.parameters()}
        for parameter in self.losses.parameters():
            if id(parameter) not in in_model:
                average_gradients(parameter, model)
        self.weights: dict[str, Weight] = {name: weight for name, (_, weight) in terms.items()}
        # Widest first: it is trained in every step, whichever others are drawn.
        self.dims = dict(sorted(zip(dims, dim_weights, strict=True), reverse=True))
        self.dims_per_step = dims_per_step
        self.full_width_terms = tuple(full_width_terms)
        self.gather_across_devices = gather_across_devices
        self.step: int | None = None

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        columns = list(sentence_features)
        weights, prepared = self._prepare(columns, labels)
        embeddings = embed_columns(
            self.model, columns, self.mini_batch_size, self.mini_batch_tokens
        )
        return self._weighted(embeddings, weights, prepared)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None
    ) -> dict[str, Tensor]:
        """See the class; ``embeddings`` are unit rows ``(B, width)`` per column."""
        return self._weighted(embeddings, *self._prepare(None, labels))

    def active_terms(self, labels: Tensor | None) -> Sequence[str]:
        """The terms that a batch with these labels trains; the others give 0."""
        return list(self.losses)

    def weight_at_step(self, name: str) -> float:
        """A term's weight at the current step."""
        weight = self.weights[name]
        if not isinstance(weight, Schedule):
            return weight
        if self.step is None and weight.start != weight.end:
            raise ValueError(
                f"the weight of {name!r} goes from {weight.start} to {weight.end}, but the loss is "
                f"not given the step; train with st_jv5.AdapterTrainer, or give a constant weight"
            )
        return weight.at(self.step or 0)

    def _prepare(
        self, columns: list[dict[str, Any]] | None, labels: Tensor | None
    ) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
        """Weights of the terms that count for this batch, and what they need beside embeddings."""
        weights = {name: self.weight_at_step(name) for name in self.active_terms(labels)}
        # A weight of 0 costs nothing: neither are teacher vectors read, nor is the term computed.
        weights = {name: weight for name, weight in weights.items() if weight}
        prepared: dict[str, dict[str, Any]] = {}
        for name in weights:
            prepare: Any = getattr(self.losses[name], "prepare", None)
            prepared[name] = prepare(columns, labels) if prepare else {"labels": labels}
        return weights, prepared

    def _weighted(
        self,
        embeddings: list[Tensor],
        weights: dict[str, float],
        prepared: dict[str, dict[str, Any]],
    ) -> dict[str, Tensor]:
        # Every term is in the answer, trained or not, so that all steps log the same terms.
        totals = dict.fromkeys(self.losses, self._zero(embeddings[0]))
        if self.gather_across_devices:
            embeddings = gather_embeddings(embeddings)
            prepared = {
                name: {key: gather_rows(value) for key, value in values.items()}
                for name, values in prepared.items()
            }

        def at_dim(dim: int, names: list[str]) -> Tensor:
            # The first entries of a unit row are shorter than 1, and cosines need unit rows.
            cut = [normalize(rows[:, :dim], dim=-1) for rows in embeddings]
            return torch.stack([self._value(name, cut, prepared[name]) for name in names])

        dims = self._dims_of_step(embeddings[0].device)
        # Where only some dims were drawn, their weights are scaled to sum 1 anew, so that a step's
        # loss is as large as one at all dims.
        widest, whole = max(dims), sum(dims.values())
        for dim, dim_weight in dims.items():
            shares = {}
            for name, weight in weights.items():
                if name not in self.full_width_terms:
                    shares[name] = weight * (dim_weight / whole)
                elif dim == widest:
                    shares[name] = weight
            if not shares:
                continue
            if self.mini_batch_size or self.mini_batch_tokens:
                # Whoever embeds in chunks is short of memory: keep one dim's matrix of cosines, and
                # compute the others again in the backward pass. The terms draw no random numbers.
                values = checkpoint(
                    at_dim, dim, list(shares), use_reentrant=False, preserve_rng_state=False
                )
            else:
                values = at_dim(dim, list(shares))
            for (name, share), value in zip(shares.items(), values, strict=True):
                totals[name] = totals[name] + share * value
        return totals

    def _value(self, name: str, embeddings: list[Tensor], prepared: dict[str, Any]) -> Tensor:
        term: Any = self.losses[name]
        if isinstance(term, EmbedDistillLoss):  # the stock loss alone wants a list of columns
            labels = prepared["labels"]
            if labels is None:
                raise ValueError(f"term {name!r} needs the teacher's vectors as the column 'label'")
            teacher = [labels] * len(embeddings) if labels.ndim == 2 else list(labels.unbind(1))
            value = term.compute_loss_from_embeddings(embeddings[: len(teacher)], teacher)
        else:
            value = term.compute_loss_from_embeddings(embeddings, **prepared)
        if isinstance(value, dict):
            return torch.stack(list(value.values())).sum()
        return value

    def _zero(self, like: Tensor) -> Tensor:
        zero = like.new_zeros(())
        if get_world_size() > 1 and torch.is_grad_enabled():
            # Every process must come to the all-reduce of the losses' own parameters, also with a
            # batch that does not train them.
            zero = zero + sum(0 * parameter.sum() for parameter in averaged_parameters(self))
        return zero

    def _dims_of_step(self, device: torch.device | str = "cpu") -> dict[int, float]:
        if self.dims_per_step is None or self.dims_per_step == len(self.dims):
            return self.dims
        (widest, weight), *others = self.dims.items()
        # Processes draw differently, but a gathered loss must be cut alike in all of them.
        order = same_in_all_processes(torch.randperm(len(others)).to(device))
        drawn = order[: self.dims_per_step - 1].tolist()
        return {widest: weight, **dict(others[index] for index in sorted(drawn))}

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, for a model card."""
        weights = {
            name: weight.get_config_dict() if isinstance(weight, Schedule) else weight
            for name, weight in self.weights.items()
        }
        return {
            "terms": {
                name: {
                    "loss": type(loss).__name__,
                    "weight": weights[name],
                    **getattr(loss, "get_config_dict", dict)(),
                }
                for name, loss in self.losses.items()
            },
            "dims": dict(self.dims),
            "dims_per_step": self.dims_per_step,
            "full_width_terms": list(self.full_width_terms),
            "mini_batch_size": self.mini_batch_size,
            "mini_batch_tokens": self.mini_batch_tokens,
            "gather_across_devices": self.gather_across_devices,
        }
