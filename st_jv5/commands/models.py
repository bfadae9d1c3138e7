"""``st-jv5 export``, ``check``, ``publish`` and ``doctor``: what is done with a model's folder."""

from __future__ import annotations

import argparse
from typing import Any

from st_jv5.choices import EXPORTS
from st_jv5.commands.parsers import add_command


def add_commands(commands: Any) -> None:
    """Add them to a parser's commands."""
    parser = add_command(
        commands,
        "export",
        "write one task, or all, for another engine, compared with the model on real text",
        "st-jv5 export out/demo/model exported --task retrieval --to onnx",
        run_export,
    )
    parser.add_argument("model", help="folder or Hub id; a published jina-embeddings-v5-text, too")
    parser.add_argument("folder", help="to be written; absent or empty")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", help="an adapter, or base")
    what.add_argument("--all-tasks", action="store_true", help="onnx: one graph, task an input")
    parser.add_argument("--to", required=True, choices=EXPORTS, help="what to write")
    parser.add_argument("--revision", help="of a Hub model")
    parser.add_argument(
        "--int8", action="store_true", help="onnx, openvino: also int8 weights; tells the loss"
    )
    parser.add_argument("--llama-cpp", help="gguf: a checkout; default: $LLAMA_CPP")
    check = add_command(
        commands,
        "check",
        "try a folder as its users will",
        "st-jv5 check out/demo/model",
        run_check,
    )
    check.add_argument("folder", help="a saved model, with its card")
    publish = add_command(
        commands,
        "publish",
        "check a model and send it to the Hub",
        "st-jv5 publish out/demo/model organisation/name --siblings --dry-run",
        run_publish,
    )
    publish.add_argument("folder", help="a saved model, with its card")
    publish.add_argument("repository", help="organisation/name")
    publish.add_argument("--siblings", action="store_true", help="each task merged, as NAME-TASK")
    publish.add_argument("--private", action="store_true", help="if it is new")
    publish.add_argument("--dry-run", action="store_true", help="send nothing")
    parser = add_command(
        commands,
        "doctor",
        "what this machine has, and what would be faster",
        "st-jv5 doctor out/demo/model --task retrieval",
        run_doctor,
    )
    parser.add_argument("model", nargs="?", help="folder or Hub id: measure the ways to run it")
    parser.add_argument("--task", help="to measure; default: the first")
    parser.add_argument("--compile", action="store_true", help="try torch.compile; takes a minute")


def run_export(args: argparse.Namespace) -> None:
    """Load in float32, write, and tell how close it is."""
    from st_jv5.adapters import router_of
    from st_jv5.export import export, export_all_tasks
    from st_jv5.jina import load_model
    from st_jv5.task_table import BASE

    if args.all_tasks and args.to != "onnx":
        raise ValueError(f"--all-tasks is for --to onnx, which OpenVINO reads, not for {args.to}")
    model = load_model(args.model, args.revision, dtype="float32")
    if args.all_tasks:
        task = "all tasks"
        found = export_all_tasks(model, args.folder, int8=args.int8)
    else:
        task = router_of(model).resolve(args.task) or BASE  # an alias, too, as encode takes it
        found = export(
            model, task, args.folder, kind=args.to, int8=args.int8, llama_cpp=args.llama_cpp
        )
    for parity in found:
        print(parity)
    if not found:
        print("not compared: no llama-embedding in the checkout's build/bin or on the PATH")
    print(f"{task} as {args.to}: {args.folder}")


def run_check(args: argparse.Namespace) -> None:
    """A line for each check."""
    from st_jv5.publish.self_test import self_test

    print("\n".join(self_test(args.folder)))


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


def run_doctor(args: argparse.Namespace) -> None:
    """A line for each finding."""
    from st_jv5.doctor import doctor

    print("\n".join(doctor(args.model, args.task, args.compile)))
