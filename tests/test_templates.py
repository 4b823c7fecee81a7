"""A chat becomes text and ids in one place, and ids become text in one: templates of all kinds, tokenizers that add spaces."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import make_model, make_tokenizer
from safetensors.numpy import load_file

from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks import answers
from dcoder_cli.benchmarks.protocols import Ask
from dcoder_cli.data.pipeline import SftSettings, tokenize_sft
from dcoder_cli.data.rl import RlSettings, load_prompts, tokenize_rl
from dcoder_cli.decoding.requests import Settings, encode
from dcoder_cli.decoding.sampler import generate
from dcoder_cli.model import chat
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.loading import load
from dcoder_cli.model.text import continuation, encode_after
from dcoder_cli.terminal.chat import Session
from dcoder_cli.training.grpo.rollouts import encode_prompts

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
TEMPLATES: dict[str, Any] = {
    "plain": TURNS,
    "no system": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS,
    "leaves system out": TURNS.replace("in messages %}", "in messages if m.role != 'system' %}"),
    "named": {"default": TURNS, "tool_use": "never"},
    "refuses": "{{ raise_exception('never') }}",
    "unknown variable": "{{ missing.attribute }}",
    "type error": "{{ messages + 3 }}",
    "named without default": {"rag": TURNS, "tool_use": TURNS},
    "last turn": TURNS.replace("in messages %}", "in messages[-1:] %}"),
    "leaves the question out": TURNS.replace("in messages %}", "in messages if m.role != 'user' %}"),
    "constant": "<user>Hello!<|im_end|>{% if add_generation_prompt %}<assistant>{% endif %}",
    "blank": " \n",
    "cuts": TURNS.replace("m.content", "m.content[:12]"),
    "loud": TURNS.replace("m.content", "m.content | upper"),
    "empty": "",
    "none": None,
}  # fmt: skip
# What no tokenizer's file can hold, and a program can set.
UNSAVED: dict[str, Any] = {
    "half a pair": TURNS + "\ud800", "no name": [{"template": TURNS}, "x"], "no text": {"default": 5},
}  # fmt: skip
WORKS = ("plain", "no system", "leaves system out", "named", "last turn")
SYSTEM, USER = "Be brief.", "Add two numbers."
FOLDED = f"<user>{SYSTEM}\n\n{USER}<|im_end|><assistant>"
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "m", context=512)


def with_template(folder: Path, name: str) -> Model:
    model = load(folder)
    assert model.tokenizer is not None
    model.tokenizer.chat_template = {**TEMPLATES, **UNSAVED}[name]
    return model


def by_request(model: Model, _: Path) -> str:
    (request,) = encode(model, [MESSAGES], Settings(max_new_tokens=4), None, None)
    return model.tokenizer.decode(request.prefix)  # type: ignore[union-attr]


def by_evaluation(model: Model, _: Path) -> str:
    return model.tokenizer.decode(list(answers.encode(model, Ask(MESSAGES)).prefix))  # type: ignore[union-attr]


def by_rollout(model: Model, _: Path) -> str:
    (ids,) = encode_prompts(model, [{"task_id": "a", "messages": MESSAGES}], 4)
    return model.tokenizer.decode(ids)  # type: ignore[union-attr]


def by_conversation(model: Model, _: Path) -> str:
    session = Session(model, {"max_new_tokens": 2}, SYSTEM)
    session.ask(USER)
    return session.trajectories[0].prompt


def saved(model: Model, path: Path) -> str:
    model.tokenizer.save_pretrained(path / "tokenizer")  # type: ignore[union-attr]
    return str(path / "tokenizer")


def rows(path: Path, row: dict[str, Any]) -> tuple[str]:
    (path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return (str(path / "rows.jsonl"),)


def by_sft(model: Model, path: Path) -> str:
    source = rows(path, {"messages": [*MESSAGES, {"role": "assistant", "content": "a + b"}]})
    tokenize_sft(
        SftSettings(source, str(path / "out"), saved(model, path), seq_len=200, heldout=0, workers=1, quiet=True)
    )
    row = load_file(path / "out" / "train-00000.safetensors")
    ids = [int(i) for i, taught in zip(row["tokens"][0], row["eligible"][0], strict=True) if not taught]
    return model.tokenizer.decode(ids)  # type: ignore[union-attr]


def by_rl(model: Model, path: Path) -> str:
    source = rows(path, {"messages": MESSAGES, "tests": ["assert f(1) == 1"]})
    tokenize_rl(RlSettings(source, str(path / "out"), saved(model, path), max_prompt_tokens=400, quiet=True))
    (prompt,) = load_prompts(path / "out")
    return model.tokenizer.decode(encode_prompts(model, [prompt], 4)[0])  # type: ignore[union-attr]


CALLERS: dict[str, Callable[[Model, Path], str]] = {
    "generate": by_request, "eval": by_evaluation, "grpo": by_rollout, "chat": by_conversation,
    "tokenize sft": by_sft, "tokenize rl": by_rl,
}  # fmt: skip


_EACH = [(caller, template) for caller in CALLERS for template in TEMPLATES]
_EACH += [(caller, template) for caller in CALLERS if "tokenize" not in caller for template in UNSAVED]


@pytest.mark.parametrize(("caller", "template"), _EACH)
def test_every_template_behaves_the_same_everywhere(folder: Path, tmp_path: Path, caller: str, template: str) -> None:
    """It works, with the system's text in the user's turn where there is no place for it, or it is one line."""
    model = with_template(folder, template)
    answers_only = (caller, template) == ("tokenize sft", "last turn")  # once answered, the prompt is gone
    if template in WORKS and not answers_only:
        expected = FOLDED if template in ("no system", "leaves system out", "last turn") else None
        expected = expected or f"<system>{SYSTEM}<|im_end|><user>{USER}<|im_end|><assistant>"
        assert CALLERS[caller](model, tmp_path) == expected
        return
    with pytest.raises(UserError) as caught:
        CALLERS[caller](model, tmp_path)
    message = str(caught.value)
    assert "\n" not in message and "chat template" in message
    assert not (tmp_path / "out").exists()


def test_a_row_that_the_template_refuses_or_whose_answer_it_changes_is_dropped_and_counted(
    folder: Path, tmp_path: Path
) -> None:
    """Reasoning that a template deletes would leave a shorter answer to learn; a refused order of roles is one row's."""
    model = with_template(folder, "plain")
    assert model.tokenizer is not None
    model.tokenizer.chat_template = TURNS.replace(
        "{{ m.content }}",
        "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ m.content.split('</think>')[-1].strip() }}",
    )
    ask = {"role": "user", "content": USER}
    chats = [
        [ask, {"role": "assistant", "content": "3"}],
        [ask, {"role": "assistant", "content": "<think>one and two</think>\n3"}],
        [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "3"}],
        [ask, {"role": "assistant", "content": "\n4 \n"}],
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in chats))
    manifest = tokenize_sft(
        SftSettings(
            (str(tmp_path / "rows.jsonl"),), str(tmp_path / "out"), saved(model, tmp_path), seq_len=200, heldout=0,
            workers=1, quiet=True,
        )
    )  # fmt: skip
    assert manifest["splits"]["train"]["documents"] == 2
    dropped = {reason: entry["examples"] for reason, entry in manifest["dropped"].items()}
    assert dropped.pop("chat template changes the answer") == ["rows.jsonl:2"]
    ((reason, names),) = dropped.items()
    assert reason.startswith("refused by the chat template") and "no tools" in reason and names == ["rows.jsonl:3"]


