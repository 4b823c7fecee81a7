"""What hostile code tries. Each text defines `f`; the judge's tests want `f(x) == x + 1`.

CHEATS want to be judged right without being right. ESCAPES want something they must not have: `f` returns "gained"
where the attempt worked. BOMBS want to break the judge, the machine or the next job.
{secret}, {folder}, {port} and {name} are a file and a folder outside, a listening TCP and UDP port, and the name of an
abstract unix socket.
"""

from __future__ import annotations

import textwrap

_EQUAL = """
class Yes:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
"""

CHEATS = {
    "equal to everything": _EQUAL + "def f(x): return Yes()",
    "int equal to everything": "class I(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\ndef f(x): return I(5)",
    "str equal to everything": "class S(str):\n    def __eq__(self, o): return True\n    __hash__ = str.__hash__\ndef f(x): return S('')",
    "list equal to everything": "class L(list):\n    def __eq__(self, o): return True\ndef f(x): return L()",
    "equal things inside a list": _EQUAL + "def f(x): return [Yes()]",
    "f is an object equal to everything": _EQUAL + "f = Yes()",
    "f is a class equal to everything": _EQUAL + "class f(Yes):\n    def __init__(self, *a): pass",
    "metaclass equal to everything": "class M(type):\n    def __eq__(c, o): return True\n    def __hash__(c): return 0\nclass C(metaclass=M): pass\ndef f(x): return C",
    "class lies about its type": "class C:\n    __class__ = int\n    def __eq__(self, o): return True\ndef f(x): return C()",
    "sys.exit(0) at the top": "import sys\nsys.exit(0)",
    "sys.exit(0) in the call": "import sys\ndef f(x): sys.exit(0)",
    "os._exit(0) at the top": "import os\nos._exit(0)",
    "os._exit(0) in the call": "import os\ndef f(x): os._exit(0)",
    "quit()": "def f(x): raise SystemExit(0)",
    "raise KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "raise GeneratorExit": "def f(x): raise GeneratorExit",
    "raise an exception that passes for StopIteration": "def f(x): raise StopIteration(x + 1)",
    "atexit prints success": "import atexit, os\natexit.register(lambda: os.write(1, b'passed'))\ndef f(x): return 0",
    "print the success marker": "print('passed', 'PASS', 'ok', flush=True)\ndef f(x): print('passed'); return 0",
    "write to every descriptor": "import os\ndef f(x):\n    for fd in range(0, 256):\n        try: os.write(fd, b'{\"status\": \"passed\", \"passed\": [2]}')\n        except OSError: pass\n    return 0",
    "walk frames for expected values": """
        import sys
        def f(x):
            frame = sys._getframe()
            found = []
            while frame:
                for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
                    if isinstance(value, (list, tuple)):
                        found += [v for v in value if isinstance(v, int) and v not in (x,)]
                    if isinstance(value, dict) and 'expected' in value: return value['expected']
                frame = frame.f_back
            return 0
    """,
    "search memory for expected values": """
        import gc
        def f(x):
            for thing in gc.get_objects():
                if isinstance(thing, dict) and ('expected' in thing or 'tests' in thing): return thing.get('expected', 0)
                if isinstance(thing, str) and 'assert f(' in thing: return int(thing.rsplit('==', 1)[1])
            return 0
    """,
    "patch builtins": "import builtins\nfor n in ('all', 'any', 'isinstance', 'len', 'bool'):\n    setattr(builtins, n, lambda *a, **k: True)\ndef f(x): return 0",
    "patch json": "import json\njson.dumps = lambda *a, **k: '[\"\", \"value\", true]'\njson.loads = lambda *a, **k: []\ndef f(x): return 0",
    "patch the codec": "import sys\nc = sys.modules['dcoder_cli.execution.codec']\nc.dumps = lambda *a, **k: b'[\"x\",\"value\",true]'\ndef f(x): return 0",
    "patch operator and int": "import operator\noperator.eq = lambda a, b: True\ndef f(x): return 0",
    "forge an answer before the question": "import os, struct\nb = b'[\"0\",\"value\",11]'\nfor _ in range(9): os.write(3, struct.pack('!I', len(b)) + b)\ndef f(x): return 0",
    "forge a verdict frame": "import os, struct\nb = b'{\"status\":\"passed\",\"why\":\"\",\"passed\":[2]}'\nos.write(3, struct.pack('!I', len(b)) + b)\ndef f(x): return 0",
    "answer twice": """
        import os, struct, sys
        c = sys.modules['dcoder_cli.execution.codec']
        def f(x):
            frame = sys._getframe()
            while 'nonce' not in frame.f_locals: frame = frame.f_back
            body = c.dumps([frame.f_locals['nonce'], 'value', x + 1])
            for _ in range(2): os.write(3, struct.pack('!I', len(body)) + body)
            return x + 1
    """,
    "a frame that claims 4 GiB": "import os\ndef f(x): os.write(3, b'\\xff\\xff\\xff\\xff' + b'x' * 1000); return 0",
    "a frame that is not JSON": "import os\ndef f(x): os.write(3, b'\\0\\0\\0\\4\\xff\\xfe[['); return 0",
    "an answer nested deeply": "import os, struct\ndef f(x):\n    b = b'[' * 200000\n    os.write(3, struct.pack('!I', len(b)) + b)\n    return 0",
    "a reference as the answer": "import os, struct, sys\ndef f(x):\n    g = sys._getframe()\n    while 'nonce' not in g.f_locals: g = g.f_back\n    b = ('[\"%s\",\"value\",{\"o\":0}]' % g.f_locals['nonce']).encode()\n    os.write(3, struct.pack('!I', len(b)) + b)\n    os._exit(0)",
    "an unknown tag as the answer": "import os, struct, sys\ndef f(x):\n    g = sys._getframe()\n    while 'nonce' not in g.f_locals: g = g.f_back\n    b = ('[\"%s\",\"value\",{\"pickle\":\"Y29z\"}]' % g.f_locals['nonce']).encode()\n    os.write(3, struct.pack('!I', len(b)) + b)\n    os._exit(0)",
    "close the socket": "import os\ndef f(x): os.close(3); return x + 1",
    "replace the socket": "import os\nr, w = os.pipe()\nos.dup2(w, 3)\ndef f(x): return x + 1",
    "generator as the answer": "def f(x): yield x + 1",
    "nan and infinities": "def f(x): return float('nan')",
    "True for everything": "def f(x): return True",
}  # fmt: skip

