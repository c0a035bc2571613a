"""The tests' own way to start a process is a new process as ``python`` would start it."""

import os
import signal
import subprocess

import processes
import pytest


def test_code_arguments_and_streams(tmp_path):
    code = "import os, sys; print(sys.argv[1:], os.getcwd(), os.environ['WHAT']); print('no', file=sys.stderr); sys.exit(3)"
    done = processes.run("-c", code, "a", 2, env={**os.environ, "WHAT": "this"}, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"['a', '2'] {tmp_path} this\n", "no\n")
    assert processes.run("-c", "print(1); raise ValueError('x')", merge=True).stdout.count("ValueError: x\n") == 1


def test_nothing_of_ours_is_there_yet_and_exit_functions_run():
    code = (
        "import atexit, sys; atexit.register(print, 'end'); print('torchsmith' in sys.modules, 'torch' in sys.modules)"
    )
    assert processes.run("-c", code, check=True).stdout == "False True\nend\n"


def test_a_folder_of_PYTHONPATH_comes_first(tmp_path):
    (tmp_path / "click.py").write_text("print('mine')")
    done = processes.run("-c", "import click", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.stdout == "mine\n"


def test_a_module_and_what_it_raises():
    with pytest.raises(subprocess.CalledProcessError):
        processes.run("-m", "json.tool", "/nowhere", check=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_signals_end_it(number):
    process = processes.start("-c", "import time; print('on', flush=True); time.sleep(60)")
    assert process.stdout.readline() == "on\n" and process.poll() is None
    process.send_signal(number)
    assert process.wait(30) == -number


def test_ctrl_c_is_a_keyboard_interrupt_and_time_is_limited():
    process = processes.start("-c", "import time; print('on', flush=True); time.sleep(60)")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(30)[1]
    with pytest.raises(subprocess.TimeoutExpired):
        processes.run("-c", "import time; time.sleep(60)", timeout=1)