BODY = "    x = 1\n    return x"


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ("m.content", [BODY, f"\n \t\n{BODY}\n\n", " 4", "4 \n"]),
        ("m.content | trim", ["4", "4 \n", "\n\n4", "if x:\n    y()\n"]),
        ("m.content.rstrip()", [BODY, f"{BODY} \n", f"\n{BODY}"]),
        ("m.content.strip('\\n')", [BODY, f"\r\n\n{BODY}\n"]),
        ("' ' + (m.content | trim) + ' '", ["4", "\n4\n"]),
    ],
)
def test_an_answer_may_lose_blank_ends_but_not_its_indentation(folder: Path, content: str, kept: list[str]) -> None:
    """A template that trims makes `    x = 1` and what follows it code that no longer parses, or does something else."""
    from dcoder_cli.data.formats import ChatEncoder

    model = load(folder)
    assert model.tokenizer is not None
    model.tokenizer.chat_template = TURNS.replace("m.content", content)
    chats = ChatEncoder(model.tokenizer)
    ask = {"role": "user", "content": USER}

    def reason(answer: str) -> str | None:
        return chats.render([ask, {"role": "assistant", "content": answer}]).reason

    assert [reason(answer) for answer in kept] == [None] * len(kept)
    changed = [BODY, f"\n\n{BODY}", f"\t{BODY}\n", "\u3000x"]
    if "trim" in content:
        assert [reason(answer) for answer in changed] == ["chat template changes the answer"] * len(changed)


