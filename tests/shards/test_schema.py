from __future__ import annotations

from pathlib import Path

from primecli.shards import schema

PAGE = Path(__file__).parents[2] / "docs" / "columns.md"


def test_the_docs_show_the_table_of_columns() -> None:
    assert PAGE.read_text(encoding="utf-8").endswith(schema.markdown_table())


def test_every_column_has_an_arrow_type_and_a_known_stage() -> None:
    from primecli.catalog import NAMES

    for column in schema.COLUMNS:
        assert str(column.arrow_type()).replace("float", "float32").replace("element", "item")
        assert column.stage in NAMES
