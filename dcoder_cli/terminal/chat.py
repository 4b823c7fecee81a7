"""A conversation with a model: its messages, its settings and the /commands. No terminal here.

The model sees as many of the latest turns as fit its context beside `max_new_tokens`; older ones stay in the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dcoder_cli.base import config
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import write_json
from dcoder_cli.base.schema import Format
from dcoder_cli.decoding import sampler, trajectory
from dcoder_cli.decoding.requests import Settings, with_length
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.decoding.watching import OnCommit
from dcoder_cli.model import chat
from dcoder_cli.model.backbone import Model

Message = dict[str, str]


@dataclass(frozen=True)
class Answer:
    """What a turn gave: the decoding, and how many of the oldest turns the model could no longer see."""

    trajectory: Trajectory
    forgotten: int


class Session:
    """One conversation.

    Attributes:
        given: the settings that were chosen; `settings`: with all defaults filled in.
        system: the system message, or None.
        turns: finished turns, (question, answer).
        trajectories: the decodings of the turns answered here.
        prompt: the ids of what was asked last, all that the model saw.
    """

    def __init__(self, model: Model, settings: Mapping[str, Any], system: str | None = None) -> None:
        """`settings`: keys of `Settings`.

        Raises:
            UserError: the model has no chat template, the system message is empty, or a setting is wrong.
        """
        chat.check(model.tokenizer, model.name)
        chat.system_message(system)  # refuses an empty one
        # What it was taught to write, else 256 (DiffuCoder B.1); half the context is left for the conversation (ours).
        length = min(model.answer_length or 256, max(model.max_length // 2, 1))
        self.model = model
        self.given = config.merge({"rule": model.default_rule}, with_length(settings, length))
        self.settings = config.build(Settings, self.given, where="the settings of chat")
        self.system = system
        self.turns: list[tuple[str, str]] = []
        self.trajectories: list[Trajectory] = []
        self.asked = 0
        self.prompt: list[int] = []

    def ask(self, text: str, on_commit: OnCommit | None = None) -> Answer:
        """Answer one turn. An error or an interrupt leaves the conversation as it was.

        Raises:
            UserError: the turn does not fit the context even alone, or the template refuses the conversation.
        """
        forgotten = 0
        while (length := len(self._encode(text, forgotten))) > self._room():
            if forgotten == len(self.turns):
                raise UserError(
                    f"the message has {length} tokens with the template, and the context of {self.model.max_length} leaves "
                    f"{self._room()} beside {self.settings.max_new_tokens} new ones; shorten it, or /set max_new_tokens=N"
                )
            forgotten += 1
        # Each question draws its own random numbers, so the same one asked again may be answered differently.
        (result,) = sampler.decode(
            self.model,
            [self._messages(text, forgotten)],
            self.settings,
            ids=[str(self.asked)],
            seeds=[self.asked],
            on_commit=on_commit,
        )
        self.asked += 1
        self.turns.append((text, result.text))
        self.trajectories.append(result)
        return Answer(result, forgotten)

    def _room(self) -> int:
        return self.model.max_length - self.settings.max_new_tokens

    def _messages(self, text: str, forgotten: int) -> list[Message]:
        messages = chat.system_message(self.system)
        for question, answer in self.turns[forgotten:]:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*messages, {"role": "user", "content": text}]

    def _encode(self, text: str, forgotten: int) -> list[int]:
        messages = self._messages(text, forgotten)
        self.prompt = chat.encode(self.model.tokenizer, messages, self.model.name, "this conversation").ids
        return self.prompt

    def reset(self) -> None:
        """Forget the turns; system message and settings stay, and the random numbers start again."""
        self.turns, self.trajectories, self.asked = [], [], 0

    def undo(self) -> None:
        """Forget the last turn. Raises UserError if there is none."""
        if not self.turns:
            raise UserError("there is no turn to undo")
        self.turns.pop()
        if self.trajectories:
            self.trajectories.pop()

    def set(self, assignments: list[str]) -> None:
        """Change settings, `key=value` each. Raises UserError for an unknown key or a wrong value; nothing changes then."""
        given = config.merge(self.given, config.parse_assignments(assignments))
        self.settings = config.build(Settings, given, where="the settings of chat")
        self.given = given

    def save(self, path: str | Path) -> None:
        """Write system message, turns and settings as JSON."""
        messages = self._messages("", 0)[:-1]
        record = {"model": self.model.name, "messages": messages, "settings": self.given}
        _write(lambda: write_json(path, record), path)

    def load(self, path: str | Path) -> None:
        """Continue a saved conversation with its settings.

        Raises:
            UserError: no such file, or no messages in it that alternate between user and assistant.
        """
        record = _SAVED.document(path)
        messages = record["messages"]
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        chat.system_message(system)
        spoken = messages[1:] if system is not None else messages
        roles = [message["role"] for message in spoken]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise UserError(f"the messages of {str(path)!r} do not alternate between user and assistant")
        given = record.get("settings", self.given)
        settings = config.build(Settings, given, where=f"the settings in {str(path)!r}")
        self.reset()
        self.system, self.given, self.settings = system, given, settings
        texts = [message["content"] for message in spoken]
        self.turns = list(zip(texts[::2], texts[1::2], strict=True))

    def write_trajectories(self, path: str | Path) -> None:
        """Write the decodings of this conversation. Raises UserError if there is none."""
        if not self.trajectories:
            raise UserError("there is no answer of this session to write yet")
        _write(lambda: trajectory.write(path, self.trajectories), path)


@dataclass(frozen=True)
class SavedMessage:
    """A turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class SavedConversation:
    """What /save writes."""

    messages: list[SavedMessage]
    settings: dict[str, Any] = field(default_factory=dict)


