"""`dcoder quickstart --model`: the method on an AR model that is given, with amounts of a few seconds; and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import make_model, refused, said

from dcoder_cli.base.errors import StoppedByUser, UserError
from dcoder_cli.experiments import budget, given, given_measures, given_settings, given_steps
from dcoder_cli.experiments.budget import Amounts, Rates
from dcoder_cli.model.tokenizer import train_tokenizer

FUNCTION = '''
def scaled_{0}(values, factor={0}):
    """Return a list with every one of the values multiplied by the factor."""
    result = []
    for value in values:
        result.append(value * factor + {0})
    return result
'''
STEPS = {"adapt": 2, "mid": 2, "sft": 2, "grpo": 1}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An AR model, and code to learn from; rates and amounts are given, so that seconds do."""
    (tmp_path / "code").mkdir()
    for file in range(40):
        functions = "\n".join(FUNCTION.format(file * 100 + number) for number in range(6))
        (tmp_path / "code" / f"m{file}.py").write_text(f"import math\n{functions}")
    texts = [file.read_text() for file in (tmp_path / "code").iterdir()]
    make_model(tmp_path / "ar", ar=True, tokenizer=train_tokenizer(texts, 400), context=256)
    monkeypatch.setattr(budget, "measure", lambda *_: Rates(64, 2, 1000.0, 0.1))
    monkeypatch.setattr(budget, "allot", lambda *_: Amounts(60.0, 64, 2, 2, 192, STEPS, 1, 2, 3, 4, 2, 1000))
    monkeypatch.setattr(given_steps, "TEMPERATURES", (0.0, 1.0))
    monkeypatch.setattr(given_measures, "HOLE", 20)  # a small vocabulary makes lines of many tokens
    return tmp_path


