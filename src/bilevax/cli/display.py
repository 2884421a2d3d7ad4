"""What the user sees while a table is tuned, and at the end."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from bilevax.cli.output import Output
from bilevax.core.events import Event, Plain
from bilevax.core.intervals import NORMAL
from bilevax.core.record_lines import Records
from bilevax.core.run_files import REPORT
from bilevax.core.run_records import Compared, End, Note, Paired, Scoring
from bilevax.core.text import clean, counted, duration, short_count
from bilevax.report.summary import ending, loss_places, verdict
from bilevax.report.words import asked_for, loss_of, places_for

_BLOCKS = "▁▂▃▄▅▆▇█"
_SECONDS_BETWEEN_LINES = 5.0


class Display:
    """Progress on stderr: a live line on a terminal, an occasional plain line elsewhere.

    Args:
        steps: the largest number of outer steps, of a linear model.
        quiet: nothing but faults, and the path of the report at the end.
        as_json: the outcome as one JSON object, on standard output.
    """

    def __init__(self, steps: int, *, quiet: bool = False, as_json: bool = False) -> None:
        self._console = Output(progress=True)
        self._steps, self._quiet, self._as_json = steps, quiet, as_json
        self._losses: list[float] = []
        self._status = ""
        self._stage = ""
        self._since = self._last_line = -math.inf
        self._spinner = Spinner("dots")
        self._live = Live(console=self._console, get_renderable=self._render, transient=True, refresh_per_second=8)

    def __enter__(self) -> "Display":
        if self._console.is_terminal and not self._quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Show no more."""
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show a record of the study."""
        if self._quiet:
            return
        match event["kind"]:
            case "stage" if "done" in event:
                self._progress(event)
            case "stage":
                self._stage, self._since, self._status = event["name"], time.monotonic(), ""
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

    def outcome(self, records: Records, config: Mapping[str, Plain], directory: Path) -> None:
        """The comparison, the verdict, and where everything is, on standard output."""
        console, end, report = Output(), records.last(End), directory / REPORT
        interrupted = end is not None and end.interrupted
        leaks = [note.text for note in records.of(Note) if note.about == "leak"]
        if self._quiet or self._as_json:
            # the one thing without which the rest misleads
            for text in leaks:
                self._line(f"note: {text}")
        if self._as_json:
            print(json.dumps(_as_json(records, verdict(records, config).sentence, directory)))
            return
        if self._quiet:
            console.print(Text(clean(report)), soft_wrap=True)
            return
        console.print(_comparison(records))
        before = [f"Do not believe this before you have looked at it: {clean(text)}" for text in leaks]
        for text in (verdict(records, config).sentence, *ending(records), *before):
            console.print(Text(text))
        places = {"go on ": f"bilevax resume {clean(directory)}"} if interrupted else {}
        places |= {"report": clean(report), "apply ": f"bilevax predict {clean(directory)} TABLE"}
        for what, text in places.items():
            console.print(Text(f"{what}  {text}"), soft_wrap=True)

    def _line(self, text: str) -> None:
        self._console.print(Text(clean(text)), soft_wrap=not self._console.is_terminal)

    def _progress(self, event: Event) -> None:
        left = event.get("seconds_left")
        rest = "" if left is None else f", about {duration(left)} left"
        self._stage = f"{event['name']}: {event['done']:,} of {event['of']:,}{rest}"
        self._now_and_then(self._stage)

    def _now_and_then(self, text: str) -> None:
        """A log file gets a line now and then, a terminal has the live one."""
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._line(text)

    def _step(self, event: Event) -> None:
        loss = event.get("validation_loss")
        if loss is not None:
            self._losses.append(loss)
        best = _loss(min(self._losses, default=None))
        self._status = (
            f"step {event['step']} of at most {self._steps}: validation loss {_loss(loss)}, best {best}, "
            f"{short_count(event['visits'])} row visits"
        )
        self._now_and_then(f"{self._status}, {duration(time.monotonic() - self._since)}")

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


def _loss(value: float | None, sign: int = 1) -> str:
    return "–" if value is None else f"{sign * value:.4f}"


def _as_json(records: Records, sentence: str, directory: Path) -> Event:
    end = records.last(End)
    return {
        "directory": str(directory),
        "report": str(directory / REPORT),
        "verdict": sentence,
        "interrupted": end is not None and end.interrupted,
        "notes": [{"about": note.about, "text": note.text} for note in records.of(Note)],
        "models": [record.model_dump(mode="json") for record in records.of(Compared)],
        "paired": [record.model_dump(mode="json") for record in records.of(Paired)],
    }


def _data_line(event: Event) -> str:
    rows, missing, terms = event["rows"], event["missing_cells"], event.get("terms")
    parts = [f"{rows['train']:,} train", *([f"{rows['validation']:,} validate"] if rows["validation"] else [])]
    become = "" if terms is None else f" become {counted(terms, 'term')}"
    classes = event.get("classes")
    return (
        f"{sum(rows.values()):,} rows: {', '.join(parts)}, {rows['test']:,} test; "
        f"{counted(event['features'], 'column')}{become}"
        + (f"; {counted(len(classes), 'class')}" if classes else "")
        + (f"; {counted(missing, 'missing cell')}" if missing else "")
    )


def _comparison(records: Records) -> Table:
    models, scoring = records.of(Compared), records.last(Scoring)
    # the score that was asked for, and what of it the kept model has more
    asked, loss = asked_for(scoring), loss_of(scoring)
    scored, places = asked.field == "score", loss_places(models)
    paired = {record.name: record for record in records.of(Paired) if record.measure == asked.field}
    accuracy = any(model.accuracy is not None for model in models) and asked.name != "accuracy"
    minus = "kept minus it, 95 %"
    headings = [asked.name, minus, f"{loss.name}, 95 %"] if scored else [f"{loss.name}, 95 %", minus]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("on the test rows")
    for heading in (*headings, *(("accuracy",) if accuracy else ()), "seconds"):
        table.add_column(clean(heading), justify="right", no_wrap=True)
    for model in models:
        cells = [f"{model.loss:,.{places}f} ± {NORMAL * model.loss_se:,.{places}f}"]
        apart = _interval(paired.get(model.name), asked.sign)
        cells = [_loss(model.score, asked.sign), apart, *cells] if scored else [*cells, apart]
        accurate = [_loss(model.accuracy)] if accuracy else []
        table.add_row(*map(Text, [clean(model.name), *cells, *accurate, f"{model.seconds:.1f}"]))
    return table


def _interval(difference: Paired | None, sign: int) -> str:
    if difference is None:
        return ""
    low, high = sorted((sign * difference.low, sign * difference.high))
    places = places_for((high - low) / 2) if high > low else 4
    return f"{low:+,.{places}f} to {high:+,.{places}f}"
