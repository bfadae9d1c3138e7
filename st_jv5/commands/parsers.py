"""What the commands' parsers share."""

from __future__ import annotations

import argparse
import logging
import textwrap
from collections.abc import Callable
from typing import Any


def add_command(
    commands: Any,
    name: str,
    about: str,
    example: str,
    run: Callable[[argparse.Namespace], None],
    more: str = "",
    resumes: bool = False,
) -> argparse.ArgumentParser:
    """Add a command with its help text and an example.

    Args:
        commands: What ``ArgumentParser.add_subparsers`` returned.
        name: Name of the command.
        about: What it does, in a line.
        example: One or more lines for the shell, each a whole command.
        run: Called with the parsed arguments; it imports what it needs itself, so that ``--help``
            is quick.
        more: Further sentences for the command's own help.
        resumes: Whether the same command continues where it was stopped.
    """
    lines = "\n".join(f"  {line.strip()}" for line in example.strip().splitlines())
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about.replace("%", "%%"),
        description=textwrap.fill(f"{about[0].upper()}{about[1:]}. {more}", 80),
        epilog=f"example:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, resumes=resumes)
    return parser


def log_lines() -> None:
    """Log the lines of a recipe's run to stderr, and warnings of everything else."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("st_jv5.recipe", "st_jv5.teacher.filling"):
        logging.getLogger(name).setLevel(logging.INFO)
