"""Names to classes: built-ins, references, files, other packages; a wrong name is one line."""

from importlib.metadata import EntryPoint

import pytest

from cl_toolkit import Strategy, UserError, registry
from cl_toolkit.cli.show import catalogue
from cl_toolkit.registry import OBJECTIVES, PROBES, SCORERS, STRATEGIES, STREAMS, TRACKERS, Registry, load_reference


def fresh():
    return Registry("thing", "cl_toolkit.no_such_group", {"power_law": "cl_toolkit.strategies.replay:PowerLaw"})


@pytest.mark.parametrize("known", [STRATEGIES, OBJECTIVES, STREAMS, SCORERS], ids=lambda r: r.kind)
def test_every_built_in_name_loads(known):
    assert len(known.names()) == len(set(known.names())) >= 2
    for name in known:
        found = known.get(name, "test")
        assert callable(found)
        assert known.origin(name).startswith("cl_toolkit.")
    if known is STRATEGIES:
        assert all(issubclass(known.get(n, "test"), Strategy) for n in known)


def test_dash_and_underscore_are_equal():
    things = fresh()
    assert things.get("power-law", "t") is things.get("power_law", "t")


def test_a_class_can_be_registered_once():
    things = fresh()
    things.register("my-thing", Strategy)
    assert things.get("my_thing", "t") is Strategy
    assert things.names() == ["power_law", "my_thing"]
    with pytest.raises(
        UserError, match=r"the thing 'my_thing' is already cl_toolkit.strategy:Strategy; choose another"
    ):
        things.register("my_thing", Strategy)
    with pytest.raises(UserError, match=r"the thing 'power_law' is already cl_toolkit.strategies.replay:PowerLaw"):
        things.register("power-law", Strategy)


def test_another_package_brings_its_own(monkeypatch):
    def entry(name, value):
        return lambda group: [EntryPoint(name=name, value=value, group=group)]

    monkeypatch.setattr(registry, "entry_points", entry("their-own", "cl_toolkit.strategy:Strategy"))
    things = fresh()
    assert things.get("their_own", "t") is Strategy
    assert things.origin("their-own") == "cl_toolkit.strategy:Strategy"
    monkeypatch.setattr(registry, "entry_points", entry("power-law", "other.package:Thing"))
    things = fresh()
    assert things.names() == ["power_law"]
    assert things.broken == {
        "power_law of other.package:Thing": "the thing 'power_law' is already cl_toolkit.strategies.replay:PowerLaw"
    }


def test_one_broken_plugin_costs_its_own_line(monkeypatch):
    for value, why in (
        ("no_such_package:Thing", "No module named 'no_such_package'"),
        ("os:nothing", "has no 'nothing'"),
    ):
        monkeypatch.setattr(
            registry, "entry_points", lambda group, v=value: [EntryPoint(name="theirs", value=v, group=group)]
        )
        for known in (STRATEGIES, OBJECTIVES, STREAMS, SCORERS, PROBES, TRACKERS):
            monkeypatch.setattr(known, "_scanned", False)
            monkeypatch.setattr(known, "_sources", dict(known._sources))
        found = catalogue()
        assert {row["name"] for row in found["strategies"]} >= {"replay", "theirs"}
        (row,) = (row for row in found["strategies"] if row["name"] == "theirs")
        assert row["summary"].startswith("cannot be used: ")
        assert why in row["summary"]
        monkeypatch.undo()


def test_a_file_that_leaves_on_import_is_refused(tmp_path):
    path = tmp_path / "leaves.py"
    path.write_text("import sys\n\nsys.exit(0)\n")
    with pytest.raises(UserError, match=r"t: .*leaves.py: SystemExit: 0 \(.*leaves.py:3\)"):
        load_reference(f"{path}:A", "t")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("power_lwa", "place: unknown thing 'power_lwa'; did you mean 'power_law'?"),
        ("zzz", "place: unknown thing 'zzz'; known: power_law"),
        (3, "place: expected the name of a thing, got 3"),
        ("no.such.module:X", "place: no.such.module:X: cannot import no.such.module: No module named 'no'"),
        ("cl_toolkit.strategy:Stratgy", "place: cl_toolkit.strategy has no 'Stratgy'; did you mean 'Strategy'?"),
        ("no_file.py:X", "place: no_file.py: no such file"),
    ],
)
def test_a_wrong_name_is_one_line(name, message):
    with pytest.raises(UserError) as error:
        fresh().get(name, "place")
    assert str(error.value) == message


def test_a_file_is_loaded_once_and_its_faults_are_named(tmp_path):
    path = tmp_path / "my file.py"
    path.write_text("from __future__ import annotations\nfrom dataclasses import dataclass\n"
                    "@dataclass\nclass A:\n    x: int = 1\nloaded = []\n")  # fmt: skip
    one = load_reference(f"{path}:A", "t")
    assert one is load_reference(f"{path}:A", "t")
    assert one().x == 1
    other = tmp_path / "my_file.py"  # the names of both files are alike
    other.write_text("class A: pass\n")
    assert load_reference(f"{other}:A", "t") is not one
    for text, message in (
        ("def f(:\n", r"t: .*broken0.py: SyntaxError: "),
        ("import no_such_module\n", r"t: .*broken1.py: ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0\n", r"t: .*broken2.py: ZeroDivisionError: division by zero"),
    ):
        broken = tmp_path / f"broken{len(list(tmp_path.glob('broken*')))}.py"
        broken.write_text(text)
        with pytest.raises(UserError, match=message):
            load_reference(f"{broken}:A", "t")


def test_the_catalogue_tells_name_line_paper_and_settings():
    found = catalogue()
    assert list(found) == [
        "strategies", "objectives", "streams", "scorers", "probes", "trackers", "models", "engines", "configs"
    ]  # fmt: skip
    for kind in set(found) - {"configs"}:
        for row in found[kind]:
            assert 10 < len(row["summary"]) < 200, row
            assert "\n" not in row["summary"]
            assert row["summary"].count("(") == row["summary"].count(")"), row  # no sentence ends with `et al.`
    assert not [row for rows in found.values() for row in rows if row["summary"].startswith("cannot be used")]
    replay = next(row for row in found["strategies"] if row["name"] == "replay")
    assert replay["settings"]["replay_fraction"] == 0.5
    assert replay["needs_examples"]
    assert all(row["paper"] for row in (*found["strategies"], *found["objectives"]))
    models = {row["name"]: row for row in found["models"]}
    assert set(models) == {"tiny-lm", "mlp", "small-cnn", "small-vit"}
    assert models["mlp"]["settings"] == {
        "num_classes": 10,
        "hidden_size": 128,
        "start": None,
        "input_size": 64,
        "num_hidden_layers": 2,
    }
    assert models["tiny-lm"]["settings"]["warmup"] is None
    assert models["small-cnn"]["inputs"] == ("arrays",)


def test_everything_built_in_can_be_used():
    rows = [row for rows in catalogue().values() for row in rows if row.get("from", "").startswith("cl_toolkit.")]
    assert len(rows) > 30
    assert [row for row in rows if row["summary"].startswith("cannot be used")] == []
