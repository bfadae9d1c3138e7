"""``st-jv5 teacher ...``: list, check and join stores of teacher vectors, or drop a space."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from st_jv5.commands.parsers import add_command

if TYPE_CHECKING:
    from st_jv5.teacher import TeacherStore


def add_commands(commands: Any) -> None:
    """Add ``teacher`` and its actions to a parser's commands."""
    about = "list, check and join stores of teacher vectors"
    teacher = commands.add_parser("teacher", help=about, description=about)
    actions = teacher.add_subparsers(required=True, metavar="ACTION")
    ls = add_command(
        actions, "ls", "list the spaces of a store", "st-jv5 teacher ls out/teacher", run_ls
    )
    info = add_command(
        actions,
        "info",
        "show everything about a space, as JSON",
        "st-jv5 teacher info out/teacher --space all-MiniLM",
        run_info,
    )
    check = add_command(
        actions,
        "verify",
        "compare every vector with its checksum; with --texts, also compute a random sample again",
        "st-jv5 teacher verify out/teacher --texts documents.parquet --column text",
        run_verify,
    )
    join = add_command(
        actions,
        "merge",
        "write a new store that joins stores",
        "st-jv5 teacher merge one other --out joined",
        run_merge,
    )
    drop = add_command(
        actions,
        "prune",
        "write a new store without some spaces",
        "st-jv5 teacher prune out/teacher --space all-MiniLM --out smaller",
        run_prune,
    )
    for parser in (ls, info, check, drop):
        parser.add_argument("store", help="folder of the store")
    for parser in (info, check):
        parser.add_argument(
            "--space", help="id of a space, or its beginning; may be left out if there is only one"
        )
    check.add_argument(
        "--texts",
        help="file of texts (.txt, .parquet, .jsonl, .csv) of which to compute some again",
    )
    check.add_argument("--column", help="column of --texts, if the file has several")
    check.add_argument(
        "--sample", type=int, default=100, help="number of texts to compute; default 100"
    )
    check.add_argument("--seed", type=int, default=0, help="seed of the draw; default 0")
    check.add_argument(
        "--bound", type=float, default=0.999, help="least cosine that is accepted; default 0.999"
    )
    check.add_argument(
        "--model",
        help="folder, Hub id or package:NAME/FOLDER of the teacher; or its name at --endpoint",
    )
    check.add_argument(
        "--endpoint", metavar="URL", help="compute at this server; the address up to /v1"
    )
    check.add_argument(
        "--key-env", default="OPENAI_API_KEY", help="environment variable with the server's key"
    )
    join.add_argument(
        "stores", nargs="+", help="folders; of equal texts the first store's vector is kept"
    )
    join.add_argument(
        "--shards", type=int, help="shards of each new space; default: as in the first store"
    )
    drop.add_argument(
        "--space",
        action="append",
        required=True,
        help="id of a space to leave out; may be given several times",
    )
    for parser in (join, drop):
        parser.add_argument("--out", required=True, help="folder of the new store")


