"""Streams of arrays: digits, nets, class-incremental scores, encoders of text, and what is refused."""

import random
from dataclasses import replace

import pytest
import torch
from longer import AT_EACH_HOOK, long_but
from pieces import Evaluator, array_view, contrastive, points
from tiny import Trajectory, stopped_and_resumed, tiny_config, tiny_run_config

from cl_toolkit import UserError
from cl_toolkit.benchmarks.digits import Digits
from cl_toolkit.data.store import ExampleStore, example_from_plain, example_to_plain
from cl_toolkit.models.arrays import MLP, ArrayCodec, SmallCNN, SmallViT
from cl_toolkit.registry import STRATEGIES
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import Run
from cl_toolkit.types import IGNORE, Example, Task

MLP8 = {"name": "mlp", "hidden_size": 8, "num_hidden_layers": 1}
NETS = {
    "mlp": MLP8,
    "small-vit": {"name": "small-vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
}
SUPCON = {"name": "supcon", "projection_size": 8, "hidden_size": 16}
DIGITS = {"name": "digits", "tasks": ["digits_0_1", "digits_2_3", "digits_4_5"], "limit": {"train": 40}}


def digits(net="mlp", **changes):
    """A small run on digits."""
    stream = {**DIGITS, **changes.pop("stream", {})}
    plain = tiny_config(model=MLP8, **changes)
    plain["stream"] = stream
    plain["model"] = NETS[net]
    return plain


def run(folder, **changes):
    from cl_toolkit.study.cells import load_run

    return Trajectory(Run(load_run(digits(**changes)), folder, None))


# the stream and the nets


@pytest.mark.parametrize(("protocol", "tasks", "classes"), [("split", 5, 2), ("permuted", 5, 10)])
def test_digits_has_disjoint_splits_of_all_images(protocol, tasks, classes):
    stream = Digits(Digits.Config(protocol=protocol))
    found = stream.tasks(stream.names())
    assert len(found) == tasks
    for task in found:
        ids = [e.id for split in (task.train, task.valid, task.test) for e in split]
        assert len(ids) == len(set(ids))
        assert {e.target for e in task.test} == set(task.test[0].choices)
        assert len(task.test[0].choices) == classes
        assert {len(e.choices) for e in task.test} == {classes}
        assert len(task.valid) < len(task.test) < len(task.train)
    if protocol == "split":
        assert sum(len(t.train) + len(t.valid) + len(t.test) for t in found) == 1797


def test_a_permutation_moves_the_same_pixels_in_every_image():
    stream = Digits(Digits.Config(protocol="permuted"))
    plain, moved = stream.tasks(["permutation_0", "permutation_1"])
    order = random.Random("0/digits/1").sample(range(64), 64)
    for before, after in zip(plain.train[:20], moved.train[:20], strict=True):
        assert torch.equal(after.x.flatten(), before.x.flatten()[order])
    assert not torch.equal(plain.train[0].x, moved.train[0].x)


@pytest.mark.parametrize("settings", [MLP(), SmallCNN(), SmallViT()])
def test_nets_come_from_their_seed(settings):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b, other = settings.load(1), settings.load(1), settings.load(2)
    assert torch.equal(torch.random.get_rng_state(), before)
    out = a(torch.ones(2, 1, 8, 8))
    assert out.logits.shape == (2, 10)
    assert out.features.shape == (2, a.feature_size)
    same = [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(next(a.parameters()), next(other.parameters()))


def test_arrays_survive_the_store():
    store = ExampleStore(None, "reservoir")
    store.add(0, points(3), torch.Generator())
    assert store.nbytes() == 3 * (4 * 4 + 1)  # four numbers and the class in one letter
    for example in points(3):
        again = example_from_plain(example_to_plain(example))
        assert torch.equal(again.x, example.x)
        assert (again.id, again.y, again.target) == (example.id, example.y, example.target)


# scores


class Fixed(torch.nn.Module):
    """Answers with fixed logits."""

    classes = ("0", "1", "2")

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.3, 0.2, 0.9]))

    def forward(self, x):
        from cl_toolkit.models.nets import NetOutput

        return NetOutput(logits=self.weight.expand(len(x), 3), features=x)


