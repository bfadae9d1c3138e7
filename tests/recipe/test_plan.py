"""What a recipe will cost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from st_jv5.batching import BUDGET
from st_jv5.cli import train as main
from st_jv5.machine.cpu import attention_in_float32
from st_jv5.recipe.context import Run
from st_jv5.recipe.data import prepare, sources
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.planning.cost import Costs, batch, read_config, with_layers
from st_jv5.recipe.planning.plan import _passes, _short, plan_page, with_plots
from st_jv5.recipe.planning.planner import Planner
from st_jv5.recipe.planning.probe import LENGTHS, Machine, Speed, fit, probe
from st_jv5.recipe.strict import RecipeError
from tests.conftest import MINILM
from tests.recipe.test_config import DEMO, RECIPES

SMALL, NANO = (next(path for path in RECIPES if path.stem == name) for name in ("small", "nano"))


@pytest.fixture(scope="module")
def minilm() -> Costs:
    return Costs(without_dropout(), bfloat16=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Callable[..., Planner]:
    """``demo(*changes)`` plans the demo, whose rows are prepared once."""
    output = f"output={tmp_path_factory.mktemp('demo') / 'out'}"
    assert Run(load_recipe(DEMO, [output])).rows
    return lambda *changes: Planner(Run(load_recipe(DEMO, [output, *changes])))


@pytest.fixture
def few_draws(monkeypatch):
    """Batches enough where none is compared with a mean."""
    monkeypatch.setattr("st_jv5.recipe.planning.planner.DRAWN", 10)


def without_dropout():
    """As every student is trained."""
    return with_layers(AutoConfig.from_pretrained(MINILM), 6)


@pytest.mark.parametrize("tokens", [16, 200])
def test_operations_are_those_of_a_real_forward_and_backward(minilm, tokens):
    """Counted at two lengths, told at any."""
    model = AutoModel.from_pretrained(MINILM, config=without_dropout()).train()
    ids = torch.randint(0, 1000, (3, tokens))
    with FlopCounterMode(display=False) as real:
        model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.sum().backward()
    cost = minilm.forward(tokens)
    assert 3 * (cost.flops + cost.backward_flops) == pytest.approx(real.get_total_flops(), rel=1e-3)


def test_an_adapters_backward_has_no_gradients_of_the_base(minilm):
    base, adapter = minilm.forward(64), minilm.forward(64, rank=32)
    assert base.backward_flops == pytest.approx(2 * base.flops, rel=0.01)
    assert adapter.backward_flops < 1.2 * adapter.flops
    assert minilm.weights(32).trained == 2 * 32 * (8 * 384 + 2 * (384 + 1536)) * 6 / 2
    assert minilm.weights().trained == minilm.weights().all == 22_713_216


def test_activations_are_what_autograd_keeps(minilm):
    model = AutoModel.from_pretrained(MINILM, config=without_dropout()).train()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 1000, (8, 64))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert found is not None
    assert 8 * minilm.forward(64).activations == pytest.approx(sum(kept.values()), rel=0.05)


def test_every_chunk_keeps_its_own_bfloat16_weights():
    costs = Costs(without_dropout(), bfloat16=True)
    model = AutoModel.from_pretrained(MINILM, config=without_dropout()).train()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    graphs = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    chunks = [(8, 64), (4, 16)]
    with (
        attention_in_float32(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        for rows, tokens in chunks:
            with torch.autocast("cpu", torch.bfloat16):
                graphs.append(model(**batch(costs.config, rows, tokens)))
    assert costs.kept(chunks) == pytest.approx(sum(kept.values()), rel=0.05)
    assert costs.kept(chunks) > 4 * costs.weights().linear


def test_batches_are_cut_as_they_are_embedded(demo):
    planner = demo()
    phase = planner.recipe.phases["stage1"]
    for name in phase.data:
        size = phase.batch_sizes.get(name, phase.batch_size)
        for chunks in planner.batches(phase, name):
            assert sum(rows for rows, _ in chunks) == 2 * size
            assert all(rows * tokens <= BUDGET["cpu"] for rows, tokens in chunks)


def test_a_plan_leaves_no_trace_and_asks_no_hub(tmp_path, monkeypatch):
    """Held-out rows are prepared, too; what the output folder has is taken, and left as it is."""
    rows = [{"query": f"question {i}", "positive": f"answer {i}"} for i in range(90)]
    (tmp_path / "faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"query": "query", "positive": "positive"}
    tree = {
        "name": "own",
        "output": str(tmp_path / "out"),
        "teacher": {"model": MINILM},
        "student": {"base": MINILM},
        "data_sets": {
            "faq": {"path": "faq.jsonl", "columns": columns, "held_out": 9},
            "hub": {"path": "org/set", "columns": columns, "held_out": 9, "rows": 1000,
                    "tokens": {"query": 9.0, "positive": 90.0}},
        },
        "stage1": {"data": {"faq": 1, "hub": 1}, "steps": 2, "batch_size": 4},
        "adapters": {},
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.setattr(sources, "load_dataset", pytest.fail)
    run = Run(load_recipe(tmp_path / "own.yaml"))
    told = plan_page(run, measured=False).markdown()
    assert "| faq | 81 |" in told
    assert "not looked at, being on the Hub: hub; their numbers are the recipe's" in told
    assert "counted as trained on: rows that share a text with those held out of hub" in told
    assert not (tmp_path / "out").exists()
    # The same rows, prepared by training, are read and not prepared again.
    local = load_recipe(tmp_path / "own.yaml", ["data_sets.hub.held_out=0"])
    Run(local).read("faq")
    before = sorted((one, one.stat().st_mtime_ns) for one in (tmp_path / "out").rglob("*"))
    monkeypatch.setattr(prepare, "open_source", pytest.fail)
    assert "| faq | 81 |" in plan_page(Run(local), measured=False).markdown()
    after = sorted((one, one.stat().st_mtime_ns) for one in (tmp_path / "out").rglob("*"))
    assert before == after


@pytest.mark.parametrize(("path", "parameters"), [(SMALL, 596e6), (NANO, 212e6)])
def test_full_size_recipes_know_their_architecture(path, parameters):
    recipe = load_recipe(path)
    student = Costs(read_config(recipe.student, "student"), bfloat16=True)
    teacher = Costs(read_config(recipe.teacher, "teacher"), bfloat16=True)
    assert student.weights().all == pytest.approx(parameters, rel=0.01)
    assert teacher.weights().all == pytest.approx(4.02e9, rel=0.01)
    # The paper: 4 x 20.2M and 4 x 6.8M.
    lora = {"small": 20.2e6, "nano": 6.8e6}[path.stem]
    assert student.weights(32).trained == pytest.approx(lora, rel=0.01)


def test_full_size_recipes_plan_offline(few_draws):  # lengths are means: the draws are alike
    run = Run(load_recipe(NANO))
    planner = Planner(run)
    phases = {one.name: one for one in planner.phases()}
    assert list(phases) == ["stage1", *(f"adapters.{task}" for task in run.recipe.adapters)]
    stage1 = phases["stage1"]
    assert stage1.memory["optimizer"] == pytest.approx(8 * 212e6, rel=0.01)
    # Of 50,000 steps of 8 x 1024 pairs: so many tokens that every text had some, and none too many.
    pairs = 50_000 * 8 * 1024
    assert 40 * pairs < stage1.tokens < 300 * pairs
    # Two passes forward under GradCache, and a backward: 8 operations per weight and token.
    blocks = 212e6 - 2 * 128256 * 768 / 2
    assert stage1.flops == pytest.approx(8 * blocks * stage1.tokens, rel=0.1)
    assert stage1.seconds is None
    page = plan_page(run, measured=False)
    text = page.markdown()
    assert "<svg" not in text
    assert with_plots(page).html().count("<svg") == 1  # memory; of the time nothing was measured
    assert re.search(r"not verified: inference \(sentence-transformers/all-nli", text)
    assert re.search(r"\| stage1 \| questions \| 3,012,496 \| 7.0% \| 9.6 \|", text)
    assert "| H100 |" in text


def test_the_plan_says_how_often_each_set_is_read(demo):
    changes = [
        "stage1.data={wikipedia-descriptions: 3, wordnet-lemmas: 1}",
        "stage1.replay={wordnet-examples: 1}",
        "stage1.max_epochs=2",
        "data_sets.wordnet-examples.path=org/set",
        "data_sets.wordnet-examples.rows=1000",
        "data_sets.wordnet-examples.limit=null",
    ]
    planner = demo(*changes)
    run, stage1 = planner.run, planner.recipe.stage1
    rows = planner.facts["wikipedia-descriptions"].rows
    asked = 0.6 * stage1.steps * stage1.batch_size / rows
    assert stage1.passes("wikipedia-descriptions", rows) == pytest.approx(asked)
    table = _passes(run, planner).markdown()
    stage1 = [line for line in table.splitlines() if "| stage1 | w" in line]
    told = f"2 (max_epochs; its weight asks for {asked:,.0f})" if asked > 2 else f"{asked:.2g}"
    assert stage1[0] == f"| stage1 | wikipedia-descriptions | {rows:,} | 60.0% | {told} |"
    assert "| wordnet-examples | 2,000 | 20.0% |" in stage1[2]  # both sides, each by itself


def test_a_hub_model_that_the_recipe_does_not_describe_is_named():
    recipe = load_recipe(DEMO, ["student.base=org/model"])
    with pytest.raises(RecipeError, match=r"config of org/model cannot be read.*student.config"):
        Planner(Run(recipe))


def test_of_a_hub_model_only_the_config_is_fetched(hub, tmp_path, monkeypatch):
    """A first recipe names models by their ids, and says nothing of their architecture."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub.commits["org/model"] = [{"config.json": Path(MINILM, "config.json").read_bytes()}]
    recipe = load_recipe(DEMO, ["student.base=org/model"])
    assert read_config(recipe.student, "student").hidden_size == 384
    fetched = [path.name for path in tmp_path.rglob("*") if path.is_symlink()]
    assert fetched == ["config.json"]


