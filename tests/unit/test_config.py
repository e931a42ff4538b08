"""From YAML and a command line to frozen settings: precedence, shorthands, and one line for every mistake."""

import dataclasses
import json
import re

import pytest

from cl_toolkit import Strategy, UserError
from cl_toolkit.models.tiny import TinyLM
from cl_toolkit.study.cells import load_run, load_study


@pytest.fixture
def file(tmp_path):
    """Writes YAML files beside one another and gives their path."""

    def write(text, name="my.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def refusal(source, overrides=(), **options):
    """The message of a refusal, which is one line."""
    with pytest.raises(UserError) as error:
        load_study(source, overrides, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# precedence -------------------------------------------------------------------------------------------------------


def test_command_line_over_file_over_extends_over_base(file):
    file("train: {learning_rate: 0.1, max_steps: 1, weight_decay: 0.1}\nmethods: {a: {}, b: {}}", "below.yaml")
    file("extends: below.yaml\ntrain: {learning_rate: 0.2, max_steps: 2}", "above.yaml")
    path = file("extends: above.yaml\ntrain: {learning_rate: 0.3}\nmethods: {c: {train: {max_steps: 3}}, d: {}}")
    c, d = load_study(path).runs
    assert (c.train.learning_rate, c.train.max_steps, c.train.weight_decay) == (0.3, 3, 0.1)
    assert (d.train.max_steps, d.train.adam_beta2) == (2, 0.999)
    c, d = load_study(path, ["train.max_steps=9", "train.learning_rate=1e-4"]).runs
    assert (c.train.max_steps, d.train.max_steps) == (9, 9)  # over the method too
    assert c.train.learning_rate == 1e-4


def test_extends_a_shipped_config_and_not_itself(file):
    path = file("extends: quickstart\nseeds: [5]")
    study = load_study(path)
    assert study.methods == load_study("quickstart").methods
    assert (study.seeds, study.name) == ((5,), "quickstart")
    assert "extends itself" in refusal(file("extends: b.yaml", "a.yaml") and file("extends: a.yaml", "b.yaml"))
    assert "no_such.yaml: no such config file" in refusal(file("extends: no_such.yaml"))


def test_methods_of_a_file_replace_and_of_the_command_line_join(file):
    path = file("methods: {one: {strategies: {replay: {buffer_size: 5}}}, two: {}}")
    study = load_study(path, ["methods.one.strategies.replay.replay_fraction=0.2", "methods.three.train.max_steps=1"])
    assert study.methods == ("one", "two", "three")
    settings = study.runs[0].strategies[0].settings
    assert (settings.buffer_size, settings.replay_fraction) == (5, 0.2)


def test_strategy_settings_of_the_command_line_reach_the_methods_that_have_the_strategy(file):
    path = file("methods: {s: {}, r: {strategies: [replay]}, p: {strategies: {power-law: {offset: 3}}}}")
    s, r, p = load_study(path, ["strategies.replay.buffer_size=7", "strategies.power-law.exponent=2"]).runs
    assert s.strategies == ()
    assert r.strategies[0].settings.buffer_size == 7
    assert (p.strategies[0].settings.offset, p.strategies[0].settings.exponent) == (3.0, 2.0)
    assert p.strategies[0].settings.buffer_size is None
    assert refusal(path, ["strategies.repaly.buffer_size=7"]) == (
        "command line: strategies.repaly: no method uses it; did you mean 'replay'?"
    )
    alone = load_run(path, ["strategies.replay.buffer_size=7"])
    assert [(c.name, c.settings.buffer_size) for c in alone.strategies] == [("replay", 7)]


def test_a_name_that_was_left_open_keeps_the_settings_beside_it():
    given = ["stream.name=skills", "model.name=some/model"]
    assert load_study("chat-lora", given).runs[0].plain["model"]["dtype"] == "bfloat16"
    given = ["stream.root=.", "model.name=some/encoder"]
    assert load_study("clinc150", given).runs[0].plain["model"]["head"] == "classes"


def test_a_changed_name_drops_the_settings_of_what_was_named_before(file):
    path = file(
        "model: {name: tiny-lm, hidden_size: 16, num_attention_heads: 2, adapter: {r: 2}}\n"
        "objective: {name: sft}\n"
        "methods:\n"
        "  own: {}\n"
        "  other: {model: {name: some/model, dtype: bfloat16}, objective: {name: rft, beta: 0}}\n"
        "  back: {objective: sft}\n"
    )
    own, other, back = load_study(path).runs
    assert own.kind.hidden_size == 16
    assert other.kind.dtype == "bfloat16"
    assert other.model.adapter.r == 2  # belongs to every model
    assert other.objective.settings.beta == 0.0
    assert back.objective.name == "sft"
    same = file("model: {name: tiny-lm, hidden_size: 16, num_attention_heads: 2}\nmethods: {m: {model: tiny_lm}}")
    assert load_study(same).runs[0].kind == TinyLM(name="tiny_lm", hidden_size=16, num_attention_heads=2)


def test_shorthands(file):
    path = file("stream: skills\nobjective: rft\nmethods: {a: {strategies: [replay]}, b: {strategies: power-law}, c: }")
    a, b, c = load_study(path).runs
    assert a.stream.name == "skills"
    assert a.objective.name == "rft"
    assert [s.name for s in (*a.strategies, *b.strategies)] == ["replay", "power_law"]
    assert c.strategies == ()
    assert load_study(file("strategies: {replay: }")).runs[0].strategies[0].settings.buffer_size is None
    assert load_study(file("strategies:\n")).runs[0].strategies == ()
    assert load_study(file("")).methods == ("sequential",)
    assert load_study(file("evaluate: {forgetting_curve: {schedule: off}}")).runs[
        0
    ].evaluate.forgetting_curve.schedule == ("off")


def test_dash_and_underscore_are_equal(file):
    path = file(
        "model: tiny_lm\nstrategies: {power-law: {}}\nmethods: {my-method: {strategies: {power_law: {offset: 2}}}}"
    )
    (run,) = load_study(path, methods=["my_method"]).runs
    assert run.method == "my-method"
    assert [(c.name, c.settings.offset) for c in run.strategies] == [("power_law", 2.0)]
    assert isinstance(run.kind, TinyLM)


def test_seeds_and_orders(file):
    path = file("stream: {tasks: [max, sort]}\norders: [[max, sort], [sort, max]]\nseeds: [3, 4]")
    runs = load_study(path).runs
    assert [(r.order, r.plain["seed"], r.stream.order) for r in runs] == [
        (order, seed, names)
        for order, names in (("max+sort", ("max", "sort")), ("sort+max", ("sort", "max")))
        for seed in (3, 4)
    ]
    assert dataclasses.asdict(runs[0].seed) == {"data": 3, "init": 3, "memory": 3, "rollout": 3}
    assert len(load_study(path, seeds=[9]).runs) == 2
    split = load_run(file("seed: {data: 1, init: 2, memory: 3, rollout: 4}"), ["seed.init=7"])
    assert dataclasses.asdict(split.seed) == {"data": 1, "init": 7, "memory": 3, "rollout": 4}


def test_strategies_may_be_objects(file):
    class Mine(Strategy):
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Config:
            weight: float = 2.0

    study = load_study(
        file(""), methods={"class": {"strategies": {"m": Mine}}, "object": {"strategies": {"m": Mine()}}}
    )
    assert study.methods == ("sequential", "class", "object")
    for run in study.runs[1:]:
        assert isinstance(run.strategies[0].settings, Mine)
        assert run.plain["strategies"]["m"]["weight"] == 2.0


def test_settings_of_an_object_stand_in_the_record_as_json_has_them(file):
    class Mine(Strategy):
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Config:
            layers: tuple[tuple[int, ...], ...] = ((1, 2), (3,))

    (_, run) = load_study(file(""), methods={"m": {"strategies": {"m": Mine()}}}).runs
    assert json.loads(json.dumps(run.plain)) == run.plain


# refusals ---------------------------------------------------------------------------------------------------------

REFUSALS = [
    ("trian: {}", "trian: unknown key; did you mean 'train'?"),
    ("train: {learning_rat: 1}", "train.learning_rat: unknown key; did you mean 'learning_rate'?"),
    ("train: {learning_rate: fast}", "train.learning_rate: expected a number, got 'fast'"),
    ("train: {max_steps: 1.5}", "train.max_steps: expected a whole number, got 1.5"),
    ("train: {max_steps: true}", "train.max_steps: expected a whole number, got True"),
    ("train: {bf16: 1}", "train.bf16: expected true or false or auto, got 1"),
    ("train: {optim: adam}", "train.optim: expected adamw_torch | sgd, got 'adam'"),
    ("train: {global_batch_size: 0}", "train.global_batch_size: expected 1 or more, got 0"),
    ("train: {learning_rate: .nan}", "train.learning_rate: expected a finite number, got nan"),
    ("train: {lr_scheduler_type: cosin}", "train.lr_scheduler_type: unknown schedule 'cosin'; did you mean 'cosine'?"),
    ("train: 3", "train: expected a mapping, got 3"),
    ("train:", "train: expected a mapping, got None"),
    ("train: {warmup_ratio: 0.1}", "train.warmup_ratio: 0.1 does nothing: the schedule constant has no warm-up"),
    *(
        (f"strategies: {{{name}: {{{given}}}}}", f"strategies.{name}.{told}")
        for name, given, told in (
            ("replay", "policy: ring", "policy: ring does nothing without a buffer_size: all examples stay"),
            ("agem", "policy: ring", "policy: ring does nothing without a buffer_size: all examples stay"),
            ("surprise_replay", "buffer_size: null, candidates: 9", "candidates: 9 does nothing without a buffer_size"),
            ("power_law", "schedule: uniform, exponent: 1", "exponent: 1.0 does nothing with schedule uniform"),
            ("power_law", "schedule: exponential, offset: 1", "offset: 1.0 does nothing with schedule exponential"),
            (
                "power_law",
                "unrestricted: true, replay_fraction: 0.1",
                "replay_fraction: 0.1 does nothing with unrestricted",
            ),
            ("merge", "method: magmax, density: 0.5", "density: 0.5 does nothing with method magmax"),
            ("ewc", "gamma: 0.9", "gamma: 0.9 does nothing with mode separate"),
        )
    ),
    ("stream: {name: digits, permutations: 3}", "stream.permutations: 3 does nothing with protocol split"),
    (
        "stream: digits\nmodel: mlp\nprompt: {system: a}",
        "prompt.system: a does nothing with model mlp, which reads arrays",
    ),
    ("stream: {name: digits, seed: 3}", "stream.seed: 3 does nothing with protocol split"),
    (
        "stream: {name: images, path: ., protocol: permuted, classes_per_task: 5}",
        "stream.classes_per_task: 5 does nothing with protocol permuted",
    ),
    ("objective: {name: on_policy, mixture: 0.1}", "objective.mixture: 0.1 does nothing with divergence forward"),
    (
        "objective: {name: on_policy, teacher: live, teacher_update_rate: 0.1}",
        "objective.teacher_update_rate: 0.1 does nothing",
    ),
    *(
        (
            f"objective: {{name: on_policy, context: none, teacher: {own}}}",
            "objective.context: none: the model's own teacher",
        )
        for own in ("live", "start", "ema")
    ),
    (
        "generation: {gpu_memory_utilization: 0.5}",
        "generation.gpu_memory_utilization: 0.5 does nothing with engine own",
    ),
    ("train: {lr_over: strem}", "train.lr_over: expected stage | stream, got 'strem'"),
    *(
        (f"objective: {{name: rft, {given}}}", f"objective.{words}")
        for given, words in [
            ("epsilon: 0.1", "epsilon: 0.1 does nothing with num_iterations 1"),
            ("algorithm: rloo, scale_rewards: false", "scale_rewards: False does nothing with algorithm rloo"),
            ("kl_in: reward, kl_max: 10", "kl_max: 10.0 does nothing with kl_in reward"),
            ("reward_weights: [1, 0], format_pattern: a", "format_pattern: a does nothing with a weight of 0"),
            (
                "algorithm: remax, num_generations: 1, instance_filter: zero_variance",
                "instance_filter: zero_variance does nothing with num_generations 1",
            ),
        ]
    ),
    ("train: {optim: sgd, adam_beta2: 0.95}", "train.adam_beta2: 0.95 does nothing with train.optim sgd"),
    (
        "evaluate: {forgetting_curve: {every: 5}}",
        "evaluate.forgetting_curve.every: 5 does nothing with schedule log_spaced",
    ),
    ("prompt: {chat_template: off, thoughts: true}", "prompt.thoughts: True does nothing with chat_template off"),
    (
        "train: {lr_scheduler_type: infinite, lr_scheduler_kwargs: {anneal_ratio: 0, minimum: 0.2}}",
        "train.lr_scheduler_kwargs.minimum: 0.2 does nothing with anneal_ratio 0",
    ),
    (
        "train: {lr_scheduler_type: infinite, lr_scheduler_kwargs: {constant: 1, cooldown_ratio: 0.5}}",
        "train.lr_scheduler_kwargs.cooldown_ratio: 0.5 does nothing with constant 1",
    ),
    (
        "launcher: {parameters: {slurm_partition: gpu}}",
        "launcher.parameters: processes takes none; name the launcher that they are for",
    ),
    ("train: {lr_over: stream}", "train.lr_over: stream does nothing: the schedule constant is the same at every step"),
    ("train: {lr_per_stage: []}", "train.lr_per_stage: expected a list such as [1.0, 0.5, 0.1], got []"),
    ("train: {lr_per_stage: 0}", "train.lr_per_stage: expected a list of a number or a number above 0 or null, got 0"),
    ("train: {per_device_train_batch_size: 0}", "expected a whole number of 1 or more or auto or null, got 0"),
    (
        "train: {lr_scheduler_kwargs: {constant: 0.5}}",
        "train.lr_scheduler_kwargs: the schedule constant takes none; use infinite",
    ),
    (
        "train: {lr_scheduler_type: infinite, lr_scheduler_kwargs: {constant: 2}}",
        "constant: expected a number in (0, 1], got 2",
    ),
    (
        "train: {lr_scheduler_type: infinite, lr_scheduler_kwargs: {constnt: 1}}",
        "constnt: unknown key; did you mean 'constant'?",
    ),
    (
        "train: {lr_scheduler_type: infinite, lr_scheduler_kwargs: {minimum: 0.6}}",
        "train.lr_scheduler_kwargs.minimum: expected constant (0.5) or less, got 0.6",
    ),
    (
        "train: {lr_scheduler_type: infinite, lr_scheduler_kwargs: {anneal_stages: true}}",
        "train.lr_scheduler_kwargs.anneal_stages: true does nothing: train.lr_over is stage",
    ),
    ("model: {name: tinylm, num_attention_heads: 2}", "model.name: 'tinylm' is a Hugging Face id or a folder"),
    ("stream: {name: skils}", "stream.name: unknown stream 'skils'; did you mean 'skills'?"),
    ("stream: {tasks: [max, srot]}", "stream.tasks: unknown task 'srot'; did you mean 'sort'?"),
    ("stream: {tasks: [max, max]}", "stream.tasks: a task is named twice: max, max"),
    ("stream: {tasks: []}", "stream.tasks: is empty; expected at least one task"),
    ("stream: {tasks: max}", "stream.tasks: expected a list of text or null, got 'max'"),
    ("stream: {tasks: [max], anchors: [max]}", "stream.anchors: max is also a task; an anchor is never trained"),
    ("stream: {tasks: [max, sort], order: [max]}", "stream.order: expected each of max, sort once, got max"),
    ("stream: {tasks: [max, sort], order: [max, srot]}", "stream.order: unknown task 'srot'; did you mean 'sort'?"),
    ("stream: {length: 0}", "stream.length: expected a number in [1, 64], got 0"),
    ("stream: {lenth: 4}", "stream.lenth: unknown key; did you mean 'length'?"),
    ("stream: {taks: [max]}", "stream.taks: unknown key; did you mean 'tasks'?"),
    ("model: {adaptr: {r: 2}}", "model.adaptr: unknown key; did you mean 'adapter'?"),
    (
        "stream: {view: joined}",
        "stream.view: expected joint | cumulative | independent | start, got 'joined'; did you mean 'joint'?",
    ),
    ("stream: {view: start}\nstrategies: [replay]", "stream.view: start: takes no strategies"),
    ("objective: {name: rtf}", "objective.name: unknown objective 'rtf'; did you mean 'rft'?"),
    ("objective: {name: rft, num_generations: 1}", "objective.num_generations: expected 2 or more, got 1"),
    ("objective: {name: 3}", "objective.name: expected the name of a objective, got 3"),
    ("strategies: [replai]", "strategies: unknown strategy 'replai'; did you mean 'replay'?"),
    ("strategies: {replay: 3}", "strategies.replay: expected settings, got 3"),
    (
        "strategies: {replay: {replay_fraction: 1}}",
        "strategies.replay.replay_fraction: expected a number in [0, 1), got 1",
    ),
    (
        "strategies: [replay, power_law]",
        "strategies: replay and power_law cannot be used together: only one of them can own rehearsal",
    ),
    ("model: {hidden_size: 17}", "model.hidden_size: expected a multiple of twice num_attention_heads (8), got 17"),
    (
        "model: {adapter: {r: 2, between_tasks: merged}}",
        "model.adapter.between_tasks: expected continue | merge | stack",
    ),
    ("engine: {device: tpu}", "engine.device: expected auto | cpu | cuda | mps, got 'tpu'"),
    ("engine: {name: torch, deepspeed: {}}", "engine.deepspeed: is given but engine.name is torch"),
    ("evaluate: {limit: 0}", "evaluate.limit: expected null or 1 or more, got 0"),
    ("seeds: []", "seeds: expected a list of whole numbers, got []"),
    ("seeds: [1, x]", "seeds: expected a list of whole numbers, got [1, 'x']"),
    ("orders: [[max, sort]]\nstream: {tasks: [max, last]}", "unknown task 'sort'"),
    ("orders: 3", "orders: expected a list of task lists, given, reversed"),
    ("methods: [a]", "methods: expected name: differences, got ['a']"),
    ("methods: {m: 3}", "methods.m: expected what differs from the rest, got 3"),
    ("methods: {m: {train: {max_stps: 1}}}", "methods.m.train.max_stps: unknown key; did you mean 'max_steps'?"),
    ("methods: {m: {seeds: [1]}}", "methods.m.seeds: belongs to the comparison, not to a method"),
    (
        "methods: {m: {stream: {order: [max, sort]}}}",
        "methods.m.stream.order: belongs to the comparison, not to a method; use orders",
    ),
    ("- a list", "expected a mapping of sections, got list"),
    ("a: [", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "message"), REFUSALS, ids=[text.replace("\n", " ") for text, _ in REFUSALS])
def test_refusals_name_file_key_and_what_was_expected(file, text, message):
    path = file(text)
    found = refusal(path)
    assert found.startswith(f"{path}: ")
    assert message in found


def test_the_file_to_blame_is_the_one_with_the_key(file):
    below = file("train: {max_steps: x}", "below.yaml")
    path = file("extends: below.yaml\ntrain: {learning_rate: 1}")
    assert refusal(path).startswith(f"{below}: train.max_steps: ")
    assert refusal("demo", ["train.max_stps=1"]).startswith("command line: train.max_stps: unknown key; did you mean")
    assert refusal("demo", ["train.max_steps=x"]).startswith("command line: train.max_steps: expected a whole number")
    assert (
        refusal("demo", ["train.max_steps"]) == "train.max_steps: expected key=value, such as train.learning_rate=1e-4"
    )


def test_what_a_shipped_config_leaves_open_must_be_given():
    assert "chat-lora.yaml: stream.path: must be given; add stream.path=... to the command" in refusal("chat-lora")


def test_a_seed_is_of_one_run(file):
    assert "takes seeds=[0,1]" in refusal("demo", ["seed=1"])
    with pytest.raises(UserError, match=r"seed.init: missing; expected a whole number"):
        load_run(file("seed: {data: 1}"))


def test_other_refusals(file):
    assert refusal("dmo") == "dmo: neither a file nor a shipped config; did you mean 'demo'?"
    assert refusal("no/such.yaml") == "no/such.yaml: no such config file"
    assert "unknown method 'reply'; did you mean 'replay'?" in refusal("demo", methods=["reply"])
    assert refusal("demo", add=["mine"]).startswith("--add mine: expected name=file.py:Class")
    assert "there is already a method 'replay'" in refusal("demo", add=["replay=x.py:Y"])
    assert "x.py: no such file" in refusal("demo", add=["mine=x.py:Y"])
    guest = file("class Other: pass\ndef helper(): pass\n", "guest.py")
    for name in ("Other", "helper"):
        assert re.search(rf"{name}.*is not a strategy", refusal("demo", add=[f"mine={guest}:{name}"]))
