"""A Transformer module with any number of named LoRA adapters, one chosen per forward pass."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, overload

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import check_target_module_exists
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn

from st_jv5.backbone import rope
from st_jv5.backbone.eos import append_eos as make_tokenizer_append_eos
from st_jv5.backbone.eos import save_tokenizer
from st_jv5.files import read_json, write_json
from st_jv5.folders.adapter_file import CONFIG_FILE as ADAPTER_CONFIG
from st_jv5.folders.adapter_file import WEIGHTS_FILE as ADAPTER_WEIGHTS
from st_jv5.folders.adapter_file import Adapter, base_of, check_finite, read_adapter
from st_jv5.folders.configs import (
    FORMAT,
    check_kernels,
    check_settings,
    check_task_name,
    check_tokenizer,
)
from st_jv5.folders.headers import Shapes, dtypes_of
from st_jv5.folders.licenses import Licenses, show_licenses
from st_jv5.folders.trust import READ_FROM_HUB, check_folder, check_stock, warn_of_others
from st_jv5.modules.heads import head_of
from st_jv5.modules.merging import MergedAdapters
from st_jv5.modules.owner import Owner, belong
from st_jv5.modules.padding import mask_for
from st_jv5.modules.registry import Registry
from st_jv5.modules.routed_linear import Route, RoutedLinear, active, routed
from st_jv5.projection import WEIGHTS_FILE, Projection
from st_jv5.task_table import (
    BASE,
    DEFAULT_PROMPT_NAME,
    PROMPTS,
    Blend,
    Task,
    TaskName,
    unknown_name,
)
from st_jv5.texts import check_texts

SETTINGS_FILE = "st_jv5.json"
REQUIREMENT = ">=0.1,<1"

TOKENISED_TOGETHER = 512
"""Texts of one call of the tokenizer, whose own record of a text is many times its tokens."""

TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
"""Pinned, so that a tokenizer with a chat template does not turn texts into chats."""


class AdapterRouter(Transformer):
    """The first module of a model: tokenizer, backbone and LoRA adapters.

    Four things can name the adapter of a forward pass; the first that does decides: the ``task`` of
    ``encode``; the batch's features (in training ``args.router_mapping`` puts the task there);
    :func:`st_jv5.train_task`, for the trainer's batches only; ``default_task``. If none does, a
    model without adapters runs as its base, and a model with adapters raises an error. ``"base"``
    is the backbone without adapters. A mapping from tasks to weights is a blend, the weighted sum
    of their updates: ``{"retrieval": 0.7, "classification": 0.3}``.

    Build one with :func:`st_jv5.new_student` or load a saved folder with ``SentenceTransformer``.

    Args:
        model_name_or_path: Backbone folder or Hub id.
        append_eos: Make the tokenizer end every input with EOS or SEP, also one that is truncated.
            A tokenizer that already does so is left as it is. False does not change the tokenizer.
        matryoshka_dims: Dims that the model is trained for, or will be, in ascending order.
        default_task: Task of calls that name no task; None: they are an error if the model has
            adapters.
        transformer_kwargs: Arguments of sentence-transformers' ``Transformer``.

    Attributes:
        registry: The :class:`~st_jv5.modules.registry.Registry` of the adapters.
        training_task: The task of the trainer's batches, set by :func:`st_jv5.train_task`.
        merging: The :class:`~st_jv5.modules.merging.MergedAdapters`: which adapters are merged into
            copies of the weights, and when.
        projection: The :class:`~st_jv5.projection.Projection` to the teacher's space, or None.
        base_prompts: Prompt name -> text, as they were set for the base. An adapter may have other
            prompts.
        licenses: The :class:`~st_jv5.folders.licenses.Licenses` of what the model was made of.
        theta_train: Adapter, or ``"base"`` -> RoPE's theta during its training, if known; set by
            :func:`st_jv5.backbone.rope.train_at`.

    Example:
        >>> isinstance(model[0], AdapterRouter)
        True
        >>> model[0].resolve("query")
        'retrieval'
    """

    forward_kwargs: ClassVar[set[str]] = {"task", "mode"}

    def __init__(
        self,
        model_name_or_path: str,
        *,
        append_eos: bool = False,
        matryoshka_dims: Sequence[int] = (),
        default_task: TaskName | None = None,
        **transformer_kwargs: Any,
    ) -> None:
        if Path(model_name_or_path).is_dir():
            check_stock(model_name_or_path)
        transformer_kwargs |= {
            "modality_config": TEXT_ONLY,
            "module_output_name": "token_embeddings",
        }
        self.registry = Registry()
        super().__init__(model_name_or_path, **transformer_kwargs)
        self.append_eos = append_eos
        self.matryoshka_dims = tuple(matryoshka_dims)
        self.default_task = default_task
        self.training_task: str | None = None
        self.projection: Projection | None = None
        self.licenses = Licenses()
        self.base_prompts: dict[str, str] = dict(PROMPTS)
        theta = rope.theta_of(self.config)
        self.theta_train: dict[str, float] = {} if theta is None else {BASE: theta}
        self.merging = MergedAdapters()
        self._base_sha256: str | None = None
        self._as_stored = False
        self._model = Owner()
        if append_eos:
            make_tokenizer_append_eos(self.tokenizer)

    def _load_model(self, *args: Any, **model_kwargs: Any) -> Any:
        """The backbone; an error if a tensor is missing or a number is not finite."""
        path, config = args[0], args[2]
        if "attn_implementation" not in model_kwargs:
            check_kernels(f"{path}/config.json", config.to_dict())
        asked = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = super()._load_model(*args, **{**model_kwargs, **asked})
        missing = {name for name in info["missing_keys"] if "pooler." not in name}  # not used here
        if missing:
            raise ValueError(
                f"the weights of {path} lack {min(missing)}, one of {len(missing)} tensors that "
                f"{type(model).__name__} would make up at random"
            )
        for name, found, wanted in sorted(info["mismatched_keys"], key=str):
            raise ValueError(
                f"the weights of {path} have {name} of shape {tuple(found)}, but config.json asks "
                f"for {tuple(wanted)}"
            )
        check_finite(f"the weights of {path}", dict(model.named_parameters()))
        return model

    def on_model_ready(self, model: Any) -> None:
        belong(self, model)

    @property
    def tasks(self) -> dict[str, Task]:
        """Name -> :class:`~st_jv5.task_table.Task` of each adapter."""
        return self.registry.tasks

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name -> text, of the model; of the base, for a router without a model."""
        own = getattr(self._model(), "prompts", {})
        return {**self.base_prompts, **{name: t for name, t in own.items() if t is not None}}

    @property
    def base_task(self) -> Task:
        """The task of stage 1: the query prompt for queries, the document prompt for all others."""
        return Task(BASE, prompts=self.prompts)

    # -------------------------------------------------------------- a batch, from text to tokens

    def preprocess(
        self,
        inputs: Sequence[str],
        prompt: str | None = None,
        task: TaskName | None = None,
        dim: int | None = None,
        mode: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Tokenise texts, each with the prompt of its task in front.

        sentence-transformers resolves ``prompt`` before it calls this and falls back to the default
        prompt (``document``, where the model's user names no other), so ``task="query"`` turns that
        prompt into the query prompt, and ``task="document"`` into the document prompt. If no prompt
        is given at all (by a trainer's ``router_mapping``), ``"query"`` and ``"document"`` add
        their prompts. A prompt is recognised by its text: if a model's document prompt is empty,
        ``prompt=""`` is the document prompt.

        Args:
            inputs: Texts; anything else is an error that names its index.
            prompt: The prompt's text, or None.
            task: Task, alias or blend; an unknown one is an error here, before any forward pass.
            dim: Ignored here; :class:`~st_jv5.modules.matryoshka.MatryoshkaTruncate` uses it.
            mode: ``"head"``: the base's own prompt, whatever the task is.
        """
        check_texts(inputs, " of the batch")
        if mode is not None:
            head_of(self._model(), task, mode)
            prompt = self.head_prompt(task, prompt)
        elif task is not None:
            prompt = self.prompt_for(task, prompt)
        inputs = list(inputs)
        blocks: list[dict[str, Any]] = []
        # Under flash attention all texts are put into one row, which cannot be joined.
        together = len(inputs) if self.can_flatten_inputs else TOKENISED_TOGETHER
        for begin in range(0, max(1, len(inputs)), max(1, together)):
            block = inputs[begin : begin + together]
            with self.registry.tokenizing:
                blocks.append(super().preprocess(block, prompt=prompt, **kwargs))
        features = blocks[0] if len(blocks) == 1 else self._joined(blocks)
        self._check_length(features)
        features.pop("prompt_length", None)  # only pooling without the prompt would read it
        return features

    def _check_length(self, features: Mapping[str, Any]) -> None:
        """Raise an error, before any forward pass, if texts are longer than the model takes."""
        if self.can_flatten_inputs:  # all texts stand in one row
            return
        most = getattr(self.config, "max_position_embeddings", None)
        tokens, limit = features["input_ids"].shape[-1], self.max_seq_length
        if limit is not None and tokens > limit:
            raise ValueError(
                f"a text has {tokens} tokens though max_seq_length is {limit}: the tokenizer adds "
                f"{self.tokenizer.num_special_tokens_to_add()} of its own; set a larger one"
            )
        if most is not None and tokens > most and self.counts_from_the_left():
            raise ValueError(
                f"a text has {tokens} tokens and this backbone {most} positions, but "
                f"max_seq_length is {limit}; set it to {most} or less"
            )

    def _joined(self, blocks: list[dict[str, Any]]) -> dict[str, Any]:
        left = self.tokenizer.padding_side == "left"
        padding = {"input_ids": self.tokenizer.pad_token_id}

        def join(key: str) -> Any:
            values = [block[key] for block in blocks]
            if not isinstance(values[0], Tensor):
                return values[0]
            width = max(value.shape[1] for value in values)
            missing = [width - value.shape[1] for value in values]
            return torch.cat(
                [
                    nn.functional.pad(v, (m, 0) if left else (0, m), value=padding.get(key, 0))
                    for v, m in zip(values, missing, strict=True)
                ]
            )

        return {key: join(key) for key in blocks[0]}

    def prompt_for(self, task: TaskName, prompt: str | None) -> str | None:
        """The prompt for a task's texts: the task's own prompt of that name, if it has one.

        A blend has the prompts of its adapters; of two with the same name, that of the larger
        weight.

        A prompt in the model's ``prompts`` that differs from the base's was set by the user; it is
        then used for every task.

        Args:
            task: Task, alias or blend.
            prompt: Text of one of the model's prompts, any other text, or None.
        """
        _check_type(task)
        side = next((n for n in ([task] if isinstance(task, str) else task) if n in PROMPTS), None)
        if isinstance(task, Mapping):
            blend = self.blend(task)
            owner = Task(BASE, self.prompts_of(blend)) if blend else self.base_task
        elif side:
            # sentence-transformers names these two when it only counts tokens, too; forward will
            # refuse them if there is no adapter that answers to them.
            owner = next((t for t in self.tasks.values() if task in t.aliases), self.base_task)
        else:
            name = self.resolve(task)
            owner = self.tasks[name] if name else self.base_task
        prompts = self.prompts
        default = getattr(self._model(), "default_prompt_name", None) or DEFAULT_PROMPT_NAME
        named = [key for key, text in prompts.items() if text == prompt]
        asked = default if default in named else next(iter(named), None)
        if side and (prompt is None or asked == default):
            asked = side
        if asked is None:
            return prompt
        if prompts[asked] != self.base_prompts.get(asked):
            return prompts[asked]
        return owner.prompts.get(asked, prompt)

    def head_prompt(self, task: TaskName | None, prompt: str | None) -> str | None:
        """The prompt for a text that goes through a task's head: the base's own prompt."""
        name = getattr(self._model(), "default_prompt_name", None) or DEFAULT_PROMPT_NAME
        if isinstance(task, str) and task in PROMPTS and prompt in (None, self.prompts.get(name)):
            return self.prompts[task]
        return self.prompt_for(BASE, prompt)

    # ------------------------------------------------------------ a batch, from tokens to states

    def forward(
        self,
        features: dict[str, Any],
        task: TaskName | None = None,
        mode: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Set ``features["token_embeddings"]`` ``(n, tokens, width)``, computed with one adapter.

        With ``features["runs"]``, a list of task and number of rows, each row has its own adapter.
        In the mode ``"head"`` the states are the base's.
        """
        if mode is not None:
            task = BASE
        runs = features.get("runs") or [(task or features.get("task"), 0)]
        with self.registry.using(lambda: [self.resolve(name) for name, _ in runs], _names) as found:
            if "runs" in features:
                counts = [count for _, count in runs]
                route = Route(runs=tuple(zip(found, counts, strict=True)))
            else:
                route = self._route(found[0], features["input_ids"].numel())
            return self._forward(features, route, **kwargs)

    def _forward(self, features: dict[str, Any], route: Route, **kwargs: Any) -> dict[str, Any]:
        mask = features.get("attention_mask")
        if mask is not None:
            with self.registry.changing:  # it looks at every module
                kwargs |= mask_for(self.model, mask)
        if mask is not None and "position_ids" not in features and self.counts_from_the_left():
            # Left padding would otherwise shift every text's absolute positions.
            kwargs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
        if self.training and self.tasks and getattr(self.model, "is_gradient_checkpointing", False):
            self._checkpoint_with_adapter()
        with routed(route):
            output: dict[str, Any] = super().forward(features, **kwargs)
        return output

    def _route(self, adapter: str | Blend | None, tokens: int) -> Route:
        if adapter is None or self.training or not torch.is_inference_mode_enabled():
            return Route(adapter)  # encode sets inference mode
        layers = lambda: [layer for _, layer in self.lora_layers()]  # noqa: E731
        return Route(adapter, self.merging.weights(adapter, tokens, layers))

    @overload
    def resolve(self, task: str) -> str | None: ...

    @overload
    def resolve(self, task: TaskName | None) -> str | Blend | None: ...

    def resolve(self, task: TaskName | None) -> str | Blend | None:
        """The adapter that a task name or alias means, or a blend; None is the base."""
        _check_type(task)
        answered = {name for known in self.tasks.values() for name in (known.name, *known.aliases)}
        if isinstance(task, str) and task in PROMPTS and task not in answered:
            task = None  # encode_query and encode_document of a model without a retrieval adapter
        if task is None and not torch.is_inference_mode_enabled():  # encode sets inference mode
            task = self.training_task
        if task is None:
            task = self.default_task
        if task is None:
            if self.tasks:
                raise ValueError(
                    f"this model has adapters and no default task; name one of: "
                    f"{', '.join([*self.tasks, BASE])} (encode(..., task=...), "
                    f"model[0].default_task = ..., or st_jv5.train_task(model, ...) to train one)"
                )
            return None
        if isinstance(task, Mapping):
            blend = self.blend(task)
            if len(blend) == 1 and 1.0 in blend.values():
                return next(iter(blend))
            return blend or None
        if task == BASE:
            return None
        if task in self.tasks:
            return task
        for name, known in self.tasks.items():
            if task in known.aliases:
                return name
        raise ValueError(unknown_name("task", task, [*self.tasks, BASE], "this model"))

    def blend(self, weights: Mapping[str, float]) -> Blend:
        """A blend with its adapters' own names, without the base and without weights of 0.

        Raises:
            ValueError: No task is named, a task is unknown or named twice, or a weight is not
                finite.
        """
        if not weights:
            raise ValueError(
                "a blend needs tasks and their weights, {'retrieval': 0.7, 'classification': 0.3}"
            )
        own = {alias: name for name, task in self.tasks.items() for alias in (name, *task.aliases)}
        weights_of: dict[str, float] = {}
        for name, weight in weights.items():
            adapter = BASE if name == BASE else own.get(name)
            if adapter is None:
                raise ValueError(unknown_name("task", name, [*self.tasks, BASE], "this model"))
            if adapter in weights_of:
                raise ValueError(f"{dict(weights)} names {adapter} twice; add the weights up")
            weights_of[adapter] = weight
        return Blend({name: w for name, w in Blend(weights_of).items() if w and name != BASE})

    def prompts_of(self, blend: Blend) -> dict[str, str]:
        """Prompt name -> text: the prompts of a blend's adapters."""
        lightest_first = [self.tasks[name].prompts for name in reversed(list(blend))]
        return {name: text for prompts in lightest_first for name, text in prompts.items()}

    @property
    def theta_serve(self) -> float | None:
        """RoPE's theta in use; None for learned positions."""
        return rope.theta_of(self.config)

    def counts_from_the_left(self) -> bool:
        """Whether padding in front would shift a text's positions (learned ones, as in BERT).

        In RoBERTa and similar models positions follow from the padding token; rotary positions are
        relative.
        """
        embeddings = getattr(self.model, "embeddings", None)
        table = getattr(embeddings, "position_embeddings", None)
        return isinstance(table, nn.Embedding) and table.padding_idx is None

    def _checkpoint_with_adapter(self) -> None:
        # Checkpointing runs a block again during backward, on autograd's own thread on a GPU: the
        # route must be set there anew, so the checkpoint function is given contexts.
        def contexts() -> tuple[Any, Any]:
            return nullcontext(), routed(active.route)

        for module in self.model.modules():
            function = getattr(module, "_gradient_checkpointing_func", None)
            if function is None or "context_fn" in getattr(function, "keywords", {}):
                continue
            if getattr(function, "keywords", {}).get("use_reentrant"):
                raise ValueError(
                    "adapters need gradient_checkpointing_kwargs={'use_reentrant': False}"
                )
            module._gradient_checkpointing_func = partial(function, context_fn=contexts)

    # ------------------------------------------------------------------------- adapters and base

    def add_adapter(
        self,
        task: Task,
        config: LoraConfig,
        tensors: Mapping[str, Tensor] | None = None,
        *,
        source: str | Path = "the adapter",
    ) -> None:
        """Add an adapter for ``task``, fresh or with the given weights (PEFT's names).

        Raises:
            ValueError: The name is already used or not allowed, or the tensors do not fit. The
                message begins with ``source``; the model is not changed.
        """
        with self.registry.changing:
            self._check_name(task)
            self._check_prompts(task)
            if tensors is not None:
                self._check_layers(config, tensors, source)
            try:
                self._inject(task.name, config)
                if tensors is not None:
                    self.fill_adapter(task.name, tensors, source)
            except BaseException:
                self._eject(task.name)
                raise
            self.registry.add(task)
        self.merging.clear()

    def remove_adapter(self, name: str) -> None:
        """Remove an adapter, after forward passes in other threads that use it have ended.

        Raises:
            ValueError: There is no adapter of this name, or it is (part of) the default task.
        """
        if name not in self.tasks:
            raise ValueError(unknown_name("task", name, self.tasks, "this model"))
        default = self.default_task
        if default is not None and name in _names([self.resolve(default)]):
            raise ValueError(
                f"{name!r} is what the default task, {default!r}, needs; set model[0].default_task "
                f"to another or to None first"
            )
        with self.registry.changing:
            self.registry.remove(name)
            self._eject(name)
        if self.training_task == name:
            self.training_task = None
        self.theta_train.pop(name, None)
        self.merging.clear()

    def _inject(self, name: str, config: LoraConfig) -> None:
        # Tensors made in inference mode, inside encode, could not be trained.
        with torch.inference_mode(False):
            layers = self._adapted_layers(config)
            for layer in layers:
                layer.update_layer(name, config.r, config.lora_alpha, config)
                for half in (layer.lora_A, layer.lora_B):
                    half[name].requires_grad_(False)
            if layers:
                self.model.peft_config[name] = config
            else:
                self._inject_by_peft(name, config)

    def _adapted_layers(self, config: LoraConfig) -> list[RoutedLinear]:
        """The layers that a config names, if each carries adapters already; else none.

        PEFT's own way to a further adapter walks all modules of all adapters, several times.
        """
        if config.rank_pattern or config.alpha_pattern:
            return []
        named = [one for at, one in self.linear_layers() if check_target_module_exists(config, at)]
        adapted = [layer for layer in named if isinstance(layer, RoutedLinear)]
        return adapted if len(adapted) == len(named) else []

    def _inject_by_peft(self, name: str, config: LoraConfig) -> None:
        config._register_custom_module({nn.Linear: RoutedLinear})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            inject_adapter_in_model(config, self.model, adapter_name=name)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    def _eject(self, name: str) -> None:
        for _, layer in self.lora_layers():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the adapter that PEFT makes active instead
                layer.delete_adapter(name)
        getattr(self.model, "peft_config", {}).pop(name, None)

    def _check_layers(
        self, config: LoraConfig, tensors: Mapping[str, Tensor], source: str | Path
    ) -> None:
        """The layers that the config names are those that have tensors, of their shapes."""
        layers = self.linear_shapes()
        names = tuple(f".{name}" for name in config.target_modules or ())
        chosen = {layer for layer in layers if f".{layer}".endswith(names)}
        wanted = {
            f"base_model.model.{layer}.lora_{half}.weight": shape
            for layer in chosen
            for half, shape in (
                ("A", (config.r, layers[layer][1])),
                ("B", (layers[layer][0], config.r)),
            )
        }
        self._check_shapes(wanted, tensors, source)

    def linear_layers(self) -> list[tuple[str, nn.Linear | RoutedLinear]]:
        """Path in the backbone -> layer, of every linear layer, with adapters and without.

        The adapters' own modules are not walked, so it takes as long with 200 adapters as with one.
        """
        layers: list[tuple[str, nn.Linear | RoutedLinear]] = []

        def walk(path: str, module: nn.Module) -> None:
            for name, child in module.named_children():
                if isinstance(child, nn.Linear | RoutedLinear):
                    layers.append((f"{path}{name}", child))
                else:
                    walk(f"{path}{name}.", child)

        with self.registry.changing:
            walk("", self.model)
        return layers

    def linear_shapes(self) -> dict[str, tuple[int, ...]]:
        """Path -> shape of the weight, of every linear layer of the backbone."""
        return {path: tuple(one.weight.shape) for path, one in self.linear_layers()}

    def _check_shapes(
        self, wanted: Shapes, tensors: Mapping[str, Tensor], source: str | Path
    ) -> None:
        if missing := sorted(set(wanted) ^ set(tensors)):
            raise ValueError(
                f"{source} does not fit this backbone: {len(missing)} tensors are on one side "
                f"only, such as {missing[0]}"
            )
        for key, shape in wanted.items():
            if shape != tuple(tensors[key].shape):
                raise ValueError(
                    f"{source}: {key} is {tuple(tensors[key].shape)}, this backbone needs {shape}"
                )

    def _check_name(self, task: Task) -> None:
        check_task_name(task.name)
        for known in self.tasks.values():
            if clash := {task.name, *task.aliases} & {known.name, *known.aliases}:
                names = ", ".join(sorted(clash))
                raise ValueError(f"this model has {names} already; choose another name")

    def _check_prompts(self, task: Task) -> None:
        own, its = self.prompts, task.prompts
        if own["query"] == own["document"] and its.get("query", its["document"]) != its["document"]:
            raise ValueError(
                f"the task {task.name!r} has a prompt for queries, {its['query']!r}, and one for "
                f"documents, {its['document']!r}, but this model has {own['query']!r} for both, so "
                f"prompt_name could not tell which is meant; give the model prompts that differ "
                f"(st_jv5.new_student(..., prompts=...)), or the task equal ones"
            )

    def fill_adapter(self, name: str, tensors: Mapping[str, Tensor], source: str | Path) -> None:
        """Replace an adapter's weights."""
        own = self.adapter_tensors(name)
        self._check_shapes({k: tuple(t.shape) for k, t in own.items()}, tensors, source)
        with torch.inference_mode(False), torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(tensors[key])

    def lora_layers(self) -> Iterator[tuple[str, RoutedLinear]]:
        """Path in the backbone -> layer, for every linear layer that carries adapters."""
        for path, layer in self.linear_layers():
            if isinstance(layer, RoutedLinear):
                yield path, layer

    def adapter_tensors(self, name: str) -> dict[str, Tensor]:
        """One adapter's parameters, under the names that PEFT uses."""
        return {
            f"base_model.model.{path}.{half}.weight": getattr(layer, half)[name].weight
            for path, layer in self.lora_layers()
            for half in ("lora_A", "lora_B")
            if name in layer.lora_A
        }

    def base_parameters(self) -> Iterator[nn.Parameter]:
        """The backbone's own parameters, without those of adapters."""
        with self.registry.changing:
            named = list(self.model.named_parameters())
        return (parameter for name, parameter in named if not _is_lora(name))

    def base_state_dict(self) -> dict[str, Tensor]:
        """The backbone's weights under the names of its stock class."""
        with self.registry.changing:
            state = self.model.state_dict()
        return {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in state.items()
            if not _is_lora(name)
        }

    def base_sha256(self) -> str:
        """Hash of the backbone's weights: names, dtypes, shapes and bytes.

        A model that was loaded with adapters keeps the hash that its folder names while its base is
        frozen; so a model loaded in bfloat16 still has the same base.
        """
        if self._base_sha256 and not any(p.requires_grad for p in self.base_parameters()):
            return self._base_sha256
        return self._sha256_of_weights()

    def checked_base_sha256(self) -> str:
        """:meth:`base_sha256`, compared with the weights if these are as they were loaded.

        Raises:
            ValueError: The folder that the model was loaded from names another base.
        """
        recorded = self.base_sha256()
        if self._as_stored and recorded != (own := self._sha256_of_weights()):
            raise ValueError(
                f"this model's {SETTINGS_FILE} names the base {recorded[:12]}, but its weights are "
                f"{own[:12]}: they were replaced, so no adapter of that base fits them"
            )
        return recorded

    def _sha256_of_weights(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.base_state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(flat.numpy().data)
        return digest.hexdigest()

    # -------------------------------------------------------------------------------- the folder

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write backbone, tokenizer, adapters, projection and ``st_jv5.json``."""
        if isinstance(self.default_task, Mapping):
            raise ValueError(
                f"the default task is a blend, {dict(self.default_task)}, but a saved model "
                f"must name an adapter; make the blend one with st_jv5.blend_tasks and set "
                f"model[0].default_task to its name, or to None"
            )
        folder = Path(output_path)
        base_sha256 = self.base_sha256()
        self.model.save_pretrained(output_path, state_dict=self.base_state_dict())
        rope.write_both_keys(folder / "config.json")
        save_tokenizer(self.processor, output_path)
        self.save_config(output_path)
        for stale in (folder / "adapters").glob("*"):
            if stale.name not in self.tasks:
                shutil.rmtree(stale)
        for name in self.tasks:
            self.take_adapter(name, base_sha256).save(folder / "adapters" / name)
        if self.projection is not None:
            self.projection.save(folder)
        write_json(
            folder / SETTINGS_FILE,
            {
                "format": FORMAT,
                "tasks": {
                    name: {"prompts": dict(task.prompts), "aliases": list(task.aliases)}
                    for name, task in self.tasks.items()
                },
                "default_task": self.default_task,
                "append_eos": self.append_eos,
                "matryoshka_dims": list(self.matryoshka_dims),
                "theta_train": self.theta_train,
                "theta_serve": self.theta_serve,
                "base_sha256": base_sha256,
                "licenses": asdict(self.licenses),
                **({} if self.base_prompts == PROMPTS else {"prompts": self.base_prompts}),
            },
        )
        # sentence-transformers reads `requirements` (a reader without st_jv5 is told what to
        # install) and never writes it; it wrote this file just before it saves the modules.
        config_path = folder / "config_sentence_transformers.json"
        if config_path.exists():
            config = read_json(config_path)
            write_json(config_path, {**config, "requirements": {"st-jv5": REQUIREMENT}})

    def take_adapter(self, name: str, base_sha256: str | None = None) -> Adapter:
        """One adapter as an :class:`~st_jv5.folders.adapter_file.Adapter`; its tensors are shared.

        For several adapters pass :meth:`base_sha256`, which reads every weight, once.
        """
        return Adapter(
            task=self.tasks[name],
            config=self.model.peft_config[name],
            tensors=self.adapter_tensors(name),
            base_sha256=base_sha256 or self.base_sha256(),
        )

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        *args: Any,
        model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> AdapterRouter:
        """Load a saved folder; ``model_kwargs={"default_task": name}`` sets the default task."""
        if (backend := kwargs.get("backend", "torch")) != "torch":
            raise ValueError(
                f"backend {backend!r} cannot route adapters; merge one task into a stock model "
                f"(st_jv5.merge_task) and export that"
            )
        folder = _local(model_name_or_path, kwargs)
        warn_of_others(folder, check_folder(folder))
        settings = check_settings(folder / SETTINGS_FILE)
        model_kwargs = dict(model_kwargs or {})
        default_task = model_kwargs.pop("default_task", settings["default_task"])
        model_kwargs["use_safetensors"] = True  # a pickle is never the fallback
        try:
            router = super().load(str(folder), *args, model_kwargs=model_kwargs, **kwargs)
        except Exception:
            check_tokenizer(folder)  # whose errors name no file
            raise
        rows = router.config.vocab_size if hasattr(router.config, "vocab_size") else None
        if rows is not None and len(router.tokenizer) > rows:
            raise ValueError(
                f"{folder}/tokenizer_config.json adds tokens up to {len(router.tokenizer)}, but "
                f"the backbone has {rows}"
            )
        router._take_settings(folder, settings)
        show_licenses(router.licenses, model_name_or_path)
        router.default_task = default_task
        if default_task is not None:
            router.resolve(default_task)
        return router

    def _take_settings(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Adapters, projection and settings of ``st_jv5.json``, from a folder that was checked."""
        self.base_prompts = settings.get("prompts", dict(PROMPTS))
        self.append_eos = settings["append_eos"]
        if self.append_eos:
            make_tokenizer_append_eos(self.tokenizer)
        self.matryoshka_dims = tuple(settings["matryoshka_dims"])
        self.theta_train = settings["theta_train"]
        for name, stored in settings["tasks"].items():
            task = Task(name, prompts=stored["prompts"], aliases=tuple(stored["aliases"]))
            within = folder / "adapters" / name
            path = within / ADAPTER_WEIGHTS
            config, tensors, metadata = read_adapter(within / ADAPTER_CONFIG, path)
            if (base := base_of(metadata, path)) not in (None, settings["base_sha256"]):
                raise ValueError(
                    f"{path} was trained on another base: {str(base)[:12]}, this folder's "
                    f"is {settings['base_sha256'][:12]}"
                )
            try:
                self.add_adapter(task, config, tensors, source=path)
            except ValueError as error:
                raise ValueError(f"{folder / SETTINGS_FILE}: {error}") from error
        if self.tasks:
            self._base_sha256 = settings["base_sha256"]
            own = {str(tensor.dtype) for tensor in self.base_state_dict().values()}
            self._as_stored = own == dtypes_of(folder)
        if (folder / WEIGHTS_FILE).exists():
            # It learns where a distillation loss says so; elsewhere no checkpoint needs it.
            self.projection = Projection.load(folder).requires_grad_(False)
        self.licenses = Licenses.read(settings.get("licenses", {}), folder / SETTINGS_FILE)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """All modules at one moment, whatever adapters other threads add meanwhile."""
        found = super().named_modules(*args, **kwargs)
        yield from islice(found, 1)  # itself: ``model.device`` asks for no more, at each batch
        with self.registry.changing:
            modules = list(found)
        yield from modules

    def train(self, mode: bool = True) -> AdapterRouter:
        """Set the training mode, and free the memory of merged copies, which it does not need."""
        if mode:
            self.merging.clear()
        with self.registry.changing:
            super().train(mode)
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> AdapterRouter:
        self.merging.clear()  # other tensors may come to lie in the same places
        with self.registry.changing:
            super()._apply(*args, **kwargs)
        return self

    def __repr__(self) -> str:
        return (
            f"AdapterRouter({type(self.model).__name__}, tasks={list(self.tasks)}, "
            f"default_task={self.default_task!r})"
        )


def _local(name: str, settings: Mapping[str, Any]) -> Path:
    """A model's folder: the one of that name, or the files of its repository on the Hub."""
    if Path(name).is_dir():
        return Path(name)
    folder = snapshot_download(
        name,
        revision=settings.get("revision"),
        allow_patterns=list(READ_FROM_HUB),
        token=settings.get("token"),
        cache_dir=settings.get("cache_folder"),
        local_files_only=bool(settings.get("local_files_only")),
    )
    return Path(folder)


def _check_type(task: object) -> None:
    if not isinstance(task, str | Mapping | None):
        raise ValueError(
            f"a task is a name, or a blend's weights by task, not {task!r:.80}; for texts with "
            f"different tasks use st_jv5.encode_mixed"
        )


def _names(adapters: Iterable[str | Blend | None]) -> set[str]:
    """The adapters of some routes."""
    parts = ([one] if isinstance(one, str) else one or () for one in adapters)
    return {name for part in parts for name in part}


def _is_lora(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name
