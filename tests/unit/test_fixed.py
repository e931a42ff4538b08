"""Answers from caches of fixed size and a compiled forward, against those from a cache that grows."""

import os
from importlib.util import find_spec

import pytest
import torch
from pieces import ask, byte_codec, equal, tiny_model, weights_of
from tiny import RFT, tiny_config, tiny_run_config, trajectory
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from cl_toolkit.engine import access, blocks
from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters, fixed
from cl_toolkit.models.fixed import Fixed
from cl_toolkit.models.generate import generate
from cl_toolkit.models.prefix import CACHE
from cl_toolkit.models.sections import Adapter
from cl_toolkit.study.cells import load_run

pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler looks at tensors in ways of which torch warns
IDS = {"vocab_size": 259, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
SHAPE = {**IDS, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
HEADS = {"num_key_value_heads": 1, "head_dim": 8}
GPT2 = GPT2Config(n_positions=96, n_embd=16, n_layer=2, n_head=2, **IDS)


class OfItsOwn(LlamaForCausalLM):
    """Whoever goes on from a cache of another kind than it has made itself is told nothing."""

    def forward(self, **given):
        read = given.get(CACHE)
        own = read is None or type(read).__name__ == "DynamicCache"
        out = super().forward(**given)
        return out if own else type(out)(logits=out.logits * 0, **{CACHE: out[CACHE]})


CAN = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=1, **SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**HEADS, **SHAPE)),
    "window": lambda: MistralForCausalLM(MistralConfig(sliding_window=6, num_key_value_heads=2, **SHAPE)),
    "window in every second layer": lambda: Gemma2ForCausalLM(Gemma2Config(sliding_window=6, **HEADS, **SHAPE)),
    "positions": lambda: GPT2LMHeadModel(GPT2),
    "alibi": lambda: BloomForCausalLM(BloomConfig(n_layer=2, n_head=2, **IDS, hidden_size=16)),
}
CANNOT = {
    "hybrid": lambda: Lfm2ForCausalLM(
        Lfm2Config(layer_types=["conv", "full_attention"], num_key_value_heads=2, **SHAPE)
    ),
    "recurrent": lambda: MambaForCausalLM(MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=2, **IDS)),
    "of its own": lambda: OfItsOwn(LlamaConfig(**SHAPE)),
}


def lively(make):
    """A model from random weights that does not say nearly the same everywhere."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.dim() > 1 else 1)
    return model


@pytest.fixture
def compiled(monkeypatch):
    """What is compiled: each graph, and whether it is whole is asked of it. Nothing is made of the graphs, which takes long."""
    graphs, compiler = [], fixed.torch.compile

    def kept(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def noted(function, *, mode, dynamic):
        assert mode is None  # on a CPU
        return compiler(function, backend=kept, dynamic=dynamic, fullgraph=True)

    monkeypatch.setattr(fixed.torch, "compile", noted)
    torch.compiler.reset()
    fixed.compiled_forward.cache_clear()
    yield graphs
    fixed.compiled_forward.cache_clear()


def prompts_of(codec):
    return [codec.ids(ask(q))[0] for q in ("", "ab", "what?", "d" * 40, "e f g", "ab", "ab", "z" * 9)]


LIKE_OTHERS = {"qwen2", "qwen3", "window"}
"""What their caches are, another model's are too."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.grid if n in LIKE_OTHERS else ()) for n in CAN])
def test_what_is_said_and_drawn_is_what_a_growing_cache_says(name, compiled):
    model, codec, caches = lively(CAN[name]), byte_codec(), Fixed()
    prompts = prompts_of(codec)
    uniforms = torch.rand(len(prompts), 9, generator=torch.Generator().manual_seed(1))
    free = generate(model, prompts, codec, 9, uniforms)
    codec.stops |= {free[0][1], free[3][4], free[4][0]}  # rows end at different steps, one at its first token
    for draws in ((), (uniforms,), (uniforms, 0.7)):
        wanted = generate(model, prompts, codec, 9, *draws)
        assert not draws or len({len(answer) for answer in wanted}) > 1
        assert generate(model, prompts, codec, 9, *draws, fixed=caches) == wanted
    assert len(compiled) == 1


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_is_refused_by_what_it_says(name, compiled):
    codec = byte_codec()
    with pytest.raises(
        UserError, match=r"^generation\.cache: static: \w+ cannot go on from a cache of fixed size; use"
    ):
        generate(lively(CANNOT[name]), prompts_of(codec), codec, 3, fixed=Fixed())
    assert compiled == []


