"""Programs that attack the grading rather than the machine (for those, see tests/verifiers/sandbox/attacks.py).

HOSTILE: programs that define `f`, or `Solution.f`, and never give the right answer, which is 7919 x. `task` makes any
of them the response to a problem of any form.
"""

from __future__ import annotations

import json
from typing import Any

from primecli.verifiers import Task

CASES = range(1, 4)
FORMS: dict[str, dict[str, Any]] = {
    "stdin": {"inputs": [f"{x}\n" for x in CASES], "outputs": [f"{7919 * x}\n" for x in CASES]},
    "calls": {"fn_name": "f", "inputs": [[x] for x in CASES], "outputs": [7919 * x for x in CASES]},
    "check": {"test": "def check(f):\n    assert f(1) == 7919\n    assert f(2) == 15838\n", "entry_point": "f"},
    "asserts": {"asserts": ["assert f(1) == 7919", "assert f(2) == 15838"]},
}
"""A ground truth of each form."""

RIGHT = "def f(x): return 7919 * x"

_MAIN = """
if __name__ == "__main__":
    print((f if "f" in globals() else Solution().f)(int(input())))
"""

_WRITE = """
import os
def write(line):
    for place in [f"/proc/{os.getppid()}/fd", "/proc/1/fd", "/proc/self/fd"]:
        for number in range(64):
            try:
                out = os.open(f"{place}/{number}", os.O_WRONLY | os.O_NONBLOCK)
                for _ in range(20): os.write(out, line)
                os.close(out)
            except OSError: pass
    for number in range(3, 64):
        try:
            for _ in range(20): os.write(number, line)
        except OSError: pass
"""

SPOKEN = {
    "[1]": b"[1]", "a number": b"1", "nothing": b"", "an object": b"{}", "an empty list": b"[]", "a text": b'"r"',
    "a bare reply": b'["r"]', "a bare report": b'["ran"]', "a negative size": b'["ran",0,-1,""]',
    "a huge size": b'["ran",0,999999999999,""]', "a size of truth": b'["ran",0,true,null]',
    "a short exception": b'["x",1]', "an exception of lists": b'["x",[],[],[]]', "not Unicode": b"\xff\xfe",
    "a dictionary of one": b'["r",{"d":1},null]', "an unhashable key": b'["r",{"d":[[{"s":[[1]]},1]]},null]',
    "an empty handle": b'["r",{"h":[]},null]', "a handle of objects": b'["r",{"h":[{},{}]},null]',
    "a view of nothing": b'["r",{"v":["keys",[[1]]]},null]', "not a number": b'["r",NaN,null]',
    "not hexadecimal": b'["r",{"i":"zz"},null]', "two tags": b'["r",{"t":[],"s":[]},null]',
    "nested": b'["r",' + b"[" * 500 + b"]" * 500 + b",null]", "too nested": b"[" * 60_000,
    "changed arguments": b'["r",1,[[[[]]]]]', "loaded twice": b'["loaded"]', "failed": b'["failed"]',
    "failed with a list": b'["failed",[]]', "many digits": b'["r",' + b"9" * 50_000 + b",null]",
}  # fmt: skip
"""Messages that a program writes into every pipe it can find."""


def _programs(text: str) -> dict[str, str]:
    """The programs in a text in which each begins with a line "=== name"."""
    return dict(part.split("\n", 1) for part in text.split("=== ")[1:])


LISTED = _programs(r"""=== a lone surrogate in an exception
def f(x): raise ValueError('\udc80 and \ud800')
=== a lone surrogate in an import
raise ValueError('\udc80 and \ud800')
=== a slow Solution
class Solution:
    def __init__(self):
        while True: pass
    def f(self, x): return 1
=== a sleeping Solution
import time
class Solution:
    def __init__(self): time.sleep(99)
    def f(self, x): return 1
=== a stalled getrusage
import resource, time
resource.getrusage = lambda *a: time.sleep(99)
def f(x): return 1
=== 300,000 equal hashes in a set
def f(x): return Many(i * (2**61 - 1) for i in range(300_000))
class Many(set):
    def __init__(self, items): self.items = list(items)
import sys
codec = sys.modules['primecli.verifiers.sandbox.codec']
encode = codec.encode
codec.encode = lambda value, keep: {'s': value.items} if type(value) is Many else encode(value, keep)
""")
LISTED["[1] in every pipe"] = _WRITE + "write(b'[1]\\n')\ndef f(x): write(b'[1]\\n'); return 1"
"""Those that once had no reward, or held the grading up."""

