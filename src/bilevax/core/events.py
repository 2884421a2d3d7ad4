"""Values as JSON has them: what files hold, and what a run says while it goes on."""

from collections.abc import Callable
from typing import Any, TypeAlias

Plain: TypeAlias = dict[str, Any]
"""JSON values by name."""

Event: TypeAlias = Plain
"""A record of a run, of which ``kind`` says what the other values mean."""

Callback: TypeAlias = Callable[[Event], bool | None]
"""Called with a record of each step, or before each fold; True ends what goes on."""