_SAVED = Format("conversation", SavedConversation, "write one with /save")


def _write(write: Callable[[], None], path: str | Path) -> None:
    try:
        write()
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written: {error.strerror}") from None


class Quit(Exception):
    """/quit was given."""


class Command(NamedTuple):
    """A /command: its argument's name ("" = none), its help, and what it does with the argument; returns what to say."""

    argument: str
    help: str
    run: Callable[[Session, str], str]


def command(session: Session, line: str) -> str:
    """Run a line that starts with `/` and return what to say.

    Raises:
        UserError: an unknown command, an argument missing or wrong. Quit: /quit.
    """
    name, _, argument = line.strip().partition(" ")
    argument = argument.strip()
    entry = COMMANDS.get(name)
    if entry is None:
        raise UserError(
            f"there is no command {name}{config.nearest(name, list(COMMANDS))} (a message that starts with / needs a space before it)"
        )
    if argument and not entry.argument:
        raise UserError(f"{name} takes no argument, and was given {argument!r}")
    if not argument and entry.argument == "FILE":
        raise UserError(f"{name} needs a file: {name} FILE")
    return entry.run(session, argument)


def _help(session: Session, _: str) -> str:
    width = max(len(f"{name} {entry.argument}") for name, entry in COMMANDS.items())
    lines = [f"{f'{name} {entry.argument}'.ljust(width)}  {entry.help}" for name, entry in COMMANDS.items()]
    return "\n".join([*lines, 'A line ending in \\ goes on in the next; """ starts and ends several lines.'])


def _set(session: Session, argument: str) -> str:
    before = asdict(session.settings)
    if argument:
        session.set(argument.split())
    now = asdict(session.settings)
    shown = {key: value for key, value in now.items() if not argument or value != before[key]}
    return "\n".join(f"{key} = {yaml.safe_dump(value).splitlines()[0]}" for key, value in shown.items()) or "unchanged"


def _system(session: Session, argument: str) -> str:
    session.system = argument or None
    return "system message set" if argument else "no system message"


def _say(act: Callable[[Session, str], None], words: str) -> Callable[[Session, str], str]:
    def run(session: Session, argument: str) -> str:
        act(session, argument)
        return words.format(argument=argument, turns=len(session.turns))

    return run


def _quit(session: Session, _: str) -> str:
    raise Quit


COMMANDS: dict[str, Command] = {
    "/help": Command("", "this list", _help),
    "/reset": Command(
        "", "forget all turns", _say(lambda session, _: session.reset(), "forgotten; a new conversation")
    ),
    "/undo": Command("", "forget the last turn", _say(lambda session, _: session.undo(), "undone; {turns} turns left")),
    "/system": Command("TEXT", "set the system message; without TEXT none", _system),
    "/set": Command("key=value ..", "change settings (temperature=0.7 ..), or show them", _set),
    "/save": Command("FILE", "write the conversation as JSON", _say(Session.save, "saved {turns} turns to {argument}")),
    "/load": Command("FILE", "continue a saved conversation", _say(Session.load, "loaded {turns} turns of {argument}")),
    "/trajectory": Command(
        "FILE",
        "write the answers' trajectories (JSONL)",
        _say(Session.write_trajectories, "wrote the trajectories to {argument}"),
    ),
    "/quit": Command("", "leave, as Ctrl-D does", _quit),
}
