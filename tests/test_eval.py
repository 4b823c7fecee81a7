"""Protocols, sample files and comparisons of `dcoder eval`, and the command itself on a tiny random model."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import documented
import pytest
from helpers import make_model, refused

from dcoder_cli import load
from dcoder_cli.benchmarks import compare, published, scoring, suites
from dcoder_cli.benchmarks.answers import encode
from dcoder_cli.benchmarks.benchmark import Item
from dcoder_cli.benchmarks.evaluation import Evaluation, Result
from dcoder_cli.benchmarks.protocols import Protocol, choose
from dcoder_cli.benchmarks.samples import Store
from dcoder_cli.decoding.requests import Encoded

needs_data = pytest.mark.usefixtures("benchmark_files")  # our own tasks, and the published ones where they are


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("eval") / "tiny", context=256)


def ran(*arguments: object) -> dict[str, Any]:
    """The JSON that a command prints, run in this process."""
    from dcoder_cli.main import main

    stdout = io.StringIO()
    before, sys.argv = sys.argv, ["dcoder", *map(str, arguments), "--json"]
    try:
        with contextlib.redirect_stdout(stdout), contextlib.suppress(SystemExit):
            main()
    finally:
        sys.argv = before
    documented.check_output([*map(str, arguments)], stdout.getvalue())
    found: dict[str, Any] = json.loads(stdout.getvalue())
    return found


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# --- protocols -------------------------------------------------------------------------------------------------------


@needs_data
def test_diffucoders_instruct_prompt_is_the_papers() -> None:
    suite = suites.load("humaneval", limit=1)
    ask = Protocol("diffucoder", True).ask(suite.items[0], suite)
    assert ask.prompt == [
        {"role": "system", "content": "You are a helpful assistant."},
        {
            "role": "user",
            "content": f"Please complete the following problem:\n```\n{suite.items[0].prompt}\n```\n",
        },
        {"role": "assistant", "content": "Here is the code to solve this problem:\n```python\n"},
    ]
    mbpp = suites.load("mbpp+", limit=1)
    words = Protocol("diffucoder", True).ask(mbpp.items[0], mbpp).prompt[1]["content"]  # type: ignore[index, call-overload]
    assert words == f"```\n{mbpp.items[0].prompt}\n```\n"


def test_settings_are_each_systems_own() -> None:
    paper = {"max_new_tokens": 512, "rule": "entropy", "temperature": 0.2, "top_p": 0.95, "tie_break": "topk"}
    assert Protocol("diffucoder", True).settings("complete") == paper
    assert Protocol("dream", False).settings("whole") == paper
    assert Protocol("dream", True).settings("complete") == {
        **paper,
        "max_new_tokens": 768,
        "temperature": 0.1,
        "top_p": 0.9,
    }
    assert Protocol("dream", True).settings("whole")["max_new_tokens"] == 1024
    assert Protocol("qwen", False).settings("whole") == {"max_new_tokens": 768, "temperature": 0.0}
    llada = Protocol("llada", True).settings("whole")
    assert (llada["rule"], llada["tie_break"]) == ("confidence", "topk")
    # Our own tasks stand behind no published score: ties fall by the model's order.
    own = suites.find("micro").settings
    assert Protocol("diffucoder", True).settings("own", own) == {
        name: value for name, value in {**paper, "max_new_tokens": 40}.items() if name != "tie_break"
    }


@needs_data
def test_base_prompts() -> None:
    suite = suites.load("humaneval", limit=1)
    item = suite.items[0]
    assert Protocol("qwen", False).ask(item, suite).prompt == item.prompt.strip() + "\n"
    assert Protocol("dream", False).ask(item, suite).prompt == item.prompt
    for name in ("mbpp", "mbpp+"):
        mbpp = suites.load(name)
        prompt = Protocol("dream", False).ask(mbpp.items[-1], mbpp).prompt
        assert isinstance(prompt, str)
        assert prompt.count("[BEGIN]") == 4 and prompt.count("[DONE]") == 3 and prompt.endswith("[BEGIN]\n")
        shown = next(item for item in mbpp.examples if item.task_id == "Mbpp/2")
        assert prompt.count(f"def {shown.entry_point}") == 1 and mbpp.items[-1].shown_tests[0] in prompt
    assert suites.load("mbpp").items[0].task_id == "Mbpp/11" and len(suites.load("mbpp").items) == 500


@needs_data
@pytest.mark.parametrize("name", ["diffucoder", "dream", "qwen", "llada"])
@pytest.mark.parametrize("instruct", [True, False])
@pytest.mark.parametrize("task", ["humaneval", "mbpp+", "humaneval-infilling", "micro", "micro-kinds", "bigcodebench"])
def test_a_right_answer_makes_a_program_that_defines_the_function(name: Any, instruct: bool, task: str) -> None:
    suite = suites.load(task, limit=3)
    protocol = Protocol(name, instruct)
    for item in suite.items:
        ask = protocol.ask(item, suite)
        if item.kind == "infill":
            text = item.source.answer
        elif instruct:
            text = (
                (item.reference + "\n```\nThat is all: def no(") if ask.prefill else f"```python\n{item.reference}```"
            )
        elif item.kind == "complete":
            text = item.source.answer + "\nprint(1)\nassert False"
        else:
            text = item.reference + '\n[DONE]\n"""\nmore'
        program = protocol.solution(item, text, ask.prefill)
        space: dict[str, Any] = {}
        if task != "bigcodebench":
            exec(program, space)
            assert item.entry_point in space
        assert f"def {item.entry_point}(" in program and "no(" not in program and "assert False" not in program


