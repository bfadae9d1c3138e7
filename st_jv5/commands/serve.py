"""``st-jv5 serve``."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from st_jv5.choices import AUTO, DTYPES, ENGINES
from st_jv5.commands.parsers import add_command
from st_jv5.serve import Limits

KEY_VARIABLE = "ST_JV5_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def add_commands(commands: Any) -> None:
    """Add it to a parser's commands."""
    parser = add_command(
        commands,
        "serve",
        "serve all tasks of a model over HTTP, in the formats of OpenAI, Jina and TEI",
        "st-jv5 serve out/demo/model --port 8000",
        run_serve,
    )
    parser.add_argument(
        "model",
        help="folder or Hub id of a model, of one with a query table, or of a published "
        "jina-embeddings-v5-text model",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; default: reachable from this machine only",
    )
    parser.add_argument("--port", type=int, default=8000, help="default 8000; 0 takes a free port")
    parser.add_argument(
        "--name",
        nargs="+",
        help="names of the model in requests; default: its folder's name or Hub id",
    )
    parser.add_argument("--task", help="task of requests that name no task")
    parser.add_argument(
        "--api-key-file",
        help=f"file with one key per line; requests need one of them. Or set {KEY_VARIABLE}",
    )
    parser.add_argument(
        "--token-ids",
        action="store_true",
        help="accept token ids of the model's own tokenizer in place of texts",
    )
    parser.add_argument(
        "--batch-tokens", type=int, help="most padded tokens of a batch; default: by the device"
    )
    parser.add_argument("--access-log", action="store_true", help="print a line for each request")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub model")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of the weights; default: as they are stored"
    )
    parser.add_argument(
        "--engine", choices=(*ENGINES, AUTO), help="what computes; auto: the doctor's choice"
    )
    parser.add_argument("--device", help="such as cuda:1; default: sentence-transformers' choice")
    for limit in fields(Limits):
        parser.add_argument(
            f"--{limit.name.replace('_', '-')}",
            type=type(limit.default),
            default=limit.default,
            help=f"{limit.metadata['about']}; default {limit.default}",
        )


def run_serve(args: argparse.Namespace) -> None:
    """Load the model, and answer until a signal comes; then finish accepted requests."""
    limits = Limits(**{limit.name: getattr(args, limit.name) for limit in fields(Limits)})
    keys = api_keys(args.api_key_file)
    try:
        import uvicorn

        from st_jv5.serve.app import create_app
    except ImportError as error:
        raise ImportError(f'{error}; serving needs: pip install "st-jv5[serve]"') from error
    from st_jv5.jina import load_model

    logging.basicConfig(level=logging.WARNING)  # the engine that is taken is told
    model = load_model(args.model, args.revision, dtype=args.dtype, device=args.device)
    names = args.name or [
        Path(args.model).resolve().name if Path(args.model).is_dir() else args.model
    ]
    app = create_app(
        model,
        names,
        limits,
        keys=keys,
        token_ids=args.token_ids,
        batch_tokens=args.batch_tokens,
        engine=args.engine,
        task=args.task,
    )
    print(f"{names[0]}: {', '.join(app.state.tasks)}", flush=True)
    if not keys and args.host not in LOOPBACK:
        print(
            f"no API key: anyone who reaches {args.host} can use it; set {KEY_VARIABLE}",
            flush=True,
        )
    uvicorn.run(
        app,
        host=args.host,
        port=args.port,
        access_log=args.access_log,
        server_header=False,
        timeout_graceful_shutdown=int(limits.stop_seconds),
    )


def api_keys(path: str | None) -> list[str]:
    """The API keys of a file or of the environment; an error if it holds none."""
    told = os.environ.get(KEY_VARIABLE)
    if path is not None and told is not None:
        raise ValueError(f"keys come from --api-key-file or from {KEY_VARIABLE}, not from both")
    if path is not None:
        told = Path(path).read_text(encoding="utf-8")
    if told is None:
        return []
    keys = told.split()
    if not keys:
        raise ValueError(f"{path or KEY_VARIABLE} holds no key")
    return keys
