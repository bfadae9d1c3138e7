"""Runs side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval.compare import main
from st_jv5.files import write_json


def run(folder: Path, values: dict[str, list[float] | None]) -> str:
    """A folder of results.json with the samples of some tasks."""
    tasks = {
        task: {
            "metric": "accuracy",
            "main_score": 0.5 if found is None else float(np.mean(found)),
            "samples": found and {"statistic": "mean", "values": found, "gold": None},
        }
        for task, found in values.items()
    }
    write_json(folder / "results.json", {"model": "m", "settings": "s", "tasks": tasks})
    return str(folder)


def test_a_gap_is_told_from_noise(tmp_path, capsys):
    draw = np.random.default_rng(0)
    base = draw.random(300)
    noisy = (base + 0.1 * draw.standard_normal(300)).tolist()
    one = {"A": base.tolist(), "B": base.tolist(), "C": base.tolist(), "D": None, "E": [0.5] * 9}
    other = {"A": (base + 0.1).tolist(), "B": (base - 0.1).tolist(), "C": noisy, "D": None}
    other |= {"E": [0.5] * 8, "F": [1.0] * 5}
    main([run(tmp_path / "one", one), run(tmp_path / "two", other)])
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert header == "| task | metric | one | two |"
    cells = {line.split("|")[1].strip(): line.split("|")[4].strip() for line in lines}
    assert "+10.0 (+10.0 to +10.0) better" in cells["A"]
    assert "-10.0 (-10.0 to -10.0) worse" in cells["B"]
    assert cells["C"].endswith("within noise")
    assert cells["D"].endswith("+0.0 (no samples)")
    assert cells["E"].endswith("(other samples: not comparable)")
    assert cells["F"] == "100.0"
    assert "| F | accuracy | - | 100.0 |" in lines


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path, capsys):
    folders = [run(tmp_path / name / "eval", {"A": [1.0, 0.0]}) for name in ("x", "y")]
    main(folders)
    assert capsys.readouterr().out.startswith("| task | metric | x/eval | y/eval |")


def test_what_cannot_be_compared_is_named(tmp_path):
    folder = run(tmp_path / "x", {"A": [1.0]})
    with pytest.raises(SystemExit, match=r"no results.json in .*absent"):
        main([folder, str(tmp_path / "absent")])
    with pytest.raises(SystemExit, match="is named twice"):
        main([folder, folder])
    with pytest.raises(SystemExit):
        main([folder, "--resamples", "0"])
