"""What is written for another engine gives the model's vectors, or is not written."""

from __future__ import annotations

import ast
import math
import runpy
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from starlette.testclient import TestClient
from tokenizers import Tokenizer
from transformers import AutoModel

import st_jv5
from st_jv5.cli import main
from st_jv5.engines.graph import start_onnx, start_openvino
from st_jv5.export import export, export_all_tasks, parity_texts
from st_jv5.export.merged import _for_a_shell, _in_quotes
from st_jv5.export.parity import compare
from st_jv5.files import read_any_json, read_json
from tests.conftest import adapted

ROOT = Path(__file__).parents[2]


def test_the_texts_are_200_real_ones_of_six_languages():
    texts = parity_texts()
    assert len(texts) == len(set(texts)) == 200
    assert max(map(len, texts)) > 2000
    words = {word for text in texts for word in text.split()}
    assert {"the", "les", "los", "die", "для"} <= words
    assert any("の" in text for text in texts)
    told = read_json(ROOT / "st_jv5" / "export" / "texts.json")["about"]
    for licence in ("WordNet licence", "CC BY-SA 4.0", "MPL-2.0"):
        assert licence in told


def test_a_merged_folder_has_the_models_vectors_in_the_host_and_in_auto_model(
    architecture, backbones, tmp_path
):
    model = adapted(backbones[architecture])
    folder = tmp_path / "merged"
    (parity,) = export(model, "retrieval", folder, kind="merged")
    assert parity.texts == 200
    assert parity.least >= 0.99999
    stock = SentenceTransformer(str(folder))
    assert [type(module).__name__ for module in stock] == ["Transformer", "Pooling", "Normalize"]
    assert stock.max_seq_length == model.max_seq_length == 64
    texts = parity_texts()[::40]
    expected = model.encode(texts, task="retrieval", prompt_name="query")
    found = stock.encode(texts, prompt_name="query")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    backbone = AutoModel.from_pretrained(folder)
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))  # ends with EOS by itself
    for text, vector in zip(texts, expected, strict=True):
        ids = words.encode(f"Query: {text}").ids
        ids = ids if len(ids) <= 64 else [*ids[:63], ids[-1]]
        with torch.no_grad():
            state = backbone(torch.tensor([ids])).last_hidden_state[0, -1]
        np.testing.assert_allclose(state / state.norm(), vector, atol=1e-5)


