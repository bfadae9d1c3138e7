"""sentence-transformers' trainer for adapters: what it trains, what it saves, when it stops."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy, deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, IterableDataset
from safetensors.torch import load_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.data_collator import (
    SentenceTransformerDataCollator,
)
from torch import Tensor, nn
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader
from transformers import TrainerCallback
from transformers.trainer import SCALER_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import has_length

from st_jv5.adapters import load_adapter, router_of, train_task
from st_jv5.encoding import that_pads
from st_jv5.files import write_tensors
from st_jv5.functional import wide
from st_jv5.losses.composite import CompositeLoss
from st_jv5.machine.cpu import attention_in_float32, give_back_memory
from st_jv5.machine.cuda import without_cudnn_attention
from st_jv5.projection import WEIGHTS_FILE as PROJECTION_FILE
from st_jv5.projection import Projection
from st_jv5.task_table import BASE
from st_jv5.trainer.compilation import compiled_layers
from st_jv5.trainer.data_sets import add_prompts, own_copy, text_columns, trainer_prompts
from st_jv5.trainer.resuming import (
    CannotResumeError,
    check_checkpoint,
    check_state,
    data_settings,
    differences,
    last_checkpoint,
    loss_settings,
    run_settings,
    write_settings,
)
from st_jv5.trainer.sampling import EpochBatchSampler
from st_jv5.trainer.settings import (
    check_arguments,
    check_eval_names,
    check_gpus,
    check_loss_names,
    check_names,
    check_tokens,
)

logger = logging.getLogger(__name__)

LOSS_FILE = "loss.safetensors"
"""The trained parameters of the loss that are not the model's, such as a temperature."""

TEMPERATURE = r"(^|\.)log_temperature$"
"""The parameters of losses that are the logarithm of a learned temperature."""

GIVE_BACK_STEPS = 5
"""Steps after which freed memory is given back to the system, on a CPU."""

# ------------------------------------------------------------------------------------- batches


@dataclass
class AdapterCollator(SentenceTransformerDataCollator):
    """The stock collator with a token limit per data set, which hands the texts on, too.

    The trainer takes the texts out again before the loss; they name the rows of a batch that went
    wrong.
    """

    max_tokens: int | Mapping[str, int] | None = None
    _data_set: str | None = field(default=None, init=False, repr=False)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        self._data_set = features[0].get("dataset_name") if features else None
        batch = super().__call__(features)
        batch["texts"] = [
            {k: v for k, v in row.items() if k not in (*self.valid_label_columns, "dataset_name")}
            for row in features
        ]
        return batch

    def _get_max_length_for_task(self, task: str | None) -> int | None:
        if isinstance(self.max_tokens, Mapping):
            return self.max_tokens.get(self._data_set or "")
        return self.max_tokens