def test_targets_have_the_classes_of_rows_without_a_target():
    examples = [Example(id=str(i), x=torch.zeros(1, 2, 2), y=i, target=str(i)) for i in range(3)]
    codec = ArrayCodec()
    assert codec.batch(examples).targets is None
    batch = codec.batch([examples[0], replace(examples[1], source="aside"), replace(examples[2], source="filler")])
    assert batch.labels.tolist() == [0, IGNORE, IGNORE]
    assert batch.targets.tolist() == [0, 1, 2]


def test_the_answer_is_the_largest_output_among_what_is_allowed():
    from dataclasses import replace

    from cl_toolkit.models.arrays import ArrayCodec

    examples = tuple(replace(e, choices=("0", "1")) for e in points(2))
    task = Task(name="t", train=(), test=examples, scorer="class_accuracy")
    evaluator = Evaluator(ArrayCodec(), split="test", batch_size=8, max_new_tokens=1)
    assert [s.answer for s in evaluator(Fixed(), [task])["t"]] == ["0", "0"]  # task-incremental
    assert [s.score for s in evaluator(Fixed(), [task])["t"]] == [1.0, 0.0]
    assert [s.chance for s in evaluator(Fixed(), [task])["t"]] == [1 / 2, 1 / 2]
    evaluator.choices = ("0", "1", "2")
    assert [s.chance for s in evaluator(Fixed(), [task])["t"]] == [1 / 3, 1 / 3]
    assert [s.answer for s in evaluator(Fixed(), [task])["t"]] == ["2", "2"]  # class-incremental
    evaluator.choices = ("7",)
    assert [s.answer for s in evaluator(Fixed(), [task])["t"]] == ["", ""]


@pytest.mark.parametrize("objective", [{"name": "sft"}, SUPCON])
def test_class_incremental_chooses_among_all_classes_so_far(objective, tmp_path):
    import json

    class_run = run(tmp_path / "class", objective=objective, stream={"scenario": "class"})
    task_run = run(tmp_path / "task", objective=objective)
    assert class_run.losses == task_run.losses  # how it is scored does not change how it is trained
    assert [["not_evaluated" if c == "not_evaluated" else "x" for c in row] for row in class_run.record["matrix"]] == [
        ["not_evaluated"] * 3,
        ["x", "not_evaluated", "not_evaluated"],
        ["x", "x", "not_evaluated"],
        ["x", "x", "x"],
    ]
    said = [json.loads(line) for line in (tmp_path / "class/answers/row-3.jsonl").read_text().splitlines()]
    assert {row["answer"] for row in said} - {"0", "1"}  # no longer bound to the task's own classes
    own = [json.loads(line) for line in (tmp_path / "task/answers/row-3.jsonl").read_text().splitlines()]
    for row in own:
        assert row["answer"] in row["task"].split("_")[1:]
    for mine, theirs in zip(class_run.record["matrix"][3], task_run.record["matrix"][3], strict=True):
        assert mine <= theirs
    assert class_run.record["metrics"]["fwt"] is None
    assert class_run.record["metrics"]["acc"] is not None