def test_local_texts_are_counted_with_the_students_tokenizer(demo):
    planner = demo("student.prompts=paper")
    glosses = planner.facts["wordnet-glosses"]
    assert glosses.rows == 8000
    assert glosses.tokens["text"].mean() == pytest.approx(12.6, rel=0.1)
    nouns = planner.columns("wordnet-nouns", 64)  # their glosses are longer
    assert [texts.mean() for texts in nouns] == pytest.approx([18] * 9, rel=0.1)
    (extracts,) = planner.columns("wikipedia-extracts", 64)
    assert extracts.max() == 64
    assert 50 < extracts.mean() < 64
    without = demo("student.prompts=none")
    own = without.columns("wordnet-nouns", 64)
    assert [round(a.mean() - b.mean()) for a, b in zip(nouns, own, strict=True)] == [3] * 9


def test_the_plan_is_printed_before_anything_is_written(
    tiny, tmp_path, capsys, monkeypatch, few_draws
):
    monkeypatch.setattr("st_jv5.recipe.planning.planner.probe", quick_probe)
    main([tiny(tmp_path), "--plan"])
    printed = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    for phase in ("teacher", "stage1", "adapters.classification", "training"):
        assert re.search(rf"\| {phase} \|.*\|", printed), phase
    assert "process" in printed
    for row in (r"\| wordnet-glosses \| 24 \| 0\.00 \| 0\.00 \|", r"\| in all, and the .* \|"):
        assert re.search(row, printed), row


