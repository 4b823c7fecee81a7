"""`dcoder serve` as a real process, asked by OpenAI's own client and by broken ones."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from helpers import make_model, make_tokenizer, refused

from dcoder_cli import generate, load
from dcoder_cli.decoding.requests import Infill
from dcoder_cli.model.backbone import Model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusion model that is sure of itself, so that the company of other rows decides nothing."""
    made = tmp_path_factory.mktemp("serve") / "sure"
    return make_model(made, tokenizer=make_tokenizer(), initializer_range=0.4, context=512)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder, "cpu")


class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            text = answer.read().decode()
            return json.loads(text) if "json" in answer.headers["content-type"] else text

    def post(self, path: str, body: bytes | str, **headers: str) -> tuple[int, str]:
        data = body.encode() if isinstance(body, str) else body
        asked = urllib.request.Request(self.url + path, data, {"content-type": "application/json", **headers})
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def until(self, holds: Callable[[dict[str, Any]], bool], seconds: float = 20) -> dict[str, Any]:
        """/health once it is as asked for."""
        end = time.monotonic() + seconds
        while not holds(told := self.get("/health")):
            assert time.monotonic() < end, told
            time.sleep(0.02)
        return told  # type: ignore[no-any-return]


@contextmanager
def serving(folder: Path, *more: str, **environment: str) -> Iterator[Server]:
    process = subprocess.Popen(
        [sys.executable, "-m", "dcoder_cli", "serve", str(folder), "--port", "0", "--device", "cpu", *more],
        stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("serving "), line + process.stderr.read()
        yield Server(process, line.split(" at ")[1].split("/v1")[0])
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, "--slots", "6", "--queue", "70") as found:
        yield found


def test_the_official_client(server: Server, model: Model) -> None:
    client = server.client()
    assert [one.id for one in client.models.list()] == ["sure"] and client.models.retrieve("sure").owned_by == "dcoder"
    wanted = generate(model, ["def f(a):"] * 3, max_new_tokens=14, temperature=0.8, top_p=0.9, seed=4)
    asked: dict[str, Any] = {"model": "sure", "max_tokens": 14, "temperature": 0.8, "top_p": 0.9, "seed": 4, "n": 3}
    found = client.completions.create(prompt="def f(a):", **asked)
    assert [one.text for one in found.choices] == [one.text for one in wanted] and found.choices[2].index == 2
    assert found.usage is not None and found.usage.completion_tokens == 42
    assert found.usage.total_tokens == found.usage.prompt_tokens + 42

    chat: list[Any] = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Write f."}]
    said = client.chat.completions.create(messages=chat, **asked)
    wanted = generate(model, [chat] * 3, max_new_tokens=14, temperature=0.8, top_p=0.9, seed=4)
    assert [one.message.content for one in said.choices] == [one.text for one in wanted]
    assert {one.finish_reason for one in said.choices} <= {"stop", "length"}

    hole = client.completions.create(prompt="def f(a):\n", suffix="\nprint(f(1))", model="sure", max_tokens=9)
    assert hole.choices[0].text == generate(model, [Infill("def f(a):\n", "\nprint(f(1))")], max_new_tokens=9)[0].text
    echoed = client.completions.create(prompt=["a = 1", "b = 2"], model="sure", max_tokens=4, echo=True)
    assert [one.text[:5] for one in echoed.choices] == ["a = 1", "b = 2"]
    ids = client.completions.create(prompt=[[5, 6], [7]], model="sure", max_tokens=4)
    assert [one.text for one in ids.choices] == [one.text for one in generate(model, [[5, 6], [7]], max_new_tokens=4)]


