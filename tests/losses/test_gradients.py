"""Whatever way a step is computed, its gradients are those of the formulas, term by term."""

from __future__ import annotations

import socket
from functools import cache

import pytest
import torch

from st_jv5 import batching, functional
from tests.children import logged
from tests.losses.gradients import (
    Case,
    cases,
    data,
    gathered_cases,
    run,
    step,
    student_and_loss,
)

ROWS = data()


@pytest.fixture(autouse=True)
def unchanged_chunks(monkeypatch):
    monkeypatch.setattr(functional, "CHUNK_ELEMENTS", functional.CHUNK_ELEMENTS)
    monkeypatch.setitem(batching.BUDGET, "cpu", batching.BUDGET["cpu"])


@cache
def reference(
    backbone: str, task: str, dims: tuple[int, ...] | None, batches: tuple[tuple[int, ...], ...]
) -> dict[str, torch.Tensor]:
    """The mean gradient over batches: each term alone, each text in a forward of its own."""
    model, loss = student_and_loss(backbone, Case(task, "plain", 1, dims))
    model.eval()
    for parameter in model[0].model.parameters():
        parameter.requires_grad_(False)
    chosen = {
        "base": [*model[0].base_parameters()],
        "retrieval": [*model[0].adapter_tensors("retrieval").values()],
    }
    for parameter in chosen[task]:
        parameter.requires_grad_(True)

    def forward(column: str, row: int) -> torch.Tensor:
        prompt = "Query: " if column == "query" else "Document: "
        features = model.preprocess([ROWS[row][column]], prompt=prompt)
        return model(features, task=task)["sentence_embedding"][0]

    def embed(column: str, row: int, dim: int) -> torch.Tensor:
        if (column, row) not in forwards:
            forwards[column, row] = forward(column, row)
        cut = forwards[column, row][:dim]
        return cut / cut.square().sum().sqrt()

    weight, bias = model[0].projection.linear.weight, model[0].projection.linear.bias

    def infonce(rows: tuple[int, ...], dim: int) -> torch.Tensor:
        temperature = loss.losses["infonce"].log_temperature.exp()
        total = torch.zeros((), dtype=torch.float64)
        for row in rows:
            query = embed("query", row, dim)
            own = query @ embed("positive", row, dim) / temperature
            others = [
                query @ embed(column, other, dim) / temperature
                for column in ("positive", "negative_1")
                for other in rows
                if is_negative(row, column, other)
            ]
            total = total + torch.log(torch.stack([own, *others]).exp().sum()) - own
        return total / len(rows)

    def distill(rows: tuple[int, ...], dim: int) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for c, column in enumerate(("query", "positive")):
            for row in rows:
                projected = weight[:, :dim] @ embed(column, row, dim) + bias
                teacher = torch.tensor(ROWS[row]["label"][c], dtype=torch.float64)
                cosine = projected @ teacher / (projected.norm() * teacher.norm())
                total = total + (1 - cosine) / len(rows)
        return total

    def gor(rows: tuple[int, ...], dim: int) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for column in ("query", "positive"):
            vectors = [embed(column, row, dim) for row in rows]
            for i, one in enumerate(vectors):
                for j, other in enumerate(vectors):
                    if i != j:
                        total = total + (one @ other) ** 2 / (len(rows) * (len(rows) - 1))
        return total

    loss.zero_grad()
    for term, term_weight in ((infonce, 1.0), (distill, 2.0), (gor, 1.0)):
        for rows in batches:
            forwards: dict[tuple[str, int], torch.Tensor] = {}
            values = [term(rows, dim) for dim in dims or (48,)]
            (term_weight * torch.stack(values).mean() / len(batches)).backward()
    return {n: p.grad for n, p in loss.named_parameters() if p.grad is not None}


def is_negative(row: int, column: str, other: int) -> bool:
    """Whether a text of another row is neither the row's own answer nor one to its question."""
    if (column, other) == ("positive", row) or ROWS[other][column] == ROWS[row]["positive"]:
        return False
    return column != "positive" or ROWS[other]["query"] != ROWS[row]["query"]


def share_a_text(rows: tuple[int, ...], others: tuple[int, ...]) -> bool:
    """Whether rows of one process have a query or positive of the other's."""
    return any(
        ROWS[row][column] == ROWS[other][column]
        for column in ("query", "positive")
        for row in rows
        for other in others
    )


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert "losses.infonce.log_temperature" in expected
    assert "model.0.projection.linear.weight" in expected
    assert expected.keys() - found.keys() == set()
    for name, gradient in found.items():
        wanted = expected.get(name, torch.zeros_like(gradient))
        assert (gradient - wanted).abs().max().item() <= 1e-10, name


# Accumulation and dims are tried together here; each by itself in test-full.
CASES = [
    case
    if (case.accumulation == 4) == (case.dims is not None)
    else pytest.param(case, marks=pytest.mark.full)
    for case in cases()
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_gradients_of_a_step_are_the_sum_of_each_terms_own(case, backbones, tmp_path):
    found = step(backbones["bert"], case, tmp_path)
    batches = tuple(map(tuple, found["rows"]))
    assert len(batches) == case.accumulation
    expected = reference(backbones["bert"], case.task, case.dims, batches)
    assert_equal(found["gradients"], expected)


@pytest.mark.parametrize("which", ["few", pytest.param("all", marks=pytest.mark.full)])
def test_two_processes_have_the_gradients_of_all_their_batches(
    processes, backbones, tmp_path, which
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [tmp_path / f"{rank}.log" for rank in range(2)]
    workers = [
        processes.Process(
            target=logged, args=(log, run, backbones["bert"], tmp_path, port, rank, which)
        )
        for rank, log in enumerate(logs)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=240)
    assert [worker.exitcode for worker in workers] == [0, 0], [
        log.read_text()[-2000:] for log in logs
    ]
    for case in gathered_cases(which):
        found = [torch.load(tmp_path / f"{case.name}.{rank}.pt") for rank in range(2)]
        first, second = ([tuple(rows) for rows in one["rows"]] for one in found)
        assert len(first) == case.accumulation
        together = [*zip(first, second, strict=True)]
        if case.gather and case.accumulation > 1:
            assert any(share_a_text(*both) for both in together)  # and those are no negatives
        batches = tuple(a + b for a, b in together) if case.gather else (*first, *second)
        expected = reference(backbones["bert"], case.task, case.dims, batches)
        for one in found:
            assert_equal(one["gradients"], expected)
