"""`dcoder generate --watch` on a real pseudo-terminal, and the frames it draws."""

from __future__ import annotations

import io
import re
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import refused
from hypothesis import given
from hypothesis import strategies as st
from parrot import LENGTH, NICE, parrot
from rich.cells import cell_len
from terminal import Display, Program, terminal_file

from dcoder_cli import generate, load
from dcoder_cli.analysis.colours import luminance, terminal_colour
from dcoder_cli.base.console import visible
from dcoder_cli.decoding.requests import Settings
from dcoder_cli.model.backbone import Model
from dcoder_cli.terminal.cells import layout
from dcoder_cli.terminal.screen import Screen
from dcoder_cli.terminal.watch import StepPlan, Watch

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def folder() -> Path:
    return parrot()


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder, device="cpu")


@pytest.fixture(autouse=True)
def capable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def screen() -> Iterator[Screen]:
    with terminal_file() as (file, _):
        yield Screen(file)


def command(folder: Path, *prompts: str) -> list[object]:
    return ["generate", "--model", folder, "--max-new-tokens", LENGTH, "--device", "cpu", *prompts]


def in_process(arguments: list[object], monkeypatch: pytest.MonkeyPatch, stdout: object) -> str:
    """Run the command line here with another stdout; what it wrote on stderr."""
    from dcoder_cli.main import main

    stderr = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["dcoder", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code in (0, None), stderr.getvalue()
    return stderr.getvalue()


def test_the_denoising_is_shown_and_the_text_remains(folder: Path) -> None:
    program = Program([*command(folder, "sort", "hack"), "--watch", "--batch-size", 1])
    assert program.end() == 0
    frames = program.display.frames
    masked = [frame for frame in frames if "░" in frame]
    assert masked and masked[0].count("░") >= LENGTH - 2, "the first frame is all masks"
    assert any(
        re.search(rf"step \d+/{LENGTH} ━*─* *\d+/{LENGTH} tokens · [\d.]+ tokens/forward · \d+ tok/s", f)
        for f in frames
    )
    assert any("'1' of 2" in frame for frame in frames), "the second prompt is shown after the first"
    shown = program.display.text()
    assert "░" not in shown and "tokens/forward" not in shown
    assert NICE.rstrip() in shown and "␛]0;x␇␛[2J<9b>31m" in shown
    assert program.display.sane()


def test_ctrl_c_leaves_the_terminal_sane(folder: Path) -> None:
    program = Program(
        [*command(folder, "sort"), "--watch", "--max-new-tokens", 90, "--n", 40, "--temperature", 1, "--batch-size", 1]
    )
    program.wait_for(r"step [1-9]")
    program.send("\x03")
    assert program.end() != 0
    assert program.display.sane()
    assert "Traceback" not in program.raw
    assert re.search(r"tok/s *\n", program.display.text()), "the frame stays, and the shell goes on below it"


def test_a_frame_that_ctrl_c_threw_away_costs_no_line_above() -> None:
    with terminal_file() as (file, written):
        screen, display = Screen(file), Display()
        display.feed("$ dcoder generate\r\n")
        screen.draw(["a", "b", "status 1"])
        display.feed(written())
        shown = len(written())
        screen.draw(["text", *"cdefghijkl", "status 2"])  # the kernel drops it: Ctrl-C flushes what was not read yet
        lost = len(written())
        screen.keep()
        display.feed("^C" + written()[lost:])
    assert lost > shown and display.sane()
    assert display.text().split("\n") == ["$ dcoder generate", "a", "b", "status 2", ""]


def test_the_widest_frame_leaves_room_for_the_echo_of_ctrl_c() -> None:
    with terminal_file() as (file, written):
        screen, display = Screen(file), Display()
        columns, _ = screen.size()
        screen.draw(["x" * columns, "s" * columns])
        display.feed(written() + "^C")
        screen.keep()
        display.feed(written().partition("\x1b[?2026l")[2])
    assert display.text().split("\n") == ["x" * columns, "s" * columns, ""] and display.sane()


def test_every_frame_leaves_the_terminal_sane(model: Model) -> None:
    with terminal_file() as (file, written):
        watch = Watch(StepPlan.of(model, Settings(max_new_tokens=LENGTH)), screen=Screen(file))
        watch.on_commit(0, 0, [3], [70])
        display = Display()
        display.feed(written())
        assert display.frames and display.sane()


def test_piped_it_is_plain_text_and_one_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, watched = io.StringIO(), io.StringIO()
    in_process(command(folder, "sort"), monkeypatch, plain)
    noted = in_process([*command(folder, "sort"), "--watch"], monkeypatch, watched)
    assert watched.getvalue() == plain.getvalue() == NICE + "\n"
    assert [line for line in noted.splitlines() if "--watch" in line] == [
        "note: --watch needs a terminal on stdout; writing plain text instead"
    ]
    assert "\x1b" not in noted


def test_piped_text_is_what_the_model_wrote(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    in_process(command(folder, "hack"), monkeypatch, out)
    assert "\x1b]0;x\x07\x1b[2J\x9b31m" in out.getvalue()


def test_on_a_terminal_plain_generate_cannot_command_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal_file() as (file, written):
        in_process(command(folder, "hack"), monkeypatch, file)
        shown = written()
    assert "␛]0;x␇␛[2J<9b>31m" in shown
    assert not any(unicodedata.category(character) == "Cc" for character in shown.replace("\r\n", ""))


def test_json_and_watch_exclude_each_other(folder: Path) -> None:
    assert "--watch" in refused(*command(folder, "sort"), "--watch", "--json")


def test_what_is_committed_is_what_the_trajectory_says(model: Model) -> None:
    seen: dict[int, dict[int, tuple[int, int]]] = {0: {}, 1: {}}

    def on_commit(step: int, row: int, positions: list[int], tokens: list[int]) -> None:
        for position, token in zip(positions, tokens, strict=True):
            assert position not in seen[row]
            seen[row][position] = (step, token)

    results = generate(model, ["a", "b c d"], 16, steps=8, temperature=1.0, on_commit=on_commit)
    for row, result in enumerate(results):
        expected = list(zip(result.reveal_step, result.tokens, strict=True))
        assert [seen[row][position] for position in range(16)] == expected


def test_order_shows_without_colour(model: Model, screen: Screen) -> None:
    token = model.tokenizer("x")["input_ids"]
    for colours in (True, False):
        if not colours:
            screen.colours = None
        watch = Watch(StepPlan.of(model, Settings(max_new_tokens=40)), screen=screen)
        watch.next_frame = float("inf")
        watch.on_commit(0, 0, [0], token)
        watch.fresh.clear()
        for step in (30, 31):
            watch.on_commit(step, 0, [step], token)
            if step == 30:
                watch.fresh.clear()
        line = watch.frame(79, 24)[0]
        old, late, new = re.findall(r"(\x1b\[[0-9;]*m|)x\x1b\[0m", line)
        assert old != late != new
        assert "1;7" in new and "4" in late.strip("\x1b[m").split(";")
        assert ("38;5;" in old) == colours


def test_colours_are_readable_on_black_and_on_white() -> None:
    colours = [terminal_colour(index / 20) for index in range(21)]
    assert len(set(colours)) == 21
    for colour in colours:
        assert 1.05 / (luminance(colour) + 0.05) >= 4.45 and (luminance(colour) + 0.05) / 0.05 >= 4.45


def test_of_a_tall_text_the_active_part_is_shown(model: Model, screen: Screen) -> None:
    line_end = model.tokenizer("\n")["input_ids"]
    letter = model.tokenizer("x")["input_ids"]
    watch = Watch(StepPlan.of(model, Settings(max_new_tokens=100)), screen=screen)
    watch.next_frame = float("inf")
    for position in range(0, 100, 2):
        watch.on_commit(position, 0, [position], line_end)
    assert len(watch.frame(79, 24)) <= 24
    for position in (51, 53, 55, *range(71, 99, 2)):
        watch.on_commit(100 + position, 0, [position], letter)
        lines = watch.frame(79, 24)
        assert len(lines) <= 24 and re.search(r"lines \d+-\d+ of 51", lines[-1])
    assert any("x" in ANSI.sub("", line) for line in lines[:-3])


def test_blocks_appear_one_after_another(model: Model, screen: Screen) -> None:
    watch = Watch(StepPlan.of(model, Settings(max_new_tokens=64, block_length=16)), screen=screen)
    watch.next_frame = float("inf")
    assert watch.frame(79, 24)[0].count("░") == 16
    watch.on_commit(0, 0, list(range(16)), model.tokenizer("x")["input_ids"] * 16)
    watch.on_commit(16, 0, [20], model.tokenizer("x")["input_ids"])
    assert watch.frame(79, 24)[0].count("░") == 15


def test_a_batch_shows_one_row_and_counts_all(model: Model, screen: Screen) -> None:
    watch = Watch(StepPlan.of(model, Settings(max_new_tokens=8)), ["first", "se\x1bcond", "third"], screen)
    token = model.tokenizer("x")["input_ids"]
    for row in (1, 2):
        watch.on_commit(0, row, [0], token)
    status = ANSI.sub("", "\n".join(watch.frame(79, 24)))
    assert "1/8 tokens" in status and "'se␛cond' and 1 more rows of 3" in status


def test_a_span_searched_at_several_lengths_is_shown_each_time(model: Model, screen: Screen) -> None:
    watch = Watch(StepPlan.of(model, Settings(max_new_tokens=4)), screen=screen)
    watch.next_frame = float("inf")
    token = model.tokenizer("x")["input_ids"]
    for length in (2, 6):
        for step in range(length):
            watch.on_commit(step, 0, [step], token)
    status = ANSI.sub("", "\n".join(watch.frame(79, 24)))
    assert "xxxxxx" in status and "6/6 tokens" in status


def test_frames_are_few(model: Model, screen: Screen) -> None:
    watch = Watch(StepPlan.of(model, Settings(max_new_tokens=2000)), screen=screen)
    frames = []
    draw = screen.draw
    screen.draw = lambda lines: (frames.append(1), draw(lines))  # type: ignore[method-assign,assignment,func-returns-value]
    token = model.tokenizer("x")["input_ids"]
    began = time.perf_counter()
    for position in range(2000):
        watch.on_commit(position, 0, [position], token)
    assert len(frames) <= 2 + (time.perf_counter() - began) * 20


TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=6), max_size=30)


@given(TEXTS, st.integers(4, 40))
def test_lines_fit_and_lose_nothing(texts: list[str], columns: int) -> None:
    lines = layout(texts, columns)
    assert all(sum(cell_len(cell.text) for cell in line) <= columns for line in lines)
    shown = "".join(cell.text for line in lines for cell in line)
    kept = visible("".join(texts).replace("\r\n", "\n"))
    for character in "\n\t\u200d\ufe0e\ufe0f ":
        shown, kept = shown.replace(character, ""), kept.replace(character, "")
    assert len(shown) >= len(kept) - 2 * len(texts)
    assert not any(unicodedata.category(character) == "Cc" for character in shown)


@given(st.text(st.characters(codec="utf-8", categories=["Cc", "Cf", "Zl", "Zp", "L"])))
def test_visible_text_has_no_command(text: str) -> None:
    shown = visible(text)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in shown)
    assert not any(
        unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI") for c in shown
    )
    assert visible("plain text\n\tof lines é 日本") == "plain text\n\tof lines é 日本"