ESCAPES = {
    "read a file outside": "def f(x):\n    open({secret!r}).read(); return 'gained'",
    "read a file outside with O_PATH": "import os\ndef f(x):\n    fd = os.open({secret!r}, os.O_PATH); os.read(fd, 1); return 'gained'",
    "write a file outside": "def f(x):\n    open({folder!r} + '/made', 'w').write('x'); return 'gained'",
    "truncate a file outside": "import os\ndef f(x): os.truncate({secret!r}, 0); return 'gained'",
    "delete a file outside": "import os\ndef f(x): os.unlink({secret!r}); return 'gained'",
    "rename a file outside": "import os\ndef f(x): os.rename({secret!r}, {secret!r} + '2'); return 'gained'",
    "chmod a file outside": "import os\ndef f(x): os.chmod({secret!r}, 0o777); return 'gained'",
    "list a folder outside": "import os\ndef f(x): os.listdir({folder!r}); return 'gained'",
    "link to a file outside": "import os\ndef f(x):\n    os.symlink({secret!r}, 'l'); open('l').read(); return 'gained'",
    "hard link to a file outside": "import os\ndef f(x):\n    os.link({secret!r}, 'h'); open('h').read(); return 'gained'",
    "read home": "import os\ndef f(x):\n    os.listdir('/root') or os.listdir('/home'); return 'gained'",
    "read /etc/passwd": "def f(x): open('/etc/passwd').read(); return 'gained'",
    "the tests of the package": "import dcoder_cli.benchmarks\ndef f(x): return 'gained'",
    "the package's files": "import dcoder_cli, os\ndef f(x):\n    os.listdir(os.path.dirname(dcoder_cli.__file__)); return 'gained'",
    "installed packages": "import site, torch\ndef f(x): return 'gained'",
    "secrets in the environment": "import os\ndef f(x): return 'gained' if 'DCODER_TEST_SECRET' in os.environ else 'refused'",
    "the parent's environment": "def f(x):\n    import os\n    open('/proc/%d/environ' % os.getppid()).read(); return 'gained'",
    "the parent's memory": "def f(x):\n    import os\n    open('/proc/%d/mem' % os.getppid(), 'rb'); return 'gained'",
    "own /proc": "def f(x): open('/proc/self/maps').read(); return 'gained'",
    "fork": "import os\ndef f(x):\n    if os.fork() == 0: os._exit(0)\n    return 'gained'",
    "daemonise": "import os, time\ndef f(x):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0: time.sleep(300)\n        os._exit(0)\n    return 'gained'",
    "thread": "import threading\ndef f(x): threading.Thread(target=print).start(); return 'gained'",
    "subprocess": "import subprocess\ndef f(x): subprocess.run(['true']); return 'gained'",
    "os.system": "import os\ndef f(x): return 'gained' if os.system('true') == 0 else 'refused'",
    "exec": "import os, sys\ndef f(x): os.execv(sys.executable, ['python', '-c', '1'])",
    "memfd and exec of it": "import os\ndef f(x): fd = os.memfd_create('x'); return 'gained'",
    "kill the parent": "import os\ndef f(x): os.kill(os.getppid(), 9); return 'gained'",
    "kill everyone": "import os\ndef f(x): os.kill(-1, 9); return 'gained'",
    "signal the process group": "import os\ndef f(x): os.killpg(0, 0); return 'gained'",
    "stop oneself": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGSTOP); return 'gained'",
    "ptrace": "import ctypes, os\ndef f(x): return 'gained' if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0 else 'refused'",
    "read another process": "import ctypes, os\nL = ctypes.CDLL(None)\ndef f(x):\n    b = ctypes.create_string_buffer(16)\n    return 'gained' if L.syscall(310, os.getppid(), b, 1, b, 1, 0) >= 0 else 'refused'",
    "mount": "import ctypes\ndef f(x): return 'gained' if ctypes.CDLL(None).mount(b'none', b'/', b'tmpfs', 0, None) == 0 else 'refused'",
    "chroot": "import os\ndef f(x): os.chroot('.'); return 'gained'",
    "unshare": "import ctypes\ndef f(x): return 'gained' if ctypes.CDLL(None).unshare(0x10000000) == 0 else 'refused'",
    "setns": "import ctypes\ndef f(x): return 'gained' if ctypes.CDLL(None).setns(3, 0) == 0 else 'refused'",
    "setuid": "import os\ndef f(x): os.setuid(0); return 'gained'",
    "io_uring": "import ctypes\ndef f(x):\n    p = ctypes.create_string_buffer(256)\n    return 'gained' if ctypes.CDLL(None).syscall(425, 1, p) >= 0 else 'refused'",
    "bpf": "import ctypes\ndef f(x):\n    p = ctypes.create_string_buffer(256)\n    return 'gained' if ctypes.CDLL(None).syscall(321, 0, p, 64) >= 0 else 'refused'",
    "TCP": "import socket\ndef f(x): socket.create_connection(('127.0.0.1', {port}), 1).send(b'x'); return 'gained'",
    "UDP": "import socket\ndef f(x): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port})); return 'gained'",
    "listen": "import socket\ndef f(x): socket.create_server(('127.0.0.1', 0)); return 'gained'",
    "abstract unix socket": "import socket\ndef f(x): socket.socket(socket.AF_UNIX).connect('\\0' + {name!r}); return 'gained'",
    "DNS": "import socket\ndef f(x): socket.gethostbyname('example.com'); return 'gained'",
    "raw socket": "import socket\ndef f(x): socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); return 'gained'",
    "send descriptors over the socket": "import socket\ndef f(x):\n    s = socket.socket(fileno=3); s.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b'\\0\\0\\0\\0')]); return 'gained'",
    "device files": "import os\ndef f(x): os.mknod('d', 0o20666, os.makedev(1, 1)); return 'gained'",
    "kernel log": "import ctypes\ndef f(x):\n    b = ctypes.create_string_buffer(64)\n    return 'gained' if ctypes.CDLL(None).klogctl(3, b, 64) >= 0 else 'refused'",
    "raise own limits": "import resource\ndef f(x): resource.setrlimit(resource.RLIMIT_CPU, (1, 1)); return 'gained'",
    "outlive the parent": "import ctypes\ndef f(x): return 'gained' if ctypes.CDLL(None).prctl(1, 0) == 0 else 'refused'",
    "32-bit system calls": "import ctypes\ndef f(x):\n    return 'gained' if ctypes.CDLL(None).syscall(0x40000000 + 57) >= 0 else 'refused'",
    "write beside the job's folder": "import os\ndef f(x):\n    os.mkdir('../left'); return 'gained'",
    "leave a file for the next job": "import os\ndef f(x):\n    open('/dev/shm/left', 'w'); return 'gained'",
    "message queues and shared memory": "import ctypes\nL = ctypes.CDLL(None)\ndef f(x): return 'gained' if L.shmget(7, 4096, 0o1666) >= 0 or L.msgget(7, 0o1666) >= 0 else 'refused'",
    "timers that signal others": "import fcntl, os\ndef f(x): fcntl.fcntl(3, fcntl.F_SETOWN, os.getppid()); return 'gained'",
}  # fmt: skip

