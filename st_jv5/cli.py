"""``st-jv5``: what the library does with folders, from the shell.

st-jv5 average checkpoint-30 checkpoint-40 --weights 1 3 --out averaged
st-jv5 teacher ls out/teacher
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from st_jv5.adapter_file import CONFIG_FILE
from st_jv5.adapters import average_adapters
from st_jv5.teacher.commands import add_commands


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Example:
        >>> take_task(model, "retrieval", task_folder)
        >>> main(["average", task_folder, task_folder, "--out", averaged_folder])
        retrieval: the mean of 2 adapters, factored to rank 4, which loses 0.0% of its squared norm
    """
    parser = argparse.ArgumentParser(
        prog="st-jv5", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    average = commands.add_parser(
        "average", help="average adapters of one task and base, such as two checkpoints of a run"
    )
    average.add_argument("folders", nargs="+", help="adapters, or checkpoints that hold one each")
    average.add_argument("--weights", nargs="+", type=float, help="one per folder; default: equal")
    average.add_argument(
        "--method",
        choices=["product", "factors"],
        default="product",
        help="of the products B·A, re-factored to the rank; or of A and B each",
    )
    average.add_argument("--out", required=True, help="folder for the average")
    average.set_defaults(run=run_average)
    add_commands(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


def run_average(args: argparse.Namespace) -> None:
    """Average, save and tell what the rank lost."""
    out = Path(args.out)
    if (out / CONFIG_FILE).exists():
        raise ValueError(f"{out} holds an adapter already; choose another --out")
    adapter, lost = average_adapters(args.folders, args.weights, args.method)
    adapter.save(out)
    how = f"factored to rank {adapter.config.r}, which loses {lost:.1%} of its squared norm"
    if args.method == "factors":
        how = "of their factors A and B"
    print(f"{adapter.task.name}: the mean of {len(args.folders)} adapters, {how}")


if __name__ == "__main__":
    main()
