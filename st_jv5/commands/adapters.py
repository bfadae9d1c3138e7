"""``st-jv5 average`` and ``st-jv5 choose``: average adapters; find the best task for a use."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from st_jv5.commands.parsers import add_command


def add_commands(commands: Any) -> None:
    """Add both to a parser's commands."""
    average = add_command(
        commands,
        "average",
        "average adapters with the same task and base, such as checkpoints of a run",
        "st-jv5 average checkpoint-30 checkpoint-40 --weights 1 3 --out averaged",
        run_average,
    )
    average.add_argument(
        "folders", nargs="+", help="adapters, or checkpoints that hold one adapter each"
    )
    average.add_argument(
        "--weights", nargs="+", type=float, help="one number per folder; default: all equal"
    )
    average.add_argument(
        "--method",
        choices=["product", "factors"],
        default="product",
        help="product: average the updates B·A and factor the mean to the rank; factors: average A "
        "and B separately",
    )
    average.add_argument("--out", required=True, help="folder to write the average to")
    parser = add_command(
        commands,
        "choose",
        "find the task that serves a use best, by some examples of it",
        "st-jv5 choose out/demo/model examples.jsonl",
        run_choose,
    )
    parser.add_argument(
        "model", help="folder or Hub id; also a published jina-embeddings-v5-text model"
    )
    parser.add_argument(
        "file",
        help=".jsonl, .csv or .parquet with the columns query, document; or sentence1, sentence2, "
        "score; or text, label",
    )
    parser.add_argument("--tasks", nargs="+", help="tasks to compare with the base; default: all")
    parser.add_argument(
        "--blend",
        action="append",
        default=[],
        metavar="TASK=WEIGHT,...",
        help="also compare a blend: retrieval=0.7,classification=0.3; may be given several times",
    )
    parser.add_argument("--most", type=int, default=64, help="most rows to use; default 64")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub model")


def run_average(args: argparse.Namespace) -> None:
    """Average, save, and print what the rank lost."""
    from st_jv5.adapters import average_adapters
    from st_jv5.folders.adapter_file import CONFIG_FILE

    out = Path(args.out)
    if (out / CONFIG_FILE).exists():
        raise ValueError(f"{out} holds an adapter already; choose another --out")
    adapter, lost = average_adapters(args.folders, args.weights, method=args.method)
    adapter.save(out)
    how = f"factored to rank {adapter.config.r}, which loses {lost:.1%} of its squared norm"
    if args.method == "factors":
        how = "of their factors A and B"
    print(f"{adapter.task.name}: the mean of {len(args.folders)} adapters, {how}")


def run_choose(args: argparse.Namespace) -> None:
    """Read the examples, score the candidates, and print which one to use."""
    from st_jv5.adapters import tasks
    from st_jv5.choosing import choose_task, read_examples
    from st_jv5.jina import load_model

    kind, examples = read_examples(args.file, args.most)
    blends = [blend_of(told) for told in args.blend]
    model = load_model(args.model, args.revision)
    known = tasks(model) if args.tasks is None else args.tasks
    print(choose_task(model, **{kind: examples}, candidates=[*known, *blends]))


def blend_of(told: str) -> dict[str, float]:
    """A blend from the command line: ``retrieval=0.7,classification=0.3``."""
    try:
        parts = [part.split("=") for part in told.split(",")]
        return {name.strip(): float(weight) for name, weight in parts}
    except ValueError:
        raise ValueError(f"a blend is TASK=WEIGHT,TASK=WEIGHT,..., not {told!r}") from None
