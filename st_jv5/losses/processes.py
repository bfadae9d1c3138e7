"""What processes share: the rows of a batch, and the gradients of a loss's own parameters."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from sentence_transformers.util.distributed import all_gather, get_world_size
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def gather_embeddings(embeddings: list[Tensor]) -> list[Tensor]:
    """The columns ``(B, D)`` of all processes, ``(processes * B, D)`` each, with gradients.

    Each process may then compute the loss of the whole batch: its gradient with respect to a row
    comes back summed over the processes, and DDP's mean over them makes it the gradient of one
    process with the whole batch.

    Raises:
        ValueError: The processes have batches of different shapes.
    """
    if get_world_size() == 1:
        return embeddings
    shape = torch.tensor([len(embeddings), *embeddings[0].shape], device=embeddings[0].device)
    shapes = all_gather(shape[None])
    if not bool((shapes == shapes[0]).all()):
        raise ValueError(
            f"to gather rows, all processes need equal numbers of columns, rows and dims, but they "
            f"have {shapes.tolist()}; set dataloader_drop_last=True and one data set per step "
            f"(st_jv5.trainer.weighted)"
        )
    together = all_gather(torch.stack(embeddings, dim=1), with_grad=True)
    return list(together.unbind(dim=1))


def gather_rows(value: Any) -> Any:
    """A tensor ``(B, ...)`` of every process, one after the other; anything else as it is."""
    if get_world_size() == 1 or not isinstance(value, Tensor):
        return value
    return all_gather(value.contiguous())


def same_in_all_processes(value: Tensor) -> Tensor:
    """The first process's value; what is drawn must not differ where the loss is shared."""
    if get_world_size() > 1:
        dist.broadcast(value, src=0)
    return value


def average_gradients(parameters: nn.Module | nn.Parameter, model: nn.Module) -> None:
    """Average the gradients of a loss's own parameters over the processes, as DDP does the model's.

    DDP watches what the model's forward uses; a projection or a temperature is used outside of it
    and would drift apart. Parameters that live in the model (the projection) are left out of DDP,
    which would wait for them in batches that do not train them. Alone nothing happens.
    """
    chosen = [parameters] if isinstance(parameters, nn.Parameter) else [*parameters.parameters()]
    own = {id(parameter) for parameter in chosen}
    ignored = {name for name, parameter in model.named_parameters() if id(parameter) in own}
    ignored |= set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sorted(ignored))
    for parameter in chosen:
        if not _is_averaged(parameter):
            trained = parameter.requires_grad
            parameter.requires_grad_(True).register_hook(_average)
            parameter.requires_grad_(trained)


def averaged_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The trained parameters of a module whose gradients :func:`average_gradients` averages."""
    return [p for p in module.parameters() if p.requires_grad and _is_averaged(p)]


def _is_averaged(parameter: nn.Parameter) -> bool:
    return any(hook is _average for hook in (parameter._backward_hooks or {}).values())


def _average(gradient: Tensor) -> Tensor:
    if get_world_size() > 1:
        gradient = gradient / get_world_size()
        dist.all_reduce(gradient)
    return gradient


_average.__torch_unserializable__ = True  # type: ignore[attr-defined]
# so that torch pickles the parameters without a warning
