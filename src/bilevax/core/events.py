"""Values as JSON has them: what files hold, and what a run says while it goes on."""

from typing import Any, TypeAlias

Plain: TypeAlias = dict[str, Any]
"""JSON values by name."""

Event: TypeAlias = Plain
"""A record of a run, of which ``kind`` says what the other values mean."""
