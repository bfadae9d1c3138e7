"""Which task serves some examples best: the base, one of a model's adapters, or a blend."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from st_jv5.adapters import router_of
from st_jv5.encoding import Array, encode
from st_jv5.roles import WANTED, read_rows, spread
from st_jv5.task_table import BASE, Blend, TaskName

LEAST_EXAMPLES = 8
RESAMPLES = 1000
CHUNK_ELEMENTS = 1 << 18
"""Resamples x pairs of texts that are weighed at once: more leave a core's cache."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "pairs": ("query", "document"),
    "scored": ("sentence1", "sentence2", "score"),
    "labelled": ("text", "label"),
}
"""Kind of example -> what it is made of."""

MEASURES = {
    "pairs": "how often a query and its document are nearer than one and another's",
    "scored": "correlation of the pairs' cosines with their numbers",
    "labelled": "how often two texts of one label are nearer than two of two labels",
}

USUAL: Mapping[str, tuple[str, ...]] = {
    "pairs": ("retrieval",),
    "scored": ("text-matching",),
    "labelled": ("clustering", "classification"),
}
"""Kind of example -> the tasks that are made for it."""

Statistic = Callable[[Array], Array]
"""Rows of sample indices ``(resamples, n)`` -> the score in percent on each ``(resamples,)``."""


@dataclass(frozen=True)
class Difference:
    """The difference of two scores on the same examples, in points of percent."""

    value: float
    low: float
    high: float
    """95% of a paired bootstrap lie in ``low``..``high``."""

    @property
    def is_certain(self) -> bool:
        """Whether it is more than noise: 0 lies outside the interval."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class Choice:
    """The task that serves some examples best, and how sure that is."""

    task: str | Blend
    """What to pass to ``encode`` as ``task``: a task's name or a blend."""
    scores: Mapping[str | Blend, float]
    """Candidate -> its score in percent; the base is first."""
    above_base: Mapping[str | Blend, Difference]
    """Candidate -> its score minus the base's."""
    runner_up: str | Blend | None
    """The best candidate whose vectors differ from the choice's; None if there is none."""
    above_runner_up: Difference | None
    """The choice's score minus that of ``runner_up``; below 0 if the choice is the task made for
    this kind of example and ``runner_up`` is better, but only within noise."""
    examples: int
    """Number of examples, repeats counted once."""
    measure: str
    """What the scores measure, in words."""

    @property
    def is_certain(self) -> bool:
        """Whether the choice beats every candidate that differs from it by more than noise."""
        return self.above_runner_up is not None and self.above_runner_up.low > 0

    def __str__(self) -> str:
        width = max(len(str(name)) for name in self.scores)
        lines = [f"{self.measure}, in percent, on {self.examples} examples; above the base:"]
        for name, score in sorted(self.scores.items(), key=lambda one: -one[1]):
            gap = "" if name == BASE else f"   {self.above_base[name]}"
            lines.append(f"  {name!s:{width}}  {score:6.2f}{gap}")
        return "\n".join([*lines, self.advice])

    @property
    def advice(self) -> str:
        """What to do, in words."""
        if self.above_runner_up is None:
            return f"Take {self.task}: no candidate differs from it."
        if self.above_runner_up.value < 0:
            return (
                f"Take {self.task}, which is made for such examples: {self.runner_up} is "
                f"{-self.above_runner_up.value:.2f} above it, within noise."
            )
        beaten = "more than noise" if self.is_certain else "within noise"
        second = f"{self.runner_up} is next, {self.above_runner_up.value:.2f} below it ({beaten})."
        if self.task == BASE:
            return f"Take base: no other is better on these examples; {second}"
        if not self.above_base[self.task].is_certain:
            return (
                f"Take {self.task}, the best on these examples, but within noise of the base: more "
                f"examples may change that."
            )
        told = f"Take {self.task}: better than the base by more than noise"
        return f"{told}." if self.runner_up == BASE else f"{told}; {second}"


