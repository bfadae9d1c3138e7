"""How much of the start stays in a base, and how strongly an adapter acts: chosen on validation.

Training on little text gains on text like it and loses elsewhere. Between the weights that training
began with and those it ended with lie models that keep most of both; so do weaker adapters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.util import is_sentence_transformer_model

from st_jv5.adapters import Adapter, load_adapter
from st_jv5.files import write_json
from st_jv5.recipe.config import AdapterPhase
from st_jv5.recipe.context import Run
from st_jv5.recipe.train import fit
from st_jv5.student import interpolate
from st_jv5.task_table import BASE
from st_jv5.teacher.sources import resolve_model

logger = logging.getLogger("st_jv5.recipe")

SAFE = 0.5
"""Default share of the start; notes/log.md has what it costs and saves."""


TOLERANCE = 0.5
"""Points that a family of far tasks may lose on validation; so much is noise there (our choice)."""


def shares_kept(run: Run) -> tuple[float, ...]:
    """The recipe's ``keep``; where it says nothing, what is safe for its base.

    None of a finished model, which is not trained.
    """
    if run.recipe.keep is not None:
        return run.recipe.keep
    if run.recipe.student.model:
        return ()
    spec = run.recipe.student
    own = spec.layers is None and not spec.pooling and spec.prompts == "own"
    own = own and is_sentence_transformer_model(resolve_model(spec.base))
    return (SAFE,) if own else (0.0,)


def choose_base(run: Run, end: Path, folder: Path) -> SentenceTransformer:
    """The base that the adapters will stand on, with a projection that fits it.

    Args:
        run: Its recipe says how much of the start to try (``keep``).
        end: What the base phases left.
        folder: Folder for the scores; ``keep.json`` has all of them.
    """

    def between(share: float) -> SentenceTransformer:
        if share == 1:
            return run.new_student()
        trained = SentenceTransformer(str(end))
        return interpolate(run.new_student(), trained, 1 - share) if share else trained

    share = best(run, shares_kept(run), 1.0, between, folder, "keep", BASE)
    base, phase = between(share), run.recipe.stage1
    assert phase is not None
    if share:
        base[0].projection = SentenceTransformer(str(end))[0].projection
        if phase.fit_projection:
            fit(run, base, phase, run.role_stores(phase))
    return base


def choose_strength(
    run: Run,
    task: str,
    phase: AdapterPhase,
    base: Path,
    adapter: Adapter,
    folder: Path,
) -> Adapter:
    """An adapter at the best of the phase's strengths; ``strength.json`` has all scores."""

    def at(strength: float) -> SentenceTransformer:
        model = SentenceTransformer(str(base))
        load_adapter(model, adapter.scaled(strength))
        return model

    return adapter.scaled(best(run, phase.strengths, 0.0, at, folder, "strength", task))


def best(
    run: Run,
    candidates: Sequence[float],
    untrained: float,
    model_of: Callable[[float], SentenceTransformer],
    folder: Path,
    what: str,
    task: str,
) -> float:
    """The candidate with the best mean of near and far on validation; a single one unmeasured.

    Tasks whose labels the adapter was trained on are left out.

    One whose far mean lies below the untrained model's is passed over, and so is one that loses
    more than :data:`TOLERANCE` points in a family of far tasks (``far clustering``), which a mean
    may hide: of the others the best is taken, and where there is no other, the one with the best
    far mean.

    Process 0 does this alone. The others wait, :data:`st_jv5.recipe.processes.PATIENCE` at most.

    Args:
        run: Its recipe names the tasks.
        candidates: Numbers that ``model_of`` makes models of.
        untrained: The number of the model as it was before this training.
        model_of: Number -> model.
        folder: Folder for the scores; ``WHAT.json`` has all of them.
        what: What is chosen, for files and messages.
        task: An adapter, scored on its own tasks; or the base, on all.
    """
    if len(candidates) == 1:
        return candidates[0]
    from st_jv5.recipe.results.measure import validation_means  # needs the extra `eval`

    found: dict[float, Mapping[str, float]] = {}
    for candidate in dict.fromkeys([*candidates, untrained]):
        model = model_of(candidate)
        found[candidate] = validation_means(run, model, task, folder / f"{what}-{candidate:g}")
        told = ", ".join(f"{side} {mean:.1f}" for side, mean in found[candidate].items())
        logger.info("%s %g: %s (validation)", what, candidate, told)
    harmless = [one for one in candidates if _harmless(found[one], found[untrained])]
    by = "both" if harmless else "far"
    chosen = max(harmless or candidates, key=lambda one: found[one][by])
    logger.info("%s: %g is taken", what, chosen)
    all_means = {f"{one:g}": dict(means) for one, means in found.items()}
    write_json(folder / f"{what}.json", {"chosen": chosen, "validation": all_means})
    return chosen


def _harmless(means: Mapping[str, float], untrained: Mapping[str, float]) -> bool:
    """Whether far text is left as good as it was, on the whole and in each family of tasks."""
    return all(
        means[side] >= untrained[side] - (0.0 if side == "far" else TOLERANCE)
        for side in untrained
        if side.startswith("far")
    )
