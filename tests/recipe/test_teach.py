"""A recipe's teachers: prompts per phase, several at once, one behind a server."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from st_jv5 import cli
from st_jv5.cli import train as main
from st_jv5.losses.labels import teacher_vectors
from st_jv5.recipe import teach
from st_jv5.recipe.context import Run
from st_jv5.recipe.data.training_sets import training_set
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.run import run_teacher
from st_jv5.recipe.strict import RecipeError
from st_jv5.teacher import ColumnStores, SeveralTeachers
from tests.conftest import MINILM
from tests.recipe.conftest import STEPS
from tests.recipe.test_config import DEMO
from tests.teacher.embedding_server import Server, serve

QUERY, TOPIC = "search for: ", "Identify the topic of: "
GLOSSES = (
    "{data: {wordnet-glosses: 1}, steps: 2, checkpoint_steps: 1, teacher_prompts: {text: topic}}"
)
SMALL = (
    "more_teachers=[]",
    "data_sets.wordnet-glosses.limit=40",
    f"adapters={{clustering: {GLOSSES}}}",
    "stage1.data={wordnet-glosses: 1}",
    "stage1.teacher_prompts={}",
)
"""Settings for one teacher, one data set and two prompts."""


@pytest.fixture
def recipe(smaller, tmp_path) -> str:
    """Two teachers with three prompts each, three adapters, two steps a phase."""
    tree = smaller(yaml.safe_load(DEMO.read_text()))
    tree |= {"name": "tiny", "output": str(tmp_path / "out"), "precision": "float32"}
    tree["student"] |= {"layers": [0, 5], "max_tokens": 16, "matryoshka_dims": [32, 384]}
    tree["teacher"] |= {"max_tokens": 16, "prompts": {"query": QUERY, "topic": TOPIC}}
    tree["more_teachers"] = [{**tree["teacher"], "source": "other", "weight": 3.0, "max_tokens": 9}]
    for spec in tree["data_sets"].values():
        spec["limit"] = 100 if spec.get("kind") == "labelled" else 20
    del tree["adapters"]["text-matching"]
    for phase in (tree["stage1"], *tree["adapters"].values()):
        phase |= STEPS
    tree["stage1"]["teacher_prompts"] = {"query": "query"}
    tree["adapters"]["retrieval"] |= {"average": [1], "teacher_prompts": {"query": "query"}}
    tree["adapters"]["clustering"]["teacher_prompts"] = {"text": "topic"}
    tree["adapters"]["classification"] |= {
        "loss": {"rkd_teacher": "labels"},
        "teacher_prompts": {"text": "topic"},
    }
    phases = (tree["stage1"], *tree["adapters"].values())
    used = {name for phase in phases for name in {**phase["data"], **phase.get("replay", {})}}
    tree["data_sets"] = {name: spec for name, spec in tree["data_sets"].items() if name in used}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return str(path)


def test_every_phase_reads_its_own_prompts_of_all_teachers(recipe):
    main([recipe, "--only", "teacher"])
    main([recipe, "--only", "stage1"])
    main([recipe, "--only", "adapters"])
    run = Run(load_recipe(recipe))
    spaces = run.spaces(None)[0].spaces()
    assert {(space.teacher, space.prompt) for space in spaces} == {
        (name, prompt)
        for name in ("sentence-transformers/all-MiniLM-L6-v2", "other")
        for prompt in ("", QUERY, TOPIC)
    }
    student = SentenceTransformer(str(run.folder / "stage1" / "model"))
    assert student[0].projection.teacher_dim == 768
    told = student[0].projection.info["columns"][0]
    assert [teacher["prompt"] for teacher in told["teachers"]] == [QUERY, QUERY]
    assert told["teacher_weights"] == [1.0, 3.0]


def test_no_teacher_is_in_memory_while_a_student_trains(recipe, monkeypatch):
    from st_jv5.recipe import train

    run = Run(load_recipe(recipe, SMALL))
    teacher = weakref.ref(run.teacher()[0])
    run_teacher(run)
    assert teacher() is None
    teacher = weakref.ref(run.teacher()[0])  # asked again, it is loaded again

    def begin(model, args, **settings):
        assert teacher() is None
        raise InterruptedError(args.ddp_timeout)

    monkeypatch.setattr(train, "AdapterTrainer", begin)
    student, phase = run.new_student(), run.recipe.stage1
    with pytest.raises(InterruptedError, match=str(24 * 60 * 60)):
        train.train(run, student, "base", phase, run.folder / "checkpoints")


def test_the_labels_name_the_vectors_that_the_paper_asks_for(recipe):
    run = Run(load_recipe(recipe))
    teach.teach(run)
    phases = run.recipe.adapters
    models = [SentenceTransformer(MINILM) for _ in range(2)]
    for model, tokens in zip(models, (16, 9), strict=True):
        model.max_seq_length = tokens

    def expected(texts: list[str], prompt: str) -> torch.Tensor:
        parts = [
            normalize(torch.from_numpy(model.encode(texts, prompt=prompt))) for model in models
        ]
        return torch.cat([parts[0] * np.sqrt(1 / 4), parts[1] * np.sqrt(3 / 4)], dim=1)

    for task, name, prompts in (
        ("retrieval", "wikipedia-hard", {"query": QUERY, "positive": ""}),
        ("clustering", "wordnet-glosses", {"text": TOPIC}),
        ("classification", "wordnet-verbs", {"query": TOPIC, "negative_7": TOPIC}),
    ):
        phase = phases[task]
        spec, stores = run.recipe.data_sets[name], run.role_stores(phase)
        rows = training_set(spec, run.rows[name], stores, 0, phase.asks_of_labelled)[:3]
        store = run.loss_store(phase, stores)
        assert isinstance(store, ColumnStores if task == "retrieval" else SeveralTeachers)
        labels = torch.tensor(rows["label"])
        vectors = teacher_vectors(labels, store, torch.device("cpu")).float()
        columns = [key for key in rows if key != "label"][: vectors.shape[1]]
        for role, prompt in prompts.items():
            found = vectors[:, columns.index(role)]
            torch.testing.assert_close(found, expected(rows[role], prompt), atol=1e-3, rtol=0)


def test_a_server_fills_the_space_that_the_model_would(recipe, tmp_path):
    local, remote = (str(tmp_path / name / "out") for name in ("local", "remote"))
    settings = (*SMALL, "teacher.max_tokens=256")
    one = [word for setting in settings for word in ("--set", setting)]
    with serve(Server(SentenceTransformer(MINILM))) as server:
        endpoint = f"teacher.endpoint={{url: '{server.url}', model: its-name, batch_size: 50}}"
        cli.main(["teach", recipe, *one, "--set", endpoint, "--set", f"output={remote}"])
        assert {body["model"] for body in server.requests} == {"its-name"}
    cli.main(["teach", recipe, *one, "--set", f"output={local}"])
    found = []
    for output in (local, remote):
        run = Run(load_recipe(recipe, [*settings, f"output={output}"]))
        texts = teach.wanted(run)["topic"]
        (store,) = run.spaces("topic")
        found.append(store.gather(store.rows(texts)).float().numpy())
    np.testing.assert_allclose(*found, atol=2e-4)


def test_ranks_of_torchrun_share_the_work(recipe, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "st_jv5.recipe")
    small = [word for setting in SMALL for word in ("--set", setting)]
    monkeypatch.setattr(teach, "WORLD_SIZE", 2)
    monkeypatch.setattr(sys.modules["st_jv5.teacher.filling"], "SECONDS_BETWEEN_LINES", 0)
    counts = []
    for rank in range(2):
        monkeypatch.setattr(teach, "RANK", rank)
        caplog.clear()
        cli.main(["teach", recipe, *small])
        told = [r.message for r in caplog.records if r.message.endswith(" new")]
        counts.append([int(message.split(", ")[1].split()[0]) for message in told])
        assert f"teacher {rank + 1}/2: " in caplog.text  # how far it is
    assert len(counts[0]) == 2
    run = Run(load_recipe(recipe, SMALL))
    for prompt, one, other in zip(teach.wanted(run), *counts, strict=True):
        assert min(one, other) > 0
        assert one + other == len(run.spaces(prompt)[0]) == len(teach.wanted(run)[prompt])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage1.teacher_prompts={query: nope}", r"query: teacher.prompts has no 'nope'; .*topic"),
        ("stage1.teacher_prompts={document: query}", "teacher_prompts: unknown role 'document'"),
        ("more_teachers=[{model: x}]", r"more_teachers\[0\].prompts has no 'query'; it has: none"),
        ("teacher.weight=0", "teacher.weight must be above 0, not 0"),
        ("teacher.shards=-1", "teacher.shards must be above 0, not -1"),
        ("teacher.endpoint={model: x}", "teacher.endpoint.url is missing"),
        ("teacher.endpoint={url: x, key: k}", "unknown setting teacher.endpoint.key; did you mean"),
        (
            "adapters.clustering.data={wordnet-glosses: 1, wordnet-lemmas: 1}",
            "pairs and single texts in one phase need the same prompt for query and text",
        ),
    ],
)
def test_settings_of_teachers_that_cannot_work_are_named(recipe, override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe, [override])


def test_a_teacher_that_cannot_be_asked_stops_with_its_name(recipe, tmp_path):
    settings = ["--set", f"output={tmp_path / 'x' / 'out'}", "--set", "more_teachers=[]"]
    with pytest.raises(SystemExit, match=r"teacher package:gt_all.*: url must be like http"):
        cli.main(["teach", recipe, *settings, "--set", "teacher.endpoint={url: nowhere}"])
    with pytest.raises(SystemExit, match="pip install no-such-model"):
        cli.main(["teach", recipe, *settings, "--set", "teacher.model=package:no_such_model/x"])
    with pytest.raises(SystemExit):
        cli.main(["teach", recipe, "--workers", "2"])
    assert not list(Path(tmp_path).glob("x/teacher/*"))
