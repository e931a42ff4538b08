"""A vision-language model, tiny and random, made from a config: two tasks of images, and answers about them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pieces import ask, byte_codec
from tiny import Trajectory, stop_after_a_task, tiny_config
from tokenizers import AddedToken
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import cl_toolkit as cl
from cl_toolkit import UserError
from cl_toolkit.check.kinds import LAWS
from cl_toolkit.check.law import judge
from cl_toolkit.check.suites import find_subject
from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.data.facts import task_hash
from cl_toolkit.data.store import example_from_plain, example_to_plain
from cl_toolkit.models.generate import generate
from cl_toolkit.models.logits import predicted
from cl_toolkit.models.sections import Prompt
from cl_toolkit.models.tiny import byte_tokenizer
from cl_toolkit.models.vision import VisionLanguage
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import Run
from cl_toolkit.study.cells import load_run
from cl_toolkit.types import Stream, Task

IMAGE = 259
TEXT = {
    "model_type": "llama", "vocab_size": 260, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258,
    "initializer_range": 0.3,
}  # fmt: skip
EYES = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "projection_dim": 16,
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}{% if part.type == 'image' %}<image>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% if m.role == 'assistant' %}</s>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
STREAM = """
import torch
from dataclasses import dataclass
from cl_toolkit.types import Example, Message, Stream, Task


class Pictures:
    inputs = "image+text"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def __init__(self, config):
        pass

    def names(self):
        return ["side", "light"]

    def tasks(self, names, prompt=None, repeat=False):
        return [Task(name=name, **{split: examples(name, split, n) for split, n in SPLITS.items()}) for name in names]


SPLITS = {"train": 12, "valid": 2, "test": 6}
ANSWERS = {"side": ("left", "right"), "light": ("dark", "bright")}


def examples(task, split, count):
    draw = torch.Generator().manual_seed(len(split))
    made = []
    for i in range(count):
        image = torch.randint(0, 60, (3, 16, 16), generator=draw, dtype=torch.uint8)
        if task == "light":
            image += 180 * (i % 2)
        else:
            image[:, :, 8 * (i % 2) :][:, :, :8] += 180
        answer = ANSWERS[task][i % 2]
        made.append(Example(id=f"{task}-{split}-{i}", messages=(Message(role="user", content=task + "?"),), target=answer,
                            choices=ANSWERS[task], images=(image,)))
    return tuple(made)
"""


def noise(seed, *shape):
    return torch.randint(256, shape or (3, 20, 30), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


EXAMPLES = [
    ask("what?", "one", identity="a", images=(noise(0),)),
    ask("nothing", "two", identity="b"),
    ask("what?", "three", identity="c", images=(noise(1), noise(1), noise(2))),
    ask("what?", "one", identity="d", images=(noise(3),)),
]


@pytest.fixture(scope="module", params=["lines", "template"])
def place(request, tmp_path_factory):
    """A folder of the model, and the file of a stream. The same with a chat template."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    settings = {"vision_config": EYES, "text_config": TEXT, "image_token_index": IMAGE}
    model = LlavaForConditionalGeneration(LlavaConfig(**settings))
    with torch.no_grad():
        for weight in model.model.multi_modal_projector.parameters():
            weight.mul_(10)  # what it sees shall matter
    model.save_pretrained(folder / "model")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<image>", special=True)], special_tokens=True)
    tokenizer.chat_template = TEMPLATE if request.param == "template" else None
    size = {"height": 8, "width": 8}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size), tokenizer=tokenizer, patch_size=4,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=tokenizer.chat_template,
    ).save_pretrained(folder / "model")  # fmt: skip
    (folder / "pictures.py").write_text(STREAM)
    return folder


def kind(place):
    return VisionLanguage(name=str(place / "model"))


def codec(place):
    return kind(place).codec(typed(Prompt, base_layer()["prompt"], "prompt", "test"))


@pytest.mark.parametrize("number", LAWS)
def test_law(number, place):
    _, subject = find_subject(str(place / "model"), {"head": "vision"})
    assert judge(LAWS[number], subject).passed, judge(LAWS[number], subject).seen


def test_an_image_is_tokens_that_name_it(place):
    its = codec(place)
    rows = [its.ids(e)[0] for e in EXAMPLES]
    assert [sum(token < 0 for token in row) for row in rows] == [4, 0, 12, 4]
    assert [len({token for token in row if token < 0}) for row in rows] == [1, 0, 3, 1]
    assert rows[0] != rows[3]  # the same question about another picture
    assert rows[0] == its.ids(replace(EXAMPLES[0], id="e", images=(noise(0),)))[0]
    batch = its.batch(EXAMPLES)
    assert (batch.inputs["input_ids"] == IMAGE).sum(1).tolist() == [4, 0, 12, 4]
    assert batch.inputs["pixel_values"].shape == (5, 3, 8, 8)
    part = batch.rows([3, 1])
    assert torch.equal(part.inputs["pixel_values"], batch.inputs["pixel_values"][4:])
    assert "pixel_values" not in batch.rows([1]).inputs
    assert batch.rows(()).inputs["pixel_values"].shape == (1, 3, 8, 8)
    assert "image 20x30" in its.shown(EXAMPLES[0])


def test_what_spells_an_image_is_text(place):
    assert sum(token < 0 for token in codec(place).ids(ask("<image>", images=(noise(0),)))[0]) == 4


def test_tokens_of_images_are_marked_where_the_processor_marks_them(place):
    its = codec(place)

    class Marking:
        image_token = its.processor.image_token

        def __call__(self, **given):
            found = its.processor(**given)
            return {**found, "mm_token_type_ids": torch.ones_like(found["input_ids"])}

    marking = codec(place)
    marking.look(Marking(), IMAGE)
    batch = marking.batch(EXAMPLES)
    assert torch.equal(batch.inputs["mm_token_type_ids"], (batch.inputs["input_ids"] == IMAGE).long())
    assert batch.rows([1]).inputs["mm_token_type_ids"].shape == batch.rows([1]).labels.shape


