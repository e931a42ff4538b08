"""`per_device_train_batch_size: auto`: what does not fit into memory comes again in smaller parts, as the same step."""

import pytest
import torch
from pieces import ask, task_view, tiny_model, train, weights_of
from tiny import tiny_config, trajectory

from cl_toolkit.engine.choose import check_engine
from cl_toolkit.errors import UserError
from cl_toolkit.models.adapters import begin_task
from cl_toolkit.models.sections import Adapter
from cl_toolkit.strategies.der import DER
from cl_toolkit.strategies.objectives.sft import SFT
from cl_toolkit.study.cells import load_run

EXAMPLES = [ask("ab" * i, "c" * (i % 3 + 1)) for i in range(1, 9)]


class Narrow(SFT):
    """A device that takes so many rows, in the forward or (half of them done) in the backward."""

    def __init__(self, rows, late=False):
        super().__init__()
        self.rows, self.late, self.tried = rows, late, []

    def forward(self, model, part):
        self.tried.append(len(part.labels))
        out = super().forward(model, part)
        if len(part.labels) > self.rows:
            if not self.late:
                raise torch.OutOfMemoryError("CUDA out of memory")
            out.loss.register_hook(self.fail)
        return out

    def fail(self, gradient):
        raise torch.OutOfMemoryError("CUDA out of memory")


def learned(objective, size, dropout=0.0, strategy=None):
    model, losses = begin_task(tiny_model(), Adapter(r=2, lora_dropout=dropout), 0, 0), []
    torch.manual_seed(3)
    view = task_view(EXAMPLES, objective, batch_size=8, epochs=3)
    train(model, view, strategy, lambda s: losses.append((s.losses["narrow"], s.forwards, s.backwards, s.examples_seen)),
          per_device_train_batch_size=size)  # fmt: skip
    return losses, weights_of(model)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 7, 8])
def test_it_is_the_step_that_it_would_have_been(rows, late):
    objective = Narrow(rows, late)
    found, weights = learned(objective, "auto")
    fits = {1: 1, 3: 2, 7: 4, 8: 8}[rows]
    assert objective.tried[0] == 8
    assert objective.tried[-1] == fits
    assert objective.tried.count(8) == (3 if fits == 8 else 1)  # what has not fitted once is not tried again
    wanted, others = learned(Narrow(fits), fits)
    assert found == wanted
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_dropout_is_drawn_as_if_nothing_had_happened():
    assert learned(Narrow(3), "auto", dropout=0.5)[0] == learned(Narrow(2), 2, dropout=0.5)[0]


def test_nothing_is_offered_twice_to_a_store():
    stores = []
    for size in ("auto", 2):
        strategy = DER(DER.Config())
        learned(Narrow(2), size, strategy=strategy)
        stores.append([e.id for _, e in strategy.store.items])
    assert stores[0] == stores[1]
    assert len(stores[0]) == 24


def test_where_not_even_one_row_fits_it_says_so():
    with pytest.raises(
        UserError, match=r"task task: step 1: not even one row fits into the memory of cpu; train.gradient_ch"
    ):
        learned(Narrow(0), "auto")


def test_with_a_number_nothing_is_tried_again():
    with pytest.raises(torch.OutOfMemoryError):
        learned(Narrow(3), 4)


def test_the_record_says_what_fits(tmp_path, monkeypatch):
    forward = SFT.forward

    def narrow(self, model, part):
        if len(part.labels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, model, part)

    monkeypatch.setattr(SFT, "forward", narrow)
    record = trajectory(tmp_path, train={"per_device_train_batch_size": "auto"}).record
    note = "train.per_device_train_batch_size: auto: 2 rows at a time fit into the device's memory"
    assert record["notes"].count(note) == 1


def test_deepspeed_takes_a_number():
    config = load_run(tiny_config(train={"per_device_train_batch_size": "auto"}))
    section = type(config.engine)(name="deepspeed", device="cpu", deepspeed=None, timeout_minutes=1.0)
    with pytest.raises(
        UserError, match=r"train.per_device_train_batch_size: auto is for one process without DeepSpeed"
    ):
        check_engine(section, config.train)
