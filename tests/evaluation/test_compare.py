"""Runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
import yaml

from st_jv5.cli import compare as main
from st_jv5.evaluation.compare import PUBLISHED, benchmark_tasks
from st_jv5.evaluation.local_tasks import WordNetSTS
from st_jv5.files import write_json
from st_jv5.recipe.results.measure import ChanceEncoder


def row(task: str, score: float, **settings: Any) -> dict[str, Any]:
    """One row of results.json."""
    return {
        "task": task,
        "type": "Classification",
        "adapter": None,
        "dim": 8,
        "precision": "float32",
        "max_tokens": 64,
        "metric": "accuracy",
        "main_score": score,
        "samples": None,
        **settings,
    }


def run(folder: Path, values: dict[str, list[float] | None], **settings: Any) -> str:
    """A folder of results.json with the samples of some tasks."""
    rows = [
        row(
            task,
            0.5 if found is None else float(np.mean(found)),
            samples=found and {"statistic": "mean", "values": found, "gold": None},
            **settings,
        )
        for task, found in values.items()
    ]
    write_json(folder / "results.json", {"model": "m", "weights": "w", "results": rows})
    return str(folder)


def test_a_gap_is_told_from_noise(tmp_path, capsys):
    draw = np.random.default_rng(0)
    base = draw.random(300)
    noisy = (base + 0.1 * draw.standard_normal(300)).tolist()
    one = {"A": base.tolist(), "B": base.tolist(), "C": base.tolist(), "D": None, "E": [0.5] * 9}
    other = {"A": (base + 0.1).tolist(), "B": (base - 0.1).tolist(), "C": noisy, "D": None}
    other |= {"E": [0.5] * 8, "F": [1.0] * 5}
    main([run(tmp_path / "one", one), run(tmp_path / "two", other)])
    caption, _, header, _, *lines = capsys.readouterr().out.splitlines()
    assert caption.endswith("Intervals hold 95% of a bootstrap over samples.")
    assert header == "| task | metric | one | two |"
    cells = {line.split("|")[1].strip(): line.split("|")[4].strip() for line in lines}
    assert "+10.0 (+10.0 to +10.0) better" in cells["A"]
    assert "-10.0 (-10.0 to -10.0) worse" in cells["B"]
    assert cells["C"].endswith("within noise")
    assert cells["D"].endswith("+0.0 (no samples)")
    assert cells["E"].endswith("(other samples: not comparable)")
    assert cells["F"] == "100.0"
    assert "| F | accuracy | - | 100.0 |" in lines


def test_the_page_draws_each_runs_differences_with_their_intervals(tmp_path, capsys):
    draw = np.random.default_rng(0)
    base = draw.random(100)
    first = run(tmp_path / "one", {"A": base.tolist(), "B": base.tolist(), "C": None})
    noisy = (base + 0.3 * draw.standard_normal(100)).tolist()
    rows = {"A": (base + 0.1).tolist(), "B": noisy, "C": None}
    page = tmp_path / "pages" / "compare.html"
    main([first, run(tmp_path / "two", rows), "--html", str(page)])
    assert f"page: {page}" in capsys.readouterr().out
    text = page.read_text()
    drawing = text[text.index("<svg") : text.index("</svg>")]
    for task in "ABC":
        assert f">{task}<" in drawing
    assert "var(--better)" in drawing  # A
    assert "var(--worse)" not in drawing  # B is noise, of C nothing is known: grey
    assert text.index("<svg") < text.index("<table")


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path, capsys):
    folders = [run(tmp_path / name / "eval", {"A": [1.0, 0.0]}) for name in ("x", "y")]
    main(folders)
    assert "\n| task | metric | x/eval | y/eval |\n" in capsys.readouterr().out


def test_what_cannot_be_compared_is_named(tmp_path):
    folder = run(tmp_path / "x", {"A": [1.0]})
    with pytest.raises(SystemExit, match=r"no results.json in .*absent"):
        main([folder, str(tmp_path / "absent")])
    with pytest.raises(SystemExit, match="is given twice"):
        main([folder, folder])
    with pytest.raises(SystemExit):
        main([folder, "--resamples", "0"])


def test_other_settings_of_a_run_are_said_once_and_those_of_a_task_in_its_cell(tmp_path, capsys):
    tasks: dict[str, Any] = {"A": [1.0, 0.0], "B": [1.0, 0.0], "C": [1.0, 0.0]}
    one, two = run(tmp_path / "one", tasks), run(tmp_path / "two", tasks, dim=4)
    record = json.loads((Path(two) / "results.json").read_text())
    record["results"][2]["max_tokens"] = 32
    write_json(Path(two) / "results.json", record)
    main([one, two])
    caption, *table = capsys.readouterr().out.splitlines()
    assert "two at dim 4, precision float32, max_tokens 64." in caption
    assert [" at " in line for line in table[3:]] == [False, False, True]
    assert "at max_tokens 32 |" in table[-1]
    main([one, one.replace("one", "./one/../one")])
    assert "Settings" not in capsys.readouterr().out


def test_published_averages_stand_beside_a_run_that_has_all_tasks(tmp_path, capsys):
    beir, long = benchmark_tasks("BEIR"), benchmark_tasks("LongEmbed")
    whole = run(tmp_path / "whole", dict.fromkeys(beir) | dict.fromkeys(long[:2]))
    name = "jina-embeddings-v5-text-nano (239M)"
    main([whole, "--published", name])
    lines = capsys.readouterr().out.splitlines()
    header = lines.index(f"| average of | whole | {name} |")
    rows = dict(line.strip("| ").split(" | ", 1) for line in lines[header + 2 :])
    assert rows[f"BEIR, {len(beir)} tasks"] == "50.0 | 56.1"
    assert rows[f"LongEmbed, {len(long)} tasks"] == f"2 of {len(long)} | 63.6"
    with pytest.raises(SystemExit, match="unknown model 'nano'"):
        main([whole, "--published", "nano"])


def test_every_published_benchmark_is_one_of_mtebs():
    for averages in yaml.safe_load(PUBLISHED.read_text()).values():
        assert len(averages) == 6
        for name in averages:
            assert benchmark_tasks(name), name
    retrieval = benchmark_tasks("MTEB(Multilingual, v2): Retrieval")
    assert 5 < len(retrieval) < len(benchmark_tasks("MTEB(Multilingual, v2)"))


def test_mtebs_own_result_files_are_read(tmp_path, capsys, small_tasks):
    cache = mteb.ResultCache(tmp_path / "mteb")
    mteb.evaluate(ChanceEncoder(), WordNetSTS(), cache=cache, show_progress_bar=False)
    folder = run(tmp_path / "one", {"WordNetSTS": [1.0, 0.0], "A": [1.0]})
    (file,) = (tmp_path / "mteb").rglob("WordNetSTS.json")
    name, where = "st_jv5/chance", ["--cache", str(tmp_path / "mteb")]
    main([folder, "--results", name, *where])
    score = 100 * json.loads(file.read_text())["scores"]["test"][0]["main_score"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == f"| task | metric | one | {name} |"
    assert f"| WordNetSTS | accuracy | 50.0 | {score:.1f} |" in lines
    assert "| A | accuracy | 100.0 | - |" in lines
    with pytest.raises(SystemExit, match=r"no results of org/none on these tasks in .*mteb"):
        main([folder, "--results", "org/none", *where])
