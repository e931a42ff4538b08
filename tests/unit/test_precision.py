"""One precision of all scoring: in and out of an open session, by either engine, with and without an adapter; and fp32 for
all that is trained."""

import pytest
import torch
from pieces import Evaluator, ask, byte_codec, task_view, train_settings
from tiny import TINY, tiny_config, trajectory
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from cl_toolkit import UserError
from cl_toolkit.engine.access import scoring_dtype
from cl_toolkit.engine.torch_engine import TorchEngine, trainable
from cl_toolkit.models import adapters
from cl_toolkit.models.generate import generate
from cl_toolkit.models.replies import choice_scores
from cl_toolkit.models.requests import Choice
from cl_toolkit.models.sections import Adapter
from cl_toolkit.types import Task

LONG, SHORT = ask("a prompt of 20 bytes", "yes", "long"), ask("four", "no", "short")


def gpt2(adapter):
    """A GPT-2 with learned positions that matter, scored in bfloat16."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=259, n_positions=64, n_embd=32, n_layer=1, n_head=2, bos_token_id=256, eos_token_id=257)
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(10)
    model.scoring_dtype = torch.bfloat16
    return adapters.begin_task(model, Adapter(r=2) if adapter else None, 0, 0)


def engine_of(name):
    settings = train_settings(bf16=True, learning_rate=0.0)
    if name == "torch":
        return TorchEngine(settings, torch.device("cpu"))
    pytest.importorskip("deepspeed", reason="deepspeed is not installed here (it is for Linux)")
    from cl_toolkit.engine.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(settings, torch.device("cpu"), None, {"zero_optimization": {"stage": 0}})


class Heard:
    """What the inner model is called with while it generates, and how many positions it gives logits for."""

    def __init__(self, model):
        inner = next(m for m in model.modules() if isinstance(m, GPT2LMHeadModel))
        self.positions, self.widths, self.dtypes = [], [], set()
        self.hooks = [
            inner.transformer.wpe.register_forward_pre_hook(
                lambda _, inputs: self.positions.append(inputs[0].tolist())
            ),
            inner.register_forward_hook(self.after),
        ]

    def after(self, module, inputs, out):
        self.widths.append(out.logits.shape[1])
        self.dtypes.add(out.logits.dtype)

    def close(self):
        for hook in self.hooks:
            hook.remove()


def everything(model, codec):
    """All that is scored: answers, likelihoods, rollouts; and what was heard."""
    prompts = [codec.ids(LONG)[0][-20:], codec.ids(SHORT)[0][:4]]
    generate(model, prompts, codec, 1)  # what a model can do is tried once
    heard = Heard(model.module if hasattr(model, "module") else model)
    try:
        greedy = generate(model, prompts, codec, 6)
        first = heard.positions[0], heard.widths[0], heard.dtypes
        uniforms = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
        rollouts = generate(model, prompts, codec, 6, uniforms)
    finally:
        heard.close()
    judge = Evaluator(codec, split="test", batch_size=4, max_new_tokens=4)
    examples = [ask(e.messages[0].content, e.target, e.id, choices=("yes", "no")) for e in (LONG, SHORT)]
    scores = [row.tolist() for row in choice_scores(codec, model, [Choice(e, e.choices) for e in examples], 4)]
    found = judge(model, [Task(name="t", train=(), valid=(), test=(LONG, SHORT), scorer="exact_match")])
    return first, greedy, rollouts, scores, [s.answer for s in found["t"]]


@pytest.mark.parametrize("adapter", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_scores_are_the_same_in_and_out_of_a_session(engine, adapter):
    model, codec = gpt2(adapter), byte_codec()
    outside = everything(model, codec)
    (positions, width, dtypes), *_ = outside
    assert positions == [[*range(20)], [*[positions[1][0]] * 16, 0, 1, 2, 3]]  # what stands at padding does not matter
    assert width == 1, "at prefill logits are asked for the last position alone"
    assert dtypes == {torch.bfloat16}
    with engine_of(engine).open(model, task_view([LONG, SHORT]), steps=1) as session:
        assert everything(session.model, codec) == outside
    assert everything(model, codec) == outside


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("life", [None, "merge", "stack"])
def test_a_curve_begins_at_the_cell_of_the_matrix(tmp_path, bf16, life):
    adapter = {"adapter": {"r": 2, "lora_alpha": 4, "between_tasks": life}} if life else {}
    curve = {"schedule": "linear", "every": 2, "examples": 6}
    found = trajectory(
        tmp_path,
        model={**TINY, **adapter},
        train={"bf16": bf16, "learning_rate": 0.0},
        evaluate={"forgetting_curve": curve},
    )
    record = found.record
    assert record["scoring_dtype"] == ("bfloat16" if bf16 else "float32")
    points = [row for row in record["probes"]["curves"] if row["scored"] == record["tasks"][0]]
    assert {row["lag"] for row in points} >= {0, 2, 4}
    # nothing is learned, so that every point is the cell
    assert {row["value"] for row in points} == {record["matrix"][1][0]}


# fp32 for what is trained ------------------------------------------------------------------------------------------


def low(life):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=259, **shape)).to(torch.bfloat16)
    return adapters.begin_task(model, Adapter(r=2, between_tasks=life) if life else None, 0, 0)


@pytest.mark.parametrize("life", ["continue", "stack"])
def test_adapters_on_frozen_low_weights_are_fp32(life):
    model = low(life)
    if life == "stack":
        model = adapters.begin_task(model, Adapter(r=2, between_tasks=life), 1, 0)
    weights = trainable(model)
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if n not in weights and ".lora_" not in n} == {torch.bfloat16}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    engine = TorchEngine(train_settings(learning_rate=1e-5), torch.device("cpu"))
    view = task_view([LONG, SHORT])
    with engine.open(model, view, steps=2) as session:
        for _ in range(2):
            for part in session.parts(view.encode([LONG, SHORT])):
                session.backward({"sft": view.forward(session.model, part).loss})
            session.optimizer.step()
        states = session.optimizer.state.values()
        assert {v.dtype for s in states for v in s.values() if torch.is_tensor(v)} == {torch.float32}
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(weights)
    assert scoring_dtype(model) is torch.bfloat16


def test_weights_below_fp32_are_not_trained():
    with pytest.raises(
        UserError, match=r"model.dtype: the weight model.embed_tokens.weight would be trained in bfloat16"
    ):
        trainable(low(None))


@pytest.mark.parametrize("name", ["ewc", "si"])
def test_what_is_kept_of_weights_is_fp32_under_bf16(tmp_path, name):
    strategies = {name: {"fisher_examples": 3} if name == "ewc" else {}}
    run = trajectory(tmp_path, train={"bf16": True}, strategies=strategies).run
    state = run.strategy.state()
    kept = state["past"][0] if name == "ewc" else state
    assert {t.dtype for part in kept.values() for t in part.values()} == {torch.float32}


def test_a_low_precision_is_refused_by_the_config_alone(tmp_path):

    low(None).save_pretrained(tmp_path)
    for dtype in ("bfloat16", "auto"):
        model = {"name": str(tmp_path), "dtype": dtype}
        for adapter in (None, {"between_tasks": "merge"}):
            config = run_config(model, adapter)
            with pytest.raises(UserError, match=r"model.dtype: .* in bfloat16.*train.bf16: true"):
                config.kind.check(config.model.adapter, config.frozen_base)


def run_config(model, adapter):
    from cl_toolkit.study.cells import load_run

    config = tiny_config()
    config["model"] = {**model, **({"adapter": adapter} if adapter else {})}
    return load_run(config)


def test_frozen_weights_kept_in_bf16_are_what_autocast_makes_of_them(tmp_path, monkeypatch):
    """The same losses, scores and trained weights to the last bit."""
    model = {"adapter": {"r": 2, "lora_alpha": 4, "between_tasks": "continue"}}
    changes = {"model": model, "train": {"bf16": True}, "strategies": {"logit_swap": {}}}
    mine = trajectory(tmp_path / "mine", **changes)
    assert {p.dtype for n, p in mine.run.model.named_parameters() if "base_layer" in n} == {torch.bfloat16}
    assert {p.dtype for p in mine.run.model.parameters() if p.requires_grad} == {torch.float32}
    monkeypatch.setattr(adapters, "frozen_in_bf16", lambda model: None)
    other = trajectory(tmp_path / "other", **changes)
    assert mine.losses == other.losses
    assert mine.record["matrix"] == other.record["matrix"]
    trained = [{n: p for n, p in t.run.model.named_parameters() if ".lora_" in n} for t in (mine, other)]
    assert all(torch.equal(p, trained[1][n]) for n, p in trained[0].items())


def test_weights_that_are_merged_into_stay_fp32(tmp_path):
    model = {"adapter": {"r": 2, "lora_alpha": 4, "between_tasks": "merge"}}
    run = trajectory(tmp_path, model=model, train={"bf16": True}).run
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
