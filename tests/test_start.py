"""How a command begins and ends, and what importing st_jv5 costs and gives."""

from __future__ import annotations

import argparse
import ast
import io
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from inspect import Parameter, getmembers, isclass, ismodule, signature
from pathlib import Path
from typing import Any

import pytest

import st_jv5
from st_jv5 import cli
from tests.conftest import ROOT

QUICK = """
import sys, time
begin = time.process_time()
try:
    from st_jv5.cli import main
    main({arguments!r})
except SystemExit as error:
    print("ended with", error.code)
assert not {{"numpy", "torch", "sentence_transformers"}} & {{*sys.modules}}
print("seconds", time.process_time() - begin)
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 0, "encode a corpus to disk"),
        (["encode", "--help"], 0, "--shard-rows"),
        (["eval", "--help"], 0, "int8 binary binary-rescored"),
        (["--version"], 0, f"st-jv5 {st_jv5.__version__}"),
        (["encdoe"], 2, "invalid choice: 'encdoe'"),
        (["encode", "model", "--inn", "x"], 2, "usage: st-jv5 encode"),
        ([], 2, "COMMAND"),
    ],
    ids=str,
)
def test_what_only_parses_takes_less_than_half_a_second(arguments, status, said):
    done = python(QUICK.format(arguments=arguments))
    assert said in done.stdout + done.stderr
    *_, ended, seconds = done.stdout.splitlines()
    assert ended == f"ended with {status}"
    assert float(seconds.split()[1]) < 0.5


PACKAGES = (
    *("adapters", "evaluation", "export", "losses", "modules"),
    *("student", "teacher", "trainer", "vectors"),
)
"""Those with public names."""

PLAIN = ("functional", "jina", "projection", "publish.hub", "publish.self_test", "precision")
"""Modules that are public as they are."""

LOAD = """
import sys, time
begin = time.process_time()
import st_jv5
assert time.process_time() - begin < 0.1
assert "torch" not in sys.modules
import st_jv5.modules.adapter_router  # imports sentence-transformers midway
import st_jv5.task_table
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1])
print(st_jv5.tasks(model)[0], model.encode(["x"], task="retrieval").shape)
assert "st_jv5.doctor" not in sys.modules
print(st_jv5.doctor.__name__)  # there without an import of its own
"""


@pytest.fixture(scope="module")
def loading(saved_once) -> subprocess.CompletedProcess[str]:
    return python(LOAD, str(saved_once))


def test_the_import_is_quick_and_makes_folders_load_whatever_is_imported_next(loading):
    assert loading.stdout.splitlines()[:1] == ["retrieval (1, 48)"], loading.stderr


def test_all_lists_of_public_names_agree_and_every_name_is_there():
    tree = ast.parse(Path(st_jv5.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body for alias in node.names}  # by type checkers
    homes = {name: home for home, names in st_jv5._NAMES.items() for name in names}
    assert seen == set(homes) == set(st_jv5.__all__) == set(dir(st_jv5)) - {"__version__"}
    for name, home in homes.items():
        assert getattr(st_jv5, name) is getattr(import_module(f"st_jv5.{home}"), name)
    with pytest.raises(AttributeError, match="module 'st_jv5' has no attribute 'encod'"):
        _ = st_jv5.encod


def test_no_public_name_is_that_of_a_submodule():
    """An import of the submodule would put it in the name's place."""
    for package in ("st_jv5", *(f"st_jv5.{name}" for name in PACKAGES)):
        module = import_module(package)
        inside = {found.name for found in pkgutil.iter_modules(module.__path__)}
        assert not inside & set(module.__all__), package
        assert not {name for name in inside & set(vars(module)) if not ismodule(vars(module)[name])}


THEIRS = {
    "AdapterRouter.preprocess",  # sentence-transformers calls it with a text and a prompt
    "AdapterTrainer.data_collator_class",  # a dataclass: its trainer's collator
    "AdapterTrainer.get_batch_sampler",
    "AdapterTrainer.get_multi_dataset_batch_sampler",
}
"""Public callables whose positional parameters sentence-transformers has laid down."""


def test_no_public_callable_takes_more_than_three_arguments_by_place():
    """Methods as on the class: ``self`` is not counted. What is longer is told by name."""
    many = set()
    for package in ("st_jv5", *(f"st_jv5.{name}" for name in (*PACKAGES, *PLAIN))):
        module = import_module(package)
        own = [name for name, value in vars(module).items() if _is_of(value, package)]
        for name in getattr(module, "__all__", [name for name in own if name[0] != "_"]):
            value = getattr(module, name)
            if _is_of(value, "st_jv5"):
                many |= {each for each, count in _by_place(name, value) if count > 3}
    assert many == THEIRS


