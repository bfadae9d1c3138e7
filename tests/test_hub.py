"""From a folder to the Hub and back, through the real client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

import st_jv5
from st_jv5.cli import main
from st_jv5.files import read_json, write_json
from st_jv5.publish.hub import publish
from st_jv5.publish.self_test import ABSOLUTE, SECRETS, self_test
from st_jv5.task_table import TASKS
from tests.hub_server import Hub

LICENSES = {"base": {"b": "mit"}, "teacher": {"t": "apache-2.0"}, "data": {"d": "cc0-1.0"}}
CARD = """---
license: mit
---
    SentenceTransformer("out/model")
    st-jv5 export out/model out/merged --task retrieval --to merged
"""


@pytest.fixture
def ready(saved) -> str:
    """A folder that passes."""
    broken(Path(saved), "licenses", LICENSES)
    (Path(saved) / "README.md").write_text(CARD)
    return saved


def send(hub: Hub, folder: str, **settings) -> list[str]:
    return publish(folder, "team/mini", endpoint=hub.url, token="hf_test", **settings)


def test_a_model_and_its_siblings_are_one_commit_each_and_load_by_id_and_revision(
    hub, ready, texts, tmp_path
):
    lines = send(hub, ready, siblings=True, private=True)
    repos = ["team/mini", *(f"team/mini-{task}" for task in TASKS)]
    assert {repo: len(commits) for repo, commits in hub.commits.items()} == dict.fromkeys(repos, 2)
    assert all(hub.private.values())
    assert sum("/commit/" in line for line in lines) == 5
    first = hub.commit_id("team/mini", 1)
    card = hub.commits["team/mini"][1]["README.md"].decode()
    assert 'SentenceTransformer("team/mini")' in card
    assert "st-jv5 export team/mini out/merged" in card
    sibling = hub.commits["team/mini-clustering"][1]["README.md"].decode()
    assert 'SentenceTransformer("team/mini-clustering")' in sibling
    assert "vllm serve team/mini-clustering" in sibling
    assert ModelCard(sibling).data.license == "mit"
    # Another version; the first one stays under its commit.
    model = SentenceTransformer(ready)
    before = model.encode(texts[:4], task="clustering")
    for tensor in model[0].adapter_tensors("clustering").values():
        tensor.data.mul_(1.5)
    model.save_pretrained(ready)
    (Path(ready) / "README.md").write_text(CARD)
    after = model.encode(texts[:4], task="clustering")
    (sent,) = [line for line in send(hub, ready) if "/commit/" in line]
    assert sent.startswith("team/mini: 1 files"), sent  # equal weights have equal bytes
    asked = {"cache_folder": str(tmp_path / "cache"), "token": "hf_test"}
    now = SentenceTransformer("team/mini", **asked)
    then = SentenceTransformer("team/mini", revision=first, **asked)
    merged = SentenceTransformer("team/mini-clustering", **asked)
    now, then = (model.encode(texts[:4], task="clustering") for model in (now, then))
    merged = merged.encode(texts[:4])
    assert np.array_equal(now, after)
    assert np.array_equal(then, before)
    assert not np.allclose(now, then, atol=1e-3)
    np.testing.assert_allclose(merged, before, atol=1e-5)


def test_after_a_cut_only_what_is_missing_is_sent(hub, ready, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # its retries
    weights = sorted(Path(ready).rglob("*.safetensors"))
    assert len(weights) == 5
    hub.cut_after = 2
    with pytest.raises(ConnectionError, match=r"team/mini: .*call it again to continue"):
        send(hub, ready)
    assert len(hub.commits["team/mini"]) == 1  # nothing half done is seen
    assert len(hub.received) == 2
    hub.cut_after = None
    send(hub, ready)
    assert len(hub.commits["team/mini"]) == 2
    assert len(hub.received) == len(set(hub.received))  # none was sent twice
    files = hub.commits["team/mini"][1]
    for path in weights:
        assert files[path.relative_to(ready).as_posix()] == path.read_bytes()
    assert send(hub, ready)[-1] == "team/mini: as it is on the Hub already"


def test_only_a_models_files_are_sent_and_only_they_are_deleted(hub, ready):
    folder = Path(ready)
    private = ("id_rsa", "secrets.env", "run.log", "train.py", "events.out", "optimizer.pt")
    for name in private:
        (folder / name).write_text("x")
    (folder / "NOTICE").write_text("thanks")
    (told,) = [line for line in send(hub, ready) if line.startswith("left out")]
    assert told == "left out, not part of a model: " + ", ".join(sorted(private))
    sent = hub.commits["team/mini"][-1]
    assert not set(private) & set(sent)
    hub.commits["team/mini"].append({**sent, "plot.png": b"by hand"})
    (folder / "NOTICE").unlink()
    (folder / "LICENSE").write_text("MIT")
    (folder / "README.md").write_text(CARD + "more")
    dry = send(hub, ready, dry_run=True)
    assert [line.split() for line in dry if line.startswith("  ")] == [
        ["add", "3", "LICENSE"],
        ["change", str(len(hub.commits["team/mini"][-1]["README.md"]) + 4), "README.md"],
        ["delete", "NOTICE"],
        ["keep", "plot.png,", "which", "is", "on", "the", "Hub", "alone"],
    ]
    assert len(hub.commits["team/mini"]) == 3
    assert "2 files, " in send(hub, ready)[-1]
    assert set(hub.commits["team/mini"][-1]) == {*sent, "plot.png", "LICENSE"} - {"NOTICE"}


def test_a_pickle_on_the_hub_is_no_fallback_for_missing_weights(hub, ready, tmp_path):
    send(hub, ready)
    files = dict(hub.commits["team/mini"][1])
    torch.save({"weights": torch.ones(3)}, tmp_path / "w.bin")
    files["pytorch_model.bin"] = (tmp_path / "w.bin").read_bytes()
    del files["model.safetensors"]
    hub.commits["team/mini"].append(files)
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        SentenceTransformer("team/mini", cache_folder=str(tmp_path / "cache"), token="hf_test")
    assert not [*(tmp_path / "cache").rglob("*.bin")]  # not even fetched


def test_a_dry_run_tells_and_sends_nothing(hub, ready):
    lines = send(hub, ready, dry_run=True, siblings=True)
    assert hub.commits == {}
    told = "\n".join(lines)
    assert "adapters/retrieval/adapter_model.safetensors" in told
    assert "team/mini-classification: 10 files, " in told


def test_a_dry_run_without_the_hub_shows_every_file_as_new(hub, ready, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # its retries
    monkeypatch.setattr(hub, "commits", None)
    lines = send(hub, ready, dry_run=True)
    assert lines[-1].startswith("  not compared with the Hub: ")
    assert [line.split()[-1] for line in lines if line.startswith("  add")] == sorted(
        path.relative_to(ready).as_posix() for path in Path(ready).rglob("*") if path.is_file()
    )


def test_the_commands_print_what_was_tested_and_sent(hub, ready, capsys):
    main(["check", ready])
    tested = capsys.readouterr().out
    assert "licences: base, teacher and data stated; the card says mit" in tested
    main(["publish", ready, "team/mini", "--dry-run"])
    assert "model.safetensors" in capsys.readouterr().out
    assert hub.commits == {}
    main(["publish", ready, "team/mini", "--private"])
    printed = capsys.readouterr().out
    assert printed.startswith(tested)
    assert f"{hub.url}/team/mini/commit/{hub.commit_id('team/mini', 1)}" in printed
    with pytest.raises(SystemExit, match=r"error: .*must be organisation/name"):
        main(["publish", ready, "mini"])


def test_a_hub_that_refuses_is_named(hub, ready, monkeypatch):
    monkeypatch.setattr(hub, "commits", None)
    with pytest.raises(ConnectionError, match="team/mini: "):
        send(hub, ready)


@pytest.mark.parametrize("name", ["", "mini", "a/b/c", "team/", "../up", "team/mi ni"])
def test_a_name_that_is_none_is_refused(ready, name):
    with pytest.raises(ValueError, match="must be organisation/name"):
        publish(ready, name)


def broken(folder: Path, key: str, value: object) -> None:
    write_json(folder / "st_jv5.json", {**read_json(folder / "st_jv5.json"), key: value})


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "README.md").unlink(), r"README.md names no license"),
        (lambda f: (f / "README.md").write_text("# no"), r"README.md names no license"),
        (
            lambda f: broken(f, "licenses", {**LICENSES, "teacher": {}}),
            r"st_jv5.json: the licence of the teacher is not stated",
        ),
        (
            lambda f: broken(f, "licenses", {**LICENSES, "data": {"web": "unknown"}}),
            r"st_jv5.json: the licence of the data of 'web' is unknown",
        ),
        (
            lambda f: broken(f, "licenses", {**LICENSES, "base": {"jina": "cc-by-nc-4.0"}}),
            r"weights of jina are cc-by-nc-4.0 and stay so; the card says 'mit'",
        ),
        (other_weights, r"names the base [0-9a-f]{12}, the weights differ"),
        (
            lambda f: (f / "README.md").write_text(CARD + "see /home/me/model"),
            r"README.md has a path of this machine: '/home/me/model'",
        ),
        (
            lambda f: (f / "pytorch_model.bin").write_bytes(b"x"),
            r"pytorch_model.bin is not part of an st_jv5 model",
        ),
        (
            lambda f: (f / "README.md").write_text(f"{CARD} hf_{'a' * 34}"),
            r"README.md holds a key, hf_aaaaa\.\.\.; remove it",
        ),
        (
            lambda f: (f / "LICENSE").write_text("-----BEGIN RSA PRIVATE KEY-----"),
            r"LICENSE holds a key, -----BEG\.\.\.",
        ),
        (
            lambda f: save_file(
                load_file(f / "model.safetensors"),
                f / "model.safetensors",
                {"format": "pt", "from": "/nfs/me/run"},
            ),
            r"model.safetensors has a path of this machine: '/nfs/me",
        ),
    ],
)
def test_a_folder_that_does_not_pass_never_leaves(hub, ready, change, message):
    change(Path(ready))
    with pytest.raises(ValueError, match=message):
        send(hub, ready)
    assert hub.commits == {}


def test_the_self_test_tries_every_task(ready):
    lines = self_test(ready)
    for task in (*TASKS, "base"):
        (line,) = [line for line in lines if line.startswith(f"{task}: ")]
        for what in (
            "unit vectors",
            "different texts apart",
            "batch of 1",
            "padding left and right",
            "EOS",
            "at 8, 16, 48",
        ):
            assert what in line


@pytest.mark.parametrize(
    "place",
    [
        "/srv/me/x", "/nfs/x", "/Volumes/x", "/kaggle/working", "C:/Users/me", "C:\\\\Users\\\\me",
        "D:\\me", "file:///home/me", "path:/home/me", "(/home/me)", '"/etc/passwd"', "~/x", "~me/x",
        "=/lustre/x", "file:/home",
    ],
)  # fmt: skip
def test_a_path_of_somebodys_machine_is_seen(place):
    assert ABSOLUTE.search(f"see {place} there")


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/data/x", "and/or", "1/2", "</s>", "a/b/c", "POST /v1/embeddings",
        "org/home/x", "out/demo/model", "http://localhost:8000/home/x", "3:4", "~5 ms", "km/h",
        "./data/x", "eval/data/x",
    ],
)  # fmt: skip
def test_what_is_no_path_of_a_machine_passes(text):
    assert not ABSOLUTE.search(f"see {text} there")


@pytest.mark.parametrize(
    "key",
    [
        "hf_" + "a" * 34, "sk-" + "a1" * 20, "sk-proj-" + "a" * 30, "ghp_" + "a" * 36,
        "github_pat_" + "a" * 30, "AKIA" + "A1" * 8, "AIza" + "a" * 35, "xoxb-1234567890",
        "glpat-" + "a" * 20, "-----BEGIN OPENSSH PRIVATE KEY-----",
    ],
)  # fmt: skip
def test_a_key_is_seen_by_its_form(key):
    assert SECRETS.search(f'token = "{key}"')


@pytest.mark.parametrize("text", ["hf_hub_download", "sk-learn", "task-query", "ghp_x", "AKIA"])
def test_a_word_that_begins_like_a_key_is_none(text):
    assert not SECRETS.search(text)


def test_one_vector_for_all_texts_is_refused(ready, monkeypatch):
    def same(_, texts, **__):
        return np.eye(48)[[0] * len(texts)]

    monkeypatch.setattr("st_jv5.publish.self_test.encode", same)
    with pytest.raises(
        ValueError, match=r"have the same vector; tokenizer\.json does not distinguish"
    ):
        self_test(ready)


def test_the_self_test_finds_what_each_check_is_for(ready, monkeypatch):
    monkeypatch.setattr(
        st_jv5.MatryoshkaTruncate, "forward", lambda self, features, dim=None, **_: features
    )
    with pytest.raises(ValueError, match=r"retrieval: lengths .*not 1"):
        self_test(ready)
    monkeypatch.undo()
    settings = read_json(Path(ready) / "tokenizer.json")
    settings["post_processor"] = None  # no EOS
    write_json(Path(ready) / "tokenizer.json", settings)
    broken(Path(ready), "append_eos", True)
    monkeypatch.setattr("st_jv5.modules.adapter_router.make_tokenizer_append_eos", lambda _: None)
    with pytest.raises(ValueError, match=r"long text becomes 64 tokens that end with"):
        self_test(ready)
