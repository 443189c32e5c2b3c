"""Processes that work together, started and stopped here, within a bound on time."""

import os
import socket
import subprocess
import sys
import tempfile
import time


def free_port():
    """A port that the operating system says is free."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_together(commands, seconds):
    """What each of the Python commands prints, once all have ended well.

    The first that fails, or the end of the time, ends the others too: a process whose peer is gone
    would wait for it.
    """
    # They import what can be imported here.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryDirectory() as folder:
        logs = [os.path.join(folder, str(i)) for i in range(len(commands))]
        processes = []
        try:
            for command, log in zip(commands, logs, strict=True):
                with open(log, "w") as out, open(log + ".errors", "w") as errors:
                    run = [sys.executable, *command]
                    processes.append(
                        subprocess.Popen(run, stdout=out, stderr=errors, env=environment)
                    )
            _wait(processes, logs, seconds)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [_text(log) for log in logs]


def _wait(processes, logs, seconds):
    end = time.monotonic() + seconds
    while True:
        codes = [process.poll() for process in processes]
        for number, code in enumerate(codes):
            if code not in (None, 0):
                raise AssertionError(
                    f"process {number} of {len(codes)} ended with {code}:\n"
                    + _text(logs[number] + ".errors")
                )
        if all(code == 0 for code in codes):
            return
        if time.monotonic() > end:
            waiting = [number for number, code in enumerate(codes) if code is None]
            errors = "\n".join(_text(logs[number] + ".errors") for number in waiting)
            raise AssertionError(f"after {seconds} s still running: processes {waiting}\n{errors}")
        time.sleep(0.05)


def _text(path):
    with open(path) as file:
        return file.read()