def test_weights_that_change_are_used_and_compile_nothing_anew(compiled):
    codec, caches, said = byte_codec(), Fixed(), []
    prompts = prompts_of(codec)
    for seed in range(3):
        model = lively(CAN["llama"])
        with torch.no_grad():
            for weight in model.parameters():  # in place, and by another tensor
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
                weight.data = weight.data * 1.5
        said.append(generate(model, prompts, codec, 5, fixed=caches))
        assert said[-1] == generate(model, prompts, codec, 5)
    assert said[0] != said[1] != said[2]
    assert len(compiled) == 1


def test_an_adapter_is_a_part_of_what_is_compiled(compiled):
    codec, caches, model = byte_codec(), Fixed(), lively(CAN["llama"])
    plain = generate(model, prompts_of(codec), codec, 5, fixed=caches)
    model = adapters.begin_task(model, Adapter(r=2), 0, 0)
    with torch.no_grad():
        for weight in adapters.weights(model).values():
            weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    found = generate(model, prompts_of(codec), codec, 5, fixed=caches)
    assert found == generate(model, prompts_of(codec), codec, 5) != plain
    assert len(compiled) == 2


def test_caches_are_few_and_what_is_there_serves_fewer_rows(compiled):
    model, codec, caches = tiny_model(), byte_codec(), Fixed()
    short = [codec.ids(ask(q))[0] for q in "abcdefg"]
    for prompts, more in (
        (short, 5),
        ([*short, short[0]], 5),
        (short[:2], 9),
        (short[2:3], 1),
        ([[*short[0], *[97] * 60]], 5),
    ):
        assert generate(model, prompts, codec, more, fixed=caches) == generate(model, prompts, codec, more)
    kept = [(size, cache.layers[0].keys.shape[2]) for known in caches._caches.values() for size, cache in known]
    assert kept == [(8, 64), (1, 128)]
    assert len(compiled) == 2


def test_what_a_session_puts_around_forwards_is_off_meanwhile_and_compiles_nothing_anew(compiled):
    model, codec, caches = tiny_model(), byte_codec(), Fixed()
    wanted = generate(model, prompts_of(codec), codec, 4)
    for _ in range(3):
        with blocks.checkpointed(model):
            dressed = model.model.layers[0].forward
            assert generate(model, prompts_of(codec), codec, 4, fixed=caches) == wanted
            assert model.model.layers[0].forward is dressed
    assert len(compiled) == 1


@pytest.mark.long
def test_many_shapes_are_compiled_each(compiled):
    model, codec, caches = tiny_model(), byte_codec(), Fixed()
    prompt = codec.ids(ask("a"))[0]
    for size in range(9):  # the ninth is one more than torch keeps of one function
        generate(model, [prompt] * 2**size, codec, 2, fixed=caches)
    assert len(compiled) == 9


def test_a_forward_that_somebody_put_there_is_called_as_it_is(compiled):
    model, codec, calls = tiny_model(), byte_codec(), []
    own = model.forward

    def forward(**inputs):
        calls.append(inputs["input_ids"].shape)
        return own(**inputs)

    model.forward = forward
    assert generate(model, prompts_of(codec), codec, 4, fixed=Fixed()) == generate(
        tiny_model(), prompts_of(codec), codec, 4
    )
    assert (8, 1) in calls
    assert compiled == []
    assert model.forward is forward


