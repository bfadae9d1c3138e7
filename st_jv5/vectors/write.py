"""Encode a corpus to disk: in constant memory, in any number of processes, resumable.

Every shard is computed by itself, so it has the same bytes whichever process computes it and
whatever ran before.
"""

from __future__ import annotations

import logging
import multiprocessing
import queue
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from filelock import FileLock, Timeout
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from st_jv5.choices import DTYPES, SHARD_ROWS, Engine, VectorFiles
from st_jv5.encoding import Progress, prompt_named
from st_jv5.fingerprint import fingerprint
from st_jv5.modules.adapter_router import AdapterRouter
from st_jv5.modules.heads import head_of
from st_jv5.precision import check_precision, ranges_of
from st_jv5.task_table import BASE
from st_jv5.vectors.corpus import Corpus
from st_jv5.vectors.folder import VectorFolder
from st_jv5.vectors.work import Settings, Work, has_ranges

logger = logging.getLogger(__name__)

LOCK_SECONDS = 10.0
"""How long a folder is waited for: a process that was killed may still be dying."""


def encode_corpus(
    model: str,
    corpus: Corpus,
    folder: str | Path,
    *,
    task: str | None = None,
    prompt_name: str | None = None,
    dim: int | None = None,
    precision: str = "float32",
    batch_tokens: int | None = None,
    shard_rows: int = SHARD_ROWS,
    files: VectorFiles = "parquet",
    engine: Engine = "local",
    processes: int | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    max_tokens: int | None = None,
    mode: str | None = None,
) -> VectorFolder:
    """Encode every text of a corpus and write the vectors, shard by shard.

    The corpus is read once before anything is computed, so a row without a text is an error at the
    start and not after a million rows. After Ctrl-C or a kill, the same call continues; only
    unfinished shards are computed again, and the files have the same bytes as those of a run that
    was never stopped. If the folder exists, every shard is compared with its checksum; damaged
    shards are named in a warning and computed again.

    Args:
        model: Folder or Hub id of an st_jv5 model, or of any other text model (without ``task``,
            ``dim`` and ``mode``).
        corpus: The texts.
        folder: A new folder, or one that a call with the same settings began.
        task: Task or alias.
        prompt_name: ``query``, ``document``, ...; None is the task's default.
        dim: Cut the vectors to this many dims; they have length 1 again.
        precision: ``float32``, ``float16``, ``int8`` (its ranges, from texts all over the corpus,
            are saved in the folder) or ``binary`` (one bit per sign).
        batch_tokens: Most padded tokens of a batch; None chooses by the device.
        shard_rows: Rows of a shard.
        files: ``parquet`` or ``npy``.
        engine: ``local`` uses processes of this machine. ``ray`` uses workers of a Ray cluster (the
            running one, else a new one on this machine), which must have access to source, model
            and folder.
        processes: Number of processes; None is one per GPU, or one without a GPU. On a CPU they
            share its cores.
        revision: Branch, tag or commit of a Hub model.
        dtype: Dtype of the weights: float32, float16, bfloat16; None as the model is stored.
        max_tokens: Cut texts to this many tokens; None takes the model's limit.
        mode: ``"head"`` runs the base and then the task's head (:func:`st_jv5.fit_heads`).

    Raises:
        ValueError: A setting is wrong; a row has no text; the folder was begun with other settings;
            another process is writing to the folder; a vector is not finite (the message names the
            row).

    Example:
        >>> corpus = Corpus("training/data/wordnet.parquet", "gloss")
        >>> encode_corpus(saved_folder, corpus, "nowhere", task="retreival")
        Traceback (most recent call last):
        ValueError: unknown task 'retreival'; this model has: retrieval, ...
    """
    for name, value, known in (("engine", engine, Engine), ("files", files, VectorFiles)):
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, not {value!r}")
    for name, number in (
        ("batch_tokens", batch_tokens),
        ("shard_rows", shard_rows),
        ("processes", processes),
        ("max_tokens", max_tokens),
    ):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be positive, not {number}")
    check_precision(precision)
    if precision == "binary-rescored":
        raise ValueError("vectors are kept as 'binary'; rescoring is a way to search them")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    gpus = torch.cuda.device_count()
    count = processes or max(1, gpus)
    settings = Settings(model, revision, dtype, max_tokens, None, "", dim, batch_tokens, mode)
    loaded = settings.load()
    adapter, prompt = _route(loaded, task, prompt_name, mode)
    settings = replace(settings, task=adapter, prompt=prompt)
    width = settings.encode(loaded, ["width"]).shape[1]
    path = Path(folder)
    manifest = {
        "model": model,
        "revision": revision,
        "model_hash": fingerprint(loaded, heads=mode is not None),
        "task": adapter,
        "prompt": prompt,
        "dim": width,
        "precision": precision,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "max_tokens": loaded.max_seq_length,
        "batch_tokens": batch_tokens,
        "corpus": corpus.describe(),
        "shard_rows": shard_rows,
        "files": files,
        **({} if mode is None else {"mode": mode}),
    }
    VectorFolder.check_begun(path, manifest)
    seen = corpus.summary()
    manifest |= {"corpus_sha256": seen.sha256, "rows": seen.rows}
    vector_folder = VectorFolder.create(path, manifest)
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise ValueError(f"another process is writing to {path}") from None
    with lock:
        for left in path.glob(".*.tmp"):  # by a process that was killed
            left.unlink()
        for number, fault in vector_folder.damaged().items():
            logger.warning("%s", fault)
            vector_folder.remove(number)
        if precision == "int8" and not has_ranges(vector_folder):
            vector_folder.write_ranges(ranges_of(settings.encode(loaded, seen.sample)))
        todo = vector_folder.missing()
        if not todo:
            return vector_folder
        done = seen.rows - sum(map(vector_folder.rows_of, todo))
        shown = {"unit": "text", "desc": path.name, "smoothing": 0.1, "disable": None}
        with tqdm(total=seen.rows, initial=done, **shown) as bar:  # on a terminal alone
            work = Work(settings, corpus, path)
            if engine == "ray":
                from st_jv5.vectors.ray_engine import write_shards

                del loaded
                write_shards(work, todo, processes, bar)
            elif count > 1 and len(todo) > 1:
                del loaded
                _in_processes(work, todo, min(count, len(todo)), gpus, bar)
            else:
                work.model = loaded
                work.run(todo, bar)
    return vector_folder