BOMBS = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread bomb": "import _thread, time\ndef f(x):\n    while True:\n        try: _thread.start_new_thread(time.sleep, (99,))\n        except RuntimeError: pass",
    "memory bomb": "def f(x):\n    a = []\n    while True: a.append(bytearray(1 << 24))",
    "memory bomb that goes on": "def f(x):\n    a = []\n    while True:\n        try: a.append(bytearray(1 << 20))\n        except MemoryError: pass",
    "processor": "def f(x):\n    while True: pass",
    "9**9**9": "def f(x): return 9**9**9",
    "str of 9**9**7": "def f(x): return str(9**9**7)",
    "recursion": "def f(x): return f(x)",
    "recursion without limit": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return [f(x)]",
    "recursion in C": "def f(x):\n    a = []\n    for _ in range(10**7): a = [a]\n    return repr(a)",
    "segmentation fault": "import ctypes\ndef f(x): ctypes.string_at(0)",
    "abort": "import os\ndef f(x): os.abort()",
    "disk bomb": "def f(x):\n    with open('big', 'wb') as h:\n        while True: h.write(b'x' * (1 << 20))",
    "disk bomb in many files": "def f(x):\n    n = 0\n    while True:\n        n += 1\n        try: open(str(n), 'wb').write(b'x' * (1 << 20))\n        except OSError: pass",
    "many empty files": "def f(x):\n    for n in range(30000):\n        try: open(str(n), 'w').close()\n        except OSError: break\n    return 0",
    "descriptor bomb": "import os\nk = []\ndef f(x):\n    while True:\n        try: k.append(os.dup(0))\n        except OSError: pass",
    "signals ignored": "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
    "exceptions swallowed": "def f(x):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "sleep": "import time\ndef f(x): time.sleep(999)",
    "hang at the top": "while True: pass",
    "huge output": "import sys\ndef f(x):\n    for _ in range(200): sys.stdout.write('x' * (1 << 20))\n    return 0",
    "huge answer": "def f(x): return 'x' * (100 << 20)",
    "huge answer of small parts": "def f(x): return [0] * (20 << 20)",
    "answer that contains itself": "def f(x):\n    a = []; a.append(a); return a",
    "dict that contains itself": "def f(x):\n    a = {}; a['a'] = a; return a",
    "answer nested deeply": "def f(x):\n    a = 1\n    for _ in range(5000): a = (a,)\n    return a",
    "colliding hashes": "def f(x): return {k * (2**61 - 1) for k in range(1, 100000)}",
    "huge integer": "def f(x): return 1 << (100 << 20)",
    "colliding hashes as a dict": "def f(x): return {k * (2**61 - 1): 0 for k in range(1, 3000)}",
    "links and locked folders left behind": "import os\ndef f(x):\n    os.makedirs('a/b/c'); os.symlink('/', 'a/root'); os.symlink('a', 'loop')\n    open('a/b/file', 'w').close(); return 0",
    "deep folders left behind": "import os\ndef f(x):\n    for _ in range(300):\n        os.mkdir('d'); os.chdir('d')\n    return 0",
    "folder deleted": "import os\ndef f(x):\n    d = os.getcwd(); os.chdir('/'); os.rmdir(d); return 0",
    "socket flooded": "import os\ndef f(x):\n    while True: os.write(3, b'\\0\\0\\0\\1x')",
    "socket held half way": "import os, time\ndef f(x):\n    os.write(3, b'\\0\\0'); time.sleep(999)",
    "catastrophic regular expression": "import re\ndef f(x): return re.match('(a+)+$', 'a' * 99 + 'b')",
    "parser stack": "f = " + "(" * 150 + "1" + ")" * 150 + "\nx = " + "-" * 100000 + "1",
    "null byte": "def f(x): return '\0'",
}  # fmt: skip


def source(text: str, **outside: object) -> str:
    """An attack's source, with what lies outside filled in."""
    text = textwrap.dedent(text) if text.startswith("\n  ") else text
    for name, value in outside.items():
        text = text.replace("{" + name + "!r}", repr(value)).replace("{" + name + "}", str(value))
    return text
