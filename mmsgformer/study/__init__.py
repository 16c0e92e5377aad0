"""Studies: many runs of backbones under one recipe, from a YAML file to a table (docs/study.md)."""
