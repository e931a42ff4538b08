"""CODA-Prompt: attention over components by hand, prefixes as PEFT puts them before a row, and no answer in its own prompt."""

import pytest
import torch
from pieces import ask, byte_codec, configured, equal, task_view, tiny_model, train, weights_of
from prompts import answer_as_trained, codec, see_no_answer
from tiny import tiny_config, trajectory

import cl_toolkit as cl
from cl_toolkit.errors import UserError
from cl_toolkit.models.generate import generate
from cl_toolkit.models.prefix import goes_on
from cl_toolkit.models.prompted import Prompter, prompted, size_of
from cl_toolkit.models.teacher import Teacher, first_groups
from cl_toolkit.strategies.coda_prompt import CODAPrompt, beside, mixed
from cl_toolkit.study.cells import load_run

TASKS = [[ask("ab", "c"), ask("zxy", "yy")], [ask("xyz", "wv"), ask("b", "aa")]]


def view(index=0, **changes):
    return task_view(TASKS[index % 2], index=index, codec=codec(), max_steps=4, **changes)


def learned(number, made=None):
    """The model after so many tasks."""
    model, made = tiny_model(), made or CODAPrompt(configured(CODAPrompt, components=2, length=4))
    for index in range(number):
        model = train(model, view(index), made, learning_rate=3e-1)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return learned(2)


def test_attention_over_components_by_hand():
    """q = (1, 2): A = (1, 0), K = (1, 0) is 1; A = (1, 1), K = (0, 1) is 2 / sqrt(5); A = (1, 0), K = (0, 1) is 0."""
    components = Prompter(mixed, 1)
    keys, attention = torch.tensor([[1.0, 0], [0, 1], [0, 1]]), torch.tensor([[1.0, 0], [1, 1], [1, 0]])
    components.add(
        {"keys": keys[None, :2], "attention": attention[None, :2], "prompts": 10 * torch.eye(3)[None, :2, :2]}
    )
    components.add({"keys": keys[None, 2:], "attention": attention[None, 2:], "prompts": torch.full((1, 1, 2), 7.0)})
    found = components(torch.tensor([[1.0, 2.0]]))
    assert found.shape == (1, 1, 2, 1)
    assert torch.allclose(found.flatten(), torch.tensor([10.0, 10 * 0.894427]))


def test_components_are_those_of_gram_schmidt():
    old = torch.tensor([[[1.0, 0, 0, 0]]])
    found = beside(old, torch.tensor([[[5.0, -3, 4, 0], [0, 0, 2, 1]]]))[0]
    second = torch.tensor([0, 0.96, 0.72, 1]) / torch.tensor([0, 0.96, 0.72, 1]).norm()
    assert torch.allclose(found, torch.stack([torch.tensor([0, -0.6, 0.8, 0]), second]), atol=1e-6)


def test_new_components_are_orthonormal_and_earlier_ones_stay():
    made = CODAPrompt(configured(CODAPrompt, components=3, length=4))
    model = made.build(tiny_model(), 0)
    first = weights_of(model.prompter)
    model = made.build(made.build(model, 1), 1)  # a run that goes on asks again
    assert sorted(weights_of(model.prompter)) == sorted(
        f"{n}_{i}" for n in ("attention", "keys", "prompts") for i in (0, 1)
    )
    assert equal(first, {name: weights_of(model.prompter)[name] for name in first})
    for name in ("attention", "keys", "prompts"):
        for rows in torch.cat(model.prompter.all_of(name), 1):
            assert torch.allclose(rows @ rows.T, torch.eye(6), atol=1e-5)


def test_only_the_components_of_the_task_are_trained(model):
    first, start = weights_of(learned(1)), weights_of(tiny_model())
    after = weights_of(model)
    fresh = {name for name in after if name.endswith("_1")}
    assert equal({name: after[name] for name in first}, first)
    assert equal({name: after[name] for name in start}, start)
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == fresh
    built = weights_of(CODAPrompt(configured(CODAPrompt, components=2, length=4)).build(learned(1), 1))
    assert not any(torch.equal(after[name], built[name]) for name in fresh)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21 reads it
