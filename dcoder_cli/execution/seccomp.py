"""A seccomp filter that allows what Python needs to compute and refuses everything else (x86_64 and aarch64).

An allow list: no fork, thread, exec, socket, signal, ptrace, namespace, mount, io_uring, memfd, chmod ... A refused
call fails with EPERM, so that code sees an ordinary OSError; calls of a foreign architecture kill the process.
Numbers are from the kernel's tables, which never change: arch/x86/entry/syscalls/syscall_64.tbl and
include/uapi/asm-generic/unistd.h. This file also runs inside the sandbox, so it imports only the standard library.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

# name: (x86_64, aarch64); None where the architecture does not have the call.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # files: where they may be opened is Landlock's matter
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "lseek": (8, 62), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65),
    "writev": (20, 66), "access": (21, None), "pipe": (22, None), "dup": (32, 23), "dup2": (33, None),
    "sendfile": (40, 71), "flock": (73, 32), "fsync": (74, 82), "fdatasync": (75, 83), "truncate": (76, 45),
    "ftruncate": (77, 46), "getdents": (78, None), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50),
    "rename": (82, None), "mkdir": (83, None), "rmdir": (84, None), "creat": (85, None), "unlink": (87, None),
    "symlink": (88, None), "readlink": (89, None), "umask": (95, 166), "getdents64": (217, 61),
    "openat": (257, 56), "mkdirat": (258, 34), "newfstatat": (262, 79), "unlinkat": (263, 35),
    "renameat": (264, 38), "symlinkat": (266, 36), "readlinkat": (267, 78), "faccessat": (269, 48),
    "dup3": (292, 24), "pipe2": (293, 59), "preadv": (295, 69), "pwritev": (296, 70), "renameat2": (316, 276),
    "statx": (332, 291), "copy_file_range": (326, 285), "close_range": (436, 436), "faccessat2": (439, 439),
    # memory
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216),
    "madvise": (28, 233),
    # signals to oneself, waiting, time
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "poll": (7, None),
    "select": (23, None), "pselect6": (270, 72), "ppoll": (271, 73), "pause": (34, None), "nanosleep": (35, 101),
    "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "restart_syscall": (219, 128), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    # who and where am I
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158), "getresuid": (118, 148),
    "getresgid": (120, 150), "getpgid": (121, 155), "getpgrp": (111, None), "getsid": (124, 156),
    "uname": (63, 160), "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168), "getrandom": (318, 278),
    # the C library
    "futex": (202, 98), "set_robust_list": (273, 99), "set_tid_address": (218, 96), "rseq": (334, 293),
    "membarrier": (324, 283), "arch_prctl": (158, None), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip

# Only where every named half of an argument has one of its values. Halves: twice the argument's place, + 1 for the high.
_CONDITIONAL: dict[str, tuple[tuple[int, int], tuple[tuple[int, tuple[int, ...]], ...]]] = {
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl": ((16, 29), ((2, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),)),
    # F_DUPFD, GETFD, SETFD, GETFL, SETFL, GETLK, SETLK, SETLKW, DUPFD_CLOEXEC; not F_SETOWN, F_SETSIG, F_NOTIFY
    "fcntl": ((72, 25), ((2, (0, 1, 2, 3, 4, 5, 6, 7, 1030)),)),
    # reading one's own limits; who could set them could have the kernel kill, as if somebody else had
    "prlimit64": ((302, 261), ((0, (0,)), (4, (0,)), (5, (0,)))),
}

# What the trusted side of a job needs on the two sockets it is given; it can make no new ones.
_SOCKETS: dict[str, tuple[int | None, int | None]] = {
    "sendto": (44, 206), "recvfrom": (45, 207), "recvmsg": (47, 212), "getsockname": (51, 204),
    "getpeername": (52, 205), "getsockopt": (55, 209),
}  # fmt: skip

_CLONE3 = 435  # refused with ENOSYS, so that the C library tries clone, which is refused with EPERM
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7), "arm64": (1, 0xC00000B7)}

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, RET|K
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

Instruction = tuple[int, int, int, int]


def supported(machine: str | None = None) -> bool:
    """Whether there is a table for this architecture."""
    return (machine or platform.machine()) in _ARCHITECTURES


def program(sockets: bool = False, machine: str | None = None) -> list[Instruction]:
    """The filter as (code, jump if true, jump if false, constant). `sockets` lets given sockets be used."""
    column, architecture = _ARCHITECTURES[machine or platform.machine()]
    refuse = _answer(_REFUSE | errno.EPERM)
    known = {number: _answer(_ALLOW) for pair in {**_ALLOWED, **(_SOCKETS if sockets else {})}.values()
             if (number := pair[column]) is not None}  # fmt: skip
    known[_CLONE3] = _answer(_REFUSE | errno.ENOSYS)
    for pair, conditions in _CONDITIONAL.values():
        body: list[Instruction] = []
        for half, values in conditions:
            body.append((_LOAD, 0, 0, _ARGUMENTS + 4 * half))  # both architectures are little endian
            for left, value in enumerate(reversed(values)):
                body.append((_EQUAL, len(values) - left, 0, value))
            body += refuse
        known[pair[column]] = body + _answer(_ALLOW)
    parts = [(number, known.get(number, refuse)) for number in range(max(known) + 2)]
    if column == 0:  # the x32 numbers of x86_64 are another way to the same calls
        parts.append((0x40000000, _answer(_KILL)))
    ranges = [part for place, part in enumerate(parts) if place == 0 or part[1] != parts[place - 1][1]]
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        *_answer(_KILL),
        (_LOAD, 0, 0, _NUMBER),
        *_search(ranges),
    ]


def _answer(value: int) -> list[Instruction]:
    return [(_RETURN, 0, 0, value)]


def _search(ranges: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    """Binary search by the number: each range begins at one and has the code for all up to the next.

    The kernel walks the filter for every number when it is installed, once a job: a list takes 0.2 ms longer.
    """
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    low, high = _search(ranges[:middle]), _search(ranges[middle:])
    return [(_AT_LEAST, len(low), 0, ranges[middle][0]), *low, *high]


class Filter:
    """A filter in the kernel's form, made once; `apply` is one system call and cannot be undone."""

    def __init__(self, sockets: bool = False) -> None:
        code = program(sockets)
        self._code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
        # struct sock_fprog: the count as a short, padding, a pointer
        self._program = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(self._code)))
        self._libc = ctypes.CDLL(None, use_errno=True)

    def apply(self) -> None:
        """Confine this process for good. Needs no-new-privileges. Raises OSError where the kernel refuses."""
        pr_set_seccomp, mode_filter = 22, 2
        if self._libc.prctl(pr_set_seccomp, mode_filter, self._program, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"seccomp: {errno.errorcode.get(number, number)}")
