from __future__ import annotations

from infra.text.templates import filled


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path):
    path = tmp_path / "ask.md"
    path.write_bytes("\ufeffAsk {query}".encode())
    assert filled(path, query="why") == "Ask why"
