"""The stream `text`: folders of documents, runs on them, and what is refused."""

import json

import pytest
import torch
from tiny import Trajectory, stop_after_a_task, tiny_config
from transformers import BertConfig, BertForMaskedLM

from cl_toolkit import UserError
from cl_toolkit.benchmarks.text import Text
from cl_toolkit.models.tiny import byte_tokenizer
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.rows import fill_row
from cl_toolkit.runs.run import Run
from cl_toolkit.study.cells import load_run

DOMAINS = {"birds": "the wren sings. ", "rocks": "GRANITE IS HARD! ", "seas": "0123 waves 456. "}


@pytest.fixture
def place(tmp_path):
    """Three domains: two of files with documents in them, one of folders of files."""
    for name, text in DOMAINS.items():
        for split, count in (("train", 8), ("valid", 2), ("test", 3)):
            documents = [text * (3 + i) for i in range(count)]
            folder = tmp_path / "data" / name
            folder.mkdir(parents=True, exist_ok=True)
            if name == "seas":
                (folder / split).mkdir()
                for i, document in enumerate(documents):
                    (folder / split / f"part{i}.txt").write_text(f"{document}\n", encoding="utf-8")
            else:
                (folder / f"{split}.txt").write_text("\n\n\n".join(documents) + "\n", encoding="utf-8")
    return tmp_path / "data"


def stream(place):
    return Text(Text.Config(path=str(place)))


def config_of(place, **changes):
    section = {"name": "text", "path": str(place), **changes.pop("stream", {})}
    plain = tiny_config(
        **{"objective": {"name": "lm", "block_size": 32}, "prompt": {"max_prompt_length": 32}, **changes}
    )
    plain["stream"] = section
    return load_run(plain)


def run(place, folder, **changes):
    return Trajectory(Run(config_of(place, **changes), folder, None))


# the folder ----------------------------------------------------------------------------------------------------------


def test_documents_stand_apart_by_two_empty_lines_or_in_files_of_their_own(place):
    assert stream(place).names() == list(DOMAINS)
    birds, _, seas = stream(place).tasks(list(DOMAINS))
    assert [(e.id, e.text) for e in birds.test] == [
        (f"birds/test/{i + 1}", DOMAINS["birds"] * (3 + i)) for i in range(3)
    ]
    assert [(e.id, e.text) for e in seas.valid] == [
        (f"seas/valid/part{i}", DOMAINS["seas"] * (3 + i)) for i in range(2)
    ]
    assert [len(t.train) for t in (birds, seas)] == [8, 8]
    assert birds.scorer == "perplexity"


def test_one_empty_line_is_a_paragraph(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.txt").write_text("\ufeff\none\n\nstill one\n \n\t\n\n\ntwo\n\n\n\n", encoding="utf-8")
    (task,) = stream(tmp_path).tasks(["a"])
    assert [(e.id, e.text) for e in task.train] == [("a/train/1", "one\n\nstill one"), ("a/train/2", "two")]
    assert task.test == ()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: (p / "birds" / "train").mkdir(), "train.txt: stands beside the folder train; expected one of them"),
        (lambda p: (p / "birds" / "test.txt").write_text("\n\n\n"), r"test.txt: holds no text"),
        (lambda p: (p / "birds" / "test.txt").write_bytes(b"\xff\xfe"), r"test.txt: not UTF-8: .* at byte 0"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(make, words, place):
    make(place)
    with pytest.raises(UserError, match=words):
        stream(place).tasks(["birds"])


def test_a_folder_without_domains_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"stream.path: .*: expected folders <task>/train.txt or <task>/train/\*.txt"):
        stream(tmp_path).names()
    with pytest.raises(UserError, match=r"stream.path: .*: no such folder"):
        stream(tmp_path / "none").names()


# runs ----------------------------------------------------------------------------------------------------------------


def test_it_learns_a_domain_and_the_record_says_that_less_is_better(place, tmp_path):
    settings = {"train": {"max_steps": 30, "learning_rate": 1e-2, "global_batch_size": 8}}
    record = run(place, tmp_path / "out", **settings).record
    assert record["units"] == ["perplexity"] * 3
    assert record["higher_is_better"] == [False] * 3
    before, after = record["matrix"][0][0], record["matrix"][1][0]
    assert before > 200  # near the 259 of a model that knows nothing
    assert after < 0.25 * before
    assert record["matrix"][3][2] < record["matrix"][0][2]
    rows = [json.loads(line) for line in (tmp_path / "out/answers/row-1.jsonl").read_text().splitlines()]
    assert rows[0]["question"] == (DOMAINS["birds"] * 3)[:200]
    assert all(len(row["question"]) <= 200 for row in rows)


