"""A first recipe for your own data: what the files hold, and settings that fit their size."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from huggingface_hub import ModelCard, hf_hub_url
from huggingface_hub.errors import HFValidationError

from st_jv5.files import whole_file
from st_jv5.recipe.config import HELD_OUT, DataSet
from st_jv5.recipe.data.prepare import read_rows
from st_jv5.recipe.data.rows import Rows
from st_jv5.recipe.data.sources import first_table, with_columns
from st_jv5.recipe.strict import RecipeError
from st_jv5.teacher.sources import resolve_model
from st_jv5.texts import stem

TEACHER = "sentence-transformers/all-mpnet-base-v2"
BASE = "sentence-transformers/all-MiniLM-L6-v2"
LEAST_ROWS = 40
"""Rows that a data set must have so that some are held out."""
MOST_HELD_OUT = 500
EPOCHS = 4
"""Passes over a phase's sets, up to :data:`MOST_STEPS`."""
MOST_STEPS = 200
CHARACTERS_PER_TOKEN = 3.5
"""Taken low, so that few texts are cut."""
SAMPLE = 1000
"""Rows whose texts are measured."""
TASKS = {"pairs": "retrieval", "scored": "text-matching", "texts": "clustering",
         "labelled": "classification"}  # fmt: skip
"""Kind of data -> the adapter that it trains."""
BATCH_ROWS, LABELLED_ROWS = 32, 8
"""Most rows of a batch; to learn labels each row has a positive and negatives beside its text."""


