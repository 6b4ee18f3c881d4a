"""Escape names that come from data (classes, policies, files).

A name may contain markup, line breaks or control codes. Each function returns text that is displayed literally.
"""

import html as _html
import re
import unicodedata

_INVISIBLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories: control codes, lone surrogates, line and paragraph separators."""
_BIDIRECTIONAL = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that change the direction of text."""

_MARKUP = re.compile(r"([\\`*|$~]|<(?=[\w/!?])|&(?=#?\w+;)|\](?=[(\[:])|(?<!\w)_|_(?!\w))")
"""What Markdown would not show literally. Brackets that do not begin a link, like those of intervals, are kept."""


def visible(text: str) -> str:
    """Escape for terminals and plots: in one line, with control codes spelled out.

    >>> print(visible("red\\x1b[31m\\nline"))
    red\\x1b[31m\\nline
    """
    return "".join(_spelled(c) if _hidden(c) else c for c in text)


def html(text: str) -> str:
    """Escape for HTML, including quoted attributes.

    >>> html('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return _html.escape(visible(text))


def markdown(text: str) -> str:
    """Escape for Markdown, including table cells.

    >>> print(markdown("a|b $x$ <i> [1, 2]"))
    a\\|b \\$x\\$ \\<i> [1, 2]
    """
    return _MARKUP.sub(r"\\\1", visible(text))


def markdown_code(text: str) -> str:
    """Format as inline code in Markdown.

    >>> print(markdown_code("a `b`"))
    `` a `b` ``
    """
    text = visible(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " * (longest > 0)
    return f"{fence}{space}{text}{space}{fence}"


def _hidden(character: str) -> bool:
    return character in _BIDIRECTIONAL or unicodedata.category(character) in _INVISIBLE


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode()