class AdapterTrainer(SentenceTransformerTrainer):
    """A SentenceTransformerTrainer for the adapters, or the base, of an st_jv5 model.

    It freezes everything but the adapters of ``tasks``, sets ``args.prompts`` to the prompts of
    model and tasks unless they are given, sets the step in :class:`~st_jv5.CompositeLoss`, and
    stops when the loss breaks. The arguments and data sets that are passed in are not changed.

    A checkpoint holds the trained adapters, the trained projection, the loss's own parameters, and
    the states of optimizer, scheduler and random numbers, but not the frozen base. To resume, build
    the trainer with the model that the run began with. With ``tasks="base"`` a checkpoint holds the
    whole model. ``save_model`` and ``model.save_pretrained`` always write the whole model.

    On a CPU a resumed run ends with bit for bit the weights of a run that was not stopped, from any
    checkpoint and with every batch sampler of sentence-transformers and st_jv5. Evaluations during
    training do not change the random numbers of training. A checkpoint records its data, arguments
    and versions (``run.json``); resuming with others that would change the weights is an error. On
    a GPU torch promises the same bits only with ``full_determinism=True`` in the arguments.
    Measured on an NVIDIA H200 (torch 2.11, 12 steps of an adapter in bfloat16): two runs and a
    resumed one had the same bits, with it and without.

    ``torch_compile=True`` compiles each layer of the backbone by itself
    (:func:`~st_jv5.trainer.compilation.compiled_layers`) while :meth:`train` runs, in any number of
    processes. (sentence-transformers would wrap the whole model, which changes the names of the
    weights.)

    Args:
        model: An st_jv5 model.
        args: sentence-transformers' training arguments.
        tasks: The adapter to train, or ``"base"``; or a dict from data set to adapter, which trains
            several adapters, with each batch the adapter of its data set. The dict may name data
            sets of ``eval_dataset``, too.
        train_dataset: A data set, or several by name, as in sentence-transformers.
        eval_dataset: As ``train_dataset``; its texts get the prompts of its task.
        max_tokens: Texts are cut to this many tokens: one limit for all, or a dict from data set to
            limit. None takes the model's ``max_seq_length``.
        max_loss_ratio: Stop when a batch's loss is more than this many times the running mean of
            its data set (after 20 batches; a mean below 0.01 counts as 0.01). None stops only when
            the loss is not finite. The default is our choice.
        temperature_rate: Peak learning rate of the logarithm of a learned temperature. It follows
            the schedule of the other rates, without weight decay. AdamW changes a parameter by
            about its rate in each step, so a LoRA's rate of 2e-5 would hardly change a temperature.
            The default is our choice; if ``args.learning_rate_mapping`` names the parameter, its
            rate is used.
        trainer_kwargs: Further arguments of sentence-transformers' trainer.

    Raises:
        ValueError: An argument is wrong; a weight would be trained in half precision; fsdp is set;
            one process sees several GPUs, over which transformers would split each batch;
            ``torch_compile`` is combined with ``gradient_checkpointing``; a data set has columns or
            rows that cannot be trained on (the message names them).
        FloatingPointError: During training the loss, a gradient or a weight is not finite, or the
            loss is above ``max_loss_ratio``. The message names the step, the data set and the rows;
            nothing is saved.

    Example:
        >>> trainer = AdapterTrainer(student, args, tasks="base", train_dataset=pairs, loss=loss)
        >>> trainer.args.prompts
        {'query': 'Query: ', 'positive': 'Document: '}
    """

    data_collator_class = AdapterCollator

    def __init__(
        self,
        model: SentenceTransformer,
        args: SentenceTransformerTrainingArguments | None = None,
        *,
        tasks: str | Mapping[str, str],
        train_dataset: Dataset | DatasetDict | dict[str, Dataset] | IterableDataset | None = None,
        eval_dataset: Dataset | DatasetDict | dict[str, Dataset] | IterableDataset | None = None,
        max_tokens: int | Mapping[str, int] | None = None,
        max_loss_ratio: float | None = 100.0,
        temperature_rate: float = 1e-3,
        **trainer_kwargs: Any,
    ) -> None:
        if args is None:
            args = SentenceTransformerTrainingArguments(output_dir="tmp_trainer")
        args = copy(args)
        check_arguments(args)
        check_gpus(args.n_gpu)
        train_dataset = own_copy(train_dataset, "train_dataset")
        eval_dataset = own_copy(eval_dataset, "eval_dataset")
        check_names(train_dataset, eval_dataset, tasks, max_tokens, args)
        check_loss_names(trainer_kwargs.get("loss"))
        if max_tokens is not None:
            if trainer_kwargs.get("data_collator") is not None:
                raise ValueError("max_tokens needs the trainer's own data collator")
            check_tokens(model, max_tokens)
        if max_loss_ratio is not None and not max_loss_ratio > 1:
            raise ValueError(f"max_loss_ratio must be above 1, not {max_loss_ratio}")
        if not temperature_rate >= 0:
            raise ValueError(f"temperature_rate must be 0 or more, not {temperature_rate}")
        of_data = [tasks] if isinstance(tasks, str) else [tasks[name] for name in train_dataset]
        chosen = list(dict.fromkeys(of_data))
        train_task(model, chosen[0] if len(chosen) == 1 else chosen)
        router = router_of(model)
        self.tasks = tasks
        self.adapters = [str(router.resolve(name)) for name in chosen if name != BASE]
        self.max_tokens = max_tokens
        self.max_loss_ratio = max_loss_ratio
        self.temperature_rate = temperature_rate
        self._has_own_prompts = bool(args.prompts)
        args.prompts = args.prompts or {}
        args.router_mapping = dict(args.router_mapping or {})
        self._in_checkpoint = False
        self._watched: list[_Batch] = []
        self._mean_loss: dict[str, tuple[int, float]] = {}
        self._steps_with: dict[str, Tensor | int] = {}
        self._data_settings: dict[str, Any] | None = None
        self._take_prompts(model, args, train_dataset, "train_dataset")
        self._trained_with = {
            "tasks": of_data,
            "max_tokens": max_tokens,
            "temperature_rate": temperature_rate,
            "prompts": deepcopy(args.prompts),
            "router_mapping": deepcopy(args.router_mapping),
        }
        self._take_prompts(model, args, eval_dataset, "eval_dataset")
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **trainer_kwargs,
        )
        self._check_precision()
        self._composites = [m for m in self._loss.modules() if isinstance(m, CompositeLoss)]
        self._trained_with["loss"] = loss_settings(self.loss)  # before training moves them
        self.add_callback(_GradientCheck(self))
        if self.args.device.type == "cpu":
            self.add_callback(_MemoryCallback())

    def _take_prompts(
        self,
        model: SentenceTransformer,
        args: SentenceTransformerTrainingArguments,
        data: Any,
        where: str,
    ) -> None:
        """Put prompts, and with several adapters each one's columns, of data sets into ``args``."""
        sets = data if isinstance(data, dict) else {} if data is None else {"": data}
        if any(data_set.column_names is None for data_set in sets.values()):
            return  # sentence-transformers says what such a data set lacks
        if sets and not self._has_own_prompts:
            add_prompts(args.prompts, trainer_prompts(model, self.tasks, data), where)
        if isinstance(self.tasks, Mapping) and len(set(self.tasks.values())) > 1:
            for name, data_set in sets.items():
                args.router_mapping[name] = dict.fromkeys(text_columns(data_set), self.tasks[name])

    def create_accelerator_and_postprocess(self) -> None:
        """As in transformers, but compiling is left to :meth:`train`."""
        super().create_accelerator_and_postprocess()
        if self.args.torch_compile:
            from accelerate.utils import TorchDynamoPlugin

            self.accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend="no")

    def get_data_collator(self, *args: Any, **kwargs: Any) -> AdapterCollator:
        collator: AdapterCollator = super().get_data_collator(*args, **kwargs)
        model = getattr(collator.preprocess_fn, "__self__", None)
        if isinstance(model, SentenceTransformer):
            collator.preprocess_fn = that_pads(model).preprocess
        collator.max_tokens = self.max_tokens
        return collator

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in transformers, but without temperatures, which must not decay."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not re.search(TEMPERATURE, name)]

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, Any]:
        """As in sentence-transformers, with a separate learning rate for temperatures."""
        if any(re.search(TEMPERATURE, name) for name, _ in self._trained()):
            args = copy(args)  # the user's own keep what they say
            own = {TEMPERATURE: self.temperature_rate}
            args.learning_rate_mapping = own | args.learning_rate_mapping
        return super().get_optimizer_cls_and_kwargs(args, model)

    def _check_precision(self) -> None:
        """What learns has to be float32: most of AdamW's steps are lost in three digits."""
        for name, parameter in self._trained():
            if parameter.dtype != wide(parameter.dtype):
                raise ValueError(
                    f"{name} would be trained in {str(parameter.dtype).removeprefix('torch.')}, "
                    f"where most steps are rounded away. Make it float32 (loss.float() makes all), "
                    f"and run the forward passes in bfloat16 with bf16=True in the arguments"
                )

    @property
    def _loss(self) -> nn.Module:
        return nn.ModuleDict(self.loss) if isinstance(self.loss, dict) else self.loss

    # ------------------------------------------------------------------------------------ batches

    def get_batch_sampler(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> BatchSampler | None:
        """As in sentence-transformers; one that trains depends on seed and epoch alone."""
        sampler = super().get_batch_sampler(
            dataset, batch_size, drop_last, valid_label_columns, generator, seed
        )
        return (
            self._by_epoch(sampler, generator, seed) if dataset is self.train_dataset else sampler
        )

    def get_multi_dataset_batch_sampler(
        self,
        dataset: ConcatDataset[Any],
        batch_samplers: list[BatchSampler],
        generator: torch.Generator | None = None,
        seed: int | None = 0,
    ) -> BatchSampler:
        """As in sentence-transformers; one that trains depends on seed and epoch alone."""
        sampler = super().get_multi_dataset_batch_sampler(dataset, batch_samplers, generator, seed)
        trained = self.train_dataset.values() if isinstance(self.train_dataset, dict) else ()
        if [*map(id, dataset.datasets)] == [*map(id, trained)]:
            return self._by_epoch(sampler, generator, seed)
        return sampler

    def _by_epoch(self, sampler: Any, generator: Any, seed: Any) -> EpochBatchSampler:
        return EpochBatchSampler(sampler, generator, seed, self._has_done_all_steps)

    def _has_done_all_steps(self) -> bool:
        """Resumed at its end; transformers would train one step more."""
        return self.is_in_train and 0 < self.state.max_steps <= self.state.global_step

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As in sentence-transformers, but the sampler knows the epoch in several processes, too.

        Raises:
            ValueError: There are too few rows for a batch in each process.
        """
        loader: DataLoader[Any] = super().get_train_dataloader()
        shard: Any = loader.batch_sampler
        if isinstance(getattr(shard, "batch_sampler", None), EpochBatchSampler):
            shard.set_epoch = shard.batch_sampler.set_epoch
        if has_length(loader) and not len(loader):
            raise ValueError(
                f"train_dataset has no whole batch of {self.args.train_batch_size} rows for each "
                f"of {self.args.world_size} processes; add rows or shrink the batch"
            )
        return loader

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in sentence-transformers, with the prompts of the task and other random numbers.

        Raises:
            ValueError: As for ``eval_dataset`` of the class.
        """
        if not (eval_dataset is None or isinstance(eval_dataset, str) or _is_named(eval_dataset)):
            eval_dataset = own_copy(eval_dataset, "eval_dataset")
            if isinstance(self.train_dataset, dict):
                own = self.args.prompts if self._has_own_prompts else None
                check_eval_names(self.train_dataset, eval_dataset, self.tasks, own)
            self._take_prompts(self.model, self.args, eval_dataset, "eval_dataset")
        gpus = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(gpus):  # training goes on as if nothing had been evaluated
            found: dict[str, float] = super().evaluate(eval_dataset, *args, **kwargs)
        return found

    # ---------------------------------------------------------------------------------- one batch

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """As in sentence-transformers, with the step set; a broken training loss is an error."""
        batch = _Batch(inputs.get("dataset_name"), inputs.pop("texts", []))
        for composite in self._composites:
            composite.step = self.state.global_step
        found = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training and not (args or kwargs.get("return_outputs")):
            self._watch(batch, float(found.detach()), inputs)
        return found

    def track_loss_components(self, loss: dict[str, Tensor]) -> None:
        """Count the steps of each term as well; of a batch that has no such term it is 0."""
        super().track_loss_components(loss)
        if self.model.training:
            for name, value in loss.items():
                self._steps_with[name] = self._steps_with.get(name, 0) + (value.detach() != 0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a term as its mean over the steps that had it, 0 where none had.

        sentence-transformers divides by all steps: where data sets of other terms take turns, a
        term's mean would rise and fall with their share.
        """
        if "loss" in logs:
            sums = self.accum_loss_components["train"]
            for name, count in self._steps_with.items():
                sums[name] = sums[name] * (sums["steps"] / torch.as_tensor(count).clamp(min=1))
            self._steps_with.clear()
        super().log(logs, start_time)

    def _watch(self, batch: _Batch, loss: float, inputs: dict[str, Any]) -> None:
        name = batch.data_set or ""
        count, mean = self._mean_loss.get(name, (0, 0.0))
        if not math.isfinite(loss):
            self._stop(f"the loss is {loss}", [batch], self._broken_rows(inputs))
        elif (
            self.max_loss_ratio is not None
            and count >= 20
            and loss > self.max_loss_ratio * max(mean, 0.01)
        ):
            self._stop(f"the loss is {loss:.4g} after a mean of {mean:.4g}", [batch])
        weight = max(1 / (count + 1), 0.01)  # the mean of all batches, later of the last hundred
        self._mean_loss[name] = (count + 1, mean + weight * (loss - mean))
        self._watched.append(batch)
        del self._watched[: -max(1, self.args.gradient_accumulation_steps)]

    @torch.no_grad()
    def _broken_rows(self, inputs: dict[str, Any]) -> list[int]:
        """The batch's rows with a vector or label that is not finite; none if that is not known."""
        features, labels = self.collect_features(inputs)
        finite = [self.model(dict(one))["sentence_embedding"].isfinite() for one in features]
        if labels is not None and labels.is_floating_point():  # a NaN in a vector: it is missing
            finite.append(labels.isfinite() if labels.ndim == 1 else ~labels.isinf())
        broken = torch.stack([~one.flatten(1).all(dim=1).cpu() for one in map(_two_d, finite)])
        rows: list[int] = broken.any(dim=0).nonzero().flatten().tolist()
        return rows

    def _stop(self, what: str, batches: Sequence[_Batch], rows: Sequence[int] = ()) -> None:
        told = "; ".join(self._described(batch, rows) for batch in batches)
        last = last_checkpoint(self.args.output_dir)
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise FloatingPointError(
            f"{what} at step {self.state.global_step}, {told}. Nothing is saved; {kept}. Look at "
            f"these rows, lower the learning rate or clip gradients (max_grad_norm)"
        )

    def _described(self, batch: _Batch, rows: Sequence[int]) -> str:
        data = self.train_dataset
        if isinstance(data, dict):
            data = data[batch.data_set] if batch.data_set else None
        chosen = [batch.texts[row] for row in rows or range(len(batch.texts))]
        numbers = _row_numbers(data, chosen) if isinstance(data, Dataset) else []
        where = f"data set {batch.data_set!r}, " if batch.data_set else ""
        shown = "; ".join(
            ", ".join(f"{column}: {str(text)[:80]!r}" for column, text in row.items())
            for row in chosen[:3]
        )
        more = f" and {len(chosen) - 3} more" if len(chosen) > 3 else ""
        cut = ", ..." if len(numbers) > 20 else ""
        return f"{where}rows {numbers[:20]}{cut} ({shown}{more})"

    # -------------------------------------------------------------------------------- checkpoints

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        *,
        resume_anyway: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, but a resumed run ends with the bits of a run that was not stopped.

        Args:
            resume_from_checkpoint: Folder of a checkpoint; True: the last complete one in
                ``args.output_dir``.
            resume_anyway: Resume even if data, arguments or versions differ from the checkpoint's,
                and log what differs.
            kwargs: Further arguments of transformers' ``train``.

        Raises:
            ValueError: The checkpoint is incomplete, or was written with other data, arguments or
                versions; the message names files and values.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"{self.args.output_dir} has no complete checkpoint to resume from"
                )
        if resume_from_checkpoint:
            self._check_resumes(Path(str(resume_from_checkpoint)), resume_anyway)
        self._check_precision()  # bf16_full_eval leaves the model in bfloat16
        self._mean_loss.clear()
        self._steps_with.clear()
        self._watched.clear()
        with attention_in_float32(), without_cudnn_attention(), self._compiled():
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _check_resumes(self, checkpoint: Path, anyway: bool) -> None:
        check_state(checkpoint)
        changed = differences(checkpoint, self._settings())
        if self.args.ignore_data_skip:
            changed["ignore_data_skip"] = "ignore_data_skip=True begins the epoch's data anew"
        if changed and not anyway:
            lines = "\n  ".join(changed.values())
            raise CannotResumeError(
                f"{checkpoint} cannot be resumed: with these differences it would be another run:"
                f"\n  {lines}\nSet them back, begin again in another output_dir, or call "
                f"train(resume_anyway=True)"
            )
        if changed:
            lines = "; ".join(changed.values())
            logger.warning("%s: continues with other settings: %s", checkpoint, lines)
        files = [f"adapters/{name}/adapter_model.safetensors" for name in self.adapters]
        if self.adapters and self._trained_projection() is not None:
            files.append(PROJECTION_FILE)
        if self._loss_parameters():
            files.append(LOSS_FILE)
        if self.accelerator.scaler is not None:
            files.append(SCALER_NAME)
        processes = None if "processes" in changed else self.args.world_size
        check_checkpoint(checkpoint, processes, files)

    def _settings(self) -> dict[str, Any]:
        """All that the bits of this run depend on; the data is hashed once."""
        if self._data_settings is None:
            self._data_settings = data_settings(self.train_dataset)
        width = self.model.max_seq_length
        own = run_settings(self.args, max_seq_length=width, **self._trained_with)
        return {**own, "train_dataset": self._data_settings}

    def _compiled(self) -> AbstractContextManager[None]:
        if not self.args.torch_compile:
            return nullcontext()
        args = self.args
        return compiled_layers(self.model, args.torch_compile_backend, args.torch_compile_mode)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        for name, parameter in self._trained():
            if not bool(torch.isfinite(parameter).all()):
                self._stop(f"{name} is not finite", self._watched)
        self._in_checkpoint = True
        try:
            super()._save_checkpoint(*args, **kwargs)
        finally:
            self._in_checkpoint = False

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:  # transformers calls it in every process
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        router = router_of(self.model)
        if self._in_checkpoint and self.adapters:
            router._base_sha256 = router.base_sha256()  # frozen: hashed once in a run
            for name in self.adapters:
                router.take_adapter(name).save(folder / "adapters" / name)
            if (projection := self._trained_projection()) is not None:
                projection.save(folder)
        else:  # without a model card: its usage snippet would encode with every save
            self.model.save_pretrained(str(folder), create_model_card=False)
        if self._in_checkpoint and (own := self._loss_parameters()):
            write_tensors(folder / LOSS_FILE, own)
        if self._in_checkpoint:
            write_settings(folder, self._settings())
        torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        folder = Path(checkpoint_path)
        if not self.adapters:
            super()._load_from_checkpoint(checkpoint_path)
        for name in self.adapters:
            load_adapter(self.model, folder / "adapters" / name)
        if self.adapters and (projection := self._trained_projection()) is not None:
            file = folder / PROJECTION_FILE
            projection.fill(load_file(file), file)
        if trained := self._loss_parameters():
            stored = load_file(folder / LOSS_FILE)
            if set(stored) != set(trained):
                raise ValueError(
                    f"{folder / LOSS_FILE} holds {sorted(stored)}, but the loss trains "
                    f"{sorted(trained)}; resume with the loss of the run"
                )
            with torch.no_grad():
                for name, parameter in trained.items():
                    parameter.copy_(stored[name])

    def _load_best_model(self) -> None:
        # sentence-transformers logs an error and goes on with the last weights.
        logger.info("loading the best checkpoint, %s", self.state.best_model_checkpoint)
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self._loss.named_parameters() if p.requires_grad)

    def _trained_projection(self) -> Projection | None:
        projection = router_of(self.model).projection
        if projection is None or not any(p.requires_grad for p in projection.parameters()):
            return None
        return projection

    def _loss_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters of the loss that do not live in the model."""
        in_model = {id(parameter) for parameter in self.model.parameters()}
        return {name: p for name, p in self._trained() if id(p) not in in_model}


# ------------------------------------------------------------------------------ what goes wrong


@dataclass
class _Batch:
    data_set: str | None
    texts: list[dict[str, Any]]


class _GradientCheck(TrainerCallback):
    """Stops before a step whose gradients are not finite, which clipping would spread."""

    def __init__(self, trainer: AdapterTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.accelerator.scaler is not None:
            return  # float16 scales, and skips such steps by itself
        gradients = [p.grad for _, p in self.trainer._trained() if p.grad is not None]
        if gradients and not bool(torch.isfinite(nn.utils.get_total_norm(gradients))):
            self.trainer._stop("a gradient is not finite", self.trainer._watched)


class _MemoryCallback(TrainerCallback):
    """Gives freed memory back every few steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % GIVE_BACK_STEPS == 0:
            give_back_memory()


def _is_named(data: Any) -> bool:
    """Whether its rows carry the name of their data set: one of several, made ready before."""
    return isinstance(data, Dataset) and len(data) > 0 and "dataset_name" in data[0]


def _two_d(tensor: Tensor) -> Tensor:
    return tensor[:, None] if tensor.ndim == 1 else tensor


def _row_numbers(data: Dataset, texts: Sequence[Mapping[str, Any]]) -> list[int]:
    """Where rows with these texts stand in their data set."""
    columns = list(texts[0]) if texts else []
    plain = data if data.format["type"] == "custom" else data.with_format(None)
    rows = list(zip(*(plain[column] for column in columns), strict=True)) if columns else []
    place = {row: index for index, row in reversed(list(enumerate(rows)))}
    return [place[key] for text in texts if (key := tuple(text.values())) in place]