@needs_data
def test_the_checkpoint_chooses_the_protocol(model: Path, tmp_path: Path) -> None:
    loaded = load(model, device="cpu")
    assert choose(loaded).title == "diffucoder-base"
    assert choose(loaded, "dream", True).title == "dream-instruct"
    loaded.config["dcoder"]["stage"] = "sft"
    assert choose(loaded).title == "diffucoder-instruct"
    assert choose(load(make_model(tmp_path / "ar", ar=True), device="cpu")).title == "qwen-base"
    suite = suites.load("humaneval", limit=1)
    made = encode(loaded, Protocol("dream", False).ask(suite.items[0], suite))
    assert made.prefix[0] == loaded.tokenizer.bos_token_id and made.text == suite.items[0].prompt  # type: ignore[union-attr]
    gap = suites.load("humaneval-infilling", "span", limit=1)
    found = encode(loaded, Protocol("diffucoder", False).ask(gap.items[0], gap))
    assert isinstance(found, Encoded) and found.prefix and found.suffix


# --- scores ----------------------------------------------------------------------------------------------------------


def row(task_id: str, sample: int, passed: bool, status: str | None = None) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "sample": sample,
        "passed": passed,
        "status": status or ("passed" if passed else "failed"),
    }


def test_scores_leave_out_what_infrastructure_lost() -> None:
    suite = suites.load("micro", limit=2)
    rows = [
        row("a", 0, True),
        row("a", 1, False),
        row("b", 0, False),
        row("b", 1, False, "infrastructure"),
        row("b", 2, True),
    ]
    found = scoring.scores(suite, rows)["micro"]
    assert (
        found["pass@1"]["score"] == 50.0 and found["pass@2"]["score"] == 100.0 and list(found) == ["pass@1", "pass@2"]
    )
    assert scoring.ks(30) == [*range(1, 11), 20, 30]


def test_the_papers_rows() -> None:
    rows = dict(published.rows("humaneval+", "", True))
    assert rows["+ coupled-GRPO"] == {"humaneval": 73.2, "humaneval+": 68.3}
    assert dict(published.rows("evalplus", "", False))["DiffuCoder base"] == {"evalplus": 60.6}
    assert not published.rows("gsm8k", "", True) and not published.rows("mbpp", "test", True)
    for one in published.TABLE:  # EvalPlus is the mean of the plus scores: holds for most rows as printed
        assert len(one.scores) == 7


