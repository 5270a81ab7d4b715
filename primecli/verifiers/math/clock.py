"""Times of day: `3:30 PM`, `15:30`, `noon`."""

from __future__ import annotations

import re

_TIME = re.compile(
    r"(\d{1,2}):(\d\d)(?::(\d\d))?\s*(?:([ap])\.?\s?m\.?|(noon|hours|h|o['’]clock)"
    r"|(?:in the |at )?(morning|afternoon|evening|night))?",
    re.IGNORECASE,
)
_FULL_HOUR = re.compile(r"(\d{1,2})\s?o['’]?\s?clock(?:\s*([ap])\.?\s?m\.?)?", re.IGNORECASE)
_NAMED = {
    **dict.fromkeys(("noon", "12 noon", "12:00 noon", "midday", "12 o'clock noon"), ("12:00", "pm")),
    **dict.fromkeys(("midnight", "12 midnight", "12:00 midnight"), ("0:00", "")),
}
_HALVES = {"morning": "am", "afternoon": "pm", "evening": "pm"}


def read_time(text: str) -> tuple[str, str] | None:
    """A time of day as hours:minutes and am, pm or ""; None for anything else.

    >>> read_time("08:30 p.m."), read_time("noon"), read_time("3 o'clock"), read_time("8:75")
    (('8:30', 'pm'), ('12:00', 'pm'), ('3:00', ''), None)
    """
    named = _NAMED.get(text.lower().removeprefix("at ").strip())
    if named is not None:
        return named
    full = _FULL_HOUR.fullmatch(text)
    if full is not None and int(full.group(1)) <= 12:
        return f"{int(full.group(1))}:00", full.group(2).lower() + "m" if full.group(2) else ""
    time = _TIME.fullmatch(text)
    if time is None or int(time.group(1)) > 24 or int(time.group(2)) > 59:
        return None
    clock = f"{int(time.group(1))}:{time.group(2)}" + (f":{time.group(3)}" if time.group(3) else "")
    part = (time.group(6) or "").lower()
    if part == "night":
        part = "evening" if 5 <= int(time.group(1)) < 12 else "morning"
    half = time.group(4).lower() + "m" if time.group(4) else _HALVES.get(part, "")
    return clock, "" if int(time.group(1)) > 12 else half


def same_time(clock: str, half: str, other: str, other_half: str) -> bool:
    """Whether two times are the same; one up to 12:59 without am or pm may be either of the two.

    >>> same_time("3:30", "pm", "15:30", ""), same_time("3:30", "pm", "3:30", ""), same_time("3:30", "", "15:30", "")
    (True, True, False)
    """
    if clock == other:
        return half == other_half or not (half and other_half)
    return bool(_of_24_hours(clock, half)) and _of_24_hours(clock, half) == _of_24_hours(other, other_half)


def _of_24_hours(clock: str, half: str) -> str:
    """The time from 0:00 to 23:59; "" where it may be one of two."""
    hour, _, rest = clock.partition(":")
    if half:
        return f"{int(hour) % 12 + (12 if half == 'pm' else 0)}:{rest}"
    return f"{int(hour) % 24}:{rest}" if not 1 <= int(hour) <= 12 else ""
