"""Names from data do not become markup, line breaks or control codes where they are shown."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvit_gym.escaping import html, markdown, markdown_code, visible

NAMES = [
    "plain (scale=0.55)", "$$", "a $x^2$ b", "50 % | half", "<script>alert(1)</script>", "say \"it\" & 'so'",
    "a_b _c_ *d*", "two\nlines\r\n", "\x1b[31mred\x07\x00", "back\\slash", "`code`", "[link](x)", "naïve 日本語",
    "left\u202eright", "&lt;",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stays_in_its_line(name: str) -> None:
    for escape in (visible, html, markdown, markdown_code):
        assert len(escape(name).splitlines()) == 1 and not re.search(r"[\x00-\x1f\x7f\u202e]", escape(name))


def test_ordinary_names_are_shown_as_they_are() -> None:
    for name in (
        "EG-C2F",
        "1.5 [−0.3, 2.1] % < 3",
        "entropy_greedy(scale=(0.34, 0.24), centers=12)",
        "naïve 日本語",
        "👨‍👩‍👧 family",
    ):
        assert visible(name) == markdown(name) == name
    assert visible("a\tb\\n") == "a\\tb\\n"


class Text(HTMLParser):
    """What a browser shows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.shown = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes = attrs

    def handle_data(self, data: str) -> None:
        self.shown += data


@given(st.text())
def test_html_shows_a_name_and_makes_no_element_of_it(name: str) -> None:
    page = Text(f'<p title="{html(name)}">{html(name)}</p>')
    assert page.tags == ["p"] and page.shown == visible(name) and page.attributes == [("title", visible(name))]


@given(st.text())
def test_a_cell_stays_one_cell(name: str) -> None:
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", markdown(name))) == 0
    assert not re.search(r"(?<!\\)(?:\\\\)*(<[\w/!?]|\]\(|\*|\$)", markdown(name))


@given(st.text())
def test_code_ends_where_it_should(name: str) -> None:
    code = markdown_code(name)
    fence = re.match("`+", code)
    assert fence is not None and code.endswith(fence[0])
    inner = code[len(fence[0]) : -len(fence[0])]
    assert fence[0] not in re.findall("`+", inner) and visible(name) in inner