def test_class_incremental_with_a_language_model(tmp_path):
    import json

    for task, labels in (("colours", ["red", "blue"]), ("sizes", ["big", "small"])):
        (tmp_path / task).mkdir()
        for split in ("train", "valid", "test"):
            rows = [
                {"task": task, "instruction": "", "input": f"{w} {split}", "target": w, "choices": labels}
                for w in labels
            ]
            (tmp_path / task / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    stream = {"name": "jsonl", "path": str(tmp_path), "tasks": ["colours", "sizes"], "scorer": "choices"}
    plain = tiny_config()
    plain["stream"] = {**stream, "scenario": "class"}
    from cl_toolkit.study.cells import load_run

    prepared = Run(load_run(plain), tmp_path / "out", None)
    assert prepared.stream.allowed(1) == ("red", "blue")
    assert prepared.stream.allowed(2) == ("red", "blue", "big", "small")
    record = prepared.execute()
    assert record["matrix"][1][1] == "not_evaluated"
    assert record["matrix"][2][0] in (0.0, 0.5, 1.0)


# strategies on arrays


ON_ARRAYS = [n for n in STRATEGIES if "arrays" in (STRATEGIES.get(n, "test").tags.inputs or ("arrays",))]
ON_NETS = [n for n in ON_ARRAYS if None in (t := STRATEGIES.get(n, "test").tags).life_cycles and not t.validates]


def net_for(name):
    """A perceptron; a transformer where a perceptron does not give what a strategy needs."""
    return "mlp" if STRATEGIES.get(name, "test").tags.of_model <= MLP.gives else "small-vit"


ASKED_OF = list(dict.fromkeys((name, net) for name in ON_NETS for net in (net_for(name), "small-vit")))
QUICK = [(name, net_for(name)) for name in (*AT_EACH_HOOK, "prototype_distill", "coda_prompt")]


@pytest.mark.parametrize(("name", "net"), long_but(QUICK, ASKED_OF))
def test_a_strategy_works_on_arrays_and_resumes(name, net, tmp_path):
    objective = SUPCON if name == "prototype_distill" else {"name": "sft"}
    stream = {"tasks": ["digits_4_5", "digits_2_3", "digits_0_1"]}
    whole = run(tmp_path / "whole", net=net, strategies={name: {}}, objective=objective, stream=stream)
    assert whole != run(tmp_path / "plain", net=net, objective=objective, stream=stream)

    from cl_toolkit.study.cells import load_run

    config = load_run(digits(net=net, strategies={name: {}}, objective=objective, stream=stream))
    again = stopped_and_resumed(config, tmp_path / "stopped", 1)
    assert comparable(again.record) == comparable(whole.record)
    assert again.weights == whole.weights


def test_a_net_begins_with_the_weights_of_a_file_but_for_its_classes(tmp_path):
    from safetensors.torch import save_file

    first, path = SmallViT(hidden_size=8, num_classes=3).load(5), tmp_path / "first.safetensors"
    save_file(first.state_dict(), path)
    kind = SmallViT(hidden_size=8, num_classes=7, start=str(path))
    net, drawn = kind.load(1), SmallViT(hidden_size=8, num_classes=7).load(1)
    given = first.state_dict()
    assert all(torch.equal(w, given[n]) for n, w in net.state_dict().items() if not n.startswith("classifier"))
    assert torch.equal(net.classifier.weight, drawn.classifier.weight)
    assert kind.identity().keys() == {"start"}
    save_file(drawn.state_dict(), tmp_path / "other.safetensors")
    assert SmallViT(start=str(tmp_path / "other.safetensors")).identity() != kind.identity()
    assert {p.device.type for p in kind.skeleton().parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden_size": 16}, r"model\.start: .*cls_token: expected weights \(1, 1, 16\), got \(1, 1, 8\)"),
        ({"num_hidden_layers": 5, "hidden_size": 8}, r"model\.start: .*layers\.4.*: expected weights .*, got none"),
        ({"num_hidden_layers": 3, "hidden_size": 8}, r"model\.start: .*layers\.3.*: is of another net"),
        ({"start": "gone"}, r"model\.start: gone: cannot be read"),
        ({"start": __file__}, r"model\.start: .*test_arrays\.py: cannot be read"),
    ],
)
def test_weights_of_another_net_are_refused_before_a_run(settings, words, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "small.safetensors"
    save_file(SmallViT(hidden_size=8).load(0).state_dict(), path)
    with pytest.raises(UserError, match=words) as refused:
        SmallViT(**{"start": str(path), **settings}).check(None, False)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("start", ["gone", "."])
def test_a_start_that_is_not_there_is_told_in_a_line_before_its_content_is_asked(start):
    with pytest.raises(UserError, match=r"model\.start: .*: cannot be read: \w+"):
        SmallViT(start=start).identity()


def test_lwf_keeps_past_classes_alone(tmp_path):
    found = run(tmp_path, strategies={"lwf": {}})
    assert found.run.strategy.classes == [0, 1, 2, 3, 4, 5]
    assert found.losses[4]["lwf"] == 0.0  # the first step of the second task
    assert max(terms.get("lwf", 0) for terms in found.losses) > 0


# refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"model": {"name": "tiny-lm"}},
            "stream.name: digits gives arrays, model tiny-lm takes conversations and documents; use mlp or "
            "small-cnn or small-vit",
        ),
        (
            {"stream": {"name": "skills"}},
            "stream.name: skills gives conversations, model mlp takes arrays; use tiny-lm, or another stream",
        ),
        ({"objective": {"name": "rft"}}, "objective rft: learns from conversations; stream digits gives arrays"),
        ({"strategies": ["answer_styles"]}, "strategies.answer_styles: learns from conversations"),
        ({"model": {**MLP8, "adapter": {"r": 2}}}, "model.adapter: is for language models and text encoders"),
        (
            {"strategies": ["prototype_distill"]},
            "strategies.prototype_distill: needs features and prototypes, which objective sft does not give; use supcon",
        ),
        (
            {"objective": SUPCON, "strategies": ["ewc"]},
            "strategies.ewc: needs logits, which objective supcon does not give; use sft or lm or rft",
        ),
        (
            {"objective": SUPCON, "strategies": ["lwf"]},
            "strategies.lwf: needs logits, which objective supcon does not give; use sft or lm or rft",
        ),
        ({"objective": SUPCON, "train": {"per_device_train_batch_size": 4}}, "looks at a whole step at once"),
        ({"stream": {**DIGITS, "scenario": "class", "view": "independent"}}, "stream.scenario: class"),
    ],
)
def test_what_cannot_work_is_refused(change, words):
    from cl_toolkit.study.cells import load_run

    plain = digits()
    for key, value in change.items():
        plain[key] = value
    with pytest.raises(UserError, match=words):
        load_run(plain)


