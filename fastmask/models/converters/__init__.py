"""Checkpoints of other libraries: their keys, layouts and conventions, turned into ours."""
