"""Text encoders of four architectures, with a head over classes and without one: two tasks each."""

import json
from statistics import fmean

import pytest
import torch
from longer import long_but
from pieces import ask
from tiny import Trajectory, stop_after_a_task, tiny_config
from transformers import CONFIG_MAPPING, AutoModelForMaskedLM

from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.models.classifier import Classifier
from cl_toolkit.models.sections import Prompt
from cl_toolkit.models.tiny import byte_tokenizer
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import Run
from cl_toolkit.study.cells import load_run

SHAPE = {
    "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "initializer_range": 0.3, "pad_token_id": 258, "bos_token_id": 256, "eos_token_id": 257,
}  # fmt: skip
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "position_biased_input": False,
}
ENCODERS = {
    "bert": {"max_position_embeddings": 64},
    "roberta": {"max_position_embeddings": 66, "pad_token_id": 1},
    "deberta-v2": {"max_position_embeddings": 64, **RELATIVE},
    "modernbert": {
        "max_position_embeddings": 64, "cls_token_id": 256, "sep_token_id": 257, "global_attn_every_n_layers": 2,
        "local_attention": 8, "initializer_cutoff_factor": 2.0,
    },
}  # fmt: skip
TASKS = {"colours": {"red": "r", "blue": "b"}, "sizes": {"big": "x", "small": "o"}}
HEADS = {"classes": {"name": "sft"}, "none": {"name": "supcon", "projection_size": 8, "hidden_size": 16}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of encoders, and of tasks: a text is rows of a letter that gives its class away."""
    folder = tmp_path_factory.mktemp("encoders")
    for name, changes in ENCODERS.items():
        torch.manual_seed(0)
        AutoModelForMaskedLM.from_config(CONFIG_MAPPING[name](**{**SHAPE, **changes})).save_pretrained(folder / name)
        tokenizer = byte_tokenizer()
        tokenizer.cls_token, tokenizer.sep_token = "<s>", "</s>"
        tokenizer.save_pretrained(folder / name)
    for task, letters in TASKS.items():
        (folder / "data" / task).mkdir(parents=True)
        for split, count in (("train", 16), ("valid", 4), ("test", 8)):
            labels = list(letters)
            rows = [
                {
                    "instruction": "",
                    "input": letters[labels[i % 2]] * (3 + i % 5),
                    "target": labels[i % 2],
                    "choices": labels,
                }
                for i in range(count)
            ]
            (folder / "data" / task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config_of(place, name, head, adapter=None):
    plain = tiny_config(
        train={"max_steps": 20, "learning_rate": 0.005}, objective=HEADS[head], strategies={"replay": {}}
    )
    plain["stream"] = {
        "name": "jsonl", "path": str(place / "data"), "scorer": "class_accuracy", "tasks": list(TASKS),
    }  # fmt: skip
    plain["model"] = {"name": str(place / name), "head": head, **({"adapter": adapter} if adapter else {})}
    return load_run(plain)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ENCODERS)
def test_two_tasks(name, head, place, tmp_path):
    config, term = config_of(place, name, head), HEADS[head]["name"]
    whole = Trajectory(Run(config, tmp_path / "whole", None))
    first = [terms[term] for terms in whole.losses[: len(whole.losses) // 2]]
    assert fmean(first[-4:]) < fmean(first[:4])  # an epoch has four steps
    if head == "classes":
        assert whole.record["matrix"][1][0] > 0.7
    stop_after_a_task(Run(config, tmp_path / "stopped", None))
    again = Trajectory(Run(config, tmp_path / "stopped", None))
    assert again == whole
    assert comparable(again.record) == comparable(whole.record)


LIVES = [(name, life, head) for name in ENCODERS for life in ("continue", "merge", "stack") for head in HEADS]


@pytest.mark.parametrize(("name", "life", "head"), long_but({(n, "merge", "classes") for n in ENCODERS}, LIVES))
def test_under_lora(name, life, head, place, tmp_path):
    run = Trajectory(Run(config_of(place, name, head, {"r": 2, "between_tasks": life}), tmp_path, None))
    assert all(value == value for terms in run.losses for value in terms.values())
    if life == "merge":
        assert all(stage["merge_error"] < 1e-3 for stage in run.record["adapters"])


def test_batches_do_not_see_their_padding(place):
    for name in ENCODERS:
        kind = Classifier(name=str(place / name))
        model = kind.load(0, classes=("a", "b")).eval()
        codec = kind.codec(typed(Prompt, base_layer()["prompt"], "prompt", "test"), ("a", "b"))
        examples = [ask(text, "a") for text in ("x", "what is it " * 3)]
        with torch.no_grad():
            together = model(**codec.batch(examples).inputs).logits
            alone = torch.cat([model(**codec.batch([e]).inputs).logits for e in examples])
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