def test_other_engines_find_pooling_prompts_length_and_theta_where_they_look(backbones, tmp_path):
    export(adapted(backbones["qwen3"]), "clustering", tmp_path / "m", kind="merged", texts=["a"])
    # vLLM: two class names, and the first key of pooling that is true.
    kinds = [module["type"] for module in read_any_json(tmp_path / "m" / "modules.json")]
    assert kinds[1:] == [
        f"sentence_transformers.models.{name}" for name in ("Pooling", "Normalize")
    ]
    pooling = read_json(tmp_path / "m" / "1_Pooling" / "config.json")
    assert next(key for key, value in pooling.items() if value is True) == "pooling_mode_lasttoken"
    assert pooling["word_embedding_dimension"] == 48
    # vLLM, TEI, infinity: the length.
    settings = read_json(tmp_path / "m" / "sentence_bert_config.json")
    assert settings == {"max_seq_length": 64, "do_lower_case": False}
    told = read_json(tmp_path / "m" / "config_sentence_transformers.json")
    assert told["prompts"] == {"query": "Query: ", "document": "Document: "}
    assert told["default_prompt_name"] == "document"
    # transformers 4: names that 5 has changed.
    config = read_json(tmp_path / "m" / "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000.0
    assert config["torch_dtype"] == config["dtype"] == "float32"
    words = read_json(tmp_path / "m" / "tokenizer_config.json")
    assert words["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert words["model_max_length"] == 64
    assert words["add_eos_token"] is True
    # sentence-transformers would turn texts into chats.
    assert not (tmp_path / "m" / "chat_template.jinja").exists()
    assert read_json(tmp_path / "m" / "tokenizer.json")["truncation"] is None


def test_a_tasks_own_prompts_go_along_and_come_back(backbones, tmp_path):
    torch.manual_seed(0)
    model = st_jv5.new_student(backbones["qwen3"], matryoshka_dims=(8, 48))
    st_jv5.add_task(model, "legal", prompts={"query": "Which law? ", "document": "Law: "})
    export(model, "legal", tmp_path / "m", kind="merged", texts=parity_texts()[:4])
    told = read_json(tmp_path / "m" / "config_sentence_transformers.json")["prompts"]
    assert told == {"query": "Which law? ", "document": "Law: "}
    assert st_jv5.load_jina_v5(tmp_path / "m").prompts == told  # a sibling's own, too
    assert "`Which law? `" in (tmp_path / "m" / "README.md").read_text()


GRAPHS = [
    pytest.param(kind, name, marks=() if light else pytest.mark.full)
    for kind in ("onnx", "openvino")
    for name, light in (("bert", True), ("mpnet", False), ("qwen3", False), ("eurobert", False))
]


@pytest.mark.parametrize(("kind", "backbone"), GRAPHS)
def test_a_graph_has_the_models_vectors_and_int8s_loss_is_told(
    backbones, tmp_path, monkeypatch, kind, backbone
):
    model = adapted(backbones[backbone])
    folder = tmp_path / kind
    plain, small = export(model, "retrieval", folder, kind=kind, int8=True)
    assert plain.least >= 0.9999
    assert 0.85 < small.least < 1
    assert small.bound is None
    assert not list(folder.glob("*.safetensors"))
    # The card's own lines, as its reader runs them.
    card = (folder / "README.md").read_text()
    monkeypatch.chdir(folder)
    space: dict[str, object] = {}
    exec(card[card.index("```python\n") + 10 : card.rindex("```")], space)
    expected = model.encode(["a text", "another"], task="retrieval", prompt_name="document")
    np.testing.assert_allclose(space["vectors"], expected, atol=1e-5)
    if kind == "openvino":
        return
    # Any number of texts and tokens, padding on either side.
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = words.encode("Query: a text of its own").ids
    expected = model.encode(["a text of its own"], task="query")[0]
    pad = model.tokenizer.pad_token_id
    for before, after in ((0, 0), (0, 9), (9, 0)):
        row = [pad] * before + ids + [pad] * after
        mask = [0] * before + [1] * len(ids) + [0] * after
        inputs = {"input_ids": np.array([row] * 3), "attention_mask": np.array([mask] * 3)}
        (found,) = session.run(["sentence_embedding"], inputs)
        np.testing.assert_allclose(found, [expected] * 3, atol=1e-5)
    # As examples/export_and_serve.py serves it.
    example = runpy.run_path(str(ROOT / "examples" / "export_and_serve.py"))
    texts = ["a short text", "a text of some more words, so that the other is padded", "x " * 99]
    with TestClient(example["application"](folder)) as client:
        for prompt in ("query", "document"):
            answer = client.post("/embed", json={"inputs": texts, "prompt_name": prompt})
            np.testing.assert_allclose(answer.json(), model.encode(texts, task=prompt), atol=1e-5)
        assert client.post("/embed", json={"texts": texts}).status_code == 422


SMALL_AND_LARGE = [
    pytest.param(name, marks=() if name == "bert" else pytest.mark.full)
    for name in ("bert", "mpnet", "qwen3", "eurobert")
]


@pytest.mark.parametrize("backbone", SMALL_AND_LARGE)
def test_one_graph_has_the_vectors_of_every_task_and_the_base_once(
    backbones, tmp_path, monkeypatch, backbone
):
    model = adapted(backbones[backbone], layers=[0])
    st_jv5.add_task(model, "legal", rank=2, alpha=6, prompts={"document": "Law: "})
    for key, tensor in model[0].adapter_tensors("legal").items():
        if ".lora_B." in key:
            torch.nn.init.normal_(tensor, std=0.2)
    folder = tmp_path / "all"
    plain, small = export_all_tasks(model, folder, int8=True)
    assert plain.texts == 400  # in mixed batches, and in batches of one task
    assert plain.least >= 0.9999
    assert 0.95 < small.mean < 1  # of random weights, which int8 suits less than trained ones
    assert small.bound is None
    # Weights: the base's and each adapter's once; legal's rank of 2 takes the others' 4.
    stored = {tensor.name: tensor for tensor in onnx.load(folder / "model.onnx").graph.initializer}
    held = sum(math.prod(t.dims) for t in stored.values() if t.data_type == onnx.TensorProto.FLOAT)
    router = model[0]
    adapters = sum(
        t.numel() for name in router.tasks for t in router.adapter_tensors(name).values()
    )
    legal = sum(tensor.numel() for tensor in router.adapter_tensors("legal").values())
    base = sum(parameter.numel() for parameter in router.base_parameters())
    assert held <= 1.02 * (base + adapters + legal)
    # The card's own lines, as its reader runs them.
    card = (folder / "README.md").read_text()
    monkeypatch.chdir(folder)
    space: dict[str, object] = {}
    exec(card[card.index("```python\n") + 10 : card.rindex("```")], space)
    expected = model.encode(["a text", "another"], task="retrieval", prompt_name="document")
    np.testing.assert_allclose(space["vectors"], expected, atol=1e-5)
    # Each row its own task, one text or many, by ONNX Runtime and by OpenVINO.
    told = read_json(folder / "tasks.json")
    names = [task["name"] for task in told["tasks"]]
    assert names == [*router.tasks, "base"]
    assert told["tasks"][4]["prompts"] == {"document": "Law: "}
    rows = {"input_ids": space["ids"], "attention_mask": space["mask"]}
    for run in (start_onnx(folder / "model.onnx"), start_openvino(folder / "model.onnx")):
        for pair in (("base", "clustering"), ("clustering", "clustering"), ("base", "base")):
            task = np.array([names.index(name) for name in pair])
            expected = [
                model.encode(text, task=name, prompt="Document: ")
                for text, name in zip(["a text", "another"], pair, strict=True)
            ]
            np.testing.assert_allclose(run({**rows, "task": task}), expected, atol=1e-5)
        one = {name: array[:1] for name, array in rows.items()}
        np.testing.assert_allclose(run({**one, "task": task[:1]}), expected[:1], atol=1e-5)


def test_one_graph_wants_adapters_and_is_onnx(saved, student, tmp_path):
    with pytest.raises(ValueError, match="this model has no adapters; its one task is base"):
        export_all_tasks(student, tmp_path / "m")
    with pytest.raises(SystemExit, match=r"--all-tasks is for --to onnx, .*, not for merged"):
        main(["export", saved, str(tmp_path / "m"), "--all-tasks", "--to", "merged"])
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("kind", ["merged", "onnx", "openvino"])
@pytest.mark.parametrize(("pooling", "engines"), [("mean", "mean"), ("cls", "cls")])
def test_the_mean_and_the_first_token_are_exported_as_such(
    backbones, tmp_path, kind, pooling, engines
):
    model = adapted(backbones["bert"], pooling=pooling)
    folder = tmp_path / kind
    (parity,) = export(model, "retrieval", folder, kind=kind, texts=parity_texts()[::10])
    assert parity.least >= 0.9999
    card = (folder / "README.md").read_text()
    assert {"mean": ": mean pooling, unit", "cls": ": first-token (cls) pooling, unit"}[
        pooling
    ] in card
    if kind == "merged":
        assert f"--pooling {engines}\n" in card
        config = read_json(folder / "1_Pooling" / "config.json")
        key = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[pooling]
        assert next(name for name, value in config.items() if value is True) == key
        stock = SentenceTransformer(str(folder))
        assert stock[1].pooling_mode == pooling
        return
    run = (start_onnx if kind == "onnx" else start_openvino)(next(folder.glob("*model.[ox]*")))
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = words.encode("Query: a text of its own").ids
    expected = model.encode(["a text of its own"], task="query")[0]
    pad = model.tokenizer.pad_token_id
    for before, after in ((0, 0), (0, 9), (9, 0)):
        row = [pad] * before + ids + [pad] * after
        mask = [0] * before + [1] * len(ids) + [0] * after
        found = run({"input_ids": np.array([row] * 3), "attention_mask": np.array([mask] * 3)})
        np.testing.assert_allclose(found, [expected] * 3, atol=1e-5)


def test_a_card_says_which_prompts_there_are(backbones, tmp_path):
    none = adapted(backbones["bert"], pooling="mean", prompts={"query": "", "document": ""})
    export(none, "retrieval", tmp_path / "none", kind="merged", texts=["a"])
    card = (tmp_path / "none" / "README.md").read_text()
    assert "\nNo prompt stands in front of a text.\n" in card
    assert 'Servers are asked for `"a text"`' in card
    one = adapted(backbones["bert"], pooling="cls", prompts={"query": "Ask: ", "document": ""})
    export(one, "retrieval", tmp_path / "one", kind="merged", texts=["a"])
    card = (tmp_path / "one" / "README.md").read_text()
    assert "\n- query: `Ask: `\n- document: none\n" in card
    told = read_json(tmp_path / "one" / "config_sentence_transformers.json")
    assert told["prompts"] == {"query": "Ask: ", "document": ""}


@pytest.mark.parametrize(
    "prompt", ["Query: ", '"; touch made #', "$(touch made)`touch made`", "Task: it's\nQuery: \t"]
)
def test_a_prompt_stands_in_a_cards_commands_as_text(prompt, tmp_path):
    shell, literal = _for_a_shell(prompt), _in_quotes(prompt)
    assert len(f"{shell}{literal}".splitlines()) == 1
    done = subprocess.run(
        ["bash", "-c", f"printf %s {shell}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == prompt
    assert ast.literal_eval(literal) == prompt
    assert not list(tmp_path.iterdir())


def test_the_command_prints_how_close_it_is(saved, tmp_path, capsys):
    main(["export", saved, str(tmp_path / "m"), "--task", "text-matching", "--to", "merged"])
    printed = capsys.readouterr().out
    assert "merged: 200 texts, least cosine 1.0000000" in printed
    assert "(bound 0.99999)" in printed
    with pytest.raises(SystemExit, match="m exists already and is not empty"):
        main(["export", saved, str(tmp_path / "m"), "--task", "clustering", "--to", "merged"])


def test_a_published_folder_is_exported_with_its_licence(published, tmp_path):
    main(["export", published[1], str(tmp_path / "m"), "--task", "retrieval", "--to", "merged"])
    card = (tmp_path / "m" / "README.md").read_text()
    assert ModelCard(card).data.license == "cc-by-nc-4.0"
    assert "not for commercial use" in card
    # The export is such a sibling as the publisher has; it is read as one.
    model = st_jv5.load_jina_v5(tmp_path / "m")
    source = st_jv5.load_jina_v5(published[1])
    texts = parity_texts()[::40]
    for name in ("query", "document"):
        np.testing.assert_allclose(
            model.encode(texts, prompt_name=name),
            source.encode(texts, task="retrieval", prompt_name=name),
            atol=1e-5,
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("retreival", "merged"), r"unknown task 'retreival'.*did you mean 'retrieval'"),
        (("retrieval", "onyx"), r"unknown kind of export 'onyx'.*did you mean 'onnx'"),
        (("retrieval", "merged", True), r"int8 is for onnx and openvino, not for merged"),
        (("retrieval", "merged", False, None, []), r"no texts to compare on"),
        (("retrieval", "gguf"), r"git clone .*--llama-cpp or the environment's LLAMA_CPP"),
        (("retrieval", "gguf", False, "/absent"), r"/absent has no convert_hf_to_gguf.py"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(
    model, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    task, kind, *rest = arguments
    named = dict(zip(("int8", "llama_cpp", "texts"), rest, strict=False))
    with pytest.raises(ValueError, match=message):
        export(model, task, tmp_path / "m", kind=kind, **named)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "int8", "package", "told"),
    [
        ("onnx", False, "onnxscript", r"pip install 'st-jv5\[onnx\]'"),
        ("openvino", False, "openvino", r"pip install 'st-jv5\[openvino\]'"),
        ("openvino", True, "nncf", "pip install nncf"),
    ],
)
def test_a_missing_package_is_named(model, tmp_path, monkeypatch, kind, int8, package, told):
    monkeypatch.setattr(
        "st_jv5.engines.graph.find_spec", lambda name: None if name == package else find_spec(name)
    )
    with pytest.raises(ValueError, match=f"needs the package {package}: {told}"):
        export(model, "retrieval", tmp_path / "m", kind=kind, int8=int8)


def test_an_export_that_differs_is_not_written(model, tmp_path, monkeypatch):
    merge = st_jv5.merge_task
    monkeypatch.setattr(
        "st_jv5.export.merged.merge_task", lambda model, task: merge(model, "clustering")
    )
    with pytest.raises(ValueError, match=r"merged differs from its source: text \d+ of 200"):
        export(model, "retrieval", tmp_path / "m", kind="merged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("task", ["retrieval", "base"])
def test_a_model_in_half_precision_is_merged_within_the_same_bound(saved, tmp_path, dtype, task):
    model = SentenceTransformer(saved, model_kwargs={"dtype": dtype})
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    (parity,) = export(model, task, tmp_path / "m", kind="merged")
    assert parity.bound == 0.99999 <= parity.least
    assert read_json(tmp_path / "m" / "config.json")["dtype"] == dtype
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_graph_of_a_bfloat16_model_has_its_weights(saved, tmp_path, kind):
    model = SentenceTransformer(saved, model_kwargs={"dtype": "bfloat16"})
    (parity,) = export(model, "retrieval", tmp_path / kind, kind=kind, texts=parity_texts()[::10])
    assert parity.least >= 0.99999


def test_wrong_weights_of_a_bfloat16_model_are_not_written(saved, tmp_path, monkeypatch):
    model = SentenceTransformer(saved, model_kwargs={"dtype": "bfloat16"})
    merge = st_jv5.merge_task

    def wrong(model, task):
        stock = merge(model, task)
        layer = next(m for m in stock.modules() if isinstance(m, torch.nn.Linear))
        with torch.no_grad():
            layer.weight.mul_(1.1)
        return stock

    for merged in (wrong, lambda model, task: merge(model, "clustering")):
        monkeypatch.setattr("st_jv5.export.merged.merge_task", merged)
        with pytest.raises(ValueError, match=r"merged differs from its source: text \d+ of 200"):
            export(model, "retrieval", tmp_path / "m", kind="merged")
    assert not (tmp_path / "m").exists()


def test_a_vector_that_is_no_number_is_not_within_any_bound():
    one = np.eye(3)
    broken = np.eye(3)
    broken[1, 1] = np.nan
    with pytest.raises(ValueError, match="text 1 of 3 has cosine nan"):
        compare("merged", "merged", one, broken)
    with pytest.raises(ValueError, match=r"gave \(2, 3\) vectors, its source \(3, 3\)"):
        compare("merged", "merged", one, one[:2])