def _is_of(value: Any, package: str) -> bool:
    return callable(value) and str(getattr(value, "__module__", "")).startswith(package)


def _by_place(name: str, value: Any) -> Iterator[tuple[str, int]]:
    """The callable, and of a class its public methods, each with its positional parameters."""
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    methods = getmembers(value, callable) if isclass(value) else []
    public = [(f"{name}.{key}", method) for key, method in methods if not key.startswith("_")]
    for each, found in ((name, value), *public):
        if _is_of(found, "st_jv5"):
            parameters = signature(found).parameters.values()
            yield each, sum(p.kind in kinds and p.name != "self" for p in parameters)


def test_a_submodule_is_there_without_an_import_of_its_own(loading):
    assert loading.stdout.splitlines()[1:] == ["st_jv5.doctor"], loading.stderr
    assert dir(st_jv5) == sorted([*st_jv5.__all__, "__version__"])


# ------------------------------------------------------------------------------------ how it ends


def ends(error: BaseException, debug: bool = False, resumes: bool = False) -> argparse.Namespace:
    def run(args: argparse.Namespace) -> None:
        raise error

    return argparse.Namespace(run=run, debug=debug, resumes=resumes)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shard_rows must be positive"),
        FileNotFoundError("no teacher store"),
        ImportError("pip install it"),
        MemoryError("too large"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_user_can_mend_is_one_line(error, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(ends(error))
    assert ended.value.code == f"error: {error}"
    assert capsys.readouterr().err == ""
    with pytest.raises(type(error)):
        cli.run(ends(error, debug=True))


def test_a_bug_shows_where_it_is(capsys):
    with pytest.raises(SystemExit, match="a bug in st-jv5; please report it"):
        cli.run(ends(TypeError("unhashable")))
    assert "TypeError: unhashable" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="stopped; run the same command again"):
        cli.run(ends(KeyboardInterrupt(), resumes=True))
    with pytest.raises(SystemExit, match=r"^stopped$"):
        cli.run(ends(KeyboardInterrupt()))


def test_a_terminal_of_few_characters_shows_the_others_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    cli.run(argparse.Namespace(run=lambda args: print("caf\xe9 \u65e5 \ud800"), debug=False))
    sys.stdout.flush()
    assert raw.getvalue().split() == [b"caf\xe9", b"\\u65e5", b"\\ud800"]


def test_loading_a_model_for_a_command_says_nothing(saved, tmp_path, capfd):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    how = ["--task", "clustering", "--in", str(tmp_path / "a.txt"), "--out", str(tmp_path / "v")]
    cli.main(["encode", saved, *how])
    out, err = capfd.readouterr()
    assert out.count("\n") == 1
    assert err == ""


def test_an_alias_is_exported_as_its_task_and_other_names_are_refused(saved, tmp_path, capsys):
    cli.main(["export", saved, str(tmp_path / "query"), "--task", "query", "--to", "merged"])
    assert capsys.readouterr().out.endswith(f"retrieval as merged: {tmp_path / 'query'}\n")
    with pytest.raises(SystemExit, match="error: unknown task 'quary'"):
        cli.main(["export", saved, str(tmp_path / "no"), "--task", "quary", "--to", "merged"])


@pytest.mark.parametrize("weights", ["0", "nan", "-1", "inf"])
def test_weights_that_average_nothing_are_refused(model, tmp_path, weights):
    st_jv5.adapters.save_adapter(model, "retrieval", tmp_path / "one")
    given = [f"--weights={weights}", "--out", str(tmp_path / "mean")]
    with pytest.raises(SystemExit, match="weights must be finite, >= 0, and one above 0"):
        cli.main(["average", str(tmp_path / "one"), *given])


def test_without_mteb_corpora_are_there_and_the_encoder_names_the_extra(monkeypatch):
    for name in [n for n in sys.modules if n.startswith(("st_jv5.evaluation", "mteb"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_WithoutMteb(), *sys.meta_path])
    import_module("st_jv5.evaluation.corpora")
    with pytest.raises(ImportError, match=r'pip install "st-jv5\[eval\]"'):
        _ = import_module("st_jv5.evaluation").MTEBEncoder


class _WithoutMteb:
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == "mteb":
            raise ModuleNotFoundError("No module named 'mteb'", name="mteb")