@dataclass(frozen=True)
class Own:
    """One of a user's sources, and what was seen in it."""

    name: str
    spec: DataSet
    told: dict[str, Any]
    """Rows that were read, and dropped."""
    train: int
    """Rows that are left to train on."""
    lengths: dict[str, int]
    """Role -> characters of the middle text."""
    tokens: float
    """About, of the longest texts but one in twenty."""
    labels: Counter[str]
    """Label -> its texts."""
    is_multi: bool
    """Whether texts have several labels each."""
    first: dict[str, Any]
    unused: list[str]
    """Columns of the file that have no role."""

    def lines(self) -> Iterator[str]:
        """What it holds, for its user."""
        roles = ", ".join(f"{column} is {role}" for role, column in self.spec.columns.items())
        lost = [f"{self.told[why]:,} {why}" for why in ("empty", "repeated") if self.told[why]]
        dropped = f", dropped: {', '.join(lost)}" if lost else ""
        yield f"{self.name}: {self.told['read']:,} rows{dropped}; {self.spec.kind}: {roles}"
        if self.unused:
            names = ", ".join(self.unused)
            yield f"  not used: {names}; rename a column to use it, such as to question or answer"
        yield f"  such as {' | '.join(str(value)[:60] for value in self.first.values())}"
        lengths = [f"{count:,} in {role}" for role, count in self.lengths.items()]
        yield f"  characters of the middle text: {', '.join(lengths)}"
        if self.labels:
            common = ", ".join(f"{label} ({n:,})" for label, n in self.labels.most_common(5))
            yield f"  {len(self.labels):,} labels, such as {common}"
        yield f"  {self.train:,} rows to train on, {self.spec.held_out:,} held out{self._why()}"

    def _why(self) -> str:
        """Why no rows are held out."""
        if self.spec.held_out:
            return ""
        if self.spec.kind not in HELD_OUT:
            return ": nothing can be asked of single texts"
        if self.is_multi:
            return ": texts with several labels are not measured"
        return f" (fewer than {LEAST_ROWS} rows)"

    @property
    def negatives(self) -> int:
        """Negatives of a labelled row: seven, or half of the texts outside the largest label."""
        others = self.labels.total() - max(self.labels.values())
        return max(1, min(7, others * self.train // self.labels.total() // 2))


def new_recipe(
    paths: Sequence[str], out: str | Path, base: str = BASE, teacher: str = TEACHER
) -> list[str]:
    """Look at a user's files, and write a first recipe for them.

    Args:
        paths: Files, folders or patterns, seen from here; each is a data set.
        out: The recipe, a YAML file that is not there yet.
        base: As ``student.base``.
        teacher: As ``teacher.model``.

    Returns:
        Lines that tell what was seen.

    Raises:
        RecipeError: Names the file or model that cannot be used, and why; or the recipe is there
            already.
    """
    out = Path(out)
    if out.exists():
        raise RecipeError(f"{out} is there already; choose another --out, or remove it")
    _check_model("base", base)
    _check_model("teacher", teacher)
    owns = look(paths, out)
    with whole_file(out) as temporary:
        name = _first_free(out.stem, lambda one: Path("out", one).exists())  # another run's results
        temporary.write_text(recipe_text(name, owns, base, teacher), encoding="utf-8")
    return [line for own in owns for line in own.lines()]


def _check_model(what: str, name: str) -> None:
    """Refuse what is no folder and cannot be a model on the Hub, which is not asked here."""
    if Path(resolve_model(name)).is_dir():
        return
    try:
        hf_hub_url(name, "config.json")
    except HFValidationError as error:
        raise RecipeError(f"{what}: {name} is no folder, and no model's name on the Hub") from error


def look(paths: Sequence[str], out: Path) -> list[Own]:
    """Read a user's sources, as a recipe at ``out`` will."""
    found: list[Own] = []
    for path in paths:
        place = os.path.abspath(Path(path).expanduser())
        name = _name(place, [own.name for own in found])
        if not DataSet(path).is_local:
            raise RecipeError(
                f"no file {place}; of a data set on the Hub write the recipe by hand: its columns "
                f"must be named"
            )
        _, columns = first_table(name, DataSet(place))
        spec = with_columns(name, DataSet(place))
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            rows = read_rows(name, spec, 0, Path(folder))
            if len(rows) < 4:
                raise RecipeError(f"{place}: {len(rows)} rows are too few to train on; add some")
            spec = replace(spec, held_out=_held_out(spec, rows))
            train = len(read_rows(name, spec, 0, Path(folder)))
            spec = replace(spec, path=_seen_from(out, place))
            unused = [column for column in columns if column not in spec.columns.values()]
            found.append(_own(name, spec, rows, train, unused))
    return found


def _held_out(spec: DataSet, rows: Rows) -> int:
    """How many rows are kept for evaluation: a tenth of those of which a task can be made."""
    able = spec.kind in HELD_OUT and not _is_multi(spec, rows) and len(rows) >= LEAST_ROWS
    return min(MOST_HELD_OUT, max(LEAST_ROWS // 2, len(rows) // 10)) if able else 0


def _is_multi(spec: DataSet, rows: Rows) -> bool:
    """Whether rows have lists of labels."""
    return spec.kind == "labelled" and not isinstance(rows[0]["label"], str)


def _own(name: str, spec: DataSet, rows: Rows, train: int, unused: list[str]) -> Own:
    texts = {role: rows.texts(rows.numbers(role)[:SAMPLE]) for role in rows.roles}
    lengths = {role: [*map(len, of)] for role, of in texts.items()}
    longest = np.percentile([length for of in lengths.values() for length in of], 95)
    labels: Counter[str] = Counter()
    for value in rows.column("label") if spec.kind == "labelled" else ():
        labels.update([value] if isinstance(value, str) else value)
    if len(labels) == 1:
        raise RecipeError(f"{spec.named}: one label, {min(labels)!r}; texts of two are needed")
    middle = {role: int(np.median(of)) for role, of in lengths.items()}
    tokens = float(longest) / CHARACTERS_PER_TOKEN
    multi = _is_multi(spec, rows)
    return Own(name, spec, rows.told, train, middle, tokens, labels, multi, rows[0], unused)


def _name(path: str, taken: Sequence[str]) -> str:
    plain = stem(path) or "data"
    if "*" in plain:
        plain = Path(path).parent.name
    name = re.sub(r"[^\w-]+", "-", plain).strip("-") or "data"
    return _first_free(name, lambda one: one in taken)


def _first_free(name: str, is_taken: Callable[[str], bool]) -> str:
    """The name, or with the first number behind it that makes it free."""
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(one for one in names if not is_taken(one))


def _seen_from(out: Path, place: str) -> str:
    """A path as the recipe has it: within its folder a short one."""
    folder = out.absolute().parent
    return (
        Path(place).relative_to(folder).as_posix() if Path(place).is_relative_to(folder) else place
    )


def _power_of_two(most: int) -> int:
    return 1 << max(1, most.bit_length() - 1)


def recipe_text(name: str, owns: Sequence[Own], base: str, teacher: str) -> str:
    """The recipe, with a comment at each choice.

    Args:
        name: Name of the recipe.
        owns: What was seen.
        base: As ``student.base``.
        teacher: As ``teacher.model``.
    """
    tokens = min(512, max(32, _power_of_two(2 * int(max(own.tokens for own in owns)) - 1)))
    adapters: dict[str, list[Own]] = {}
    for own in owns:
        adapters.setdefault(TASKS[own.spec.kind], []).append(own)
    of_teacher, of_base = _stated(teacher), _stated(base)
    lines = [
        "# Run it: st-jv5 train THIS_FILE. st_jv5/recipe/config.py explains every setting.",
        f"name: {_flow(name)}   # the result goes to out/{name}",
        "# The teacher is the large model that the student learns from; it embeds each text once.",
        f"teacher: {_flow({'model': teacher, **of_teacher, 'max_tokens': min(tokens, 384)})}",
        "# The base becomes your model. Texts are cut to max_tokens; fewer tokens are faster.",
        f"student: {_flow({'base': base, **of_base, 'max_tokens': tokens})}",
        "# license: the text's licence, for the model card; own: the text is yours to publish",
        "data_sets:   # held_out rows are never trained on; the model is scored on them at the end",
        *(f"  {_flow(n)}: {_flow(settings)}" for n, settings in _sets(owns).items()),
        "# The base learns the teacher's vectors of all your texts. A step reads batch_size rows.",
        f"stage1: {_flow(_phase(owns, [_general(own, owns) for own in owns], BATCH_ROWS, 1.0e-4))}",
        "adapters:   # one adapter for each use, on the base, which is frozen",
    ]
    for task, of in adapters.items():
        most = LABELLED_ROWS if task == "classification" else BATCH_ROWS
        phase = _phase(of, [own.name for own in of], most, 3.0e-4)
        passes = phase["steps"] * phase["batch_size"] / sum(own.train for own in of)
        lines.append(f"  # {USES[task]}; every row is read about {passes:.1f} times")
        lines.append(f"  {task}: {_flow(phase)}")
    lines += [
        "# For a better model add rows, steps, or hard negatives of pairs (negative_1, ...),",
        "# or a second data set of the same pairs with `negatives: 2`, which the teacher finds.",
    ]
    return "\n".join(lines) + "\n"


USES = {
    "retrieval": "queries find their documents",
    "text-matching": "cosines follow your scores",
    "clustering": "texts of one topic come near each other",
    "classification": "texts of one label come near each other",
}


def _sets(owns: Sequence[Own]) -> dict[str, dict[str, Any]]:
    """The data sets: each source as it is, and where stage 1 cannot use it so, its texts alone."""
    found = {}
    for own in owns:
        spec = own.spec
        settings: dict[str, Any] = {"path": spec.path, "kind": spec.kind, "columns": spec.columns}
        settings["license"] = "own"
        if spec.kind == "labelled":
            settings["negatives"] = own.negatives
        if spec.held_out:
            settings["held_out"] = spec.held_out
        found[own.name] = settings
        if (general := _general(own, owns)) != own.name:
            column = spec.columns["text" if "text" in spec.columns else "query"]
            single = {"path": spec.path, "kind": "texts", "columns": {"text": column}}
            found[general] = {**single, "license": "own"}
    return found


def _general(own: Own, owns: Sequence[Own]) -> str:
    """The data set that stage 1 reads of a source."""
    if own.spec.kind in ("pairs", "texts"):
        return own.name
    taken = {other.name for other in owns}
    return _first_free(f"{own.name}-texts", lambda one: one in taken)


def _phase(owns: Sequence[Own], names: Sequence[str], most: int, rate: float) -> dict[str, Any]:
    """A phase's settings: a few passes over its sets, each drawn by its rows.

    A batch has a power of two of rows, and no more than a quarter of the smallest set.
    """
    batch = _power_of_two(min(most, *(own.train // 4 for own in owns)))
    steps = max(1, min(MOST_STEPS, EPOCHS * sum(own.train // batch for own in owns)))
    whole = sum(own.train for own in owns)
    weights = [max(0.01, round(own.train / whole, 2)) for own in owns]
    return {
        "data": dict(zip(names, weights, strict=True)),
        "steps": steps,
        "batch_size": batch,
        "learning_rate": rate,
        "warmup_steps": steps // 10,
    }


def _stated(model: str) -> dict[str, str]:
    """The licence that a model's card states, as a setting; none where it cannot be read here."""
    if model in (TEACHER, BASE):
        return {"license": "apache-2.0"}
    card = Path(resolve_model(model)) / "README.md"
    if not card.is_file():
        return {}
    data = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    license = data.to_dict().get("license")
    return {"license": license} if isinstance(license, str) else {}


def _flow(value: Any) -> str:
    """YAML on one line."""
    text: str = yaml.safe_dump(
        value, default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")
