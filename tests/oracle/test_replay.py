"""The share of the loss that rehearsed rows carry, whatever the lengths of answers; answers that the model writes itself."""

from dataclasses import replace

import pytest
import torch
from pieces import array_view, ask, byte_codec, points, task_view, tiny_model, train, train_settings
from tiny import tiny_config, tiny_run_config

import cl_toolkit as cl
from cl_toolkit import UserError
from cl_toolkit.engine.torch_engine import TorchEngine
from cl_toolkit.models.arrays import MLP
from cl_toolkit.models.copies import copied, neighbours
from cl_toolkit.models.rollouts import sampled
from cl_toolkit.registry import OBJECTIVES
from cl_toolkit.runs.record import comparable
from cl_toolkit.strategies.replay import Replay
from cl_toolkit.study.cells import load_run

LONG, SHORT = "abcdefghijklmn", ""  # 15 targets and 1, the end mark included
CASES = {"short answers": (LONG, SHORT, 1 / 16), "long answers": (SHORT, LONG, 15 / 16), "alike": (LONG, LONG, 1 / 2)}


def grads_of(model, view, examples, size=None, packing=None, share=None):
    """The loss of one step on those rows, and its gradient by weight."""
    view.memory_share = share
    engine = TorchEngine(train_settings(per_device_train_batch_size=size, packing=packing), torch.device("cpu"))
    with engine.open(model, view, steps=1) as session:
        loss = 0.0
        for part in session.parts(view.objective.encode(model, view, examples)):
            out = view.objective.forward(model, part)
            session.backward({"loss": out.loss})
            loss += float(out.loss.detach())
        return loss, {name: grad.clone() for name, grad in session.gradients().items()}


def mixed(new, old, share):
    """(1 - share) of one gradient, or loss, and share of another."""
    (a, grads), (b, others) = new, old
    return (1 - share) * a + share * b, {n: (1 - share) * grads[n] + share * others[n] for n in grads}


def alike(found, wanted):
    """The largest difference, of the gradient by its largest element."""
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    largest = max(float(g.abs().max()) for g in wanted[1].values())
    assert all(torch.allclose(found[1][n], wanted[1][n], rtol=0, atol=1e-5 * largest) for n in wanted[1])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["sft", "dft", "eaft", "asft"])
def test_the_share_is_the_one_that_was_asked_for(case, name):
    """Two new rows and two rehearsed ones: without a share the targets decide, and with one of 0.5, of 0 or of 1 that does."""
    new, old, by_targets = CASES[case]
    model = tiny_model()
    view = task_view([ask("1 +", new), ask("2 +", new)], OBJECTIVES.get(name, "test")())
    rehearsed = [ask(f"{i} -", old, source="memory") for i in range(2)]
    union = [*view.examples, *rehearsed]
    apart = [grads_of(model, view, rows) for rows in (view.examples, rehearsed)]
    alike(grads_of(model, view, union), mixed(*apart, by_targets))
    for share in (0.5, 0.0, 1.0):
        alike(grads_of(model, view, union, share=share), mixed(*apart, share))


@pytest.mark.parametrize(("size", "packing"), [(1, None), (3, None), (None, 40), (1, 40)])
def test_no_cutting_changes_the_share(size, packing):
    model = tiny_model()
    view = task_view([ask("1 +", LONG), ask("2 +", SHORT)])
    union = [*view.examples, *(ask(f"{i} -", answer, source="memory") for i, answer in enumerate((LONG, LONG, SHORT)))]
    whole = grads_of(model, view, union, share=0.3)
    alike(grads_of(model, view, union, size, packing, share=0.3), whole)


def test_of_arrays_too():
    """Three new ones and one rehearsed one, which counts as much as they."""
    rows = points(4)
    rows[3] = replace(rows[3], source="memory")
    net, view = MLP(input_size=4, hidden_size=8, num_classes=3).load(0), array_view(rows)
    for wanted in (True, False):  # with the logits for a strategy, and without
        view.wants_logits = wanted
        apart = [grads_of(net, view, part) for part in (rows[:3], rows[3:])]
        alike(grads_of(net, view, rows, share=0.5), mixed(*apart, 0.5))


def test_a_step_without_rehearsed_rows_is_as_it_was():
    model, view = tiny_model(), task_view([ask("1 +", LONG), ask("2 +", SHORT)])
    plain, shared = (grads_of(model, view, view.examples, share=share) for share in (None, 0.5))
    assert plain[0] == shared[0]
    assert all(plain[1][name].equal(shared[1][name]) for name in plain[1])


