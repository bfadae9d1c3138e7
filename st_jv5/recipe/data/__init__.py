"""Data sets of a recipe: read, filtered, kept in Arrow files, made training rows."""