def _route(
    model: SentenceTransformer, task: str | None, prompt_name: str | None, mode: str | None
) -> tuple[str | None, str]:
    """Adapter and prompt."""
    prompt = prompt_named(model, prompt_name)
    router = model[0]
    if not isinstance(router, AdapterRouter):
        if task is not None:
            raise ValueError(
                f"a model of {type(router).__name__} has no tasks; leave out task={task!r}"
            )
        if mode is not None:
            raise ValueError(
                f"a model of {type(router).__name__} has no heads; leave out mode={mode!r}"
            )
        return None, prompt or ""
    adapter = router.resolve(task) or BASE
    if not isinstance(adapter, str):
        raise ValueError(
            f"vectors on disk name an adapter, not a blend, {adapter!r}; make it one with "
            f"st_jv5.blend_tasks and save the model"
        )
    if mode is not None:
        head_of(model, task, mode)
        return adapter, router.head_prompt(task, prompt) or ""
    return adapter, (prompt if task is None else router.prompt_for(task, prompt)) or ""


# ------------------------------------------------------------------------------------- processes


def _in_processes(work: Work, todo: Sequence[int], count: int, gpus: int, bar: Progress) -> None:
    context = multiprocessing.get_context("spawn")
    news: Any = context.Queue()
    threads = max(1, torch.get_num_threads() // count)
    workers = []
    for index in range(count):
        device = f"cuda:{index % gpus}" if gpus else None
        arguments = (work, todo[index::count], device, threads, news)
        workers.append(context.Process(target=_worker, args=arguments, daemon=True))
    try:
        for worker in workers:
            worker.start()
        left = count
        while left:
            try:
                what, value = news.get(timeout=1)
            except queue.Empty:
                for worker in workers:
                    if worker.exitcode not in (None, 0):
                        raise ValueError(
                            f"a worker ended with exit code {worker.exitcode} (-9: it was killed, "
                            f"perhaps for memory); run it again to continue"
                        ) from None
                continue
            if what == "error":
                raise ValueError(value)
            if what == "done":
                left -= 1
            else:
                bar.update(value)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


class _News:
    """A progress bar in another process."""

    def __init__(self, news: Any) -> None:
        self.news = news

    def update(self, n: int) -> None:
        self.news.put(("rows", n))


def _worker(
    work: Work, numbers: Sequence[int], device: str | None, threads: int, news: Any
) -> None:
    torch.set_num_threads(threads)
    try:
        work.model = work.settings.load(device)
        work.run(numbers, _News(news))
        news.put(("done", 0))
    except KeyboardInterrupt:
        pass
    except Exception as error:
        news.put(("error", f"{type(error).__name__}: {error}"))