@pytest.mark.parametrize(
    "changes",
    [
        {"strategies": {"replay": {}, "ewc": {}}},
        {"strategies": {"derpp": {"memory_batch_size": 4}, "lwf": {}}},
        {"model": {**tiny_config()["model"], "adapter": {"r": 2, "between_tasks": "merge"}}},
        {
            "strategies": {"o_lora": {}},
            "model": {**tiny_config()["model"], "adapter": {"r": 2, "between_tasks": "stack"}},
        },
        {"stream": {"view": "joint"}},
        {"stream": {"anchors": ["birds"], "tasks": ["rocks", "seas"]}, "strategies": {"replay": {}}},
    ],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(changes, place, tmp_path):
    whole = run(place, tmp_path / "a", **dict(changes))
    config = config_of(place, **dict(changes))
    if len(whole.run.stream.tasks) > 1:
        stop_after_a_task(Run(config, tmp_path / "b", None))
    again = Trajectory(Run(config, tmp_path / "b", None))
    assert comparable(again.record) == comparable(whole.record)
    assert again.weights == whole.weights


def test_rehearsed_blocks_are_those_that_were_trained_also_of_an_anchor(place, tmp_path):
    section = {"anchors": ["birds"], "tasks": ["rocks"]}
    found = run(place, tmp_path, stream=section, strategies={"replay": {}})
    stored = found.run.strategy.store.by_task()
    assert set(stored) == {-1, 0}
    for examples in stored.values():
        assert all(len(e.extra["tokens"]) <= 32 for e in examples)
    assert found.record["cost"]["stored_examples"] == sum(map(len, stored.values()))
    assert found.record["anchor_matrix"][0][0] > 1


def test_watching_leaves_no_trace(place, tmp_path):
    curve = {"forgetting_curve": {"schedule": "linear", "every": 1, "examples": 2}}
    watched = run(place, tmp_path / "a", evaluate=curve)
    assert watched == run(place, tmp_path / "b")
    assert watched.record["probes"]["curves"]


def test_drift_of_texts_is_of_how_they_go_on(place, tmp_path):
    drift = {"probes": {"drift": {"examples": 2, "max_new_tokens": 4}}}
    rows = run(place, tmp_path / "a", evaluate=drift).record["probes"]["drift"]
    assert all(row["kl"] > 0 for row in rows)
    still = run(place, tmp_path / "b", evaluate=drift, train={"learning_rate": 0.0}).record["probes"]["drift"]
    assert {row["kl"] for row in still} == {0.0}


def test_texts_first_and_then_instructions(place, tmp_path):
    """Continued pre-training, then instruction tuning: two stages, two objectives, two directions of scores."""
    then = {"name": "cl_toolkit.check.runs:EasySkills", "tasks": ["max"], "length": 3, "train_size": 8, "test_size": 4,
            "objective": "sft"}  # fmt: skip
    found = run(place, tmp_path, stream={"then": [then]}, strategies={"replay": {}, "ewc": {}}).record
    assert found["tasks"][-1] == "max"
    assert found["higher_is_better"] == [False] * (len(found["tasks"]) - 1) + [True]
    terms = {row["task"]: set(row["terms"]) for row in found["losses"]}
    assert "lm" in terms[found["tasks"][0]]
    assert "sft" in terms["max"]
    assert "ewc" in terms["max"]
    assert "lower" in found["undefined"]["bwt"]


def test_the_plan_counts_blocks(place):
    from cl_toolkit.data.streams import build_stream
    from cl_toolkit.study.plan import forecast

    config = config_of(place, train={"max_steps": -1, "global_batch_size": 4, "num_train_epochs": 1})
    cost = forecast(config, build_stream(config), (1000, 1000), 1e9)
    whole = Run(config, place / "out", None)
    steps = sum(len(whole.view(task, k, whole.objective).batches()) for k, task in enumerate(whole.stream.tasks))
    assert cost.steps == steps
    assert cost.tokens == pytest.approx(steps * 4 * 32, rel=0.1)


# refusals ------------------------------------------------------------------------------------------------------------


def test_sft_on_texts_and_lm_on_conversations_are_refused(place):
    with pytest.raises(
        UserError, match=r"objective sft: learns from conversations and arrays and .*; stream text gives documents"
    ):
        config_of(place, objective={"name": "sft"})
    with pytest.raises(UserError, match="objective lm: learns from documents; stream skills gives conversations"):
        load_run({**tiny_config(objective={"name": "lm"}), "stream": {"name": "skills"}})
    with pytest.raises(
        UserError, match=r"strategies.answer_styles: learns from conversations; stream text gives documents"
    ):
        config_of(place, strategies={"answer_styles": {}})


def test_a_model_that_reads_no_documents_is_refused(place, tmp_path):
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(vocab_size=259, **shape)).save_pretrained(tmp_path / "bert")
    byte_tokenizer().save_pretrained(tmp_path / "bert")
    plain = tiny_config(objective={"name": "lm"})
    plain["stream"] = {"name": "text", "path": str(place)}
    for head in ("none", "classes"):
        plain["model"] = {"name": str(tmp_path / "bert"), "head": head}
        with pytest.raises(
            UserError, match=r"stream.name: text gives documents, model .*bert takes conversations; use tiny-lm"
        ):
            load_run(plain)


def test_a_row_longer_than_the_model_has_positions_is_refused_before_anything_is_loaded(place, tmp_path):
    model = {**tiny_config()["model"], "max_position_embeddings": 24}
    with pytest.raises(
        UserError, match=r"task birds: objective.block_size is 32, the model has 24 positions; lower obj"
    ):
        Run(config_of(place, model=model), tmp_path / "out", None)


def test_windows_are_no_longer_than_the_model_has_positions(place, tmp_path):
    model = {**tiny_config()["model"], "max_position_embeddings": 24}
    settings = {"model": model, "objective": {"name": "lm", "block_size": 24}, "prompt": {"max_prompt_length": 1000}}
    found = Run(config_of(place, **settings), tmp_path / "out", None)
    assert found.codec.window == 24
    longest = []
    found.model.register_forward_pre_hook(
        lambda _, args, kwargs: longest.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    fill_row(found, 0)
    assert max(longest) == 24
    assert torch.isfinite(torch.tensor(found.record["matrix"][0])).all()
