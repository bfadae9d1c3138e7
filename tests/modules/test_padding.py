"""What is known of the padding changes the mask, and no vector."""

from __future__ import annotations

import pytest
import torch

import st_jv5
from st_jv5.modules.padding import is_causal, known_padding, mask_for


@pytest.mark.parametrize("side", ["left", "right"])
def test_vectors_do_not_depend_on_what_is_known_of_the_padding(
    backbones, architecture, texts, side
):
    model = st_jv5.new_student(backbones[architecture])
    model.tokenizer.padding_side = side
    model.eval()
    several = model.preprocess(texts[:8], prompt="")
    with torch.inference_mode():
        plain = model(dict(several))["sentence_embedding"]
        with known_padding(side):
            told = model(dict(several))["sentence_embedding"]
    assert torch.allclose(plain, told, atol=1e-6)
    one = model.preprocess(texts[:1], prompt="")
    with torch.inference_mode():
        plain = model(dict(one))["sentence_embedding"]
        with known_padding("none"):
            told = model(dict(one))["sentence_embedding"]
    assert torch.allclose(plain, told, atol=1e-6)


def test_a_causal_decoder_that_is_padded_on_the_right_gets_no_mask(backbones, texts):
    masks = {}
    for architecture in ("qwen3", "eurobert"):
        model = st_jv5.new_student(backbones[architecture])
        backbone, mask = model[0].model, model.preprocess(texts[:8])["attention_mask"]
        assert mask_for(backbone, mask) == {}  # nothing known
        with known_padding("right"):
            masks[architecture] = mask_for(backbone, mask)["attention_mask"]
        assert is_causal(backbone) == (architecture == "qwen3")
    assert masks["qwen3"] == {"full_attention": None}
    n, tokens = mask.shape
    assert masks["eurobert"].shape == (n, 1, tokens, tokens)


def test_a_decoder_that_is_made_an_encoder_keeps_its_mask(backbones, texts):
    model = st_jv5.new_student(backbones["qwen3"]).eval()
    model[0].model.config.is_causal = False
    several = model.preprocess(texts[:8], prompt="")
    assert not is_causal(model[0].model)
    with torch.inference_mode():
        plain = model(dict(several))["sentence_embedding"]
        with known_padding("right"):
            told = model(dict(several))["sentence_embedding"]
    assert torch.allclose(plain, told, atol=1e-6)
