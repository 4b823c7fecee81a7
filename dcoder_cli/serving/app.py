"""The routes: OpenAI's, /health, /metrics, and the page."""

from __future__ import annotations

import asyncio
import hmac
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from dcoder_cli.base import jsonl
from dcoder_cli.base.errors import UserError, one_line
from dcoder_cli.decoding import sampler
from dcoder_cli.decoding.requests import Encoded
from dcoder_cli.decoding.rows import Decoded, Ticket
from dcoder_cli.serving import asked, replies
from dcoder_cli.serving.drafts import Draft
from dcoder_cli.serving.meters import Meters
from dcoder_cli.serving.worker import Decoder, Full

LARGEST_BODY = 4 * 2**20  # bytes (ours)
_LOOK = 0.2  # seconds between two looks at whether a client is still there


@dataclass(frozen=True)
class Serving:
    """How the server answers.

    Attributes:
        name: the model's, for clients.
        seconds: that a call may take, its wait included.
        most_new_tokens: of an answer; None: as many as the model's context holds.
        key: that clients must give; None: none.
    """

    name: str
    seconds: float
    most_new_tokens: int | None
    key: str | None


class Failed(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers


def make_app(worker: Decoder, serving: Serving) -> FastAPI:
    """The application around a worker, which it does not end."""
    app = FastAPI(title="dcoder", docs_url=None, redoc_url=None, openapi_url=None)
    meters = Meters(worker)
    encoding = threading.Lock()  # a tokenizer is used by one thread at a time
    page = (resources.files("dcoder_cli.serving") / "page.html").read_text(encoding="utf-8")

    def wrong(error: Exception) -> JSONResponse:
        status, code, field, headers = 500, None, None, {}
        message = f"the server failed: {one_line(error)}"
        if isinstance(error, Failed):
            status, code, headers, message = error.status, error.code, error.headers, str(error)
        elif isinstance(error, UserError):
            status, message, field = 400, one_line(error), getattr(error, "field", None)
        elif isinstance(error, HTTPException):
            status, message = (
                error.status_code,
                f"{error.detail}; this server has /v1/models, /v1/chat/completions, /v1/completions, /health and /metrics",
            )
            headers = dict(error.headers or {})
        return JSONResponse(replies.failure(message, status, code, field), status, headers)

    for kind in (Failed, UserError, HTTPException, Exception):
        app.add_exception_handler(kind, lambda _, error: wrong(error))

    def allow(http: Request) -> None:
        if serving.key is None:
            return
        given = http.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, serving.key.encode()):
            raise Failed(
                401, "the API key is missing or wrong; send it as `Authorization: Bearer KEY`", "invalid_api_key"
            )

    @app.get("/", response_class=HTMLResponse)
    async def show_page() -> str:
        return page

    @app.get("/health")
    async def health() -> Response:
        told = {
            "status": "ok" if worker.alive else "dead", "model": serving.name, "slots": worker.slots,
            "decoding": worker.decoding, "rows": worker.rows, "error": worker.error,
        }  # fmt: skip
        return JSONResponse(told, 200 if worker.alive else 503)

    @app.get("/metrics")
    async def metrics(http: Request) -> Response:
        allow(http)
        return PlainTextResponse(generate_latest(meters.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models(http: Request) -> Any:
        allow(http)
        return {"object": "list", "data": [_card(serving.name, meters.began)]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str, http: Request) -> Any:
        allow(http)
        _check_model(name, serving.name)
        return _card(serving.name, meters.began)

    async def answer(http: Request, kind: type[asked.Call], route: str) -> Response:
        began = time.perf_counter()
        status = 500
        try:
            allow(http)
            response = await _answer(http, kind, began)
            status = response.status_code
            return response
        except (Failed, UserError, HTTPException) as error:
            status = wrong(error).status_code
            raise
        finally:
            meters.calls.labels(route, str(status)).inc()
            meters.seconds.observe(time.perf_counter() - began)

    async def _answer(http: Request, kind: type[asked.Call], began: float) -> Response:
        call = asked.read(kind, jsonl.parse(await _body(http), "the body"))
        _check_model(call.model, serving.name)
        if not worker.alive:
            raise Failed(503, "the decoding thread has ended; start the server again")

        def make() -> list[tuple[Encoded, Ticket]]:
            with encoding:
                return asked.tickets(worker.model, call, serving.most_new_tokens)

        rows = await asyncio.to_thread(make)
        if len(rows) > worker.slots + worker.most_waiting:
            raise UserError(
                f"{len(rows)} answers in one call are more than this server takes at a time ({worker.slots + worker.most_waiting}); ask in parts"
            )
        reply = replies.Reply(call, serving.name, rows[0][1].settings.seed, [one for one, _ in rows])
        answering = _Answering(worker, meters, reply, [ticket for _, ticket in rows], began + serving.seconds)
        answering.start()
        if call.stream:
            return StreamingResponse(
                answering.stream(), media_type="text/event-stream", headers={"cache-control": "no-store"}
            )
        answers = await answering.wait(http.is_disconnected)
        return JSONResponse(reply.whole(answers))

    @app.post("/v1/completions")
    async def completions(http: Request) -> Response:
        return await answer(http, asked.CompletionCall, "completions")

    @app.post("/v1/chat/completions")
    async def chat_completions(http: Request) -> Response:
        return await answer(http, asked.ChatCall, "chat")

    return app


def _card(name: str, created: float) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(created), "owned_by": "dcoder"}


def _check_model(asked_for: str | None, name: str) -> None:
    if asked_for is not None and asked_for != name:
        raise Failed(404, f"the model {asked_for!r} is not here; this server has {name!r}", "model_not_found")


async def _body(http: Request) -> bytes:
    """A call's body. Raises Failed where it is too large, before all of it is read."""
    found = bytearray()
    async for part in http.stream():
        found += part
        if len(found) > LARGEST_BODY:
            raise Failed(413, f"the body is larger than {LARGEST_BODY} bytes; shorten it")
    return bytes(found)


class _Answering:
    """The rows of a call on their way through the worker, until all are done or nobody waits for them."""

    def __init__(
        self, worker: Decoder, meters: Meters, reply: replies.Reply, tickets: Sequence[Ticket], until: float
    ) -> None:
        self.worker, self.meters, self.reply, self.until = worker, meters, reply, until
        self.loop, self.events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()
        call = reply.call
        self.drafts = [Draft(worker.model, ticket.request, call.stops) for ticket in tickets]
        watched = bool(call.stream or (call.stops and not call.own.trajectory))
        self.tickets = [
            Ticket(one.request, one.settings, None, self._watcher(place) if watched else None)
            for place, one in enumerate(tickets)
        ]
        self.places = {ticket: place for place, ticket in enumerate(self.tickets)}
        self.answers: dict[int, replies.OneAnswer] = {}

    def start(self) -> None:
        """Take places in the queue. Raises Failed where there is none."""
        try:
            self.worker.add(self.tickets, lambda ticket, result: self._tell(self.places[ticket], result))
        except Full:
            self.meters.full.inc()
            raise Failed(
                429,
                f"{self.worker.rows} answers are decoded or wait already; try again later",
                "queue_full",
                **{"Retry-After": "1"},
            ) from None

    async def wait(self, is_gone: Callable[[], Any]) -> list[replies.OneAnswer]:
        """All answers, in order. Raises Failed."""
        try:
            while len(self.answers) < len(self.tickets):
                found = await self._next(_LOOK)
                if found is not None:
                    self._take(*found)
                elif await is_gone():
                    self.meters.gone.inc()
                    raise Failed(499, "the client left")
        finally:
            self.worker.drop(self.tickets)
        return [self.answers[place] for place in range(len(self.tickets))]

    async def stream(self) -> AsyncIterator[str]:
        """Server-sent events: text as it settles, drafts where asked for, and the ends."""
        reply, own = self.reply, self.reply.call.own
        done = False
        try:
            for place in range(len(self.tickets)):
                if reply.chat or reply.echo(place):
                    yield replies.event(reply.part(place, reply.echo(place), first=True))
            while len(self.answers) < len(self.tickets):
                found = await self._next(None)
                if found is None:
                    continue
                place, _ = found
                text = self._take(*found)
                draft = self.drafts[place]
                drawn = {"step": draft.step, "draft": draft.pieces()} if own.drafts else {}
                if text or (drawn and place not in self.answers):
                    yield replies.event(reply.part(place, text, own=drawn))
                if (ended := self.answers.get(place)) is not None:
                    more = {} if ended.trajectory is None else {"trajectory": ended.trajectory}
                    yield replies.event(reply.part(place, "", ended.reason, own=more))
            options = reply.call.stream_options
            if options is not None and options.include_usage:
                yield replies.event(reply.last(sum(one.tokens for one in self.answers.values())))
            yield replies.event("[DONE]")
            done = True
        except Failed as error:
            done = True
            yield replies.event(replies.failure(str(error), error.status, error.code))
        finally:
            if not done:
                self.meters.gone.inc()
            self.worker.drop(self.tickets)

    async def _next(self, seconds: float | None) -> tuple[int, Any] | None:
        """What comes next within so many seconds, else None. Raises Failed when the call's time is up."""
        left = self.until - time.perf_counter()
        if left <= 0:
            raise Failed(
                504, "the answer took longer than this server allows; ask for fewer tokens, or later", "timeout"
            )
        try:
            return await asyncio.wait_for(self.events.get(), left if seconds is None else min(left, seconds))
        except TimeoutError:
            return None

    def _take(self, place: int, what: Any) -> str:
        """Note an event; the text that it settles."""
        if place in self.answers:
            return ""  # a commit that came before the news that the row was given up
        if isinstance(what, Exception):
            self.meters.failed.inc()
            raise Failed(500, f"decoding failed: {one_line(what)}")
        draft, call = self.drafts[place], self.reply.call
        if not isinstance(what, Decoded):
            text = draft.commit(*what)
            if draft.ended and not call.own.trajectory:
                self.worker.drop([self.tickets[place]])
                self._answer(place, draft.cut(draft.text())[0], draft.count(draft.settled()), "stop")
            return text
        try:
            made = sampler.to_trajectory(self.worker.model, what)
        except UserError as error:
            self.meters.failed.inc()
            raise Failed(500, f"decoding failed: {one_line(error)}") from None
        self.meters.forwards.inc(what.forwards)
        whole, stopped = draft.cut(made.text)
        reason = "stop" if stopped or made.settings["finished"] else "length"
        self._answer(place, whole, draft.count(made.tokens), reason, made.to_json() if call.own.trajectory else None)
        return draft.end(made.text)

    def _answer(
        self, place: int, text: str, tokens: int, reason: str, trajectory: dict[str, Any] | None = None
    ) -> None:
        self.meters.tokens.inc(tokens)
        self.answers[place] = replies.OneAnswer(place, text, tokens, reason, trajectory)

    def _watcher(self, place: int) -> Callable[..., None]:
        return lambda step, _, positions, tokens: self._tell(place, (step, positions, tokens))

    def _tell(self, place: int, what: Any) -> None:
        """From the worker's thread into the loop's."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, (place, what))
        except RuntimeError:  # the loop has ended, and with it whoever waited
            self.worker.drop(self.tickets)
