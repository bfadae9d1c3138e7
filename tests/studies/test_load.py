"""The load study, at a second a part."""

from __future__ import annotations

import json

import pytest

from eval.studies import load


@pytest.mark.full
def test_the_study_tells_speed_and_latency_of_vectors_that_are_right(saved, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["load", "--model", saved, "--clients", "2", "--seconds", "1"])
    load.main()
    (told,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["texts"] > 0
    assert 0 < told["p50"] <= told["p99"]