def choose_task(
    model: SentenceTransformer,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    scored: Sequence[tuple[str, str, float]] | None = None,
    labelled: Sequence[tuple[str, Hashable]] | None = None,
    candidates: Sequence[TaskName] | None = None,
) -> Choice:
    """Find the task that serves a use best, by examples of it: at least 8, better 64 or more.

    Pass one kind of example:

    ========  =======================  ===========================================================
    kind      an example               a candidate's score, in percent
    ========  =======================  ===========================================================
    pairs     query, its document      how often a query and its document are nearer than a query
                                       and another's document
    scored    text, text, number       correlation of the pairs' cosines with their numbers
    labelled  text, label              how often two texts of one label are nearer than two of two
                                       labels
    ========  =======================  ===========================================================

    On so few examples, ranks and accuracies hardly differ between candidates. The scores above do.
    They also stay the same when all cosines are scaled by one factor, as a stronger adapter may
    scale them. They compare candidates on the same examples; scores on different examples cannot be
    compared. The candidate with the best score is chosen, unless a task that is made for this kind
    of example (:data:`USUAL`) is within noise of it: then that task is chosen. Of equal scores the
    first counts, and the base comes before all others. Queries and documents get their prompts;
    other texts get the document prompt. Two pairs that are equally near count as in the wrong
    order.

    Args:
        model: An st_jv5 model.
        pairs: 8 or more ``(query, document)``.
        scored: 8 or more ``(text, text, number)``; the numbers may be on any scale, or only 0 and
            1.
        labelled: 8 or more ``(text, label)``, with at least two different labels.
        candidates: Tasks, and blends as mappings; None: each of the model's adapters. The base is
            always a candidate, too.

    Returns:
        A :class:`Choice`; ``print`` shows its table and advice.

    Raises:
        ValueError: No kind of example is given, or several; there are fewer than 8 different
            examples, or one has not the shape of its kind; all have the same document, number or
            label, or every text has a label that no other has; the model lacks a candidate.

    Example:
        >>> topics = [("a sonata", "music"), ("an opera", "music"), ("a proton", "physics")]
        >>> topics += [("a flute", "music"), ("a waltz", "music"), ("a quark", "physics")]
        >>> topics += [("a photon", "physics"), ("a meson", "physics")]
        >>> choice = choose_task(model, labelled=topics, candidates=["clustering"])
        >>> list(choice.scores), choice.examples
        (['base', 'clustering'], 8)
    """
    given = {"pairs": pairs, "scored": scored, "labelled": labelled}
    kinds = [kind for kind, examples in given.items() if examples is not None]
    if len(kinds) != 1:
        told = " and ".join(kinds) or "none"
        raise ValueError(f"give examples of one kind, {', '.join(given)}; got {told}")
    (kind,) = kinds
    router = router_of(model)
    chosen = list(router.tasks) if candidates is None else list(candidates)
    names = list(dict.fromkeys([BASE, *(router.resolve(one) or BASE for one in chosen)]))
    if len(names) == 1:
        raise ValueError("there is only the base to choose; add an adapter, or name candidates")
    examples = checked_examples(kind, given[kind] or ())
    statistics = {name: _statistic(model, name, kind, examples) for name in names}
    return choice_of(statistics, kind, len(examples))


def choice_of(statistics: Mapping[str | Blend, Statistic], kind: str, examples: int) -> Choice:
    """The choice among candidates, the base first, that were measured on so many examples."""
    all_of_them = np.arange(examples)[None]
    draws = np.random.default_rng(0).integers(examples, size=(RESAMPLES, examples))
    scores = {name: float(of(all_of_them)[0]) for name, of in statistics.items()}
    drawn = {name: of(draws) for name, of in statistics.items()}

    def above(one: str | Blend, other: str | Blend) -> Difference:
        low, high = np.percentile(drawn[one] - drawn[other], [2.5, 97.5])
        return Difference(scores[one] - scores[other], float(low), float(high))

    best = max(scores, key=lambda name: scores[name])
    usual = max((n for n in USUAL[kind] if n in scores), key=lambda n: scores[n], default=best)
    if scores[usual] < scores[best] and not above(best, usual).is_certain:
        best = usual
    others = [name for name in scores if not np.array_equal(drawn[name], drawn[best])]
    runner_up = max(others, key=lambda name: scores[name], default=None)
    return Choice(
        task=best,
        scores=scores,
        above_base={name: above(name, BASE) for name in scores if name != BASE},
        runner_up=runner_up,
        above_runner_up=None if runner_up is None else above(best, runner_up),
        examples=examples,
        measure=MEASURES[kind],
    )


# ------------------------------------------------------------------------------------ the examples


