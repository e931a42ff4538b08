"""A row of a file as examples: every field of it is used, or refused by name.

Five fields: `instruction`, `input`, `target` (needed), `choices`, `task`, and every field that `prompt.template` names. Besides
them `system` (a system turn in front) and `history` (a list of [user, assistant] pairs before the question). `references` are
further right answers, for scoring; a target that is a list of texts is the first and its references. `rejected` is an answer
that the target is preferred to (objective `dpo`; others learn the target).
A conversation: `messages`, whose last assistant turn is the answer; `tools`, `choices`. A turn has `role`, `content`, and what
chat templates may write: `name`, `tool_calls`, `tool_call_id`, `reasoning_content`. Beside `tool_calls` the content may be
null. `developer` is read as `system`. What else people have is brought into these two by `shapes`.

Which turns are learned is `prompt.learn_turns`. `last`: the last one; a turn's `weight` may only say so, 1 or nothing there and
0 or nothing elsewhere. `all`: every assistant turn of a training row whose `weight` is not 0, each as an example of its own
that ends there, so that each answer is learned as it would be asked for (a template may write an earlier turn otherwise); of
a row that is scored the last such turn.

null counts as absent. `id`, `idx`, `source`, `metadata` and `extra` hold nothing to learn and are skipped.
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from cl_toolkit.data.shapes import in_shape, plain_content
from cl_toolkit.errors import UserError, did_you_mean, listed, quoted, short
from cl_toolkit.types import Example, Message

ROLES = ("system", "user", "assistant", "tool")
TURN = ("name", "tool_calls", "tool_call_id", "reasoning_content")
PASSED_OVER = ("id", "idx", "source", "metadata", "extra")
FIVE = ("task", "instruction", "input", "target", "references", "rejected", "choices", "system", "history", "tools")
CONVERSATION = frozenset({"messages", "references", "rejected", "tools", "choices", "task", "system"})


@dataclass(frozen=True)
class Template:
    """`prompt.template`, read once: the text and the fields that it names. known: all fields that a row may have. texts: those
    that are text. asked: those of which one is needed."""

    text: str
    fields: frozenset[str]
    known: frozenset[str]
    texts: tuple[str, ...]
    asked: tuple[str, ...]
    every: bool = False

    @staticmethod
    def of(text: str, learn_turns: str = "last") -> Template:
        """Raises ValueError for a template without a field, or with more than plain names in its braces."""
        fields = set()
        for _, name, spec, _ in string.Formatter().parse(text):
            if name is not None:
                if not name.isidentifier() or "{" in (spec or ""):
                    raise ValueError(
                        f"expected names of fields in the braces, such as {{input}}, got {{{short(name)}}}"
                    )
                fields.add(name)
        if not fields:
            raise ValueError(f"names no field, so every question would be alike; got {quoted(text)}")
        texts = {"task", "instruction", "input", "system", *fields} - {"choices"}
        asked = {"instruction", "input", *fields} - {"task", "choices"}
        known, every = frozenset({*FIVE, *fields}), learn_turns == "all"
        return Template(text, frozenset(fields), known, tuple(sorted(texts)), tuple(sorted(asked)), every)


def parse_row(line: str, where: str) -> dict[str, Any]:
    """The fields of a line that have a value. Strict JSON: no NaN, no key given twice, no half of a character."""
    try:
        row = DECODER.decode(line)
        if "\\ud" in line or "\\uD" in line:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise UserError(f"{where}: holds half of a character ({half}, a lone surrogate), which no text has") from None
    except RecursionError:
        raise UserError(f"{where}: is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{where}: {short(str(error), 160)}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with fields, got {type(row).__name__}")
    return {key: value for key, value in row.items() if value is not None}


def _no_constant(name: str) -> None:
    raise ValueError(f"not JSON: {name} is no value; an empty field is null")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"not JSON: the number {short(text, 30)} is too large")
    return value


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a JSON object."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the field {quoted(next(k for k in keys if keys.count(k) > 1))} stands twice")
    return found


DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=each_once)


def examples_of(
    row: dict[str, Any], where: str, identity: str, template: Template, learned: bool = True
) -> list[Example]:
    """A row as examples, one of them but where every assistant turn is learned; raises UserError with file, line and field.
    learned: whether it is of a training split."""
    row, every = in_shape(row, where), template.every and learned
    if "messages" in row:
        turns, weights = conversation(row, where, template.every)
        if template.every and not learned:
            turns, weights = to_be_scored(turns, weights, where)
        choices = allowed(row, turns[-1].content, where)
    else:
        turns, choices = five_fields(row, where, template)
        weights = [None] * len(turns)
    tools = tools_of(row, where)
    *context, answer = turns
    examples = []
    if every:
        for i, (turn_, weight) in enumerate(zip(context, weights[:-1], strict=True)):
            if turn_.role == "assistant" and weight != 0:
                check_extra(turn_.extra, f"{where}: turn {i + 1}", "a turn that is learned", "set its weight to 0")
                examples.append(
                    Example(id=f"{identity}.{i + 1}", messages=tuple(context[:i]), target=turn_.content, tools=tools)
                )
    if not every or weights[-1] != 0:
        examples.append(
            Example(
                id=identity,
                messages=tuple(context),
                target=answer.content,
                choices=choices,
                tools=tools,
                extra={**references(row, where), **rejected(row, answer.content, where)},
            )
        )
    for example in examples:
        if not example.target.strip() or not example.messages:
            raise UserError(f"{where}: {'an answer that is learned is empty' if example.messages else NO_QUESTION}")
    if not examples:
        raise UserError(f"{where}: {NO_TURN}")
    return examples


def to_be_scored(turns: list[Message], weights: list[Any], where: str) -> tuple[list[Message], list[Any]]:
    """(turns, weights) up to the last answer that could be learned: what is not to be said is not scored either."""
    ends = [i for i, turn_ in enumerate(turns) if turn_.role == "assistant" and weights[i] != 0]
    if not ends:
        raise UserError(f"{where}: {NO_TURN}")
    check_extra(turns[ends[-1]].extra, f"{where}: turn {ends[-1] + 1}", "a turn that is scored", "set its weight to 0")
    return turns[: ends[-1] + 1], weights[: ends[-1] + 1]


NO_TURN = "messages: no turn is learned, all weights are 0; leave out the row"
NO_QUESTION = "messages: begins with an answer that is learned; expected something before it, or its weight 0"


def five_fields(row: dict[str, Any], where: str, template: Template) -> tuple[list[Message], tuple[str, ...] | None]:
    """(turns, choices) of a row without `messages`."""
    if "target" not in row:
        raise UserError(f"{where}: the field 'target' is missing; found {listed(map(repr, row))}")
    if not isinstance(row["target"], str) or not row["target"].strip():
        raise UserError(f"{where}: target: expected text that is not empty, got {quoted(row['target'])}")
    refuse_unknown(row, template.known, where, "; a field is used where prompt.template names it")
    for field in template.texts:
        if not isinstance(row.get(field, ""), str):
            raise UserError(f"{where}: {field}: expected text, got {quoted(row[field])}")
    if not any(map(row.get, template.asked)):
        raise UserError(f"{where}: expected a field 'instruction' or 'input' (or 'messages')")
    turns = [Message(role="system", content=row["system"])] if row.get("system") else []
    turns += history(row["history"], where) if "history" in row else ()
    choices = allowed(row, row["target"], where)
    turns.append(Message(role="user", content=question(row, choices or (), where, template)))
    return [*turns, Message(role="assistant", content=row["target"])], choices


def references(row: dict[str, Any], where: str) -> dict[str, list[str]]:
    """What an example keeps of the further right answers of its row."""
    found = row.get("references", [])
    if not isinstance(found, list) or not all(isinstance(text, str) and text.strip() for text in found):
        raise UserError(f"{where}: references: expected a list of texts that are not empty, got {quoted(found)}")
    return {"references": found} if found else {}


def rejected(row: dict[str, Any], chosen: str, where: str) -> dict[str, str]:
    """What an example keeps of the answer that was not chosen."""
    if "rejected" not in row:
        return {}
    if not isinstance(row["rejected"], str) or not row["rejected"].strip():
        raise UserError(f"{where}: rejected: expected text that is not empty, got {quoted(row['rejected'])}")
    if row["rejected"] == chosen:
        raise UserError(f"{where}: rejected: is the chosen answer, {quoted(chosen)}; leave out the row")
    return {"rejected": row["rejected"]}


def refuse_unknown(row: dict[str, Any], known: Set[str], where: str, hint: str = "") -> None:
    """Every field is used, or refused by name."""
    for field in () if row.keys() <= known else row:
        if field not in known and field not in PASSED_OVER:
            near = did_you_mean(field, known).split("; known")[0]
            raise UserError(f"{where}: {short(field)}: unknown field{near or hint}")


def question(row: dict[str, Any], choices: Sequence[str], where: str, template: Template) -> str:
    """The user's turn: the template, filled."""
    fields = {"task": "", "instruction": "", "input": "", **row, "choices": ", ".join(choices)}
    try:
        return template.text.format(**fields).strip("\n")
    except (KeyError, IndexError, ValueError) as error:
        near = did_you_mean(str(error.args[0]), fields) if isinstance(error, KeyError) else ""
        raise UserError(
            f"prompt.template: cannot be filled from {where}: {type(error).__name__}: {error}{near}"
        ) from error


