"""``st-jv5 new``."""

from __future__ import annotations

import argparse
from typing import Any

from st_jv5.commands.parsers import add_command


def add_commands(commands: Any) -> None:
    """Add it to a parser's commands."""
    parser = add_command(
        commands,
        "new",
        "look at your own data, and write a first recipe for it",
        "st-jv5 new faq.jsonl reviews.csv --out recipe.yaml",
        run_new,
    )
    parser.add_argument(
        "files",
        nargs="+",
        help=".jsonl, .json, .csv, .tsv, .txt (also .gz, .zst) or .parquet files, folders or "
        "patterns; each becomes a data set",
    )
    parser.add_argument(
        "--out", default="recipe.yaml", help="file to write; it must be new; default recipe.yaml"
    )
    parser.add_argument("--base", help="model to train; default all-MiniLM-L6-v2")
    parser.add_argument("--teacher", help="model to learn from; default all-mpnet-base-v2")


def run_new(args: argparse.Namespace) -> None:
    """Print what the files hold, write the recipe, and print what to do next."""
    from st_jv5.recipe.new import BASE, TEACHER, new_recipe

    lines = new_recipe(args.files, args.out, args.base or BASE, args.teacher or TEACHER)
    print("\n".join(lines))
    print(f"{args.out}: read it, then st-jv5 train {args.out}")