def test_a_row_in_lockstep_ends_where_it_ends(monkeypatch):
    """What is said behind a row's end keeps nobody waiting."""
    model, codec, asked = tiny_model(), byte_codec(), []
    prompts = prompts_of(codec)
    free = generate(model, prompts, codec, 9)
    codec.stops |= {answer[2] for answer in free}
    wanted = generate(model, prompts, codec, 9)
    monkeypatch.setattr("cl_toolkit.models.generate.in_lockstep", lambda model: True)
    hook = model.register_forward_pre_hook(lambda *_: asked.append(1))
    assert generate(model, prompts, codec, 9) == wanted
    hook.remove()
    assert len(asked) == max(map(len, wanted)) < 9


# in a run -----------------------------------------------------------------------------------------------------------------

STATIC = {"generation": {"cache": "static"}}
WAYS = {
    "rft": {"objective": RFT},
    "adapter": {"objective": RFT, "model": {"adapter": {"r": 2, "between_tasks": "stack"}}},
    "bf16, computed again": {"train": {"bf16": True, "gradient_checkpointing": True}},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_is_the_same_and_nothing_is_left_in_its_model(way, compiled, tmp_path):
    curves = {"evaluate": {"max_new_tokens": 4, "forgetting_curve": {"schedule": "linear", "every": 1, "examples": 2}}}
    mine, plain = (
        trajectory(tmp_path / name, **WAYS[way], **curves, **cache) for name, cache in (("a", STATIC), ("b", {}))
    )
    assert mine.losses == plain.losses
    for key in ("matrix", "curves", "probes"):
        assert mine.record.get(key) == plain.record.get(key)
    assert {key: mine.record["cost"][key] for key in ("forwards", "rollouts")} == {
        key: plain.record["cost"][key] for key in ("forwards", "rollouts")
    }
    assert equal(weights_of(mine.run.model), weights_of(plain.run.model))
    assert not any("forward" in vars(module) for module in mine.run.model.modules())
    assert 0 < len(compiled) <= 4


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed here (it is for Linux)")
def test_a_run_is_the_same_under_deepspeed(compiled, tmp_path):
    way = {"objective": RFT, "engine": {"name": "deepspeed", "deepspeed": {"zero_optimization": {"stage": 2}}}}
    mine, plain = (trajectory(tmp_path / name, **way, **cache) for name, cache in (("a", STATIC), ("b", {})))
    assert mine.losses == plain.losses
    assert mine.record["matrix"] == plain.record["matrix"]
    assert 0 < len(compiled) <= 2


def test_zero_3_and_models_that_write_nothing_are_refused():
    stage = {"engine": {"name": "deepspeed", "deepspeed": {"zero_optimization": {"stage": 3}}}}
    with pytest.raises(UserError, match=r"generation\.cache: static: ZeRO-3 .* use dynamic, or ZeRO 0 to 2$"):
        tiny_run_config(**STATIC, **stage)
    arrays = {**tiny_config(**STATIC), "stream": {"name": "digits"}, "model": {"name": "mlp"}}
    with pytest.raises(UserError, match=r"generation: is for models that write text; mlp does not; leave it out$"):
        load_run(arrays)


def test_questions_go_past_what_was_compiled_for_training():
    model = tiny_model()
    block = model.model.layers[0]
    block._compiled_call_impl = lambda *a, **k: 1 / 0
    with access.evaluating(model):
        assert model(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2, 259)
    with pytest.raises(ZeroDivisionError), access.evaluating(model, plain=False):
        model(input_ids=torch.tensor([[1, 2]]))


@pytest.mark.skipif(
    "ATEN_CPU_CAPABILITY" in os.environ, reason="torch's compiler builds for this processor, not for that one"
)
@pytest.mark.long  # the compiler for training is asked in tests/laws/test_law_13.py
def test_the_compiler_itself():
    torch.compiler.reset()
    model, codec = tiny_model(), byte_codec()
    prompts = prompts_of(codec)
    assert generate(model, prompts, codec, 6, fixed=Fixed()) == generate(model, prompts, codec, 6)