def test_the_strategy_says_the_share():
    """A step of plain SGD on one new row and one stored one."""
    settings = {"optim": "sgd", "weight_decay": 0.0, "max_grad_norm": 0.0, "learning_rate": 1.0}
    new, old = ask("1 +", LONG), ask("0 -", SHORT, source="memory")
    start = tiny_model()
    before = {name: p.detach().clone() for name, p in start.named_parameters()}
    _, wanted = mixed(*(grads_of(start, task_view([new]), rows) for rows in ([new], [old])), 0.25)
    replay = Replay(Replay.Config(replay_loss_share=0.25))
    replay.store.items = [(0, replace(old, source="task"))]
    after = dict(train(start, task_view([new], index=1), replay, **settings).named_parameters())
    for name, grad in wanted.items():
        assert torch.allclose(before[name] - after[name], grad, rtol=0, atol=1e-5), name


def test_an_objective_without_a_mean_over_targets_is_refused():
    replay = {"replay": {"replay_loss_share": 0.5}}
    tiny_run_config(strategies=replay)
    with pytest.raises(
        UserError, match=r"strategies\.replay: needs token_mean, which objective dpo does not give; use "
    ):
        tiny_run_config(
            strategies=replay, objective={"name": "dpo"}, stream={"name": "cl_toolkit.check.runs:EasyPairs"}
        )
    with pytest.raises(UserError, match=r"replay_loss_share: expected null or a number in \[0, 1\], got 2"):
        tiny_run_config(strategies={"replay": {"replay_loss_share": 2}})


# answers that the model writes itself -------------------------------------------------------------------------------------

SELF = {"source": "self", "replay_fraction": 0.5, "max_completion_length": 6}


def with_store(past, **settings):
    """Replay of the model's own answers, with one past task stored."""
    replay = Replay(Replay.Config(**{**SELF, **settings}))
    replay.store.items = [(0, example) for example in past]
    return replay


def spoken(seed=0):
    """A tiny model in whose answers ends are not rare, so that some do end."""
    model = tiny_model(seed)
    with torch.no_grad():
        model.get_output_embeddings().weight[next(iter(byte_codec().stops))] *= 3
    return model


PAST = [ask(f"past {i}", f"answer {i}") for i in range(8)]
NEW = [ask(f"new {i}", "x") for i in range(8)]


def rehearsed(replay, view, model=None):
    """Each batch's rehearsed examples."""
    batches = replay.batches(model or spoken(), view, view.batches())
    return [[e for e in batch if e.source == "memory"] for batch in batches]


def test_it_rehearses_what_the_model_says_to_the_old_questions():
    """The very answers that the sampler gives; of those that ended each comes once per epoch, and the fraction stays."""
    model, view = spoken(), task_view(NEW, index=1, epochs=2)
    replay = with_store(PAST)
    seen = rehearsed(replay, view, model)
    said = {}
    for example in PAST:
        (ids,) = sampled(model, task_view(NEW, index=1), [example], 1, 6, 1.0, "replay")[0]
        if view.codec.ended(ids):
            said[example.id] = view.codec.said(ids)
    assert 0 < len(said) < len(PAST), "some end and some do not"
    assert {e.id: e.target for batch in seen for e in batch} == said
    assert [len(batch) for batch in seen] == [4, 4, 4, 4]
    told = replay.told()
    assert (told["written"], told["cut"]) == (len(said), len(PAST) - len(said))
    assert [example.target for _, example in replay.store.items] == [e.target for e in PAST], "the store keeps its own"


def test_what_it_writes_changes_no_rollout_of_the_objective():
    view = task_view(NEW, index=1)
    rehearsed(with_store(PAST), view)
    assert view.rollouts == 0


def test_a_model_that_never_ends_rehearses_nothing():
    model, view = tiny_model(), task_view(NEW, index=1)
    with torch.no_grad():
        model.get_output_embeddings().weight[list(byte_codec().stops)] = 0
        model.get_output_embeddings().weight *= 100
    replay = with_store(PAST, max_completion_length=1)
    assert [len(batch) for batch in rehearsed(replay, view, model)] == [0, 0]
    assert replay.told() == {"cut": 8, "written": 0, "exact": 0, "near": None, "nearest": None}


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_write_their_shares(rank):
    """Each of two asks for its half of the answers, and both rehearse what one process does."""
    said = []

    class Processes:
        def __init__(self, own, gather):
            self.own, self.gather = own, gather

    def note(items):
        said.extend(items)
        return items

    alone = rehearsed(with_store(PAST), task_view(NEW, index=1, processes=Processes(list, note)))
    mine = slice(4 * rank, 4 * rank + 4)

    def gathered(items):
        assert items == said[mine]
        return said

    half = task_view(NEW, index=1, processes=Processes(lambda items: items[mine], gathered))
    assert rehearsed(with_store(PAST), half) == alone


