"""The teacher's vectors: computed once, kept in a store, read by every stage."""

from st_jv5.teacher.fill import fill
from st_jv5.teacher.store import TeacherStore

__all__ = ["TeacherStore", "fill"]
