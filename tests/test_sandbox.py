"""Tiers and their parts: the self-test finds holes, filters say what they mean on both processors, trees are removed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcoder_cli.execution import candidate, codec, sandbox, seccomp, zygote
from dcoder_cli.execution.channel import Channel, Forged, Gone, Late
from dcoder_cli.execution.codec import Match, Unfit

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


# --- choosing a tier -------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize(
    ("change", "hole"),
    [
        ({"seccomp": False, "landlock": True}, "fork, start a thread"),
        ({"seccomp": True, "landlock": False}, "read a file outside"),
    ],
)
def test_the_self_test_finds_a_hole(monkeypatch: pytest.MonkeyPatch, change: dict[str, bool], hole: str) -> None:
    if sandbox.tier_trouble("B"):
        pytest.skip(sandbox.tier_trouble("B"))
    config = sandbox._config
    monkeypatch.setattr(sandbox, "_config", lambda tier, outside: config(tier, outside) | change | {"unshare": False})
    assert hole in sandbox.self_test("B")


@linux
def test_the_self_test_says_why_a_tier_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    assert "apt install bubblewrap" in sandbox.self_test("A")
    monkeypatch.setattr(
        sandbox, "_command", lambda tier, descriptor: ["/bin/sh", "-c", "echo no user namespaces >&2; exit 1"]
    )
    assert sandbox.self_test("B") in ("no user namespaces",) or "Landlock" in sandbox.self_test("B")


def test_other_systems_have_no_tier_but_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    assert "darwin" in sandbox.self_test("A") and "darwin" in sandbox.self_test("B")


@linux
def test_installed_packages_and_dcoder_itself_stay_outside() -> None:
    config = sandbox._config("B", None)
    package = str(Path(sandbox.__file__).parent.parent)
    for path in config["readable"]:
        assert not package.startswith(path.rstrip("/") + "/") and not path.startswith(package)
        assert "site-packages" not in path or path.endswith(("numpy", "numpy.libs"))


def test_without_leaves_out_what_is_hidden(tmp_path: Path) -> None:
    for name in ("a/b/hidden", "a/c", "d"):
        (tmp_path / name).mkdir(parents=True)
    found = list(sandbox._without(str(tmp_path), [str(tmp_path / "a/b/hidden")]))
    assert found == [str(tmp_path / "a/c"), str(tmp_path / "d")]


def test_nothing_inside_the_sandbox_needs_more_than_the_standard_library(tmp_path: Path) -> None:
    """Each module that runs inside imports with no packages on the path, and none of dcoder's that stay outside."""
    root = Path(sandbox.__file__).parent.parent
    for name in sandbox._INSIDE:
        (tmp_path / "dcoder_cli" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dcoder_cli" / name).write_bytes((root / name).read_bytes())
    names = [name.removesuffix(".py").replace("/", ".") for name in sandbox._INSIDE if not name.endswith("__init__.py")]
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + "\n".join(
        f"import dcoder_cli.{name}" for name in names
    )
    subprocess.run([sandbox._interpreter(), "-I", "-S", "-B", "-c", script], check=True)


# --- the seccomp filter ----------------------------------------------------------------------------------------------


def verdict(
    machine: str, number: int, arguments: tuple[int, ...] = (), architecture: int | None = None, sockets: bool = False
) -> int:
    """What the filter answers, by a small interpreter of its program."""
    known = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    data = struct.pack("=IIQ6Q", number, architecture or known, 0, *(arguments + (0,) * 6)[:6])
    code, place, value = seccomp.program(sockets, machine), 0, 0
    while True:
        operation, yes, no, constant = code[place]
        place += 1
        if operation == 0x20:
            (value,) = struct.unpack_from("=I", data, constant)
        elif operation == 0x15:
            place += yes if value == constant else no
        elif operation == 0x35:
            place += yes if value >= constant else no
        else:
            return constant


ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


@pytest.mark.parametrize(
    ("machine", "allowed", "refused"),
    [
        # read, write, mmap, exit_group; fork, vfork, clone, execve, socket, connect, kill, ptrace, unshare, memfd, io_uring
        ("x86_64", (0, 1, 9, 231), (57, 58, 56, 59, 322, 41, 42, 62, 200, 234, 101, 272, 319, 425, 165, 90, 157, 310)),
        ("aarch64", (63, 64, 222, 94), (220, 221, 281, 198, 203, 129, 130, 131, 117, 97, 279, 425, 40, 52, 167, 270)),
    ],
)
def test_the_filter_on_both_processors(machine: str, allowed: tuple[int, ...], refused: tuple[int, ...]) -> None:
    assert [verdict(machine, number) for number in allowed] == [ALLOW] * len(allowed)
    assert [verdict(machine, number) for number in refused] == [EPERM] * len(refused)
    assert verdict(machine, 435) == ENOSYS  # clone3
    assert verdict(machine, allowed[0], architecture=0x40000003) == KILL
    ioctl, fcntl, limit, receive = {"x86_64": (16, 72, 302, 47), "aarch64": (29, 25, 261, 212)}[machine]
    assert verdict(machine, ioctl, (0, 0x5401)) == ALLOW
    assert verdict(machine, ioctl, (0, 0x5412)) == EPERM  # TIOCSTI
    assert verdict(machine, fcntl, (0, 4)) == ALLOW
    assert verdict(machine, fcntl, (0, 8)) == EPERM  # F_SETOWN
    assert verdict(machine, limit, (0, 7, 0)) == ALLOW
    assert verdict(machine, limit, (0, 7, 1)) == EPERM
    assert verdict(machine, limit, (0, 7, 1 << 32)) == EPERM  # a pointer whose low half is zero
    assert verdict(machine, receive) == EPERM and verdict(machine, receive, sockets=True) == ALLOW


def test_x32_numbers_kill() -> None:
    assert verdict("x86_64", 0x40000000 + 57) == KILL


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("sockets", [False, True])
def test_every_number_is_answered_as_the_table_says(machine: str, sockets: bool) -> None:
    """The search through the ranges against the list itself, number by number."""
    column = ["x86_64", "aarch64"].index(machine)
    named = [*seccomp._ALLOWED.values(), *(seccomp._SOCKETS.values() if sockets else ())]
    allowed = {pair[column] for pair in named} - {None}
    conditional = {pair[column] for pair, _ in seccomp._CONDITIONAL.values()}
    for number in range(1000):
        if number not in conditional:
            wanted = ALLOW if number in allowed else ENOSYS if number == 435 else EPERM
            assert verdict(machine, number, sockets=sockets) == wanted, number
    for number in (0x3FFFFFFF, 0x40000000, 0x7FFFFFFF, 0xFFFFFFFF):
        wanted = KILL if machine == "x86_64" and number >= 0x40000000 else EPERM
        assert verdict(machine, number, sockets=sockets) == wanted


def test_every_jump_fits() -> None:
    for machine in ("x86_64", "aarch64"):
        for _, yes, no, _ in seccomp.program(True, machine):
            assert 0 <= yes < 256 and 0 <= no < 256
    assert not seccomp.supported("riscv64")


# --- the codec -------------------------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary()
    | st.just(...)
)
hashable = st.recursive(scalars, lambda inner: st.tuples(inner) | st.frozensets(inner, max_size=3), max_leaves=4)
values = st.recursive(
    scalars | st.integers(min_value=1 << 5000, max_value=1 << 20000),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.sets(hashable, max_size=3)
    | st.dictionaries(hashable, inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


def same(one: object, other: object) -> bool:
    """Equal in value and in every type, with NaN equal to itself."""
    return repr(normal(one)) == repr(normal(other))


def normal(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return type(value).__name__, sorted(repr(normal(item)) for item in value)
    if isinstance(value, dict):
        return "dict", [(normal(key), normal(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [normal(item) for item in value]
    return type(value).__name__, hex(value) if type(value) is int else value


@settings(max_examples=300, deadline=None)
@given(values)
def test_values_cross_unchanged(value: object) -> None:
    assert same(codec.loads(codec.dumps(value)), value)


@pytest.mark.parametrize(
    "value", ["\ud800", "\ud83d\ude00", "a\0b", -0.0, 10**1300, range(3, 9, 2), int, (set(), frozenset())]
)
def test_rare_values_cross_unchanged(value: object) -> None:
    assert same(codec.loads(codec.dumps(value)), value)


@settings(max_examples=200, deadline=None)
@given(values)
def test_bytes_are_those_of_pythons_own_json(value: object) -> None:
    """The short ways for numbers and truths, and the coder made once, write what `json.dumps` writes."""
    for careful in (False, True):
        with contextlib.suppress(ValueError):  # an integer beyond the decimal limit
            tagged = codec._tagged(value, codec.MAX_DEPTH, None, careful)
            text = json.dumps(tagged, ensure_ascii=False, separators=(",", ":"))
            break
    assert codec.dumps(value) == text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("data", [b"\xff", b"\xef\xbb\xbf1", b"", b"1 2", b'{"o":true}'])
def test_bytes_that_are_no_value_are_unfit_in_every_reader(data: bytes) -> None:
    for text in (data, b"[" + data + b"]", b'[{"t":[]},' + data + b"]"):
        for remote in (None, lambda number: number):
            with pytest.raises(Unfit):
                codec.loads(text if data else b"", remote)


@given(st.lists(st.binary(max_size=9), max_size=5))
def test_jobs_are_packed_with_their_values(texts: list[bytes]) -> None:
    job, found = codec.unpack(codec.pack({"kind": "calls"}, texts))
    assert job == {"kind": "calls"} and [bytes(text) for text in found] == texts


class Sub(int):
    pass


@pytest.mark.parametrize(
    "value", [Sub(1), [Sub(1)], {"a": object()}, {(Sub(1),)}, lambda: 0, iter([]), {}.keys(), bytearray(), codec, Sub]
)
def test_other_types_do_not_cross(value: object) -> None:
    with pytest.raises(Unfit):
        codec.dumps(value)


def test_deep_looped_and_huge_values_do_not_cross() -> None:
    loop: list[object] = []
    loop.append(loop)
    for value in (loop, "x" * (codec.MAX_FRAME + 1)):
        with pytest.raises(Unfit):
            codec.dumps(value)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='[]{}"tdsfciberqnmTo:,0123456789-aNI', max_size=40).map(str.encode))
def test_any_bytes_give_a_value_or_unfit(data: bytes) -> None:
    with contextlib.suppress(Unfit):
        codec.loads(data)


@pytest.mark.parametrize(
    "data",
    [b"[" * 100000, b'{"o":1}', b'{"x":1}', b'{"t":[],"d":[]}', b"{}", b'{"d":[1]}', b'{"s":[[]]}', b'{"T":"eval"}', b'{"i":"zz"}',
     b'{"b":"zz"}', b'{"q":["0x1","0x0"]}', b'{"n":"' + b"9" * 5000 + b'"}', b"9" * 5000, b'{"c":["x",1]}', b'{"r":["0x0","0x1","0x0"]}',
     b'{"s":[' + b",".join(str(k * (2**61 - 1)).encode() for k in range(1, 1000)) + b"]}"],
    ids=range(16),
)  # fmt: skip
def test_forged_bytes_are_unfit(data: bytes) -> None:
    with pytest.raises(Unfit):
        codec.loads(data)


def test_a_match_is_something_and_equal_to_nothing() -> None:
    import re

    found = codec.loads(codec.dumps(re.match("a", "a")))
    assert isinstance(found, Match) and found and found != codec.loads(b'{"m":0}') and found != 1


def test_channels() -> None:
    import time

    left, right = socket.socketpair()
    one, other = Channel(left), Channel(right, limit=10)
    one.send(b"abc")
    one.send(b"")
    assert other.pending() and other.receive() == b"abc" and other.receive() == b"" and not other.pending()
    with pytest.raises(Late):
        other.receive(time.monotonic() + 0.05)
    with pytest.raises(Late):
        one.send(b"x" * (64 << 20), deadline=time.monotonic() + 0.05)
    with pytest.raises(Forged):
        other.receive()
    left.close()
    with pytest.raises((Gone, Forged)):
        while True:
            other.receive()


@pytest.mark.parametrize("size", [0, 5, 5000, 1 << 22])
def test_a_channel_brings_a_descriptor_with_its_first_byte(size: int) -> None:
    left, right = socket.socketpair()
    one, other = Channel(left), Channel(right, limit=1 << 30)
    given, kept = socket.socketpair()
    sending = threading.Thread(target=lambda: one.send(b"a" * size, b"b", descriptors=[given.fileno()]))
    sending.start()
    body, [descriptor] = other.receive_first()
    assert (body, other.receive()) == (b"a" * size, b"b") and not other.pending()
    sending.join()
    given.close()
    with socket.socket(fileno=descriptor) as came:
        came.sendall(b"x")
        assert kept.recv(9) == b"x"
    left.close()
    with pytest.raises(Gone):
        other.receive_first()
    for item in (right, kept):
        item.close()


def test_the_servers_rehearsal_leaves_nothing() -> None:
    def state() -> object:
        return set(sys.modules), list(warnings.filters), random.getstate(), sys.stdin, sys.stdout, dict(os.environ)

    before = state()
    candidate.rehearse()
    assert state() == before


# --- what a job leaves -----------------------------------------------------------------------------------------------


def test_hostile_trees_are_removed(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "file").write_text("x")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "link").symlink_to(keep)
    (tree / "a" / "loop").symlink_to(tree)
    (tree / "a" / "b" / "file").write_text("x")
    os.mkfifo(tree / "pipe")
    os.chmod(tree / "a" / "b", 0)
    os.chmod(tree / "a", 0)
    os.chmod(tree, 0)
    assert zygote.remove_tree(str(tree), 100)
    assert not tree.exists() and (keep / "file").read_text() == "x"


def test_too_many_entries_and_links_are_left_for_the_sandbox_to_go(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(20):
        (tree / str(number)).write_text("")
    assert not zygote.remove_tree(str(tree), 10) and zygote.remove_tree(str(tree), 100)
    (tmp_path / "real").mkdir()
    tree.symlink_to(tmp_path / "real")
    assert not zygote.remove_tree(str(tree), 10) and (tmp_path / "real").is_dir()
    assert zygote.remove_tree(str(tmp_path / "none"), 10)
