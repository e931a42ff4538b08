"""Settings of an adapter task by task (`per_task`)."""

import pytest
from pieces import ask, task_view, tiny_model, train
from tiny import stop_after_a_task, tiny_config, tiny_run_config, trajectory

from cl_toolkit.config.build import adapter_of
from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import Run

EXAMPLES = [ask(q, q[::-1]) for q in ("ab", "cde", "fghi", "j")]
RANKS = {"r": 2, "between_tasks": "stack", "per_task": {"r": [4, 2], "lora_alpha": [8, 4, 2]}}


def test_each_task_has_its_own_and_the_last_ones_go_on():
    adapter = adapter_of(RANKS, "here")
    assert [(adapter.of_task(i).r, adapter.of_task(i).lora_alpha) for i in range(5)] == [
        (4, 8), (2, 4), (2, 2), (2, 2), (2, 2),
    ]  # fmt: skip
    assert adapter_of({"r": 3}, "here").of_task(7).r == 3
    model, ranks = tiny_model(), []
    for index in range(3):
        model = adapters.begin_task(model, adapter, index, 0)
        ranks.append({a.shape[0] for _, a, _, _ in adapters.pairs(model)})
        model = adapters.end_task(model, adapter)
    assert ranks == [{4}, {2}, {2}]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_the_free_rank_of_osf_shrinks_as_tasks_come():
    """OSFT's schedule: of each matrix more and more is kept. Between tasks the update is merged and the weights are taken apart
    anew."""
    section = {"type": "osf", "between_tasks": "merge", "per_task": {"effective_rank": [4, 8, 12]}}
    adapter, model, trained = adapter_of(section, "here"), tiny_model(), []
    for index in range(3):
        model = adapters.begin_task(model, adapter, index, 0)
        trained.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
        train(model, task_view(EXAMPLES, index=index), learning_rate=1e-2)
        model = adapters.end_task(model, adapter)
    assert trained[0] > trained[1] > trained[2] > 0


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_one_that_keeps_all_of_each_matrix_is_refused():
    """It would learn nothing, and a run of it would look like one that does not forget."""
    adapter = adapter_of({"type": "osf", "between_tasks": "merge", "per_task": {"effective_rank": [4, 999]}}, "here")
    model = adapters.end_task(adapters.begin_task(tiny_model(), adapter, 0, 0), adapter)
    with pytest.raises(UserError, match=r"model.adapter: nothing is left to train of type osf with effective_rank 999"):
        adapters.begin_task(model, adapter, 1, 0)


@pytest.mark.parametrize("life", ["merge", "stack"])
def test_a_run_of_them_goes_on_as_if_nothing_had_happened(life, tmp_path):
    model = {**tiny_config()["model"], "adapter": {**RANKS, "between_tasks": life}}
    whole = trajectory(tmp_path / "whole", model=model).record
    assert len({row["trained_parameters"] for row in whole["adapters"]}) > 1
    run = Run(tiny_run_config(model=model), tmp_path / "stopped", None)
    stop_after_a_task(run)
    assert comparable(trajectory(tmp_path / "stopped", model=model).record) == comparable(whole)


@pytest.mark.parametrize("strategies", [{}, {"sd_lora": {}}, {"o_lora": {}}, {"inf_lora": {}}], ids="+".join)
def test_a_stack_may_put_each_on_layers_of_its_own(strategies, tmp_path):
    """Who looks at past adapters finds them where they are; the drift probe puts all their weights together."""
    places = [["q_proj"], ["v_proj"], ["q_proj", "v_proj"]]
    adapter = {"r": 2, "between_tasks": "stack", "per_task": {"target_modules": places}}
    model = {**tiny_config()["model"], "adapter": adapter}
    found = trajectory(tmp_path, model=model, stream={"tasks": ["max", "last", "sort"]}, strategies=strategies)
    assert [len(row["loaded"]) for row in found.record["adapters"]] == [1, 2, 3]
    past = dict(adapters.frozen_pairs(found.run.model))
    assert [len(pairs) for layer, pairs in past.items() if "q_proj" in layer or "v_proj" in layer] == [1, 1]
    assert (
        dict(adapters.whole_weights(found.run.model)).keys() == dict(found.run.load_model().named_parameters()).keys()
    )


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"per_task": {"r": [2]}}, "is for adapters of one type that begin anew .*; set between_tasks: merge or stack"),
        ({"between_tasks": "merge", "per_task": {"type": ["lora", "ia3"]}}, "adapters of one type"),
        ({"between_tasks": "merge", "per_task": {"r": 2}}, r"expected settings with a list for each, \{r: \[16, 8\]\}, got"),
        ({"between_tasks": "merge", "per_task": {"r": []}}, "expected settings with a list for each"),
        ({"between_tasks": "merge", "per_task": {}}, "expected settings with a list for each"),
        ({"between_tasks": "merge", "per_task": {"r": [2, 0]}}, r"model\.adapter\.r: expected .*got 0"),
        ({"between_tasks": "merge", "per_task": {"rank": [2, 0]}}, r"model\.adapter\.rank: unknown key"),
        ({"between_tasks": "stack", "per_task": {"target_modules": ["kappa", "kappa(0.5)"]}}, "kappa looks at the weights of"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(section, message):
    with pytest.raises(UserError, match=message):
        adapter_of({"r": 2, **section}, "here")
