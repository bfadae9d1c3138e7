"""The numbers of a run, its tables and its card."""
