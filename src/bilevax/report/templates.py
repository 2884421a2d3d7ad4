"""The templates of this room, filled in."""

from collections.abc import Mapping
from importlib.resources import files


def render(template: str, page: Mapping[str, object]) -> str:
    """A template of this room, filled in; what a record says is escaped."""
    # Where nothing is rendered, it need not be installed.
    import jinja2

    room = files("bilevax.report")
    # Escaped, a label can become text and nothing else; strict, a section that lacks a part fails its test.
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: room.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(page=page)