def test_rows_that_are_not_here_are_estimated_by_their_tokens():
    recipe = load_recipe(DEMO.with_name("small.yaml"))
    planner = Planner(Run(recipe))
    name, spec = next((n, s) for n, s in recipe.data_sets.items() if len(s.tokens) == 2)
    tokens, rows = sum(spec.tokens.values()), spec.limit or spec.rows
    assert planner.facts[name].disk == rows * (tokens * 4.7 + len(spec.columns) * 32)


def test_the_fit_finds_what_a_chunk_and_an_operation_take():
    draw = np.random.default_rng(0)
    chunks = draw.integers(1, 6, 30)
    operations = draw.random((30, len(LENGTHS))) * chunks[:, None] * 4e10
    at = np.array([3e-12, 2e-12, 2.5e-12])
    seconds = (0.03 * chunks + operations @ at) * draw.normal(1, 0.02, 30)
    chunk, found = fit(np.column_stack([chunks, operations]), seconds)
    assert chunk == pytest.approx(0.03, rel=0.15)
    assert found == pytest.approx(at, rel=0.15)
    operations[:, 2] = 0  # no chunk near the longest length
    _, found = fit(np.column_stack([chunks, operations]), 0.03 * chunks + operations @ at)
    assert found == pytest.approx([at[0], at[1], at[1]])


