"""Programs that attack the sandbox or the verdict, for test_process.py.

HOSTILE: whole programs. BENT: functions `f` that return something built to pass for the answer, 7919 x.
LOOK_AROUND: a search of /proc for secrets.
"""

HOSTILE = {
    "os._exit(0) before the tests": r"""
import os
os._exit(0)
""",
    "sys.exit in import": r"""
import sys
sys.exit(0)
""",
    "exit in the call": r"""
import os
def f(x): os._exit(0)
""",
    "sys.exit in the call": r"""
import sys
def f(x): sys.exit(0)
""",
    "infinite loop": r"""
while True: pass
""",
    "infinite loop that ignores signals": r"""
import signal
for s in range(1, 65):
    try: signal.signal(s, signal.SIG_IGN)
    except Exception: pass
while True: pass
""",
    "sleep": r"""
import time
time.sleep(1e6)
""",
    "fork bomb": r"""
import os
while True:
    try: os.fork()
    except OSError: pass
""",
    "fork bomb that gives up": r"""
import os
for i in range(10**5): os.fork()
""",
    "thread bomb": r"""
import threading, time
while True:
    try: threading.Thread(target=time.sleep, args=(1e6,)).start()
    except RuntimeError: pass
""",
    "subprocesses": r"""
import subprocess
while True: subprocess.Popen(['/bin/sh', '-c', 'sleep 1000'])
""",
    "memory hog": r"""
x = bytearray(1 << 40)
""",
    "slow memory hog": r"""
x = []
while True: x.append(bytearray(1 << 24))
""",
    "memory outside the heap": r"""
import os
for i in range(1000):
    n = os.memfd_create('x')
    os.write(n, bytes(1 << 24))
""",
    "endless output": r"""
while True: print('7919' * 1000)
""",
    "endless output at once": r"""
import sys
sys.stdout.write('7919\n' * 10**9)
""",
    "endless errors": r"""
import sys
while True: sys.stderr.write('7919' * 1000)
""",
    "huge recursion": r"""
import sys
sys.setrecursionlimit(10**9)
def g(x): return g([x])
g(0)
""",
    "huge recursion in C": r"""
import sys
sys.setrecursionlimit(10**9)
x = []
for i in range(10**6): x = [x]
repr(x)
print(x == x)
""",
    "crash": r"""
import ctypes
ctypes.string_at(0)
""",
    "writing 10 GB": r"""
with open('/tmp/big', 'wb') as file:
    for i in range(10240): file.write(bytes(1 << 20))
""",
    "writing 10 GB to many files": r"""
for i in range(10240):
    with open(f'/tmp/big{i}', 'wb') as file: file.write(bytes(1 << 20))
""",
    "writing 10 GB to shared memory": r"""
for i in range(10240):
    with open(f'/dev/shm/big{i}', 'wb') as file: file.write(bytes(1 << 20))
""",
    "endless files": r"""
i = 0
while True:
    i += 1
    open(f'/tmp/{i}', 'w').close()
""",
    "stdin that never ends": r"""
import sys
while True: sys.stdin.read()
""",
    "reading the terminal": r"""
open('/dev/tty').read()
while True: pass
""",
    "killing everything": r"""
import os, signal
os.kill(-1, signal.SIGKILL)
""",
    "killing the parent": r"""
import os, signal
for p in (os.getppid(), 1, 2, 0): os.kill(p, signal.SIGKILL)
""",
    "stopping the parent": r"""
import os, signal
os.kill(os.getppid(), signal.SIGSTOP)
while True: pass
""",
    "daemon": r"""
import os, time
if os.fork() == 0:
    os.setsid()
    time.sleep(1000)
""",
    "thread that stays": r"""
import threading, time
threading.Thread(target=time.sleep, args=(1e6,)).start()
def f(x): return 0
""",
    "deep directories": r"""
import os
while True:
    os.mkdir('d')
    os.chdir('d')
""",
    "symlinks in /tmp": r"""
import os
os.symlink('/', '/tmp/root')
os.symlink('/tmp/loop', '/tmp/loop')
for r, d, f in os.walk('/tmp/root', followlinks=True): pass
""",
    "new namespaces": r"""
import ctypes, os
assert ctypes.CDLL(None).unshare(0x10000000 | 0x20000) == 0
while True: pass
""",
    "spoken replies": r"""
import os
for n in range(3, 64):
    for i in range(50):
        try: os.write(n, b'["r",7919,null]\n')
        except OSError: break
print(7919)
""",
    "spoken verdicts": r"""
import os
for n in range(3, 64):
    for t in range(3):
        try: os.write(n, b'{"test":%d,"ok":true,"why":"","fault":"program","timeout":false,"ended":false}\n' % t)
        except OSError: pass
    try: os.write(n, b'{"end":true}\n')
    except OSError: pass
os._exit(0)
""",
    "endless replies": r"""
import os
while True:
    for n in range(3, 64):
        try: os.write(n, b'[' * 65536)
        except OSError: pass
""",
    "what a passing run prints": r"""
print('OK')
print('test passed')
print('7919')
print('correct')
""",
}

