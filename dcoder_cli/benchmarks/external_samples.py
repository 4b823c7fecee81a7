"""Samples made by any system: which task each is of, its text, and the program in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcoder_cli.base.config import nearest
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.jsonl import objects
from dcoder_cli.benchmarks.benchmark import Item, Row, Suite
from dcoder_cli.execution.extract import code_block, defines, extract_solution, truncate_at_stops

# In this order. Texts of the last two go on after the prompt: EvalPlus' `completion`, and `resps` of
# lm-evaluation-harness's logged samples, a list for each request.
COLUMNS = ("solution", "completion", "resps")
_CONTINUES = ("completion", "resps")
_OPEN = ("complete", "infill")  # what an answer may continue


def read_samples(file: Path, suite: Suite, column: str | None = None, extract: bool = False) -> list[Row]:
    """Samples of JSON lines with `task_id` and a text, a list of texts, or lists of lists.

    A task is named as published or by its number (MBPP's 12 is Mbpp/12); lm-evaluation-harness's samples name it in `doc`.
    Where tasks are questions the text is the answer. Rows get `sample`, counting from 0 within a task.

    Args:
        column: where the texts stand; by default the first of COLUMNS that a row has. Those of `completion` and `resps`
            are put after the prompt, all others are programs.
        extract: take the program out of an answer in words, as evaluations here do.

    Raises:
        UserError: unreadable, empty, or a line that is not JSON, lacks the texts or names an unknown task; it is named.
    """
    if extract and not any(item.entry_point or (item.own and item.own.answer) for item in suite.items):
        raise UserError(f"--extract is for code, and {suite.name} reads its answers from any text; leave it out")
    items = {item.task_id: item for item in suite.items}
    numbers = _by_number(items)
    seen: Counter[str] = Counter()
    rows: list[Row] = []
    for number, row in objects(file, "samples file", halves=True):
        where = f"samples file {str(file)!r} line {number}"
        item = items.get(_task(row, numbers, where))
        if item is None:
            known = next(iter(items))
            named = _told(row)
            raise UserError(f"{where}: unknown task_id {named!r}; {suite.name} has ids such as {known!r}")
        name = _column(row, column, where)
        for text in _texts(row[name], name, where):
            solution = _program(item, text, name in _CONTINUES, extract)
            rows.append(
                {
                    "task_id": item.task_id,
                    "sample": seen[item.task_id],
                    "solution": solution,
                    "text": str(row.get("text", text)) if isinstance(row[name], str) else text,
                }
            )
            seen[item.task_id] += 1
    if not rows:
        raise UserError(f"samples file {str(file)!r} holds no sample; a line has task_id and solution")
    return rows


def _by_number(items: Mapping[str, Item]) -> dict[str, str]:
    """Ids by the number at their end, where only one has it."""
    tails = [(task_id.rpartition("/")[2], task_id) for task_id in items]
    count = Counter(tail for tail, _ in tails)
    return {tail: task_id for tail, task_id in tails if tail.isdecimal() and count[tail] == 1}


def _told(row: Row) -> Any:
    doc = row.get("doc")
    return row["task_id"] if "task_id" in row else doc.get("task_id") if isinstance(doc, dict) else None


def _task(row: Row, numbers: Mapping[str, str], where: str) -> str:
    named = _told(row)
    if isinstance(named, bool) or not isinstance(named, (str, int)):
        raise UserError(f"{where}: no 'task_id', an id or a number; a sample has task_id and solution")
    return numbers.get(str(named), str(named))


def _column(row: Row, column: str | None, where: str) -> str:
    if column is not None:
        if column not in row:
            raise UserError(f"{where}: no column {column!r}{nearest(column, list(row), listed=True)}")
        return column
    name = next((name for name in COLUMNS if row.get(name) is not None), None)
    if name is None:
        known = ", ".join(map(str, row))
        raise UserError(
            f"{where}: no field 'solution' (or {', '.join(COLUMNS[1:])}) (known: {known}); name one: --column"
        )
    return name


def _texts(value: Any, name: str, where: str) -> list[str]:
    inner = [value] if isinstance(value, str) else value
    if isinstance(inner, list):
        texts = [text for one in inner for text in (one if isinstance(one, list) else [one])]
        if texts and all(isinstance(text, str) for text in texts):
            return texts
    raise UserError(f"{where}: {name!r} must hold a text, or a list of texts (or of lists of them)")


def _program(item: Item, text: str, continues: bool, extract: bool) -> str:
    """The program that a text makes."""
    whole = item.prompt + text + item.suffix if item.kind in _OPEN else text
    if not extract:
        return whole if continues else text
    if item.own is not None and item.own.answer is not None:
        return item.own.answer(truncate_at_stops(text, item.own.chat_stops), True)
    alone = extract_solution(text, item.entry_point, also=item.names)
    if item.kind not in _OPEN or defines(alone, item.entry_point):
        return alone
    if item.kind == "infill":
        return whole
    # A model that was asked to go on may do so, in a fence or not.
    for program in (whole, item.prompt + code_block(text, item.entry_point)):
        found = extract_solution(program, item.entry_point, also=item.names)
        if defines(found, item.entry_point):
            return found
    return alone
