"""``st-jv5 export``, ``check``, ``publish`` and ``doctor``: work on the folder of a model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from st_jv5.choices import EXPORTS
from st_jv5.commands.parsers import add_command

if TYPE_CHECKING:
    from st_jv5.doctor import Probe
    from st_jv5.evaluation.page import Cell, Page


def add_commands(commands: Any) -> None:
    """Add them to a parser's commands."""
    parser = add_command(
        commands,
        "export",
        "export one task, or all, for another engine, and compare it with the model on real text",
        "st-jv5 export out/demo/model exported --task retrieval --to onnx",
        run_export,
    )
    parser.add_argument(
        "model", help="folder or Hub id; also a published jina-embeddings-v5-text model"
    )
    parser.add_argument("folder", help="folder to write; it must be absent or empty")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", help="an adapter, or base")
    what.add_argument(
        "--all-tasks", action="store_true", help="for onnx: all tasks in one graph, task an input"
    )
    parser.add_argument("--to", required=True, choices=EXPORTS, help="format to write")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub model")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="for onnx and openvino: also write int8 weights, and print their loss",
    )
    parser.add_argument(
        "--llama-cpp", help="for gguf: a checkout of llama.cpp; default: $LLAMA_CPP"
    )
    check = add_command(
        commands,
        "check",
        "check a model folder before it is published",
        "st-jv5 check out/demo/model",
        run_check,
    )
    check.add_argument("folder", help="a saved model, with its model card (README.md)")
    publish = add_command(
        commands,
        "publish",
        "check a model and upload it to the Hub",
        "st-jv5 publish out/demo/model organisation/name --siblings --dry-run",
        run_publish,
        resumes=True,
    )
    publish.add_argument("folder", help="a saved model, with its model card (README.md)")
    publish.add_argument("repository", help="organisation/name")
    publish.add_argument(
        "--siblings", action="store_true", help="also upload each task merged, as NAME-TASK"
    )
    publish.add_argument("--private", action="store_true", help="make a new repository private")
    publish.add_argument(
        "--dry-run", action="store_true", help="upload nothing; print what would change"
    )
    parser = add_command(
        commands,
        "doctor",
        "show what this machine has, and what would be faster",
        "st-jv5 doctor out/demo/model --task retrieval",
        run_doctor,
    )
    parser.add_argument(
        "model", nargs="?", help="folder or Hub id of a model, to measure ways to run it"
    )
    parser.add_argument("--task", help="task to measure; default: the first")
    parser.add_argument(
        "--compile", action="store_true", help="also try torch.compile; takes a minute"
    )
    parser.add_argument("--html", metavar="FILE", help="also write a page with a plot")


def run_export(args: argparse.Namespace) -> None:
    """Load in float32, write, and print how close the export is."""
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
    """Print a line for each check."""
    from st_jv5.publish.self_test import self_test

    print("\n".join(self_test(args.folder)))


def run_publish(args: argparse.Namespace) -> None:
    """Check, upload, and print what was uploaded where."""
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
    """Print a line for each finding, as soon as it is there."""
    from st_jv5.doctor import examine

    lines, probes = examine(args.model, args.task, args.compile, partial(print, flush=True))
    if args.html:
        doctor_page(lines, probes).write_html(args.html)
        print(f"page: {args.html}")


def doctor_page(lines: Sequence[str], probes: Sequence[Probe]) -> Page:
    """What the doctor found, with a plot of the ways to run the model, where one was measured."""
    from st_jv5.evaluation.page import Code, Page, Table
    from st_jv5.evaluation.plots import amounts

    page = Page("st-jv5 doctor")
    if probes:
        speeds = {one.name: one.texts_per_second for one in probes}
        about = "Texts per second by each way to run the model on this machine."
        rows: list[list[Cell]] = []
        for one in probes:
            speed = f"{one.texts_per_second:,.1f}"
            score = f"{one.score:.2f}"
            rows.append([one.name, speed, score, f"{one.least_cosine:.5f}", one.how])
        header = ["way", "texts a second", "score", "least cosine", "how"]
        caption = (
            "The score says how well one half of a text finds the other, of 100. The least cosine "
            "is with the vectors of the model as it was loaded."
        )
        plot = amounts("speed", about, speeds, "texts a second")
        page.add("Ways to run it", plot, Table(header, rows, caption=caption))
    page.add("All findings", Code("\n".join(lines)))
    return page
