"""Upload a model to the Hub."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from st_jv5.adapters import tasks
from st_jv5.export import export
from st_jv5.folders.trust import MEMBERS, contents_of
from st_jv5.publish.self_test import check_private, self_test

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,80}")

Files = dict[str, Path | bytes]
"""Path in a repository -> the file, or its content."""


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    siblings: bool = False,
    private: bool = False,
    dry_run: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
) -> list[str]:
    """Upload a model to the Hub in one commit, and each task merged, if asked, in one more.

    First the folder must pass :func:`~st_jv5.publish.self_test.self_test`, and the siblings are
    written and compared with it. Only files of a model (:data:`~st_jv5.folders.trust.MEMBERS`) are
    uploaded; all others are listed. Files that the Hub already has are not uploaded again, so after
    a lost connection the same call continues. Model files that are no longer in the folder are
    deleted from the repository; other files there, such as pictures of its card, are kept.

    Args:
        folder: A saved model, with its card.
        repo_id: ``organisation/name``; siblings are ``organisation/name-task``.
        siblings: Also publish each adapter merged, for engines that know no adapters.
        private: Whether a new repository is private.
        dry_run: Check the folder and return what would be added, changed and deleted; upload
            nothing.
        endpoint: Address of the Hub; None takes the one that the environment sets.
        token: Token for the Hub; None takes the one that ``hf auth login`` stored.

    Returns:
        Lines: the checks, the files that are left out, and for each repository the address of the
        commit, or what would change.

    Raises:
        ValueError: ``repo_id`` is not a valid name, or a check fails.
        ConnectionError: The Hub refused, or the connection was lost; the message names the
            repository.

    Example:
        >>> publish(saved_folder, "no name")
        Traceback (most recent call last):
        ValueError: ...'no name'...
    """
    if not REPOSITORY.fullmatch(repo_id):
        raise ValueError(
            f"{repo_id!r} is not the name of a repository; it must be organisation/name"
        )
    lines = self_test(folder)
    with tempfile.TemporaryDirectory() as merged:
        repositories = {repo_id: _files(Path(folder), repo_id)}
        if siblings:
            # Merged in float32: a half precision would round the sum once more than the source.
            model = SentenceTransformer(str(folder), model_kwargs={"dtype": "float32"})
            for task in tqdm(tasks(model), desc="siblings", unit="task"):
                (parity,) = export(model, task, Path(merged) / task, kind="merged")
                check_private(Path(merged) / task)
                name = f"{repo_id}-{task}"
                lines.append(f"{name}: {parity}")
                repositories[name] = _files(Path(merged) / task, name)
        api = HfApi(endpoint=endpoint, token=token)
        for name, files in repositories.items():
            if dry_run:
                lines += _tell(api, name, files)
                continue
            try:
                api.create_repo(name, private=private, exist_ok=True)
                lines.append(_send(api, _compare(api, name, files)))
            except Exception as error:  # the client's kinds are many, and change
                raise ConnectionError(f"{name}: {error}; call it again to continue") from error
    return lines


def _files(folder: Path, repo_id: str) -> Files:
    """What a model folder holds; the card names the repository where it loads the model."""
    found: Files = {name: folder / name for name in contents_of(folder).members}
    card = (folder / "README.md").read_text(encoding="utf-8").replace("REPOSITORY", repo_id)
    card = re.sub(r'(SentenceTransformer\()"[^"]*"', rf'\g<1>"{repo_id}"', card)
    card = re.sub(r"(st-jv5 export )\S+", rf"\g<1>{repo_id}", card)
    found["README.md"] = card.encode()
    return found


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a commit would do to a repository."""

    repo_id: str
    added: Files
    changed: Files
    deleted: list[str]
    """Files of a model that the folder does not have."""
    kept: list[str]
    """Files on the Hub that are not part of a model."""

    def told(self) -> list[str]:
        """The change in words, a line per file."""
        sent = {**self.added, **self.changed}
        lines = [f"{self.repo_id}: {len(sent)} files, {_size(sent.values()):,} bytes"]
        for word, files in (("add", self.added), ("change", self.changed)):
            lines += [f"  {word:<7}{_size([file]):>13,}  {name}" for name, file in files.items()]
        lines += [f"  delete {'':>13}  {name}" for name in self.deleted]
        lines += [f"  keep   {'':>13}  {name}, which is on the Hub alone" for name in self.kept]
        return lines


def _tell(api: HfApi, repo_id: str, files: Files) -> list[str]:
    """What a commit would do; all files are new where the Hub cannot be asked."""
    try:
        return _compare(api, repo_id, files).told()
    except Exception as error:  # the client's kinds are many, and change
        told = Change(repo_id=repo_id, added=files, changed={}, deleted=[], kept=[]).told()
        return [*told, f"  not compared with the Hub: {error}"]


def _compare(api: HfApi, repo_id: str, files: Files) -> Change:
    """Files against what the Hub has; a repository that is not there has nothing."""
    try:
        tree = list(api.list_repo_tree(repo_id, recursive=True))
    except RepositoryNotFoundError:
        tree = []
    there = {each.path: each for each in tree if isinstance(each, RepoFile)}
    alone = sorted(there.keys() - files.keys() - {".gitattributes"})
    return Change(
        repo_id=repo_id,
        added={name: file for name, file in files.items() if name not in there},
        changed={
            name: file
            for name, file in files.items()
            if name in there and not _is_same(there[name], file)
        },
        deleted=[name for name in alone if MEMBERS.fullmatch(name)],
        kept=[name for name in alone if not MEMBERS.fullmatch(name)],
    )


def _size(files: Iterable[Path | bytes]) -> int:
    """Bytes."""
    return sum(len(f) if isinstance(f, bytes) else f.stat().st_size for f in files)


def _send(api: HfApi, change: Change) -> str:
    """One commit of what differs; a file's content is on the Hub when the bar has passed it."""
    repo_id, sent = change.repo_id, {**change.added, **change.changed}
    if not sent and not change.deleted:
        return f"{repo_id}: as it is on the Hub already"
    additions = [CommitOperationAdd(name, file) for name, file in sent.items()]
    size = _size(sent.values())
    with tqdm(total=size, desc=repo_id, unit="B", unit_scale=True) as bar:
        for addition in additions:
            api.preupload_lfs_files(repo_id, [addition])
            bar.update(_size([sent[addition.path_in_repo]]))
    deletions = [CommitOperationDelete(name) for name in change.deleted]
    commit = api.create_commit(
        repo_id, [*additions, *deletions], commit_message="Publish with st_jv5"
    )
    gone = f", {len(deletions)} deleted" if deletions else ""
    return f"{repo_id}: {len(additions)} files, {size:,} bytes{gone}, {commit.commit_url}"


def _is_same(there: RepoFile, here: Path | bytes) -> bool:
    """Whether the hash on the Hub is ours: SHA-256 of a large file, git's own of a small one."""
    if there.lfs is None:
        content = here.read_bytes() if isinstance(here, Path) else here
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        return blob.hexdigest() == there.blob_id
    if isinstance(here, bytes):
        return hashlib.sha256(here).hexdigest() == there.lfs.sha256
    with here.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == there.lfs.sha256
