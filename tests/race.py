"""Processes that do something at the same moment, again and again."""

import json
import select
import subprocess
import sys
import time
from pathlib import Path

_HERE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
"""

_LOOP = """
import json, sys, time
for line in sys.stdin:
    moment, argument = json.loads(line)
    while time.monotonic() < moment:
        pass
    try:
        out = act(argument)
    except Exception as e:
        out = [type(e).__name__, str(e)]
    print(json.dumps(out), flush=True)
"""


class Racers:
    """Processes that run ``program``, which defines ``act(argument)``, at the same moments.

    Args:
        program: Python, whose imports are done once.
        number: of processes.
    """

    def __init__(self, program, number=2):
        command = [sys.executable, "-c", _HERE + program + _LOOP]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.processes = [subprocess.Popen(command, **pipes) for _ in range(number)]

    def start(self, *arguments):
        """Each with its argument, at the same moment."""
        moment = time.monotonic() + 0.005  # one clock for all processes
        for process, argument in zip(self.processes, arguments, strict=True):
            self.send(process, argument, moment)

    def first(self):
        """The process that is the first to answer."""
        ready, _, _ = select.select([process.stdout for process in self.processes], [], [], 60)
        return next(process for process in self.processes if process.stdout is ready[0])

    @staticmethod
    def send(process, argument, moment=0.0):
        process.stdin.write(json.dumps([moment, argument]) + "\n")
        process.stdin.flush()

    @staticmethod
    def receive(process):
        """What it returned, or [the name of what it raised, its message]."""
        return json.loads(process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()
