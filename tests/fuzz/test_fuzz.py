from __future__ import annotations

import json

from primecli import catalog
from tests.fuzz.targets import KINDS, targets
from tests.fuzz.values import DEEP, DIGITS, RAW, dumps


def test_every_command_has_targets() -> None:
    assert {target.command for target in targets()} == set(catalog.NAMES)


def test_every_kind_of_file_is_read_by_some_command() -> None:
    assert {target.kind for target in targets()} == set(KINDS)


def test_values_that_json_would_not_write() -> None:
    text = dumps({"a": RAW + "1e400", "b": [RAW + "NaN", "\ud800"], "c": DIGITS, "d": DEEP})
    assert text.startswith(b'{"a": 1e400, "b": [NaN, "\\ud800"], "c": 9999')
    assert text.endswith(b"]]}")
    assert json.loads(dumps(RAW + '{"a":{"a":1}}')) == {"a": {"a": 1}}