def run_ls(args: argparse.Namespace) -> None:
    """One line per space."""
    from st_jv5.teacher import TeacherStore

    store = TeacherStore.open(args.store)
    spaces = store.spaces()
    if not spaces:
        print(f"{args.store} has no spaces: it is empty, or not a teacher store")
        return
    lines = [("space", "vectors", "MB", "dim", "dtype", "tokens", "teacher", "revision", "prompt")]
    for space in spaces:
        view = TeacherStore(store.folder, space)
        lines.append(
            (
                space.id,
                str(len(view)),
                f"{size_on_disk(view) / 1e6:.1f}",
                str(space.dim),
                space.dtype,
                str(space.max_tokens),
                space.teacher + (f" ({space.pooling})" if space.pooling else ""),
                space.revision or "-",
                repr(space.prompt) if len(space.prompt) < 40 else repr(space.prompt[:36]) + "...",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def run_info(args: argparse.Namespace) -> None:
    """One space as JSON."""
    from st_jv5.teacher import TeacherStore
    from st_jv5.teacher.filling import fills
    from st_jv5.teacher.upkeep import space_by_id

    view = space_by_id(TeacherStore.open(args.store), args.space)
    assert view.key is not None
    count, size = len(view), size_on_disk(view)
    needed = count * view.dim * (4 if view.key.dtype == "float32" else 2)
    told = {
        "id": view.key.id,
        **asdict(view.key),
        "vectors": count,
        "shards": view.shards,
        "bytes": size,
        "bytes_beyond_vectors": f"{size / needed - 1:.2%}" if needed else None,
        "fills": fills(view),
    }
    print(json.dumps(told, indent=2, ensure_ascii=False))


def run_verify(args: argparse.Namespace) -> None:
    """Compare everything with its checksums; then print cosines of texts computed again."""
    from st_jv5.teacher import TeacherStore
    from st_jv5.teacher.upkeep import space_by_id

    if not -1 <= args.bound <= 1:
        raise ValueError(f"--bound is a cosine, not {args.bound}")
    store = TeacherStore.open(args.store)
    if args.space or args.texts:
        chosen = [space_by_id(store, args.space)]
    else:
        chosen = [TeacherStore(store.folder, space) for space in store.spaces()]
        if not chosen:
            raise ValueError(f"{args.store} has no spaces: it is empty, or not a teacher store")
    for view in chosen:
        if faults := view.faults():
            raise ValueError("\n".join(faults))
        assert view.key is not None
        without = view.unsummed()
        told = f", {without} of them in shards without checksums" if without else ""
        print(f"{view.key.id}: {len(view)} vectors, as they were written{told}")
    if args.texts:
        _compute_again(chosen[0], args)


def _compute_again(view: TeacherStore, args: argparse.Namespace) -> None:
    """Print least and mean cosine; an error if one is below the bound."""
    from st_jv5.teacher import EndpointTeacher, LocalTeacher, verify
    from st_jv5.texts import read_texts

    assert view.key is not None
    name = args.model or view.key.teacher
    if args.endpoint:
        source: Any = EndpointTeacher(args.endpoint, name, key_env=args.key_env)
    else:
        revision = "" if args.model else view.key.revision
        source = LocalTeacher(name, revision, pooling=view.key.pooling)
    found = verify(
        view, source, read_texts(args.texts, args.column), sample=args.sample, seed=args.seed
    )
    if found.missing:
        print(f"{found.missing} of the texts are not in the space")
    least, mean = found.cosines.min(), found.cosines.mean()
    print(f"{len(found.texts)} texts again: cosine at least {least:.5f}, on average {mean:.5f}")
    far = ~(found.cosines >= args.bound)  # a NaN is far
    if far.any():
        worst = found.texts[int(found.cosines.argmin())]
        raise ValueError(
            f"{int(far.sum())} of {len(far)} cosines are below {args.bound:g}; the least is that "
            f"of {worst[:200]!r}"
        )


def run_merge(args: argparse.Namespace) -> None:
    """Join stores."""
    from st_jv5.teacher import TeacherStore, merge

    stores = [TeacherStore.open(folder) for folder in args.stores]
    _tell(merge(stores, args.out, shards=args.shards))


def run_prune(args: argparse.Namespace) -> None:
    """Leave spaces out."""
    from st_jv5.teacher import TeacherStore, prune
    from st_jv5.teacher.upkeep import space_by_id

    store = TeacherStore.open(args.store)
    chosen = []
    for name in args.space:
        space = space_by_id(store, name).key
        assert space is not None
        chosen.append(space.id)
    _tell(prune(store, chosen, args.out))


def _tell(store: TeacherStore) -> None:
    from st_jv5.teacher import TeacherStore

    views = [TeacherStore(store.folder, space) for space in store.spaces()]
    print(f"{store.folder}: {len(views)} spaces, {sum(map(len, views))} vectors")


def size_on_disk(store: TeacherStore) -> int:
    """Bytes of all files of a space."""
    return sum(path.stat().st_size for path in store.path.iterdir())
