"""The model card, and the way of a model to the Hub."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from st_jv5.adapters import tasks
from st_jv5.export import export
from st_jv5.self_test import self_test

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,80}")
TEMPLATE = Path(__file__).parent / "model_card.md"


def model_card(facts: Mapping[str, str]) -> str:
    """Fill the card's template.

    Args:
        facts: One text per placeholder of ``st_jv5/model_card.md``.

    Raises:
        ValueError: A placeholder has no fact; names it.

    Example:
        >>> model_card({"name": "mini"})
        Traceback (most recent call last):
        ValueError: the model card lacks: base, command, ...
    """
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    if missing := sorted(set(template.get_identifiers()) - set(facts)):
        raise ValueError(f"the model card lacks: {', '.join(missing)}")
    return template.substitute(facts)


# ---------------------------------------------------------------------------------------- publish


Files = dict[str, Path | bytes]
"""Path in a repository -> the file, or its content."""


def publish(
    folder: str | Path,
    repo_id: str,
    siblings: bool = False,
    private: bool = False,
    dry_run: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
) -> list[str]:
    """Send a model to the Hub: one commit, and one for each task's merged sibling.

    Before anything leaves, the folder passes :func:`~st_jv5.self_test.self_test`, and the siblings
    are written and compared with it. What the Hub has already is not sent again: the same call goes
    on after a cut, and files that are no longer in the folder go from the repository.

    Args:
        folder: A saved model, with its card.
        repo_id: ``organisation/name``; siblings are ``organisation/name-task``.
        siblings: Also publish each adapter merged, for engines that know no adapters.
        private: Of repositories that are new.
        dry_run: Test and tell what would be sent; send nothing.
        endpoint: Of the Hub; None is the environment's.
        token: None is the one that ``hf auth login`` has stored.

    Returns:
        What was tested, and for each repository the commit's address, or what would be sent.

    Raises:
        ValueError: The name is none, or the folder does not pass.
        ConnectionError: The Hub refused or was lost; names the repository.

    Example:
        >>> publish(saved_folder, "no name")
        Traceback (most recent call last):
        ValueError: ...'no name'...
    """
    if not REPOSITORY.fullmatch(repo_id):
        raise ValueError(f"{repo_id!r} is no repository's name; it must be organisation/name")
    lines = self_test(folder)
    with tempfile.TemporaryDirectory() as merged:
        repositories = {repo_id: _files(Path(folder), repo_id)}
        if siblings:
            # Merged in float32: a half precision would round the sum once more than the source.
            model = SentenceTransformer(str(folder), model_kwargs={"dtype": "float32"})
            for task in tqdm(tasks(model), desc="siblings", unit="task"):
                (parity,) = export(model, task, "merged", Path(merged) / task)
                name = f"{repo_id}-{task}"
                lines.append(f"{name}: {parity}")
                repositories[name] = _files(Path(merged) / task, name)
        api = HfApi(endpoint=endpoint, token=token)
        for name, files in repositories.items():
            if dry_run:
                lines.append(f"{name}: {len(files)} files, {_size(files.values()):,} bytes")
                lines += [f"  {_size([file]):>13,}  {path}" for path, file in files.items()]
                continue
            try:
                lines.append(_send(api, name, files, private))
            except Exception as error:  # the client's kinds are many, and change
                raise ConnectionError(
                    f"{name}: {error}; the same call goes on from what has arrived"
                ) from error
    return lines


def _files(folder: Path, repo_id: str) -> Files:
    """A folder's files; the card names the repository where it loads the model."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*"))}
    found: Files = {
        name.as_posix(): path
        for name, path in paths.items()
        if path.is_file() and not any(part.startswith(".") for part in name.parts)
    }
    card = (folder / "README.md").read_text(encoding="utf-8").replace("REPOSITORY", repo_id)
    card = re.sub(r'(SentenceTransformer\()"[^"]*"', rf'\g<1>"{repo_id}"', card)
    card = re.sub(r"(st-jv5 export )\S+", rf"\g<1>{repo_id}", card)
    found["README.md"] = card.encode()
    return found


def _size(files: Iterable[Path | bytes]) -> int:
    """Bytes."""
    return sum(len(f) if isinstance(f, bytes) else f.stat().st_size for f in files)


def _send(api: HfApi, repo_id: str, files: Files, private: bool) -> str:
    """One commit of what differs; a file's content is on the Hub when the bar has passed it."""
    api.create_repo(repo_id, private=private, exist_ok=True)
    there = {
        each.path: each
        for each in api.list_repo_tree(repo_id, recursive=True)
        if isinstance(each, RepoFile)
    }
    changed = {
        name: file
        for name, file in files.items()
        if name not in there or not _is_same(there[name], file)
    }
    stale = [name for name in there if name not in files and name != ".gitattributes"]
    if not changed and not stale:
        return f"{repo_id}: as it is on the Hub already"
    additions = [CommitOperationAdd(name, file) for name, file in changed.items()]
    size = _size(changed.values())
    with tqdm(total=size, desc=repo_id, unit="B", unit_scale=True) as bar:
        for addition in additions:
            api.preupload_lfs_files(repo_id, [addition])
            bar.update(_size([changed[addition.path_in_repo]]))
    deletions = [CommitOperationDelete(name) for name in stale]
    commit = api.create_commit(
        repo_id, [*additions, *deletions], commit_message="Publish with st_jv5"
    )
    return f"{repo_id}: {len(additions)} files, {size:,} bytes, {commit.commit_url}"


def _is_same(there: RepoFile, here: Path | bytes) -> bool:
    """By the hash that the Hub lists: SHA-256 of a large file, git's own of a small one."""
    if there.lfs is None:
        content = here.read_bytes() if isinstance(here, Path) else here
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        return blob.hexdigest() == there.blob_id
    if isinstance(here, bytes):
        return hashlib.sha256(here).hexdigest() == there.lfs.sha256
    with here.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == there.lfs.sha256