_OTHERS = r"""=== equal hashes in a dictionary
import sys
codec = sys.modules['primecli.verifiers.sandbox.codec']
encode = codec.encode
many = [i * (2**61 - 1) for i in range(300_000)]
codec.encode = lambda *a: {'d': [[i, 1] for i in many]}
def f(x): return 1
=== equal hashes in keys
import sys
codec = sys.modules['primecli.verifiers.sandbox.codec']
encode = codec.encode
many = [i * (2**61 - 1) for i in range(300_000)]
codec.encode = lambda *a: {'v': ['keys', many]}
def f(x): return 1
=== f is equal hashes
import sys
codec = sys.modules['primecli.verifiers.sandbox.codec']
encode = codec.encode
many = [i * (2**61 - 1) for i in range(300_000)]
codec.encode = lambda *a: {'s': many}
f = {1}
=== fractions of wide integers
import sys
fraction = {'F': [{'i': '0x' + '7' * 260_000}, {'i': '0x' + '9' * 260_000}]}
sys.modules['primecli.verifiers.sandbox.codec'].encode = lambda *a: [fraction] * 15
def f(x): return 1
=== a Decimal of seven million digits
import sys
sys.modules['primecli.verifiers.sandbox.codec'].encode = lambda *a: {'D': '7' * 7_000_000}
def f(x): return 1
=== a text of seven million letters
def f(x): return 'a' * 7_000_000
=== a text of a hundred million letters
def f(x): return 'a' * 100_000_000
=== a float of seven million digits
import sys, os
def f(x):
    sys.modules['primecli.verifiers.sandbox.codec'].dump_line = lambda m: b'["r",0.' + b'7' * 7_000_000 + b',null]\n'
=== a lone surrogate at the end
import sys
def f(x): sys.exit('\udc80')
=== a lone surrogate as result
def f(x): return '\ud800'
=== an exception with a long name
def f(x): raise type('E' * 10**6, (Exception,), {})
=== an exception that cannot be printed
class E(BaseException):
    def __str__(self): raise self
    __repr__ = __str__
def f(x): raise E
=== an exception that prints for ever
class E(Exception):
    def __str__(self):
        while True: pass
def f(x): raise E
=== KeyboardInterrupt
def f(x): raise KeyboardInterrupt
=== GeneratorExit
def f(x): raise GeneratorExit
=== SystemExit of an object
def f(x): raise SystemExit(type('A', (), {'__str__': lambda s: 1 / 0})())
=== ImportError in the call
def f(x): import no_such_module
=== ImportError at the end
def f(x): raise ImportError('no module named numpy')
=== MemoryError
def f(x): raise MemoryError
=== an exception that is nobody's
def f(x): raise type('TimeIsUp', (BaseException,), {})
=== StopIteration
def f(x): raise StopIteration
=== os._exit in the call
import os
def f(x): os._exit(0)
=== os._exit after the reply
import os, threading
def f(x):
    threading.Timer(0.02, os._exit, (0,)).start()
    return 1
=== os._exit in a class
import os
class Solution:
    def __init__(self): os._exit(0)
    def f(self, x): return 1
=== atexit that does not end
import atexit, time
atexit.register(time.sleep, 99)
def f(x): return 1
=== a thread that stays
import threading, time
threading.Thread(target=time.sleep, args=(99,)).start()
def f(x): return 1
=== a daemon that works
import threading
def g():
    while True: pass
threading.Thread(target=g, daemon=True).start()
def f(x): return 1
=== every file closed
import os
os.closerange(0, 10_000)
def f(x): return 1
=== every file closed in the call
import os
def f(x): os.closerange(0, 10_000)
=== every file is /dev/null
import os
n = os.open('/dev/null', os.O_RDWR)
for i in range(64):
    if i != n: os.dup2(n, i)
def f(x): return 1
=== os.write that sleeps
import os, time
os.write = lambda *a: time.sleep(99)
def f(x): return 1
=== builtins that are gone
import builtins
for name in list(vars(builtins)):
    if name[0] != '_': delattr(builtins, name)
def f(x): return 1
=== modules that are gone
import sys
sys.modules.clear()
def f(x): return 1
=== signals ignored
import signal
for s in range(1, 65):
    try: signal.signal(s, signal.SIG_IGN)
    except Exception: pass
def f(x):
    while True: pass
=== alarms
import signal
signal.signal(signal.SIGALRM, signal.SIG_DFL)
signal.setitimer(signal.ITIMER_REAL, 0.001)
def f(x):
    while True: pass
=== stopping itself
import os, signal
def f(x):
    os.kill(os.getpid(), signal.SIGSTOP)
    return 1
=== signals by a file's owner
import fcntl, os, signal, socket
a, b = socket.socketpair()
for p in (os.getppid(), 1):
    for s in (signal.SIGSTOP, signal.SIGKILL):
        try:
            fcntl.fcntl(a, fcntl.F_SETOWN, p)
            fcntl.fcntl(a, 10, s)
            fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC)
            b.send(b'x')
        except OSError: pass
def f(x): return 1
=== limits of the parent
import os, resource
for p in (os.getppid(), 1):
    try: resource.prlimit(p, resource.RLIMIT_CPU, (0, 0))
    except OSError: pass
def f(x): return 1
=== a process group of its own
import os, time
for leave in (os.setsid, os.setpgrp):
    try: leave()
    except OSError: pass
def f(x): time.sleep(99)
=== a million files
def f(x):
    for i in range(10**6): open(str(i), 'w').close()
=== deep directories
import os
def f(x):
    for i in range(10**6):
        os.mkdir('d')
        os.chdir('d')
=== big files
def f(x):
    for i in range(10**4): open(str(i), 'wb').write(bytes(1 << 20))
=== a directory without rights
import os
os.makedirs('a/b')
open('a/b/c', 'w').close()
os.chmod('a', 0)
os.chmod('.', 0)
def f(x): return 1
=== a billion laughs
def f(x):
    y = [0] * 10
    for i in range(40): y = [y, y]
    return y
=== a list in itself
def f(x):
    y = []
    y.append(y)
    return y
=== nested lists
def f(x):
    y = []
    for i in range(800): y = [y]
    return y
=== a billion digits
def f(x): return str(7 ** 10**9)
=== digits printed
def f(x):
    print(7 ** 10**7)
    return 7 ** 10**7
=== endless backtracking
import re
def f(x): return re.match('(a+)+$', 'a' * 50 + 'b')
=== an endless generator
def f(x):
    while True: yield 7919
=== an iterator that waits
import time
def f(x):
    yield 7919
    time.sleep(99)
=== endless repeats
import itertools
def f(x): return itertools.repeat([0] * 1000)
=== an int equal to everything
class A(int):
    __eq__ = lambda a, b: True
    __hash__ = int.__hash__
def f(x): return A(1)
=== an object that is slow to judge
import time
class A:
    __eq__ = __bool__ = __len__ = __iter__ = __str__ = __repr__ = __hash__ = lambda *a: time.sleep(99)
def f(x): return A()
=== a type that is slow to name
import time
class M(type):
    __module__ = property(lambda c: time.sleep(99))
class A(metaclass=M): pass
def f(x): return A()
=== a type without a name
class M(type):
    __name__ = property(lambda c: 1 / 0)
class A(metaclass=M): pass
def f(x): return A()
=== NaN
def f(x): return float('nan')
=== a slow attribute
import time
class M(type):
    def __getattr__(c, n): time.sleep(99)
class Solution(metaclass=M): pass
=== white space
def f(x): return '\n ' * 5_000_000 + '7'
=== tokens
def f(x): return '7919 ' * 3_000_000
=== lines
def f(x): return '7919\n' * 3_000_000
"""
HOSTILE = LISTED | _programs(_OTHERS)
HOSTILE |= {
    f"{name} in every pipe": f"{_WRITE}write({line!r} + b'\\n')\ndef f(x): write({line!r} + b'\\n'); return 1"
    for name, line in SPOKEN.items()
}


def task(program: str, form: str) -> Task:
    """A program, to be graded with the ground truth of a form."""
    return Task(f"```python\n{program}\n{_MAIN}```", json.dumps(FORMS[form]))
