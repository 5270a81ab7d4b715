"""A verifier for random models: it needs nothing but the text."""


def parity(response: str, ground_truth: str | None) -> float:
    """1 for every other response.

    >>> parity("ab", None), parity("ac", None)
    (1.0, 0.0)
    """
    return float(sum(map(ord, response)) % 2)
