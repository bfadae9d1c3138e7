"""mteb tasks over rows of your own: the held-out part of a data set, or a file.

===============  ==================  ==============================================================
rows             mteb type           asked
===============  ==================  ==============================================================
query, positive  Retrieval           the positives of each query, among those of all rows under
                                     test, their hard negatives and ``DISTRACTORS`` of training
text, label      Classification      the label, after ``TRAINING_TEXTS`` texts of each for training
                 Clustering          the same labels, where two or more have ``LEAST_PER_LABEL``
                                     texts under test
query, positive  STS                 the order of the scores; PairClassification where there are
and score                            but two
text             none                nothing can be asked of single texts
===============  ==================  ==============================================================

A row names its parts as a recipe's ``columns`` do.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTask,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)

from st_jv5.evaluation.task_families import (
    TRAINING_TEXTS,
    Local,
    LocalClassification,
    described,
    retrieval_data,
)
from st_jv5.roles import read_rows, spread
from st_jv5.texts import stem

Row = Mapping[str, Any]
"""Role -> text, label or score."""

DISTRACTORS = 10_000
"""Number of training documents among which a query must find its own (our choice): with more,
scores are lower and take longer."""
MOST_READ = 100_000
"""Rows for training that are read for texts of each label."""
MOST_ROWS = 10_000
"""Most rows of a file that are used."""
LEAST_PER_LABEL = 5
"""Texts that a cluster has at least."""
NOT_KNOWN = "und"
"""ISO 639-3 code of an unknown language."""


class Own(Local):
    """A task of your own rows."""

    def __init__(self, data: Any, labels: Collection[str] = ()) -> None:
        self.data = data
        self.labels = frozenset[str](labels)
        """Labels that are asked for."""
        super().__init__()

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        self.dataset = self.data
        self.data_loaded = True


class OwnRetrieval(Own, AbsTaskRetrieval):
    """Find the documents of a query."""

    k_values = (1, 10)


class OwnClassification(Own, LocalClassification):
    """Name a text's label, after a few texts of each."""


class OwnClustering(Own, AbsTaskClustering):
    """Group texts by label."""

    max_fraction_of_documents_to_embed = None
    max_documents_per_cluster = 2048
    n_clusters = 20


class OwnPairs(Own, AbsTaskPairClassification):
    """Do two texts belong together?"""


class OwnSTS(Own, AbsTaskSTS):
    """How near are two texts?"""

    min_score, max_score = 0, 1


class OwnTasks(NamedTuple):
    """What can be asked of some rows."""

    tasks: list[AbsTask]
    left_out: list[str]
    """Why something is not asked, a sentence each."""


def own_tasks(
    name: str,
    rows: Sequence[Row],
    training: Iterable[Row] = (),
    part: str = "held out",
    text_kind: str = "",
) -> OwnTasks:
    """The tasks that rows under test make.

    Args:
        name: Name of the data set or file; a task is called ``name (part)``.
        rows: Under test, all of the same roles.
        training: Rows of the same set that may be trained on: distractors, and the classifiers' few
            texts. So many are read as are needed.
        part: What the rows are.
        text_kind: Kind of their text; empty: the name.

    Example:
        >>> rows = [{"query": "capital of France?", "positive": "Paris"}]
        >>> [task.metadata.name for task in own_tasks("faq", rows).tasks]
        ['faq (held out)']
    """
    maker = _Maker(name, part, text_kind or name)
    roles = {role for row in rows[:1] for role in row}
    if not rows:
        maker.left_out.append(f"{name}: there are no rows under test")
    elif "score" in roles:
        maker.similarity(rows)
    elif "label" in roles:
        maker.labelled(rows, training)
    elif "query" in roles:
        maker.retrieval(rows, training)
    else:
        maker.left_out.append(f"{name}: nothing can be asked of single texts")
    return OwnTasks(maker.tasks, maker.left_out)


def tasks_of_files(files: Sequence[str | Path]) -> OwnTasks:
    """The tasks of several files, each under a name of its own; one that comes twice counts once.

    Raises:
        ValueError: As :func:`file_tasks`.
    """
    made = [file_tasks(path, name) for path, name in names_of(files).items()]
    return OwnTasks(
        [task for one in made for task in one.tasks],
        [told for one in made for told in one.left_out],
    )