@pytest.mark.parametrize("more", [{}, {"mode": "fast", "block_length": 4, "threshold": 0.6}, {"steps": 4}])
def test_streams_join_to_the_whole_answer(server: Server, more: dict[str, Any]) -> None:
    client = server.client()
    asked: dict[str, Any] = {"model": "sure", "max_tokens": 16, "temperature": 1.0, "seed": 9, "n": 2}
    asked["extra_body"] = {"dcoder": more}
    whole = client.completions.create(prompt="x = ", **asked)
    texts, reasons = ["", ""], ["", ""]
    usage = None
    for part in client.completions.create(prompt="x = ", stream=True, stream_options={"include_usage": True}, **asked):
        usage = part.usage or usage
        for choice in part.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [one.text for one in whole.choices] and reasons == [one.finish_reason for one in whole.choices]
    assert usage == whole.usage
    chat: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    said = client.chat.completions.create(messages=chat, **asked)
    parts = list(client.chat.completions.create(messages=chat, stream=True, **asked))
    assert [part.choices[0].delta.role for part in parts[:2]] == ["assistant", "assistant"]
    for place in range(2):
        text = "".join(one.delta.content or "" for part in parts for one in part.choices if one.index == place)
        assert text == said.choices[place].message.content


def test_stop_texts_end_an_answer_streamed_or_not(server: Server) -> None:
    client = server.client()
    whole = client.completions.create(prompt="x = ", model="sure", max_tokens=24, temperature=0).choices[0].text
    assert len(whole) > 6
    for stop in (whole[3:5], [whole[5], "never there"], [whole]):
        asked: dict[str, Any] = {"model": "sure", "max_tokens": 24, "temperature": 0, "stop": stop, "prompt": "x = "}
        stops = [stop] if isinstance(stop, str) else stop
        expected = whole[: min(at for one in stops if (at := whole.find(one)) >= 0)]
        found = client.completions.create(**asked).choices[0]
        assert (found.text, found.finish_reason) == (expected, "stop")
        parts = [one.choices[0] for one in client.completions.create(stream=True, **asked)]
        assert "".join(one.text for one in parts) == expected and parts[-1].finish_reason == "stop"
    server.until(lambda told: told["rows"] == 0)


def test_own_parameters_drafts_and_trajectories(server: Server, model: Model) -> None:
    own = {"steps": 4, "rule": "margin", "trajectory": True}
    body = {"prompt": "x = ", "max_tokens": 8, "seed": 1, "temperature": 0.5, "dcoder": own}
    status, text = server.post("/v1/completions", json.dumps(body))
    found = json.loads(text)
    wanted = generate(model, ["x = "], max_new_tokens=8, steps=4, rule="margin", temperature=0.5, seed=1)[0]
    told = found["choices"][0]["dcoder"]["trajectory"]
    assert status == 200 and (told["tokens"], told["reveal_step"]) == (wanted.tokens, wanted.reveal_step)
    assert found["dcoder"]["seed"] == 1
    own = {"steps": 4, "drafts": True}
    _, text = server.post("/v1/completions", json.dumps({**body, "stream": True, "dcoder": own}))
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    drafts = [one["choices"][0]["dcoder"] for one in events if one["choices"][0].get("dcoder")]
    assert [one["step"] for one in drafts] == [0, 1, 2, 3]
    assert [sum(piece is None for piece in one["draft"]) for one in drafts] == [6, 4, 2, 0]
    assert text.endswith("data: [DONE]\n\n")


def test_64_at_once_equal_generate(server: Server, model: Model) -> None:
    """Prompts, lengths, temperatures and seeds of all kinds beside each other."""
    chooser = random.Random(0)
    calls = [
        {
            "prompt": "".join(chooser.choice("abc =\n()") for _ in range(chooser.randrange(1, 60))),
            "max_tokens": chooser.randrange(1, 40), "temperature": chooser.choice([0.0, 0.7, 1.2]), "seed": number,
        }
        for number in range(64)
    ]  # fmt: skip
    client = server.client()
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(lambda one: client.completions.create(model="sure", **one), calls))
    for call, one in zip(calls, found, strict=True):
        alone = generate(
            model, [call["prompt"]], max_new_tokens=call["max_tokens"], temperature=call["temperature"], seed=call["seed"]
        )  # fmt: skip
        assert one.choices[0].text == alone[0].text, call
    assert 'dcoder_calls_total{route="completions",status="200"}' in server.get("/metrics")


