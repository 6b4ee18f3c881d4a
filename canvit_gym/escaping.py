"""Names that come from data (classes, policies, files) for the places where they are shown.

A name may hold markup, line breaks or control codes. Each function returns text that the place shows as it is.
"""

import html as _html
import re
import unicodedata

_INVISIBLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories: control codes, lone surrogates, line and paragraph separators."""
_BIDIRECTIONAL = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""They make what follows read backwards."""

_MARKUP = re.compile(r"([\\`*|$~]|<(?=[\w/!?])|&(?=#?\w+;)|\](?=[(\[:])|(?<!\w)_|_(?!\w))")
"""What Markdown would not show as it is. Brackets that begin no link, as those of an interval, are left as they are."""


def visible(text: str) -> str:
    """In one line, with control codes spelled out: for terminals and plots.

    >>> print(visible("red\\x1b[31m\\nline"))
    red\\x1b[31m\\nline
    """
    return "".join(_spelled(c) if _hidden(c) else c for c in text)


def html(text: str) -> str:
    """For HTML, also within quotes of an attribute.

    >>> html('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return _html.escape(visible(text))


def markdown(text: str) -> str:
    """For Markdown, also in a cell of a table.

    >>> print(markdown("a|b $x$ <i> [1, 2]"))
    a\\|b \\$x\\$ \\<i> [1, 2]
    """
    return _MARKUP.sub(r"\\\1", visible(text))


def markdown_code(text: str) -> str:
    """As code within a line of Markdown.

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
