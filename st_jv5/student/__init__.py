"""The student: built from a base, and led back towards it."""

from st_jv5.student.build import new_student
from st_jv5.student.interpolation import interpolate

__all__ = ["interpolate", "new_student"]
