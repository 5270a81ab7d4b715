"""How rollouts are drawn on a terminal: verdict, prompt, steps with their sums, and the tokens as a heatmap.

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
from primecli.analysis.rollout import Measure, Rollout, Step
from primecli.printable import printable
from primecli.shards import schema

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

UNITS = {
    Measure.process_rewards: "beta × nats",
    Measure.rollout_logprobs: "nats",
    Measure.ratio: "log of the ratio, nats",
    Measure.logprob_gap: "nats",
}
"""Units of measures; the others have none."""

TITLES = {
    Measure.process_rewards: "reward",
    Measure.advantages: "advantage",
    Measure.outcome_advantages: "advantage",
    Measure.process_advantages: "advantage",
    Measure.returns: "return",
    Measure.values: "value",
    Measure.rollout_logprobs: "logprob",
    Measure.ratio: "log ratio",
    Measure.logprob_gap: "gap",
}
"""Headings over the steps' sums."""

VERDICT_STYLES = {"correct": "bold #ffffff on #1a7f37", "wrong": "bold #ffffff on #b3261e"}
OTHER_VERDICT_STYLE = "bold #101010 on #d4a72c"
PROMPT_LINES = 12  # of a long prompt
SHOWN_CHARACTERS = 120  # of an answer or a failure
MOST_DECIMALS = 6  # smaller numbers are powers of ten
BAR_CELLS = 4  # of a step's bar, on either side of 0
WIDE = 70  # cells from which a step has a bar and the sum so far
STEP_CELLS = 5  # of a step's number
LEAST_TEXT_CELLS = 10  # of a step's text, however narrow the terminal
COLUMN_GAP = 3  # cells between two rollouts
LOWEST, HIGHEST = "▼", "▲"


