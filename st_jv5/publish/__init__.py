"""Publish a model folder on the Hub: checks and upload."""
