"""The groups of `st-jv5`'s commands; their modules import at call what they need."""
