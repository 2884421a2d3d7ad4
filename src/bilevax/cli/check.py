"""``bilevax check``: audit a problem that a module or a file names."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from bilevax.cli.place import require_free
from bilevax.core import errors
from bilevax.core.errors import BilevaxError, UserCodeError
from bilevax.core.events import Plain
from bilevax.core.text import clean

_FOUND_ERRORS = 1

# -P: a module of the user's that has the name of one of Python's is not taken for it.
_CHILD = [
    "-P",
    "-c",
    "import json, sys; sys.path[:] = json.loads(sys.argv[1])['path']; from bilevax.cli.user_code import main; main()",
]


def run(name: str, html: Path | None, *, seed: int, force: bool, debug: bool = False) -> int:
    """Print the findings, and write them as a page where that is wanted; 1 where there is an error among them."""
    if html is not None:
        require_free(html, force=force)
    found = audited({"name": name, "seed": seed, "debug": debug, "path": sys.path})
    _show(name, found["findings"], found["figures"])
    if html is not None:
        from bilevax.report import write_findings

        print(clean(write_findings(html, name, found["findings"], found["figures"])))
    return _FOUND_ERRORS if found["worst"] == "error" else 0


def audited(order: Plain) -> Plain:
    """The ``findings``, ``figures`` and ``worst`` severity of a problem, audited in a process of its own.

    Raises:
        UserCodeError: the process ended before the audit did.
        BilevaxError: what was wrong, as the process said it.
    """
    child = subprocess.Popen([sys.executable, *_CHILD, json.dumps(order)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    told: list[bytes] = []
    # In a thread, which need not end: processes that the user's code began may hold the line open.
    reader = threading.Thread(target=_read, args=(child.stdout.fileno(), told), daemon=True)
    reader.start()
    try:
        code = child.wait()
    finally:
        child.kill()
        child.wait()
        reader.join(1.0)
        if not reader.is_alive():
            child.stdout.close()
    # the last line may be half of one
    records = [json.loads(line) for line in b"".join(told).split(b"\n")[:-1]]
    last: Plain = records[-1] if records else {"stage": "before it began"}
    if "error" in last:
        kind = getattr(errors, last["error"], None)
        if isinstance(kind, type) and issubclass(kind, BilevaxError):
            raise kind(last["text"])
        raise RuntimeError(f"{last['error']}: {last['text']}")
    if "stage" in last:
        raise UserCodeError(f"{order['name']} {_ended(code)} {last['stage']}; nothing was found out")
    return last


def _read(line: int, told: list[bytes]) -> None:
    while piece := os.read(line, 1 << 16):
        told.append(piece)


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended the process, with exit code {code},"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"crashed the process ({name}{', perhaps for want of memory' if name == 'SIGKILL' else ''})"


def _show(name: str, records: list[dict[str, str]], figures: dict[str, float]) -> None:
    """The findings as a table on standard output."""
    from rich.table import Table
    from rich.text import Text

    from bilevax.cli.output import Output

    colours = {"error": "bold red", "warning": "yellow", "note": "cyan"}
    console = Output()
    if records:
        table = Table(box=None, padding=(0, 2, 1, 0), header_style="bold")
        for heading in ("severity", "code", "what was measured, and what to do"):
            table.add_column(heading)
        for record in records:
            severity, code, measured, advice = (clean(record[n]) for n in ("severity", "code", "measured", "advice"))
            table.add_row(Text(severity, colours[severity]), Text(code), Text(f"{measured}\n{advice}"))
        console.print(table)
    else:
        console.print(Text(f"{clean(name)}: nothing found"))
    for figure, value in figures.items():
        console.print(Text(f"{clean(figure)}: {value:.4g}"))
