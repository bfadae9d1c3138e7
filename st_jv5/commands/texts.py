"""``st-jv5 questions`` and ``decontaminate``: make training pairs, list test texts."""

from __future__ import annotations

import argparse
from typing import Any

from st_jv5.commands.parsers import add_command, log_lines


def add_commands(commands: Any) -> None:
    """Add both to a parser's commands."""
    questions = add_command(
        commands,
        "questions",
        "let a language model write a query for each document, to train on the pairs",
        "st-jv5 questions --url http://localhost:8000/v1 --model MODEL --in documents.parquet "
        "--column text --out pairs.jsonl",
        run_questions,
        more="The server speaks OpenAI's /v1/chat/completions (vLLM, llama.cpp, OpenAI). Each "
        "answer is written when it comes; the same command again asks for those that are missing.",
        resumes=True,
    )
    questions.add_argument("--url", required=True, help="address of the server up to /v1")
    questions.add_argument(
        "--model", required=True, help="name of the language model at the server"
    )
    questions.add_argument(
        "--key-env", default="OPENAI_API_KEY", help="environment variable with the server's key"
    )
    questions.add_argument(
        "--in",
        dest="file",
        required=True,
        help="file of documents: parquet, jsonl, csv, tsv or txt",
    )
    questions.add_argument("--column", default="text", help="column of the documents; default text")
    questions.add_argument(
        "--out", required=True, help="jsonl file of query and positive; answers are appended"
    )
    questions.add_argument(
        "--concurrency", type=int, default=8, help="requests that are sent at a time; default 8"
    )
    questions.add_argument(
        "--most-characters",
        type=int,
        default=16_000,
        help="characters of a document that are sent; default 16000",
    )
    questions.add_argument(
        "--instruction", help="instruction to the language model; default: to write a query"
    )
    tests = add_command(
        commands,
        "decontaminate",
        "write a list of hashed test texts, which training must not see",
        """
        st-jv5 decontaminate --benchmark "MTEB(eng, v2)" --out mteb-eng.hashes
        st-jv5 decontaminate --local --out local.hashes
        """,
        run_decontaminate,
        more="In a recipe: decontaminate: [mteb-eng.hashes]. Texts are compared without case, "
        "punctuation and spacing.",
    )
    tests.add_argument("--benchmark", nargs="+", default=[], help='such as "MTEB(eng, v2)"')
    tests.add_argument("--tasks", nargs="+", default=[], help="mteb or local task names")
    tests.add_argument("--local", action="store_true", help="all local tasks")
    tests.add_argument(
        "--documents", action="store_true", help="also list the documents of retrieval tasks"
    )
    tests.add_argument("--out", required=True, help="file to write")


def run_questions(args: argparse.Namespace) -> None:
    """Ask for queries, and print how many came."""
    from st_jv5.recipe.queries import INSTRUCTION, write_pairs
    from st_jv5.teacher import EndpointTeacher
    from st_jv5.texts import read_texts

    texts = read_texts(args.file, args.column)
    server = EndpointTeacher(
        args.url, args.model, key_env=args.key_env, concurrency=args.concurrency
    )
    instruction = args.instruction or INSTRUCTION
    count = write_pairs(server, texts, args.out, args.most_characters, instruction)
    print(f"{args.out}: {count} new queries")


def run_decontaminate(args: argparse.Namespace) -> None:
    """Load the tasks, and write the hashes of their texts."""
    from st_jv5.evaluation.choose import choose_tasks
    from st_jv5.recipe.data.decontaminate import hashes_of_tasks, write_hashes

    log_lines()
    tasks = choose_tasks(args.tasks, args.benchmark, "test" if args.local else "")
    hashes = hashes_of_tasks(tasks, args.documents)
    print(f"{args.out}: {write_hashes(args.out, hashes):,} texts of {len(tasks)} tasks")