def test_a_run_goes_on_alike_and_notes_what_was_written(tmp_path):
    from tiny import stop_after_a_task

    from cl_toolkit.runs.run import Run

    settings = {"strategies": {"replay": SELF}, "objective": {"name": "sft"}}
    whole = cl.run(tiny_config(**settings), out=tmp_path / "whole")
    stop_after_a_task(Run(tiny_run_config(**settings), tmp_path / "stopped", None))
    resumed = cl.run(tiny_config(**settings), out=tmp_path / "stopped")
    assert comparable(resumed) == comparable(whole)
    first, second = (stage["told"] for stage in whole["adapters"])
    assert first == {}
    assert second["replay"]["written"] + second["replay"]["cut"] == 12
    assert whole["cost"]["rollouts"] == 12


CLASSIFIER = {"name": "bert-base-uncased", "head": "classes"}
REFUSED = [
    (
        {**tiny_config(), "model": CLASSIFIER},
        "needs a model that gives generates, as it is set; model bert-base-uncased",
    ),
    ({"model": {"name": "mlp"}, "stream": {"name": "digits"}}, "learns from conversations; stream digits gives arrays"),
    (tiny_config(objective={"name": "rft"}), "needs true_targets, which objective rft does not give"),
    (
        tiny_config(stream={"name": "cl_toolkit.check.runs:EasyDocuments"}, objective={"name": "lm"}),
        "learns from conversations; stream",
    ),
]


@pytest.mark.parametrize(("plain", "said"), REFUSED)
def test_what_cannot_write_or_learn_from_it_is_refused(plain, said):
    with pytest.raises(UserError, match=rf"strategies\.replay: {said}"):
        load_run({**plain, "strategies": {"replay": SELF}})


def test_settings_of_what_is_written_ask_for_the_source():
    with pytest.raises(UserError, match=r"temperature: 0\.5 does nothing with source all: nothing is written"):
        tiny_run_config(strategies={"replay": {"temperature": 0.5}})


def test_general_examples_alone_want_an_anchor():
    for name in ("replay", "surprise_replay", "power_law"):
        with pytest.raises(
            UserError, match=rf"stream.anchors: strategies.{name} does nothing without them, as it is set"
        ):
            tiny_run_config(strategies={name: {"source": "general"}})
    assert tiny_run_config(strategies={"replay": {"source": "general", "replay_fraction": 0}})
    assert tiny_run_config(strategies={"replay": {"source": "general"}}, stream={"anchors": ["vowels"]})


# copies ---------------------------------------------------------------------------------------------------------------------


def test_copies_by_hand():
    """Of two characters and their marks: "ab" and "cd" share the marks alone, 2 of 9 sequences (4 of one, 3 of two, 2 of three
    characters), so that they are 1 - 2/9 apart. "abab" is nearer to "ab" than that, and "ab" is the same."""
    told = copied(["ab", "abab"], ["ab", "cd"])
    assert (told["written"], told["exact"], told["near"]) == (2, 1, 1.0)
    apart = neighbours(["ab"], ["ab", "cd"])
    assert [apart[0][0], apart[1][0], apart[2][0]] == pytest.approx([0, 0, 7 / 9], abs=1e-6)
    # \x02 a b a b \x03: singles 2 marks, 2 a, 2 b; pairs <a, 2 ab, ba, b>; triples <ab, aba, bab, ab>
    dot, length = 2 + 2 + 2 + 1 + 2 + 1 + 1 + 1, (1 + 1 + 4 + 4) + (1 + 4 + 1 + 1) + 4
    assert told["nearest"]["distance"] == pytest.approx(1 - dot / (9 * length) ** 0.5, abs=1e-6)
    assert (told["nearest"]["written"], told["nearest"]["known"]) == ("abab", "ab")


def test_what_is_said_twice_is_nobodys_copy():
    """An answer that two examples have is no memory of one of them, though it is exact; a new one is far from all."""
    told = copied(["yes", "zqzq"], ["yes", "yes", "no"])
    assert (told["exact"], told["near"]) == (1, 0.0)


def test_with_one_answer_known_there_is_no_other():
    assert copied(["a"], ["b"]) == {"written": 1, "exact": 0, "near": None, "nearest": None}
