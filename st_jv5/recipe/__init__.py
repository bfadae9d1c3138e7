"""Recipes: teacher, base, adapters, one model, its numbers, from one YAML file."""
