"""Results as mteb's results repository wants them: its own files, under the model's own name."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args

import mteb
from huggingface_hub import ModelCard, try_to_load_from_cache
from mteb.cache import ResultCache
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from mteb.types import Licenses
from sentence_transformers import SentenceTransformer

from st_jv5.evaluation.record import main_rows

ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")


def submission_name(model: str, name: str = "") -> str:
    """``organisation/model@commit``: what a result belongs to.

    Args:
        model: A folder, or a Hub id, whose commit is that of its copy on this disk.
        name: What it is called on the Hub, for a folder; empty for a Hub id.

    Raises:
        ValueError: The name or the commit is not known.

    Example:
        >>> submission_name("out/demo/model", "me/mini")
        Traceback (most recent call last):
        ValueError: ...'me/mini'...
    """
    found = name or model
    if not name and not Path(model).is_dir() and (file := _file(model, "config.json")):
        found = f"{model}@{file.parent.name}"
    if not ON_THE_HUB.fullmatch(found):
        raise ValueError(
            f"a submission is of a model on the Hub, as organisation/model@commit (40 letters of "
            f"hash), not {found!r}; publish it, and say --submission-name organisation/model@commit"
        )
    return found


def _file(model: str, name: str) -> Path | None:
    """A file of a folder, or of a Hub model's copy on this disk; None: it is not there."""
    if Path(model).is_dir():
        return Path(model, name) if Path(model, name).is_file() else None
    found = try_to_load_from_cache(model, name)
    return Path(found) if isinstance(found, str) else None


def model_meta(model: SentenceTransformer, name: str, source: str = "") -> ModelMeta:
    """Metadata of a model, as mteb wants it.

    Args:
        model: Loaded.
        name: As :func:`submission_name` gives it.
        source: Folder or Hub id that it was loaded from: its card tells licence and base.

    Example:
        >>> model_meta(student, "me/mini@" + 40 * "0").embed_dim
        48
    """
    path, _, revision = name.partition("@")
    file = _file(source, "README.md") if source else None
    card = ModelCard.load(file).data if file else None
    license_ = card.license if card else None
    base = card.base_model if card else None
    return ModelMeta(
        loader=None,
        name=path,
        revision=revision,
        release_date=None,
        languages=None,
        n_parameters=sum(weights.numel() for weights in model.parameters()),
        memory_usage_mb=round(sum(w.nbytes for w in model.parameters()) / 2**20, 1),
        max_tokens=model.max_seq_length,
        embed_dim=model.get_embedding_dimension(),
        license=license_ if license_ in get_args(Licenses) else None,
        open_weights=True,
        public_training_code="https://pypi.org/project/st-jv5/",
        public_training_data=None,
        framework=["Sentence Transformers", "PyTorch", "safetensors"],
        reference=f"https://huggingface.co/{path}",
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=any(model.prompts.values()),
        training_datasets=None,
        adapted_from=base if isinstance(base, str) else None,
    )


def is_known(task: str) -> bool:
    """Whether a task is one of mteb's own.

    Example:
        >>> is_known("STSBenchmark"), is_known("WordNetSTS")
        (True, False)
    """
    try:
        mteb.get_task(task)
    except KeyError:
        return False
    return True


def write_submission(
    record: dict[str, Any],
    model: SentenceTransformer,
    meta: ModelMeta,
    folder: str | Path,
    cache: str | Path,
    tasks: Collection[str] | None = None,
) -> list[str]:
    """Write ``results/<org__model>/<commit>/<Task>.json`` and ``model_meta.json``.

    Args:
        record: Of :func:`~st_jv5.evaluation.scoring.evaluate`.
        model: Whose record it is.
        meta: Its metadata for mteb.
        folder: Where ``results/`` goes.
        cache: mteb's result cache of the record.
        tasks: Names of those that are wanted; None: all of the record.

    Returns:
        A line for each task that is left out, with the reason.

    Raises:
        ValueError: Nothing is left to submit.
    """
    source, target = ResultCache(Path(cache)), ResultCache(Path(folder))
    left_out, count = [], 0
    for task, row in main_rows(record["results"]).items():
        if tasks is not None and task not in tasks:
            continue
        found = source.load_task_result(task, record["weights"], row["revision"])
        why = ""
        if not is_known(task):
            why = "mteb does not know the task"
        elif (row["dim"], row["precision"]) != (model.get_embedding_dimension(), "float32"):
            why = f"scored at {row['dim']} dims, {row['precision']}, not in full"
        elif found is None:
            why = f"no result of mteb in {cache}; was it scored with another --cache?"
        if why:
            left_out.append(f"{task}: {why}")
        else:
            target.save_to_cache(found, meta)
            count += 1
    if not count:
        raise ValueError(f"nothing to submit: {'; '.join(left_out) or 'no task was scored'}")
    return left_out
