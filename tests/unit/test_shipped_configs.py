"""The configs that ship: each resolves, and base.yaml says every default of the core once."""

import dataclasses

import pytest
import yaml
from files import rows, write_rows

from cl_toolkit.config import schema as config_module
from cl_toolkit.config.layers import base_layer, config_dir, shipped_configs
from cl_toolkit.config.schema import COMPARISON_KEYS, RunConfig
from cl_toolkit.study.cells import load_study

NEEDED = {
    "chat-lora": ["stream.name=skills", "model.name=some/model"],
    "own-answers": ["stream.name=skills", "model.name=some/model"],
    "text": ["stream.name=cl_toolkit.check.runs:EasyDocuments"],
    "citb-dialog": ["stream.root=."],
    "coda-prompt-clinc150": ["stream.path=DOMAINS", "model.name=some/encoder"],
    "coda-prompt": ["stream.name=digits", "model.start=null", "model.image_size=8", "model.patch_size=2"],
    "clinc150": ["stream.root=.", "model.name=some/encoder"],
    "long-cl": ["stream.root=."],
    "newer-arms-clinc150": ["stream.path=DOMAINS", "model.name=some/model"],
    "newer-arms-clinc150-start": ["stream.path=DOMAINS"],
    "newer-arms-clinc150-shown": ["stream.path=DOMAINS"],
    "newer-arms-clinc150-anchored": ["stream.path=DOMAINS", "model.name=some/model"],
    "permuted-mnist": ["stream.name=digits"],
    "standard-cl": ["stream.root=."],
    "superni-15": ["stream.root=."],
    "trace": ["stream.root=.", "model.name=some/model"],
    "words": ["stream.name=skills", "stream.tasks=[sort]"],
}
DOMAINS = (
    "auto_and_commute",
    "banking",
    "home",
    "kitchen_and_dining",
    "meta",
    "part",
    "shown",
    "small_talk",
    "travel",
    "utility",
    "work",
)


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_resolves(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for domain in DOMAINS:
        write_rows(tmp_path / "DOMAINS" / domain / "train.jsonl", rows())
    study = load_study(name, NEEDED.get(name, []))
    assert study.name == name
    assert len(study.runs) == len(study.methods) * len(study.seeds) * max(1, len(study.plain["orders"] or []))
    assert {run.method for run in study.runs} == set(study.methods)


def test_base_yaml_has_every_field_of_the_core_and_nothing_else():
    base = base_layer()
    sections = {f.name: f.type for f in dataclasses.fields(RunConfig)}
    own = {*COMPARISON_KEYS, "strategies", "seed", "name"}
    others = {"method", "order", "plain", "stream_settings", "kind", "probes", "then"}  # of a run, not of a config
    assert set(base) == (set(sections) - others) | own
    classes = {"stream": "StreamSection", "prompt": "Prompt", "model": "ModelSection", "train": "Train",
               "engine": "EngineSection", "evaluate": "Evaluate", "checkpoint": "Checkpoint"}  # fmt: skip

    def compare(cls, values, path):
        fields = {f.name: f for f in dataclasses.fields(cls)}
        assert set(values) == set(fields), path
        for name, field in fields.items():
            # what a Prompt is made with in a script may be left out there; both places say the same
            assert field.default in (dataclasses.MISSING, values[name]), (
                f"{path}.{name} has another default in the code"
            )
            inner = getattr(config_module, str(field.type), None)
            if dataclasses.is_dataclass(inner):
                compare(inner, values[name], f"{path}.{name}")

    for section, cls in classes.items():
        compare(getattr(config_module, cls), base[section], section)


def test_no_key_of_base_yaml_is_there_twice():
    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [loader.construct_object(k) for k, _ in node.value]
        assert len(set(keys)) == len(keys)
        return {loader.construct_object(k): loader.construct_object(v, deep=True) for k, v in node.value}

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    for path in config_dir().glob("*.yaml"):
        assert yaml.load(path.read_text(encoding="utf-8"), Loader)