_KINDS: list[tuple[str, str]] = [
    ("prompt", "missing"), ("prompt", "null"), ("prompt", "5"), ("prompt", "[]"),
    ("prompt", "[5.5]"), ("prompt", "[99999999]"), ("prompt", "[-1]"), ("prompt", '{"a": 1}'), ("prompt", '"\\ud800"'),
    ("prompt", json.dumps("word " * 600)), ("prompt", json.dumps(["a"] * 65)), ("prompt", '[["a"]]'), ("prompt", "[true]"),
    ("max_tokens", "0"), ("max_tokens", "-3"), ("max_tokens", "1.5"), ("max_tokens", '"7"'), ("max_tokens", "100000"),
    ("max_tokens", "true"), ("max_tokens", "1e99"), ("max_tokens", "99999999999999999999999"),
    ("temperature", "-0.1"), ("temperature", "NaN"), ("temperature", "Infinity"), ("temperature", '"hot"'),
    ("top_p", "0"), ("top_p", "1.5"), ("top_p", "-1"), ("n", "0"), ("n", "129"), ("n", "100"), ("n", "2.0"),
    ("stop", "5"), ("stop", '""'), ("stop", '["a", ""]'), ("stop", json.dumps(["a"] * 17)), ("stop", "{}"),
    ("seed", "0.5"), ("seed", "9223372036854775808"), ("seed", '"x"'), ("stream", '"yes"'), ("stream", "1"),
    ("stream_options", '{"a": 1}'), ("stream_options", "5"), ("model", '"gpt-4"'), ("model", "5"), ("model", '""'),
    ("suffix", "5"), ("suffix", '["a"]'), ("echo", "1"), ("best_of", "3"), ("presence_penalty", "0.5"),
    ("frequency_penalty", "-1"), ("logit_bias", '{"5": 1}'), ("logprobs", "true"), ("logprobs", "5"), ("user", "5"),
    ("unknown", "1"), ("functions", "[]"), ("metadata", "[]"), ("dcoder", "5"), ("dcoder", '{"max_new_tokens": 5}'),
    ("dcoder", '{"steps": 0}'), ("dcoder", '{"steps": 400}'), ("dcoder", '{"rule": "best"}'), ("dcoder", '{"steps": "4"}'),
    ("dcoder", '{"block_length": 0}'), ("dcoder", '{"top_k": 0}'), ("dcoder", '{"mode": "slow"}'), ("dcoder", '{"cache": "dual"}'),
    ("dcoder", '{"mode": "fast", "cfg_scale": 1.0}'), ("dcoder", '{"tie_break": "middle"}'), ("dcoder", '{"min_new_tokens": -1}'),
    ("dcoder", '{"alg_temperature": -1.0}'), ("dcoder", '{"threshold": 0.5}'), ("dcoder", '{"logits_mib": 1}'),
    ("dcoder", '{"mode": "fast", "threshold": 1.5}'), ("dcoder", '{"compat": "dream", "tie_break": "left"}'),
]  # fmt: skip
_CHATS = (
    "missing", "null", "[]", "{}", '"hi"', "[5]", '[{"role": "user"}]', '[{"content": "x"}]', '[{"role": "tool", "content": "x"}]',
    '[{"role": "user", "content": 5}]', '[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]',
    '[{"role": "user", "content": "x", "name": "y"}]', '[{"role": "user", "content": null}]',
)  # fmt: skip
_BODIES = (
    b"", b"{", b"[]", b"5", b"null", b'"x"', b"\xff\xfe{}", b"{" * 100_000, b"[" * 100_000, b'{"prompt": "a"} {}', b"\0",
    b'{"prompt": "a", "prompt": }', b"prompt=a", b'{"prompt": "a",}',
)  # fmt: skip