def test_answers_are_those_of_whole_rows(place):
    its, model = codec(place), kind(place).load(0).eval()
    assert its.goes_on(model)
    said = generate(model, [its.ids(e)[0] for e in EXAMPLES], its, 5)
    for example, answer in zip(EXAMPLES, said, strict=True):
        given = its.batch([example], [()]).inputs
        row, wanted = given.pop("input_ids"), []
        given.pop("attention_mask")
        while len(wanted) < 5 and 257 not in wanted:
            with torch.no_grad():
                logits = model(input_ids=torch.cat([row, torch.tensor([wanted]).long()], 1), **given).logits[0, -1]
            wanted.append(int(logits.argmax()))
        assert answer == wanted
    its.goes_on = lambda model: False
    assert generate(model, [its.ids(e)[0] for e in EXAMPLES], its, 5) == said


def test_what_it_sees_matters(place):
    its, model = codec(place), kind(place).load(0).eval()
    one, other = (predicted(model, its.batch([EXAMPLES[i]])).logp for i in (0, 3))
    assert not torch.allclose(one, other, atol=1e-3)


def test_images_are_kept_and_are_a_part_of_a_task():
    kept = example_from_plain(example_to_plain(EXAMPLES[2]))
    assert all(torch.equal(a, b) for a, b in zip(kept.images, EXAMPLES[2].images, strict=True))
    one, other = (Task(name="t", train=(replace(EXAMPLES[0], images=(noise(i),)),)) for i in (0, 1))
    assert task_hash(one) != task_hash(other)


def config_of(place, head="vision", **changes):
    plain = tiny_config(**changes)
    plain["stream"] = {"name": f"{place / 'pictures.py'}:Pictures", "tasks": ["side", "light"]}
    plain["model"] = {"name": str(place / "model"), "head": head, **changes.get("model", {})}
    return load_run(plain)


@pytest.mark.parametrize("adapter", [None, {"r": 2, "between_tasks": "merge", "target_modules": ["q_proj", "v_proj"]}])
def test_two_tasks_with_replay(adapter, place, tmp_path):
    config = config_of(place, strategies={"replay": {"buffer_size": 5}}, model={"adapter": adapter})
    whole = Trajectory(Run(config, tmp_path / "whole", None))
    assert all(value == value for terms in whole.losses for value in terms.values())
    assert whole.record["cost"]["stored_examples"] == 5
    stop_after_a_task(Run(config, tmp_path / "stopped", None))
    again = Trajectory(Run(config, tmp_path / "stopped", None))
    assert again == whole
    assert comparable(again.record) == comparable(whole.record)


@pytest.mark.parametrize("strategy", ["ewc", "lwf", "agem", "der", "logit_swap", "merge", "ema"])
def test_strategies(strategy, place, tmp_path):
    found = Trajectory(Run(config_of(place, strategies={strategy: {}}), tmp_path, None))
    assert all(value == value for terms in found.losses for value in terms.values())


@pytest.mark.parametrize("objective", ["dft", "eaft", "asft"])
def test_losses_that_weight_tokens(objective, place, tmp_path):
    found = Trajectory(Run(config_of(place, objective={"name": objective}), tmp_path, None))
    assert all(value == value and value > 0 for terms in found.losses for value in terms.values())


def test_how_rows_are_cut_changes_no_loss(place, tmp_path):
    whole, cut = (
        Trajectory(Run(config_of(place, train={"per_device_train_batch_size": size}), tmp_path / str(size), None))
        for size in (None, 1)
    )
    for mine, theirs in zip(whole.losses, cut.losses, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_several_processes_want_images_everywhere(place, monkeypatch):
    streams = [Stream.of("s", [Task(name="t", train=some)]) for some in (EXAMPLES[:1], EXAMPLES[1:2], EXAMPLES)]
    for world in ("1", "2"):
        monkeypatch.setenv("WORLD_SIZE", world)
        for stream in streams[:2]:
            kind(place).check_stream(stream, False)
    with pytest.raises(UserError, match=r"model.head: vision: b has no images and others have some"):
        kind(place).check_stream(streams[2], False)


def test_who_does_not_see_says_so(place):
    with pytest.raises(UserError, match=r"gives image\+text, model .* takes conversations and documents"):
        config_of(place, head="lm")
    with pytest.raises(
        UserError, match=r"a: the conversation cannot be written: it has images, which this model does not see"
    ):
        byte_codec().batch(EXAMPLES[:1])
    with pytest.raises(UserError, match=r"train.packing: 64: packs several examples"):
        config_of(place, train={"packing": 64})


def test_a_kind_is_a_file_and_a_line():
    import cl_toolkit

    core = Path(cl_toolkit.__file__).parent
    said = [path for path in core.rglob("*.py") if "VisionLanguage" in path.read_text(encoding="utf-8")]
    assert sorted(path.name for path in said) == ["kind.py", "vision.py"]


def test_what_is_exported_is_one_of_transformers_with_its_processor(place, tmp_path):
    made = Run(config_of(place), tmp_path / "run", None)
    made.execute()
    out = cl.export(made.folder, tmp_path / "out")
    model, processor = AutoModelForImageTextToText.from_pretrained(out), AutoProcessor.from_pretrained(out)
    inputs = made.codec.batch(EXAMPLES).inputs
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, made.model.eval()(**inputs).logits)
    assert (processor.image_token, processor.patch_size) == ("<image>", 4)
    assert processor.chat_template == made.codec.processor.chat_template
