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
        "answer over HTTP as OpenAI's, Jina's and TEI's servers do, all tasks from one process",
        "st-jv5 serve out/demo/model --port 8000",
        run_serve,
    )
    parser.add_argument("model", help="folder or Hub id; a published jina-embeddings-v5-text, too")
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine only")
    parser.add_argument("--port", type=int, default=8000, help="default 8000; 0 takes a free one")
    parser.add_argument("--name", nargs="+", help="of the model in requests; default: its own")
    parser.add_argument("--task", help="of requests that name none")
    parser.add_argument(
        "--api-key-file",
        help=f"a key a line, any of which opens; or one key in the environment's {KEY_VARIABLE}",
    )
    parser.add_argument(
        "--token-ids", action="store_true", help="take token ids, of the model's own tokenizer"
    )
    parser.add_argument("--batch-tokens", type=int, help="padded tokens; default: by the device")
    parser.add_argument(
        "--engine", choices=(*ENGINES, AUTO), help="what computes; auto: the doctor's choice"
    )
    parser.add_argument("--access-log", action="store_true", help="a line for each request")
    parser.add_argument("--revision", help="of a Hub model")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; default: as stored")
    parser.add_argument("--device", help="such as cuda:1; default: sentence-transformers' choice")
    for limit in fields(Limits):
        parser.add_argument(
            f"--{limit.name.replace('_', '-')}",
            type=type(limit.default),
            default=limit.default,
            help=f"{limit.metadata['about']}; default {limit.default}",
        )


def run_serve(args: argparse.Namespace) -> None:
    """Load, then answer until a signal comes; what was taken is finished."""
    limits = Limits(**{limit.name: getattr(args, limit.name) for limit in fields(Limits)})
    keys = api_keys(args.api_key_file)
    try:
        import uvicorn

        from st_jv5.serve.app import create_app
    except ImportError as error:
        raise ImportError(f'{error}; serving needs: pip install "st-jv5[serve]"') from error
    from st_jv5.adapters import router_of
    from st_jv5.jina import load_model

    model = load_model(args.model, args.revision, dtype=args.dtype, device=args.device)
    router: Any = router_of(model)
    if args.task is not None:
        router.resolve(args.task)  # an error for one that is not known
        router.default_task = args.task
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
    )
    logging.basicConfig(level=logging.WARNING)
    print(f"{names[0]}: {', '.join([*router.tasks, 'base'])}", flush=True)
    if not keys and args.host not in LOOPBACK:
        print(f"anybody who reaches {args.host} may ask; set {KEY_VARIABLE}", flush=True)
    uvicorn.run(
        app,
        host=args.host,
        port=args.port,
        access_log=args.access_log,
        server_header=False,
        timeout_graceful_shutdown=int(limits.stop_seconds),
    )


def api_keys(path: str | None) -> list[str]:
    """The keys of a file or of the environment; an error for a file or variable without one."""
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
