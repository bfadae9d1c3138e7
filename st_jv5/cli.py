"""``st-jv5``: what the library does with folders, from the shell.

st-jv5 export model --task retrieval --to onnx exported
st-jv5 publish model organisation/name --siblings --dry-run
st-jv5 choose model examples.jsonl
st-jv5 average checkpoint-30 checkpoint-40 --weights 1 3 --out averaged
st-jv5 encode model --task retrieval --in documents.parquet --column text --out vectors
st-jv5 search vectors "a question"
st-jv5 teacher ls out/teacher
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import st_jv5
from st_jv5.choices import EXPORTS
from st_jv5.commands import teacher, vectors


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Example:
        >>> save_adapter(model, "retrieval", task_folder)
        >>> main(["average", task_folder, task_folder, "--out", averaged_folder])
        retrieval: the mean of 2 adapters, factored to rank 4, which loses 0.0% of its squared norm
    """
    parser = argparse.ArgumentParser(
        prog="st-jv5", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"st-jv5 {st_jv5.__version__}")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    add_average(commands)
    add_choose(commands)
    add_export(commands)
    add_publish(commands)
    add_doctor(commands)
    vectors.add_commands(commands)
    teacher.add_commands(commands)
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    run(args)


def run(args: argparse.Namespace) -> None:
    """Run a command: a line for what its user can mend, a traceback for a fault of ours."""
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
        raise SystemExit("stopped; the same command goes on") from None
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        if args.debug:
            raise
        if not isinstance(error, mendable()):
            traceback.print_exc()
            told = "this is a fault of st-jv5; please report it with the lines above"
            raise SystemExit(told) from error
        raise SystemExit(f"error: {error}") from error


def mendable() -> tuple[type[Exception], ...]:
    """What the user of a command can mend: settings, files, packages, memory."""
    import torch

    return OSError, ValueError, ImportError, MemoryError, torch.OutOfMemoryError


def add_average(commands: Any) -> None:
    """``st-jv5 average``."""
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


def run_average(args: argparse.Namespace) -> None:
    """Average, save and tell what the rank lost."""
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


def add_choose(commands: Any) -> None:
    """``st-jv5 choose``."""
    parser = commands.add_parser(
        "choose", help="the task that serves a use best, by some examples of it"
    )
    parser.add_argument("model", help="folder or Hub id; a published jina-embeddings-v5-text, too")
    parser.add_argument(
        "file",
        help=".jsonl, .csv or .parquet with the columns query, document; or sentence1, sentence2, "
        "score; or text, label",
    )
    parser.add_argument("--tasks", nargs="+", help="to compare with the base; default: all")
    parser.add_argument(
        "--blend",
        action="append",
        default=[],
        metavar="TASK=WEIGHT,...",
        help="to compare, too: retrieval=0.7,classification=0.3; may be given several times",
    )
    parser.add_argument("--most", type=int, default=64, help="rows to take; default 64")
    parser.add_argument("--revision", help="of a Hub model")
    parser.set_defaults(run=run_choose)


def run_choose(args: argparse.Namespace) -> None:
    """Read the examples, score the candidates, and tell which to take."""
    from st_jv5.adapters import tasks
    from st_jv5.choosing import choose_task, read_examples
    from st_jv5.jina import load_model

    kind, examples = read_examples(args.file, args.most)
    blends = [blend_of(told) for told in args.blend]
    model = load_model(args.model, args.revision)
    known = tasks(model) if args.tasks is None else args.tasks
    print(choose_task(model, **{kind: examples}, candidates=[*known, *blends]))


def blend_of(told: str) -> dict[str, float]:
    """A blend as the shell has it: ``retrieval=0.7,classification=0.3``."""
    try:
        parts = [part.split("=") for part in told.split(",")]
        return {name.strip(): float(weight) for name, weight in parts}
    except ValueError:
        raise ValueError(f"a blend is TASK=WEIGHT,TASK=WEIGHT,..., not {told!r}") from None


def add_export(commands: Any) -> None:
    """``st-jv5 export``."""
    parser = commands.add_parser(
        "export", help="write one task for another engine, compared with the model on real text"
    )
    parser.add_argument("model", help="folder or Hub id; a published jina-embeddings-v5-text, too")
    parser.add_argument("folder", help="to be written; absent or empty")
    parser.add_argument("--task", required=True, help="an adapter, or base")
    parser.add_argument("--to", required=True, choices=EXPORTS, help="what to write")
    parser.add_argument("--revision", help="of a Hub model")
    parser.add_argument(
        "--int8", action="store_true", help="onnx, openvino: also int8 weights; tells the loss"
    )
    parser.add_argument("--llama-cpp", help="gguf: a checkout; default: $LLAMA_CPP")
    parser.set_defaults(run=run_export)


def run_export(args: argparse.Namespace) -> None:
    """Load in float32, write, and tell how close it is."""
    from st_jv5.adapters import router_of
    from st_jv5.export import export
    from st_jv5.jina import load_model
    from st_jv5.task_table import BASE

    model = load_model(args.model, args.revision, dtype="float32")
    task = router_of(model).resolve(args.task) or BASE  # an alias, too, as encode takes it
    found = export(model, task, args.folder, kind=args.to, int8=args.int8, llama_cpp=args.llama_cpp)
    for parity in found:
        print(parity)
    if not found:
        print("not compared: no llama-embedding in the checkout's build/bin or on the PATH")
    print(f"{task} as {args.to}: {args.folder}")


def add_publish(commands: Any) -> None:
    """``st-jv5 check`` and ``st-jv5 publish``."""
    check = commands.add_parser("check", help="try a folder as its users will")
    check.add_argument("folder", help="a saved model, with its card")
    check.set_defaults(run=run_check)
    publish = commands.add_parser("publish", help="check a model and send it to the Hub")
    publish.add_argument("folder", help="a saved model, with its card")
    publish.add_argument("repository", help="organisation/name")
    publish.add_argument("--siblings", action="store_true", help="each task merged, as NAME-TASK")
    publish.add_argument("--private", action="store_true", help="if it is new")
    publish.add_argument("--dry-run", action="store_true", help="send nothing")
    publish.set_defaults(run=run_publish)


def add_doctor(commands: Any) -> None:
    """``st-jv5 doctor``."""
    parser = commands.add_parser("doctor", help="what this machine has, and what would be faster")
    parser.add_argument("model", nargs="?", help="folder or Hub id: measure the ways to run it")
    parser.add_argument("--task", help="to measure; default: the first")
    parser.add_argument("--compile", action="store_true", help="try torch.compile; takes a minute")
    parser.set_defaults(run=run_doctor)


def run_check(args: argparse.Namespace) -> None:
    """A line for each check."""
    from st_jv5.publish.self_test import self_test

    print("\n".join(self_test(args.folder)))


def run_doctor(args: argparse.Namespace) -> None:
    """A line for each finding."""
    from st_jv5.doctor import doctor

    print("\n".join(doctor(args.model, args.task, args.compile)))


def run_publish(args: argparse.Namespace) -> None:
    """Test, send, and tell what was sent where."""
    from st_jv5.publish import hub

    lines = hub.publish(
        args.folder,
        args.repository,
        siblings=args.siblings,
        private=args.private,
        dry_run=args.dry_run,
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
