"""Which task serves some examples best: scores by hand, planted answers, noise, errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

import st_jv5
from st_jv5 import choosing, cli
from st_jv5.choosing import choice_of, of_labelled, of_pairs, of_scored

ALL = np.arange(12)[None]
BLEND = {"retrieval": 0.7, "classification": 0.3}


def cosines(seed: int = 0, count: int = 12) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, 5))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ np.roll(rows, 1, axis=1).T


def share(found: np.ndarray, together: list[tuple], apart: list[tuple]) -> float:
    right = sum(found[a] > found[b] for a in together for b in apart)
    return 100 * right / (len(together) * len(apart))


# --------------------------------------------------------------------------------- by hand


def test_pairs_are_scored_by_all_comparisons_with_documents_of_others():
    examples = [(f"q{i}", f"d{i}") for i in range(12)]
    examples[3] = ("q2", "d3")  # two documents of one query
    examples[5] = ("q5", "d4")  # two queries of one document
    n = range(12)
    apart = [(i, j) for i in n for j in n if (examples[i][0], examples[j][1]) not in examples]
    assert len(apart) == 132 - 4
    expected = share(cosines(), [(i, i) for i in n], apart)
    assert of_pairs(cosines(), examples)(ALL)[0] == pytest.approx(expected)


def test_labels_are_scored_by_all_comparisons_of_same_and_other():
    labels = ["a", "b", "c", "a", "b", "a", "b", "b", "a", "a", "d", "c"]
    pairs = [(i, j) for i in range(12) for j in range(i + 1, 12)]
    same = [(i, j) for i, j in pairs if labels[i] == labels[j]]
    expected = share(cosines(), same, [pair for pair in pairs if pair not in same])
    assert of_labelled(cosines(), labels)(ALL)[0] == pytest.approx(expected)


@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_a_resample_is_scored_as_its_own_examples_would_be(monkeypatch, chunk):
    monkeypatch.setattr(choosing, "CHUNK_ELEMENTS", chunk)
    draw = np.random.default_rng(1).integers(12, size=(3, 12))
    labels = np.array([0, 1, 2, 0, 1, 0, 1, 1, 0, 0, 2, 2])
    examples = [(f"q{i}", f"d{i}") for i in range(12)]
    by_label, by_pair = of_labelled(cosines(), labels)(draw), of_pairs(cosines(), examples)(draw)
    for row, found, paired in zip(draw, by_label, by_pair, strict=True):
        drawn = [(i, j) for x, i in enumerate(row) for j in row[x + 1 :] if i != j]
        upper = [(min(pair), max(pair)) for pair in drawn]
        same = [(i, j) for i, j in upper if labels[i] == labels[j]]
        apart = [(i, j) for i, j in upper if labels[i] != labels[j]]
        assert found == pytest.approx(share(cosines(), same, apart))
        others = [(i, j) for i in row for j in row if i != j]
        assert paired == pytest.approx(share(cosines(), [(i, i) for i in row], others))
    numbers = np.arange(12) ** 1.5
    scored = of_scored(cosines()[0], numbers)(draw)
    expected = [np.corrcoef(cosines()[0][row], numbers[row])[0, 1] for row in draw]
    np.testing.assert_allclose(scored, 100 * np.array(expected))


def test_scores_do_not_move_with_the_scale_and_know_the_ends():
    labels = [0] * 6 + [1] * 6
    perfect = np.equal.outer(labels, labels) * 1.0
    assert of_labelled(perfect, labels)(ALL)[0] == 100
    assert of_labelled(-perfect, labels)(ALL)[0] == 0
    assert of_labelled(np.zeros((12, 12)), labels)(ALL)[0] == 0  # equally near: no order
    assert of_scored(np.ones(12), range(12))(ALL)[0] == 0
    examples = [(f"q{i}", f"d{i}") for i in range(12)]
    for of, told in ((of_pairs, examples), (of_labelled, labels)):
        assert of(cosines(), told)(ALL) == pytest.approx(of(0.3 * cosines() + 0.2, told)(ALL))


# ------------------------------------------------------------------------- planted answers


def test_the_adapter_that_the_labels_were_made_with_is_chosen(model, texts):
    vectors = model.encode(texts, task="clustering")
    side = (vectors - vectors.mean(axis=0)) @ np.linalg.svd(vectors - vectors.mean(axis=0))[2][0]
    labelled = [(text, "left" if x < 0 else "right") for text, x in zip(texts, side, strict=True)]
    choice = st_jv5.choose_task(model, labelled=labelled)
    assert choice.task == "clustering"
    assert choice.is_certain
    assert list(choice.scores) == ["base", *st_jv5.tasks(model)]
    assert choice.examples == 64
    assert choice.advice.startswith("Take clustering: better than the base by more than noise; ")
    assert choice.scores["clustering"] == max(choice.scores.values())


def test_the_blend_that_the_numbers_were_made_with_is_chosen(model, texts):
    one, other = model.encode(texts[:32], task=BLEND), model.encode(texts[32:], task=BLEND)
    numbers = (one * other).sum(axis=1).tolist()
    scored = list(zip(texts[:32], texts[32:], numbers, strict=True))
    choice = st_jv5.choose_task(model, scored=scored, candidates=["retrieval", BLEND, BLEND])
    assert choice.task == BLEND
    assert list(choice.scores) == ["base", "retrieval", BLEND]
    assert choice.scores[choice.task] == pytest.approx(100, abs=1e-3)
    assert str(choice.task) in str(choice)
    np.testing.assert_allclose(model.encode(texts[:32], task=choice.task), one, atol=1e-6)
    st_jv5.blend_tasks(model, "mine", choice.task)
    again = st_jv5.choose_task(model, scored=scored)
    assert again.task == "mine"


def test_pairs_are_encoded_as_queries_and_documents(model, texts):
    asked = model.encode(texts[:20], task="query")
    found = model.encode(texts[20:], task="retrieval")
    nearest = (asked @ found.T).argmax(axis=1)
    pairs = [(query, texts[20 + row]) for query, row in zip(texts[:20], nearest, strict=True)]
    choice = st_jv5.choose_task(model, pairs=pairs, candidates=["retrieval"])
    assert choice.task == "retrieval"
    known = set(pairs)
    expected = share(
        asked @ found[nearest].T,
        [(i, i) for i in range(20)],
        [(i, j) for i in range(20) for j in range(20) if (pairs[i][0], pairs[j][1]) not in known],
    )
    assert choice.scores["retrieval"] == pytest.approx(expected, abs=0.3)  # near ties


def test_fresh_adapters_are_no_better_than_the_base(student, texts):
    st_jv5.add_task(student, "retrieval")
    labelled = [(text, i % 3) for i, text in enumerate(texts[:12])]
    choice = st_jv5.choose_task(student, labelled=labelled)
    assert choice.task == "base"
    assert choice.runner_up is None
    assert not choice.is_certain
    assert choice.advice == "Take base: no candidate differs from it."
    assert choice.above_base["retrieval"].value == 0


# ------------------------------------------------------------------------------------ noise


def means(**values: np.ndarray):
    return {name: lambda draws, own=own: own[draws].mean(axis=1) for name, own in values.items()}


def test_what_is_certain_and_what_is_noise():
    noise = np.random.default_rng(0).standard_normal(64)
    other = np.random.default_rng(1).standard_normal(64)
    base = 50 + noise
    choice = choice_of(means(base=base, better=base + 1 + 0.1 * other), "labelled", 64)
    assert (choice.task, choice.runner_up, choice.is_certain) == ("better", "base", True)
    assert choice.above_base["better"].low < 1 < choice.above_base["better"].high + 0.1
    assert choice.advice == "Take better: better than the base by more than noise."
    choice = choice_of(means(base=base, close=base + 0.05 + other - other.mean()), "pairs", 64)
    assert choice.task == "close"
    assert not choice.is_certain
    assert "within noise of the base" in choice.advice
    choice = choice_of(means(base=base, worse=base - 1 + 0.1 * other), "scored", 64)
    assert (choice.task, choice.is_certain) == ("base", True)
    assert choice.advice.startswith("Take base: no other is better on these examples; worse is")
    tied = choice_of(means(base=base, same=base, last=base - 0.01 * other**2), "pairs", 64)
    assert (tied.task, tied.runner_up) == ("base", "last")


def test_a_task_made_for_the_examples_is_left_only_for_one_that_is_surely_better():
    draw = np.random.default_rng(2)
    base, noise = 50 + draw.standard_normal(64), draw.standard_normal(64)
    noise -= noise.mean()
    near = means(base=base, retrieval=base + 1, other=base + 1.05 + noise)
    choice = choice_of(near, "pairs", 64)
    assert (choice.task, choice.runner_up, choice.is_certain) == ("retrieval", "other", False)
    assert choice.advice == (
        "Take retrieval, which is made for such examples: other is 0.05 above it, within noise."
    )
    assert choice_of(near, "scored", 64).task == "other"  # retrieval is made for pairs
    surely = means(base=base, retrieval=base + 1, other=base + 2 + 0.1 * noise)
    assert choice_of(surely, "pairs", 64).task == "other"
    two = means(
        base=base, clustering=base + 0.8, classification=base + 1, other=base + 1.05 + noise
    )
    assert choice_of(two, "labelled", 64).task == "classification"
    same = means(base=base, retrieval=base)
    assert choice_of(same, "pairs", 64).task == "base"


def test_the_interval_holds_what_it_says():
    inside = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        base = draw.standard_normal(64)
        gap = choice_of(means(base=base, one=base + draw.standard_normal(64)), "pairs", 64)
        inside += gap.above_base["one"].low <= 0 <= gap.above_base["one"].high
    assert 180 <= inside <= 198


# ----------------------------------------------------------------------------------- errors


PAIRS = [(f"query {i}", f"document {i}") for i in range(8)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give examples of one kind, pairs, scored, labelled; got none"),
        ({"pairs": PAIRS, "labelled": PAIRS}, "got pairs and labelled"),
        ({"pairs": PAIRS[:7]}, "7 different examples are too few; give 8 or more, best 64"),
        ({"pairs": PAIRS[:7] * 2}, "7 different examples"),
        ({"labelled": []}, "0 different examples"),
        ({"pairs": [*PAIRS, "ab"]}, r"example 8 of pairs must be \(query, document\), not 'ab'"),
        ({"pairs": [*PAIRS, ("a", 3)]}, r"example 8 of pairs must be .*, not \('a', 3\)"),
        ({"pairs": [None]}, "example 0 of pairs must be"),
        ({"scored": PAIRS}, r"example 0 of scored must be \(sentence1, sentence2, score\)"),
        ({"scored": [("a", "b", "c")]}, "example 0 of scored must have a finite number"),
        ({"scored": [("a", "b", float("nan"))]}, "a finite number as its score, not nan"),
        ({"labelled": [("a", None)]}, "example 0 of labelled must have a label, not None"),
        ({"labelled": [("a", [1])]}, r"example 0 of labelled must have a label, not \[1\]"),
        ({"labelled": [(q, "x") for q, _ in PAIRS]}, "all 8 examples have the label 'x'"),
        ({"scored": [(q, d, 1.0) for q, d in PAIRS]}, "all 8 examples have the score 1.0"),
        ({"pairs": [(q, "same") for q, _ in PAIRS]}, "all 8 examples have the document 'same'"),
        ({"pairs": [("same", d) for _, d in PAIRS]}, "all 8 examples have the query 'same'"),
        ({"labelled": PAIRS}, "each of 8 texts has a different label"),
        ({"pairs": PAIRS, "candidates": ["retreival"]}, "did you mean 'retrieval'"),
        ({"pairs": PAIRS, "candidates": ["base"]}, "only the base to choose"),
        ({"pairs": PAIRS, "candidates": [{"retrieval": float("inf")}]}, "a finite number"),
    ],
)
def test_examples_that_tell_nothing_are_refused(model, given, said):
    with pytest.raises(ValueError, match=said):
        st_jv5.choose_task(model, **given)


# ------------------------------------------------------------------------- from the shell


def test_the_command_reads_each_kind_and_tells(saved, texts, tmp_path, capsys):
    lines = [{"text": text, "label": i % 2, "more": 1} for i, text in enumerate(texts[:40])]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    blend = "retrieval=0.7,classification=0.3"
    cli.main(["choose", saved, str(tmp_path / "l.jsonl"), "--blend", blend, "--most", "20"])
    told = capsys.readouterr().out
    labelled = [(lines[round(i * 39 / 19)]["text"], round(i * 39 / 19) % 2) for i in range(20)]
    model = st_jv5.jina.load_model(saved)
    candidates = [*st_jv5.tasks(model), BLEND]
    assert told.strip() == str(st_jv5.choose_task(model, labelled=labelled, candidates=candidates))
    assert "0.7 retrieval + 0.3 classification" in told
    assert "on 20 examples" in told
    rows = [f'"{a}","{b}",{i}' for i, (a, b) in enumerate(zip("abcdefgh", "ijklmnop", strict=True))]
    (tmp_path / "s.csv").write_text("\n".join(["sentence1,sentence2,score", *rows]))
    cli.main(["choose", saved, str(tmp_path / "s.csv"), "--tasks", "clustering"])
    told = capsys.readouterr().out
    assert "correlation" in told
    assert "retrieval" not in told


def test_files_that_hold_no_examples_are_refused(saved, tmp_path):
    wrong = tmp_path / "a.csv"
    wrong.write_text("text,score\na,1\n")
    for arguments, said in (
        (["missing.csv"], "no file missing.csv"),
        ([str(wrong)], r"a\.csv has single texts, which are no examples; wanted are texts: query"),
        ([__file__], r"must end with one of \.txt, \.parquet, \.jsonl, \.json, \.csv"),
        ([str(wrong), "--most", "0"], "most must be positive, not 0"),
    ):
        with pytest.raises(SystemExit, match=said):
            cli.main(["choose", saved, *arguments])
    wrong.write_text("text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(9)))
    with pytest.raises(SystemExit, match="a blend is TASK=WEIGHT"):
        cli.main(["choose", saved, str(wrong), "--blend", "retrieval"])
