"""Batches that cannot be cut, and devices that draw their random numbers otherwise."""

from __future__ import annotations

import pytest
import torch

import st_jv5
from st_jv5.losses import embed
from st_jv5.losses.embed import embed_columns
from st_jv5.machine.cuda import without_cudnn_attention


def flat(model, texts):
    """What a plain trainer has under flash attention: all texts in one row."""
    features = model.preprocess(texts)
    del features["attention_mask"]
    return features | {"cu_seq_lens_q": torch.tensor([0, 3])}


def test_columns_in_one_row_are_not_cut_without_a_word(model, texts):
    columns = [flat(model, texts[:4])]
    for setting in ({"mini_batch_size": 2}, {"mini_batch_tokens": 64}):
        with pytest.raises(ValueError, match="cannot cut columns that are flattened"):
            embed_columns(model, columns, **setting)


def test_cudnns_attention_is_off_in_training_alone(model, texts, monkeypatch):
    seen, stock = [], model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda *args, **kwargs: (
            seen.append(torch.backends.cuda.cudnn_sdp_enabled()) or stock(*args, **kwargs)
        ),
    )
    st_jv5.train_task(model, "retrieval")
    columns = [model.preprocess(texts[:4])]
    embed_columns(model, columns, mini_batch_size=2)[0].sum().backward()
    assert seen == [False] * 4
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with torch.no_grad():
        embed_columns(model, columns)
    assert seen[4:] == [True]
    with pytest.raises(KeyError), without_cudnn_attention():
        raise KeyError
    assert torch.backends.cuda.cudnn_sdp_enabled()
    first, second = without_cudnn_attention(), without_cudnn_attention()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # another thread's is still running
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    second.__exit__(None, None, None)
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_cudnns_attention_is_off_where_blocks_are_computed_again(model, texts, monkeypatch):
    seen, stock = [], torch.nn.functional.scaled_dot_product_attention

    def spy(*args, **kwargs):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return stock(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model[0].model.gradient_checkpointing_enable({"use_reentrant": False})
    st_jv5.train_task(model, "retrieval")
    model.train()
    embed_columns(model, [model.preprocess(texts[:4])], mini_batch_size=2)[0].sum().backward()
    assert len(seen) > 2 * model[0].model.config.num_hidden_layers
    assert not any(seen)


def test_a_macs_gpu_has_its_random_numbers_replayed(monkeypatch):
    state = [torch.tensor([1])]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state[0])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda new: state.__setitem__(0, new))
    device = torch.device("mps")
    ids, states = embed._device_states(device)
    assert (ids, [one.tolist() for one in states]) == ([], [[1]])
    state[0] = torch.tensor([2])
    with embed._random_numbers(device, torch.get_rng_state(), ids, states):
        assert state[0].tolist() == [1]
    assert state[0].tolist() == [2]