def test_models_and_speeds_are_compared_in_pairs(tmp_path: Path) -> None:
    def made(name: str, speed: int, right: int) -> Evaluation:
        rows = tuple(row(str(number), 0, number < right) for number in range(20))
        record = {"scores": {"micro": {}}, "rates": {"tokens_per_second": 10.0 * speed}}
        return Evaluation(name, "micro", "", True, 0.2, speed, tmp_path, Result(record, rows))

    runs = [made("a", 1, 10), made("a", 2, 8), made("b", 1, 15), made("b", 2, 15)]
    drop = compare.speeds(runs)[0]
    assert (drop["speed"], drop["difference"], drop["times_tokens_per_second"]) == (2, -10.0, 2.0)
    assert drop["low"] < -10 < 0 < drop["high"] and drop["interval"] == "bonett-price"  # 2 of 20 say little
    found = [(one["model"], one["against"], one["speed"], one["difference"]) for one in compare.models(runs)]
    assert found == [("b", "a", 1, 25.0), ("b", "a", 2, 35.0)]


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_cut_line_is_dropped_and_what_infrastructure_lost_is_replaced(tmp_path: Path) -> None:
    with Store(tmp_path / "e", {"x": 1}) as store:
        store.add("samples", {"task_id": "a", "sample": 0, "text": "t"})
        store.add("judged", row("a", 0, False, "infrastructure"))
        store.add("judged", row("a", 0, True))
        message = "another evaluation writes"
        with pytest.raises(Exception, match=message):
            Store(tmp_path / "e", {"x": 1})
    with open(tmp_path / "e" / "samples.jsonl", "a") as handle:
        handle.write('{"task_id": "b", "sam')
    with Store(tmp_path / "e", {"x": 1}) as store:
        assert list(store.samples) == [("a", 0)] and store.judged["a", 0]["status"] == "passed"
        store.add("samples", {"task_id": "c", "sample": 0, "text": "t"})
        store.merge([("c", 0), ("a", 0)])
    assert [one["task_id"] for one in lines(tmp_path / "e" / "samples.jsonl")] == ["c", "a"]
    with pytest.raises(Exception, match=r"samples with x = 1, and this run has 2"):
        Store(tmp_path / "e", {"x": 2})


# --- the command -----------------------------------------------------------------------------------------------------