def checked_examples(kind: str, examples: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Different examples of one kind, as tuples; an error names the first that is none."""
    shape = COLUMNS[kind]
    texts = len(shape) if kind == "pairs" else len(shape) - 1
    checked = []
    for index, example in enumerate(examples):
        parts = tuple(example) if isinstance(example, Sequence) else ()
        is_whole = len(parts) == len(shape) and not isinstance(example, str)
        if not is_whole or not all(isinstance(text, str) for text in parts[:texts]):
            raise ValueError(
                f"example {index} of {kind} must be ({', '.join(shape)}), not {_short(example)}"
            )
        last = parts[-1]
        if kind == "scored" and not (isinstance(last, Real) and math.isfinite(last)):
            raise ValueError(
                f"example {index} of scored must have a finite number as its score, not {last!r}"
            )
        if kind == "labelled" and (not isinstance(last, Hashable) or last in (None, "")):
            raise ValueError(f"example {index} of labelled must have a label, not {last!r}")
        checked.append(parts)
    checked = list(dict.fromkeys(checked))
    if len(checked) < LEAST_EXAMPLES:
        raise ValueError(
            f"{len(checked)} different examples are too few; give {LEAST_EXAMPLES} or more, best 64"
        )
    values = {parts[-1] for parts in checked}
    if len(values) == 1:
        (value,) = values
        raise ValueError(
            f"all {len(checked)} examples have the {shape[-1]} {_short(value)}; give two or more"
        )
    if kind == "pairs" and len({parts[0] for parts in checked}) == 1:
        told = _short(checked[0][0])
        raise ValueError(f"all {len(checked)} examples have the query {told}; give two or more")
    if kind == "labelled" and len(values) == len(checked):
        raise ValueError(
            f"each of {len(checked)} texts has a different label; some must share a label"
        )
    return checked


def _short(value: object) -> str:
    told = repr(value)
    return told if len(told) <= 80 else f"{told[:77]}..."


def read_examples(path: str | Path, most: int = 64) -> tuple[str, list[tuple[Any, ...]]]:
    """Kind and examples of a file, by its columns' names (:data:`st_jv5.roles.NAMES`).

    Args:
        path: A .jsonl, .json, .csv, .tsv or .parquet file, also packed; see
            :func:`st_jv5.roles.read_rows`.
        most: Most examples; of a longer file so many from all over it.

    Raises:
        ValueError: No such file, or columns of no kind.
    """
    if most < 1:
        raise ValueError(f"most must be positive, not {most}")
    kind, rows = read_rows(path)
    if kind not in COLUMNS:
        raise ValueError(f"{path} has single texts, which are no examples; {WANTED}")
    roles = [role for role in ("query", "positive", "text", "label", "score") if role in rows[0]]
    return kind, [tuple(row[role] for role in roles) for row in spread(rows, most)]


# -------------------------------------------------------------------------------------- the scores


def _statistic(
    model: SentenceTransformer, name: str | Blend, kind: str, examples: list[tuple[Any, ...]]
) -> Statistic:
    """A candidate's score on these examples, ready to be resampled."""
    first, second = ([row[column] for row in examples] for column in (0, 1))
    if kind == "pairs":
        asked = encode(model, first, task=name, prompt_name="query")
        found = encode(model, second, task=name, prompt_name="document")
        return of_pairs(asked @ found.T, examples)
    if kind == "labelled":
        vectors = encode(model, first, task=name)
        return of_labelled(vectors @ vectors.T, second)
    one, other = encode(model, first, task=name), encode(model, second, task=name)
    return of_scored((one * other).sum(axis=1), [row[2] for row in examples])


def of_pairs(cosines: Array, examples: Sequence[tuple[str, str]]) -> Statistic:
    """How often a query and its document are nearer than a query and another's document.

    Args:
        cosines: ``(n, n)``, queries x documents.
        examples: ``n`` pairs of query and document. A document of an equal query is no other's.
    """
    known = set(examples)
    own = np.eye(len(examples), dtype=bool)
    other = np.array([[(q, d) not in known for _, d in examples] for q, _ in examples])
    return _share_in_order(cosines, own, other)


def of_labelled(cosines: Array, labels: Sequence[Hashable]) -> Statistic:
    """How often two texts of one label are nearer than two of two labels; cosines ``(n, n)``."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    label = np.array([numbers[one] for one in labels])
    once = np.triu(np.ones_like(cosines, dtype=bool), k=1)
    same = label[:, None] == label[None]
    return _share_in_order(cosines, same & once, ~same & once)


def _share_in_order(cosines: Array, together: Array, apart: Array) -> Statistic:
    """The share of ``(together, apart)`` in which the first has the higher cosine, in percent.

    Args:
        cosines: ``(n, n)``.
        together: bool ``(n, n)``, pairs that belong together.
        apart: bool ``(n, n)``, pairs that do not.
    """
    i, j = np.nonzero(together | apart)
    ascending = np.lexsort((~together[i, j], cosines[i, j]))  # of equal ones, together first
    i, j = i[ascending], j[ascending]
    is_together = together[i, j].astype(np.float64)

    def share(draws: Array) -> Array:
        times = np.stack([np.bincount(draw, minlength=len(cosines)) for draw in draws])
        weights = times[:, i] * np.where(i == j, 1, times[:, j])
        below = (weights * (1 - is_together)).cumsum(axis=1)
        right = (weights * is_together * below).sum(axis=1)
        every = (weights * is_together).sum(axis=1) * below[:, -1]
        return 100 * np.where(every > 0, right / np.maximum(every, 1), 0.5)

    def in_chunks(draws: Array) -> Array:
        chunks = min(len(draws), -(-len(draws) * len(i) // CHUNK_ELEMENTS))
        return np.concatenate([share(part) for part in np.array_split(draws, chunks)])

    return in_chunks


def of_scored(cosines: Array, scores: Sequence[float]) -> Statistic:
    """The correlation of ``n`` cosines with ``n`` numbers; 0 where one side is constant."""
    numbers = np.asarray(scores, dtype=np.float64)

    def correlation(draws: Array) -> Array:
        x, y = cosines.astype(np.float64)[draws], numbers[draws]
        x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
        lengths = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
        return 100 * (x * y).sum(axis=1) / np.maximum(lengths, 1e-12)

    return correlation
