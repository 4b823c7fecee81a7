"""GSM8K: the prompt with eight worked examples, and reading the answer from text. Answers are never evaluated.

The reading is the published one, so that scores stand beside others': digits with commas left out, and nothing else that a
number may be written with. `9{,}500`, `9 500` and `1/2` end in 500, 500 and 2 here. The reward `math` reads them as 9500,
9500 and one half (data/answers.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks import data
from dcoder_cli.benchmarks.benchmark import Benchmark, ByAnswer, Item, Loaded, OwnPrompt, Row

SOURCE = data.BenchmarkSource(
    "gsm8k", "gsm8k/test.jsonl.gz", 1319, "openai/gsm8k", "main", ("test",), ("question", "answer"),
    texts=("question", "answer"),
)  # fmt: skip
STOPS = ("\nQ:", "\n\nQ:")

# The eight examples of chain-of-thought prompting (Wei et al. 2022, table 20), which every published 8-shot score uses.
_EXAMPLES = (
    (
        "There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done, "
        "there will be 21 trees. How many trees did the grove workers plant today?",
        "There are 15 trees originally. Then there were 21 trees after some more were planted. So there must have been "
        "21 - 15 = 6. The answer is 6.",
    ),
    (
        "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?",
        "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. The answer is 5.",
    ),
    (
        "Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have left in total?",
        "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. After eating 35, they "
        "had 74 - 35 = 39. The answer is 39.",
    ),
    (
        "Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many lollipops did Jason "
        "give to Denny?",
        "Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave Denny 20 - 12 = 8. The "
        "answer is 8.",
    ),
    (
        "Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many toys does he have now?",
        "Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 more toys. 5 + 4 = 9. The "
        "answer is 9.",
    ),
    (
        "There were nine computers in the server room. Five more computers were installed each day, from monday to "
        "thursday. How many computers are now in the server room?",
        "There were originally 9 computers. For each of 4 days, 5 more computers were added. So 5 * 4 = 20 computers "
        "were added. 9 + 20 is 29. The answer is 29.",
    ),
    (
        "Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 more. How many golf balls "
        "did he have at the end of wednesday?",
        "Michael started with 58 golf balls. After losing 23 on tuesday, he had 58 - 23 = 35. After losing 2 more, he "
        "had 35 - 2 = 33 golf balls. The answer is 33.",
    ),
    (
        "Olivia has $23. She bought five bagels for $3 each. How much money does she have left?",
        "Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has 23 - 15 dollars left. "
        "23 - 15 is 8. The answer is 8.",
    ),
)

_NUMBER = (
    r"-?\$?-?(?>\d[\d,]*(?:\.\d+)?|\.\d+)"  # atomic: what makes the end fail makes it fail at every shorter one too
)
_STRICT = re.compile(rf"The answer is ({_NUMBER})\.?(?![\d,.]*\d)")
_ANY = re.compile(_NUMBER)


@dataclass(frozen=True)
class Question:
    """One question, with its gold answer as a number and the worked answer it comes from."""

    task_id: str
    question: str
    worked: str
    gold: Decimal


def load(file: str | Path | None = None) -> tuple[tuple[Question, ...], data.BenchmarkRows]:
    """The 1319 test questions, and where they came from. Raises UserError as `data.find` does."""
    rows = data.find(SOURCE, file)
    questions = []
    for place, row in enumerate(rows.rows):
        gold = _decimal(row["answer"].rpartition("####")[2].strip())
        if gold is None:
            raise UserError(
                f"gsm8k from {rows.origin}: question {place} has no answer after '####'; fetch the file again"
            )
        questions.append(Question(f"GSM8K/{place}", row["question"].strip(), row["answer"], gold))
    return tuple(questions), rows


def prompt(question: str) -> str:
    """The eight examples and the question, as `Q: ...` and `A: ...` in paragraphs; the answer is to follow `A:`."""
    shots = "".join(f"Q: {asked}\n\nA: {answer}\n\n" for asked, answer in _EXAMPLES)
    return f"{shots}Q: {question}\n\nA:"


def strict_answer(text: str) -> Decimal | None:
    """The number of the first "The answer is X."; None if there is none."""
    match = _STRICT.search(_first(text))
    return None if match is None else _decimal(match.group(1))


def flexible_answer(text: str) -> Decimal | None:
    """The last number of the answer; None if there is none."""
    found = _ANY.findall(_first(text))
    return _decimal(found[-1]) if found else None


def _first(text: str) -> str:
    """The text up to where the model goes on to ask itself another question."""
    return text.partition("\nQ:")[0]


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", "").replace("$", "").replace(" ", ""))
    except InvalidOperation:
        return None


def _load(_: str, file: str | Path | None) -> Loaded:
    found, rows = load(file)
    return Loaded(tuple(_item(one) for one in found), "GSM8K test", rows.origin, rows.sha256)


def _item(one: Question) -> Item:
    text = prompt(one.question)
    own = OwnPrompt(({"role": "user", "content": text},), text, STOPS, STOPS)
    return Item(one.task_id, "own", one.question, "", one, own=own)


def _verdict(item: Item, text: str) -> Row:
    """`passed` is strict ("The answer is X."), `flexible` takes the last number."""
    gold = item.source.gold
    strict = strict_answer(text) == gold
    return {
        "passed": strict,
        "strict": strict,
        "flexible": flexible_answer(text) == gold,
        "why": "" if strict else f"the answer is {gold}",
    }


BENCHMARKS = (
    Benchmark(
        "gsm8k",
        "GSM8K: questions with numbers, 8-shot, strict and flexible.",
        _load,
        ByAnswer(_verdict),
        {"flexible": lambda row: bool(row["flexible"]), "strict": lambda row: bool(row["strict"])},
        sources=(SOURCE,),
    ),
)
