"""Name -> class: built-ins, entry points of other packages, `package.module:Class`, or `path/to/file.py:Class`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from cl_toolkit.errors import UserError, did_you_mean, guest, quoted
from cl_toolkit.sources import Source, digest_of, file_source, loaded_from, object_source, own_files


def canonical(name: str) -> str:
    """The name with `_` for `-`: both spellings name the same thing."""
    return name.replace("-", "_")


class Registry:
    """One kind of thing by name. Nothing is imported before it is asked for.

    kind: in the singular, for messages. group: the entry-point group under which other packages bring theirs. settings_of: what
    is not a name here but a setting of one -> that one, for the hint that an unknown name gets.
    """

    def __init__(
        self, kind: str, group: str, builtins: Mapping[str, str], settings_of: Mapping[str, str] | None = None
    ):
        self.kind, self.group, self.settings_of = kind, group, settings_of or {}
        self._sources: dict[str, str | type | EntryPoint] = dict(builtins)
        self._scanned = False
        self.broken: dict[str, str] = {}
        """Entry points that cannot be used, and why."""

    def _scan(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        for entry in entry_points(group=self.group):
            name = canonical(entry.name)
            if name in self._sources:
                self.broken[f"{name} of {entry.value}"] = f"the {self.kind} {name!r} is already {self.origin(name)}"
            else:
                self._sources[name] = entry

    def register(self, name: str, cls: type) -> None:
        """Add a class for this process (a notebook, a script). A name taken twice is an error."""
        self._scan()
        name = canonical(name)
        if name in self._sources:
            raise UserError(f"the {self.kind} {name!r} is already {self.origin(name)}; choose another name")
        self._sources[name] = cls

    def origin(self, name: str) -> str:
        """Where a name comes from."""
        source = self._sources[canonical(name)]
        if isinstance(source, EntryPoint):
            return source.value
        return source if isinstance(source, str) else f"{source.__module__}:{source.__qualname__}"

    def source(self, name: str) -> Source | None:
        """The code behind a name, for the identity of a result; None for what is built in."""
        self._scan()
        found = name if ":" in name else self._sources[canonical(name)]
        if isinstance(found, type):
            return object_source(found)
        reference = found.value if isinstance(found, EntryPoint) else found
        location = reference.rpartition(":")[0]
        if location.endswith(".py"):
            return file_source(Path(location), reference)
        if location.split(".")[0] == "cl_toolkit":
            return None
        return object_source(self.get(name, self.kind), reference)

    def is_registered(self, name: str) -> bool:
        """Whether a name was given to a class in this process alone, which no other process can know."""
        return isinstance(self._sources.get(canonical(name)), type)

    def names(self) -> list[str]:
        """All known names, in the order of registration."""
        self._scan()
        return list(self._sources)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def get(self, name: str, where: str) -> Any:
        """The class of that name, or behind `module:Class` or `file.py:Class` (split at the last colon). `where` names
        the place for the error message."""
        if not isinstance(name, str):
            raise UserError(f"{where}: expected the name of a {self.kind}, got {quoted(name)}")
        if ":" in name:
            return load_reference(name, where)
        self._scan()
        key = canonical(name)
        if key not in self._sources:
            near = did_you_mean(self.settings_of.get(key.lower(), key), self._sources)
            raise UserError(f"{where}: unknown {self.kind} {quoted(name)}{near}")
        source = self._sources[key]
        if isinstance(source, EntryPoint):
            source = source.value
        return load_reference(source, where) if isinstance(source, str) else source


def load_reference(reference: str, where: str) -> Any:
    """The object behind `package.module:Name` or `path/to/file.py:Name`."""
    location, _, attribute = reference.rpartition(":")
    if location.endswith(".py"):
        module = _load_file(Path(location), where)
    else:
        if os.getcwd() not in sys.path:  # where one's own modules lie, however the program was started
            sys.path.append(os.getcwd())
        try:
            with guest(f"{where}: {reference}", f"cannot import {location}"):
                module = importlib.import_module(location)
        except UserError as error:
            if not isinstance(error.__cause__, ImportError):
                raise
            raise UserError(f"{where}: {reference}: cannot import {location}: {error.__cause__}") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(f"{where}: {location} has no {attribute!r}{did_you_mean(attribute, public)}") from None


def _load_file(path: Path, where: str) -> Any:
    if not path.is_file():
        raise UserError(f"{where}: {path}: no such file")
    files = own_files(path.resolve())
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]  # my-file.py and my_file.py are two
    content = digest_of([file.read_bytes() for file in files])  # an edited file is another module
    name = f"cl_toolkit_guest_{''.join(c if c.isalnum() else '_' for c in path.stem)}_{place}_{content}"
    if name in sys.modules:
        return sys.modules[name]
    # what it imports of one's own may have changed with it, or be another file of the same name
    for known in loaded_from(files[1:], path.resolve().parent):
        del sys.modules[known]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses of a guest look their module up
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # as where a script lies
    try:
        with guest(where, str(path.resolve())):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(folder)
    return module


def made(cls: type, settings: Any, where: str) -> Any:
    """An object of a registered class; what its constructor raises is told with its place."""
    with guest(where, cls):
        return cls(settings)


STRATEGIES = Registry(
    "strategy",
    "cl_toolkit.strategies",
    {
        "replay": "cl_toolkit.strategies.replay:Replay",
        "surprise_replay": "cl_toolkit.strategies.replay:SurpriseReplay",
        "power_law": "cl_toolkit.strategies.replay:PowerLaw",
        "ewc": "cl_toolkit.strategies.ewc:EWC",
        "reg_lora": "cl_toolkit.strategies.reg_lora:RegLoRA",
        "lwf": "cl_toolkit.strategies.lwf:LwF",
        "agem": "cl_toolkit.strategies.gem:AGEM",
        "gem": "cl_toolkit.strategies.gem:GEM",
        "ogd": "cl_toolkit.strategies.ogd:OGD",
        "si": "cl_toolkit.strategies.si:SI",
        "o_lora": "cl_toolkit.strategies.o_lora:OLoRA",
        "guard": "cl_toolkit.strategies.guard:Guard",
        "inf_lora": "cl_toolkit.strategies.inf_lora:InfLoRA",
        "sd_lora": "cl_toolkit.strategies.sd_lora:SDLoRA",
        "slao": "cl_toolkit.strategies.slao:SLAO",
        "coda_prompt": "cl_toolkit.strategies.coda_prompt:CODAPrompt",
        "compression_memory": "cl_toolkit.strategies.compression_memory:CompressionMemory",
        "logit_swap": "cl_toolkit.strategies.logit_swap:LogitSwap",
        "der": "cl_toolkit.strategies.der:DER",
        "derpp": "cl_toolkit.strategies.der:DERpp",
        "answer_styles": "cl_toolkit.strategies.answer_styles:AnswerStyles",
        "prototype_distill": "cl_toolkit.strategies.prototype_distill:PrototypeDistill",
        "merge": "cl_toolkit.strategies.merge:Merge",
        "ema": "cl_toolkit.strategies.ema:EMA",
        "instruction_residual": "cl_toolkit.strategies.instruction_residual:InstructionResidual",
        "freeze": "cl_toolkit.strategies.freeze:Freeze",
    },
    dict.fromkeys(("dare", "magmax", "task_arithmetic", "ties", "wise_ft"), "merge"),
)
OBJECTIVES = Registry(
    "objective",
    "cl_toolkit.objectives",
    {
        "sft": "cl_toolkit.strategies.objectives.sft:SFT",
        "lm": "cl_toolkit.strategies.objectives.lm:LM",
        "rft": "cl_toolkit.strategies.objectives.rft:RFT",
        "on_policy": "cl_toolkit.strategies.objectives.on_policy:OnPolicy",
        "dpo": "cl_toolkit.strategies.objectives.dpo:DPO",
        "supcon": "cl_toolkit.strategies.objectives.supcon:SupCon",
        "dft": "cl_toolkit.strategies.objectives.dft:DFT",
        "eaft": "cl_toolkit.strategies.objectives.eaft:EAFT",
        "asft": "cl_toolkit.strategies.objectives.asft:ASFT",
    },
    dict.fromkeys(("dr_grpo", "grpo", "remax", "rloo"), "rft") | dict.fromkeys(("gkd", "sdft", "sdpo"), "on_policy"),
)
STREAMS = Registry(
    "stream",
    "cl_toolkit.streams",
    {
        "skills": "cl_toolkit.benchmarks.skills:Skills",
        "dataset": "cl_toolkit.benchmarks.dataset:Dataset",
        "jsonl": "cl_toolkit.benchmarks.jsonl:Jsonl",
        "text": "cl_toolkit.benchmarks.text:Text",
        "avalanche": "cl_toolkit.benchmarks.avalanche:Avalanche",
        "biography": "cl_toolkit.benchmarks.biography:Biography",
        "digits": "cl_toolkit.benchmarks.digits:Digits",
        "images": "cl_toolkit.benchmarks.images:Images",
    },
)
PROBES = Registry(
    "probe",
    "cl_toolkit.probes",
    {
        "drift": "cl_toolkit.measure.probes.drift:Drift",
        "autopsy": "cl_toolkit.measure.probes.autopsy:Autopsy",
        "lm_eval": "cl_toolkit.measure.probes.lm_eval:LmEval",
    },
)
TRACKERS = Registry(
    "tracker",
    "cl_toolkit.trackers",
    {
        "tensorboard": "cl_toolkit.runs.trackers.tensorboard:TensorBoard",
        "trackio": "cl_toolkit.runs.trackers.trackio:Trackio",
    },
)
SCORERS = Registry(
    "scorer",
    "cl_toolkit.scorers",
    {
        "exact_match": "cl_toolkit.measure.scorers:exact_match",
        "normalized_exact": "cl_toolkit.measure.scorers:normalized_exact",
        "numeric": "cl_toolkit.measure.scorers:numeric",
        "choices": "cl_toolkit.measure.scorers:choices",
        "choices_norm": "cl_toolkit.measure.scorers:choices_norm",
        "class_accuracy": "cl_toolkit.measure.scorers:class_accuracy",
        "token_f1": "cl_toolkit.measure.scorers:token_f1",
        "rouge_l": "cl_toolkit.measure.scorers:rouge_l",
        "fuzzy_ratio": "cl_toolkit.measure.rewriting:fuzzy_ratio",
        "sari": "cl_toolkit.measure.rewriting:sari",
        "perplexity": "cl_toolkit.measure.scorers:perplexity",
    },
)
