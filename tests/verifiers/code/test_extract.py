import time

import pytest

from primecli.verifiers.code.extract import Program, extract_program


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("```python\na\n```\n```py\nb\n```\n```bash\nc\n```", "b\n"),
        ("```\na\n```", "a\n"),
        ("```cpp\na\n```", "a\n"),
        ("```Python3\r\na\r\n```", "a\n"),
        ("```python\na = '''\n  ``` in text\n'''\n```", "a = '''\n  ``` in text\n'''\n"),
        ("````python\n```\n````", "```\n"),
        ("~~~python\na\n~~~", "a\n"),
        ("```python title='x'\na\n```", "a\n"),
        ("```python\na", "a"),
        ("```python\na```\nfin", "a"),
        ("a = 1", "a = 1"),
        ("\n    return 1\n", "    return 1"),
    ],
)
def test_extraction(response: str, code: str) -> None:
    assert extract_program(response) == Program(code, "```" in response or "~~~" in response)


@pytest.mark.parametrize("response", ["", "```python\n\n```", "```\na\n```\n```\nb\n```", "x" * 300_000])
def test_nothing_to_extract(response: str) -> None:
    assert extract_program(response) is None


def test_the_time_is_linear_in_the_length_of_the_response() -> None:
    size = 200_000
    start = time.process_time()
    for response in (
        "```" + "a" * size + "`",
        "```" + " " * size + "`",
        "~" * size + "`",
        "`" * size + "x`",
        "```a\nb```\n" * (size // 10),
        "```\n" + "` " * size,
        "```\n```" + " " * size + "x",
        "".join("`" * length + "\n" for length in range(3, 500)),
    ):
        extract_program(response)
    assert time.process_time() - start < 2
