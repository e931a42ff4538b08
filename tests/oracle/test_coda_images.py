"""CODA-Prompt before encoders: by hand in one block of a vision transformer, old components, [CLS] as query, texts, laws."""

from unittest import mock

import pytest
import torch
from pieces import array_view, configured, equal, points, train, weights_of
from tiny import tiny_config

from cl_toolkit import UserError
from cl_toolkit.check import runs
from cl_toolkit.check.law import judge
from cl_toolkit.check.laws import LAWS
from cl_toolkit.check.methods import Method
from cl_toolkit.check.runs import TASKS, EasySkills
from cl_toolkit.models.arrays import MLP, SmallViT
from cl_toolkit.models.attended import encoder_of
from cl_toolkit.models.prompted import Prompter, prompted, size_of
from cl_toolkit.models.teacher import first_groups
from cl_toolkit.strategies.coda_prompt import CODAPrompt, mixed
from cl_toolkit.strategies.objectives.sft import SFT
from cl_toolkit.study.cells import load_run
from cl_toolkit.types import Example, Task

VIT = SmallViT(image_size=4, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_classes=3)
SMALL = {"components": 2, "length": 4}


def coda(**settings):
    return CODAPrompt(configured(CODAPrompt, **{**SMALL, **settings}))


def images():
    return points(12, size=(1, 4, 4))


def vit():
    """A net from weights that are large enough for answers to differ."""
    net = VIT.load(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(12 if weight.dim() > 1 else 1)
    return net.eval()


def learned(number, strategy=None, objective=None):
    """The net after so many tasks."""
    net, strategy = vit(), strategy or coda()
    for index in range(number):
        view = array_view(images(), objective, index=index, max_steps=4)
        net = train(net, view, strategy, learning_rate=3e-1)
    return net.eval()


def pixels():
    return torch.stack([example.x for example in images()])


def test_a_block_sees_the_mixed_prompt_by_hand():
    """One block: its attention over keys and values with p(x) in front of them, p(x) mixed by the [CLS] of the plain net."""
    net = (
        SmallViT(image_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_classes=3).load(0).eval()
    )
    x, draw = pixels(), torch.Generator().manual_seed(1)
    sizes = {"keys": 8, "attention": 8, "prompts": 4 * 8}
    weights = {name: torch.randn(1, 3, size, generator=draw) for name, size in sizes.items()}
    with torch.no_grad():
        query = net(x).features
        made = mixed(query, *weights.values())[0].unflatten(1, (4, 2, 4))  # two keys, two values, of two heads
        encoder = net.trunk.encoder
        seen, heads = {}, {}
        hooks = [
            m.register_forward_hook(lambda m, given, out, n=n: seen.update({n: out}))
            for n, m in encoder.named_modules()
            if n.split(".")[-1] in ("q_proj", "k_proj", "v_proj", "query", "key", "value")
        ]
        last = next(m for n, m in encoder.named_modules() if n.endswith(("o_proj", "attention.output.dense")))
        hooks.append(last.register_forward_hook(lambda m, given, out: heads.update(out=given[0])))
        prompter = Prompter(mixed, 2)
        prompter.add(weights)
        prompted(net, prompter)(x=x)
        for hook in hooks:
            hook.remove()
    q, k, v = (part.unflatten(-1, (2, 4)) for part in seen.values())
    k, v = torch.cat([made[:, :2], k], 1), torch.cat([made[:, 2:], v], 1)
    shares = (torch.einsum("bthd,bshd->bhts", q, k) / 2).softmax(-1)  # sqrt(4)
    wanted = torch.einsum("bhts,bshd->bthd", shares, v).flatten(2)
    assert torch.allclose(heads["out"], wanted, atol=1e-5)


def test_old_components_the_encoder_and_past_outputs_stay_and_new_ones_move():
    first, start, after = weights_of(learned(1)), weights_of(vit()), weights_of(net := learned(2))
    encoder = {f"trunk.encoder.{name}" for name, _ in encoder_of(net).named_parameters()}
    assert encoder == {name for name in start if not name.startswith("classifier")}
    assert equal({name: after[name] for name in encoder}, {name: start[name] for name in encoder})
    old = {name for name in first if name.startswith("prompter")}
    assert len(old) == 3
    assert equal({name: after[name] for name in old}, {name: first[name] for name in old})
    trained = {name for name, weight in net.named_parameters() if weight.requires_grad}
    assert trained == {"classifier.weight", "classifier.bias"} | {name for name in after if name.endswith("_1")}
    assert not torch.equal(after["classifier.weight"], first["classifier.weight"])
    built = weights_of(coda().build(learned(1), 1))
    assert not any(torch.equal(after[name], built[name]) for name in after if name.endswith("_1"))


def test_without_groups_it_is_the_plain_net_and_each_group_says_something():
    net, x = learned(2), pixels()
    with torch.no_grad():
        said = net(x=x).logits
        with first_groups(net, 1):
            fewer = net(x=x).logits
        with first_groups(net, 0):
            bare = net(x=x)
        plain = vit()(x)
    assert torch.equal(bare.features, plain.features)
    assert (said - fewer).abs().max() > 1e-3
    assert (fewer - bare.logits).abs().max() > 1e-3


def test_sequential_prompts_are_one_group_that_goes_on():
    once, twice = (learned(number, coda(grows=False)) for number in (1, 2))
    assert once.prompter.groups == twice.prompter.groups == 1
    assert weights_of(once).keys() == weights_of(twice).keys()
    moved = [n for n, w in weights_of(twice).items() if not torch.equal(w, weights_of(once)[n])]
    assert {name for name in moved if name.startswith("prompter")} == {
        "prompter.keys_0",
        "prompter.attention_0",
        "prompter.prompts_0",
    }
    assert equal(weights_of(once), weights_of(learned(1)))  # in the first task there is nothing to keep


def test_a_row_compares_its_own_choices_alone():
    objective = SFT(configured(SFT, among="choices"))
    rows = [Example(id=str(y), x=torch.ones(1, 4, 4), y=y, target=str(y), choices=("0", "2")) for y in (0, 2)]
    view = array_view(rows, objective, max_steps=3)
    net = vit()
    batch = objective.encode(net, view, rows)
    batch.total = batch.counts()
    with torch.no_grad():
        logits = net(batch.inputs["x"]).logits[:, [0, 2]]
        found = objective.forward(net, batch)
    assert torch.allclose(found.loss, torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])))
    assert torch.equal(found.logits, net(batch.inputs["x"]).logits)  # who reads them sees all of them
    before = weights_of(net)
    after = weights_of(train(net, view, learning_rate=1e-2))
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.equal(after[name][1], before[name][1])
        assert not torch.equal(after[name][[0, 2]], before[name][[0, 2]])


