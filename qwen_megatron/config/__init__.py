"""Configuration of a run: what can be set, how it is read, and what follows from it.

Pure: needs neither torch nor Megatron-Core, and reads nothing but the YAML file it is given.
"""
