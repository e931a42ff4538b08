"""Anchors, whatever the view, the adapter and the strategy: a run finishes, or its config is refused."""

import pytest
from longer import AT_EACH_HOOK, long_but
from tiny import TINY, tiny_config, trajectory

from cl_toolkit import UserError
from cl_toolkit.registry import STRATEGIES
from cl_toolkit.study.cells import load_run

SMALL = {"ewc": {"fisher_examples": 2}}
VIEWS = (None, "joint", "cumulative")


def changes(view, life, name):
    adapter = {"r": 2, "lora_alpha": 4, "between_tasks": life}
    return {
        "stream": {
            "anchors": ["sort"],
            "tasks": ["max"],
            "view": view,
            "train_size": 4,
            "valid_size": 1,
            "test_size": 1,
        },
        "model": {**TINY, "adapter": adapter} if life else TINY,
        "strategies": {name: SMALL.get(name, {})},
        "train": {"max_steps": 1, "global_batch_size": 2},
        "evaluate": {"max_new_tokens": 1},
    }


@pytest.mark.parametrize("life", [None, "continue", "merge", "stack"])
@pytest.mark.parametrize("name", long_but((*AT_EACH_HOOK, "guard"), STRATEGIES.names()))
def test_a_run_with_anchors_finishes_or_is_refused(tmp_path, name, life):
    for view in VIEWS:
        try:
            load_run(tiny_config(**changes(view, life, name)))
        except UserError:
            continue
        assert trajectory(tmp_path / str(view), **changes(view, life, name)).record["status"] == "finished"


def test_importances_of_an_anchor_have_no_place_in_an_adapter():
    with pytest.raises(UserError, match=r"stream\.anchors: strategies\.ewc looks at trained weights"):
        load_run(tiny_config(**changes(None, "continue", "ewc")))
    load_run(tiny_config(**changes(None, None, "ewc")))