class Screen:
    """Draws rollouts.

    measure: what their values are.
    scale: the end of the colour scale; None stands for the largest value of the rollouts that are drawn together.
    """

    def __init__(self, console: Console, paint: heatmap.Paint, measure: Measure, scale: float | None = None) -> None:
        self.console = console
        self.paint = paint
        self.measure = measure
        self.scale = scale

    def show(self, rollouts: Sequence[Rollout]) -> None:
        """One rollout over the whole width, or two beside each other on one scale."""
        scale = self.scale or max(rollout.largest() for rollout in rollouts)
        largest_step = max(abs(step.total) for rollout in rollouts for step in rollout.steps)
        full_width = self.console.width
        width = (full_width - COLUMN_GAP * (len(rollouts) - 1)) // len(rollouts)
        self._print([list(self._group(rollouts[0], full_width))], full_width)
        self._print([list(self._head(rollout, width)) for rollout in rollouts], width)
        same_prompt = len({rollout.columns.get(schema.PROMPT) for rollout in rollouts}) == 1
        if same_prompt:
            self._print([self._prompt(rollouts[0], full_width)], full_width)
        else:
            self._print([self._prompt(rollout, width) for rollout in rollouts], width)
        if not all(rollout.spelled for rollout in rollouts):
            self._print([self._response(rollout, width) for rollout in rollouts], width)
        self._print([list(self._steps(rollout, width, scale, largest_step)) for rollout in rollouts], width)
        self._print([list(self._extremes(rollout, width)) for rollout in rollouts], width)
        self._print([[self._legend(scale)]], full_width)

    def rule(self) -> None:
        """A line between rollouts that are shown one after another."""
        self.console.print("─" * self.console.width, style="dim", end="\n\n")

    def _print(self, columns: Sequence[Sequence[Text]], width: int) -> None:
        """Columns of lines that fit the width, beside each other; then an empty line."""
        from rich.text import Text

        for row in zip_longest(*columns):
            line = Text(no_wrap=True)
            for column, part in enumerate(row):
                line.append(" " * (column * (width + COLUMN_GAP) - line.cell_len))
                line.append_text(part or Text())
            if self.paint.colors == "none":
                line.rstrip()
            self.console.print(line, no_wrap=True, overflow="ignore", crop=False)
        self.console.print()

    def _group(self, rollout: Rollout, width: int) -> Iterator[Text]:
        """What the rollouts of one group have in common."""
        columns = rollout.columns
        facts = [("group", _short(columns.get(schema.GROUP_ID)))]
        facts += [("source", _short(columns[schema.DATA_SOURCE]))] if columns.get(schema.DATA_SOURCE) else []
        facts += [("ground truth", _short(columns[schema.GROUND_TRUTH]))] if columns.get(schema.GROUND_TRUTH) else []
        yield from _fold(_facts([(str(rollout.location.shard.path), "")]), width)
        yield from _fold(_facts(facts), width)

    def _head(self, rollout: Rollout, width: int) -> Iterator[Text]:
        from rich.text import Text

        columns = rollout.columns
        verdict = columns.get(schema.VERDICT)
        if verdict is not None:
            name = _short(verdict).upper()
            style = VERDICT_STYLES.get(verdict, OTHER_VERDICT_STYLE) if self.paint.colors != "none" else ""
            line = Text(f" {name} " if style else name, style=style, no_wrap=True)
            outcome = columns.get(schema.OUTCOME_REWARD)
            facts = [("answer", _short(columns.get(schema.EXTRACTED_ANSWER)))]
            facts.append(("outcome reward", "none" if outcome is None else f"{outcome:g}"))
            yield from _fold(Text("   ").join([line, _facts(facts)]), width)
        if columns.get(schema.TESTS_TOTAL):
            passed = f"{columns.get(schema.TESTS_PASSED)} of {columns[schema.TESTS_TOTAL]}"
            yield from _fold(_facts([("tests passed", passed)]), width)
        for column in (schema.FIRST_FAILURE, schema.VERIFIER_DETAIL):
            if columns.get(column):
                yield from _fold(_facts([(column.replace("_", " "), _short(columns[column]))]), width)
        size, finish = columns.get(schema.GROUP_SIZE), columns.get(schema.FINISH_REASON)
        sample = f"{columns.get(schema.SAMPLE_INDEX)}" + (f" (0 to {size - 1})" if size else "")
        tokens = f"{len(rollout.values):,}" + (f", ended by {finish}" if finish else "")
        facts = [("row", str(rollout.location.row)), ("sample", sample), ("tokens", tokens)]
        first_wrong = columns.get(schema.FIRST_WRONG_STEP)
        if first_wrong is not None:
            facts.append(("first wrong step", "none" if first_wrong < 0 else str(first_wrong + 1)))
        yield from _fold(_facts(facts), width)

    def _prompt(self, rollout: Rollout, width: int) -> list[Text]:
        from rich.text import Text

        lines = _lines(str(rollout.columns.get(schema.PROMPT, "")), width - 2)
        if len(lines) > PROMPT_LINES:  # the question is near the end of a long one
            left_out = len(lines) - PROMPT_LINES + 1
            lines = [f"… {left_out} more lines, see --json", *lines[left_out:]]
        return [Text(f"│ {line}", style="dim", no_wrap=True) for line in lines]

    def _response(self, rollout: Rollout, width: int) -> list[Text]:
        """The stored text, for responses whose tokens no tokenizer spells."""
        from rich.text import Text

        return [Text(line, no_wrap=True) for line in _lines(str(rollout.columns.get(schema.RESPONSE, "")), width)]

    def _steps(self, rollout: Rollout, width: int, scale: float, largest_step: float) -> Iterator[Text]:
        """A line for each step, and more where its text is longer."""
        from rich.cells import cell_len
        from rich.text import Text

        number = _Numbers([step.total for step in rollout.steps] + [step.cumulative for step in rollout.steps])
        title, so_far = TITLES[self.measure], "so far"
        total_cells, so_far_cells = max(number.width, len(title)), max(number.width, len(so_far))
        bar_cells = 2 * BAR_CELLS + 1
        wide = width >= WIDE
        head = f" {'step':>{STEP_CELLS}}  {title:>{total_cells}}"
        head += f"  {'':{bar_cells}}  {so_far:>{so_far_cells}}" if wide else ""
        text_start = len(head) + 3
        yield Text(f"{head}   {'response' if rollout.spelled else 'token ids'}", style="dim", no_wrap=True)
        shares = rollout.piece_values() / scale if scale else np.zeros(len(rollout.pieces))
        lowest, highest = _extreme_steps(rollout.steps)
        for index, step in enumerate(rollout.steps):
            texts = [printable(piece.text) for piece in rollout.pieces[step.first : step.last]]
            letters = heatmap.letters(texts, shares[step.first : step.last].tolist())
            wrapped = heatmap.wrap(letters, max(width - text_start, LEAST_TEXT_CELLS))
            lines = heatmap.paint_lines(wrapped, self.paint)
            sign = LOWEST if index == lowest else HIGHEST if index == highest else " "
            line = Text(no_wrap=True)
            line.append(sign, style=self.paint.strongest(-1 if sign == LOWEST else 1))
            line.append(f"{index + 1:>{STEP_CELLS}}", style="dim").append(f"  {number(step.total):>{total_cells}}")
            if wide:
                line.append("  ").append_text(self._bar(step.total, largest_step))
                line.append(f"  {number(step.cumulative):>{so_far_cells}}", style="dim")
            line.append(" " * (text_start - cell_len(line.plain)))
            yield line.append_text(next(lines))
            for more in lines:
                yield Text(" " * text_start, no_wrap=True).append_text(more)

    def _bar(self, value: float, largest: float) -> Text:
        from rich.text import Text

        halves = round(2 * BAR_CELLS * abs(value) / largest) if largest else 0
        full, half = divmod(halves, 2)
        left = ("▐" * half + "█" * full) if value < 0 else ""
        right = ("█" * full + "▌" * half) if value > 0 else ""
        bar = Text().append(f"{left:>{BAR_CELLS}}", style=self.paint.strongest(-1))
        return bar.append("│", style="dim").append(f"{right:<{BAR_CELLS}}", style=self.paint.strongest(1))

    def _extremes(self, rollout: Rollout, width: int) -> Iterator[Text]:
        """The sum, the lowest and the highest step, and the lowest and the highest token."""
        totals = [step.total for step in rollout.steps]
        values = rollout.piece_values()
        number = _Numbers([*totals, *values, float(rollout.values.sum())])
        facts = [("sum", number(float(rollout.values.sum())))]
        lowest, highest = _extreme_steps(rollout.steps)
        if lowest is not None and highest is not None:
            facts.append((f"{LOWEST} lowest step", f"{lowest + 1} ({number(totals[lowest])})"))
            facts.append((f"{HIGHEST} highest step", f"{highest + 1} ({number(totals[highest])})"))
        tokens = (("lowest token", int(values.argmin())), ("highest token", int(values.argmax())))
        for name, index in tokens if values.min() < values.max() else ():
            piece = rollout.pieces[index]
            text = _cut(printable(piece.text).replace("\n", heatmap.NEWLINE))
            facts.append((name, f"‘{text}’ at {piece.first} ({number(float(values[index]))})"))
        yield from _fold(_facts(facts), width)

    def _legend(self, scale: float) -> Text:
        from rich.text import Text

        name, unit = self.measure.value.replace("-", " "), UNITS.get(self.measure, "")
        signed = self.measure is not Measure.logprob_gap  # a gap is never below 0
        number = _Numbers([scale])
        text = Text(no_wrap=True)
        if not scale:
            return text.append(f"{name} of a token: all are 0")
        if self.paint.colors == "none":
            below, above = heatmap.MARKS
            least = ", ".join(number(share * scale).lstrip("+") for share in heatmap.LEVELS)
            marks = [f"{' '.join(below[1:])} below 0"] if signed else []
            marks.append(f"{' '.join(above[1:])} above")
            return text.append(f"{name} of a token: {', '.join(marks)}; from {least} {unit}".rstrip())
        text.append(f"{name} of a token  ", style="dim")
        shades = 12 if self.paint.colors == "full" else 6
        if signed:
            text.append(f"{number(-scale)} ", style="dim")
            for shade in range(shades, 0, -1):
                text.append(" ", style=self.paint.style(-shade / shades))
        text.append(" 0 ")
        for shade in range(1, shades + 1):
            text.append(" ", style=self.paint.style(shade / shades))
        return text.append(f" {number(scale)}  {unit}", style="dim")


