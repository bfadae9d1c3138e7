"""The commands of `st-jv5`, by group; a command imports what it needs when it runs."""
