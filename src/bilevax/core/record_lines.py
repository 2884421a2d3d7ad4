"""The records of a run, as they are read from its ``metrics.jsonl``."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from bilevax.core.errors import CorruptError
from bilevax.core.run_records import RUN_RECORDS, Record

R = TypeVar("R", bound=Record)


class Records(tuple[Record, ...]):
    """The records of a run, in their order."""

    def of(self, kind: type[R]) -> list[R]:
        """Those of one kind."""
        return [record for record in self if isinstance(record, kind)]

    def last(self, kind: type[R]) -> R | None:
        """The last of a kind, if there is one."""
        return next((record for record in reversed(self) if isinstance(record, kind)), None)


def read_records(content: bytes, name: str, kinds: TypeAdapter[Record] = RUN_RECORDS) -> Records:
    """The records of ``metrics.jsonl``; its last line may be torn: a run that was killed while it wrote.

    Args:
        content: of the file.
        name: of it, for messages.
        kinds: those that there may be.

    Raises:
        CorruptError: a line is no record; the message names it.
    """
    return Records(_read(content.split(b"\n"), name, kinds))


def _read(lines: Sequence[bytes], name: str, kinds: TypeAdapter[Record]) -> Iterable[Record]:
    for i, line in enumerate(lines, 1):
        try:
            if line.strip():
                yield kinds.validate_json(line)
        except ValidationError as e:
            # a whole line ends with a newline, after which an empty one is left
            if i == len(lines) and e.errors()[0]["type"] == "json_invalid":
                return
            raise CorruptError(f"{name}:{i} is not a record; the file was damaged after it was written") from None
