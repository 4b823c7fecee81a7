"""Ids become text: behind the prompt, for tokenizers that treat the beginning of a text as special."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import make_model
from tokenizers_like import KINDS, tokenizer_like

from dcoder_cli import generate, load
from dcoder_cli.analysis.pieces import Pieces
from dcoder_cli.benchmarks.answers import encode
from dcoder_cli.benchmarks.protocols import Ask
from dcoder_cli.data.formats import ChatEncoder, Rendered
from dcoder_cli.decoding import autoregressive, requests
from dcoder_cli.decoding.requests import Infill
from dcoder_cli.decoding.rows import Decoded
from dcoder_cli.model.text import continuation, decode, encode_after, spaces_every_text
from dcoder_cli.terminal.chat import Session
from dcoder_cli.terminal.conversation import Stream
from dcoder_cli.terminal.watch import StepPlan, Watch

PROMPT = 'def f(x):\n    """Adds ▁ and é."""\n'
ANSWERS = ("    return x .strip ( )", "return x", " x", "  x", "\n    x", "日本 é\U0001f600", "é", "x  ", "- x ,")


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return tokenizer_like(request.param)


def test_a_text_cut_anywhere_joins_again(tokenizer: Any) -> None:
    """A character cut by the border belongs to the new text."""
    for text in (PROMPT.replace("▁", "_") + ANSWERS[0], "x = '日本é\U0001f600日本é\U0001f600日本é\U0001f600' # ñ"):
        ids = ids_of(tokenizer, text)
        assert decode(tokenizer, ids) == text
        for place in range(1, len(ids)):
            known = decode(tokenizer, ids[:place]).rstrip("\ufffd")
            assert known + continuation(tokenizer, ids[:place], ids[place:]) == text, place


def test_answers_keep_their_leading_space_behind_text(tokenizer: Any) -> None:
    before = ids_of(tokenizer, PROMPT)
    for answer in ANSWERS:
        assert continuation(tokenizer, before, encode_after(tokenizer, PROMPT, answer)) == answer


def test_answers_are_whole_behind_special_tokens(tokenizer: Any) -> None:
    """A tokenizer that puts a space behind a special token has it taken away there, and no other does."""
    prompt = str(tokenizer.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False))
    before = ids_of(tokenizer, prompt)
    if before[-1] not in tokenizer.all_special_ids:
        before = ids_of(tokenizer, prompt := prompt.rstrip())
    assert before[-1] in tokenizer.all_special_ids
    for answer in ANSWERS:
        whole = ids_of(tokenizer, prompt + answer)
        assert whole[: len(before)] == before
        assert continuation(tokenizer, before, whole[len(before) :]) == answer
        assert continuation(tokenizer, before, encode_after(tokenizer, prompt, answer)) == answer


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_text_that_begins_behind_the_tokenizers_own_token(kind: str) -> None:
    tokenizer = tokenizer_like(kind, bos=True)
    for answer in ("return x", "x"):
        ids = tokenizer(answer)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert continuation(tokenizer, ids[:1], ids[1:]) == answer
        assert continuation(tokenizer, [], ids[1:]) == answer


def test_special_tokens_are_left_out_and_broken_bytes_are_shown(tokenizer: Any) -> None:
    before, end = ids_of(tokenizer, "a"), tokenizer.eos_token_id
    new = [end, *encode_after(tokenizer, "a", "b"), end, *encode_after(tokenizer, "b", " c")]
    assert continuation(tokenizer, before, new) == "b c"
    assert continuation(tokenizer, before, [end, end]) == ""
    assert continuation(tokenizer, before, [end], skip_special=False) == tokenizer.eos_token
    half = ids_of(tokenizer, "日")[-3:][:1]
    rest = encode_after(tokenizer, "a", "b")
    assert continuation(tokenizer, before, [*half, *rest]) == "\ufffdb"
    assert continuation(tokenizer, [*before, *half], rest) == "b", "the broken character is the prompt's"


def test_a_space_before_a_full_stop_stays() -> None:
    """A tokenizer may ask for spaces before punctuation to be removed, which is not for code."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "x": 1, "Ġ.": 2, "Ġ,": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", clean_up_tokenization_spaces=True)
    assert words.decode([1, 2]) == "x."
    assert decode(words, [1, 2, 3]) == "x . ,"
    assert continuation(words, [1], [2, 3]) == " . ,"


def test_which_tokenizers_space_every_text() -> None:
    assert [spaces_every_text(tokenizer_like(kind)) for kind in KINDS] == [False, True, True, True]


def test_a_byte_level_tokenizer_decodes_as_ever() -> None:
    tokenizer = tokenizer_like("byte-level")
    text = PROMPT + "".join(ANSWERS)
    ids = ids_of(tokenizer, text)
    for start in range(1, len(ids)):
        new = decode(tokenizer, ids[start:], skip_special=True)
        if not new.startswith("\ufffd"):
            assert continuation(tokenizer, ids[:start], ids[start:]) == new
        assert encode_after(tokenizer, "x", text[start:]) == ids_of(tokenizer, text[start:])


# --- in the commands --------------------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return load(
        make_model(tmp_path / "model", ar=True, tokenizer=tokenizer_like(request.param), context=512), device="cpu"
    )