def machine(**seconds: float) -> Machine:
    """A made-up one: so many seconds a chunk, whatever is in it."""
    speeds = {kind: Speed(each, np.zeros(len(LENGTHS))) for kind, each in seconds.items()}
    return Machine(speeds, update=0, process=100, holes=0)


def test_a_forward_of_the_base_takes_the_time_of_reading(demo, few_draws):
    """Classification's base has no gradient, and no dropout."""
    planner = demo()
    seconds = []
    for reading in (0.0, 1.0):
        planner.machine = machine(base=1, adapter=1, dropout=1, reading=reading)
        seconds.append({one.name: one.seconds for one in planner.phases()})
    without, whole = seconds
    for name, own in whole.items():
        assert own == pytest.approx(without[name] * (1 + (name == "adapters.classification")))
    alone = demo("adapters.classification.loss={rkd_weight: 0}")
    alone.machine = planner.machine
    assert [one.seconds for one in alone.phases()] == pytest.approx([*without.values()])


def test_a_phase_maps_the_vectors_that_it_distils(demo, few_draws):
    planner = demo()
    planner.machine = machine(base=1, adapter=1, dropout=1, reading=1)
    phases = {one.name: one for one in planner.phases()}
    texts = sum(planner.facts[name].rows for name in planner.recipe.phases["stage1"].mix)
    row = 2 * 384 + 16
    assert row * texts < phases["stage1"].memory["teacher's vectors"] <= 2 * row * texts
    # From the base, not from the teacher.
    assert phases["adapters.classification"].memory["teacher's vectors"] == 0
    for one in phases.values():
        assert one.on_device == pytest.approx(
            one.bytes - 100 - one.memory["teacher's vectors"], abs=1
        )


def test_hours_and_dollars_have_two_figures_or_none_after_the_point():
    assert [*map(_short, (0, 3e-05, 0.0123, 1.25, 9.96, 99.6, 1234.5))] == [
        "0", "< 0.01", "0.012", "1.2", "10", "100", "1,234"
    ]  # fmt: skip


def quick_probe(student, teacher, bfloat16, steps):
    return probe(student, teacher, bfloat16, steps, seconds=0.1)


def test_chunks_and_checkpoints_hold_less_than_a_whole_batch(tiny, tmp_path):
    recipe = tiny(tmp_path, batch_size=64)

    def memory(*changes: str) -> float:
        return next(Planner(Run(load_recipe(recipe, changes))).phases()).memory["activations"]

    whole = memory()
    assert memory("stage1.loss={mini_batch_tokens: 512}") < 0.5 * whole
    assert memory("stage1.gradient_checkpointing=true") < 0.5 * whole
    assert 1.7 * whole < memory("stage1.batch_size=128") <= 2 * whole
