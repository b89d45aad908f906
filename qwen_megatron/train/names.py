"""Names of the models of a job; apart from the models, so that a checkpoint is read without torch."""

from __future__ import annotations

import re

# What the only model of a job is called.
MAIN = "model"
# The second model that PPO trains.
VALUE = "value"
# It is part of keys in checkpoints, and may be asked for on a command line.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
