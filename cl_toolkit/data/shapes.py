"""The shapes of rows that people have, brought into the two that `rows` reads: five fields, or a conversation.

Alpaca (Taori et al. 2023): `instruction`, `input`, `output`. TRL: `prompt` and `completion`, as texts or as turns. ShareGPT:
`conversations` of `{from, value}`, also with `function_call` and `observation` turns as LLaMA-Factory writes them. A turn's
content may come in parts, and `tools` as JSON text. Preferences: `chosen` and `rejected` beside a `prompt`, as texts or turns,
beside `instruction` and `input`, or as two conversations that differ in their last turn; what is chosen is the answer. Rows of
another kind of training (tokens with labels) are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from cl_toolkit.errors import UserError, listed, quoted

Row = dict[str, Any]

SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
"""Who speaks in ShareGPT -> the role."""
OTHERS = {
    "chosen": "an answer that is preferred to another one (`rejected`), which is missing",
    "labels": "tokens and labels",
    "input_ids": "tokens",
    "label": "an answer that is not chosen from; name the column of the answer `target`",
}
"""Fields of rows for another kind of training -> what they are."""


def in_shape(row: Row, where: str) -> Row:
    """A row as five fields or as `messages`. Raises UserError for what is neither nor can be brought there."""
    for field, change in CHANGES.items():
        if field in row:
            if change not in (alpaca, preference) and "messages" in row:
                raise UserError(f"{where}: {field}: stands beside another conversation; leave one out")
            row = change(dict(row), where)
    if isinstance(row.get("target"), list) and row["target"]:
        if not isinstance(row.get("references", []), list):
            raise UserError(f"{where}: references: expected a list of texts, got {quoted(row['references'])}")
        row = {**row, "target": row["target"][0], "references": [*row["target"][1:], *row.get("references", [])]}
    if "messages" not in row and "target" not in row:  # else they are refused as any unknown field
        for field, meaning in OTHERS.items():
            if field in row:
                raise UserError(f"{where}: {field}: holds {meaning}, which is not learned from here")
    if isinstance(row.get("tools"), str):
        row = {**row, "tools": parsed(row["tools"], f"{where}: tools")}
    return row


def alpaca(row: Row, where: str) -> Row:
    """`output` is the target."""
    if "target" not in row:
        row["target"] = row.pop("output")
    return row


def prompt_completion(row: Row, where: str) -> Row:
    """Two texts are a question and an answer; two lists of turns are one conversation, of which the completion is learned."""
    if "prompt" not in row:
        raise UserError(f"{where}: completion: stands alone; expected a field prompt beside it")
    prompt, completion = row.pop("prompt"), row.pop("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return {**row, "messages": [spoken("user", prompt), spoken("assistant", completion)]}
    if not all(
        isinstance(part, list) and all(isinstance(turn, dict) for turn in part) for part in (prompt, completion)
    ):
        raise UserError(f"{where}: prompt, completion: expected two texts or two lists of turns")
    turns = [("weight", 0, turn) for turn in prompt] + [("weight", 1, turn) for turn in completion]
    return {**row, "messages": [{key: w, **t} if t.get("role") == "assistant" else t for key, w, t in turns]}


def preference(row: Row, where: str) -> Row:
    """The chosen answer is the target; the rejected one, a text, stays beside it."""
    if "chosen" not in row:
        if row.keys() & {"target", "messages"}:  # which hold what is chosen
            return row
        raise UserError(f"{where}: rejected: stands alone; expected a field chosen beside it, or target")
    chosen, other = row.pop("chosen"), row.pop("rejected")
    if isinstance(chosen, str) and isinstance(other, str):
        if "prompt" not in row:
            return {**row, "target": chosen, "rejected": other}
        return prompt_completion({**row, "completion": chosen, "rejected": other}, where)
    lists = [turns for turns in (chosen, other) if isinstance(turns, list) and turns and isinstance(turns[-1], dict)]
    if len(lists) < 2 or chosen[:-1] != other[:-1]:
        raise UserError(
            f"{where}: chosen, rejected: expected two texts, or two lists of turns that differ in the last one"
        )
    text = plain_content(other[-1].get("content"), where)
    return prompt_completion(
        {**row, "prompt": row.get("prompt") or chosen[:-1], "completion": chosen[-1:], "rejected": text}, where
    )


def sharegpt(row: Row, where: str) -> Row:
    """`{from, value}` turns as messages."""
    turns = row.pop("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{where}: conversations: expected a list of turns with from and value")
    if turns and all("role" in turn for turn in turns):
        return {**row, "messages": turns}
    return {**row, "messages": [speaker(dict(t), f"{where}: conversations[{i}]") for i, t in enumerate(turns)]}


def speaker(turn: Row, where: str) -> Row:
    """One turn of ShareGPT."""
    name, value = turn.pop("from", None), turn.pop("value", None)
    if not isinstance(name, str) or name not in SPEAKERS:
        raise UserError(f"{where}: from: expected {listed(SPEAKERS)}, got {quoted(name)}")
    if name != "function_call":
        return {**turn, **spoken(SPEAKERS[name], value)}
    call = parsed(value, f"{where}: value")
    calls = [{"type": "function", "function": one} for one in (call if isinstance(call, list) else [call])]
    return {**turn, "role": "assistant", "content": "", "tool_calls": calls}


def spoken(role: str, content: Any) -> Row:
    """A turn."""
    return {"role": role, "content": content}


def parsed(text: Any, where: str) -> Any:
    """What JSON text says."""
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: expected JSON, got {quoted(text)}") from error


def plain_content(content: Any, where: str) -> Any:
    """A content that comes in parts, as one text."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise UserError(f"{where}: content: expected text, or parts {{type: text, text}}, got {quoted(part)}")
    return "".join(part["text"] for part in content)


CHANGES: dict[str, Callable[[Row, str], Row]] = {
    "rejected": preference,
    "output": alpaca,
    "completion": prompt_completion,
    "conversations": sharegpt,
}
"""A field that tells a shape -> what brings a row with it into shape."""