def names_of(files: Sequence[str | Path]) -> dict[Path, str]:
    """File -> what its tasks are called: its stem, with its folder or ending where others have it.

    Example:
        >>> list(names_of(["a/faq.jsonl", "b/faq.csv.gz", "topics.csv"]).values())
        ['a-faq', 'b-faq', 'topics']
        >>> list(names_of(["faq.jsonl", "faq.csv.gz"]).values())
        ['faq.jsonl', 'faq.csv.gz']
    """
    paths = {Path(file).absolute(): Path(file) for file in files}
    stems = [stem(path) for path in paths]
    ways = [stems, [f"{path.parent.name}/{stem(path)}" for path in paths]]
    ways += [[path.name for path in paths], [f"{path.parent.name}/{path.name}" for path in paths]]
    ways += [[f"{one}-{number}" for number, one in enumerate(stems, start=1)]]
    ways = [[as_file_name(name) for name in names] for names in ways]
    found: dict[Path, str] = {}
    taken: set[str] = set()  # in lower case, as some file systems see them
    for i, path in enumerate(paths.values()):
        low = [[name.lower() for name in names] for names in ways]
        free = [n for n, own in enumerate(low) if own.count(own[i]) == 1 and own[i] not in taken]
        found[path] = ways[free[0]][i]
        taken.add(found[path].lower())
    return found