def test_from_a_given_model_to_the_report(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = ["quickstart", "--model", place / "ar", "--corpus", place / "code", "--out", place / "out", "--minutes", "1",
            "--device", "cpu", "--json"]  # fmt: skip
    whole = given_measures.filled

    def stopped(*_: object) -> None:
        raise UserError("stopped here")

    monkeypatch.setattr(given_measures, "filled", stopped)
    assert "stopped here" in refused(*call)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(given_measures, "filled", interrupted)
    with pytest.raises(StoppedByUser, match="stopped in 'score the AR model'; the same command with --resume goes on"):
        given.run(given_settings.GivenSettings(str(place / "ar"), place / "out", 1.0, (str(place / "code"),), device="cpu"),
                  lambda _: None, force=False, resume=True, quiet=True)  # fmt: skip
    monkeypatch.setattr(given_measures, "filled", whole)
    before = json.loads((place / "out" / "quickstart.json").read_text())["steps"]
    assert "plan" in before and "score the AR model" not in before
    assert "holds a quickstart" in refused(*call) and "with minutes = 1" in refused(
        *call[:-3], "--minutes", "2", "--resume"
    )
    steps = json.loads(said(*call, "--resume"))["steps"]
    assert {name: steps[name] for name in before} == before  # nothing was done again
    for stage in ("stage 1", "stage 2", "stage 3", "stage 4"):
        score = steps[f"score {stage}"]
        assert (
            score["micro"]["tasks"] == 3
            and score["infill"]["holes"] > 0
            and score["infill"]["tokens"]["of"] > 0
            and len(score["heldout"]["by_t"]) == 10
        )
    assert [one["temperature"] for one in steps["decoding order"]["orders"]] == [0.0, 1.0]
    page = (place / "out" / "report.html").read_text()
    assert ("What each stage changed" in page and "share of tokens masked" in page) or "lines filled exactly" in page
    pairs = [json.loads(line) for line in (place / "out" / "tasks" / "pairs.jsonl").read_text().splitlines()]
    assert any("messages" in row for row in pairs) and all("code" not in row for row in pairs)
    sources = [file.read_text() for file in (place / "code").iterdir()]
    fragments = [json.loads(line) for line in (place / "out" / "tasks" / "fragments.jsonl").read_text().splitlines()]
    assert fragments and len({row["hole"] for row in fragments}) == len(fragments)
    for row in fragments:  # whole lines of one document
        assert any(f"{row['prefix']}{row['hole']}\n" in f"{text}\n" for text in sources) and row["suffix"] == ""
    manifest = json.loads((place / "out" / "data" / "chats" / "manifest.json").read_text())
    long = manifest["dropped"].get("longer than the row", {"examples": []})["examples"]
    assert manifest["settings"]["seq_len"] == 192 and not [one for one in long if not one.startswith("sft.jsonl/")], (
        long
    )


def test_what_cannot_be_is_refused_before_anything(place: Path, tmp_path: Path) -> None:
    made = make_model(tmp_path / "diffusion", context=256)
    out = ["--out", tmp_path / "none"]
    assert "is a diffusion model already" in refused("quickstart", "--model", made, *out)
    assert "--minutes 0" in refused("quickstart", "--model", place / "ar", "--minutes", "0", *out)
    assert "holds no quickstart" in refused("quickstart", "--model", place / "ar", "--resume", *out)
    assert "'nowhere'" in refused("quickstart", "--model", place / "ar", "--corpus", "nowhere", *out)
    short = make_model(tmp_path / "short", ar=True, context=64)
    assert "a context of 64 tokens" in refused("quickstart", "--model", short, *out)
    for file in ("chat_template.jinja", "checksums.json"):
        (place / "ar" / file).unlink(missing_ok=True)
    assert "chat template" in refused("quickstart", "--model", place / "ar", *out)
    (place / "ar" / "tokenizer.json").unlink()
    assert "tokenizer" in refused("quickstart", "--model", place / "ar", *out)
    assert not (tmp_path / "none").exists()


def test_a_package_below_the_library_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = given_settings.GivenSettings("m", tmp_path, 1.0)
    for below in (True, False):
        paths = {"stdlib": "/a/lib", "purelib": "/a/lib/site-packages" if below else "/b"}
        monkeypatch.setattr(given_settings.sysconfig, "get_paths", lambda paths=paths: paths)
        assert given_settings.corpus_of(asked) == (("/a/lib",) if below else ("/a/lib", "/b"))


def test_minutes_that_are_too_few_are_told() -> None:
    # 20 steps of 4 rows of 256 tokens at 100 a second are 205 s, 0.34 of what is shared out: 602 s, and the 20 spent already
    with pytest.raises(UserError, match=r"at 100 tokens/s stage 1 would have 1 steps, .* at least --minutes 11"):
        budget.allot(40.0, Rates(256, 4, 100.0, 1.0), 1.0)


@pytest.mark.parametrize("seconds", [700.0, 3000.0, 36000.0])
@pytest.mark.parametrize("rates", [Rates(256, 4, 100.0, 2.3), Rates(256, 4, 250.0, 2.0), Rates(1024, 8, 20000.0, 0.05)])
def test_amounts_fill_the_seconds(seconds: float, rates: Rates) -> None:
    """Every part's seconds by the rates, summed: what is shared out, and no more but where a part has its least."""
    found = budget.allot(seconds, rates, seconds / 60)
    train = (found.steps["adapt"] + found.steps["mid"]) * found.rows * found.row / rates.train
    train += found.steps["sft"] * found.rows * found.chat_row / rates.train
    read = 3 * rates.train
    hole = max((found.row + budget.HOLE**2) / read, rates.sample * budget.HOLE / budget.ANSWER)
    scores = budget.SCORED * (found.heldout * found.row / read + found.tasks * (rates.sample + hole))
    orders = 3 * found.orders * budget.ANSWER * 120 / read
    sampled = found.steps["grpo"] * found.prompts * found.group * (rates.sample + 512 / rates.train)
    assert train <= 0.66 * seconds and (seconds < 3000 or train + scores + orders + sampled <= 1.02 * seconds)
    assert train > 0.6 * seconds and found.steps["adapt"] >= budget.LEAST_STEPS and found.rows in budget.ROWS_A_STEP
    assert found.needed_tokens == (found.steps["adapt"] + found.steps["mid"]) * found.rows * found.row


def test_more_minutes_are_larger_steps_and_more_tasks() -> None:
    few, many = (budget.allot(seconds, Rates(256, 4, 250.0, 2.0), seconds / 60) for seconds in (3000.0, 36000.0))
    assert few.steps["adapt"] >= budget.STEPS and many.rows > few.rows
    assert few.tasks < many.tasks == budget.TASKS[1] and many.heldout == budget.HELDOUT[1]
    assert (few.prompts, few.group) != (many.prompts, many.group) == budget.SAMPLED[0]


def test_holes_are_lines_that_fit(place: Path) -> None:
    from dcoder_cli.model.tokenizer import load_tokenizer

    words = load_tokenizer(place / "ar")
    texts = [file.read_text() for file in sorted((place / "code").iterdir())]
    found = given_measures.holes(texts, 5, 0)
    assert len(found) == 5 and found == given_measures.holes(texts, 5, 0) != given_measures.holes(texts, 5, 1)
    for hole in found:
        fitted = given_measures.fitted(hole, words, 64)
        if fitted is not None:
            kept, ids = fitted
            around = len(words(kept.before)["input_ids"]) + len(words(kept.after)["input_ids"])
            assert around + len(ids) <= 64 and any(kept.before + kept.line + kept.after in text for text in texts)
    assert given_measures.fitted(found[0], words, 3) is None


def test_where_memory_is_small_other_settings_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the estimate of `presets fit`, on pretended memories: nothing else, LoRA, 8-bit moments, or refused."""
    from dcoder_cli.experiments import given_memory
    from dcoder_cli.model.sizes import config_of
    from dcoder_cli.training import optimizers
    from dcoder_cli.training.config import StageConfig
    from dcoder_cli.training.grpo.config import GrpoConfig
    from dcoder_cli.training.memory import foresee

    def on(gib: float, cpu: bool, section: str) -> tuple[object, str]:
        monkeypatch.setattr(foresee, "room", lambda *_: foresee.Room(gib, "a pretended card", cpu))
        config = (
            GrpoConfig(kl_coef=0.0, reference_sync=0)
            if section == "grpo"
            else StageConfig(global_batch=4, micro_batch=4)
        )
        return given_memory.fitted(section, model, config, 1024, "cpu")

    model = config_of("qwen2.5-coder-7b", None)
    assert on(400, False, "stage1") == (StageConfig(global_batch=4, micro_batch=4), "")
    for section in ("stage2", "grpo"):
        config, told = on(80, False, section)
        assert config.lora is not None and config.optimizer.learning_rate == given_memory.LORA_RATE  # type: ignore[attr-defined]
        assert "lora.rank=8" in told
    monkeypatch.setattr(optimizers, "_eight_bit_libraries", lambda: ["torchao"])
    for section in ("stage1", "stage3"):  # which train the new tokens' embeddings
        config, told = on(100, False, section)
        assert config.lora is None and config.optimizer.name == "adamw-8bit" and "adamw-8bit" in told  # type: ignore[attr-defined]
    with pytest.raises(
        UserError, match=r"stage 1 takes .* of .* that can be planned with on a pretended card; use a smaller"
    ):
        on(100, True, "stage1")  # their kernels are a GPU's
    monkeypatch.setattr(optimizers, "_eight_bit_libraries", lambda: [])
    with pytest.raises(UserError, match="stage 1 takes"):
        on(100, False, "stage1")


def test_a_model_too_large_is_told_before_anything(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcoder_cli.training.memory import foresee

    monkeypatch.setattr(foresee, "room", lambda *_: foresee.Room(0.001, "this machine", True))
    told = refused("quickstart", "--model", place / "ar", "--corpus", place / "code", "--out", tmp_path / "none")
    assert "stage 1 takes" in told and "this machine" in told and not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_whole_run_with_lora(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the memory has no room for all weights after stage 1: each stage begins with what the one before has merged."""
    from dataclasses import replace

    from dcoder_cli.training.config import LoraConfig

    pytest.importorskip("peft")
    monkeypatch.setattr(
        given_steps, "fitted",
        lambda section, _m, config, *_: (
            (replace(config, lora=LoraConfig()), "lora.rank=8") if section in ("stage2", "grpo") else (config, "")
        ),
    )  # fmt: skip
    steps = json.loads(said("quickstart", "--model", place / "ar", "--corpus", place / "code", "--out", place / "out",
                            "--minutes", "1", "--device", "cpu", "--json"))["steps"]  # fmt: skip
    for stage in ("stage 1", "stage 2", "stage 3", "stage 4"):
        with_lora = steps[f"train {stage}"]["what"].endswith("for the memory here lora.rank=8")
        assert with_lora == (stage in ("stage 2", "stage 4")) and f"score {stage}" in steps
