"""The projection from the student's vectors to the teacher's, and its files in a model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from st_jv5.files import write_json, write_tensors
from st_jv5.folders.adapter_file import read_tensors
from st_jv5.folders.headers import check_projection, shapes_of
from st_jv5.vector_source import Vectors

Placement = Literal["student_up", "teacher_down"]

WEIGHTS_FILE = "projection.safetensors"
INFO_FILE = "projection.json"

NOISE = 1e-6
"""Share of the largest singular value below which a direction of float32 vectors is rounding."""


class Projection(nn.Module):
    r"""The linear map :math:`\psi(z) = W z + b` of Eq. 1 of arXiv:2602.15547.

    ``student_up`` maps student vectors to the teacher's width, ``teacher_down`` maps teacher
    vectors to the student's width (the paper's ablation). ``W`` starts as the rectangular identity
    and ``b`` as zero. The paper does not publish its start; this one keeps the student's cosines if
    student and teacher share a space.

    Args:
        student_dim: Width of the student's vectors.
        teacher_dim: Width of the teacher's vectors.
        placement: Which side is projected.
        own_map_dims: Dims at which a cut student vector is projected by a separate map, which
            starts as a copy of W's first columns. At all other dims it is projected by W's first
            columns.
        info: What the projection was trained on (teacher, revision, prompts, ...): free-form JSON
            that is saved with the weights.

    Example:
        >>> up, teacher_rows = Projection(384, 768)(torch.ones(2, 384), torch.ones(2, 768))
        >>> up.shape
        torch.Size([2, 768])
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        *,
        placement: Placement = "student_up",
        info: dict[str, Any] | None = None,
        own_map_dims: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if placement not in get_args(Placement):
            raise ValueError(f"placement must be one of {get_args(Placement)}, not {placement!r}")
        for name, value in (("student_dim", student_dim), ("teacher_dim", teacher_dim)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
        if any(not 1 <= dim < student_dim for dim in own_map_dims):
            raise ValueError(f"own_map_dims must lie in 1..{student_dim - 1}, not {own_map_dims}")
        self.student_dim = student_dim
        self.teacher_dim = teacher_dim
        self.placement: Placement = placement
        self.info = dict(info or {})
        self.own_map_dims = tuple(sorted(set(own_map_dims)))
        self.linear = self._map(student_dim)
        self.own = nn.ModuleDict({str(dim): self._map(dim) for dim in self.own_map_dims})

    def _map(self, student_dim: int) -> nn.Linear:
        up = self.placement == "student_up"
        wide = (student_dim, self.teacher_dim) if up else (self.teacher_dim, student_dim)
        linear = nn.Linear(*wide)
        with torch.no_grad():
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)
        return linear

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Bring student and teacher vectors to one width.

        A student vector cut to its first ``d`` dims is projected by W's first ``d`` columns
        (student up) or first ``d`` rows (teacher down), or by its separate map if ``d`` is in
        ``own_map_dims``. The paper does not say how; this is our choice.

        Args:
            student: ``(n, d)`` with ``d <= student_dim``.
            teacher: ``(n, teacher_dim)``.

        Returns:
            student and teacher as ``(n, teacher_dim)``, or ``(n, d)`` for ``teacher_down``.
        """
        dim = student.shape[-1]
        if dim > self.student_dim or teacher.shape[-1] != self.teacher_dim:
            raise ValueError(
                f"the projection joins {self.student_dim} student and {self.teacher_dim} teacher "
                f"dims, but got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
            )
        own: Any = self.own[str(dim)] if dim in self.own_map_dims else self.linear
        weight, bias = own.weight, own.bias
        with torch.autocast(student.device.type, enabled=False):
            if self.placement == "student_up":
                student = nn.functional.linear(student.to(weight.dtype), weight[:, :dim], bias)
            else:
                teacher = nn.functional.linear(teacher.to(weight.dtype), weight[:dim], bias[:dim])
        return student, teacher

    @classmethod
    def fitted(
        cls,
        student: Tensor,
        teacher: Tensor,
        *,
        info: dict[str, Any] | None = None,
        own_map_dims: Sequence[int] = (),
    ) -> Projection:
        """Fit a ``student_up`` projection, and each separate map, by least squares.

        Args:
            student: Unit rows ``(n, student_dim)``, with ``n > student_dim``.
            teacher: ``(n, teacher_dim)``, of the same texts.
            info: As in the constructor.
            own_map_dims: As in the constructor; each map is fitted to the student's vectors cut to
                its dim.

        Example:
            >>> rows = torch.nn.functional.normalize(torch.randn(50, 8), dim=-1)
            >>> up, _ = Projection.fitted(rows, 2 * rows)(rows, 2 * rows)
            >>> torch.allclose(up, 2 * rows, atol=1e-4)
            True
        """
        # By singular values, in float64, on the CPU: CUDA has no such solver. The default one, in
        # float32, leaves out directions that vectors do have, more of them the more rows there are,
        # and the last bits decide which.
        student, teacher = student.cpu().double(), teacher.cpu().double()
        width = student.shape[1]
        projection = cls(width, teacher.shape[1], info=info, own_map_dims=own_map_dims)
        for dim in (width, *projection.own_map_dims):
            linear: Any = projection.own[str(dim)] if dim < width else projection.linear
            cut = nn.functional.normalize(student[:, :dim], dim=-1)
            inputs = torch.cat([cut, cut.new_ones(len(cut), 1)], dim=1)
            solution = torch.linalg.lstsq(inputs, teacher, rcond=NOISE, driver="gelsd").solution
            with torch.no_grad():
                linear.weight.copy_(solution[:-1].T)
                linear.bias.copy_(solution[-1])
        return projection

    def save(self, folder: str | Path) -> None:
        """Write ``projection.safetensors`` and ``projection.json``."""
        folder = Path(folder)
        write_tensors(folder / WEIGHTS_FILE, self.tensors())
        write_json(
            folder / INFO_FILE,
            {
                "student_dim": self.student_dim,
                "teacher_dim": self.teacher_dim,
                "placement": self.placement,
                **({"own_map_dims": list(self.own_map_dims)} if self.own_map_dims else {}),
                **self.info,
            },
        )

    def tensors(self) -> dict[str, Tensor]:
        """The weights under the names of the file."""
        return {name.removeprefix("linear."): tensor for name, tensor in self.state_dict().items()}

    def fill(self, tensors: Mapping[str, Tensor], source: str | Path) -> None:
        """Replace the weights; an error begins with ``source`` if they do not fit."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in self.tensors().items()}
        if shapes != expected:
            raise ValueError(f"{source} holds {shapes}, but the projection is {expected}")
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(tensors[name])

    @classmethod
    def load(cls, folder: str | Path) -> Projection:
        """Read a projection; errors name the file that does not fit.

        The file's header is compared with ``projection.json`` before a projection of that size is
        created.
        """
        info_path, weights_path = Path(folder) / INFO_FILE, Path(folder) / WEIGHTS_FILE
        info = check_projection(info_path, shapes_of(weights_path))
        dims = {key: info.pop(key) for key in ("student_dim", "teacher_dim", "placement")}
        projection = cls(**dims, own_map_dims=info.pop("own_map_dims", ()), info=info)
        tensors, _ = read_tensors(weights_path)
        projection.fill(tensors, weights_path)
        return projection


def fit_projection(
    model: SentenceTransformer,
    store: Vectors,
    texts: Sequence[str],
    *,
    prompt_name: str = "document",
) -> Projection:
    """Fit the model's projection to the teacher's vectors by least squares.

    Use it for a student before its first step: from the identity, which joins unrelated spaces,
    training would first change the student to fit the projection. Use it, too, for a base that was
    saved without the projection of its stage 1.

    Args:
        model: An st_jv5 model; its base is used.
        store: A space of a teacher store, or a view of several.
        texts: Texts whose vectors are in the store; there must be more texts than the student has
            dims.
        prompt_name: Name of the student's prompt for these texts.

    Returns:
        The projection, which is now ``model[0].projection``.

    Example:
        >>> fit_projection(student, store, texts).teacher_dim
        384
    """
    width = model.get_embedding_dimension()
    if len(texts) <= width:
        raise ValueError(f"{len(texts)} texts are too few to fit {width} dims; pass more")
    teacher = store.gather(store.rows(texts))
    student = model.encode(
        list(texts), task="base", prompt_name=prompt_name, convert_to_tensor=True
    )
    projection = Projection.fitted(student.cpu(), teacher, info=store.describe())
    model[0].projection = projection.to(model.device)
    return projection
