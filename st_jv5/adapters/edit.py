"""Work on adapters: add, train, save, load, remove, average, blend, merge."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import Tensor, nn

from st_jv5.backbone.blocks import transformer_blocks
from st_jv5.folders.adapter_file import Adapter
from st_jv5.folders.configs import MAX_RANK
from st_jv5.functional import wide
from st_jv5.modules.adapter_router import TEXT_ONLY, AdapterRouter
from st_jv5.modules.merging import fold
from st_jv5.modules.pooling import pooling_mode
from st_jv5.modules.rotation import rotation_in
from st_jv5.task_table import BASE, TASKS, Task, TaskName, unknown_name


def router_of(model: SentenceTransformer) -> AdapterRouter:
    """The first module of an st_jv5 model; an error if the model is not one.

    Example:
        >>> router_of(student).get_embedding_dimension()
        384
    """
    router = model[0]
    if not isinstance(router, AdapterRouter):
        raise ValueError(
            f"this model starts with {type(router).__name__}, not with an AdapterRouter; build it "
            f"with st_jv5.new_student(...) or load one that st_jv5 saved"
        )
    return router


def tasks(model: SentenceTransformer) -> list[str]:
    """The names of the model's adapters.

    Example:
        >>> tasks(student)
        []
    """
    return list(router_of(model).tasks)


def add_task(
    model: SentenceTransformer,
    name: str,
    *,
    rank: int = 32,
    alpha: int = 32,
    dropout: float | None = None,
    prompts: Mapping[str, str] | None = None,
    target_modules: Sequence[str] | None = None,
) -> None:
    """Add a fresh LoRA adapter on every linear layer of the blocks, and make it the one to train.

    A starts with Gaussian values and B with zeros (section 3 of arXiv:2602.15547), so a fresh
    adapter gives exactly the base's vectors.

    Args:
        model: An st_jv5 model.
        name: One of the four tasks, or a name of your own.
        rank: LoRA rank.
        alpha: LoRA alpha; the update is scaled by ``alpha / rank``.
        dropout: LoRA dropout; None: 0.05 for classification, 0.1 for all other tasks.
        prompts: Prompt name -> text. None takes them from the model's ``prompts``: query and
            document for retrieval, document for every other task.
        target_modules: Names of the linear layers to adapt, as PEFT takes them; None takes every
            linear layer of the blocks.

    Example:
        >>> add_task(student, "retrieval")
        >>> tasks(student)
        ['retrieval']
    """
    router = router_of(model)
    task = TASKS.get(name, Task(name))
    if prompts is None:
        prompts = {kind: router.prompts[kind] for kind in task.prompts}
    task = replace(task, prompts=_with_document(prompts))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=task.dropout if dropout is None else dropout,
        target_modules=_block_linears(router) if target_modules is None else list(target_modules),
        init_lora_weights="gaussian",
        bias="none",
    )
    router.add_adapter(task, config)
    train_task(model, name)


def _with_document(prompts: Mapping[str, str]) -> dict[str, str]:
    if "document" not in prompts:
        raise ValueError(f"prompts need a 'document' entry, got {sorted(prompts)}")
    return dict(prompts)


def _block_linears(router: AdapterRouter) -> list[str]:
    """Names of the blocks' linear layers: short ones (q_proj) where nothing else has them.

    ``dense`` in BERT also names the pooler's layer, so there the path within the block is kept.
    """
    path, _ = transformer_blocks(router.model)
    names = [name for name, _ in router.linear_layers()]
    outside = {n.split(".")[-1] for n in names if not n.startswith(f"{path}.")}
    within = [n.removeprefix(f"{path}.") for n in names if n.startswith(f"{path}.")]
    inside = {name.split(".", 1)[1] for name in within}  # without the block's number
    short = {name: name.split(".")[-1] for name in inside}
    return sorted({name if short[name] in outside else short[name] for name in inside})


def train_task(model: SentenceTransformer, name: str | Sequence[str]) -> None:
    """Make one adapter the one to train, and freeze everything else.

    Trained weights become float32, whatever dtype the model was loaded in; frozen weights keep
    their dtype. With ``bf16=True`` in the training arguments the forward passes run in bfloat16.

    Args:
        model: An st_jv5 model.
        name: An adapter, or ``"base"``, which unfreezes the backbone and freezes all adapters.
            Several names train several adapters; then each batch has to name its adapter
            (``AdapterTrainer(tasks={data set: adapter})`` does so).

    Example:
        >>> train_task(model, "clustering")
        >>> sum(p.requires_grad for p in model[0].base_parameters())
        0
    """
    router = router_of(model)
    names = [name] if isinstance(name, str | Mapping) else list(name)
    for asked in names:
        if isinstance(asked, Mapping):
            raise ValueError(
                f"a blend cannot be trained as {dict(asked)}; make it an adapter with "
                f"st_jv5.blend_tasks and train that"
            )
    if not names:
        raise ValueError("no task to train")
    adapters = [] if names == [BASE] else [router.resolve(asked) for asked in names]
    if None in adapters:
        raise ValueError(f"{names} cannot be trained together: the base is not an adapter")
    with router.registry.changing:  # other threads may add adapters or remove them
        for parameter in router.model.parameters():
            parameter.requires_grad_(False)
        chosen: list[Tensor]
        if adapters:
            chosen = [t for asked in adapters for t in router.adapter_tensors(str(asked)).values()]
        else:
            chosen = list(router.base_parameters())
            router._base_sha256 = None
        for parameter in chosen:
            # In three digits most of AdamW's steps would be lost, or all of its moments.
            parameter.data = parameter.data.to(wide(parameter.dtype))
            parameter.requires_grad_(True)
        router.training_task = BASE if not adapters else adapters[0] if len(names) == 1 else None


def save_adapter(model: SentenceTransformer, name: str, folder: str | Path) -> None:
    """Write one adapter to a folder that PEFT reads, too; the model keeps it.

    Example:
        >>> save_adapter(model, "clustering", task_folder)
    """
    router = router_of(model)
    if name not in router.tasks:
        raise ValueError(unknown_name("task", name, router.tasks, "this model"))
    router.take_adapter(name).save(folder)


def load_adapter(model: SentenceTransformer, folder: str | Path | Adapter) -> None:
    """Add an adapter from a folder, or from :func:`average_adapters`, to a model.

    If the model already has a task of this name, its weights are replaced.

    Raises:
        ValueError: The adapter was trained on another base (by the hash of the base's weights).

    Example:
        >>> save_adapter(model, "clustering", task_folder)
        >>> other = SentenceTransformer(saved_folder)
        >>> load_adapter(other, task_folder)
    """
    router = router_of(model)
    if isinstance(folder, Adapter):
        adapter = folder
    else:
        layers = router.linear_shapes()
        adapter = Adapter.load(folder, {f"{path}.weight": shape for path, shape in layers.items()})
    source = "the adapter" if isinstance(folder, Adapter) else folder
    if adapter.base_sha256 != (own := router.checked_base_sha256()):
        raise ValueError(
            f"{source} was trained on another base: its base has sha256 "
            f"{adapter.base_sha256[:12]}, this model's {own[:12]}"
        )
    if adapter.task.name in router.tasks:
        own_config = router.model.peft_config[adapter.task.name]
        for name in ("r", "lora_alpha", "use_rslora"):
            ours, theirs = getattr(own_config, name), getattr(adapter.config, name)
            if ours != theirs:
                raise ValueError(
                    f"{source} has {name} {theirs}, but this model's {adapter.task.name!r} has "
                    f"{ours}; put it under another name or into a model without it"
                )
        router.fill_adapter(adapter.task.name, adapter.tensors, source)
    else:
        router.add_adapter(adapter.task, adapter.config, adapter.tensors, source=source)


def remove_task(model: SentenceTransformer, name: str) -> None:
    """Remove an adapter from a model.

    Other threads may encode meanwhile. The call waits for those that are using the task; they still
    get its exact vectors. Later calls raise an error for an unknown task.

    Args:
        model: An st_jv5 model.
        name: Name of one of its adapters, not an alias.

    Raises:
        ValueError: The model has no adapter of this name, or the adapter is (part of) the model's
            default task.

    Example:
        >>> remove_task(model, "clustering")
        >>> tasks(model)
        ['retrieval', 'text-matching', 'classification']
    """
    router_of(model).remove_adapter(name)


def average_adapters(
    folders: Sequence[str | Path],
    weights: Sequence[float] | None = None,
    *,
    method: str = "product",
) -> tuple[Adapter, float]:
    """Average adapters of one base, such as two checkpoints of a run.

    Args:
        folders: Adapter folders, or checkpoints that hold one adapter each; all with the same task,
            base, rank and alpha.
        weights: One per folder, scaled to sum to 1; None gives all the same weight.
        method: ``"product"`` averages the updates B·A and factors the mean back to the rank by SVD:
            the adapter closest to the mean. ``"factors"`` averages A and B separately, which is
            exact only where all adapters share one of the two.

    Returns:
        The adapter, and the share, in 0..1, of the mean's squared norm that is lost because of the
        rank (0 for ``"factors"``, which computes no mean to compare with).

    Example:
        >>> save_adapter(model, "retrieval", task_folder)
        >>> adapter, lost = average_adapters([task_folder, task_folder])
        >>> lost < 1e-9
        True
    """
    if not folders:
        raise ValueError("no folders to average")
    if method not in ("product", "factors"):
        raise ValueError(f"method must be 'product' or 'factors', not {method!r}")
    weights = [1.0] * len(folders) if weights is None else list(weights)
    if len(weights) != len(folders):
        raise ValueError(f"{len(folders)} folders need as many weights, got {weights}")
    if not all(0 <= weight < math.inf for weight in weights) or sum(weights) <= 0:
        raise ValueError(f"weights must be finite, >= 0, and one above 0; got {weights}")
    shares = [weight / sum(weights) for weight in weights]
    adapters = [Adapter.load(folder) for folder in folders]
    first = adapters[0]
    for folder, each in zip(folders, adapters, strict=True):
        for what, ours, theirs in (
            ("task", first.task.name, each.task.name),
            ("base", first.base_sha256, each.base_sha256),
            ("rank", first.config.r, each.config.r),
            ("alpha", first.config.lora_alpha, each.config.lora_alpha),
            ("layers", sorted(first.tensors), sorted(each.tensors)),
        ):
            if ours != theirs:
                raise ValueError(f"{folder} has another {what} than {folders[0]}")
    tensors: dict[str, Tensor] = {}
    lost = total = 0.0
    for key in first.tensors:
        if ".lora_B." in key:
            continue
        key_b = key.replace(".lora_A.", ".lora_B.")
        all_a = [adapter.tensors[key].double() for adapter in adapters]
        all_b = [adapter.tensors[key_b].double() for adapter in adapters]
        if method == "factors":
            a = torch.stack([share * a for share, a in zip(shares, all_a, strict=True)]).sum(0)
            b = torch.stack([share * b for share, b in zip(shares, all_b, strict=True)]).sum(0)
        else:
            b, a, layer_lost, layer_total = _mean_product(all_b, all_a, shares)
            lost, total = lost + layer_lost, total + layer_total
        tensors[key] = a.to(first.tensors[key].dtype)
        tensors[key_b] = b.to(first.tensors[key_b].dtype)
    return replace(first, tensors=tensors), lost / total if total else 0.0


def _mean_product(
    all_b: list[Tensor], all_a: list[Tensor], shares: list[float]
) -> tuple[Tensor, Tensor, float, float]:
    """Factor sum_k share_k B_k A_k to the rank; also the squared norm lost, and the whole.

    The sum is (stacked B)(stacked A): two thin QR's leave an SVD of size count x rank.
    """
    rank = all_a[0].shape[0]
    q_b, r_b = torch.linalg.qr(torch.cat(all_b, dim=1))
    q_a, r_a = torch.linalg.qr(
        torch.cat([share * a for share, a in zip(shares, all_a, strict=True)]).T
    )
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    root = s[:rank].sqrt()
    b = q_b @ (u[:, :rank] * root)
    a = (root[:, None] * vh[:rank]) @ q_a.T
    padding = rank - root.shape[0]  # a layer narrower than the rank
    if padding > 0:
        b = nn.functional.pad(b, (0, padding))
        a = nn.functional.pad(a, (0, 0, 0, padding))
    return b, a, float(s[rank:].square().sum()), float(s.square().sum())


def blend_tasks(
    model: SentenceTransformer,
    name: str,
    weights: Mapping[str, float],
    *,
    prompts: Mapping[str, str] | None = None,
) -> None:
    """Add an adapter that is a blend of others: the weighted sum of their updates.

    The sum is exact: the A matrices are stacked and the scaled B matrices put side by side, so the
    rank of the blend is the sum of the ranks. Afterwards it is an adapter like any other.
    ``encode(texts, task=weights)`` gives the same vectors without adding an adapter.

    Args:
        model: An st_jv5 model.
        name: Name of the new adapter: one of the four tasks, or a name of your own.
        weights: Task -> weight, any finite number. They need not sum to 1: the rest is the base's
            weight. ``"base"`` may be named, too, and adds nothing.
        prompts: Prompt name -> text; None takes the prompts of the blended adapters. Where two
            adapters have a prompt of the same name, the one with the larger weight counts.

    Raises:
        ValueError: No task is given or a task is unknown, a weight is not finite, all weights are
            0, or the name is already used or not allowed.

    Example:
        >>> blend_tasks(model, "news", {"retrieval": 0.7, "classification": 0.3})
        >>> tasks(model)
        ['retrieval', 'text-matching', 'clustering', 'classification', 'news']
    """
    router = router_of(model)
    blend = router.blend(weights)
    if not blend:
        raise ValueError(
            f"{dict(weights)} is the base alone; encode with task='base', or give a task a weight"
        )
    prompts = router.prompts_of(blend) if prompts is None else dict(prompts)
    task = replace(TASKS.get(name, Task(name)), prompts=_with_document(prompts))
    configs = {part: router.model.peft_config[part] for part in blend}
    rank = sum(config.r for config in configs.values())
    if rank > MAX_RANK:
        raise ValueError(
            f"the blend would have rank {rank}, and {MAX_RANK} is the most; blend fewer tasks"
        )
    layers = {path: layer for path, layer in router.lora_layers() if layer.parts(blend)}
    targets = [config.target_modules for config in configs.values()]
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=task.dropout,
        # Adapters of unlike layers: the paths of all layers that one of them touches.
        target_modules=targets[0] if all(t == targets[0] for t in targets) else list(layers),
        bias="none",
    )
    tensors = {}
    for path, layer in layers.items():
        base, scalings = layer.get_base_layer().weight, dict(layer.parts(blend))
        a_rows, b_columns = [], []
        for part, part_config in configs.items():
            if part in scalings:
                a_rows.append(layer.lora_A[part].weight.detach().double())
                b_columns.append(scalings[part] * layer.lora_B[part].weight.detach().double())
            else:
                a_rows.append(base.new_zeros(part_config.r, base.shape[1], dtype=torch.float64))
                b_columns.append(base.new_zeros(base.shape[0], part_config.r, dtype=torch.float64))
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.cat(a_rows)
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.cat(b_columns, dim=1)
    router.add_adapter(task, config, tensors, source=f"the blend {name!r}")
    thetas = {router.theta_train.get(part) for part in blend}
    theta = thetas.pop()
    if theta is not None and not thetas:
        router.theta_train[name] = theta


# --------------------------------------------------------------------------------------- merging


@contextmanager
def merged(model: SentenceTransformer, name: TaskName) -> Iterator[SentenceTransformer]:
    """Encode with this task's adapter merged into copies of the weights, while the block runs.

    ``encode`` does so by itself for batches that are large enough, if there is memory
    (:class:`~st_jv5.modules.merging.MergedAdapters`). Inside the block it does so for every batch
    of the task, whatever memory is left. Other tasks, threads, training and saving are not
    affected: the backbone's own tensors are not touched.

    Example:
        >>> with merged(model, "retrieval"):
        ...     vectors = model.encode(["hello"], task="retrieval")
    """
    router = router_of(model)
    adapter = router.resolve(name)
    with nullcontext() if adapter is None else router.merging.pinned(adapter):
        yield model


def merge_task(model: SentenceTransformer, name: TaskName) -> SentenceTransformer:
    """Make a model of stock modules only, with one task's adapter, or a blend, merged into it.

    The new model has the task's prompts, and the model's rotation as a ``Dense``. Its vectors have
    unit length at full width; to cut them, pass ``normalize_embeddings=True``.

    Example:
        >>> stock = merge_task(model, "retrieval")
        >>> [type(module).__name__ for module in stock]
        ['Transformer', 'Pooling', 'Normalize']
    """
    router = router_of(model)
    adapter = router.resolve(name)
    weights = router.base_state_dict()
    if adapter is not None:
        for path, layer in router.lora_layers():
            if layer.parts(adapter):
                weights[f"{path}.weight"] = fold(layer, adapter)
    with tempfile.TemporaryDirectory() as folder:
        router.model.save_pretrained(folder, state_dict=weights)
        router.processor.save_pretrained(folder)
        transformer = Transformer(
            folder,
            model_kwargs={"dtype": router.model.dtype},
            modality_config=TEXT_ONLY,
            module_output_name="token_embeddings",
        )
    transformer.max_seq_length = router.max_seq_length
    rotation = rotation_in(model)
    return SentenceTransformer(
        modules=[
            transformer,
            Pooling(router.get_embedding_dimension(), pooling_mode(model)),
            *([] if rotation is None else [rotation.stock(router.model.dtype)]),
            Normalize(),
        ],
        prompts={n: router.prompt_for(adapter or BASE, p) or "" for n, p in model.prompts.items()},
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name="cosine",
        device=str(model.device),
    )
