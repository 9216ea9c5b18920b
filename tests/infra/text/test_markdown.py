from __future__ import annotations

import pytest

from infra.text.markdown import with_part


def test_a_part_of_a_page_is_replaced_and_the_rest_stays():
    page = "# x\n<!-- nano: begin -->\nold\n<!-- nano: end -->\nmore <!-- other: end -->\n"
    assert with_part(page, "nano", "new\n") == page.replace("old", "new")
    assert with_part(with_part(page, "nano", "new\n"), "nano", "old\n") == page


@pytest.mark.parametrize("page", ["", "<!-- nano: begin -->\nold\n", "old\n<!-- nano: end -->"])
def test_a_page_without_the_marks_is_refused(page):
    with pytest.raises(ValueError, match="the page lacks the marks of nano"):
        with_part(page, "nano", "new\n")
