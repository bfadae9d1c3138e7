"""What a request's model, task and prompt name mean to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sentence_transformers import SentenceTransformer

from st_jv5.adapters import router_of
from st_jv5.encoding import prompt_named
from st_jv5.modules.heads import head_of
from st_jv5.serve.errors import ApiError
from st_jv5.task_table import BASE, PROMPTS, Blend, TaskName, unknown_name

JINA_TASKS: Mapping[str, tuple[str, str | None]] = {
    "retrieval.query": ("retrieval", "query"),
    "retrieval.passage": ("retrieval", "document"),
    "separation": ("clustering", None),
}
"""Jina's task name -> our task and prompt name. The other three tasks have the same names."""


@dataclass(frozen=True)
class Asked:
    """A task and its prompt."""

    task: TaskName
    prompt_name: str | None
    prompt: str
    """What goes in front of each text."""
    label: str
    """An adapter's name, base or blend: few, so that metrics can count by it."""
    head: str | None = None
    """The adapter whose head the vectors go through; they are then asked of the base."""
    looked_up: bool = False
    """Whether a table has the vectors."""


class Names:
    """The names that ``model`` may have in a request: the model's names, alone and with a task.

    Args:
        model: An st_jv5 model.
        names: At least one; answers contain the first.
        default: Task of requests that name none; None is the model's own.
        looks_up: Whether queries are looked up in a table.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        names: Sequence[str],
        *,
        default: str | None = None,
        looks_up: bool = False,
    ) -> None:
        self.model, self.names, self.looks_up = model, list(names), looks_up
        self.router: Any = router_of(model)
        self.default: TaskName | None = default or self.router.default_task

    def tasks(self) -> list[str]:
        """What may follow a name: adapters, their aliases, and base."""
        if not self.router.tasks:
            return [*PROMPTS, BASE]
        known = self.router.tasks.values()
        return [*(t.name for t in known), *(alias for t in known for alias in t.aliases), BASE]

    def listed(self) -> list[dict[str, Any]]:
        """The names for ``/v1/models``; ``adapter`` is false for plain names and aliases."""
        about = {
            "object": "model",
            "created": 0,
            "owned_by": "st_jv5",
            "dimensions": self.model.get_embedding_dimension(),
            "max_tokens": self.router.max_seq_length,
        }
        default = self.default
        shown = str(Blend(default)) if isinstance(default, Mapping) else default
        adapters = [*self.router.tasks, BASE]
        found = []
        for name in self.names:
            found.append({"id": name, **about, "task": shown, "adapter": False})
            for task in self.tasks():
                own = {"task": task, "adapter": task in adapters}
                found.append({"id": f"{name}/{task}", **about, **own})
        return found

    def asked(
        self,
        model: str | None,
        task: str | dict[str, float] | None,
        prompt_name: str | None,
        mode: str | None = None,
    ) -> Asked:
        """Task and prompt of a request; :class:`~st_jv5.serve.errors.ApiError` without them."""
        behind = self._behind(model) if model is not None else None
        if behind is not None and task is not None and behind != task:
            message = f"model names the task {behind!r} and task {task!r}; send one of them"
            raise ApiError(400, message, param="task", code="conflict")
        told = behind if task is None else task
        named = told
        if isinstance(told, str) and told in JINA_TASKS and told not in self.tasks():
            named, own_prompt = JINA_TASKS[told]
            if own_prompt and not self.router.tasks:
                named = own_prompt  # of the base
            if own_prompt and prompt_name not in (None, own_prompt):
                message = f"task {told!r} has the prompt {own_prompt!r}, not {prompt_name!r}"
                raise ApiError(400, message, param="prompt_name", code="conflict")
            prompt_name = prompt_name or own_prompt
        asked = self._resolved(named, prompt_name)
        return asked if mode is None else self._by_head(asked, mode)

    def _by_head(self, asked: Asked, mode: str) -> Asked:
        """The base with its prompt, and the head of the task, as ``encode(mode="head")`` does."""
        try:
            head = head_of(self.model, asked.task, mode)
        except ValueError as error:
            raise ApiError(400, str(error), param="mode", code="no_head") from error
        side = asked.task if isinstance(asked.task, str) and asked.task in PROMPTS else None
        return replace(self._resolved(BASE, asked.prompt_name or side), label=head, head=head)

    def _behind(self, model: str) -> str | None:
        """The task behind a name, if there is one."""
        for name in self.names:
            if model == name:
                return None
            if model.startswith(f"{name}/"):
                return model[len(name) + 1 :]
        message = unknown_name("model", model, self.names, "this server")
        raise ApiError(404, message, param="model", code="model_not_found")

    def _resolved(self, task: TaskName | None, prompt_name: str | None) -> Asked:
        task = self.default if task is None else task
        if task is None:
            if self.router.tasks:
                message = (
                    f"name a task: task, or model as {self.names[0]}/TASK; this model has: "
                    f"{', '.join(self.tasks())}"
                )
                raise ApiError(400, message, param="task", code="missing_task")
            task = BASE
        try:
            adapter = self.router.resolve(task)
        except ValueError as error:
            raise ApiError(400, str(error), param="task", code="unknown_task") from error
        try:
            prompt = self.router.prompt_for(task, prompt_named(self.model, prompt_name))
        except ValueError as error:
            raise ApiError(400, str(error), param="prompt_name", code="unknown_prompt") from error
        if self.looks_up and task == "query":
            return Asked(task, prompt_name, prompt or "", "query", looked_up=True)
        label = "blend" if isinstance(adapter, Blend) else adapter or BASE
        return Asked(task, prompt_name, prompt or "", label)
