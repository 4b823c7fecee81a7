"""The model `dcoder` of lm-evaluation-harness, with it where it is installed; and the log-likelihoods that it gives."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import parrot
import pytest
import toy_benchmark
from helpers import make_model

from dcoder_cli import generate, load
from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks import likelihood, lm_harness, suites
from dcoder_cli.benchmarks.lm_harness import HarnessModel

needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
CHAT = [{"role": "user", "content": "sort"}]
PAIRS = [
    ("def add(a, b):\n    return a", " + b"),
    ("for i in ", " range(10):\n    print(i * i)\n"),
    ("x" * 30, "class A"),
    ("", "for i"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A diffusion model (True) and an AR model."""
    place = tmp_path_factory.mktemp("models")
    return {diffusion: make_model(place / str(diffusion), ar=not diffusion) for diffusion in (True, False)}


def asked(text: str, **options: Any) -> tuple[str, dict[str, Any]]:
    return text, options


# --- log-likelihoods -------------------------------------------------------------------------------------------------


def by_hand(model: Any, context: Sequence[int], targets: Sequence[int]) -> tuple[float, bool]:
    """A token after another, one row at a time, in float64."""
    import torch

    total, likeliest = 0.0, True
    for place, target in enumerate(targets):
        after = [model.ids.mask] * (len(targets) - place) if model.is_diffusion else list(targets[place:])
        logits_LV = model.logits(torch.tensor([[*context, *targets[:place], *after]]))[0].double()
        logs_V = torch.log_softmax(logits_LV[len(context) + place], dim=-1)
        total += float(logs_V[target])
        likeliest = likeliest and int(logs_V.argmax()) == target
    return total, likeliest


@pytest.mark.parametrize("diffusion", [True, False], ids=["diffusion", "ar"])
def test_a_text_has_the_likelihood_of_its_tokens_one_by_one(diffusion: bool, models: dict[bool, Path]) -> None:
    import torch

    asks = HarnessModel({"pretrained": models[diffusion], "device": "cpu"})
    pairs = [asks.pair(*one) for one in PAIRS] + [([5, 6], []), (list(range(5, 125)), [9] * 20)]
    told: list[int] = []
    with torch.no_grad():
        found = likelihood.score(asks.model, pairs, batch_size=3, told=told.append)
        wanted = [by_hand(asks.model, list(context)[-(128 - len(targets)) :], targets) for context, targets in pairs]
    assert sum(told) == len(pairs)
    assert [one for _, one in found] == [one for _, one in wanted]
    assert [total for total, _ in found] == pytest.approx([total for total, _ in wanted], rel=1e-5)
    assert found[-2] == (0.0, True)
    with pytest.raises(UserError, match="a continuation of 128 tokens has no room in the context of 128"):
        likelihood.score(asks.model, [([5], [6] * 128)])


