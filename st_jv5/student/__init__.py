"""The student: build it from a base, and interpolate back towards that base."""

from st_jv5.student.build import new_student
from st_jv5.student.interpolation import interpolate

__all__ = ["interpolate", "new_student"]
