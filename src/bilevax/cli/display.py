"""What the user sees while a table is tuned, and at the end."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from bilevax.cli.output import Output
from bilevax.core.events import Event
from bilevax.core.run_files import REPORT
from bilevax.core.text import clean, counted, duration, short_count
from bilevax.report.run import read_run
from bilevax.report.summary import NORMAL, ending, verdict
from bilevax.report.words import SHOWN_ANYHOW

if TYPE_CHECKING:
    from bilevax.study.study import Study

_BLOCKS = "▁▂▃▄▅▆▇█"
_SECONDS_BETWEEN_LINES = 5.0


class Display:
    """Progress on stderr: a live line on a terminal, an occasional plain line elsewhere.

    Args:
        steps: the largest number of outer steps.
    """

    def __init__(self, steps: int) -> None:
        self._console = Output(progress=True)
        self._steps = steps
        self._losses: list[float] = []
        self._status = ""
        self._stage = ""
        self._since = self._last_line = -math.inf
        self._spinner = Spinner("dots")
        self._live = Live(console=self._console, get_renderable=self._render, transient=True, refresh_per_second=8)

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Show no more."""
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show a record of the study."""
        match event["kind"]:
            case "stage":
                self._stage, self._since = event["name"], time.monotonic()
                if event.get("long") and not self._console.is_terminal:
                    self._line(f"{self._stage} ...")
            case "note":
                self._line(f"note: {event['text']}")
            case "data":
                self._line(_data_line(event))
            case "step":
                self._step(event)
            case "gap":
                self._end_of_steps()

    def _line(self, text: str) -> None:
        self._console.print(Text(clean(text)), soft_wrap=not self._console.is_terminal)

    def _step(self, event: Event) -> None:
        loss = event.get("validation_loss")
        if loss is not None:
            self._losses.append(loss)
        best = _loss(min(self._losses, default=None))
        self._status = (
            f"step {event['step']} of at most {self._steps}: validation loss {_loss(loss)}, best {best}, "
            f"{short_count(event['visits'])} row visits"
        )
        # A log file gets a line now and then, a terminal has the live one.
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._line(f"{self._status}, {duration(now - self._since)}")

    def _end_of_steps(self) -> None:
        if self._status:
            first, best = _loss(self._losses[0] if self._losses else None), _loss(min(self._losses, default=None))
            steps = counted(len(self._losses), "step")
            self._line(
                f"tuned in {duration(time.monotonic() - self._since)}, {steps}: validation loss {first} to {best}"
            )
        self._status = ""

    def _render(self) -> RenderableType:
        if not self._status:
            self._spinner.update(text=Text(clean(self._stage)))
            return self._spinner
        self._spinner.update(text=Text(self._status))
        return Group(
            self._spinner, Text(f"  {sparkline(self._losses, max(10, self._console.width - 4))}", style="cyan")
        )


def sparkline(values: list[float], width: int) -> str:
    """Values as a row of blocks, the last ``width`` of evenly chosen ones.

    >>> sparkline([1.0, 0.5, 0.25, 0.0], 10)
    '█▅▃▁'
    """
    if len(values) > width:
        values = [values[i * (len(values) - 1) // (width - 1)] for i in range(width)]
    if not values:
        return ""
    # The lowest value is the lowest block; where all are equal, all are.
    low, high = min(values), max(values)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in values)


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _data_line(event: Event) -> str:
    rows = event["rows"]
    missing = event["missing_cells"]
    return (
        f"{sum(rows.values()):,} rows: {rows['train']:,} train, {rows['validation']:,} validate, {rows['test']:,} test"
        f"; {counted(event['features'], 'column')} become {counted(event['design_columns'], 'term')}; "
        f"{counted(len(event['classes']), 'class')}" + (f"; {counted(missing, 'missing cell')}" if missing else "")
    )


def print_outcome(study: "Study", directory: Path) -> None:
    """The comparison, the verdict, and where everything is, on standard output."""
    console = Output()
    console.print(_comparison(study))
    run = read_run(directory)
    console.print(Text(verdict(run.records, run.config).sentence))
    gap = study.of_kind("gap")[0]
    if gap["validation_gap"] is not None:
        error = f" ± {NORMAL * gap['standard_error']:.4f}" if gap["standard_error"] is not None else ""
        fall = f"{gap['validation_gap']:.4f}{error}"
        console.print(Text(f"Part of the fall of the tuning loss that the validation rows do not confirm: {fall}"))
    for notice in ending(run.records):
        console.print(Text(notice))
    if study.interrupted:
        console.print(Text(f"go on   bilevax resume {clean(directory)}"), soft_wrap=True)
    console.print(Text(f"report  {clean(directory / REPORT)}"), soft_wrap=True)
    console.print(Text(f"apply   bilevax predict {clean(directory)} TABLE"), soft_wrap=True)


def _comparison(study: "Study") -> Table:
    models = study.of_kind("comparison")
    paired = {record["name"]: record for record in study.of_kind("paired")}
    name = models[0]["score_name"]
    # Log-loss and accuracy have columns already.
    scored = name not in SHOWN_ANYHOW
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("on the test rows")
    headings = ("log-loss, 95 %", "tuned minus it, 95 %", "accuracy", *((name,) if scored else ()), "seconds")
    for heading in headings:
        table.add_column(clean(heading), justify="right", no_wrap=True)
    for model in models:
        difference = paired.get(model["name"])
        cells = [
            clean(model["name"]),
            f"{model['test_log_loss']:.4f} ± {NORMAL * model['test_log_loss_se']:.4f}",
            "" if difference is None else f"{difference['low']:+.4f} to {difference['high']:+.4f}",
            f"{model['test_accuracy']:.4f}",
            *((_loss(model["score"]),) if scored else ()),
            f"{model['seconds']:.1f}",
        ]
        table.add_row(*map(Text, cells))
    return table
