"""The teacher's vectors: computed once, kept in a store, read by every stage."""

from st_jv5.teacher.endpoint import EndpointTeacher
from st_jv5.teacher.filling import fill
from st_jv5.teacher.sources import FunctionTeacher, LocalTeacher
from st_jv5.teacher.store import Space, TeacherStore
from st_jv5.teacher.upkeep import merge, prune, verify
from st_jv5.teacher.views import ColumnStores, SeveralTeachers

__all__ = [
    "ColumnStores",
    "EndpointTeacher",
    "FunctionTeacher",
    "LocalTeacher",
    "SeveralTeachers",
    "Space",
    "TeacherStore",
    "fill",
    "merge",
    "prune",
    "verify",
]
