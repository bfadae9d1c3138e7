"""``st-jv5 encode``, ``st-jv5 search`` and ``st-jv5 verify``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, get_args

from st_jv5.choices import DTYPES, PRECISIONS, SHARD_ROWS, Engine, VectorFiles
from st_jv5.commands.parsers import add_command

if TYPE_CHECKING:
    from st_jv5.vectors import VectorFolder

SHOWN = 100
"""Characters that are shown of a result's text."""


def add_commands(commands: Any) -> None:
    """Add them to a parser's commands."""
    parser = add_command(
        commands,
        "encode",
        "encode a corpus to disk, in constant memory; after a stop the same command continues",
        "st-jv5 encode out/demo/model --task retrieval --in documents.parquet --column text "
        "--out vectors",
        run_encode,
        resumes=True,
    )
    parser.add_argument("model", help="folder or Hub id of any text model")
    parser.add_argument("--task", help="an adapter, or base")
    parser.add_argument(
        "--prompt", help="name of the prompt; default: the task's prompt for documents"
    )
    parser.add_argument(
        "--in",
        dest="source",
        nargs="+",
        required=True,
        metavar="FILE",
        help=".parquet, .jsonl, .csv or .txt files, or the id of a data set on the Hub",
    )
    parser.add_argument("--column", help="column of the texts, if there are several columns")
    parser.add_argument(
        "--id-column", help="column of ids; default: id, if there is one, else the row's number"
    )
    parser.add_argument(
        "--split", default="train", help="split of a data set on the Hub; default train"
    )
    parser.add_argument("--config", help="configuration of a data set on the Hub")
    parser.add_argument(
        "--out", required=True, help="folder to write; an unfinished one is continued"
    )
    parser.add_argument(
        "--dim", type=int, help="cut vectors to this many dims; they have length 1 again"
    )
    parser.add_argument(
        "--precision",
        default="float32",
        choices=[name for name in PRECISIONS if name != "binary-rescored"],
        help="of the stored vectors; default float32",
    )
    parser.add_argument(
        "--files",
        default="parquet",
        choices=get_args(VectorFiles),
        help="format of the shards; default parquet",
    )
    parser.add_argument(
        "--engine",
        default="local",
        choices=get_args(Engine),
        help="local: processes of this machine; ray: the workers of a Ray cluster",
    )
    parser.add_argument(
        "--processes", type=int, help="number of processes; default: one per GPU, else one"
    )
    parser.add_argument(
        "--batch-tokens", type=int, help="most padded tokens of a batch; default: by the device"
    )
    parser.add_argument(
        "--max-tokens", type=int, help="cut texts to this many tokens; default: the model's limit"
    )
    parser.add_argument(
        "--shard-rows", type=int, default=SHARD_ROWS, help=f"rows of a file; default {SHARD_ROWS}"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hub model")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of the weights; default: as they are stored"
    )
    parser = add_command(
        commands,
        "verify",
        "compare a folder of vectors with its checksums",
        "st-jv5 verify vectors",
        run_verify,
    )
    parser.add_argument("folder", help="folder that st-jv5 encode wrote")
    parser = add_command(
        commands,
        "search",
        "find the nearest vectors of a folder",
        "st-jv5 search vectors 'a question'",
        run_search,
    )
    parser.add_argument("folder", help="folder that st-jv5 encode wrote")
    parser.add_argument("query", nargs="+", help="one or more texts")
    parser.add_argument("-k", type=int, default=5, help="results per query; default 5")
    parser.add_argument("--model", help="folder or Hub id of the model, if it has moved")


def run_encode(args: argparse.Namespace) -> None:
    """Encode, and print a summary."""
    from st_jv5.vectors import Corpus, encode_corpus

    source = args.source[0] if len(args.source) == 1 else args.source
    corpus = Corpus(
        source, args.column, id_column=args.id_column, split=args.split, config=args.config
    )
    folder = encode_corpus(
        args.model,
        corpus,
        args.out,
        task=args.task,
        prompt_name=args.prompt,
        dim=args.dim,
        precision=args.precision,
        batch_tokens=args.batch_tokens,
        shard_rows=args.shard_rows,
        files=args.files,
        engine=args.engine,
        processes=args.processes,
        revision=args.revision,
        dtype=args.dtype,
        max_tokens=args.max_tokens,
    )
    print(summary(folder))


def summary(folder: VectorFolder) -> str:
    """One line about a folder of vectors."""
    from st_jv5.precision import bytes_per_vector

    size = bytes_per_vector(folder.dim, folder.precision)
    return (
        f"{folder.path}: {folder.rows} vectors of {folder.dim} dims as {folder.precision} "
        f"({size} bytes each), {folder.shards} shards"
    )


def run_verify(args: argparse.Namespace) -> None:
    """Read everything, and print a summary, or what is wrong."""
    from st_jv5.vectors import verify

    print(summary(verify(args.folder)))


def run_search(args: argparse.Namespace) -> None:
    """Print rank, score, id and the beginning of the text."""
    from st_jv5.vectors import Corpus, VectorFolder, search

    folder = VectorFolder(args.folder)
    found = search(folder, args.query, k=args.k, model=args.model)
    texts: dict[int, str] = {}
    try:
        corpus = Corpus(**folder.manifest["corpus"])
        rows = {hit.row: hit.id for hits in found for hit in hits}
        texts = corpus.texts_of(rows, folder.manifest["corpus_sha256"])
    except (OSError, ValueError, TypeError) as error:
        print(f"texts are not shown: {error}")
    for query, hits in zip(args.query, found, strict=True):
        print(query)
        for rank, hit in enumerate(hits, start=1):
            text = " ".join(texts.get(hit.row, "").split())
            shown = text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
            print(f"{rank:4d}  {hit.score:.3f}  {hit.id}  {shown}".rstrip())
