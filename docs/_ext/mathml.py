"""Mathematics as MathML, made when the site is built: pages need no script and no font for it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx


def inline(translator: Any, node: "nodes.math") -> None:
    """``$...$`` in a line."""
    _write(translator, node, display=False)


def block(translator: Any, node: "nodes.math_block") -> None:
    """``$$...$$`` by itself."""
    translator.body.append(translator.starttag(node, "div", CLASS="math notranslate nohighlight"))
    _write(translator, node, display=True)


def _write(translator: Any, node: Any, *, display: bool) -> None:
    from docutils import nodes
    from math_core import LatexError, LatexToMathML

    try:
        translator.body.append(LatexToMathML().convert_with_local_state(node.astext(), displaystyle=display))
    except LatexError as error:
        message = f"no formula: {node.astext()!r}: {error}"
        raise ValueError(message) from None
    if display:
        translator.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: "Sphinx") -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
