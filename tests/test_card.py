"""What others wrote stands in a card as words."""

from __future__ import annotations

import re

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from st_jv5.folders.card import TEMPLATE, as_code, as_words, model_card
from tests.conftest import ROOT

EVIL = "a/b\nlicense: apache-2.0\n---\n# x | `y` <script>alert(1)</script> [z](http://evil)"


def card(name: str, value: str) -> str:
    names = set(re.findall(r"\$(\w+)", TEMPLATE.read_text())) - {"metadata"}
    facts = {each: f"the {each}" for each in names} | {name: value}
    score = EvalResult("STS", "local/mine", "mine", "spearman", 81.25)
    metadata = ModelCardData(
        license="mit", base_model=EVIL, model_name=EVIL, eval_results=[score], tags=[EVIL]
    )
    return model_card(facts, metadata)


@pytest.mark.parametrize("name", ["name", "base", "command", "tasks", "layers", "data", "limits"])
def test_no_fact_breaks_out_of_its_place(name):
    text = card(name, EVIL)
    data = ModelCard(text).data
    assert data.license == "mit"
    assert data.base_model == EVIL
    assert data.tags == [EVIL]
    body = text.split("\n---\n", 1)[1] if name in ("data", "limits") else text
    assert "<script" not in re.sub(r"^---\n.*?\n---\n", "", body, flags=re.S)


@pytest.mark.parametrize("name", ["name", "base", "command"])
def test_a_word_stays_on_its_line(name):
    body = re.sub(r"^---\n.*?\n---\n", "", card(name, EVIL), flags=re.S)
    assert "\nlicense: apache-2.0" not in body
    assert "](http://evil)" not in body
    assert "a/b license: apache-2.0" in body


def test_the_scores_are_told_to_the_hub():
    (found,) = ModelCard(card("name", "mini")).data.eval_results
    assert (found.dataset_name, found.metric_type, found.metric_value) == (
        "mine",
        "spearman",
        81.25,
    )


def test_a_missing_fact_is_named():
    with pytest.raises(ValueError, match="the model card lacks: about_scores, advice, base"):
        model_card({}, ModelCardData(license="mit"))


def test_code_keeps_its_spaces_and_its_place():
    assert as_code("Query: ") == "`Query: `"
    assert as_code("a`b\nc\x1b[31m") == "`a'b c[31m`"
    assert as_words("x\x00 <b>\n|") == "x\x00 &lt;b> &#124;"


def test_limits_and_which_adapter_stand_before_the_usage_and_the_scores():
    text = card("name", "mini")
    places = [text.index(f"the {name}") for name in ("limits", "advice", "usage", "scores")]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["demo", "laptop"])
def test_a_card_of_the_repository_is_laid_out_as_it_is_written_now(name):
    text = (ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8")
    wanted = re.findall(r"^## .+$", TEMPLATE.read_text(encoding="utf-8"), re.M)
    wanted.insert(1, "## Which adapter")  # where there are adapters
    added = ["## Smaller and faster"]  # by hand, of studies
    found = re.findall(r"^## .+$", text, re.M)
    assert [heading for heading in found if heading not in added] == wanted
    for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (ROOT / "model_cards" / link).is_file()