@pytest.mark.filterwarnings(
    "ignore:`past_key_values` is deprecated:FutureWarning"
)  # and gives that to transformers 5.24
def test_a_prefix_stands_where_peft_puts_it():
    from peft import PrefixTuningConfig, get_peft_model

    model = tiny_model()
    layers, _, width = size_of(model)
    made = torch.randn(layers, 2 * 3, width, generator=torch.Generator().manual_seed(0))
    theirs = get_peft_model(tiny_model(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with torch.no_grad():  # each token's keys and values of every layer stand one after the other
        theirs.prompt_encoder["default"].embedding.weight.copy_(
            made.unflatten(1, (2, 3)).permute(2, 0, 1, 3).flatten(1)
        )
    prompter = Prompter(lambda query, prompts: prompts.expand(-1, len(query), -1), 3)  # the same for every row
    prompter.add({"prompts": made.flatten(1)[:, None]})
    batch = view().encode(TASKS[0])
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    ours = prompted(model, prompter)
    moved = torch.arange(3, 3 + batch.labels.shape[1])[None]  # theirs count the prefix as places
    with torch.no_grad():
        found, plain = ours(**inputs, position_ids=moved).logits, tiny_model()(**inputs).logits
        wanted = theirs(**inputs).logits
    real = inputs["attention_mask"].bool()
    assert torch.allclose(found[real], wanted[real], atol=1e-4)
    assert (found[real] - plain[real]).abs().max() > 0.1


def test_a_batch_says_where_its_prompts_end():
    batch = view().encode(TASKS[0])
    lengths = [len(codec().ids(example)[0]) for example in TASKS[0]]
    assert batch.inputs["prompt_lengths"].tolist() == lengths
    assert codec().prompts(TASKS[0]).inputs["prompt_lengths"].tolist() == lengths
    assert "prompt_lengths" not in byte_codec().batch(TASKS[0]).inputs
    assert batch.rows([1]).inputs["prompt_lengths"].tolist() == lengths[1:]


def test_an_answer_is_not_in_its_own_prompt(model):
    see_no_answer(model)


def test_what_is_answered_is_what_is_trained(model, monkeypatch):
    answer_as_trained(model, [*TASKS[0], *TASKS[1]], monkeypatch)


def test_transformers_own_generation_says_the_same(model):
    prompts = [codec().ids(example)[0] for example in TASKS[0]]
    said = generate(model, prompts, codec(), 5)
    width, settings = max(map(len, prompts)), {"max_new_tokens": 5, "do_sample": False}
    ids = torch.tensor([[256] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    found = model.generate(ids, attention_mask=mask, **settings)[:, width:]
    assert [row[: len(answer)] for row, answer in zip(found.tolist(), said, strict=True)] == said


ARCHITECTURES = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "opt": {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "llama": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "multi_query": True},
    "falcon-new": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "num_kv_heads": 2,
                   "new_decoder_architecture": True},
    "gpt_bigcode": {"n_embd": 16, "n_layer": 1, "n_head": 4, "multi_query": True},
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_whose_heads_and_places_are_their_own(name):
    """Learned places, heads without keys of their own, one key for all, a width per head: what is answered is what whole rows
    say."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = AutoConfig.for_model(name.partition("-")[0], vocab_size=260, **ARCHITECTURES[name])
    made = CODAPrompt(configured(CODAPrompt, components=2, length=4))
    model, text = made.build(AutoModelForCausalLM.from_config(settings), 0).eval(), codec()
    prompts = [text.ids(example)[0] for example in (*TASKS[0], *TASKS[1])]
    assert goes_on(model, text.pad)
    for prompt, answer in zip(prompts, generate(model, prompts, text, 4), strict=True):
        row = text.padded([([*prompt, *answer], [-100] * len(prompt) + answer)])
        with torch.no_grad():
            said = model(**row.inputs).logits[0, len(prompt) - 1 :]
            with first_groups(model, 0):
                plain = model(**row.inputs).logits[0, len(prompt) - 1 :]
        assert said[:-1].argmax(-1).tolist() == answer
        assert not torch.allclose(said, plain, atol=1e-5), "the prefix says something"


REFUSED = {
    "mamba": ({"hidden_size": 16, "num_hidden_layers": 1}, "layers of linear_attention|no attention in some layers"),
    "rwkv": ({"hidden_size": 16, "num_hidden_layers": 2}, "RwkvForCausalLM: has no attention in some layers"),
    "deepseek_v2": (
        {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "kv_lora_rank": 8,
         "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4, "first_k_dense_replace": 1},
        "DeepseekV2ForCausalLM: has keys and values of unlike sizes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_whose_layers_keep_no_keys_or_unlike_ones_is_refused(name):
    from transformers import AutoConfig, AutoModelForCausalLM

    settings, told = REFUSED[name]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, vocab_size=260, **settings))
    with pytest.raises(UserError, match=told) as refused:
        CODAPrompt().build(model, 0)
    assert "\n" not in str(refused.value)


def test_a_model_with_a_cache_of_its_own_is_refused(monkeypatch):
    def forward(self, input_ids, use_cache, **state):
        raise ValueError("expected\nmy own cache")

    model = tiny_model()
    monkeypatch.setattr(type(model.base_model), "forward", forward)
    with pytest.raises(UserError, match="cannot keep keys and values where it is told to: expected my own cache"):
        CODAPrompt().build(model, 0)


def test_a_teacher_is_asked_without_later_prompts():
    made, batch = CODAPrompt(configured(CODAPrompt, components=2, length=4)), view().encode(TASKS[0])

    def says(model):
        with torch.no_grad():
            return model(**batch.inputs).logits

    model, teachers, wanted = tiny_model(), [], []
    for index in range(3):  # one of before there were any, and one after each task
        teachers.append(Teacher())
        teachers[-1].take(model)
        wanted.append(says(prompted(tiny_model(), Prompter(mixed, 2)) if index == 0 else model))
        model = train(model, view(index), made, learning_rate=3e-1).eval()
    for teacher, logits in zip(teachers, wanted, strict=True):
        with teacher(model) as asked:
            assert torch.equal(says(asked), logits)
    with first_groups(model, 1):
        assert torch.equal(says(model), wanted[1])
    assert not torch.allclose(wanted[0], wanted[1])
    assert not torch.allclose(wanted[1], wanted[2])


def test_a_run_is_loaded_again_and_not_exported(tmp_path):
    found = trajectory(tmp_path, strategies={"coda_prompt": {"components": 2}}, train={"learning_rate": 1.0})
    model, _ = cl.load_model(tmp_path)
    assert equal(weights_of(model), weights_of(found.run.model))
    with pytest.raises(UserError, match=r"export: prompter\.keys_0.*a strategy has added it"):
        cl.export(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train": {"packing": 64}}, r"train\.packing: 64: cannot be where strategies\.coda_prompt puts prompts"),
        ({"train": {"gradient_checkpointing": True}}, r"train\.gradient_checkpointing: true: cannot be where"),
        ({"generation": {"cache": "static"}}, r"generation\.cache: static: cannot be where"),
        (
            {"model": {"adapter": {"r": 2, "between_tasks": "merge"}}},
            r"coda_prompt: needs model\.adapter\.between_tasks: no adapter; got merge",
        ),
        ({"strategies": {"coda_prompt": {"length": 3}}}, "length: expected an even number"),
    ],
)
def test_what_cannot_be_beside_it_is_refused(changes, told):
    with pytest.raises(UserError, match=told):
        load_run(tiny_config(**{"strategies": {"coda_prompt": {}}, **changes}))


def test_layers_that_forget_and_components_beyond_the_width_are_refused():
    from transformers import MistralConfig, MistralForCausalLM

    small = MistralConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    small.sliding_window = 8
    with pytest.raises(UserError, match="MistralForCausalLM: has layers of a sliding window"):
        CODAPrompt().build(MistralForCausalLM(small), 0)
    with pytest.raises(UserError, match=r"components: expected at most 16, .* got 17"):
        CODAPrompt(configured(CODAPrompt, components=17)).build(tiny_model(), 0)
