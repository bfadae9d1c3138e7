"""``st-jv5 eval``, ``compare`` and ``report``: score models on mteb tasks, compare scores."""

from __future__ import annotations

import argparse
from typing import Any

from st_jv5.choices import PRECISIONS
from st_jv5.commands.parsers import add_command


def add_commands(commands: Any) -> None:
    """Add them to a parser's commands."""
    _add_eval(commands)
    _add_compare(commands)
    report = add_command(
        commands,
        "report",
        "write the page of scores again",
        "st-jv5 report out/eval/out-demo-model --trained-on wikipedia wordnet",
        run_report,
    )
    report.add_argument("record", help="folder with results.json")
    add_near_far(report)


def _add_eval(commands: Any) -> None:
    parser = add_command(
        commands,
        "eval",
        "run mteb tasks with the right adapter and prompt for each task type",
        """
        st-jv5 eval --model out/demo/model --local --languages eng
        st-jv5 eval --model org/model --benchmark "MTEB(eng, v2)"
        st-jv5 eval --model org/model --own faq.jsonl
        st-jv5 eval --model org/model --local --trained-on wikipedia --start out/eval/org-base
        st-jv5 eval --model out/demo/model --local --adapters all --dims 384 128 --precision int8
        """,
        run_eval,
        resumes=True,
    )
    parser.add_argument("--model", required=True, help="folder or Hub id; any SentenceTransformer")
    parser.add_argument("--tasks", nargs="+", default=[], help="mteb or local task names")
    parser.add_argument("--benchmark", nargs="+", default=[], help='such as "MTEB(eng, v2)"')
    parser.add_argument(
        "--local",
        nargs="?",
        const="test",
        default="",
        choices=["test", "validation"],
        help="all local tasks, on the test split or the validation split (to choose settings by)",
    )
    parser.add_argument(
        "--own",
        nargs="+",
        default=[],
        metavar="FILE",
        help="your own files: pairs, pairs with a score, or texts with a label, in columns whose "
        "names a recipe knows; --trained-on takes a file's name as its kind of text",
    )
    parser.add_argument(
        "--types",
        nargs="+",
        default=[],
        help="keep tasks of these types only, such as Retrieval STS",
    )
    parser.add_argument(
        "--languages",
        nargs="+",
        default=[],
        help="keep tasks in these languages only, such as eng deu, and those of --own",
    )
    parser.add_argument(
        "--adapters",
        default="auto",
        help="auto: the adapter of each task's type; none: the base; all: each on every task; "
        "or the name of one adapter",
    )
    parser.add_argument(
        "--dims", nargs="+", type=int, default=[], help="cut vectors to each of these dims"
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        default=["float32"],
        help=f"of stored vectors, for retrieval and STS; any of: {' '.join(PRECISIONS)}",
    )
    parser.add_argument(
        "--max-tokens", nargs="+", type=int, default=[], help="cut inputs to each of these"
    )
    parser.add_argument(
        "--calibrate",
        nargs="+",
        metavar=("FILE", "COLUMN"),
        help="texts that give the ranges of --precision int8; default: some training texts",
    )
    add_near_far(parser)
    parser.add_argument(
        "--submission", metavar="DIR", help="also write what mteb's results repository takes"
    )
    parser.add_argument(
        "--submission-name",
        default="",
        metavar="ORG/MODEL@COMMIT",
        help="of the model on the Hub; for a Hub id by default its copy's on this disk",
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would run, and how")
    parser.add_argument("--batch-size", type=int, default=32, help="texts per forward")
    parser.add_argument("--output", help="folder to write; default: out/eval/MODEL")
    parser.add_argument("--cache", help="mteb's result cache; default: OUTPUT/mteb")


def _add_compare(commands: Any) -> None:
    parser = add_command(
        commands,
        "compare",
        "compare scores of several runs, with 95% intervals",
        """
        st-jv5 compare out/eval/one out/eval/other
        st-jv5 compare out/eval/one --published
        st-jv5 compare out/eval/one --results org/model
        st-jv5 compare out/eval/one --start out/eval/base --trained-on wikipedia
        """,
        run_compare,
    )
    parser.add_argument(
        "runs", nargs="+", help="folders with results.json; all others are compared with the first"
    )
    parser.add_argument(
        "--resamples", type=int, default=1000, help="bootstrap resamples; default 1000"
    )
    parser.add_argument(
        "--published",
        nargs="*",
        metavar="MODEL",
        help="also show averages from the paper, of these models or of all",
    )
    parser.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="also show these models from mteb's result files",
    )
    parser.add_argument("--cache", help="folder of mteb's result files; default: mteb's own")
    parser.add_argument("--html", metavar="FILE", help="also write a page with plots")
    add_near_far(parser)


def add_near_far(parser: argparse.ArgumentParser) -> None:
    """Add the options that separate near tasks from far ones."""
    parser.add_argument(
        "--trained-on",
        nargs="+",
        default=[],
        metavar="KIND",
        help="kinds of text (wikipedia, wordnet, ...) or tasks that the model was trained on: they "
        "count as near, all others as far",
    )
    parser.add_argument(
        "--start",
        default="",
        metavar="FOLDER",
        help="folder with results.json of the model before training; differences to it are shown",
    )


def run_eval(args: argparse.Namespace) -> None:
    """Score, and write record and report."""
    from st_jv5.evaluation.run_mteb import run_mteb
    from st_jv5.evaluation.scoring import Settings

    settings = Settings(
        args.adapters, tuple(args.dims), tuple(args.precision), tuple(args.max_tokens)
    )
    run_mteb(
        args.model,
        args.output,
        settings=settings,
        tasks=args.tasks,
        benchmarks=args.benchmark,
        local=args.local,
        own=args.own,
        types=args.types,
        languages=args.languages,
        trained_on=args.trained_on,
        start=args.start,
        calibrate=args.calibrate or (),
        batch_size=args.batch_size,
        cache=args.cache,
        command=args.line,
        dry_run=args.dry_run,
        submission=args.submission or "",
        submission_as=args.submission_name,
    )


def run_compare(args: argparse.Namespace) -> None:
    """Print the tables."""
    from st_jv5.evaluation.compare import compare

    print(
        compare(
            args.runs,
            resamples=args.resamples,
            published=args.published,
            results=args.results,
            cache=args.cache,
            trained_on=args.trained_on,
            start=args.start,
            html=args.html,
        )
    )
    if args.html:
        print(f"\npage: {args.html}")


def run_report(args: argparse.Namespace) -> None:
    """Write the page."""
    from st_jv5.evaluation.report import write_report

    write_report(args.record, trained_on=args.trained_on, start=args.start)
    print(f"report: {args.record}/report.html and report.md")