def test_an_evaluation_that_is_killed_goes_on(model: Path, tmp_path: Path) -> None:
    """The samples are those of an undisturbed run; none is made again, none is lost."""
    arguments = ["eval", "micro-kinds", "--model", model, "--limit", 8, "--n", 3, "--max-new-tokens", 16, "--device", "cpu",
                 "--batch-size", 2, "--workers", 1]  # fmt: skip
    whole = ran(*arguments, "--out", tmp_path / "whole")
    assert whole["counts"]["samples"] == 24 and whole["tasks"] == 8 and whole["protocol"] == "diffucoder-base"
    assert set(whole["scores"]["micro-kinds"]) == {"pass@1", "pass@2", "pass@3"}
    assert whole["sandbox_tier"] and len(whole["data"]["sha256"]) == 64

    out = tmp_path / "killed"
    command = [sys.executable, "-m", "dcoder_cli", *map(str, arguments), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    file = out / "samples.jsonl"
    while process.poll() is None and not (file.is_file() and file.read_text().count("\n") >= 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(file, "a") as handle:
        handle.write('{"task_id": "micro-kinds/')  # as if killed while writing
    kept = {(one["task_id"], one["sample"]): one for one in lines_whole(file)}
    assert kept
    again = ran(*arguments, "--out", out)
    rows = lines(file)
    assert again["counts"] == whole["counts"] and again["scores"] == whole["scores"]
    assert [(one["task_id"], one["sample"], one["text"]) for one in rows] == [
        (one["task_id"], one["sample"], one["text"]) for one in lines(tmp_path / "whole" / "samples.jsonl")
    ]
    for one in rows:  # the seconds of a sample made before the kill are still those
        assert kept.get((one["task_id"], one["sample"]), one) == one
    assert len(lines(out / "judged.jsonl")) == 24
    assert "settings" in refused(*arguments, "--out", out, "--seed", 1)


def lines_whole(file: Path) -> list[dict[str, Any]]:
    text = file.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n")].splitlines()]


def test_speeds_and_models_in_one_call(model: Path, tmp_path: Path) -> None:
    found = ran(
        "eval", "micro-kinds", "--model", model, "--model", model, "--limit", 2, "--max-new-tokens", 8, "--device", "cpu",
        "--speed", "1,2", "--workers", 1, "--out", tmp_path / "out",
    )  # fmt: skip
    assert [run["settings"].get("steps") for run in found["runs"]] == [None, 4, None, 4]
    assert [run["rates"]["forwards"] for run in found["runs"]] == [16, 8, 16, 8]
    assert len(found["speed"]) == 2 and len(found["comparisons"]) == 2
    assert (tmp_path / "out" / "tiny-2" / "x2" / "samples.jsonl").is_file()
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["runs"]) == 4


def test_a_presets_section_eval(model: Path, tmp_path: Path) -> None:
    """It sets how many rows are decoded together, and the sampler below what the command line says."""
    preset = tmp_path / "mine.yaml"
    call = [
        "eval",
        "micro-kinds",
        "--model",
        model,
        "--limit",
        3,
        "--device",
        "cpu",
        "--workers",
        1,
        "--preset",
        preset,
    ]
    preset.write_text("eval: {batch_size: 3, max_new_tokens: 8, steps: 4, temperature: 0.3}\n")
    found = ran(*call, "--steps", 2, "--out", tmp_path / "a")
    settings = found["settings"]
    assert (settings["max_new_tokens"], settings["steps"], settings["temperature"]) == (8, 2, 0.3)
    assert set(found["departures"]) >= {"max_new_tokens", "temperature"}
    assert found["rates"]["forwards"] == 6  # two steps of each row
    assert ran(*call, "--temperatures", "0.5", "--out", tmp_path / "b")["settings"]["temperature"] == 0.5
    for text, told in (
        ("eval: {batch_size: 0}", "batch_size = 0"), ("eval: {batch_size: many}", "'many'"), ("grpo: {}", "no section 'eval'"),
        ("eval: {stepps: 3}", "stepps"),
    ):  # fmt: skip
        preset.write_text(text + "\n")
        assert told in refused(*call, "--out", tmp_path / "c") and not (tmp_path / "c").exists()


def test_the_rows_decoded_together_are_the_presets(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    from dcoder_cli.benchmarks import sweep
    from dcoder_cli.main import main

    seen: list[int] = []
    monkeypatch.setattr(sweep, "plan", lambda models, task, place, chosen, *more: seen.append(chosen.batch_size))
    monkeypatch.setattr("dcoder_cli.base.plan.show", lambda *_: None)
    for more in ([], ["--preset", "cpu-tiny"], ["--preset", "cpu-tiny", "--batch-size", "3"]):
        monkeypatch.setattr(sys, "argv", ["dcoder", "eval", "micro", "--model", str(model), "--dry-run", *more])
        with contextlib.suppress(SystemExit):
            main()
    assert seen == [8, 32, 3]


def test_micro_is_scored_on_both_held_out_sets(model: Path, tmp_path: Path) -> None:
    """`eval micro` runs the two, each with its own score and folder; people see them in one row."""
    out = tmp_path / "out"
    arguments = ["eval", "micro", "--model", model, "--limit", 3, "--max-new-tokens", 8, "--device", "cpu",
                 "--workers", 1]  # fmt: skip
    found = ran(*arguments, "--out", out)
    assert list(found["scores"]) == ["micro", "micro-kinds"] and found["scores"]["micro-kinds"]["pass@1"]["score"] == 0
    assert [(run["task"], run["counts"]["samples"]) for run in found["runs"]] == [("micro", 3), ("micro-kinds", 3)]
    assert found["runs"][0]["data"]["sha256"] != found["runs"][1]["data"]["sha256"]
    for name in ("micro", "micro-kinds"):
        assert all(one["task_id"].startswith(f"{name}/") for one in lines(out / name / "judged.jsonl"))
    command = [sys.executable, "-m", "dcoder_cli", *map(str, arguments), "--out", str(out)]
    shown = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "micro pass@1 micro-kinds pass@1" in shown and "micro-kinds: 3 of 150 tasks" in shown
    assert suites.load("micro").total == 210 and suites.load("micro-kinds").total == 150
    assert "inside the package" in refused(*arguments, "--out", out, "--data", out / "results.json")


@needs_data
def test_prompts_beyond_the_context_are_counted(model: Path, tmp_path: Path) -> None:
    found = ran("eval", "humaneval", "--model", model, "--limit", 3, "--max-new-tokens", 250, "--out", tmp_path / "out")
    assert found["counts"]["prompt_too_long"] == found["counts"]["empty"] == 3
    assert found["published"][0]["system"] == "Qwen2.5-Coder base"


@needs_data
@pytest.mark.parametrize("task", ["gsm8k", "humaneval-infilling"])
def test_other_tasks_run(model: Path, tmp_path: Path, task: str) -> None:
    length = ("--max-new-tokens", 8) if task == "gsm8k" else ("--infill-lengths", "4,8")
    found = ran("eval", task, "--model", model, "--limit", 1, *length, "--device", "cpu", "--out", tmp_path / "out")
    assert found["counts"]["samples"] == 1 and set(found["scores"]) == (
        {"strict", "flexible"} if task == "gsm8k" else {"infilling"}
    )


def samples(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "samples.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return file


@needs_data
def test_judging_a_file(tmp_path: Path) -> None:
    suite = suites.load("humaneval", limit=3)
    rows = [{"task_id": item.task_id, "solution": item.reference} for item in suite.items]
    rows += [
        {"task_id": "HumanEval/0", "completion": "    return None\n"},
        {"task_id": "HumanEval/1", "solution": "def ("},
    ]
    found = ran("eval", "judge", samples(tmp_path, rows), "--task", "humaneval", "--out", tmp_path / "out")
    judged = lines(tmp_path / "out" / "judged.jsonl")
    assert [one["status"] for one in judged] == ["passed", "passed", "passed", "failed", "syntax"]
    assert [one["sample"] for one in judged] == [0, 0, 0, 1, 1]
    assert found["tasks"] == 3 and found["tasks_of_benchmark"] == 164 and found["counts"]["syntax_error"] == 1
    assert found["scores"]["humaneval"]["pass@1"]["score"] == pytest.approx(66.667)
    assert "already" in refused(
        "eval", "judge", tmp_path / "samples.jsonl", "--task", "humaneval", "--out", tmp_path / "out"
    )


@needs_data
def test_judging_plus_tasks_and_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCODER_CACHE", str(tmp_path / "cache"))
    item = next(item for item in suites.load("humaneval+").items if item.task_id == "HumanEval/2")
    file = samples(tmp_path, [{"task_id": "HumanEval/2", "solution": item.reference}])
    found = ran("eval", "judge", file, "--task", "humaneval+", "--out", tmp_path / "plus")
    assert {name: score["pass@1"]["score"] for name, score in found["scores"].items()} == {
        "humaneval": 100,
        "humaneval+": 100,
    }
    gold = suites.load("gsm8k", limit=2).items
    rows = [
        {"task_id": gold[0].task_id, "solution": f"So. The answer is {gold[0].source.gold}."},
        {"task_id": gold[1].task_id, "solution": f"It must be {gold[1].source.gold}"},
    ]
    found = ran("eval", "judge", samples(tmp_path, rows), "--task", "gsm8k", "--out", tmp_path / "math")
    assert {name: score["pass@1"]["score"] for name, score in found["scores"].items()} == {
        "strict": 50,
        "flexible": 100,
    }


@needs_data
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"task_id": "HumanEval/0", "solution": ""}\n{"task_id": "HumanEval/999", "solution": ""}\n', "line 2: unknown task_id"),
        ('{"task_id": "HumanEval/0"}\n', "line 1: no field 'solution'"),
        ('{"solution": "x"}\n', "line 1: no 'task_id'"),
        ('\n{"task_id": "HumanEval/0", "solu\n', "line 2 is not JSON"),
        ("[1]\n", "line 1 holds a list, not an object"),
        ("", "holds no sample"),
    ],
)  # fmt: skip
def test_broken_samples_name_the_line_and_leave_nothing(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(text)
    assert says in refused("eval", "judge", file, "--task", "humaneval", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_data
def test_wrong_input_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    common = ["--model", model, "--device", "cpu", "--out", out]
    for arguments, says in (
        (["micro", "--out", out], "--model is missing"),
        (["micro", *common, "--speed", "0"], "--speed '0'"),
        (["micro", *common, "--temperatures", "hot"], "--temperatures 'hot'"),
        (["micro", *common, "--n", 2, "--temperatures", "0"], "at temperature 0"),
        (["micro", *common, "--set", "colour=red"], "colour"),
        (["micro", *common, "--protocol", "claude"], "--protocol 'claude'"),
        (["humaneval-infilling", *common, "--subset", "triple"], "single, multi, span"),
        (["bigcodebench", *common, "--limit", 1], "--python"),
        (["judge", tmp_path / "none", "--task", "humanevil", "--out", out], "humaneval"),
    ):
        assert says in refused("eval", *arguments), arguments
    short = tmp_path / "short.jsonl"
    short.write_text("".join(json.dumps(vars_of(item)) + "\n" for item in suites.load("humaneval", limit=5).items))
    assert "has 5 tasks and must have 164" in refused("eval", "humaneval", *common, "--data", short)
    monkeypatch.delenv("DCODER_BENCHMARKS")
    found = refused("eval", "humaneval", *common)
    assert all(way in found for way in ("--data", "DCODER_BENCHMARKS", "hub"))
    assert not out.exists()


def vars_of(item: Item) -> dict[str, str]:
    names = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
    return dict.fromkeys(names, "") | {"task_id": item.task_id}


@pytest.mark.slow
def test_two_processes_share_the_samples(model: Path, tmp_path: Path) -> None:
    arguments = ["eval", "micro", "--model", str(model), "--limit", "4", "--n", "2", "--max-new-tokens", "8", "--device", "cpu",
                 "--workers", "1", "--json"]  # fmt: skip
    alone = ran(*arguments[:-1], "--out", tmp_path / "alone")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "LOCAL_WORLD_SIZE": "2",
    }
    command = [sys.executable, "-m", "dcoder_cli", *arguments, "--out", str(tmp_path / "two")]
    processes = [
        subprocess.Popen(command, env={**common, "RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    answers = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0] and not answers[1]
    found = json.loads(answers[0])
    assert found["scores"] == alone["scores"] and found["processes"] == 2 and found["counts"] == alone["counts"]
    names = {file.name for file in (tmp_path / "two").iterdir()}
    assert names == {"samples.jsonl", "judged.jsonl", "results.json", "settings.json"}
    key = [(one["task_id"], one["sample"], one["text"]) for one in lines(tmp_path / "two" / "samples.jsonl")]
    assert key == [(one["task_id"], one["sample"], one["text"]) for one in lines(tmp_path / "alone" / "samples.jsonl")]
