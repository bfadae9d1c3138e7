"""Runs side by side, and what of their differences is more than noise.

python eval/compare.py out/eval/one out/eval/other [...]     # folders of results.json

The first run is what the others are compared with: 95% intervals of a paired bootstrap over the
queries or samples of each task.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from eval.samples import Samples, paired_bootstrap
from st_jv5.files import read_json

Record = dict[str, Any]


def read_runs(folders: Sequence[str]) -> dict[str, Record]:
    """Name -> the tasks of ``results.json``; names are as short as tells them apart."""
    found: dict[str, Record] = {}
    for folder in folders:
        path = Path(folder) / "results.json"
        if not path.is_file():
            raise SystemExit(f"error: no results.json in {folder}; run eval/run_mteb.py first")
        parts = Path(folder).parts
        name = parts[-1]
        if sum(Path(other).name == name for other in folders) > 1:
            name = "/".join(parts[-2:])
        if name in found:
            raise SystemExit(f"error: {folder} is named twice, or no name tells it apart")
        found[name] = read_json(path)["tasks"]
    return found


def verdict(one: Record, other: Record, resamples: int) -> str:
    """How ``other``'s score differs from ``one``'s, in a few words."""
    gap = 100 * (other["main_score"] - one["main_score"])
    if not one.get("samples") or not other.get("samples"):
        return f"{gap:+.1f} (no samples)"
    try:
        pair = Samples(**other["samples"]), Samples(**one["samples"])
        low, high = (100 * bound for bound in paired_bootstrap(*pair, resamples))
    except ValueError:
        return f"{gap:+.1f} (other samples: not comparable)"
    word = "within noise" if low <= 0 <= high else "better" if low > 0 else "worse"
    return f"{gap:+.1f} ({low:+.1f} to {high:+.1f}) {word}"


def table(runs: dict[str, Record], resamples: int) -> str:
    """Markdown: a row per task, a column per run."""
    first, *others = runs
    tasks = list(dict.fromkeys(task for tasks in runs.values() for task in tasks))
    lines = [
        "| task | metric | " + " | ".join([first, *others]) + " |",
        "|---|---|" + "---|" * len(runs),
    ]
    for task in tasks:
        cells = []
        for name, found in runs.items():
            if task not in found:
                cells.append("-")
                continue
            score = f"{100 * found[task]['main_score']:.1f}"
            if name != first and task in runs[first]:
                score += f": {verdict(runs[first][task], found[task], resamples)}"
            cells.append(score)
        metric = next(found[task]["metric"] for found in runs.values() if task in found)
        lines.append(f"| {task} | {metric} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", help="folders of results.json; the first is compared with"
    )
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    args = parser.parse_args(argv)
    if args.resamples < 1:
        parser.error("--resamples must be positive")
    print(table(read_runs(args.runs), args.resamples))


if __name__ == "__main__":
    main()
