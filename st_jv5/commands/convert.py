"""``st-jv5 convert``."""

from __future__ import annotations

import argparse
from typing import Any

from st_jv5.commands.parsers import add_command


def add_commands(commands: Any) -> None:
    """Add it to a parser's commands."""
    parser = add_command(
        commands,
        "convert",
        "turn stored vectors of a model's base into a task's vectors, without the texts",
        "st-jv5 convert vectors --task retrieval --out retrieval-vectors",
        run_convert,
    )
    parser.add_argument("folder", help="folder that st-jv5 encode --task base wrote, at full width")
    parser.add_argument("--task", required=True, help="a task that has a head in the model")
    parser.add_argument("--out", required=True, help="folder to write; it must be new")
    parser.add_argument("--model", help="folder or Hub id of the model, if it has moved")


def run_convert(args: argparse.Namespace) -> None:
    """Convert, and print a summary."""
    from st_jv5.commands.vectors import summary
    from st_jv5.vectors import convert

    print(summary(convert(args.folder, args.task, args.out, model=args.model)))
