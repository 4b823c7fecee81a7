"""tiktoken and `tokenizers` give one result: for every kind of tokenizer that is taken, and whatever the text; all else is left alone."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcoder_cli.data import sources
from dcoder_cli.data.filters import FilterSettings
from dcoder_cli.data.pipeline import PretrainSettings, tokenize_pretrain
from dcoder_cli.model import encoding
from dcoder_cli.model.byte_pairs import NotUnderstood, byte_alphabet, understand
from dcoder_cli.model.characters import Characters
from dcoder_cli.model.encoding import EnginesDiffer, TextEncoder, choose, hard_texts
from dcoder_cli.model.tokenizer import train_tokenizer

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PROSE = "größe naïve Ελληνικά русский 日本語です 中文 한국어 العربية עברית हिन्दी 👩‍👩‍👧 ½ ٣٤ 1234 I'm you're x\u00a0y\u3000z\r\n\t\n"
KINDS = ("qwen2", "llama3", "smollm", "digit runs", "gpt2", "ours", "ours, two digits")


def corpus() -> list[str]:
    """This project's sources, and other scripts."""
    files = sorted((Path(__file__).parent.parent / "dcoder_cli" / "data").glob("*.py"))
    return [*(file.read_text(encoding="utf-8") for file in files[:12]), PROSE * 20]