def bert(**changes):
    """A small encoder of texts with a head over three classes."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 30,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "initializer_range": 0.5,
    }
    model = BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=2, num_labels=3, **changes))
    model.classes = ["0", "1", "2"]
    return model.eval()


def test_padding_changes_nothing_and_a_text_is_asked_by_its_first_token():
    model = coda().build(bert(), 0)
    assert size_of(model) == (2, 8, 8)
    asked = []
    model.prompter.register_forward_pre_hook(lambda module, given: asked.append(given[0]))
    ids = torch.tensor([[3, 4, 5, 0, 0], [6, 7, 8, 9, 10]])
    with torch.no_grad():
        alone = model(input_ids=ids[:1, :3], attention_mask=torch.ones(1, 3, dtype=torch.long)).logits
        among = model(input_ids=ids, attention_mask=(ids > 0).long()).logits
        plain = bert().bert(input_ids=ids, attention_mask=(ids > 0).long()).last_hidden_state[:, 0]
        bare = bert()(input_ids=ids, attention_mask=(ids > 0).long()).logits
    assert torch.allclose(alone, among[:1], atol=1e-6)
    assert torch.allclose(asked[-1], plain, atol=1e-6)
    assert (among - bare).abs().max() > 1e-4
    free = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert free == {"classifier.weight", "classifier.bias", *(n for n in weights_of(model) if n.startswith("prompter"))}


def test_models_without_such_attention_are_refused_in_one_line():
    net = MLP(input_size=16, num_classes=3).load(0)
    with pytest.raises(UserError, match="Net: is no transformer, and has no keys and values"):
        coda().build(net, 0)
    with pytest.raises(UserError, match="BertModel: reads from left to right"):
        coda().build(bert(is_decoder=True), 0)
    plain = {"stream": {"name": "digits"}, "strategies": {"coda_prompt": {}}}
    with pytest.raises(
        UserError, match=r"coda_prompt: needs a model that gives prefixes, .* model mlp gives"
    ) as refused:
        load_run({**tiny_config(), **plain, "model": {"name": "mlp"}})
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=r"objective.among: choices: is for models that give classes"):
        SFT(configured(SFT, among="choices")).equip(torch.nn.Linear(1, 1), 0)
    with pytest.raises(UserError, match=r"components: expected at most 8, of which the model is wide enough, got 9"):
        coda(components=9).build(vit(), 0)


class EasyImages(EasySkills):
    """The tasks by which strategies are checked, as noise of two classes each."""

    inputs = "arrays"

    def tasks(self, names, prompt=None, repeat=False):
        found = []
        for number, task in enumerate(super().tasks(names, prompt, repeat)):
            first, splits = 2 * TASKS.index(task.name) if task.name in TASKS else 0, {}
            choices = (str(first), str(first + 1))
            for split in ("train", "valid", "test"):
                draw = torch.Generator().manual_seed(number)
                splits[split] = tuple(
                    Example(
                        id=e.id, x=torch.randn(1, 8, 8, generator=draw) + i % 2, y=first + i % 2,
                        target=choices[i % 2], choices=choices,
                    )
                    for i, e in enumerate(getattr(task, split))
                )  # fmt: skip
            found.append(Task(name=task.name, scorer="class_accuracy", **splits))
        return found


class OnImages(Method):
    """A strategy in runs of a vision transformer."""

    def config(self, settings=None, **changes):
        stream = {"name": f"{__name__}:EasyImages", **changes.pop("stream", {})}
        return super().config(settings, **{**changes, "stream": stream})


@pytest.fixture(scope="module")
def subject():
    small = {"name": "small-vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    found = OnImages("coda_prompt", CODAPrompt, {"components": 2})
    with mock.patch.object(runs, "TINY", small):
        yield found
    found.close()


@pytest.mark.parametrize("number", [number for number in LAWS if number not in (1, 12)])  # an exception; of adapters
def test_laws_hold_on_images(subject, number):
    result = judge(LAWS[number], subject)
    assert result.passed is not False, result.seen
