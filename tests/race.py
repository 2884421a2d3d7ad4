"""Processes that do something at the same moment, again and again."""

import json
import subprocess
import sys
import time

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
        command = [sys.executable, "-c", program + _LOOP]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.processes = [subprocess.Popen(command, **pipes) for _ in range(number)]

    def race(self, *arguments):
        """What each returned for its argument, or [the name of what it raised, its message]."""
        moment = time.monotonic() + 0.005  # one clock for all processes
        for process, argument in zip(self.processes, arguments, strict=True):
            self.send(process, argument, moment)
        return [self.receive(process) for process in self.processes]

    @staticmethod
    def send(process, argument, moment=0.0):
        process.stdin.write(json.dumps([moment, argument]) + "\n")
        process.stdin.flush()

    @staticmethod
    def receive(process):
        return json.loads(process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()