def test_a_turn_that_is_left_out_is_refused_wherever_it_stands(folder: Path) -> None:
    """A later system message has no user's turn to go to; an earlier answer may lose its reasoning."""
    model = with_template(folder, "leaves system out")
    later = [MESSAGES[1], {"role": "assistant", "content": "3"}, MESSAGES[0], MESSAGES[1]]
    with pytest.raises(chat.Refused, match="leaves out or changes the system's text"):
        chat.render(model.tokenizer, later, "m")
    model = with_template(folder, "last turn")
    with pytest.raises(chat.Refused, match="leaves out or changes the user's text"):
        chat.render(model.tokenizer, [MESSAGES[1], later[1], {"role": "user", "content": "And now?"}], "m")
    model.tokenizer.chat_template = TURNS.replace("m.content", "m.content.split('</think>')[-1].strip()")  # type: ignore[union-attr]
    turns = [
        MESSAGES[1],
        {"role": "assistant", "content": "<think>so</think> 3"},
        {"role": "user", "content": " Why?\n"},
    ]
    assert chat.render(model.tokenizer, turns, "m").endswith("<assistant>3<|im_end|><user>Why?<|im_end|><assistant>")


def test_only_one_place_renders_templates(root: Path) -> None:
    callers = set()
    for file in [*(root / "dcoder_cli").rglob("*.py"), *(root / "commands").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "apply_chat_template":
                callers.add(file.relative_to(root).as_posix())
    assert callers == {"dcoder_cli/model/chat.py"}


def test_a_system_message_of_nothing_is_refused() -> None:
    assert chat.system_message(None) == [] and len(chat.system_message("x")) == 1
    with pytest.raises(UserError, match="is empty"):
        chat.system_message("  ")


# ---- ids become text


def llama(prefix: bool) -> Any:
    """As Llama-2's: spaces are part of words, one is put before a text, and decoding takes the first away."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def parts(model: Any) -> Any:
        whole = Tokenizer(model)
        whole.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if prefix else "never", split=True)
        strip = [decoders.Strip(" ", 1, 0)] if prefix else []
        whole.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        return whole

    special = ["<unk>", "<s>", "</s>"]
    trained = parts(models.BPE(unk_token="<unk>"))
    texts = ["def add(a, b):\n    return a + b\n", "x = 1 , y . z"] * 9
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False))
    found = json.loads(trained.to_str())["model"]
    vocabulary = {**found["vocab"]}
    for byte in range(256):  # as ordinary tokens, for characters that have none
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(pair) for pair in found["merges"]]
    whole = parts(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, unk_token="<unk>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=True
    )


CODE = ["    return a + b\n", " x", "y = 1 , 2 . z", "é\n", "\n\n  pass", "a", "日本"]


@pytest.mark.parametrize("kind", ["bytes", "llama", "llama without a prefix"])
@pytest.mark.parametrize("text", CODE)
@pytest.mark.parametrize("before", ["def add(a, b):\n", "x = 1", "é ", "<s>x", "日"])
def test_new_text_goes_on_where_the_prompt_ended(kind: str, before: str, text: str) -> None:
    tokenizer = make_tokenizer() if kind == "bytes" else llama(kind == "llama")
    ids = list(tokenizer(before, add_special_tokens=False)["input_ids"])
    new = encode_after(tokenizer, before, text)
    assert continuation(tokenizer, ids, new) == text
    whole = list(tokenizer(before + text, add_special_tokens=False)["input_ids"])
    if whole[: len(ids)] == ids:  # the tokenizer's own way of writing it on
        assert continuation(tokenizer, ids, whole[len(ids) :]) == text


def test_a_character_over_the_border_belongs_to_the_new_text() -> None:
    tokenizer = make_tokenizer()
    ids = list(tokenizer("aé", add_special_tokens=False)["input_ids"])
    assert len(ids) == 3 and continuation(tokenizer, ids[:2], ids[2:]).endswith("é")


def test_decoded_answers_keep_their_indentation(folder: Path) -> None:
    """A whole decoding by a tokenizer like Llama-2's: what stands in the trajectory is what its tokens write."""
    model = load(folder)
    tokenizer = llama(prefix=True)
    model.tokenizer = tokenizer
    ids = list(tokenizer("def add(a, b):\n", add_special_tokens=False)["input_ids"])
    (found,) = generate(model, [ids], max_new_tokens=8, temperature=1.0, seed=3)
    assert found.text == continuation(tokenizer, ids, found.tokens)
