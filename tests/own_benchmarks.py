"""A folder as DCODER_BENCHMARKS names it, made of our own tasks: repeated under the published ids, to the published counts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

OWN = Path(__file__).parent / "fixtures" / "benchmarks"
Row = dict[str, Any]
# Ids of MBPP+ whose inputs EvalPlus turns into tuples, sets and the like, or compares otherwise: facts of the published
# tasks, which ours are not. Mbpp/2 stays, its arguments are lists of ours too.
_SPECIAL = 1000


def _numbered(prefix: str) -> Callable[[Row, int], Row]:
    return lambda row, place: {**row, "task_id": f"{prefix}/{place}"}


def _suffixed(row: Row, place: int) -> Row:
    return {**row, "task_id": f"{row['task_id']}.{place}"}


def _mbpp(row: Row, place: int) -> Row:
    return {**row, "task_id": place + 1}


def _mbpp_plus(row: Row, place: int) -> Row:
    # as published from 2 on; those after the first tasks have ids that no special rule is about
    return {**row, "task_id": f"Mbpp/{place + 1 if place < 4 else _SPECIAL + place}"}


def _crux(row: Row, place: int) -> Row:
    return {**row, "id": f"sample_{place}"}


def _contest(release: int) -> Callable[[Row, int], Row]:
    return lambda row, place: {**row, "question_id": f"{row['question_id']}.{release}.{place}"}


def _same(row: Row, place: int) -> Row:
    return row


def _other_trays(row: Row, place: int) -> Row:
    """The question about 7 trays with another number of them: training questions must differ, copies are dropped."""
    trays = place + 2
    answer = row["answer"].replace("7 trays", f"{trays} trays").replace("7 *", f"{trays} *").replace("7*", f"{trays}*")
    answer = answer.replace("84", str(12 * trays)).replace("42", str(6 * trays))
    return {"question": row["question"].replace("7 trays", f"{trays} trays"), "answer": answer}


# file of ours, file below the folder, published count, how a repeated row gets its own id
FILES: tuple[tuple[str, str, int, Callable[[Row, int], Row]], ...] = (
    ("humaneval", "humaneval/HumanEval.jsonl.gz", 164, _numbered("HumanEval")),
    ("humanevalplus", "humanevalplus/HumanEvalPlus.jsonl.gz", 164, _numbered("HumanEval")),
    ("mbpp", "mbpp/mbpp.jsonl.gz", 974, _mbpp),
    ("sanitized-mbpp", "mbpp/sanitized-mbpp.json.gz", 427, _mbpp),
    ("mbppplus", "mbppplus/MbppPlus.jsonl.gz", 378, _mbpp_plus),
    ("bigcodebench", "bigcodebench/BigCodeBench-v0.1.4-derived.jsonl.gz", 1140, _numbered("BigCodeBench")),
    ("bigcodebench", "bigcodebench/BigCodeBench-Hard-v0.1.4-derived.jsonl.gz", 148, _numbered("BigCodeBench")),
    ("gsm8k", "gsm8k/test.jsonl.gz", 1319, _same),
    ("gsm8k-train", "gsm8k/train.jsonl.gz", 40, _other_trays),
    ("cruxeval", "cruxeval/cruxeval.jsonl", 800, _crux),
    ("livecodebench", "livecodebench/test.jsonl", 400, _contest(1)),
    ("livecodebench", "livecodebench/test2.jsonl", 111, _contest(2)),
    ("livecodebench", "livecodebench/test3.jsonl", 101, _contest(3)),
    ("livecodebench", "livecodebench/test4.jsonl", 101, _contest(4)),
    ("livecodebench", "livecodebench/test5.jsonl", 167, _contest(5)),
    ("livecodebench", "livecodebench/test6.jsonl", 175, _contest(6)),
    ("infilling-single", "humaneval_infilling/HumanEval-SingleLineInfilling.jsonl.gz", 1033, _suffixed),
    ("infilling-multi", "humaneval_infilling/HumanEval-MultiLineInfilling.jsonl.gz", 5815, _suffixed),
    ("infilling-span", "humaneval_infilling/HumanEval-RandomSpanInfillingLight.jsonl.gz", 164, _suffixed),
)


def rows(name: str) -> list[Row]:
    """Our own tasks of a file."""
    text = (OWN / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def write(folder: Path) -> Path:
    """Write all files below `folder`."""
    for name, file, count, numbered in FILES:
        own = rows(name)
        repeated = [numbered(own[place % len(own)], place) for place in range(count)]
        text = json.dumps(repeated) if ".json." in file else "".join(json.dumps(row) + "\n" for row in repeated)
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".gz":
            path.write_text(text, encoding="utf-8")
            continue
        with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as handle:
            handle.write(text)
    return folder
