"""The strict reader of recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from st_jv5.losses import Schedule
from st_jv5.recipe.config import DataSet
from st_jv5.recipe.context import Run
from st_jv5.recipe.load import load_recipe
from st_jv5.recipe.results.measure import check_beside
from st_jv5.recipe.run import settings_of, upstream
from st_jv5.recipe.strict import RecipeError
from st_jv5.task_table import PROMPTS

RECIPES = sorted((Path(__file__).parents[2] / "training" / "recipes").glob("*.yaml"))
DEMO = next(path for path in RECIPES if path.stem == "demo")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert set(recipe.adapters) == {"retrieval", "text-matching", "clustering", "classification"}


def test_settings_on_the_command_line_win():
    recipe = load_recipe(DEMO, ["stage1.steps=7", "adapters.retrieval.loss.temperature=0.1"])
    assert recipe.stage1.steps == 7
    assert recipe.adapters["retrieval"].loss == {"temperature": 0.1}


def test_a_weight_may_move_over_the_steps():
    settings = "{gor_weight: {start: 0.0, end: 1.0, steps: 10}}"
    recipe = load_recipe(DEMO, [f"adapters.retrieval.loss={settings}"])
    assert recipe.adapters["retrieval"].loss == {"gor_weight": Schedule(0.0, 1.0, steps=10)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage1.stepz=7", r"unknown setting stage1.stepz; did you mean 'steps'"),
        ("stage1.steps=many", r"stage1.steps must be int, not 'many'"),
        ("stage1.learning_rate=1e-4", r"reads 1e-4 as text, write it with a dot"),
        ("stage1.steps=0", "stage1.steps must be above 0, not 0"),
        ("stage1.data={nope: 1}", "stage1.data: unknown data set 'nope'"),
        ("stage1.data={wordnet-lemmas: -1}", "the weight must be above 0"),
        ("stage1.data={}", "stage1.data names no data set"),
        ("adapters.cooking={data: {wordnet-lemmas: 1}, steps: 1}", "unknown task 'cooking'"),
        ("adapters.retrieval.average=[15]", "step 15 has no checkpoint"),
        ("precision=int4", "precision must be one of auto, float32, bfloat16"),
        ("stage1.dim_weights=[1]", "dim_weights has 1 entries for 5"),
        (
            "data_sets.wordnet-lemmas.columns={text: gloss, query: lemmas}",
            "no kind of data set has",
        ),
        (
            [
                "data_sets.wordnet-lemmas.columns={text: gloss}",
                "data_sets.wordnet-lemmas.kind=pairs",
            ],
            "wordnet-lemmas.columns must name positive, query for kind pairs, not text",
        ),
        (
            "adapters.retrieval.data={wordnet-glosses: 1}",
            r"adapters.retrieval.data.wordnet-glosses: the set is of kind texts and has single "
            r"texts; adapters.retrieval takes pairs, long, or its texts as .*replay",
        ),
        (
            "adapters.text-matching.data={wordnet-glosses: 1}",
            "has single texts; adapters.text-matching takes scored, synset_pairs, pairs",
        ),
        (
            "stage1.data={wordnet-similarity: 1}",
            "stage1.data.wordnet-similarity: .* has scores, which this loss does not read",
        ),
        ("adapters.retrieval.data={wordnet-similarity: 1}", "has scores.* takes pairs, long$"),
        ("adapters.clustering.data={wordnet-similarity: 1}", "has scores.* takes texts, pairs$"),
        ("adapters.classification.data={wordnet-glosses: 1}", "classification takes labelled"),
        ("adapters.retrieval.data={wordnet-nouns: 1}", "retrieval.data.wordnet-nouns: .*no labels"),
        ("stage1.batch_sizes={nope: 8}", "stage1.batch_sizes: stage1.data has no 'nope'"),
        ("stage1.max_tokens={wordnet-lemmas: 0}", "max_tokens.wordnet-lemmas must be above 0"),
        ("stage1.temperature=0.0", "stage1.temperature must be above 0, not 0.0"),
        (
            "adapters.retrieval.loss={gor_weight: {start: 0.0, stop: 1.0}}",
            r"unknown setting adapters.retrieval.loss.gor_weight.stop; did you mean",
        ),
        (
            "adapters.retrieval.loss={gor_weight: {start: -1.0, end: 1.0, steps: 3}}",
            "retrieval.loss.gor_weight: weights must be finite",
        ),
        ("teacher.model=3", "teacher.model must be str, not 3"),
        ("loader_workers=-1", "loader_workers must not be negative, but is -1"),
        (
            ["compile=true", "stage1.gradient_checkpointing=true"],
            "compile does not go with stage1.gradient_checkpointing",
        ),
        (
            ["student.rotate=true", "stage1.own_map_dims=[32]"],
            r"student.rotate: stage1.own_map_dims has maps for cut vectors",
        ),
        ("stage1.devices=0", "stage1.devices must be above 0, not 0"),
        ("stage1.theta=-1.0", "stage1.theta must be above 0, not -1.0"),
        ("student.vocabulary=[nope]", "student.vocabulary: unknown data set 'nope'"),
        (
            "data_sets.wordnet-hard.columns={query: lemmas, positive: gloss, negative_1: example}",
            "wordnet-hard has negatives of its own; leave `negatives` out",
        ),
        (
            "data_sets.wordnet-lemmas.tokens={text: 3.0}",
            "wordnet-lemmas.tokens: no texts in 'text'",
        ),
        ("evaluation.split=train", "evaluation.split must be one of test, validation, not 'train'"),
        ("stage1", "--set wants a.b=value"),
    ],
)
def test_what_cannot_be_run_is_named(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(DEMO, [override] if isinstance(override, str) else override)


def test_a_retrieval_adapter_without_contrast_may_distil_single_texts():
    loss = "adapters.retrieval.loss={infonce_weight: 0}"
    recipe = load_recipe(DEMO, ["adapters.retrieval.data={wordnet-glosses: 1}", loss])
    assert recipe.adapters["retrieval"].data == {"wordnet-glosses": 1}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a/faq.jsonl.gz", "faq"),
        ("a/FAQ.CSV", "FAQ"),
        ("a/faq/*.jsonl", "faq"),
        ("./faq", "faq"),
        (("a/one.csv", "a/two.csv"), "one"),
        ("org/words-v2", "words-v2"),
    ],
)
def test_the_kind_of_text_of_any_path_is_its_name(path, kind):
    assert DataSet(path).kind_of_text == kind


def test_the_kind_of_text_is_the_files_name_unless_it_is_told():
    recipe = load_recipe(DEMO)
    assert recipe.text_kinds == {"wikipedia", "wordnet", "debian"}  # what is replayed counts
    path = "data_sets.wordnet-lemmas"
    told = load_recipe(DEMO, [f"{path}.text_kind=words"])
    assert told.text_kinds == recipe.text_kinds | {"words"}
    hub = load_recipe(DEMO, [f"{path}.path=org/words-v2"])
    assert hub.text_kinds == recipe.text_kinds | {"words-v2"}
    # A set that no phase trains on tells nothing of the model; every phase counts.
    unused = "{path: a/b.parquet, columns: {text: t}, kind: texts}"
    assert load_recipe(DEMO, [f"data_sets.unused={unused}"]).text_kinds == recipe.text_kinds
    for phase in ("stage1", "long", "adapters.clustering"):
        settings = [f"data_sets.other={unused}", f"{phase}.data={{other: 1}}", f"{phase}.steps=1"]
        assert "b" in load_recipe(DEMO, [*settings, "adapters.clustering.average=[]"]).text_kinds


def test_the_kind_of_text_changes_nothing_that_was_trained():
    one = load_recipe(DEMO)
    other = load_recipe(DEMO, ["data_sets.wordnet-lemmas.text_kind=words"])
    assert upstream(one) == upstream(other)
    for name, phase in one.phases.items():
        assert settings_of(one, phase) == settings_of(other, other.phases[name])
    assert upstream(one) != upstream(load_recipe(DEMO, ["data_sets.wordnet-lemmas.limit=7"]))


def test_missing_settings_and_files_are_named(tmp_path):
    tree = yaml.safe_load(DEMO.read_text())
    del tree["teacher"]["model"]
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(RecipeError, match=r"teacher.model is missing"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path / "absent.yaml")


# The paper's tables (sections 3 and 4 of arXiv:2602.15547), by phase: steps, devices, batch, max
# tokens, learning rate, theta; a batch and its limit per kind of text where they differ.
PAPER = {
    "small": {
        "stage1": (50_000, 8, {512}, {512}, 1e-4, 1e6),
        "long": (6_500, 2, {64}, {4096}, 1e-4, 5e5),
        "adapters.retrieval": (8_000, 2, {256, 64}, {384, 4096}, 2e-5, 1e6),
        "adapters.text-matching": (20_000, 1, {256}, {384}, 5e-5, 1e6),
        "adapters.clustering": (20_000, 1, {512}, {512}, 1e-5, 1e5),
        "adapters.classification": (30_000, 4, {64}, {512}, 4e-4, 3.5e6),
    },
    "nano": {
        "stage1": (50_000, 8, {1024}, {512}, 1e-4, 2.5e5),
        "adapters.retrieval": (8_000, 2, {384, 96}, {384, 4096}, 2e-5, 2.5e5),
        "adapters.text-matching": (20_000, 1, {256}, {384}, 5e-5, 2.5e5),
        "adapters.clustering": (20_000, 1, {1024}, {512}, 1e-5, 2.5e4),
        "adapters.classification": (30_000, 4, {128}, {512}, 4e-4, 1e6),
    },
}


@pytest.mark.parametrize("name", PAPER)
def test_full_size_recipes_carry_the_papers_figures(name):
    recipe = load_recipe(RECIPES[0].with_name(f"{name}.yaml"))
    assert list(recipe.phases) == list(PAPER[name])
    for path, (steps, devices, batches, tokens, rate, theta) in PAPER[name].items():
        phase = recipe.phases[path]
        assert (phase.steps, phase.devices, phase.learning_rate) == (steps, devices, rate), path
        assert phase.theta == theta, path
        sizes = {phase.batch_sizes.get(data, phase.batch_size) for data in phase.data}
        assert sizes == batches, path
        assert {phase.max_tokens[data] for data in phase.data} == tokens, path
    student = recipe.student
    dims = [32, 64, 128, 256, 512, 768, 1024]
    assert list(student.matryoshka_dims) == dims[: None if name == "small" else -1]
    assert student.serve_theta == {"small": 3.5e6, "nano": 1e6}[name]
    assert student.max_tokens == {"small": 32768, "nano": 8192}[name]
    assert {(a.rank, a.alpha, a.dropout) for a in recipe.adapters.values()} == {(32, 32, None)}
    assert recipe.teacher.model == "Qwen/Qwen3-Embedding-4B"
    # Of the classification loss: seven negatives of other labels.
    labelled = [s for s in recipe.data_sets.values() if s.kind == "labelled"]
    assert {spec.negatives for spec in labelled} == {7}


@pytest.mark.parametrize("name", PAPER)
def test_every_public_set_says_where_it_was_seen_or_that_it_was_not(name):
    recipe = load_recipe(RECIPES[0].with_name(f"{name}.yaml"))
    for data_set, spec in recipe.data_sets.items():
        assert bool(spec.source) or not spec.verified, data_set
        assert spec.rows, data_set
        assert spec.tokens, data_set
        assert spec.license != "unknown" or not spec.verified, data_set


@pytest.mark.parametrize("name", PAPER)
def test_no_phase_of_a_full_size_recipe_reads_a_set_more_than_ten_times(name):
    recipe = load_recipe(RECIPES[0].with_name(f"{name}.yaml"))
    for path, phase in recipe.phases.items():
        assert phase.max_epochs == 10, path
        for data_set in phase.mix:
            spec = recipe.data_sets[data_set]
            rows = min(spec.rows, spec.limit or spec.rows)
            assert phase.passes(data_set, rows) <= 10, (path, data_set)
            step = phase.batch_sizes.get(data_set, phase.batch_size) * phase.devices
            assert rows >= 2 * step, (path, data_set)  # in one process, too


@pytest.mark.parametrize("name", PAPER)
def test_full_size_recipes_mix_languages_and_lengths(name):
    recipe = load_recipe(RECIPES[0].with_name(f"{name}.yaml"))
    retrieval = recipe.adapters["retrieval"].data
    hard = [recipe.data_sets[data_set] for data_set in retrieval]
    assert all(spec.negatives == 1 or "negative_1" in spec.columns for spec in hard)
    languages = {spec.subset.split("-")[0] for spec in hard} - {"triplet", "pair"}
    assert " ".join(sorted(languages)) == "ar bn de en es fa fi id ja ru te th zh"
    if recipe.long:
        short = [d for d in recipe.long.data if recipe.data_sets[d].tokens["positive"] < 300]
        assert 0.25 < sum(map(recipe.long.share, short)) < 0.5
    assert recipe.adapters["text-matching"].teacher_prompts == {}  # both sides are read alike


def test_a_recipe_may_hold_only_what_differs_from_another(tmp_path):
    (tmp_path / "one.yaml").write_text(DEMO.read_text())
    (tmp_path / "two.yaml").write_text(
        "extends: one.yaml\nname: two\nstage1: {steps: 9}\nevaluation: {dims: [8]}\n"
    )
    one, two = (load_recipe(tmp_path / f"{name}.yaml") for name in ("one", "two"))
    assert (two.name, two.stage1.steps, two.evaluation.dims) == ("two", 9, (8,))
    assert two.stage1.data == one.stage1.data
    assert two.adapters == one.adapters
    (tmp_path / "one.yaml").write_text("extends: two.yaml")
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(tmp_path / "two.yaml")


def test_a_fraction_of_the_steps_keeps_the_schedule():
    whole, fifth = load_recipe(DEMO), load_recipe(DEMO, fraction=0.25)
    assert (whole.stage1.steps, fifth.stage1.steps) == (160, 40)
    assert (whole.stage1.warmup_steps, fifth.stage1.warmup_steps) == (15, 4)
    retrieval = fifth.adapters["retrieval"]
    assert (retrieval.steps, retrieval.checkpoint_steps, retrieval.average) == (8, 2, (6,))
    with pytest.raises(RecipeError, match="fraction of the steps must be above 0, not 0"):
        load_recipe(DEMO, fraction=0.0)


@pytest.mark.parametrize("name", ["small", "nano"])
def test_the_papers_recipes_say_its_pooling_and_prompts(name):
    student = load_recipe(DEMO.with_name(f"{name}.yaml")).student
    assert (student.pooling, student.prompts, student.append_eos) == ("lasttoken", "paper", True)


@pytest.mark.parametrize(
    ("settings", "pooling", "prompts"),
    [
        ((), "mean", ["", ""]),
        (("pooling=cls",), "cls", ["", ""]),
        (("pooling=lasttoken", "prompts=paper"), "lasttoken", [*PROMPTS.values()]),
        (("base=BERT",), "lasttoken", [*PROMPTS.values()]),
        (("base=BERT", "pooling=mean", "prompts=none"), "mean", ["", ""]),
    ],
)
def test_a_recipes_student_pools_and_asks_as_it_says_or_as_its_base(
    backbones, settings, pooling, prompts
):
    own = ("layers=2", "matryoshka_dims=[]", "pooling=''", "prompts=own", "append_eos=null")
    asked = [each.replace("BERT", backbones["bert"]) for each in (*own, *settings)]
    run = Run(load_recipe(DEMO, [f"student.{each}" for each in asked]))
    student = run.new_student()
    assert student[1].pooling_mode == pooling
    assert student[0].append_eos == (pooling == "lasttoken")
    assert [student.prompts[name] for name in PROMPTS] == prompts
    assert [*run._words()] == prompts  # and the corpus, if the vocabulary is cut to one


def test_a_pooling_that_no_student_has_is_refused_by_its_path():
    with pytest.raises(RecipeError, match=r"student.pooling must be one of .*lasttoken, not 'max'"):
        load_recipe(DEMO, ["student.pooling=max"])


@pytest.mark.parametrize(
    ("blends", "message"),
    [
        ("{even: {retreival: 1}}", "evaluation.blends.even: unknown adapter 'retreival'; known: r"),
        ("{even: {}}", "evaluation.blends.even: names no adapter; known: retrieval"),
    ],
)
def test_blends_are_of_adapters_that_the_recipe_trains(blends, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(DEMO, [f"evaluation.blends={blends}"])


def test_labelled_texts_stand_where_a_loss_reads_labels():
    told = ["adapters.clustering.data={wordnet-nouns: 1}"]
    with pytest.raises(RecipeError, match=r"clustering.data.wordnet-nouns: this phase's loss"):
        load_recipe(DEMO, told)
    load_recipe(DEMO, [*told, "adapters.clustering.loss={infonce_weight: 1}"])
    with pytest.raises(RecipeError, match=r"stage1.data.wordnet-nouns"):
        load_recipe(DEMO, ["stage1.data={wordnet-nouns: 1}"])


@pytest.mark.parametrize(
    ("blends", "message"),
    [
        ("{my blend: {retrieval: 1}}", "'my blend' cannot be the name of an adapter"),
        ("{pop: {retrieval: 1}}", "'pop' cannot be the name of an adapter"),
        ("{base: {retrieval: 1}}", "evaluation.blends: 'base' is used already"),
        ("{even: {retrieval: .inf}}", "evaluation.blends.even: .*inf"),
        ("{even: {retrieval: 0}}", "evaluation.blends.even: all weights are 0"),
    ],
)
def test_blends_that_cannot_be_measured_are_refused_before_any_work(blends, message):
    run = Run(load_recipe(DEMO, [f"evaluation.blends={blends}"]))
    with pytest.raises(RecipeError, match=message):
        check_beside(run)
