"""The residual of instruction tuning, by hand, and between two models in folders."""

import pytest
import torch
from files import llama_folder
from pieces import configured, weights_of
from tiny import Trajectory, tiny_config, tiny_run_config, trajectory
from torch import nn

from cl_toolkit.data.streams import build_stream
from cl_toolkit.errors import UserError
from cl_toolkit.models.language import LanguageModel
from cl_toolkit.runs.identity import changed_parts, identity
from cl_toolkit.runs.run import Run
from cl_toolkit.strategies.instruction_residual import InstructionResidual, difference
from cl_toolkit.study.cells import load_run


class One(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([weight]))


def residual(**settings):
    strategy = InstructionResidual(InstructionResidual.Config(**settings))
    strategy.name = "instruction_residual"
    return strategy


def learned(strategy, model, target):
    """Where a task begins, and what it becomes, whose training ends at `target`."""
    strategy.before_task(model, None)
    began = model.w.item()
    model.w.data.fill_(target)
    strategy.after_task(model, None)
    return began, model.w.item()


def test_base_1_instruct_1_5_trained_on_to_1_2_is_1_7():
    strategy, model = residual(), One(1.0)
    assert learned(strategy, model, 1.5) == (1.0, 1.5)  # the instructions
    assert learned(strategy, model, 1.2) == pytest.approx((1.0, 1.7))
    assert learned(strategy, model, 0.9) == pytest.approx((1.2, 1.4))  # goes on where training ended
    assert strategy.extra_parameters == 2


def test_half_of_it():
    strategy, model = residual(scale=0.5), One(1.0)
    learned(strategy, model, 1.5)
    assert learned(strategy, model, 1.2)[1] == pytest.approx(1.45)


def test_there_and_back_is_the_tuned_model_to_the_last_bit():
    """No training at all: base + (tuned - base) within 1 ulp; and the difference of two models has a sign."""
    draw = torch.Generator().manual_seed(0)
    base, tuned = ({"w": torch.randn(10_000, generator=draw)} for _ in range(2))
    found = base["w"] + difference(tuned, base)["w"]
    assert (found - tuned["w"]).abs().max() <= 2**-21  # of numbers below 8
    assert torch.equal(difference(tuned, base)["w"], -difference(base, tuned)["w"])


def test_an_anchor_is_no_instruction():
    strategy, model = residual(), One(1.0)
    strategy.after_task(model, None)
    assert strategy.state() == {"below": {}, "residual": {}}


def test_the_streams_own_instructions(tmp_path):
    """The second task is trained from the start model, as if it were alone; then the first one's residual is added."""
    found = trajectory(tmp_path / "a", strategies={"instruction_residual": {}})
    alone = trajectory(tmp_path / "b", stream={"view": "independent"})
    assert found.losses == alone.losses
    together = trajectory(
        tmp_path / "c", strategies={"merge": {"method": "task_arithmetic", "weight": 1.0, "parallel": True}}
    )
    one, other = (weights_of(t.run.model) for t in (found, together))
    assert all(torch.allclose(one[name], weight, atol=1e-6) for name, weight in other.items())


@pytest.fixture
def pair(tmp_path):
    """Two folders, of a base model and of one that was tuned."""
    return llama_folder(tmp_path / "base", seed=0), llama_folder(tmp_path / "tuned", seed=1)


def config_of(model, **strategies):
    config = tiny_config(strategies=strategies, train={"max_steps": 3})
    return load_run({**config, "model": {"name": str(model)}})


def test_two_released_models(pair, tmp_path):
    """Both tasks are trained on the base model, bit for bit; what is kept is that and the residual."""
    base, tuned = pair
    plain = Trajectory(Run(config_of(base), tmp_path / "a", None))
    found = Trajectory(Run(config_of(tuned, instruction_residual={"base": str(base)}), tmp_path / "b", None))
    assert found.losses == plain.losses
    models = [LanguageModel(name=str(folder)).load(0).state_dict() for folder in pair]
    trained, kept = plain.run.model.state_dict(), found.run.model.state_dict()
    for name, weight in trained.items():
        assert torch.allclose(kept[name], weight + models[1][name] - models[0][name], atol=1e-6), name
    assert not torch.equal(kept["lm_head.weight"], trained["lm_head.weight"])


def test_another_base_model_is_another_result(pair):
    base, tuned = pair
    config = config_of(tuned, instruction_residual={"base": str(base)})
    run_on = build_stream(config)
    before = identity(config, run_on)
    assert any(key.startswith("strategies.instruction_residual: ") for key in before["model"])
    assert changed_parts(before, identity(config, run_on)) is None
    llama_folder(base, seed=2)
    assert "another model: model.strategies.instruction_residual" in changed_parts(before, identity(config, run_on))
    assert not any("strategies" in key for key in identity(config_of(tuned), run_on)["model"])


def test_a_base_of_another_shape_is_refused(pair):
    base, _ = pair
    model = nn.Linear(2, 2)
    lacks = r"strategies\.instruction_residual\.base: .*: weight is \(2, 2\) in the run's model and nothing of that name there"
    with pytest.raises(UserError, match=lacks):
        residual(base=str(base)).before_task(model, None)
    with pytest.raises(UserError, match=r"^strategies\.instruction_residual\.base: .*nowhere: no such folder"):
        residual(base=str(base / "nowhere")).config.identity()


def test_it_takes_no_adapter():
    with pytest.raises(UserError, match=r"needs model\.adapter\.between_tasks: no adapter; got merge"):
        tiny_run_config(strategies={"instruction_residual": {}}, model={"adapter": {"r": 2, "between_tasks": "merge"}})


def test_bad_settings():
    with pytest.raises(UserError, match="scale: expected"):
        configured(InstructionResidual, scale=-1.0)
