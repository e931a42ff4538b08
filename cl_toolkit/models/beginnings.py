"""What an adapter begins with where that is made of its task's training examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cl_toolkit.engine.access import eval_mode, evaluating
from cl_toolkit.models.peft_types import BY_INPUTS, weigh_inputs
from cl_toolkit.models.targets import named

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

    from cl_toolkit.task_view import TaskView

EXAMPLES = 256
"""Training examples, drawn by the seed, that go through the model; as many as CorDA's authors take."""


def passed(model: nn.Module, task: TaskView) -> None:
    """Send examples of a task through a model, each for itself: PEFT looks at rows without padding."""
    device = next(model.parameters()).device
    with evaluating(model):
        for i in task.drawn("adapter", EXAMPLES):
            task.forward(model, task.encode([task.examples[i]], model).to(device))


def prepare(model: Any, config: PeftConfig, run: Callable[[], None] | None) -> None:
    """Make of a model what PEFT wants of it before it gets an adapter. run: sends examples through it; None: the adapter's
    weights, and those that it takes something from, will come from elsewhere, and the structure is all that is wanted."""
    told: Any = config
    if getattr(told, "init_lora_weights", None) not in BY_INPUTS:
        return
    if run is None:
        told.init_lora_weights = True
        return
    if told.target_modules == "all-linear":  # which is a pattern here
        told.target_modules = set(named(model, "all-linear"))
    with eval_mode(model):
        weigh_inputs(model, told, run)
