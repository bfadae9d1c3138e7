"""Training through sentence-transformers' trainers: prompts, mixed data sets, resume."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
)
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from transformers import TrainerCallback

import st_jv5
from st_jv5.losses import retrieval_loss, text_matching_loss
from tests.conftest import TEACHER_DIM, arguments, trainable, with_adapters


def test_prompts_come_from_the_task_table(model, pairs, tmp_path):
    assert st_jv5.trainer.trainer_prompts(model, "retrieval", pairs) == {
        "query": "Query: ",
        "positive": "Document: ",
        "negative_1": "Document: ",
    }
    prompts = st_jv5.trainer.trainer_prompts(model, "clustering", DatasetDict({"pairs": pairs}))
    assert set(prompts["pairs"].values()) == {"Document: "}
    trainer = st_jv5.AdapterTrainer(
        model,
        arguments(tmp_path),
        tasks="retrieval",
        train_dataset=pairs,
        loss=retrieval_loss(model, TEACHER_DIM),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    decoded = model.tokenizer.batch_decode(batch["query_input_ids"])
    assert all(text.startswith("Query: ") for text in decoded)
    decoded = model.tokenizer.batch_decode(batch["negative_1_input_ids"])
    assert all(text.startswith("Document: ") for text in decoded)


def test_own_prompts_are_kept(model, pairs, tmp_path):
    args = arguments(tmp_path, prompts={"query": "Q "})
    trainer = st_jv5.AdapterTrainer(
        model, args, tasks="retrieval", train_dataset=pairs, loss=retrieval_loss(model, TEACHER_DIM)
    )
    assert trainer.args.prompts == {"query": "Q "}


def test_every_term_is_logged_and_the_projection_is_trained_and_saved(
    model, pairs, store, tmp_path
):
    loss = retrieval_loss(model, TEACHER_DIM, store=store, dims=(8, 48))
    before = trainable(model)
    trainer = st_jv5.AdapterTrainer(
        model, arguments(tmp_path), tasks="retrieval", train_dataset=pairs, loss=loss
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert {"infonce", "distill", "gor"} <= set(logged)
    parts = logged["infonce"] + logged["distill"] + logged["gor"]
    assert logged["loss"] == pytest.approx(parts, abs=2e-3)
    moved = {name for name, now in trainable(model).items() if not torch.equal(now, before[name])}
    expected = {n for n in before if ".retrieval." in n or n.startswith("0.projection.")}
    assert moved == expected
    trainer.save_model(str(tmp_path / "whole"))
    loaded = SentenceTransformer(str(tmp_path / "whole"))
    for name, tensor in trainable(loaded).items():
        assert torch.equal(tensor, trainable(model)[name]), name


class Stop(TrainerCallback):
    """Ends a run as a kill would: nothing is saved after the last checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize("task", ["base", "retrieval"])
def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(
    backbones, pairs, store, tmp_path, task
):
    finals = []
    for interrupt in (False, True):
        folder = tmp_path / str(interrupt)
        for attempt in range(2 if interrupt else 1):
            torch.manual_seed(5)
            model = with_adapters(st_jv5.new_student(backbones["bert"], matryoshka_dims=(8, 48)))
            trainer = st_jv5.AdapterTrainer(
                model,
                arguments(folder, batch_sampler=BatchSamplers.NO_DUPLICATES),
                tasks=task,
                train_dataset=pairs,
                loss=retrieval_loss(model, TEACHER_DIM, store=store, dims=(8, 48)),
                callbacks=[Stop()] if interrupt and attempt == 0 else [],
            )
            if interrupt and attempt == 0:
                with pytest.raises(KeyboardInterrupt):
                    trainer.train()
            else:
                trainer.train(resume_from_checkpoint=bool(interrupt))
        finals.append(trainable(model))
    for name, tensor in finals[0].items():
        assert torch.equal(tensor, finals[1][name]), name


def test_trap_27_scored_and_unscored_sets_train_in_turn(model, pairs, store, texts, tmp_path):
    scored = Dataset.from_dict(
        {"query": texts[:16], "positive": texts[16:32], "label": [i / 16 for i in range(16)]}
    )
    sets = DatasetDict({"scored": scored, "pairs": pairs.remove_columns("negative_1")})
    args = arguments(
        tmp_path,
        max_steps=12,
        multi_dataset_batch_sampler=st_jv5.trainer.weighted({"scored": 1, "pairs": 1}),
    )
    loss = text_matching_loss(model, TEACHER_DIM, store=store)
    trainer = st_jv5.AdapterTrainer(
        model, args, tasks="text-matching", train_dataset=sets, loss=loss
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "cosent" in entry]
    kinds = {(entry["cosent"] > 0, entry["distill"] > 0) for entry in logs}
    assert kinds == {(True, False), (False, True)}


