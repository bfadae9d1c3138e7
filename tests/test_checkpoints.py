"""What a checkpoint holds, which one a run resumes from, and what stops a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from transformers import TrainerCallback

import st_jv5
from st_jv5.losses import GORLoss, InfoNCELoss, retrieval_loss
from st_jv5.trainer.resuming import content_hash, loss_settings
from tests.conftest import MINILM, TEACHER_DIM, arguments, trainable


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_holds_the_adapter_and_not_the_base(model, pairs, store, tmp_path):
    loss = retrieval_loss(model, TEACHER_DIM, store=store, learn_temperature=True)
    trainer = st_jv5.AdapterTrainer(
        model, arguments(tmp_path), tasks="retrieval", train_dataset=pairs, loss=loss
    )
    trainer.train()
    found = files(tmp_path / "checkpoint-3")
    assert found == {
        "adapters/retrieval/adapter_config.json",
        "adapters/retrieval/adapter_model.safetensors",
        "projection.json",
        "projection.safetensors",
        "loss.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "run.json",
        "trainer_state.json",
        "training_args.bin",
    }
    stored = load_file(tmp_path / "checkpoint-6" / "loss.safetensors")
    assert stored == {"losses.infonce.log_temperature": loss.losses["infonce"].log_temperature}
    assert stored["losses.infonce.log_temperature"].exp() != pytest.approx(0.02, rel=1e-3)
    taken = st_jv5.adapters.Adapter.load(
        tmp_path / "checkpoint-6"
    )  # the one adapter of a checkpoint
    assert taken.base_sha256 == model[0].base_sha256()


@pytest.mark.parametrize("train_projection", [True, False])
def test_an_adapters_checkpoint_is_under_four_times_its_weights(texts, tmp_path, train_projection):
    model = st_jv5.new_student(MINILM, layers=3)
    st_jv5.add_task(model, "retrieval")
    rows = Dataset.from_dict(
        {"query": texts[:8], "positive": texts[8:16], "label": torch.randn(8, 2, 768).tolist()}
    )
    loss = retrieval_loss(model, 768, dims=(64, 384), train_projection=train_projection)
    args = arguments(tmp_path, max_steps=2, save_steps=2, max_grad_norm=1.0)
    trainer = st_jv5.AdapterTrainer(model, args, tasks="retrieval", train_dataset=rows, loss=loss)
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    whole = sum((folder / name).stat().st_size for name in files(folder))
    weights = sum((folder / name).stat().st_size for name in files(folder) if "safetensors" in name)
    adapter = (folder / "adapters" / "retrieval" / "adapter_model.safetensors").stat().st_size
    projection = folder / "projection.safetensors"
    assert projection.exists() is train_projection
    assert weights == adapter + (projection.stat().st_size if train_projection else 0)
    assert whole < 4 * weights, f"{whole} bytes for {weights}"


def test_save_model_writes_the_whole_model_and_the_base_only_once_a_run(
    model,
    pairs,
    store,
    tmp_path,
):
    trainer = st_jv5.AdapterTrainer(
        model,
        arguments(tmp_path / "run"),
        tasks="retrieval",
        train_dataset=pairs,
        loss=retrieval_loss(model, TEACHER_DIM, store=store),
    )
    trainer.train()
    assert not [
        name
        for name in files(tmp_path / "run")
        if name.endswith("model.safetensors") and "adapter" not in name
    ]
    trainer.save_model(str(tmp_path / "whole"))
    loaded = trainable(SentenceTransformer(str(tmp_path / "whole")))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trainable(model).items())


# ------------------------------------------------------------------------------------- resuming


def trained(model, pairs, folder, **settings) -> st_jv5.AdapterTrainer:
    return st_jv5.AdapterTrainer(
        model,
        arguments(folder, **settings),
        tasks="retrieval",
        train_dataset=pairs,
        loss=InfoNCELoss(model),
    )


HARMS = {"missing": None, "cut": '{"epoch": 1.0, "glob', "a number": "5", "empty": "{}"}


@pytest.mark.parametrize("harm", HARMS)
def test_a_checkpoint_that_was_cut_by_a_kill_is_passed_over(model, pairs, tmp_path, harm):
    assert st_jv5.trainer.last_checkpoint(tmp_path) is None
    trained(model, pairs, tmp_path).train()
    state = tmp_path / "checkpoint-6" / "trainer_state.json"
    assert st_jv5.trainer.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    state.unlink() if harm == "missing" else state.write_text(HARMS[harm])
    assert st_jv5.trainer.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    again = trained(model, pairs, tmp_path)
    with pytest.raises(
        ValueError, match=r"checkpoint-6 is not a complete checkpoint .*trainer_state"
    ):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    again.train(resume_from_checkpoint=True)
    assert json.loads(state.read_text())["global_step"] == 6


def test_resuming_without_a_checkpoint_says_so(model, pairs, tmp_path):
    with pytest.raises(ValueError, match="has no complete checkpoint to resume from"):
        trained(model, pairs, tmp_path).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_another_base_or_loss_is_refused(model, pairs, tmp_path):
    trained(model, pairs, tmp_path).train()
    again = trained(model, pairs, tmp_path)
    with torch.no_grad():
        next(iter(model[0].base_parameters())).flatten()[0] += 1
    model[0]._base_sha256 = None
    with pytest.raises(ValueError, match="trained on another base"):
        again.train(resume_from_checkpoint=True)


def everything(model, store, pairs, folder, **settings) -> st_jv5.AdapterTrainer:
    """A trainer whose checkpoints hold every kind of file."""
    loss = retrieval_loss(model, TEACHER_DIM, store=store, learn_temperature=True)
    args = arguments(folder, max_steps=2, save_steps=1, **settings)
    return st_jv5.AdapterTrainer(
        model, args, tasks="retrieval", train_dataset=pairs, loss=loss, max_tokens=32
    )


ADAPTER_FILE = "adapters/retrieval/adapter_model.safetensors"
NEEDED = (
    *("optimizer.pt", "scheduler.pt", "rng_state.pth"),
    *(ADAPTER_FILE, "projection.safetensors", "loss.safetensors"),
)


def test_a_checkpoint_that_lacks_a_file_or_half_of_one_is_refused_by_its_name(
    model, pairs, store, tmp_path
):
    everything(model, store, pairs, tmp_path).train()
    checkpoint = tmp_path / "checkpoint-1"
    resumed = everything(model, store, pairs, tmp_path)
    for name in NEEDED:
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).unlink()
        with pytest.raises(ValueError, match=f"checkpoint-1 has no {name}, so a run cannot go on"):
            resumed.train(resume_from_checkpoint=str(checkpoint))
        for half in (whole[: len(whole) // 2], b""):
            (checkpoint / name).write_bytes(half)
            with pytest.raises(ValueError, match=f"checkpoint-1/{name} is cut or broken"):
                resumed.train(resume_from_checkpoint=str(checkpoint), resume_anyway=True)
        (checkpoint / name).write_bytes(whole)
    (checkpoint / "run.json").write_text('{"proc')
    with pytest.raises(ValueError, match=r"checkpoint-1/run.json cannot be read as JSON"):
        resumed.train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "run.json").unlink()
    with pytest.raises(
        ValueError, match=r"(?s)checkpoint-1/run.json is missing.*resume_anyway=True"
    ):
        resumed.train(resume_from_checkpoint=str(checkpoint))
    resumed.train(resume_from_checkpoint=str(checkpoint), resume_anyway=True)


def test_a_checkpoint_of_the_weights_alone_is_refused(model, pairs, tmp_path):
    trained(model, pairs, tmp_path, save_only_model=True).train()
    told = r"checkpoint-6 has no optimizer.pt.*save_only_model=True.*train anew"
    with pytest.raises(ValueError, match=told):
        trained(model, pairs, tmp_path).train(resume_from_checkpoint=True)


OTHER_ARGUMENTS = {
    "per_device_train_batch_size": (2, "4 then, 2 now"),
    "gradient_accumulation_steps": (2, "1 then, 2 now"),
    "seed": (1, "42 then, 1 now"),
    "learning_rate": (1e-3, "0.01 then, 0.001 now"),
    "max_steps": (1, "2 then, 1 now"),
    "lr_scheduler_type": ("constant", "'linear' then, 'constant' now"),
    "weight_decay": (0.1, "0.0 then, 0.1 now"),
    "batch_sampler": ("no_duplicates", "'batch_sampler' then, 'no_duplicates' now"),
    "bf16": (True, "False then, True now"),
    "dataloader_drop_last": (True, "False then, True now"),
}


def test_a_run_with_other_arguments_is_refused_by_their_names(model, pairs, store, tmp_path):
    everything(model, store, pairs, tmp_path).train()
    for name, (value, told) in OTHER_ARGUMENTS.items():
        other = everything(model, store, pairs, tmp_path)
        setattr(other.args, name, type(getattr(other.args, name))(value))
        with pytest.raises(ValueError, match=rf"\n  arguments.{name}: {told}\nSet them back"):
            other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    elsewhere = everything(
        *(model, store, pairs, tmp_path / "elsewhere"),
        logging_steps=7,
        save_total_limit=1,
        dataloader_num_workers=0,
    )
    elsewhere.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_run_with_other_data_or_settings_is_refused_by_their_names(model, pairs, store, tmp_path):
    everything(model, store, pairs, tmp_path).train()
    checkpoint = tmp_path / "checkpoint-1"

    def refused(trainer: st_jv5.AdapterTrainer) -> str:
        with pytest.raises(ValueError, match="would be another run") as caught:
            trainer.train(resume_from_checkpoint=str(checkpoint))
        return str(caught.value)

    def on(data: Dataset, **settings) -> st_jv5.AdapterTrainer:
        return everything(model, store, data, tmp_path, **settings)

    assert "train_dataset.rows: 20 then, 19 now" in refused(on(pairs.select(range(19))))
    for other in (pairs.select([1, 0, *range(2, 20)]), pairs.shuffle(seed=1)):
        assert "train_dataset.content: " in refused(on(other))
    named = pairs.rename_column("negative_1", "negative_2")
    assert "train_dataset.columns.negative_1: \"Value('string')\" then, None now" in refused(
        on(named)
    )
    assert "prompts.query: 'Query: ' then, 'Q ' now" in refused(on(pairs, prompts={"query": "Q "}))
    cut = on(pairs)
    cut._trained_with["max_tokens"] = 16
    assert "trainer.max_tokens: 32 then, 16 now" in refused(cut)
    settings = json.loads((checkpoint / "run.json").read_text())
    settings["versions"]["torch"] = "1.0"
    settings["processes"] = 2
    (checkpoint / "run.json").write_text(json.dumps(settings))
    told = refused(on(pairs))
    assert "versions.torch: '1.0' then" in told
    assert "was written by 2 processes, and these are 1" in told


def test_a_run_with_another_loss_is_refused_but_not_for_what_it_has_learned(
    model, pairs, store, tmp_path
):
    trainer = everything(model, store, pairs, tmp_path)
    trainer.train()
    learned = trainer.loss.losses["infonce"].temperature.item()
    assert abs(learned - 0.02) > 1e-5
    again = st_jv5.AdapterTrainer(
        model,
        arguments(tmp_path, max_steps=2),
        tasks="retrieval",
        train_dataset=pairs,
        max_tokens=32,
        loss=trainer.loss,
    )
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    trainer.loss.weights["gor"] = 3.0
    again._trained_with["loss"] = loss_settings(trainer.loss)
    with pytest.raises(ValueError, match=r"trainer.loss.terms.gor.weight: 1.0 then, 3.0 now"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_resume_anyway_goes_on_and_logs_what_differs(model, pairs, store, tmp_path, caplog):
    everything(model, store, pairs, tmp_path).train()
    other = everything(model, store, pairs, tmp_path, learning_rate=1e-3)
    checkpoint = str(tmp_path / "checkpoint-1")
    other.train(resume_from_checkpoint=checkpoint, resume_anyway=True)
    assert other.state.global_step == 2
    assert (
        "continues with other settings: arguments.learning_rate: 0.01 then, 0.001 now"
        in caplog.text
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_that_has_done_all_its_steps_does_no_more(model, pairs, store, tmp_path, steps):
    everything(model, store, pairs, tmp_path).train()
    done = trainable(model)
    again = everything(model, store, pairs, tmp_path)
    again.args.max_steps = steps
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"), resume_anyway=steps < 2)
    assert again.state.global_step == 2
    assert all(torch.equal(tensor, done[name]) for name, tensor in trainable(model).items())
    assert next(iter(again.get_train_dataloader()))  # rows for who looks at them later


def test_the_content_of_data_is_its_rows_and_their_order(pairs, tmp_path):
    whole = content_hash(pairs)
    pairs.save_to_disk(tmp_path / "disk")
    table = pairs.data.table
    for same in (
        Dataset.load_from_disk(tmp_path / "disk"),
        Dataset(pa.concat_tables([table.slice(0, 7), table.slice(7)])),
        concatenate_datasets([pairs, pairs]).select(range(20)),
    ):
        assert content_hash(same) == whole
    text, label = pairs.to_dict(), pairs.to_dict()
    text["negative_1"][19] += "."
    label["label"][3][1] += 1
    for other in (
        Dataset.from_dict(text),
        Dataset.from_dict(label),
        pairs.select([1, 0]),
        pairs.select(range(1, 20)),
        pairs.shuffle(seed=0),
        pairs.select_columns(["positive", "query", "negative_1", "label"]),
    ):
        assert content_hash(other) != whole
    assert content_hash(pairs.shuffle(seed=0)) == content_hash(pairs.shuffle(seed=0))


# ------------------------------------------------------------------------------ several adapters


def test_several_adapters_train_at_once_each_on_its_data_sets(model, pairs, tmp_path):
    rows = pairs.remove_columns(["label", "negative_1"])
    sets = DatasetDict({"search": rows.select(range(12)), "topics": rows.select(range(8, 20))})
    before = trainable(model)
    trainer = st_jv5.AdapterTrainer(
        model,
        arguments(
            tmp_path,
            max_steps=8,
            save_steps=8,
            multi_dataset_batch_sampler=st_jv5.trainer.weighted({"search": 1, "topics": 1}),
        ),
        tasks={"search": "retrieval", "topics": "clustering"},
        train_dataset=sets,
        loss={"search": InfoNCELoss(model), "topics": GORLoss(model)},
    )
    assert trainer.args.prompts["search"]["query"] == "Query: "
    assert trainer.args.prompts["topics"]["query"] == "Document: "
    trained_by: dict[str, set[str]] = {"search": set(), "topics": set()}

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            name = trainer._watched[-1].data_set
            moving = [n for n, p in model.named_parameters() if p.grad is not None]
            trained_by[name] |= {n.split(".")[-2] for n in moving}

    trainer.add_callback(Watch())
    trainer.train()
    assert trained_by == {"search": {"retrieval"}, "topics": {"clustering"}}
    moved = {n for n, tensor in trainable(model).items() if not torch.equal(tensor, before[n])}
    assert moved == {n for n in before if ".retrieval." in n or ".clustering." in n}
    assert {p.name for p in (tmp_path / "checkpoint-8" / "adapters").iterdir()} == {
        "retrieval",
        "clustering",
    }


def test_one_data_set_under_two_names_has_both(model, pairs, tmp_path):
    rows = pairs.remove_columns(["label", "negative_1"])
    trainer = st_jv5.AdapterTrainer(
        model,
        arguments(tmp_path),
        tasks="retrieval",
        train_dataset={"a": rows, "b": rows},
        loss=InfoNCELoss(model),
    )
    names = {batch["dataset_name"] for batch in trainer.get_train_dataloader()}
    assert names == {"a", "b"}
    assert "dataset_name" not in rows[:1]  # the caller's is left as it was


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"a": "retrieval"}, "tasks has no task for the data set 'b'"),
        ({"a": "retrieval", "b": "base"}, "base cannot be trained together"),
        ({"a": "retrieval", "b": "retreival"}, "unknown task 'retreival'.*did you mean"),
        ({"a": "retrieval", "b": "clustering", "c": "clustering"}, "unknown data set 'c'"),
    ],
)
def test_tasks_that_cannot_be_trained_together_are_refused(model, texts, tmp_path, tasks, message):
    sets = {name: Dataset.from_dict({"query": texts[:8]}) for name in ("a", "b")}
    with pytest.raises(ValueError, match=message):
        st_jv5.AdapterTrainer(
            model, arguments(tmp_path), tasks=tasks, train_dataset=sets, loss=GORLoss(model)
        )


# ------------------------------------------------------------------------------------ schedules


def test_a_schedule_follows_the_trainers_step_and_a_plain_trainer_refuses_it(
    model,
    pairs,
    tmp_path,
):
    def loss() -> st_jv5.CompositeLoss:
        weight = st_jv5.losses.Schedule(1.0, 0.0, steps=4, begin=1)
        return st_jv5.CompositeLoss(
            model, {"gor": (GORLoss(model), weight), "infonce": (InfoNCELoss(model), 1.0)}
        )

    seen: list[float] = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            seen.append(composite.weight_at_step("gor"))

    composite = loss()
    args = arguments(tmp_path, gradient_accumulation_steps=2)
    trainer = st_jv5.AdapterTrainer(
        model, args, tasks="retrieval", train_dataset=pairs, loss=composite, callbacks=[Watch()]
    )
    trainer.train()
    assert seen == [1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    logged = [entry["gor"] for entry in trainer.state.log_history if "gor" in entry]
    assert logged[-1] == 0 < logged[0]
    plain = SentenceTransformerTrainer(
        model=model, args=arguments(tmp_path), train_dataset=pairs, loss=loss()
    )
    with pytest.raises(ValueError, match=r"weight of 'gor' goes from 1.0 to 0.0.*AdapterTrainer"):
        plain.train()


# ----------------------------------------------------------------------------- what stops a run


class Poison(TrainerCallback):
    """Breaks the weights after a step, as an optimizer would."""

    def __init__(self, parameter: torch.Tensor, step: int) -> None:
        self.parameter, self.step = parameter, step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                self.parameter[0, 0] = math.nan


@pytest.mark.parametrize("looked_up", [False, True], ids=["texts", "numbers of texts"])
def test_a_loss_that_is_nan_stops_with_step_data_set_and_rows(
    model, pairs, store, tmp_path, looked_up
):
    scores = [0.1 * i for i in range(20)]
    scores[7] = 1e200  # finite as it is stored, inf as float32
    rows = pairs.remove_columns(["negative_1", "label"]).add_column("score", scores)
    plain = rows
    if looked_up:  # as a recipe's labelled texts are
        numbers = Dataset.from_dict({"query": range(20), "positive": range(20), "score": scores})

        def look_up(batch):
            return {
                name: own if name == "score" else [plain[i][name] for i in own]
                for name, own in batch.items()
            }

        rows = numbers.with_transform(look_up)

    class Regression(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, columns, labels):
            one, other = (model(dict(c))["sentence_embedding"] for c in columns)
            return ((one * other).sum(1) - labels).square().mean()

    trainer = st_jv5.AdapterTrainer(
        model,
        arguments(tmp_path, save_steps=1),
        tasks="text-matching",
        train_dataset=DatasetDict({"scored": rows}),
        loss=Regression(),
    )
    text = rows[7]["query"][:30]
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    message = str(caught.value)
    step = trainer.state.global_step
    assert f"the loss is inf at step {step}, data set 'scored', rows [7]" in message
    assert text in message
    assert (f"checkpoint-{step}" if step else "no checkpoint yet") in message
    assert st_jv5.trainer.last_checkpoint(tmp_path) == (
        str(tmp_path / f"checkpoint-{step}") if step else None
    )


def test_weights_that_broke_are_never_saved_and_the_last_checkpoint_stays(
    model,
    pairs,
    tmp_path,
):
    weight = next(iter(model[0].adapter_tensors("retrieval").values()))
    trainer = trained(model, pairs, tmp_path, save_steps=2, save_total_limit=1)
    trainer.add_callback(Poison(weight, step=4))
    with pytest.raises(FloatingPointError, match=r"is not finite at step 4.*checkpoint-2\. Look"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    kept = st_jv5.adapters.Adapter.load(tmp_path / "checkpoint-2")
    assert all(torch.isfinite(tensor).all() for tensor in kept.tensors.values())


def test_a_gradient_that_is_not_finite_stops_before_the_step(model, pairs, tmp_path):
    class Steep(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, columns, labels):
            rows = model(dict(columns[0]))["sentence_embedding"]
            return (rows * 0).sum().clamp(min=0).sqrt()  # value 0, gradient nan

    trainer = st_jv5.AdapterTrainer(
        model, arguments(tmp_path), tasks="retrieval", train_dataset=pairs, loss=Steep()
    )
    before = trainable(model)
    with pytest.raises(FloatingPointError, match="a gradient is not finite at step 0, rows"):
        trainer.train()
    assert all(torch.equal(before[name], tensor) for name, tensor in trainable(model).items())


def test_a_loss_that_explodes_stops_unless_it_may(model, pairs, tmp_path):
    class Jumping(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.calls = model, 0

        def forward(self, columns, labels):
            self.calls += 1
            rows = model(dict(columns[0]))["sentence_embedding"]
            return rows.square().sum() / len(rows) * (150.0 if self.calls == 25 else 1.0)

    def run(**settings):
        return st_jv5.AdapterTrainer(
            model,
            arguments(tmp_path, max_steps=30, save_strategy="no", learning_rate=1e-5),
            tasks="retrieval",
            train_dataset=pairs,
            loss=Jumping(),
            **settings,
        )

    with pytest.raises(FloatingPointError, match=r"the loss is 150 after a mean of 1 at step 24"):
        run().train()
    run(max_loss_ratio=None).train()
    run(max_loss_ratio=200.0).train()


def test_evaluation_loss_is_computed_too(model, pairs, store, tmp_path):
    trainer = st_jv5.AdapterTrainer(
        model,
        arguments(tmp_path, eval_strategy="steps", eval_steps=3),
        tasks="retrieval",
        train_dataset=pairs,
        eval_dataset=pairs.select(range(8)),
        loss=retrieval_loss(model, TEACHER_DIM, store=store),
    )
    trainer.train()
    losses = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