def _malformed(chooser: random.Random) -> tuple[str, bytes]:
    """A route and a body with one thing wrong, among others that are right."""
    kind = chooser.randrange(10)
    route = chooser.choice(["/v1/completions", "/v1/chat/completions"])
    if kind == 0:
        return route, chooser.choice(_BODIES)
    right = {"max_tokens": "6", "temperature": "0.5", "seed": "3", "n": "1", "user": '"me"', "store": "false"}
    fields = {name: value for name, value in right.items() if chooser.random() < 0.5}
    if kind <= 2:
        fields["messages"], route = chooser.choice(_CHATS), "/v1/chat/completions"
    else:
        name, value = chooser.choice(_KINDS)
        asked = {"prompt": '"x = "'}
        only = ("prompt", "suffix", "echo", "best_of", "logprobs")
        if route == "/v1/chat/completions" and name not in only:
            asked = {"messages": '[{"role": "user", "content": "x"}]'}
        else:
            route = "/v1/completions"
        fields |= {**asked, name: value}
    body = ", ".join(f"{json.dumps(name)}: {value}" for name, value in fields.items() if value != "missing")
    return route, f"{{{body}}}".encode()


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_malformed_calls(server: Server, count: int) -> None:
    """Each is a clear 4xx in OpenAI's form; the server then answers as before."""
    chooser = random.Random(1)
    calls = [_malformed(chooser) for _ in range(count)]
    calls += [("/v1/completions", body) for body in _BODIES]
    calls += [
        ("/v1/completions", f'{{"prompt": "x", "{name}": {value}}}'.encode())
        for name, value in _KINDS
        if value != "missing"
    ]

    def ask(call: tuple[str, bytes]) -> tuple[int, str]:
        return server.post(*call)

    with ThreadPoolExecutor(4) as pool:
        for call, (status, text) in zip(calls, pool.map(ask, calls), strict=True):
            assert status in (400, 404), (call, status, text)
            error = json.loads(text)["error"]
            assert error["message"] and "\n" not in error["message"] and "Traceback" not in text, (call, text)
            assert error["type"] in ("invalid_request_error", "not_found_error")
    assert server.post("/v1/completions", b'{"prompt": "' + b"x" * 5 * 2**20 + b'"}')[0] == 413
    assert server.post("/v1/nothing", b"{}")[0] == 404 and server.post("/v1/models", b"{}")[0] == 405
    assert server.client().completions.create(prompt="x", model="sure", max_tokens=3).choices[0].text
    told = server.until(lambda told: told["rows"] == 0)
    assert told["status"] == "ok" and told["error"] is None


def _open(server: Server, body: dict[str, Any]) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    found = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    found.sendall(head.encode() + data)
    return found


LONG = {"prompt": "x = ", "max_tokens": 400, "temperature": 0}


@pytest.fixture(scope="module")
def narrow(folder: Path) -> Iterator[Server]:
    with serving(folder, "--slots", "1", "--queue", "1", "--timeout", "60", "--max-tokens", "400") as found:
        yield found


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_frees_its_slot(narrow: Server, stream: bool) -> None:
    gone = _open(narrow, {**LONG, "stream": stream})
    waits = _open(narrow, {**LONG, "stream": stream})
    narrow.until(lambda told: told["decoding"] == 1 and told["rows"] == 2)
    gone.close()
    narrow.until(lambda told: told["rows"] == 1)
    waits.close()
    narrow.until(lambda told: told["rows"] == 0 and told["decoding"] == 0)


def test_overload_is_answered_429_and_too_much_400(narrow: Server) -> None:
    several = [_open(narrow, LONG) for _ in range(2)]
    narrow.until(lambda told: told["rows"] == 2)
    with pytest.raises(openai.RateLimitError) as caught:
        narrow.client().completions.create(prompt="x", model="sure", max_tokens=4)
    assert caught.value.response.headers["retry-after"] == "1" and caught.value.code == "queue_full"
    for one in several:
        one.close()
    narrow.until(lambda told: told["rows"] == 0)
    status, text = narrow.post("/v1/completions", json.dumps({"prompt": "x", "n": 3, "max_tokens": 2}))
    assert status == 400 and "3 answers in one call are more than this server takes at a time (2)" in text
    status, text = narrow.post("/v1/completions", json.dumps({"prompt": "x", "max_tokens": 401}))
    assert status == 400 and "max_tokens = 401 is more than this server's 400" in text
    assert "dcoder_calls_refused_total 1.0" in narrow.get("/metrics")


def test_time_outs(folder: Path) -> None:
    with serving(folder, "--slots", "1", "--timeout", "0.3") as server:
        status, text = server.post("/v1/completions", json.dumps({**LONG, "n": 8}))
        assert status == 504 and json.loads(text)["error"]["code"] == "timeout"
        status, text = server.post("/v1/completions", json.dumps({**LONG, "n": 8, "stream": True}))
        assert status == 200 and '"code": "timeout"' in text and "[DONE]" not in text
        server.until(lambda told: told["rows"] == 0 and told["decoding"] == 0)


