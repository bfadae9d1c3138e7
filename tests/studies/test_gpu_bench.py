"""The bench for a GPU, at a size that a CPU runs."""

from __future__ import annotations

import json

import pytest

from eval.gpu import bench


@pytest.mark.full
def test_every_part_of_the_bench_runs_to_its_end(tmp_path):
    bench.main(["--tiny", "--output", str(tmp_path)])
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines if line["name"] == "done"] == list(bench.PARTS)
    assert not [line for line in lines if line["name"] == "failed"]


def test_an_unknown_part_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no part 'steps'; known: machine, equality"):
        bench.main(["steps", "--output", str(tmp_path)])
