"""Work on adapters: add, train, save, load, average, blend, merge."""

from st_jv5.adapters.edit import (
    add_task,
    average_adapters,
    blend_tasks,
    load_adapter,
    merge_task,
    merged,
    remove_task,
    router_of,
    save_adapter,
    tasks,
    train_task,
)
from st_jv5.folders.adapter_file import Adapter

__all__ = [
    "Adapter",
    "add_task",
    "average_adapters",
    "blend_tasks",
    "merge_task",
    "merged",
    "load_adapter",
    "remove_task",
    "router_of",
    "save_adapter",
    "tasks",
    "train_task",
]
