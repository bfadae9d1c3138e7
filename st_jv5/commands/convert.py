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
        "turn a folder of a model's base vectors into a task's, without the texts",
        "st-jv5 convert vectors --task retrieval --out retrieval-vectors",
        run_convert,
    )
    parser.add_argument("folder", help="what st-jv5 encode --task base wrote, at full width")
    parser.add_argument("--task", required=True, help="an adapter with a head in the model")
    parser.add_argument("--out", required=True, help="new folder")
    parser.add_argument("--model", help="where the model is, if not where the folder says")


def run_convert(args: argparse.Namespace) -> None:
    """Convert, and tell what is there."""
    from st_jv5.commands.vectors import summary
    from st_jv5.vectors import convert

    print(summary(convert(args.folder, args.task, args.out, model=args.model)))