def file_tasks(path: str | Path, name: str = "") -> OwnTasks:
    """The tasks that a file's rows make, each called ``NAME (own)``.

    Of labelled texts the first half of each label's, eight at most, are the classifiers' few, and
    all others are under test.

    Args:
        path: A file whose columns are known by their names, as those of a recipe's data sets are:
            pairs, pairs with a score, or texts with labels (:func:`st_jv5.roles.read_rows`). Of a
            longer one :data:`MOST_ROWS` rows from all over it are taken.
        name: Empty: the file's, without its ending, which is the kind of its text anyway.

    Raises:
        ValueError: No such file, columns of no kind, or rows of which nothing can be asked.
    """
    kind, found = read_rows(path)
    rows: list[Row] = [*spread(found, MOST_ROWS)]
    few: list[Row] = []
    if kind == "labelled" and not any(isinstance(row["label"], list) for row in rows):
        rows = [{**row, "label": str(row["label"])} for row in rows]
        count = Counter(row["label"] for row in rows)
        few = list(_few_of_each(rows, {label: min(8, n // 2) for label, n in count.items()}))
        taken = {id(row) for row in few}
        rows = [row for row in rows if id(row) not in taken]
    made = own_tasks(name or stem(path), rows, few, part="own", text_kind=stem(path))
    if not made.tasks:
        raise ValueError(f"{path}: {'; '.join(made.left_out)}")
    return made


def as_file_name(name: str) -> str:
    """A name with what file systems take amiss replaced."""
    return re.sub(r"[^\w .-]+", "-", name)


class _Maker:
    def __init__(self, name: str, part: str, text_kind: str) -> None:
        self.name = as_file_name(name)  # mteb names files by it
        self.part, self.text_kind = part, text_kind
        self.tasks: list[AbsTask] = []
        self.left_out: list[str] = []

    def add(
        self, kind: type[Own], type_: str, metric: str, about: str, data: Any, labels: Any = ()
    ) -> None:
        also = ", clustering" if type_ == "Clustering" else ""
        name = f"{self.name} ({self.part}{also})"
        metadata = described(name, type_, metric, about, (f"{NOT_KNOWN}-Latn",))
        own = {"metadata": metadata, "text_kind": self.text_kind}  # mteb looks at the class
        self.tasks.append(type(kind.__name__, (kind,), own)(data, labels))

    def retrieval(self, rows: Sequence[Row], training: Iterable[Row]) -> None:
        documents: dict[str, str] = {}
        relevant: dict[str, dict[str, int]] = defaultdict(dict)
        for row in rows:
            number = documents.setdefault(row["positive"], f"d{len(documents)}")
            relevant[row["query"]][number] = 1
            for role, text in row.items():
                if role.startswith("negative_") and text:
                    documents.setdefault(text, f"d{len(documents)}")
        for row in islice(training, DISTRACTORS):
            number = documents.setdefault(row["positive"], f"d{len(documents)}")
            if row["query"] in relevant:
                relevant[row["query"]][number] = 1
        texts = {number: text for text, number in documents.items()}
        data = {"default": {"test": retrieval_data(texts, relevant)}}
        about = f"Find the document of a query among {len(texts):,}."
        self.add(OwnRetrieval, "Retrieval", "ndcg_at_10", about, data)

    def labelled(self, rows: Sequence[Row], training: Iterable[Row]) -> None:
        if any(not isinstance(row["label"], str) for row in rows):
            self.left_out.append(
                f"{self.name}: its texts have several labels each, which is not measured"
            )
            return
        most = defaultdict[str, int](lambda: TRAINING_TEXTS)
        few = list(_few_of_each(islice(training, MOST_READ), most))
        known = sorted({row["label"] for row in few} & {row["label"] for row in rows})
        if len(known) < 2:
            self.left_out.append(
                f"{self.name}: no classification, for {len(known)} of its labels have texts both "
                f"under test and for training, and two are needed"
            )
        else:
            parts = {
                split: Dataset.from_list(
                    [
                        {"text": row["text"], "label": known.index(row["label"])}
                        for row in own
                        if row["label"] in known
                    ]
                )
                for split, own in (("train", few), ("test", rows))
            }
            about = f"Name a text's label, of {len(known)}."
            data = DatasetDict(parts)
            self.add(OwnClassification, "Classification", "accuracy", about, data, known)
        self.clustering(rows)

    def clustering(self, rows: Sequence[Row]) -> None:
        count = Counter(row["label"] for row in rows)
        labels = sorted(label for label, texts in count.items() if texts >= LEAST_PER_LABEL)
        if len(labels) < 2:
            self.left_out.append(
                f"{self.name}: no clustering, for {len(labels)} of its labels have "
                f"{LEAST_PER_LABEL} texts under test, and two are needed"
            )
            return
        own = [row for row in rows if row["label"] in labels]
        columns = {
            "sentences": [row["text"] for row in own],
            "labels": [row["label"] for row in own],
        }
        data = DatasetDict({"test": Dataset.from_dict(columns)})
        about = f"Group texts by label, of {len(labels)}."
        self.add(OwnClustering, "Clustering", "v_measure", about, data, labels)

    def similarity(self, rows: Sequence[Row]) -> None:
        scores = sorted({float(row["score"]) for row in rows})
        if len(scores) < 2:
            self.left_out.append(
                f"{self.name}: all scores under test are {scores[0]:g}; two differing ones are "
                f"needed"
            )
            return
        pairs = [{"sentence1": row["query"], "sentence2": row["positive"]} for row in rows]
        if len(scores) == 2:
            both = [
                {**pair, "labels": int(float(row["score"]) == scores[1])}
                for pair, row in zip(pairs, rows, strict=True)
            ]
            about = f"Do two texts belong together, scored {scores[1]:g} and not {scores[0]:g}?"
            data = DatasetDict({"test": Dataset.from_list(both)})
            self.add(OwnPairs, "PairClassification", "cosine_ap", about, data)
            return
        scored = [
            {**pair, "score": float(row["score"])} for pair, row in zip(pairs, rows, strict=True)
        ]
        data = DatasetDict({"test": Dataset.from_list(scored)})
        self.add(OwnSTS, "STS", "cosine_spearman", "How near are two texts?", data)
        self.tasks[-1].min_score, self.tasks[-1].max_score = scores[0], scores[-1]


def _few_of_each(rows: Iterable[Row], most: Mapping[str, int]) -> Iterator[Row]:
    """The first texts of each label, so many at most; one with several labels is passed over."""
    seen: Counter[str] = Counter()
    for row in rows:
        label = row["label"]
        if isinstance(label, str) and seen[label] < most[label]:
            seen[label] += 1
            yield row
