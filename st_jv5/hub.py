"""The model card, and the way of a model to the Hub."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass
class Upload:
    """One repository: what it has to hold, and what is to be sent for that."""

    repo_id: str
    files: dict[str, Path | bytes]
    """Path in the repository -> the file, or its content."""
    changed: list[str] = field(default_factory=list)
    """Files that the repository lacks or has otherwise."""
    stale: list[str] = field(default_factory=list)
    """Files of the repository that the folder does not have."""

    def size(self, name: str) -> int:
        """Bytes."""
        file = self.files[name]
        return len(file) if isinstance(file, bytes) else file.stat().st_size


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
        uploads = [Upload(repo_id, _files(Path(folder), repo_id))]
        if siblings:
            # Merged in float32: a half precision would round the sum once more than the source.
            model = SentenceTransformer(str(folder), model_kwargs={"dtype": "float32"})
            for task in tqdm(tasks(model), desc="siblings", unit="task"):
                (parity,) = export(model, task, "merged", Path(merged) / task)
                lines.append(f"{repo_id}-{task}: {parity}")
                name = f"{repo_id}-{task}"
                uploads.append(Upload(name, _files(Path(merged) / task, name)))
        api = HfApi(endpoint=endpoint, token=token)
        for upload in uploads:
            if dry_run:
                upload.changed = list(upload.files)
                lines.append(_told(upload))
            else:
                try:
                    lines.append(_send(api, upload, private))
                except Exception as error:  # the client's kinds are many, and change
                    raise ConnectionError(
                        f"{upload.repo_id}: {error}; the same call goes on from what has arrived"
                    ) from error
    return lines


def _files(folder: Path, repo_id: str) -> dict[str, Path | bytes]:
    """A folder's files; the card names the repository where it loads the model."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*"))}
    found: dict[str, Path | bytes] = {
        name.as_posix(): path
        for name, path in paths.items()
        if path.is_file() and not any(part.startswith(".") for part in name.parts)
    }
    card = (folder / "README.md").read_text(encoding="utf-8").replace("REPOSITORY", repo_id)
    card = re.sub(r'(SentenceTransformer\()"[^"]*"', rf'\g<1>"{repo_id}"', card)
    card = re.sub(r"(st-jv5 export )\S+", rf"\g<1>{repo_id}", card)
    found["README.md"] = card.encode()
    return found


def _told(upload: Upload) -> str:
    size = sum(map(upload.size, upload.changed))
    files = "\n".join(f"  {upload.size(name):>13,}  {name}" for name in upload.changed)
    return f"{upload.repo_id}: {len(upload.changed)} files, {size:,} bytes\n{files}"


def _send(api: HfApi, upload: Upload, private: bool) -> str:
    """One commit of what differs; a file's content is on the Hub when the bar has passed it."""
    api.create_repo(upload.repo_id, private=private, exist_ok=True)
    there = {
        each.path: each
        for each in api.list_repo_tree(upload.repo_id, recursive=True)
        if isinstance(each, RepoFile)
    }
    upload.changed = [
        name
        for name, file in upload.files.items()
        if name not in there or not _is_same(there[name], file)
    ]
    upload.stale = [n for n in there if n not in upload.files and n != ".gitattributes"]
    if not upload.changed and not upload.stale:
        return f"{upload.repo_id}: as it is on the Hub already"
    additions = [CommitOperationAdd(name, upload.files[name]) for name in upload.changed]
    size = sum(map(upload.size, upload.changed))
    with tqdm(total=size, desc=upload.repo_id, unit="B", unit_scale=True) as bar:
        for addition in additions:
            api.preupload_lfs_files(upload.repo_id, [addition])
            bar.update(upload.size(addition.path_in_repo))
    deletions = [CommitOperationDelete(name) for name in upload.stale]
    commit = api.create_commit(
        upload.repo_id, [*additions, *deletions], commit_message="Publish with st_jv5"
    )
    return f"{upload.repo_id}: {len(additions)} files, {size:,} bytes, {commit.commit_url}"


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
