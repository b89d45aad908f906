"""Settings of runs and pipelines: YAML files and overrides become checked records, with all problems at once."""