def says(monkeypatch: pytest.MonkeyPatch, model: Any, prompt: str, answer: str) -> list[int]:
    """Have the model answer so behind `prompt`, and end; returns the tokens."""
    tokens = [*encode_after(model.tokenizer, prompt, answer), model.tokenizer.eos_token_id, 5]

    def decoded(_: Any, tickets: list[Any]) -> Iterator[Any]:
        count = len(tokens)
        for row, ticket in enumerate(tickets):
            for place, token in enumerate(tokens if ticket.on_commit else ()):
                ticket.on_commit(place, row, [place], [token])
            columns: dict[str, Any] = {"tokens": tokens, "reveal_step": list(range(count)), "tied": [False] * count}
            columns |= {"confidence": [1.0] * count, "entropy": [0.0] * count, "tied_from": list(range(count))}
            yield Decoded(ticket, columns, count, len(tickets), 1.0)

    monkeypatch.setattr(autoregressive, "decode", decoded)
    return tokens


@pytest.mark.parametrize("answer", ANSWERS)
def test_generate_chat_eval_and_rollouts_write_the_same_text(
    model: Any, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    from dcoder_cli.base.config import build
    from dcoder_cli.training.grpo.config import GrpoConfig
    from dcoder_cli.training.grpo.rewards import Rewarder
    from dcoder_cli.training.grpo.rollouts import encode_prompts, roll_out

    prompt = "def f(x):\n"
    says(monkeypatch, model, prompt, answer)
    (written,) = generate(model, [prompt])
    assert (written.text, written.settings["finished"]) == (answer, True)
    assert generate(model, [encode(model, Ask(prompt))])[0].text == answer

    session = Session(model, {"max_new_tokens": 32})
    shown = session.model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "q"}], tokenize=False, add_generation_prompt=True
    )
    tokens = says(monkeypatch, model, shown, answer)
    parts: list[str] = []
    stream = Stream(session, parts.append)
    assert session.ask("q", stream.on_commit).trajectory.text == answer
    stream.finish(answer)
    assert "".join(parts) == answer + "\n", "written once, as it came"

    rewarder = Rewarder({"format": 1.0}, None)
    seen: list[str] = []
    monkeypatch.setattr(rewarder, "submit", lambda _, text: seen.append(text))
    monkeypatch.setattr(rewarder, "results", lambda pending: [None] * len(pending))
    records = [{"messages": [{"role": "user", "content": "q"}], "task_id": "t"}]
    config = build(GrpoConfig, {"group_size": 2, "rollout": {"max_new_tokens": 32}})
    rolled = roll_out(model, records, encode_prompts(model, records, 32), 0, 0, config, rewarder)
    assert seen == [answer] and list(rolled[0].completion.tokens) == tokens


def test_what_is_taught_reads_as_the_answer(tokenizer: Any) -> None:
    """`tokenize sft`: the answer's ids, behind the prompt's, give the answer and its end."""
    chat = ChatEncoder(tokenizer)
    for answer in ANSWERS:
        sample = chat.render([{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}])
        assert sample.reason is None
        ((prompt, taught),) = chat.encode([sample])
        assert continuation(tokenizer, prompt, taught, skip_special=False) == answer + chat.end_of_turn.token
        ((prompt, taught),) = chat.encode([Rendered(PROMPT, answer)])
        assert continuation(tokenizer, prompt, taught) == answer


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_behind_a_gap_gains_no_space(kind: str, tmp_path: Path) -> None:
    model = load(make_model(tmp_path / "model", tokenizer=tokenizer_like(kind), context=512), device="cpu")
    before, suffix = "a\n", "return x"
    evaluated = encode(model, Ask(Infill(before, suffix)))
    (request,) = requests.encode(model, [Infill(before, suffix)], requests.Settings(), None, None)
    assert request.suffix == list(evaluated.suffix)
    assert continuation(model.tokenizer, ids_of(model.tokenizer, before), request.suffix) == suffix


def test_pieces_add_up_to_the_text(tokenizer: Any) -> None:
    for answer in ANSWERS:
        tokens = encode_after(tokenizer, PROMPT, answer)
        assert "".join(Pieces(tokenizer)(tokens)) == answer
        alone = ids_of(tokenizer, answer)  # a text begins here
        assert "".join(Pieces(tokenizer).of(alone, answer)) == answer


def test_watch_colours_all_of_the_text(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in ANSWERS[:4]:
        says(monkeypatch, model, "def f(x):\n", answer)
        (written,) = generate(model, ["def f(x):\n"])
        viewer = Watch(StepPlan.of(model, requests.Settings()))
        monkeypatch.setattr(viewer.screen, "sgr", lambda *_: "\x1b[1m")
        coloured = viewer.coloured(written)
        assert re.sub(r"\x1b\[\d*m", "", coloured) == answer and "\x1b[1m" in coloured


def test_only_one_place_decodes(root: Path) -> None:
    for file in [*(root / "dcoder_cli").rglob("*.py"), *(root / "commands").glob("*.py")]:
        if file != root / "dcoder_cli" / "model" / "text.py":
            assert not re.search(r"tokenizer\.(batch_)?decode\(", file.read_text()), file
