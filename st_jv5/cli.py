"""``st-jv5``: recipes, models, vectors and teachers, from the shell."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Sequence

import st_jv5
from st_jv5.commands import (
    adapters,
    convert,
    evaluation,
    models,
    new,
    recipes,
    serve,
    teacher,
    texts,
    vectors,
)

EPILOG = """from your own text to a model:
  st-jv5 new faq.jsonl && st-jv5 train recipe.yaml
`st-jv5 COMMAND --help` shows an example of each"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Example:
        >>> save_adapter(model, "retrieval", task_folder)
        >>> main(["average", task_folder, task_folder, "--out", averaged_folder])
        retrieval: the mean of 2 adapters, factored to rank 4, which loses 0.0% of its squared norm
    """
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser().parse_args(argv)
    args.line = shlex.join(["st-jv5", *argv])
    run(args)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; it imports nothing that a command needs to run."""
    parser = argparse.ArgumentParser(
        prog="st-jv5",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"st-jv5 {st_jv5.__version__}")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    families = (
        *(new, recipes, evaluation, vectors, convert, models, serve),
        *(adapters, teacher, texts),
    )
    for family in families:
        family.add_commands(commands)
    return parser


def train(argv: Sequence[str] | None = None) -> None:
    """``st-jv5 train``, which a checkout's ``training/run.py`` is."""
    main(["train", *(sys.argv[1:] if argv is None else argv)])


def evaluate(argv: Sequence[str] | None = None) -> None:
    """``st-jv5 eval``, which a checkout's ``eval/run_mteb.py`` is."""
    main(["eval", *(sys.argv[1:] if argv is None else argv)])


def compare(argv: Sequence[str] | None = None) -> None:
    """``st-jv5 compare``, which a checkout's ``eval/compare.py`` is."""
    main(["compare", *(sys.argv[1:] if argv is None else argv)])


def run(args: argparse.Namespace) -> None:
    """Run a command: one line for an error that its user can mend, a traceback for a bug."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal may lack a character of a text
            stream.reconfigure(errors="backslashreplace")
    try:
        from st_jv5.machine.cpu import bound_kernel_cache
        from st_jv5.quiet import quiet

        bound_kernel_cache()
        with quiet():
            args.run(args)
    except KeyboardInterrupt:
        goes_on = "; run the same command again to continue" if args.resumes else ""
        raise SystemExit(f"stopped{goes_on}") from None
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        if args.debug:
            raise
        if not isinstance(error, mendable()):
            traceback.print_exc()
            told = "this is a bug in st-jv5; please report it with the lines above"
            raise SystemExit(told) from error
        raise SystemExit(f"error: {error}") from error


def mendable() -> tuple[type[Exception], ...]:
    """Errors that the user of a command can mend: settings, files, packages, memory."""
    import torch

    return OSError, ValueError, ImportError, MemoryError, torch.OutOfMemoryError
