"""Rollouts on a terminal: verdict, prompt, the steps with what each adds up to, and their tokens' values as a heat map.

      step  reward              so far   response
▲    1  +0.011      │       +0.011   5+9=4
▼    2  -0.205  ████│       -0.194   4-5=5
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from primecli.analysis import heatmap
from primecli.analysis.rollout import GAP, RATIO, Rollout, Step
from primecli.models.token_text import printable
from primecli.shards import schema

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

UNITS = {
    schema.PROCESS_REWARDS: "beta × nats",
    schema.ROLLOUT_LOGPROBS: "nats",
    schema.PRM_LOGPROBS: "nats",
    schema.REF_LOGPROBS: "nats",
    RATIO: "log of the ratio, nats",
    GAP: "nats",
}
TITLES = {
    schema.PROCESS_REWARDS: "reward",
    schema.ADVANTAGES: "advantage",
    schema.OUTCOME_ADVANTAGES: "advantage",
    schema.PROCESS_ADVANTAGES: "advantage",
    schema.RETURNS: "return",
    schema.VALUES: "value",
    schema.ROLLOUT_LOGPROBS: "logprob",
    schema.PRM_LOGPROBS: "logprob",
    schema.REF_LOGPROBS: "logprob",
    RATIO: "log ratio",
    GAP: "gap",
}
VERDICT_STYLES = {"correct": "bold #ffffff on #1a7f37", "wrong": "bold #ffffff on #b3261e"}
OTHER_VERDICT = "bold #101010 on #d4a72c"
PROMPT_LINES = 12
MOST_DECIMALS = 6
SHOWN_TEXT = 120  # characters of an answer or a failure
BAR = 4  # cells on either side of 0
WIDE = 70  # cells from which a step has a bar and the sum so far
GAP_BETWEEN = 3  # cells between two rollouts
LOWEST, HIGHEST = "▼", "▲"


class Screen:
    """Draws rollouts. measure: what their values are. scale: the end of the colour scale; None is the largest value of
    the rollouts that are drawn together."""

    def __init__(self, console: Console, paint: heatmap.Paint, measure: str, scale: float | None = None) -> None:
        self.console = console
        self.paint = paint
        self.measure = measure
        self.scale = scale

    def show(self, rollouts: Sequence[Rollout]) -> None:
        """One rollout over the whole width, or two beside each other on one scale."""
        scale = self.scale or max(rollout.largest() for rollout in rollouts)
        largest = max(abs(step.total) for rollout in rollouts for step in rollout.steps)
        width = (self.console.width - GAP_BETWEEN * (len(rollouts) - 1)) // len(rollouts)
        narrow = width < WIDE
        same_prompt = len({rollout.columns.get(schema.PROMPT) for rollout in rollouts}) == 1
        self._print([list(self._origin(rollouts[0], self.console.width))], self.console.width)
        self._print([list(self._head(rollout, width)) for rollout in rollouts], width)
        prompts = rollouts[:1] if same_prompt else rollouts
        self._print([self._prompt(one, width if len(prompts) > 1 else self.console.width) for one in prompts], width)
        if not all(rollout.spelled for rollout in rollouts):
            self._print([self._response(rollout, width) for rollout in rollouts], width)
        self._print([list(self._steps(rollout, width, scale, largest, narrow)) for rollout in rollouts], width)
        self._print([list(self._ends(rollout, width)) for rollout in rollouts], width)
        self._print([[self._legend(scale)]], self.console.width)

    def rule(self) -> None:
        """A line between two that are shown one after another."""
        self.console.print("─" * self.console.width, style="dim", end="\n\n")

    def _print(self, columns: Sequence[Sequence[Text]], width: int) -> None:
        """Lines that fit their width already, beside each other; then an empty line."""
        from rich.text import Text

        for row in zip_longest(*columns):
            line = Text(no_wrap=True)
            for place, part in enumerate(row):
                line.append(" " * (place * (width + GAP_BETWEEN) - line.cell_len))
                line.append_text(part or Text())
            if self.paint.colors == "none":
                line.rstrip()
            self.console.print(line, no_wrap=True, overflow="ignore", crop=False)
        self.console.print()

    def _origin(self, rollout: Rollout, width: int) -> Iterator[Text]:
        """What rollouts of one group have in common."""
        columns = rollout.columns
        facts = [("group", str(columns.get(schema.GROUP_ID)))]
        facts += [("source", columns[schema.DATA_SOURCE])] if columns.get(schema.DATA_SOURCE) else []
        facts += [("ground truth", _short(columns[schema.GROUND_TRUTH]))] if columns.get(schema.GROUND_TRUTH) else []
        yield from _fold(_facts([(str(rollout.place.shard.path), "")]), width)
        yield from _fold(_facts(facts), width)

    def _head(self, rollout: Rollout, width: int) -> Iterator[Text]:
        from rich.text import Text

        columns = rollout.columns
        verdict = columns.get(schema.VERDICT)
        if verdict is not None:
            name = printable(verdict).upper()
            style = VERDICT_STYLES.get(verdict, OTHER_VERDICT) if self.paint.colors != "none" else ""
            line = Text(f" {name} " if style else name, style=style, no_wrap=True)
            outcome = columns.get(schema.OUTCOME_REWARD)
            facts = [("answer", _short(columns.get(schema.EXTRACTED_ANSWER)))]
            facts.append(("outcome reward", "none" if outcome is None else f"{outcome:g}"))
            yield from _fold(Text("   ").join([line, _facts(facts)]), width)
        if columns.get(schema.TESTS_TOTAL):
            passed = f"{columns.get(schema.TESTS_PASSED)} of {columns[schema.TESTS_TOTAL]}"
            yield from _fold(_facts([("tests passed", passed)]), width)
        for name in (schema.FIRST_FAILURE, schema.VERIFIER_DETAIL):
            if columns.get(name):
                yield from _fold(_facts([(name.replace("_", " "), _short(columns[name]))]), width)
        size, finish = columns.get(schema.GROUP_SIZE), columns.get(schema.FINISH_REASON)
        sample = f"{columns.get(schema.SAMPLE_INDEX)}" + (f" (0 to {size - 1})" if size else "")
        tokens = f"{len(rollout.values):,}" + (f", ended by {finish}" if finish else "")
        facts = [("row", str(rollout.place.row)), ("sample", sample), ("tokens", tokens)]
        yield from _fold(_facts(facts), width)

    def _prompt(self, rollout: Rollout, width: int) -> list[Text]:
        from rich.text import Text

        lines = _lines(str(rollout.columns.get(schema.PROMPT, "")), width - 2)
        if len(lines) > PROMPT_LINES:  # of a long one the question is near the end
            left_out = len(lines) - PROMPT_LINES + 1
            lines = [f"… {left_out} lines more, see --json", *lines[left_out:]]
        return [Text(f"│ {line}", style="dim", no_wrap=True) for line in lines]

    def _response(self, rollout: Rollout, width: int) -> list[Text]:
        """The text as it was stored, for where no tokenizer says which of it is which token."""
        from rich.text import Text

        return [Text(line, no_wrap=True) for line in _lines(str(rollout.columns.get(schema.RESPONSE, "")), width)]

    def _steps(self, rollout: Rollout, width: int, scale: float, largest: float, narrow: bool) -> Iterator[Text]:
        """A line for each step, and further ones where its text is longer."""
        from rich.cells import cell_len
        from rich.text import Text

        number = _Numbers([step.total for step in rollout.steps] + [step.cumulative for step in rollout.steps])
        title = TITLES[self.measure]
        cells = max(number.width, len(title))
        gutter = 1 + 5 + 2 + cells + (0 if narrow else 2 + 2 * BAR + 1 + 2 + max(number.width, 6)) + 3
        head = f" {'step':>5}  {title:>{cells}}"
        head += "" if narrow else f"{'':{2 + 2 * BAR + 1}}  {'so far':>{max(number.width, 6)}}"
        yield Text(f"{head}   {'response' if rollout.spelled else 'token ids'}", style="dim", no_wrap=True)
        shares = rollout.piece_values() / scale if scale else np.zeros(len(rollout.pieces))
        lowest, highest = _extremes(rollout.steps)
        for place, step in enumerate(rollout.steps):
            texts = [printable(piece.text) for piece in rollout.pieces[step.first : step.last]]
            found = heatmap.letters(texts, shares[step.first : step.last].tolist())
            lines = heatmap.paint_lines(heatmap.wrap(found, max(width - gutter, 10)), self.paint)
            sign = LOWEST if place == lowest else HIGHEST if place == highest else " "
            line = Text(no_wrap=True)
            line.append(sign, style=self.paint.strong(-1 if sign == LOWEST else 1))
            line.append(f"{place + 1:>5}", style="dim").append(f"  {number(step.total):>{cells}}")
            if not narrow:
                line.append("  ").append_text(self._bar(step.total, largest))
                line.append(f"  {number(step.cumulative):>{max(number.width, 6)}}", style="dim")
            line.append(" " * (gutter - cell_len(line.plain)))
            yield line.append_text(next(lines))
            for more in lines:
                yield Text(" " * gutter, no_wrap=True).append_text(more)

    def _bar(self, value: float, largest: float) -> Text:
        from rich.text import Text

        halves = round(2 * BAR * abs(value) / largest) if largest else 0
        full, half = divmod(halves, 2)
        left = ("▐" * half + "█" * full) if value < 0 else ""
        right = ("█" * full + "▌" * half) if value > 0 else ""
        bar = Text().append(f"{left:>{BAR}}", style=self.paint.strong(-1))
        return bar.append("│", style="dim").append(f"{right:<{BAR}}", style=self.paint.strong(1))

    def _ends(self, rollout: Rollout, width: int) -> Iterator[Text]:
        """The sum, the lowest and the highest step, and the tokens that stand out most."""
        totals = [step.total for step in rollout.steps]
        values = rollout.piece_values()
        number = _Numbers([*totals, *values, float(rollout.values.sum())])
        facts = [("sum", number(float(rollout.values.sum())))]
        lowest, highest = _extremes(rollout.steps)
        if lowest is not None and highest is not None:
            facts.append((f"{LOWEST} lowest step", f"{lowest + 1} ({number(totals[lowest])})"))
            facts.append((f"{HIGHEST} highest step", f"{highest + 1} ({number(totals[highest])})"))
        tokens = (("lowest token", int(values.argmin())), ("highest token", int(values.argmax())))
        for name, place in tokens if values.min() < values.max() else ():
            text = printable(rollout.pieces[place].text).replace("\n", heatmap.NEWLINE)
            facts.append((name, f"‘{text}’ at {rollout.pieces[place].first} ({number(float(values[place]))})"))
        yield from _fold(_facts(facts), width)

    def _legend(self, scale: float) -> Text:
        from rich.text import Text

        name, unit = self.measure.replace("_", " ").replace("-", " "), UNITS.get(self.measure, "")
        number = _Numbers([scale])
        text = Text(no_wrap=True)
        if not scale:
            return text.append(f"{name} of a token: all are 0")
        if self.paint.colors == "none":
            below, above = heatmap.MARKS
            least = ", ".join(number(share * scale).lstrip("+") for share in heatmap.LEVELS)
            marks = [] if self.measure == GAP else [f"{' '.join(below[1:])} below 0"]
            marks.append(f"{' '.join(above[1:])} above")
            return text.append(f"{name} of a token: {', '.join(marks)}; from {least} {unit}".rstrip())
        text.append(f"{name} of a token  ", style="dim")
        steps = 12 if self.paint.colors == "full" else 6
        if self.measure != GAP:
            text.append(f"{number(-scale)} ", style="dim")
            for place in range(steps, 0, -1):
                text.append(" ", style=self.paint.style(-place / steps))
        text.append(" 0 ")
        for place in range(1, steps + 1):
            text.append(" ", style=self.paint.style(place / steps))
        return text.append(f" {number(scale)}  {unit}", style="dim")


class _Numbers:
    """Numbers that belong together: three decimals, or more for a small largest, or powers of ten."""

    def __init__(self, values: Sequence[float]) -> None:
        largest = max((abs(value) for value in values), default=0.0)
        decimals = int(max(2 - np.floor(np.log10(largest)), 3)) if largest else 3
        self.form = f"+.{decimals}f" if decimals <= MOST_DECIMALS else "+.2e"
        self.width = max((len(self(value)) for value in values), default=1)

    def __call__(self, value: float) -> str:
        text = format(value, self.form)
        return text if float(text) else text[1:]


def _extremes(steps: Sequence[Step]) -> tuple[int | None, int | None]:
    """The steps of the lowest and the highest sum; none where they do not differ."""
    totals = [step.total for step in steps]
    if min(totals) == max(totals):
        return None, None
    return totals.index(min(totals)), totals.index(max(totals))


def _short(value: Any) -> str:
    text = " ".join(printable(str(value)).split()) if value is not None else "none"
    return text if len(text) <= SHOWN_TEXT else text[: SHOWN_TEXT - 1] + "…"


def _lines(text: str, width: int) -> list[str]:
    """A text in lines of a width."""
    found = heatmap.wrap(heatmap.letters([printable(text).strip("\n")], [0.0]), width)
    return ["".join(letter for letter, _ in line) for line in found]


def _facts(facts: Sequence[tuple[str, str]]) -> Text:
    """Names, dim, and what they are."""
    from rich.text import Text

    text = Text(no_wrap=True)
    for place, (name, value) in enumerate(facts):
        text.append("   " if place else "").append(printable(name), style="dim")
        text.append(f" {printable(value)}" if value else "")
    return text


def _fold(line: Text, width: int) -> list[Text]:
    """A line in parts of a width, cut between cells."""
    parts: list[Text] = []
    while line.cell_len > width:
        head, line = line.divide([_cells(line.plain, width)])
        parts.append(head)
    return [*parts, line]


def _cells(text: str, width: int) -> int:
    """How many characters fit a width, at best up to the last three spaces between two facts."""
    from rich.cells import cell_len

    fit = next((count for count in range(1, len(text)) if cell_len(text[: count + 1]) > width), len(text))
    between = text.rfind("   ", 0, fit)
    return between + 3 if between > 0 else fit
