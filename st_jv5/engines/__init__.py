"""Graphs that other engines than torch run: one task's, or all tasks' in one."""
