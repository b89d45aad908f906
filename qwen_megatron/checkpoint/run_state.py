"""What a save writes of everything small: the state of a run as it stands."""

from __future__ import annotations

from qwen_megatron.checkpoint.environment import environment
from qwen_megatron.checkpoint.state import CheckpointState, ModelState, config_sections
from qwen_megatron.config.serialize import to_dict
from qwen_megatron.train.run import Run
from qwen_megatron.train.trainable import Trainable


def checkpoint_state(run: Run) -> CheckpointState:
    """The small state of a run, as it stands."""
    return CheckpointState(
        train_state=run.state,
        models={name: model_state(trainable) for name, trainable in run.trainables.items()},
        config=config_sections(run.job.config),
        data=run.job.sources(run.state),
        job=run.job.state_dict(),
        environment=environment(),
    )


def model_state(trainable: Trainable) -> ModelState:
    """The small state of a model, as it stands."""
    optimizer = trainable.optimizer
    return ModelState(
        config=to_dict(trainable.model),
        head=trainable.head,
        optimizer=[] if optimizer is None else optimizer.state_dict()["optimizer"]["param_groups"],
    )
