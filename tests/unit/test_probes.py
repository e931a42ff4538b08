"""Probes: they ask, one pass answers, and nobody can tell from the training that they were there."""

import math

import pytest
import torch
from pieces import ask, byte_codec, tiny_model
from tiny import tiny_config, trajectory

import cl_toolkit as cl
from cl_toolkit import UserError
from cl_toolkit.measure.answers import Answers
from cl_toolkit.measure.exam import Exam
from cl_toolkit.measure.probe import Moment, Probe, due, look
from cl_toolkit.measure.probes.drift import Drift, kl
from cl_toolkit.models.requests import Answer, Logprobs, Reply, Sample
from cl_toolkit.types import Task

EXAMPLES = tuple(ask(f"q {i}", "ab"[i % 2], str(i), choices=("a", "b")) for i in range(6))
TASK = Task(name="t", train=(), test=EXAMPLES)


def moment(kind="task_end", **changes):
    settings = {
        "task": "t",
        "row": 1,
        "step": 3,
        "examples_seen": 12,
        "tokens_seen": 30,
        "exams": {"t": Exam(TASK, EXAMPLES, 4)},
    }
    return Moment(kind=kind, **{**settings, **changes})


class Counted:
    """Answers that count what goes through the model."""

    def __init__(self, codec, batch_size=4):
        self.answers, self.asked = Answers(codec, batch_size), []
        self.inner, codec.reply = codec.reply, self.reply

    def reply(self, model, requests, rows):
        self.asked += requests
        return self.inner(model, requests, rows)


class Ask(Probe):
    """Asks for the answers to some examples, and says what they were."""

    def __init__(self, examples):
        super().__init__()
        self.examples = examples

    def due(self, moment):
        return moment.kind == "task_end"

    def ask(self, moment):
        return [Answer(e, 4) for e in self.examples]

    def read(self, moment, replies):
        return [{"id": e.id, "said": r.text} for e, r in zip(self.examples, replies, strict=True)]


def test_what_several_probes_ask_is_answered_once():
    codec = byte_codec()
    counted = Counted(codec)
    probes = {"a": Ask(EXAMPLES[:4]), "b": Ask(EXAMPLES[2:]), "c": Ask(EXAMPLES[1:2])}
    model = tiny_model()
    found = look(counted.answers, model, probes, moment())
    assert sorted(r.example.id for r in counted.asked) == list("012345")
    said = {row["id"]: row["said"] for row in found["a"] + found["b"]}
    assert [row["id"] for row in found["b"]] == list("2345")
    assert found["c"] == [{"id": "1", "said": said["1"]}]
    assert due(probes, moment()) == probes
    assert due(probes, moment("step")) == {}
    assert look(counted.answers, model, {}, moment("step")) == {}


def test_replies_come_in_the_order_of_the_requests_whatever_their_kind():
    answers, model = Answers(byte_codec(), 2), tiny_model()
    mixed = [
        Logprobs(EXAMPLES[0]), Answer(EXAMPLES[1], 4), Sample(EXAMPLES[2], 4, 7), Logprobs(EXAMPLES[0], (97, 257)),
        Answer(EXAMPLES[0], 4), Answer(EXAMPLES[1], 2),
    ]  # fmt: skip
    together = answers(model, mixed)
    for request, reply in zip(mixed, together, strict=True):
        (alone,) = answers(model, [request])
        assert reply.text == alone.text
        assert reply.tokens == alone.tokens
        assert reply.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
    assert together[0].tokens == (97, 257)
    assert together[3].logprobs == together[0].logprobs


def test_log_probabilities_are_those_of_brute_force():
    codec, model = byte_codec(), tiny_model()
    (reply,) = Answers(codec, 2)(model, [Logprobs(EXAMPLES[0])])
    prompt, answer = codec.ids(EXAMPLES[0])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
    wanted = [float(logits[len(prompt) - 1 + i].log_softmax(0)[token]) for i, token in enumerate(answer)]
    assert reply.logprobs == pytest.approx(wanted, abs=1e-5)


def test_drift_by_hand():
    start, now = [math.log(0.5), math.log(0.8)], [math.log(0.25), math.log(0.8)]
    assert kl(start, now) == pytest.approx(0.5 - 1 + math.log(2))
    assert kl(start, start) == 0.0
    probe = Drift(Drift.Config(examples=2))
    begin = moment("start", row=0)
    first, second = probe.ask(begin)
    assert {first.example.id, second.example.id} <= set("012345")
    assert list(probe.read(begin, [Reply("a", (97,), (start[0],)), Reply("b", (98,), (start[1],))])) == []
    asked = probe.ask(moment())
    assert [r.answer for r in asked] == [(97,), (98,)]
    (row,) = probe.read(moment(), [Reply(logprobs=(now[0],)), Reply(logprobs=(now[1],))])
    wanted = (0.5 - 1 + math.log(2)) / 2
    assert row["kl"] == pytest.approx(wanted)
    assert row["standard_error"] == pytest.approx(wanted)  # of two values, one of which is 0
    assert (row["n"], row["direction"], row["step"], row["row"]) == (2, "start || now", 3, 1)
    again = Drift(Drift.Config(examples=2))
    again.load_state(probe.state())
    assert again.ask(moment()) == asked


