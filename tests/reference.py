"""The paper's formulas as double loops: numpy alone, so that no bug is shared with the library.

Equations of arXiv:2602.15547.
"""

from __future__ import annotations

import math

import numpy as np


def cos(a, b):
    return float(np.dot(a, b) / (math.sqrt(np.dot(a, a)) * math.sqrt(np.dot(b, b))))


def distill(columns, teachers, weight, bias, placement="student_up"):
    """Eq. 1: mean over the batch, sum over the columns."""
    total = 0.0
    for student, teacher in zip(columns, teachers, strict=True):
        column = 0.0
        for x, t in zip(student, teacher, strict=True):
            if placement == "student_up":
                column += 1 - cos(weight @ x + bias, t)
            else:
                column += 1 - cos(x, weight @ t + bias)
        total += column / len(student)
    return total


def info_nce(queries, documents, temperature, left_out=frozenset()):
    """Eq. 2: the positive of query i is document i; pairs (i, j) may be left out."""
    total = 0.0
    for i, q in enumerate(queries):
        scores = {
            j: float(np.dot(q, d)) / temperature
            for j, d in enumerate(documents)
            if i == j or (i, j) not in left_out
        }
        top = max(scores.values())
        total += top + math.log(sum(math.exp(s - top) for s in scores.values())) - scores[i]
    return total / len(queries)


def gor(columns):
    """Eq. 3."""
    total = 0.0
    for rows in columns:
        n = len(rows)
        for i in range(n):
            for j in range(n):
                if i != j:
                    total += float(np.dot(rows[i], rows[j])) ** 2 / (n * (n - 1))
    return total


def cosent(cosines, scores, temperature):
    """Section 3, text matching."""
    total = 1.0
    for i in range(len(scores)):
        for j in range(len(scores)):
            if scores[i] > scores[j]:
                total += math.exp((cosines[j] - cosines[i]) / temperature)
    return math.log(total)


def relational(student, teacher, include_diagonal=True):
    """Eq. 8."""
    n = len(student)

    def distances(rows):
        table = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                if i != j:
                    table[i, j] = 1 - cos(rows[i], rows[j])
        return table / (table.sum() / (n * n if include_diagonal else n * (n - 1)))

    gap = distances(student) - distances(teacher)
    total = 0.0
    for i in range(n):
        for j in range(n):
            total += gap[i, j] ** 2
    return total / n**2
