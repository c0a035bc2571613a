"""Processes of their own that need not import torch first: forked from one that has done nothing else.

:func:`start` and :func:`run` take what ``python`` would take: ``-c code``, ``-m module`` or a file, with arguments. The process is a
new one in every other respect: its environment, folder, streams, signals and what it imports, torchsmith included, are its
own. Importing torch and its compiler, which its optimizers need, takes 3-4 s; some dozens of tests start a process.
Environment variables that are read while torch is imported (OMP_NUM_THREADS, LD_PRELOAD) come too late here.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
import types
from multiprocessing.connection import wait

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch._dynamo"])


class Started:
    """What a test needs of subprocess.Popen; standard error goes with standard output if ``merge``."""

    def __init__(self, args, env=None, cwd=None, merge=False):
        self.args, self.returncode = args, None
        pipes = [_context.Pipe(duplex=False) for _ in range(1 if merge else 2)]
        ends = [write for _, write in pipes]
        given = list(map(str, args)), dict(os.environ if env is None else env), str(cwd or os.getcwd()), ends
        self._process = _context.Process(target=_become, args=given)
        self._process.start()
        for end in ends:
            end.close()
        streams = [os.fdopen(os.dup(read.fileno()), closefd=True) for read, _ in pipes]
        for read, _ in pipes:
            read.close()
        self.stdout, self.stderr = streams[0], None if merge else streams[1]
        self.pid = self._process.pid

    def poll(self):
        if self.returncode is None:
            self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        if self.poll() is None:
            self._process.kill()

    def communicate(self, timeout=None):
        """All of the output that was not read yet; kills the process when the time is over."""
        ends = None if timeout is None else time.monotonic() + timeout
        streams = [s for s in (self.stdout, self.stderr) if s is not None]
        found = {s: [] for s in streams}
        open_ones = {s.fileno(): s for s in streams}
        while open_ones:
            left = None if ends is None else ends - time.monotonic()
            ready = wait(list(open_ones), left) if left is None or left > 0 else []
            if not ready:
                self.kill()
                raise subprocess.TimeoutExpired(self.args, timeout)
            for number in ready:
                if part := os.read(number, 65536):
                    found[open_ones[number]].append(part)
                else:
                    del open_ones[number]
        self.wait(None if ends is None else max(ends - time.monotonic(), 1))
        return tuple(b"".join(found[s]).decode() if s in found else None for s in (self.stdout, self.stderr))


def start(*args, **kwargs) -> Started:
    return Started(args, **kwargs)


def run(*args, timeout=300, check=False, **kwargs) -> subprocess.CompletedProcess:
    process = Started(args, **kwargs)
    out, err = process.communicate(timeout)
    done = subprocess.CompletedProcess(args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def _become(args, env, cwd, ends):
    """In the new process: what the interpreter does before and after the code it is given."""
    assert "torch._dynamo" in sys.modules and "torchsmith" not in sys.modules
    os.setsid()
    for number, end in zip((1, 2), ends * 2 if len(ends) == 1 else ends, strict=True):
        os.dup2(end.fileno(), number)
    for end in ends:
        end.close()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0] = [p for p in env.get("PYTHONPATH", "").split(os.pathsep) if p]
    code = 1
    try:
        if args[0] == "-m":
            sys.argv, sys.path[:0] = args[1:], [cwd]
            runpy.run_module(args[1], run_name="__main__", alter_sys=True)
        elif args[0] == "-c":
            sys.argv, sys.path[:0] = ["-c", *args[2:]], [cwd]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(args[1], "<string>", "exec"), vars(main))
        else:
            sys.argv, sys.path[:0] = args, [os.path.dirname(args[0])]
            runpy.run_path(args[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        if stop.code is not None and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