def test_a_key_is_asked_for_where_one_is_set(folder: Path) -> None:
    loaded = load(folder, "cpu", "bfloat16", attention="eager")
    more = ("--name", "mine", "--dtype", "bfloat16", "--attention", "eager", "--host", "localhost")
    with serving(folder, *more, DCODER_API_KEY="sesame") as server:
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            server.client("other").models.list()
        client = server.client("sesame")
        assert [one.id for one in client.models.list()] == ["mine"]
        found = client.completions.create(prompt="x", model="mine", max_tokens=8)
        assert found.model == "mine" and found.choices[0].text == generate(loaded, ["x"], max_new_tokens=8)[0].text
        assert server.post("/v1/completions", '{"prompt": "x"}')[0] == 401
        assert server.get("/health")["status"] == "ok" and "<title>dcoder</title>" in server.get("/")


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_clean_end(folder: Path, number: signal.Signals) -> None:
    """An answer under way is given; then the process ends with exit code 0 and no traceback."""
    with serving(folder, "--slots", "1") as server:
        answers: list[tuple[int, str]] = []
        thread = threading.Thread(target=lambda: answers.append(server.post("/v1/completions", json.dumps(LONG))))
        thread.start()
        server.until(lambda told: told["decoding"] == 1)
        server.process.send_signal(number)
        assert server.process.wait(30) == 0
        thread.join()
        assert answers[0][0] == 200
        assert server.process.stderr is not None and server.process.stderr.read() == ""


def test_an_ar_model_is_served_too(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "ar", ar=True, tokenizer=make_tokenizer(), initializer_range=0.4)
    model = load(folder, "cpu")
    with serving(folder, "--slots", "3") as server:
        client = server.client()
        asked: dict[str, Any] = {"model": "ar", "max_tokens": 10, "temperature": 0.9, "seed": 5}
        wanted = [one.text for one in generate(model, ["x = "] * 4, max_new_tokens=10, temperature=0.9, seed=5)]
        found = client.completions.create(prompt="x = ", n=4, **asked)
        assert [one.text for one in found.choices] == wanted
        parts = client.completions.create(prompt="x = ", stream=True, **asked)
        assert "".join(one.choices[0].text for one in parts) == wanted[0]
        status, text = server.post("/v1/completions", '{"prompt": "a", "suffix": "b", "max_tokens": 4}')
        assert status == 400 and "an AR model cannot do" in text
        status, text = server.post("/v1/completions", '{"prompt": "a", "dcoder": {"mode": "fast"}}')
        assert status == 400 and "use mode exact" in text


def test_what_cannot_be_served_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is no folder here" in refused("serve", tmp_path / "none", "--port", "0")
    assert "--host 0.0.0.0 is open to other machines" in refused("serve", folder, "--host", "0.0.0.0", "--port", "0")
    monkeypatch.setenv("DCODER_API_KEY", "x")
    told = refused("serve", folder, "--host", "nowhere.invalid", "--port", "0")
    assert "--host nowhere.invalid --port 0 cannot be listened on" in told
    assert "--timeout nan" in refused("serve", folder, "--timeout", "nan", "--port", "0")
    assert "--max-tokens 512 leaves no room" in refused("serve", folder, "--max-tokens", "512", "--port", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port} cannot be listened on: Address already in use" in refused(
            "serve", folder, "--port", port
        )


@pytest.mark.slow
def test_memory_stays_flat_over_two_thousand_calls(folder: Path) -> None:
    with serving(folder, "--slots", "8", "--queue", "100") as server:

        def resident() -> float:
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            return int(status.split("VmRSS:")[1].split()[0]) / 1024

        def ask(number: int) -> None:
            body = {
                "prompt": "x" * (number % 50 + 1),
                "max_tokens": number % 20 + 1,
                "seed": number,
                "stream": number % 3 == 0,
            }
            assert server.post("/v1/completions", json.dumps(body))[0] == 200

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(300)))
            before = resident()
            list(pool.map(ask, range(2000)))
        after = resident()
        print(f"resident {before:.0f} MiB after 300 calls, {after:.0f} MiB after 2,300")
        assert after < before + 30