def split(number: str) -> dict[str, Any]:
    steps = [
        {
            "type": "Split",
            "pattern": {"Regex": CL100K.replace("NUMBER", number)},
            "behavior": "Isolated",
            "invert": False,
        },
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    return {"type": "Sequence", "pretokenizers": steps}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS, RUNS = (
    {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": single}, BYTE_LEVEL]}
    for single in (True, False)
)
PRE_TOKENIZERS = {"qwen2": split(r"\p{N}"), "llama3": split(r"\p{N}{1,3}"), "smollm": DIGITS, "gpt2": BYTE_LEVEL}
PRE_TOKENIZERS["digit runs"] = RUNS


@cache
def tokenizer_json(kind: str) -> str:
    """A tokenizer set up as that family's, trained here on a little text."""
    from tokenizers import AddedToken, Tokenizer, models, trainers

    if kind.startswith("ours"):
        trained = train_tokenizer(corpus(), 900, digits=2 if "two" in kind else 1)
        return str(trained.backend_tokenizer.to_str())
    empty = json.loads(Tokenizer(models.BPE()).to_str())
    empty["pre_tokenizer"] = PRE_TOKENIZERS[kind]
    empty["normalizer"] = {"type": "NFC"} if kind == "qwen2" else None
    backend = Tokenizer.from_str(json.dumps(empty))
    alphabet = sorted(byte_alphabet())
    if kind == "smollm":  # its vocabulary lacks some bytes
        alphabet = [character for character in alphabet if byte_alphabet()[character] not in (4, 6, 0xC0, 0xF0, 0xFF)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<|endoftext|>", "<|im_start|>"], initial_alphabet=alphabet, show_progress=False
    )
    texts = [text.translate({0x1F469: None, 0x1F467: None}) for text in corpus()] if kind == "smollm" else corpus()
    backend.train_from_iterator(texts, trainer)
    if kind == "qwen2":
        normalized = [AddedToken(content, normalized=True) for content in ("é-tag", "o\u0308-tag")]
        backend.add_tokens([AddedToken("<tool_call>", normalized=False), *normalized])
    whole = json.loads(backend.to_str())
    if kind == "llama3":
        whole["model"]["ignore_merges"] = True
        whole["model"]["merges"] = every_split(whole["model"]["vocab"])
        whole["model"]["vocab"]["ĠqĠqĠq"] = 5000  # made by no merge, taken whole where a piece is it
    return json.dumps(whole)


def every_split(vocab: dict[str, int]) -> list[list[str]]:
    """Merges as Llama 3's file has them: every two tokens that a token is made of."""
    merges = []
    for token in sorted((t for t in vocab if not t.startswith("<|")), key=vocab.__getitem__):
        pairs = [[token[:at], token[at:]] for at in range(1, len(token))]
        found = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(found, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return merges


@cache
def encoder(kind: str) -> TextEncoder:
    return of_json(tokenizer_json(kind))


def loaded(whole: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(whole)


def of_json(whole: str, dtype: Any = np.uint32) -> TextEncoder:
    return TextEncoder(loaded(whole), understand(whole), dtype)


def agrees(one: TextEncoder, text: str) -> bool:
    """Whether tiktoken took the text; fails where it gave other ids."""
    ids = one.by_tiktoken(text)
    if ids is not None:
        assert ids.tolist() == one.by_tokenizers([text])[0].tolist(), repr(text)
    return ids is not None


PIECES = st.sampled_from(
    [
        *(" ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", "\r", "\x0b", "\u00a0", "\u3000", "\u2028", "\x85", "\x1c"),
        *("'s", "'S", "'ll", "'RE", "'ſ", "'", "''", "don't", "a", "ab", "the", "return", "self", "Zß", "é", "e\u0301"),
        *("0", "12", "345", "٣", "½", "Ⅷ", "²", "_", "__", "==", "->", "(", ")", "...", "<|endoftext|>", "<tool_call>"),
        *(
            "中文",
            "日本",
            "한",
            "\u1100\u1161",
            "👩‍👩‍👧",
            "👍🏽",
            "\ufeff",
            "\u200d",
            "\u0301",
            "\U000e0001",
            "\u0378",
            "\x00",
            "\x04",
            "\x7f",
        ),
    ]
)
TEXTS = st.one_of(st.lists(PIECES, max_size=24).map("".join), st.text(max_size=40), st.text("ab \n1'é", max_size=40))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS)
def test_the_ids_are_the_same_for_any_text(kind: str, text: str) -> None:
    agrees(encoder(kind), text)
    (ids,) = encoder(kind).encode([text])
    assert ids.tolist() == encoder(kind).by_tokenizers([text])[0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2", "smollm"])
def test_every_character(kind: str) -> None:
    """Where the engines' Unicode differs, or a character is none of a kind, `tokenizers` has it."""
    taken = sum(
        agrees(encoder(kind), f"a{c}b {c} 1{c}2 '{c}x {c}{c}\n{c}")
        for c in map(chr, [*range(0xD800), *range(0xE000, 0x32000), *range(0xE0000, 0xE0200)])
    )
    assert taken > (140_000 if kind == "qwen2" else 50_000)


@pytest.mark.parametrize("kind", KINDS)
def test_hard_texts_and_sources_are_tiktokens_and_agree(kind: str) -> None:
    one, pairs = encoder(kind), understand(tokenizer_json(kind))
    hard = [agrees(one, text) for text in hard_texts(one, pairs)]
    assert len(hard) > 1500 and sum(hard) > 0.95 * len(hard)
    assert all(agrees(one, text) for text in corpus()[:-1])
    assert agrees(one, PROSE) == (kind != "smollm")  # where the vocabulary lacks a byte of it


BYTES = byte_alphabet()
LETTERS = "abc"


@st.composite
def merge_lists(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Merges in any order, even ones that never happen and several for one token."""
    tokens = list(LETTERS)
    merges: list[tuple[str, str]] = []
    for _ in range(draw(st.integers(0, 12))):
        pair = (draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens)))
        if len("".join(pair)) <= 6:
            merges.append(pair)
            tokens.append("".join(pair))
    return draw(st.permutations(merges)) if draw(st.booleans()) else merges


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    merges=merge_lists(),
    strays=st.lists(st.text(LETTERS, min_size=2, max_size=5), max_size=2),
    whole=st.booleans(),
    texts=st.lists(st.text(LETTERS, max_size=14), min_size=8, max_size=8),
)
def test_any_list_of_merges_is_given_up_or_gives_the_same_ids(
    merges: list[tuple[str, str]], strays: list[str], whole: bool, texts: list[str]
) -> None:
    tokens = dict.fromkeys([*BYTES, *("".join(pair) for pair in merges), *strays])
    shuffled = sorted(tokens, key=lambda token: random.Random(token).random())  # ids that follow no rank
    model = {"type": "BPE", "ignore_merges": whole, "vocab": {token: index for index, token in enumerate(shuffled)}}
    model |= {"merges": [list(pair) for pair in merges]}
    try:
        one = of_model(model)
    except NotUnderstood:
        return
    for text in [*texts, "".join(texts), *("".join(pair) for pair in merges), *strays]:
        assert agrees(one, text)


def of_model(model: dict[str, Any]) -> TextEncoder:
    whole = json.dumps({"version": "1.0", "pre_tokenizer": BYTE_LEVEL, "added_tokens": [], "model": model})
    return of_json(whole)


def merged(merges: list[list[str]], ignore_merges: bool = False, extra: tuple[str, ...] = ()) -> dict[str, Any]:
    tokens = dict.fromkeys([*BYTES, *("".join(pair) for pair in merges), *extra])
    vocab = {token: index for index, token in enumerate(tokens)}
    return {"type": "BPE", "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges}


def test_a_token_that_its_bytes_never_become_has_no_rank() -> None:
    never = merged([["a", "b"], ["b", "c"], ["a", "bc"]])  # "abc" becomes ab + c
    one = of_model(never)
    assert b"abc" not in understand_model(never) and b"bc" in understand_model(never)
    assert agrees(one, "abc abcabc aabc") and agrees(one, "bc")
    with pytest.raises(NotUnderstood, match="taken whole"):  # in tiktoken ab and c would meet and become it
        of_model(merged([["a", "b"], ["b", "c"], ["a", "bc"]], ignore_merges=True))
    taken = of_model(merged([["a", "b"]], ignore_merges=True, extra=("xyz",)))
    assert agrees(taken, "xyz") and agrees(taken, "xyzxyz xyz")
    with pytest.raises(NotUnderstood, match="stand apart"):
        of_model(merged([["a", "b"], ["ab", "c"], ["b", "c"], ["a", "bc"]]))


def understand_model(model: dict[str, Any]) -> tuple[bytes, ...]:
    return understand(json.dumps({"pre_tokenizer": BYTE_LEVEL, "model": model})).tokens


def changed(kind: str, change: Callable[[dict[str, Any]], object]) -> str:
    whole = json.loads(tokenizer_json(kind))
    change(whole)
    return json.dumps(whole)


@pytest.mark.parametrize(
    ("kind", "change", "why"),
    [
        ("gpt2", lambda w: w.update(normalizer={"type": "NFKC"}), "normalizer NFKC"),
        ("gpt2", lambda w: w.update(normalizer={"type": "Lowercase"}), "normalizer Lowercase"),
        ("gpt2", lambda w: w["pre_tokenizer"].update(add_prefix_space=True), "a space before every text"),
        ("gpt2", lambda w: w["pre_tokenizer"].update(use_regex=False), "pre-tokenizer"),
        ("gpt2", lambda w: w["pre_tokenizer"].update(other=1), "'other' in ByteLevel"),
        ("gpt2", lambda w: w.update(pre_tokenizer=None), "pre-tokenizer none"),
        ("gpt2", lambda w: w.update(pre_tokenizer={"type": "Whitespace"}), "pre-tokenizer Whitespace"),
        ("qwen2", lambda w: w["pre_tokenizer"]["pretokenizers"][1].update(use_regex=True), "pre-tokenizer Split"),
        ("qwen2", lambda w: w["pre_tokenizer"]["pretokenizers"][0].update(invert=True), "pattern"),
        ("qwen2", lambda w: w["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "pattern"),
        ("qwen2", lambda w: w["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\p{L}+"}), "pattern"),
        ("qwen2", lambda w: w["pre_tokenizer"]["pretokenizers"][0].update(pattern={"String": " "}), "pattern"),
        ("gpt2", lambda w: w["model"].update(dropout=0.1), "dropout"),
        ("gpt2", lambda w: w["model"].update(end_of_word_suffix="</w>"), "suffix"),
        ("gpt2", lambda w: w["model"].update(continuing_subword_prefix="##"), "prefix"),
        ("gpt2", lambda w: w["model"].update(new=1), "'new' in the model"),
        ("gpt2", lambda w: w["model"]["vocab"].update(twice=3), "an id of two tokens"),
        ("gpt2", lambda w: w.update(model={"type": "Unigram", "vocab": []}), "model Unigram"),
        ("gpt2", lambda w: w.update(post_processor={"type": "New"}), "post-processor New"),
        ("gpt2", lambda w: w["added_tokens"][0].update(new=1), "'new' in an added token"),
        ("gpt2", lambda w: w.update(new=1), "'new' in the file"),
        ("gpt2", lambda w: w["model"]["merges"].append(["a", "b", "c"]), "another form"),
        ("smollm", lambda w: w["pre_tokenizer"]["pretokenizers"][0].pop("individual_digits"), "another form"),
    ],
)
def test_what_is_not_understood_is_left_to_tokenizers(kind: str, change: Any, why: str) -> None:
    with pytest.raises(NotUnderstood, match=why):
        understand(changed(kind, change))


def test_what_changes_no_id_is_taken() -> None:
    def change(whole: dict[str, Any]) -> None:
        whole["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
        }
        whole["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        padding = {"direction": "Right", "pad_to_multiple_of": 64, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
        whole["padding"] = {"strategy": {"Fixed": 64}, **padding}
        whole["model"].update(unk_token="<|endoftext|>", fuse_unk=True, byte_fallback=True)
        whole["model"]["merges"] = [" ".join(pair) for pair in whole["model"]["merges"]]  # the older spelling

    whole = changed("gpt2", change)
    one = of_json(whole)
    assert agrees(one, corpus()[0])
    assert one.encode([corpus()[0]])[0].tolist() == encoder("gpt2").encode([corpus()[0]])[0].tolist()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("qwen2", "a <tool_call> in the text"),  # added and not special: one token in documents too
        ("qwen2", "an é-tag in the text"),
        ("qwen2", "an e\u0301-tag in the text"),  # as NFC has it
        ("qwen2", "an ö-tag in the text"),
        ("qwen2", "e\u0301 is not normal"),
        ("qwen2", "unassigned \u0378"),
        ("llama3", "x'ſ"),  # s, where case does not count
        ("smollm", "no such byte \x04"),
        ("smollm", "no such byte either 👍"),
        ("gpt2", "x" + " " * 1_000_000 + "y"),  # tiktoken's regular expressions give up
    ],
)
def test_texts_that_are_not_for_tiktoken(kind: str, text: str) -> None:
    assert encoder(kind).by_tiktoken(text) is None
    assert encoder(kind).by_tiktoken("so much for that, and <|endoftext|> is text") is not None
    assert encoder(kind).encode([text])[0].tolist() == encoder(kind).by_tokenizers([text])[0].tolist()


@pytest.mark.parametrize(("kind", "unit"), [("qwen2", "a"), ("qwen2", "\n"), ("gpt2", "="), ("gpt2", "é")])
def test_a_megabyte_of_one_thing_takes_no_time(kind: str, unit: str) -> None:
    text = "x = 1" + unit * (1_000_000 // len(unit)) + "y"
    begin = time.process_time()
    (ids,) = encoder(kind).encode([text])
    assert time.process_time() - begin < 5 and len(ids) > 1000


def test_batches_keep_their_order_and_encoders_travel() -> None:
    texts = ["one", "e\u0301", "", "two <tool_call>", "three"]
    expected = [ids.tolist() for ids in encoder("qwen2").by_tokenizers(texts)]
    again = pickle.loads(pickle.dumps(encoder("qwen2")))
    for one in (encoder("qwen2"), again):
        assert [ids.tolist() for ids in one.encode(texts)] == expected
    assert again.by_tiktoken("one") is not None and encoder("qwen2").without_tiktoken().by_tiktoken("one") is None
    assert [ids.dtype for ids in TextEncoder(loaded(tokenizer_json("gpt2")), None, np.uint16).encode(["a"])] == [
        np.uint16
    ]


def test_the_choice_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokenizer_json("qwen2")
    assert choose(loaded(whole), np.uint16, 10**6, corpus())[1] == "tiktoken"
    assert choose(loaded(whole), np.uint16, 10, corpus())[1] == "tokenizers (little text)"
    other = changed("qwen2", lambda w: w.update(normalizer={"type": "NFKC"}))
    assert choose(loaded(other), np.uint16, 10**6, corpus())[1] == "tokenizers (normalizer NFKC)"
    # Neither the characters nor the hard texts let a pattern through that cuts otherwise.
    real = encoding.understand
    for wrong in (r"\p{L}+|\P{L}", r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"):
        monkeypatch.setattr(encoding, "understand", lambda text, cut=wrong: with_cut(real(text), cut))
        one, engine = choose(loaded(whole), np.uint16, 10**6, [])
        assert engine.startswith("tokenizers (") and one.by_tiktoken("a") is None
    monkeypatch.setattr(encoding, "understand", real)
    monkeypatch.setattr(encoding.importlib.util, "find_spec", lambda name: None)
    assert choose(loaded(whole), np.uint16, 10**6, corpus())[1] == "tokenizers (tiktoken is not installed)"


def with_cut(pairs: Any, cut: str) -> Any:
    return replace(pairs, cut=cut)


def test_a_character_of_two_kinds_is_not_for_tiktoken() -> None:
    """As where one engine's Unicode has made a letter of what the other does not know."""
    pairs = understand(tokenizer_json("qwen2"))
    newer = replace(pairs, cut=pairs.cut.replace(r"\p{L}+", r"[\p{L}→]+"))
    pre_tokenizer = encoder("qwen2").tokenizer.pre_tokenizer
    assert Characters(pairs, pre_tokenizer).are_same("a → b") and Characters(newer, pre_tokenizer).are_same("a × b")
    assert not Characters(newer, pre_tokenizer).are_same("a → b")


def test_ids_that_do_not_fit_are_no_ids() -> None:
    gap = changed("gpt2", lambda w: w["model"]["vocab"].update({"a": 70_000}))
    with pytest.raises(NotUnderstood, match="ids beyond"):
        of_json(gap, np.uint16)
    assert choose(loaded(gap), np.uint16, 10**6, [])[1] == "tokenizers (ids beyond the size of the vocabulary)"


def test_a_difference_on_the_way_is_found() -> None:
    whole = tokenizer_json("gpt2")
    one = of_json(whole)
    one.encode(["x = 1"])
    one._ids = np.roll(one._ids, 1)
    with pytest.raises(EnginesDiffer, match="differ on the text that begins 'return 1'"):
        for _ in range(encoding._CHECKED):
            one.encode(["return 1", "x"])


FILTERS = FilterSettings(near_duplicates=0, code_filters="none")


def tokenize(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest, and the bytes of all other files."""
    out = folder / name
    common = {"tokenizer": str(folder / "tokenizer"), "filters": FILTERS, "workers": 1, "quiet": True}
    manifest = tokenize_pretrain(PretrainSettings((str(folder / "src"),), str(out), seq_len=64, heldout=0.1, **common))
    return manifest, {path.name: path.read_bytes() for path in out.rglob("*") if path.name != "manifest.json"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    (folder / "src").mkdir()
    for number, text in enumerate([*corpus(), "e\u0301\n" * 50, "x = '<|endoftext|>'\n"]):
        (folder / "src" / f"{number}.py").write_text(text, encoding="utf-8")
    train_tokenizer(corpus(), 600).save_pretrained(folder / "tokenizer")
    return folder


def test_the_shards_do_not_tell_the_engine_and_the_manifest_does(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick, by_tiktoken = tokenize(place, "quick")
    monkeypatch.setattr(encoding.importlib.util, "find_spec", lambda name: None)
    slow, by_tokenizers = tokenize(place, "slow")
    assert (quick.pop("engine"), slow.pop("engine")) == ("tiktoken", "tokenizers (tiktoken is not installed)")
    assert quick == slow and by_tiktoken == by_tokenizers and len(by_tiktoken) > 1


def test_a_run_starts_afresh_where_the_engines_differ(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sources, "_FILES_UNIT_BYTES", 20_000)
    _, expected = tokenize(place, "right")
    real, calls = TextEncoder.encode, []

    def wrong(self: TextEncoder, texts: Any) -> Any:
        """As if tiktoken erred on everything but the proofs, and the second unit were the first to be looked at."""
        calls.append(len(texts))
        if self._pairs is not None:
            self._ids = np.roll(self._ids, 1)
            self._checked = 0 if len(calls) > 1 else 10**9
        return real(self, texts)

    monkeypatch.setattr(TextEncoder, "encode", wrong)
    manifest, files = tokenize(place, "wrong")
    assert files == expected and manifest["engine"].startswith("tokenizers (tiktoken and tokenizers differ on")
    assert "starting afresh with tokenizers alone" in capsys.readouterr().err


def test_tokenizing_brings_no_torch(place: Path) -> None:
    """Neither to the command's own process nor to a worker, whose start would take three times as long."""
    rows = [json.dumps({"instruction": f"Add {n}.", "output": f"x + {n}"}) for n in range(50)]
    (place / "chats.jsonl").write_text("\n".join(rows))
    program = f"""
        import sys
        from dcoder_cli.data.pipeline import PretrainSettings, SftSettings, tokenize_pretrain, tokenize_sft
        place = {str(place)!r}
        common = dict(tokenizer=place + "/tokenizer", seq_len=512, workers=1, quiet=True)
        tokenize_pretrain(PretrainSettings((place + "/src",), place + "/no-torch", **common))
        tokenize_sft(SftSettings((place + "/chats.jsonl",), place + "/no-torch-either", **common))
        print([name for name in ("torch", "scipy", "datasets") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