def history(pairs: Any, where: str) -> list[Message]:
    """Earlier turns, as pairs of what was asked and what was answered."""
    good = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
    )
    if not good:
        raise UserError(f"{where}: history: expected a list of [user, assistant] pairs of texts, got {quoted(pairs)}")
    return [
        Message(role=role, content=text)
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def allowed(row: dict[str, Any], target: str, where: str) -> tuple[str, ...] | None:
    """The choices of a line, of which the target must be one; None without them."""
    choices = row.get("choices")
    if choices is None:
        return None
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        raise UserError(f"{where}: choices: expected a list of texts, got {quoted(choices)}")
    if not choices or not all(c.strip() for c in choices):
        raise UserError(f"{where}: choices: expected texts that are not empty, got {quoted(choices)}")
    if len(set(choices)) < len(choices):
        twice = next(c for c in choices if choices.count(c) > 1)
        raise UserError(f"{where}: choices: {quoted(twice)} stands twice")
    if target not in choices:
        raise UserError(f"{where}: target: {quoted(target)} is not one of the choices {quoted(choices)}")
    return tuple(choices)


def tools_of(row: dict[str, Any], where: str) -> tuple[dict[str, Any], ...]:
    """What the model may call, as the row has it."""
    tools = row.get("tools", [])
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(f"{where}: tools: expected a list of objects, got {quoted(tools)}")
    return tuple(tools)


def conversation(row: dict[str, Any], where: str, every: bool) -> tuple[list[Message], list[Any]]:
    """(turns, weights) of a row with `messages`. every: whether all assistant turns are learned that have no weight 0."""
    for field in ("target", "instruction", "input", "history"):
        if field in row:
            raise UserError(
                f"{where}: {field}: stands beside messages, which hold the whole conversation; leave one out"
            )
    refuse_unknown(row, CONVERSATION, where)
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise UserError(f"{where}: messages: expected a list of turns with role and content")
    messages = [{key: value for key, value in m.items() if value is not None} for m in messages]
    turns = [turn(m, f"{where}: messages[{i}]") for i, m in enumerate(messages)]
    check_turns(turns, messages, where, every)
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise UserError(f"{where}: messages: expected at least two turns, the last one by the assistant")
    if not turns[-1].content.strip():
        raise UserError(f"{where}: messages: the last turn, which is the answer, is empty")
    weights = [m.get("weight") for m in messages]
    if "system" in row:
        if not isinstance(row["system"], str):
            raise UserError(f"{where}: system: expected text, got {quoted(row['system'])}")
        turns, weights = [Message(role="system", content=row["system"]), *turns], [None, *weights]
    if sum(t.role == "system" for t in turns) > 1:
        raise UserError(f"{where}: messages: expected one system turn at most; join them")
    return turns, weights


def check_turns(turns: list[Message], messages: list[dict[str, Any]], where: str, every: bool) -> None:
    """What is asked to be learned must be what is learned."""
    for i, (turn_, message) in enumerate(zip(turns, messages, strict=True)):
        here, last, weight = f"{where}: messages[{i}]", i == len(turns) - 1, message.get("weight")
        if last:
            check_extra(turn_.extra, here, "the last turn", "leave it out")
        if not every:
            check_weight(weight, here, last)
        elif weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
            raise UserError(f"{here}: weight: expected 0, 1 or nothing, got {quoted(weight)}")


def turn(message: dict[str, Any], where: str) -> Message:
    """One turn; what else it says stays as it is, in `extra`."""
    role = "system" if message.get("role") == "developer" else message.get("role")
    if role not in ROLES:
        raise UserError(f"{where}: role: expected {' | '.join(ROLES)}, got {quoted(role)}")
    for key in message:
        if key not in ("role", "content", "weight", *TURN):
            near = did_you_mean(key, ("role", "content", "weight", *TURN)).split("; known")[0]
            raise UserError(f"{where}: {short(key)}: unknown key of a turn{near}")
    extra = {key: message[key] for key in TURN if key in message}
    if extra.get("tool_calls") == []:
        del extra["tool_calls"]
    for key, value in extra.items():
        calls = key == "tool_calls"
        if not (
            isinstance(value, list) and all(isinstance(v, dict) for v in value) if calls else isinstance(value, str)
        ):
            raise UserError(f"{where}: {key}: expected {'a list of objects' if calls else 'text'}, got {quoted(value)}")
    content = plain_content(message.get("content", "" if "tool_calls" in extra else None), where)
    if not isinstance(content, str):
        raise UserError(f"{where}: content: expected text, got {quoted(content)}")
    return Message(role=role, content=content, extra=extra)


def check_extra(extra: Mapping[str, Any], where: str, what: str, instead: str) -> None:
    """Only the content of an answer is learned."""
    for key in extra:
        raise UserError(
            f"{where}: {key}: is of {what}, of which only the content is learned; write it into the content as the model "
            f"should say it, or {instead}"
        )


def check_weight(weight: Any, where: str, last: bool) -> None:
    """The last turn is learned and the others are not: a weight that asks for anything else is refused."""
    if weight is None or (not isinstance(weight, bool) and weight == (1 if last else 0)):
        return
    if last:
        raise UserError(
            f"{where}: weight: {quoted(weight)} on the answer, which is learned; leave out the row, or weight"
        )
    raise UserError(
        f"{where}: weight: {quoted(weight)}, but only the last turn is learned; set 0, or prompt.learn_turns: all"
    )