def test_several_processes_are_refused(monkeypatch):
    from cl_toolkit.study.cells import load_run

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="supcon looks at a whole step at once and cannot be cut; use one process"):
        load_run(digits(objective=SUPCON))


def test_class_incremental_needs_closed_answers(tmp_path):
    with pytest.raises(UserError, match="scenario: class: needs choices in every example"):
        Run(tiny_run_config(stream={"scenario": "class"}), tmp_path, None)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "mlp", "num_classes": 4}, "model.num_classes: expected more than [45]"),
        ({"name": "mlp", "input_size": 10}, "model.input_size: expected 64"),
        ({"name": "small-cnn", "channels": 3}, r"model.channels: 3: expected images of shape \(3, H, W\)"),
        (
            {"name": "small-vit", "image_size": 28},
            r"model.image_size: 28 with 1 channels: expected images of shape \(1, 28, 28\)",
        ),
        ({"name": "small-vit", "num_classes": 4}, "model.num_classes: expected more than [45]"),
    ],
)
def test_arrays_must_fit_the_net(model, words):
    from cl_toolkit.data.streams import build_stream
    from cl_toolkit.study.cells import load_run

    plain = digits()
    plain["model"] = model
    with pytest.raises(UserError, match=words):
        build_stream(load_run(plain))


def test_views_of_text_are_refused(tmp_path):
    config = tiny_run_config(objective={**SUPCON, "augment": "shift"})
    with pytest.raises(UserError, match=r"objective.augment: shift is for images; set it to none"):
        Run(config, tmp_path, None)


def test_anchors_are_contrasted_scored_and_never_learned(tmp_path):
    stream = {"tasks": ["digits_0_1", "digits_2_3"], "anchors": ["digits_4_5"], "scenario": "class"}
    supcon = run(tmp_path / "a", objective=SUPCON, strategies={"replay": {}, "prototype_distill": {}}, stream=stream)
    assert supcon.run.model.classes == ["0", "1", "2", "3"]
    assert supcon.run.strategy.parts[1].past == [["0", "1"], ["2", "3"]]
    plain = run(tmp_path / "b", strategies={"replay": {}}, stream=stream, train={"max_steps": 60})
    assert plain.run.stream.allowed(1) == ("4", "5", "0", "1")
    assert max(row[0] for row in plain.record["anchor_matrix"]) > 0


def test_what_is_encoded_aside_does_not_change_the_views_of_training():
    supcon = contrastive(augment="noise")
    model = supcon.equip(MLP(hidden_size=8).load(0), 0)
    views = []
    for aside in (False, True):
        view = array_view(points(6, size=(1, 8, 8)), supcon)
        supcon.before_task(model, view)
        if aside:
            view.encode(view.examples, model)
        views.append(supcon.encode(model, view, view.examples).inputs["x"])
    assert torch.equal(*views)


def test_an_image_is_drawn():
    from cl_toolkit.models.arrays import ArrayCodec

    stream = Digits(Digits.Config())
    example = stream.tasks(["digits_0_1"])[0].train[0]
    text = ArrayCodec().shown(example)
    assert text.endswith("⟦0⟧")
    assert len(text.splitlines()) == 9
    assert "@@" in text