BENT = {
    "equal to everything": r"""
class A:
    def __eq__(self, other): return True
    def __bool__(self): return True
def f(x): return A()
""",
    "int equal to everything": r"""
class A(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(x): return A(1)
""",
    "str equal to everything": r"""
class A(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def f(x): return A('1')
""",
    "list equal to everything": r"""
class A(list):
    def __eq__(self, other): return True
def f(x): return A([1])
""",
    "float that is close to all": r"""
class A(float):
    def __sub__(self, other): return 0.0
    __rsub__ = __abs__ = __sub__
def f(x): return A(1)
""",
    "operators of everything": r"""
class A:
    def __getattr__(self, name): return lambda *a: True
    __eq__ = __lt__ = __gt__ = __sub__ = __rsub__ = __le__ = __ge__ = lambda *a: True
def f(x): return A()
""",
    "class that claims to be int": r"""
class A:
    __class__ = int
    def __eq__(self, other): return True
def f(x): return A()
""",
    "replaced builtins": r"""
import builtins
builtins.abs = builtins.len = builtins.round = builtins.set = builtins.int = lambda *a: 7919
builtins.AssertionError = type('E', (BaseException,), {})
builtins.all = builtins.any = builtins.isinstance = lambda *a: True
builtins.print = lambda *a: None
def f(x): return 0
""",
    "patched json": r"""
import json
json.loads = json.dumps = lambda *a, **k: [7919] * 9
json.JSONDecoder.decode = json.JSONEncoder.encode = json.loads
def f(x): return 0
""",
    "the frames of the callers": r"""
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        for space in (frame.f_locals, frame.f_globals):
            for value in list(space.values()):
                if isinstance(value, list): value += [True, 1, None]
                if isinstance(value, dict) and value is not frame.f_globals: value.update(ok=True, passed=True)
        frame = frame.f_back
    return 0
""",
    "the collector's objects": r"""
import gc
def f(x):
    for value in gc.get_objects():
        if type(value) is list and len(value) < 5 and 7919 in value: return 7919 * x
    for value in gc.get_objects():
        if callable(value) and getattr(value, '__name__', '') in ('same_value', 'check', '_judge'): return 7919 * x
    return 0
""",
    "the tests on disk": r"""
import os
def f(x):
    for root, _, names in os.walk('/'):
        if root.startswith(('/proc', '/usr', '/packages')): continue
        for name in names:
            try:
                if '15838' in open(os.path.join(root, name), errors='replace').read(1 << 20): return 7919 * x
            except OSError: pass
    return 0
""",
    "the memory of other processes": r"""
import os
def f(x):
    for p in os.listdir('/proc'):
        for name in ('cmdline', 'environ', 'fd/0', 'mem', 'maps'):
            try:
                text = open(f'/proc/{p}/{name}', 'rb').read(1 << 20)
                if b'15838' in text or b'pytest' in text: return 7919 * x
            except (OSError, ValueError): pass
    return 0
""",
    "StopIteration": r"""
def f(x): raise StopIteration
""",
    "AssertionError with no text": r"""
def f(x): raise AssertionError
""",
    "an endless iterator": r"""
def f(x):
    while True: yield 7919
""",
    "an endless result": r"""
def f(x): return [0] * 10**7
""",
    "a deep result": r"""
def f(x):
    y = []
    for i in range(10**5): y = [y]
    return y
""",
    "a result that is itself": r"""
def f(x):
    y = []
    y.append(y)
    return y
""",
    "a wide integer": r"""
def f(x): return 1 << 10**8
""",
}

LOOK_AROUND = r"""
import os, re, stat

SECRET = re.compile(rb"(?:canary|answer)-[0-9a-f]{32}")
FILES = ("environ", "cmdline", "maps", "mountinfo", "mounts", "status", "stat", "auxv", "cgroup", "limits", "comm")
seen, found = set(), []

def note(process, name, data):
    if data:
        seen.add(process)
    found.extend((process, name, secret.decode()) for secret in SECRET.findall(data))

def attempt(function, *arguments):
    try:
        return function(*arguments)
    except OSError:
        return b""

def content(path):
    if not stat.S_ISREG(os.stat(path).st_mode):
        return b""
    with open(path, "rb", 0) as file:
        return file.read(1 << 20)

def link(path):
    return os.fsencode(os.readlink(path))

def parent(process):
    fields = attempt(content, f"/proc/{process}/stat").rpartition(b")")[2].split()
    return fields[1].decode() if fields else "0"

def memory(process):
    with open(f"/proc/{process}/mem", "rb", 0) as file:
        for line in content(f"/proc/{process}/maps").decode().splitlines():
            first, last = (int(text, 16) for text in line.split()[0].split("-"))
            if line.split()[1].startswith("rw") and last - first < 1 << 26 and not found:
                file.seek(first)
                note(process, "mem", attempt(file.read, last - first))

def look_around():
    processes = [name for name in os.listdir("/proc") if name.isdigit()]
    for process in [*processes, "self", "thread-self"]:
        for name in FILES:
            note(process, name, attempt(content, f"/proc/{process}/{name}"))
        for name in ("cwd", "root", "exe"):
            note(process, name, attempt(link, f"/proc/{process}/{name}"))
        for entry in attempt(os.listdir, f"/proc/{process}/fd"):
            note(process, "fd", attempt(link, f"/proc/{process}/fd/{entry}"))
            note(process, "fd", attempt(content, f"/proc/{process}/fd/{entry}"))
        for name in ("cwd", "root"):
            for entry in attempt(os.listdir, f"/proc/{process}/{name}"):
                note(process, name, os.fsencode(entry))
        for thread in attempt(os.listdir, f"/proc/{process}/task"):
            note(process, "task", attempt(content, f"/proc/{process}/task/{thread}/environ"))
    # the memory of the processes that this one has to do with; with bubblewrap these are all
    above = [str(os.getppid()), parent(os.getppid())]
    for process in processes:
        if process in above or parent(process) in above:
            attempt(memory, process)
    own = attempt(content, "/proc/self/environ").count(b"PYTHONHASHSEED=0")
    return f"{len(seen & set(processes))} processes, own environment {own}, found {found[:1]}."
"""