def test_drift_on_samples_is_the_kl_of_the_distributions():
    """Two models of one token: the mean over many answers against the sum over the vocabulary."""
    p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.3, 0.4, 0.3])
    drawn = torch.multinomial(p, 20_000, replacement=True, generator=torch.Generator().manual_seed(0)).tolist()
    values = [kl([math.log(p[i])], [math.log(q[i])]) for i in drawn]
    assert sum(values) / len(values) == pytest.approx(float((p * (p / q).log()).sum()), abs=0.01)
    assert min(values) >= 0


DRIFT = {"drift": {"examples": 3, "max_new_tokens": 4}}


def test_drift_in_a_run_is_zero_for_a_model_that_stands_still(tmp_path):
    still = trajectory(tmp_path / "a", train={"learning_rate": 0.0}, evaluate={"probes": DRIFT}).record
    assert [row["kl"] for row in still["probes"]["drift"]] == [0.0, 0.0]
    moved = trajectory(tmp_path / "b", evaluate={"probes": DRIFT}).record["probes"]["drift"]
    assert [row["row"] for row in moved] == [1, 2]
    assert [row["n"] for row in moved] == [6, 6]
    assert all(row["kl"] > 0 for row in moved)


def test_drift_of_a_net_is_of_its_classes(tmp_path):
    config = {
        "stream": {"name": "digits", "tasks": ["digits_0_1", "digits_2_3"]},
        "model": {"name": "mlp", "hidden_size": 8},
        "train": {"max_steps": 4},
        "evaluate": {"probes": DRIFT, "forgetting_curve": {"schedule": "off"}},
    }
    rows = cl.run(config, out=tmp_path).get("probes")["drift"]
    assert all(row["kl"] > 0 for row in rows)


def test_probes_leave_no_trace_in_the_training(tmp_path):
    """Law 5 with all of them, at all moments."""
    plain = trajectory(tmp_path / "a", strategies={"replay": {}})
    many = {f"{__file__}:{cls}": {} for cls in ("Everything", "Again")}
    curve = {"schedule": "linear", "every": 1, "examples": 4}
    watched = trajectory(
        tmp_path / "b", strategies={"replay": {}}, evaluate={"probes": {**DRIFT, **many}, "forgetting_curve": curve}
    )
    assert watched == plain
    assert watched.record["matrix"] == plain.record["matrix"]
    assert all(len(rows) > 2 for name, rows in watched.record["probes"].items() if ":" in name)
    for key in ("forwards", "extra_forwards", "backwards", "tokens"):
        assert watched.record["cost"][key] == plain.record["cost"][key]


class Everything(Probe):
    """Asks everything at every moment."""

    def due(self, moment):
        return True

    def ask(self, moment):
        examples = [e for exam in moment.exams.values() for e in exam.part(2).examples]
        return [r for e in examples for r in (Answer(e, 4), Logprobs(e), Sample(e, 4, moment.step))]

    def read(self, moment, replies):
        return [{"step": moment.step, "said": len(replies)}]


class Again(Everything):
    """The same once more."""


def test_the_rows_of_a_study(tmp_path):
    config = tiny_config(evaluate={"probes": DRIFT}, methods={"sequential": {}}, seeds=[0, 1])
    study = cl.compare(config, out=tmp_path)
    frame = study.probe("drift")
    assert list(frame["seed"]) == [0, 0, 1, 1]
    assert study.probe("nothing").empty


@pytest.mark.parametrize(
    ("probes", "words"),
    [
        ({"drif": {}}, "evaluate.probes.drif: unknown probe 'drif'; did you mean 'drift'"),
        ({"drift": {"examples": 0}}, "evaluate.probes.drift.examples: expected 1 or more, got 0"),
        ({"drift": {"exampels": 1}}, "evaluate.probes.drift.exampels: unknown key; did you mean 'examples'"),
        ({"drift": 3}, "evaluate.probes.drift: expected settings, got 3"),
    ],
)
def test_a_wrong_probe_is_refused(probes, words, tmp_path):
    with pytest.raises(UserError) as error:
        cl.run(tiny_config(evaluate={"probes": probes}), out=tmp_path)
    assert words in str(error.value)