def test_a_term_is_logged_as_its_mean_over_the_steps_that_had_it(model, pairs, tmp_path):
    """Data sets of other terms take turns: a term is 0 in their steps, which are not counted."""
    trainer = st_jv5.AdapterTrainer(
        model, arguments(tmp_path), tasks="retrieval", train_dataset=pairs,
        loss=retrieval_loss(model, TEACHER_DIM),
    )  # fmt: skip
    model.train()
    logged = []
    for steps in ([(2.0, 0.0), (4.0, 3.0), (0.0, 5.0)], [(0.0, 1.0), (0.0, 0.0)]):
        for cosent, infonce in steps:
            trainer.track_loss_components(
                {"cosent": torch.tensor(cosent), "infonce": torch.tensor(infonce)}
            )
        trainer.log({"loss": 1.0})
        logged.append([trainer.state.log_history[-1][term] for term in ("cosent", "infonce")])
    assert logged == [[3.0, 4.0], [0.0, 1.0]]


def test_a_plain_trainer_with_router_mapping_trains_too(model, pairs, store, tmp_path):
    st_jv5.train_task(model, "retrieval")
    args = arguments(
        tmp_path,
        router_mapping={"query": "query", "positive": "document", "negative_1": "document"},
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=pairs,
        loss=retrieval_loss(model, TEACHER_DIM, store=store),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    for column, prompt in (("query", "Query: "), ("positive", "Document: ")):
        decoded = model.tokenizer.batch_decode(batch[f"{column}_input_ids"])
        assert all(text.startswith(prompt) for text in decoded)
    assert trainer.train().training_loss > 0


def test_trap_22_loss_parameters_of_ours_are_the_models(model):
    # sentence-transformers' cached losses and DDP see the model's parameters only.
    loss = retrieval_loss(model, TEACHER_DIM)
    own = {id(p) for p in model.parameters()}
    outside = [n for n, p in loss.named_parameters() if p.requires_grad and id(p) not in own]
    assert outside == []


def test_trap_4_matryoshka_of_ours_takes_a_projected_distillation(model, pairs, store, texts):
    # The stock wrapper breaks on it; our dims do the same job.
    st_jv5.train_task(model, "retrieval")
    columns = [model.preprocess(list(pairs[c])[:4]) for c in ("query", "positive")]
    labels = torch.tensor(pairs["label"][:4])
    ours = retrieval_loss(model, TEACHER_DIM, store=store, dims=(8, 48), gor_weight=0)
    assert set(ours([dict(c) for c in columns], labels)) == {"infonce", "distill"}
    stock = MatryoshkaLoss(model, retrieval_loss(model, TEACHER_DIM, store=store), [48, 8])
    with pytest.raises((TypeError, RuntimeError, ValueError)):
        stock([dict(c) for c in columns], labels)


def test_trap_25_the_best_checkpoint_is_loaded_by_its_weights(model, pairs, store, tmp_path):
    from sentence_transformers.base.evaluation import BaseEvaluator

    class EarlierIsBetter(BaseEvaluator):
        primary_metric = "score"

        def __call__(self, model, output_path=None, epoch=-1, steps=-1):
            return {"score": -float(steps)}

    trainer = st_jv5.AdapterTrainer(
        model,
        arguments(
            tmp_path,
            eval_strategy="steps",
            eval_steps=3,
            load_best_model_at_end=True,
            metric_for_best_model="eval_score",
        ),
        tasks="retrieval",
        train_dataset=pairs,
        evaluator=EarlierIsBetter(),
        loss=retrieval_loss(model, TEACHER_DIM, store=store),
    )
    trainer.train()
    best, last = (
        st_jv5.adapters.Adapter.load(
            tmp_path / f"checkpoint-{step}" / "adapters" / "retrieval"
        ).tensors
        for step in (3, 6)
    )
    assert any(not torch.equal(best[name], last[name]) for name in best)
    for name, tensor in model[0].adapter_tensors("retrieval").items():
        assert torch.equal(tensor, best[name]), name
    projection = load_file(tmp_path / "checkpoint-3" / "projection.safetensors")
    assert torch.equal(model[0].projection.linear.weight, projection["weight"])


def test_a_set_without_a_whole_batch_of_different_texts_is_named(model, tmp_path):
    same = Dataset.from_dict({"query": ["one"] * 8, "positive": ["two"] * 8})
    args = arguments(
        tmp_path,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        multi_dataset_batch_sampler=st_jv5.trainer.weighted({"same": 1}),
        dataloader_drop_last=True,
    )
    trainer = st_jv5.AdapterTrainer(
        model,
        args,
        tasks="retrieval",
        train_dataset=DatasetDict({"same": same}),
        loss=st_jv5.losses.InfoNCELoss(model),
    )
    with pytest.raises(ValueError, match="'same' gives no whole batch: too few rows"):
        trainer.train()


# --------------------------------------------------------------------------------- evaluation


def first_texts(trainer, loader) -> dict[str, str]:
    """What the model reads of a batch's first row, by column."""
    batch = next(iter(loader))
    columns = [key.removesuffix("_input_ids") for key in batch if key.endswith("_input_ids")]
    ids = {column: batch[f"{column}_input_ids"][0] for column in columns}
    return {column: trainer.model.tokenizer.decode(one) for column, one in ids.items()}


def trained_on(model, folder, train, tasks="retrieval", args=None, **settings):
    return st_jv5.AdapterTrainer(
        model,
        args or arguments(folder),
        tasks=tasks,
        train_dataset=train,
        **{"loss": st_jv5.GORLoss(model), **settings},
    )


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("name", [None, "pairs", "dev"])
def test_evaluation_reads_the_prompts_of_training_behind_any_name_and_columns(
    model, texts, tmp_path, by_name, name
):
    train = Dataset.from_dict({"query": texts[:8], "positive": texts[8:16]})
    other = Dataset.from_dict({"answer": texts[:8], "question": texts[8:16]})
    data = other if name is None else {name: other}
    train = {"pairs": train} if by_name else train
    if by_name and name is None:
        told = "eval_dataset is one data set, but train_dataset has pairs.*eval_dataset={'pairs'"
        with pytest.raises(ValueError, match=told):
            trained_on(model, tmp_path, train, eval_dataset=data)
        with pytest.raises(ValueError, match=told):
            trained_on(model, tmp_path, train).evaluate(data)
        return
    trainer = trained_on(model, tmp_path, train, eval_dataset=data)
    read = first_texts(trainer, trainer.get_eval_dataloader(name))
    assert read["question"].startswith("Query: ")
    assert read["answer"].startswith("Document: ")
    again = trained_on(model, tmp_path, train)
    asked, told = again.evaluate(data), trainer.evaluate()
    losses = {key: value for key, value in told.items() if key.endswith("loss")}
    assert losses
    assert {key: asked[key] for key in losses} == losses


def test_columns_that_would_be_read_otherwise_than_in_training_are_refused(model, texts, tmp_path):
    train = Dataset.from_dict({"title": texts[:8], "body": texts[8:16]})
    turned = train.select_columns(["body", "title"])
    with pytest.raises(ValueError, match="column 'body' would be read behind 'Query: ', but in tr"):
        trained_on(model, tmp_path, train, eval_dataset={"dev": turned})
    with pytest.raises(ValueError, match=r"eval_dataset\['a'\]: the column 'body' would be read"):
        trained_on(model, tmp_path, {"a": train}, eval_dataset={"a": turned})


def test_a_set_that_is_evaluated_as_two_has_the_task_of_each(model, texts, tmp_path):
    rows = Dataset.from_dict({"query": texts[:8], "positive": texts[8:16]})
    tasks = {"a": "retrieval", "b": "clustering"}
    sets = {"a": rows, "b": rows}
    trainer = trained_on(model, tmp_path, sets, tasks, eval_dataset=sets)
    found = trainer.evaluate()
    alone = {
        name: trained_on(model, tmp_path, sets, tasks, eval_dataset={name: rows}).evaluate()
        for name in sets
    }
    for name in sets:
        assert found[f"eval_{name}_loss"] == alone[name][f"eval_{name}_loss"]
    assert found["eval_a_loss"] != found["eval_b_loss"]
    assert "dataset_name" not in rows[:1]


def test_with_several_adapters_an_evaluated_set_says_which_one(model, texts, tmp_path):
    rows = Dataset.from_dict({"query": texts[:8], "positive": texts[8:16]})
    sets, tasks = {"a": rows, "b": rows}, {"a": "retrieval", "b": "clustering"}
    with pytest.raises(ValueError, match=r"eval_dataset: 'dev' has no task; name it.*\(a, b\)"):
        trained_on(model, tmp_path, sets, tasks, eval_dataset={"dev": rows})
    with pytest.raises(
        ValueError, match="eval_dataset is one data set, but train_dataset has a, b"
    ):
        trained_on(model, tmp_path, sets, tasks, eval_dataset=rows)
    with pytest.raises(ValueError, match="eval_dataset: 'dev' has no task"):
        trained_on(model, tmp_path, sets, tasks).evaluate({"dev": rows})
    tasks["dev"] = "clustering"
    trainer = trained_on(model, tmp_path, sets, tasks, eval_dataset={"dev": rows, "b": rows})
    found = trainer.evaluate()
    assert found["eval_dev_loss"] == found["eval_b_loss"]


def test_a_task_that_is_only_evaluated_is_not_trained(model, texts, tmp_path):
    rows = Dataset.from_dict({"query": texts[:8], "positive": texts[8:16]})
    tasks = {"a": "retrieval", "dev": "clustering"}
    trainer = trained_on(model, tmp_path, {"a": rows}, tasks, eval_dataset={"dev": rows})
    assert trainer.adapters == ["retrieval"]
    other = trained_on(model, tmp_path, {"a": rows}, {"a": "clustering"}, eval_dataset={"a": rows})
    assert trainer.evaluate()["eval_dev_loss"] == other.evaluate()["eval_a_loss"]


def test_own_prompts_by_data_set_must_name_the_evaluated_ones(model, texts, tmp_path):
    rows = Dataset.from_dict({"query": texts[:8], "positive": texts[8:16]})
    args = arguments(tmp_path, prompts={"a": {"query": "Q "}})
    with pytest.raises(ValueError, match=r"args.prompts has no prompts for the data set 'dev'"):
        trained_on(model, tmp_path, {"a": rows}, args=args, eval_dataset={"dev": rows})


def test_the_arguments_may_serve_another_trainer(model, texts, tmp_path):
    args = arguments(tmp_path)
    rows = Dataset.from_dict({"query": texts[:8], "positive": texts[8:16]})
    sets, tasks = {"a": rows, "b": rows}, {"a": "retrieval", "b": "clustering"}
    one = trained_on(model, tmp_path, rows, args=args, eval_dataset={"dev": rows})
    several = trained_on(model, tmp_path, sets, tasks, args=args)
    other = trained_on(model, tmp_path, rows, "clustering", args=args)
    assert one.args.prompts == {"query": "Query: ", "positive": "Document: "}
    assert set(several.args.prompts) == set(several.args.router_mapping) == {"a", "b"}
    assert other.args.prompts == {"query": "Document: ", "positive": "Document: "}
    assert not args.prompts
    assert not args.router_mapping
    read = first_texts(other, other.get_train_dataloader())
    assert read["query"].startswith("Document: ")


def test_evaluation_changes_no_bit_of_training(backbones, texts, tmp_path):
    rows = Dataset.from_dict({"query": texts[:8], "positive": texts[8:16]})
    finals = []
    for settings in ({}, {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}):
        torch.manual_seed(0)
        model = st_jv5.new_student(backbones["bert"])
        st_jv5.add_task(model, "retrieval", rank=2, dropout=0.2)
        args = arguments(tmp_path, max_steps=5, save_strategy="no", **settings)
        trained_on(model, tmp_path, rows, args=args, eval_dataset=rows).train()
        finals.append(trainable(model))
    assert all(torch.equal(tensor, finals[1][name]) for name, tensor in finals[0].items())


# ------------------------------------------------------------------------------- not supported


def test_fsdp_is_refused_with_the_reason(model, pairs, tmp_path):
    args = arguments(tmp_path)
    args.fsdp = True
    with pytest.raises(ValueError, match="fsdp is not supported: the projection"):
        st_jv5.AdapterTrainer(
            model, args, tasks="base", train_dataset=pairs, loss=retrieval_loss(model, TEACHER_DIM)
        )


def test_several_gpus_in_one_process_are_refused_with_the_way_out(model, pairs, tmp_path):
    args = arguments(tmp_path)
    args._n_gpu = 3  # what transformers finds where no torchrun is
    told = r"one process sees 3 GPUs.*DataParallel.*--nproc-per-node 3 .*CUDA_VISIBLE_DEVICES=0"
    with pytest.raises(ValueError, match=told):
        st_jv5.AdapterTrainer(
            model, args, tasks="base", train_dataset=pairs, loss=retrieval_loss(model, TEACHER_DIM)
        )


def test_batches_are_padded_where_the_model_would_flatten_them(model, pairs, tmp_path):
    trainer = st_jv5.AdapterTrainer(
        model,
        arguments(tmp_path),
        tasks="retrieval",
        train_dataset=pairs,
        loss=st_jv5.losses.InfoNCELoss(model),
    )
    model[0].can_flatten_inputs = True  # as under flash attention
    collator = trainer.get_data_collator(
        model=model, args=trainer.args, processing_class=model.tokenizer
    )
    collated = collator([pairs[row] for row in range(4)])
    assert collated["query_attention_mask"].shape[0] == 4
    assert model[0].can_flatten_inputs