def test_a_diffusion_models_likelihoods_are_a_distribution() -> None:
    """Those of all texts of two tokens add up to 1, and the likeliest first token of each is what is drawn at temperature 0."""
    import torch

    from dcoder_cli.model.convert import Additions, to_diffusion
    from dcoder_cli.model.fresh import random_model
    from dcoder_cli.model.sizes import config_of

    config = {**config_of("tiny", 12), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    model = to_diffusion(random_model(config, None, 0, "random"), Additions(11))
    texts = list(itertools.product(range(model.vocab_size), repeat=2))
    found = likelihood.score(model, [([3, 4, 5], text) for text in texts], batch_size=64)
    assert sum(torch.tensor([total for total, _ in found]).exp().tolist()) == pytest.approx(1.0, abs=1e-4)
    (greedy,) = [text for text, (_, likeliest) in zip(texts, found, strict=True) if likeliest]
    drawn = generate(model, [[3, 4, 5]], max_new_tokens=2, rule="left-to-right")[0].tokens
    assert list(greedy) == list(drawn)


# --- generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("diffusion", [True, False], ids=["diffusion", "ar"])
def test_texts_are_those_of_the_sampler(diffusion: bool, models: dict[bool, Path]) -> None:
    asks = HarnessModel({"pretrained": models[diffusion], "device": "cpu", "batch_size": 2})
    prompts = ["def add(", "for i in range", "class A"]
    model = load(models[diffusion], device="cpu")
    plain = [one.text for one in generate(model, prompts, max_new_tokens=6)]
    assert (
        asks.generate([asked(one, max_gen_toks=6, do_sample=False, temperature=0.7) for one in prompts], [0] * 3)
        == plain
    )
    stop = plain[0][2]
    cut = asks.generate(
        [asked(prompts[0], max_gen_toks=6, until=stop), asked(prompts[1], max_tokens=6, until=[])], [0, 0]
    )
    assert cut == [plain[0].partition(stop)[0], plain[1]]
    warm = [one.text for one in generate(model, prompts, max_new_tokens=5, temperature=0.9, seeds=[7, 8, 9])]
    assert (
        asks.generate(
            [asked(one, max_gen_toks=5, do_sample=True, temperature=0.9, top_k=0) for one in prompts], [7, 8, 9]
        )
        == warm
    )
    long = "x = 1\n" * 100  # the beginning of what is too long is left out
    kept = asks.encode(long)[-(128 - 6) :]
    assert asks.generate([asked(long, max_gen_toks=6)], [0]) == [generate(model, [kept], max_new_tokens=6)[0].text]


def test_the_users_settings_stand_over_the_tasks(models: dict[bool, Path]) -> None:
    given = {
        "pretrained": models[True],
        "device": "cpu",
        "temperature": 0.5,
        "max_new_tokens": 4,
        "steps": 2,
        "rule": "margin",
    }
    asks = HarnessModel(given)
    chosen, stops = asks._chosen({"until": ["\n", ""], "max_gen_toks": 99, "do_sample": False, "top_p": 0.9})
    assert chosen == {
        "max_new_tokens": 4,
        "temperature": 0.5,
        "steps": 2,
        "rule": "margin",
        "top_p": 0.9,
    } and stops == ("\n",)
    assert HarnessModel({"pretrained": models[True], "max_gen_toks": 9})._chosen({})[0] == {"max_new_tokens": 9}
    assert HarnessModel({"pretrained": models[True]})._chosen({"do_sample": True})[0]["temperature"] == 1.0
    model = load(models[True], device="cpu")
    (wanted,) = generate(model, ["a"], max_new_tokens=4, temperature=0.5, steps=2, rule="margin", seeds=[3])
    assert asks.generate([asked("a", max_gen_toks=99)], [3]) == [wanted.text]


def test_a_chat_comes_back_as_its_own_ids(models: dict[bool, Path]) -> None:
    asks = HarnessModel({"pretrained": models[True], "device": "cpu", "add_bos_token": True})
    text = asks.chat(CHAT)
    from dcoder_cli.model import chat

    assert asks.encode(text) == chat.encode(asks.model.tokenizer, CHAT, "m").ids
    assert asks.pair(text, "a")[0] == asks.encode(text)
    assert asks.template()


WRONG = [
    ({"rul": "margin"}, "--model_args rul is unknown; did you mean 'rule'?"), ({"pretrained": None}, "'None'"),
    ({"batch_size": "auto"}, "batch_size 'auto' must be a whole number from 1"), ({"batch_size": 0}, "batch_size 0 must be"),
    ({"max_gen_toks": 0}, "max_gen_toks 0 must be"), ({"temperature": -1.0}, "temperature = -1.0 must be"),
    ({"steps": "many"}, "steps"), ({"trust_remote_code": True}, "--model_args trust_remote_code is unknown"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "says"), WRONG, ids=[next(iter(given)) + str(n) for n, (given, _) in enumerate(WRONG)]
)
def test_wrong_arguments_are_refused_in_one_line(given: dict[str, Any], says: str, models: dict[bool, Path]) -> None:
    with pytest.raises(UserError) as caught:
        HarnessModel({"pretrained": models[True], "device": "cpu", **given})
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused_in_one_line(models: dict[bool, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no pretrained=\.\."):
        HarnessModel({"steps": 3})
    with pytest.raises(UserError, match="--model_args steps=3 has no effect: an AR model"):
        HarnessModel({"pretrained": models[False], "steps": 3})
    asks = HarnessModel({"pretrained": models[True], "device": "cpu"})
    with pytest.raises(UserError, match="generation_kwargs 'num_beams' is unknown here"):
        asks.generate([asked("a", num_beams=3)], [0])
    with pytest.raises(UserError, match="128 new tokens leave no room in the context of 128"):
        asks.generate([asked("a", max_gen_toks=128)], [0])


def test_without_the_harness_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SystemExit) as left:
        lm_harness.main()
    told = capsys.readouterr().err
    assert left.value.code == 2 and told.count("\n") == 1 and "pip install 'dcoder[lm-eval]'" in told


# --- with the harness ------------------------------------------------------------------------------------------------


def test_repeats_of_a_request_draw_afresh(models: dict[bool, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    model = lm_harness.lm_class().create_from_arg_string(
        f"pretrained={models[True]},temperature=1.0,max_new_tokens=8",
        {"device": "cpu", "batch_size": "2", "max_batch_size": None},
    )
    requests = [SimpleNamespace(task_name="t", doc_id=doc, args=asked("a = ")) for doc in (0, 1, 0)]
    first, second, again = model.generate_until(requests, disable_tqdm=True)
    assert len({first, second, again}) == 3 and model.inner.batch_size == 2
    assert model.generate_until(requests[1:2], disable_tqdm=True) == [second], "whatever else is asked"
    with pytest.raises(UserError, match="templates are not chosen by name"):
        model.chat_template("other")
    with pytest.raises(UserError, match="is a diffusion model, which would need a forward pass for each token"):
        model.loglikelihood_rolling(requests)
    with pytest.raises(UserError, match="--max_batch_size has no effect"):
        lm_harness.lm_class().create_from_arg_obj({"pretrained": "x"}, {"max_batch_size": 8})


@needs_harness
def test_an_ar_models_likelihoods_are_those_of_the_harnesss_own(models: dict[bool, Path]) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    def requests(kind: str, texts: Sequence[tuple[str, ...]]) -> list[Any]:
        return [Instance(kind, {}, text, 0, ("t", number, 1)) for number, text in enumerate(texts)]

    theirs = HFLM(pretrained=str(models[False]), device="cpu", batch_size=2)
    ours = lm_harness.lm_class()(pretrained=str(models[False]), device="cpu", batch_size=3)
    for kind, texts in (
        ("loglikelihood", PAIRS),
        ("loglikelihood_rolling", [("for i in range(10):\n    print(i)\n",)]),
    ):
        wanted, found = (getattr(one, kind)(requests(kind, texts), disable_tqdm=True) for one in (theirs, ours))
        flat = [
            [value for one in answer for value in (one if isinstance(one, tuple) else (one,))]
            for answer in (found, wanted)
        ]
        assert flat[0] == pytest.approx(flat[1], rel=1e-5), kind


@needs_harness
def test_a_task_gives_dcoders_own_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat model that gives one of two answers rightly: by the harness, and by `dcoder`'s own evaluation."""
    from dataclasses import replace

    import lm_eval
    from lm_eval.tasks import TaskManager

    from dcoder_cli.benchmarks import answers
    from dcoder_cli.benchmarks.benchmark import ByAnswer, Item, OwnPrompt, Suite
    from dcoder_cli.benchmarks.judging import Judging
    from dcoder_cli.benchmarks.protocols import Protocol
    from dcoder_cli.decoding.requests import Settings

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    docs = [{"question": "sort", "answer": parrot.NICE}, {"question": "hack", "answer": "no"}]
    data = tmp_path / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    task = {
        "task": "parroted", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test",
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["<|im_end|>"], "do_sample": False, "max_gen_toks": parrot.LENGTH},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    lm_harness.register()
    lm_harness.register()  # twice does no harm
    found = lm_eval.simple_evaluate(
        model="dcoder", model_args=f"pretrained={parrot.parrot()},device=cpu", tasks=[task], apply_chat_template=True,
        task_manager=TaskManager(include_defaults=False), bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    toy = replace(
        suites._table(("toy_benchmark",))[toy_benchmark.BENCHMARKS[0].name],
        judged=ByAnswer(lambda item, text: {"passed": text == item.source, "why": ""}),
    )
    items = tuple(
        Item(doc["question"], "own", doc["question"], "", doc["answer"], own=OwnPrompt(({"role": "user", "content": doc["question"]},), ""))
        for doc in docs
    )  # fmt: skip
    suite = Suite(toy, "", items, (), "", "", "", 2)
    model = load(parrot.parrot(), device="cpu")
    with Judging(suite) as judging:
        own = answers.answer(model, answers.ask(model, suite, Protocol("diffucoder", True)), Settings(max_new_tokens=parrot.LENGTH), judging)  # fmt: skip
    texts = [sample["resps"][0][0] for sample in sorted(found["samples"]["parroted"], key=lambda one: one["doc_id"])]
    assert texts == [trajectory.text for trajectory in own.trajectories]
    score = found["results"]["parroted"]["exact_match,none"]
    assert score == sum(row["passed"] for row in own.judged) / 2 == 0.5
