from __future__ import annotations

import io
import json

from rich.console import Console

from primecli.analysis.terminal import plain_table, print_in_full, printable_text, safe_json


def test_json_stays_what_it_is() -> None:
    text = "a\x9b\u202e\U000e0041 数🎉\x1b"
    written = safe_json(json.dumps({"a": text}, ensure_ascii=False))
    assert json.loads(written) == {"a": text}
    assert "数🎉" in written
    assert written.isprintable()


def test_markup_is_text() -> None:
    console = Console(file=io.StringIO(), width=40)
    console.print(printable_text("[bold]a[/]\x1b"))
    assert console.file.getvalue() == "[bold]a[/]␛\n"  # type: ignore[attr-defined]


def test_a_table_is_printed_in_full_on_a_narrow_terminal() -> None:
    table = plain_table()
    table.add_column("number", no_wrap=True)
    table.add_column("another", no_wrap=True)
    table.add_row("1234567.25", "9876543.75")
    console = Console(file=io.StringIO(), width=8)
    print_in_full(console, table)
    assert "1234567.25  9876543.75" in console.file.getvalue()  # type: ignore[attr-defined]
    assert console.width == 8