class _Numbers:
    """Writes numbers that belong together alike: three decimals, more if the largest is small, or powers of ten.

    width: characters of the longest.
    """

    def __init__(self, values: Sequence[float]) -> None:
        largest = max((abs(value) for value in values), default=0.0)
        decimals = int(max(2 - np.floor(np.log10(largest)), 3)) if largest else 3
        self.format = f"+.{decimals}f" if decimals <= MOST_DECIMALS else "+.2e"
        self.width = max((len(self(value)) for value in values), default=1)

    def __call__(self, value: float) -> str:
        text = format(value, self.format)
        return text if float(text) else text[1:]


def _extreme_steps(steps: Sequence[Step]) -> tuple[int | None, int | None]:
    """The steps with the lowest and the highest sum; none where all are equal."""
    totals = [step.total for step in steps]
    if min(totals) == max(totals):
        return None, None
    return totals.index(min(totals)), totals.index(max(totals))


def _short(value: Any) -> str:
    return _cut(" ".join(printable(str(value)).split())) if value is not None else "none"


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def _lines(text: str, width: int) -> list[str]:
    """A text in lines of a width."""
    wrapped = heatmap.wrap(heatmap.letters([printable(text).strip("\n")], [0.0]), width)
    return ["".join(letter for letter, _ in line) for line in wrapped]


def _facts(facts: Sequence[tuple[str, str]]) -> Text:
    """Names, dim, each with its value."""
    from rich.text import Text

    text = Text(no_wrap=True)
    for index, (name, value) in enumerate(facts):
        text.append("   " if index else "").append(printable(name), style="dim")
        text.append(f" {printable(value)}" if value else "")
    return text


def _fold(line: Text, width: int) -> list[Text]:
    """A line in parts of a width, cut between cells."""
    from rich.cells import cell_len

    cells = list(map(cell_len, line.plain))
    ends: list[int] = []
    start = 0
    while (end := _fitting(line.plain, cells, start, width)) < len(cells):
        ends.append(end)
        start = end
    return list(line.divide(ends))


def _fitting(text: str, cells: Sequence[int], start: int, width: int) -> int:
    """The end of the part from `start` on that fits a width: if possible, the last gap of three spaces between facts.

    cells: how many each character takes.
    """
    used, fit = cells[start] if start < len(cells) else 0, start + 1
    while fit < len(cells) and used + cells[fit] <= width:
        used += cells[fit]
        fit += 1
    if fit >= len(cells):
        return len(cells)
    gap = text.rfind("   ", start, fit)
    return gap + 3 if gap > start else fit
