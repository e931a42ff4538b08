"""Law 12: what is trained, generated and scored is one text, for the templates of ten families of models."""

import itertools

import pytest
import torch
from families import FAMILIES
from pieces import Evaluator, ask, score_of

from cl_toolkit.check import codecs
from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.errors import UserError
from cl_toolkit.models import tiny
from cl_toolkit.models.generate import generate
from cl_toolkit.models.sections import Prompt
from cl_toolkit.models.text import TextCodec
from cl_toolkit.types import IGNORE, Example, Message, Task

ANSWERS = {"up": "yes", "sun": "no", "red": "<b>no</b>", "day": "yes and no"}


def family_codec(name, **prompt):
    template, special, _ = FAMILIES[name]
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    return TextCodec(tokenizer, typed(Prompt, {**base_layer()["prompt"], **prompt}, "prompt", "test"))


@pytest.fixture(params=FAMILIES)
def codec(request):
    return family_codec(request.param)


def test_what_was_written_is_what_was_said(codec):
    codecs.says_what_it_writes(codec, ask("q", "a"))
    ids = codec.answer(ask("q", "yes"), "yes")
    assert codec.said([*ids, *b"and so on", *ids]) == "yes"


def test_a_prompt_does_not_change_with_its_target(codec):
    codecs.hides_targets(codec, [ask("q", "yes"), ask("what?", "no and no"), ask("o", "")])


def test_the_end_mark_is_the_templates_own_and_a_stop(codec, request):
    mark = FAMILIES[request.node.callspec.params["codec"]][2]
    assert codec.tokenizer.decode([codec.answer(ask("q", "a"), "a")[-1]]) == mark
    assert {codec.end, codec.eos} <= codec.stops


def test_trained_tokens_are_the_tokens_of_a_choice(codec):
    example = ask("q", "yes and no")
    batch = codec.batch([example])
    trained = [t for t in batch.labels[0].tolist() if t != IGNORE]
    assert trained == codec.answer(example, "yes and no")
    as_choice = codec.batch([example], [codec.answer(example, "yes and no")])
    assert torch.equal(as_choice.inputs["input_ids"], batch.inputs["input_ids"])


def test_the_prompt_is_what_the_template_writes_before_an_answer(codec):
    marker = "MARKER"
    text = codec.tokenizer.apply_chat_template(
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": marker}],
        tokenize=False, chat_template=codec.write.pinned,
    )  # fmt: skip
    assert codec.tokenizer.decode(codec.ids(ask("q", "a"))[0]) == text.split(marker)[0]


def test_special_tokens_in_a_question_stay_text(codec):
    for spelled in codec.tokenizer.all_special_tokens:
        prompt, _ = codec.ids(ask(f"what is {spelled}?", "a"))
        plain, _ = codec.ids(ask("what is ?", "a"))
        own = codec.tokenizer.convert_tokens_to_ids(spelled)
        assert prompt.count(own) == plain.count(own)
        assert spelled in codec.tokenizer.decode(prompt)


@pytest.mark.parametrize("name", FAMILIES)
def test_learned_by_heart_is_all_right_however_it_is_asked(name):
    """A model that learned its answers by heart scores 1 by generation and by choices, at any batch size and beside anybody."""
    codec = family_codec(name)
    examples = tuple(ask(q, a, identity=q, choices=tuple(ANSWERS.values())) for q, a in ANSWERS.items())
    torch.manual_seed(0)
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(codec.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                    num_attention_heads=2, tie_word_embeddings=True)
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = codec.batch(examples)
    for _ in range(80):
        logits = model(**batch.inputs).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.01:
            break
    for scorer, size in itertools.product(("exact_match", "choices"), (1, 3, 8)):
        task = Task(name="t", train=(), test=examples, scorer=scorer)
        scored = Evaluator(codec, split="test", batch_size=size, max_new_tokens=16)(model, [task])["t"]
        assert score_of(task, scored) == 1.0, (scorer, size, [s.answer for s in scored])
        assert not any(s.cut for s in scored)
    alone = [generate(model, [codec.ids(e)[0]], codec, 16)[0] for e in examples]
    assert [codec.said(a) for a in alone] == list(ANSWERS.values())


def test_a_date_is_the_same_on_every_day():
    codec = family_codec("dated", date="2024-07-26")
    assert "Today: 26 Jul 2024" in codec.tokenizer.decode(codec.ids(ask("q", "a"))[0])
    assert codec.write.written_date == "2024-07-26"
    assert family_codec("chatml").write.written_date is None


def test_a_system_turn_that_a_template_refuses_is_told_by_its_key():
    with pytest.raises(UserError, match=r"prompt.system: .*System role not supported"):
        family_codec("gemma", system="be kind").ids(ask("q", "a"))
    twice = Example(id="t/train/3", messages=(Message(role="user", content="a"),) * 2, target="b")
    with pytest.raises(UserError, match=r"t/train/3: .*roles must alternate"):
        family_codec("gemma").ids(twice)


def test_what_a_template_would_leave_out_is_refused():
    call = Message(role="assistant", content="", extra={"tool_calls": [{"function": {"name": "f"}}]})
    example = Example(id="t/train/1", messages=(Message(role="user", content="q"), call), target="b")
    with pytest.raises(UserError, match=r"t/train/1: .*tool_calls"):
        family_codec("chatml").ids(example)
    with pytest.raises(UserError, match="tools"):
        family_codec("chatml").ids(ask("q", "a", tools=({"name": "f"},)))


def test_thoughts_begin_where_the_generation_prompt_ends():
    codec = family_codec("r1", thoughts=True)
    assert codec.tokenizer.decode(codec.ids(ask("q", "a"))[0]).endswith("<|Assistant|><think>\n")
    codec = family_codec("qwen3", thoughts=True, chat_template_kwargs={"enable_thinking": False})
    assert codec.tokenizer.decode(codec.ids(ask("q", "a"))[0]).endswith("</think>\n\n")


@pytest.mark.parametrize(
    "template", ["{{ messages[-1].content | upper }}", "{% for m in messages %}{{ m.role }}{% endfor %}"]
)
def test_a_template_that_cannot_be_split_is_refused(template):
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = template.replace("upper", "length")
    with pytest.raises(UserError, match="chat template"):
        TextCodec(tokenizer, typed(Prompt, base_layer()["prompt"], "prompt", "test"))
