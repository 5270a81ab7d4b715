"""`primecli inspect`."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    import numpy as np
    from rich.text import Text

    from primecli.inspecting import Place, Step
    from primecli.tokens import Piece


class Sort(StrEnum):
    """What comes first."""

    reward = "reward"
    disagreement = "disagreement"
    length = "length"
    outcome = "outcome"


class Color(StrEnum):
    """What tokens are coloured by."""

    process_rewards = "process-rewards"
    advantages = "advantages"
    ratio = "ratio"
    logprob_gap = "logprob-gap"


# from negative to positive: orange to blue, which colour-blind readers tell apart
NEGATIVE, POSITIVE = ("#fde0c5", "#f8a15c", "#d95f0e"), ("#d3e4f3", "#7fb3d9", "#2166ac")
MARKS = ("", "+", "++", "+++")
LEVELS = (0.1, 0.35, 0.7)  # shares of the scale from which a token is coloured, more, most
BAR = 12


def inspect(
    shards: options.Shards = None,
    row: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--row", min=0, help="The row of the shard, from 0.", show_default=False),
    ] = None,
    group: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--group", help="A group_id, or its beginning.", show_default=False),
    ] = None,
    verdict: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--verdict", help="correct, wrong, unparseable, timeout or error.", show_default=False),
    ] = None,
    sort: Annotated[
        Optional[Sort],  # noqa: UP045
        typer.Option(
            "--sort",
            help="The largest first; disagreement: wrong responses of a high score, right ones of a low.",
            show_default=False,
        ),
    ] = None,
    ascending: Annotated[bool, typer.Option("--ascending", help="The smallest first.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many rollouts to show.")] = 1,
    color: Annotated[
        Color, typer.Option("--color", help="What tokens are coloured by; ratio and logprob-gap need --model.")
    ] = Color.process_rewards,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--model",
            metavar="DIR|HUB_ID",
            help="Its log-probabilities of the shown tokens, against the sampler's.",
            show_default=False,
        ),
    ] = None,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="A right and a wrong sample of one group beside each other.")
    ] = False,
    step_separator: Annotated[
        str, typer.Option("--step-separator", help="Text between two steps.", show_default="\\n")
    ] = "\\n",
    tokenizer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--tokenizer",
            metavar="DIR",
            help="Spells the tokens.  [default: the model that generate names in the shards]",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    partial: options.Partial = False,
) -> None:
    """Show a rollout, its tokens coloured by what they were rewarded with.

    Blue is above 0, orange below, on a scale of the response's own largest value. Without colour (NO_COLOR, a
    pipe) tokens carry marks instead: [+] to [+++], [-] to [---]. Below, the steps with their sums.

    Example:

      \b
      primecli inspect runs/1/score-prm --verdict wrong --sort disagreement --limit 3
      primecli inspect runs/1/compute-advantages --color advantages --side-by-side
    """
    import itertools

    from primecli.errors import InputError, UsageError
    from primecli.inputs import Inputs
    from primecli.inspecting import Wanted, find
    from primecli.progress import say

    if color in (Color.ratio, Color.logprob_gap) and model is None:
        raise UsageError(
            f"--color {color.value} compares a model's log-probabilities with the sampler's", "name it with --model"
        )
    inputs = Inputs(shards or (), partial=partial, warn=lambda text: say("inspect", text))
    order = None if sort is None else sort.value
    places = find(inputs, Wanted(row, group, verdict), sort=order, ascending=ascending)
    separator = step_separator.replace("\\n", "\n").replace("\\t", "\t")
    viewer = _Viewer(color, model, tokenizer, separator)
    if side_by_side:
        chosen = list(itertools.islice(_pairs(places), limit))
        if not chosen:
            raise InputError(
                "no group here has a right and a wrong sample", "look at other shards, or drop --side-by-side"
            )
    else:
        chosen = [(place,) for place in itertools.islice(places, limit)]
        if not chosen:
            raise InputError("no rollout is like that", "see `primecli stats` for what there is")
    for number, together in enumerate(chosen):
        if as_json:
            viewer.print_json(together)
        else:
            viewer.show(together, first=number == 0)


def _pairs(places: Any) -> Any:
    """The first right and the first wrong rollout of each group that has both, as they come."""
    waiting: dict[str, dict[str, Place]] = {}
    done: set[str] = set()
    for place in places:
        side = "right" if place.verdict == "correct" else "wrong"
        found = waiting.setdefault(place.group_id, {})
        found.setdefault(side, place)
        if len(found) == 2 and place.group_id not in done:
            done.add(place.group_id)
            yield (found["right"], found["wrong"])


class _Viewer:
    """Reads rollouts and shows them."""

    def __init__(self, color: Color, model: str | None, tokenizer: str | None, separator: str) -> None:
        self.color = color
        self.model = model
        self.tokenizer = tokenizer
        self.separator = separator
        self._loaded: tuple[Any, Any] | None = None

    def rollout(self, place: Place) -> _Rollout:
        """One rollout with its pieces and values."""
        import numpy as np

        from primecli import inspecting, schema, tokens
        from primecli.progress import say
        from primecli.shards import require_columns

        needs = [schema.RESPONSE_IDS]
        name = {Color.process_rewards: schema.PROCESS_REWARDS, Color.advantages: schema.ADVANTAGES}.get(self.color)
        require_columns(place.shard.path, place.shard.footer.columns, [*needs, *([name] if name else [])])
        columns = inspecting.read_row(place.shard, place.row)
        ids = columns[schema.RESPONSE_IDS]
        directory = tokens.tokenizer_directory(place.shard, self.tokenizer)
        if directory is None:
            say("inspect", "the tokenizer is not here, so tokens are shown by number (name it with --tokenizer)")
            pieces = [tokens.Piece(f"<{token}>", index, index + 1) for index, token in enumerate(ids)]
        else:
            pieces = tokens.pieces(tokens.load_tokenizer(directory), ids)
        values = np.asarray(columns[name] if name else self._against_model(columns), dtype=np.float64)
        return _Rollout(place, columns, pieces, values, inspecting.steps_of(pieces, values, self.separator))

    def _against_model(self, columns: dict[str, Any]) -> np.ndarray:
        """Log ratio of the model's to the sampler's probability of each token, or its size."""
        import numpy as np

        from primecli import models, schema, scoring

        if self._loaded is None:
            directory = models.resolve_model(str(self.model))
            place = models.placement("auto", models.resolve_dtype("auto", "auto"))
            self._loaded = models.load_model(directory, place), place
        loaded, place = self._loaded
        heat = float(columns.get(schema.TEMPERATURE) or 1.0)
        sequences = scoring.Sequences(
            [np.array(columns[schema.PROMPT_IDS])],
            [np.array(columns[schema.RESPONSE_IDS])],
            np.array([heat], dtype=np.float32),
        )
        found = scoring.score(loaded, place, sequences, token_budget=1)
        difference = found - np.asarray(columns[schema.ROLLOUT_LOGPROBS], dtype=np.float32)
        return np.abs(difference) if self.color is Color.logprob_gap else difference

    def show(self, places: tuple[Place, ...], *, first: bool) -> None:
        """Rollouts beside each other, on stdout."""
        import shutil

        from rich.console import Console
        from rich.table import Table

        console = Console(
            highlight=False, width=None if sys.stdout.isatty() else shutil.get_terminal_size((100, 24)).columns
        )
        colored = console.color_system is not None and not console.no_color
        rollouts = [self.rollout(place) for place in places]
        scale = max(found.largest() for found in rollouts)
        largest = max(abs(step.total) for found in rollouts for step in found.steps)
        if not first:
            console.rule(style="dim")
        if len(rollouts) == 1:
            for part in rollouts[0].parts(self.color, scale, largest, colored=colored):
                console.print(part)
            return
        table = Table(box=None, expand=True, padding=(0, 1))
        for _ in rollouts:
            table.add_column(ratio=1, overflow="fold")
        for parts in zip(
            *(found.parts(self.color, scale, largest, colored=colored, narrow=True) for found in rollouts), strict=True
        ):
            table.add_row(*parts)
        console.print(table)

    def print_json(self, places: tuple[Place, ...]) -> None:
        """One JSON object a rollout, each on its line."""
        import json

        for place in places:
            print(json.dumps(self.rollout(place).as_json(self.color), ensure_ascii=False, allow_nan=False))


class _Rollout:
    """A rollout as it is shown."""

    def __init__(
        self, place: Place, columns: dict[str, Any], pieces: list[Piece], values: np.ndarray, steps: list[Step]
    ) -> None:
        self.place, self.columns, self.pieces, self.values, self.steps = place, columns, pieces, values, steps

    def parts(self, color: Color, scale: float, largest: float, *, colored: bool, narrow: bool = False) -> list[Any]:
        """Head, prompt, response, legend and steps."""
        parts = [self._head(), self._prompt(), self._response(scale, colored)]
        return [*parts, self._legend(color, scale, colored), self._steps(largest, colored, narrow=narrow)]

    def _head(self) -> Text:
        from rich.text import Text

        from primecli import schema
        from primecli.tokens import printable

        columns = self.columns
        text = Text()
        text.append(f"{self.place.shard.path} row {self.place.row}\n", style="dim")
        size = columns.get(schema.GROUP_SIZE)
        text.append(f"group {self.place.group_id}, sample {columns.get(schema.SAMPLE_INDEX)}")
        text.append(f" of {size}\n" if size else "\n")
        verdict = columns.get(schema.VERDICT)
        if verdict is not None:
            style = {"correct": "bold green", "wrong": "bold red"}.get(verdict, "bold yellow")
            text.append(printable(verdict), style=style)
            answer, truth = columns.get(schema.EXTRACTED_ANSWER), columns.get(schema.GROUND_TRUTH)
            text.append(f", answer {printable(str(answer))[:80]!r}, ground truth {printable(str(truth))[:80]!r}")
            text.append(f", outcome reward {columns.get(schema.OUTCOME_REWARD)}\n")
        finish = columns.get(schema.FINISH_REASON)
        text.append(f"{len(self.values)} tokens" + (f", ended by {finish}" if finish else ""))
        return text

    def _prompt(self) -> Text:
        from rich.text import Text

        from primecli import schema
        from primecli.tokens import printable

        return Text("\n" + printable(str(self.columns.get(schema.PROMPT, ""))).strip("\n") + "\n", style="dim")

    def largest(self) -> float:
        """The largest size of a piece's value, which is the end of the colour scale."""
        from primecli.inspecting import piece_values

        sums = piece_values(self.pieces, self.values)
        return float(abs(sums).max()) if len(sums) else 0.0

    def _response(self, scale: float, colored: bool) -> Text:
        from rich.text import Text

        from primecli.inspecting import piece_values
        from primecli.tokens import printable

        text = Text()
        for piece, value in zip(self.pieces, piece_values(self.pieces, self.values), strict=True):
            shown = printable(piece.text)
            depth = level(value, scale)
            if colored:
                visible = shown.replace("\n", "\u21b5\n") if depth and "\n" in shown else shown
                text.append(visible, style=style_of(depth))
            else:
                mark = f"[{MARKS[abs(depth)] if depth > 0 else MARKS[abs(depth)].replace('+', '-')}]" if depth else ""
                stripped = shown.rstrip("\n")
                text.append(stripped + mark + shown[len(stripped) :])
        return text

    def _legend(self, color: Color, scale: float, colored: bool) -> Text:
        from rich.text import Text

        unit = {"process-rewards": "nats times beta", "advantages": "", "ratio": "log ratio, nats"}.get(
            color.value, "nats"
        )
        text = Text().append(f"\n{color.value.replace('-', ' ')}: ", style="dim")
        if colored:
            for depth in (-3, -2, -1, 0, 1, 2, 3):
                label = {-3: f" {-scale:.3g} ", 0: " 0 ", 3: f" {scale:+.3g} "}.get(depth, "   ")
                text.append(label, style=style_of(depth))
        else:
            marks = [f"[{mark}] {share * scale:.2g}" for mark, share in zip(MARKS[1:], LEVELS, strict=True)]
            text.append(f"from {', '.join(marks)}; below 0 [-] to [---]", style="dim")
        text.append(f"  {unit}\n" if unit else "\n", style="dim")
        return text

    def _steps(self, largest: float, colored: bool, *, narrow: bool) -> Any:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        from primecli.tokens import printable

        table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        table.add_column("step", justify="right", no_wrap=True, min_width=4)
        table.add_column("sum", justify="right", no_wrap=True, min_width=7)
        table.add_column("", no_wrap=True, min_width=BAR + 1)
        if not narrow:
            table.add_column("so far", justify="right", no_wrap=True, min_width=7)
        table.add_column("text", overflow="ellipsis", no_wrap=True, ratio=1)
        lowest = min(range(len(self.steps)), key=lambda number: self.steps[number].total) if len(self.steps) > 1 else -1
        for number, step in enumerate(self.steps):
            length = round(BAR / 2 * abs(step.total) / largest) if largest else 0
            left = ("\u2588" * length).rjust(BAR // 2) if step.total < 0 else " " * (BAR // 2)
            right = ("\u2588" * length).ljust(BAR // 2) if step.total > 0 else " " * (BAR // 2)
            bar = Text().append(left, style=NEGATIVE[2] if colored else "")
            bar.append("\u2502", style="dim" if colored else "").append(right, style=POSITIVE[2] if colored else "")
            words = printable("".join(piece.text for piece in self.pieces[step.first : step.last])).replace("\n", " ")
            mark = " \u25c0 lowest" if number == lowest else ""
            cells: list[str | Text] = [
                f"{number + 1}",
                f"{step.total:+.4f}",
                bar,
                *([] if narrow else [f"{step.cumulative:+.4f}"]),
            ]
            table.add_row(*cells, Text(words.strip() + mark))
        return table

    def as_json(self, color: Color) -> dict[str, Any]:
        """The rollout with its pieces and steps."""
        from primecli import schema

        plain = {
            name: value
            for name, value in self.columns.items()
            if name not in (*schema.PER_RESPONSE_TOKEN, schema.PROMPT_IDS, schema.RESPONSE_IDS)
        }
        return {
            "shard": str(self.place.shard.path),
            "row": self.place.row,
            **plain,
            "color": color.value,
            "tokens": [
                {
                    "text": piece.text,
                    "ids": list(self.columns[schema.RESPONSE_IDS][piece.first : piece.last]),
                    "value": float(self.values[piece.first : piece.last].sum()),
                }
                for piece in self.pieces
            ],
            "steps": [
                {
                    "text": "".join(piece.text for piece in self.pieces[step.first : step.last]),
                    "sum": step.total,
                    "cumulative": step.cumulative,
                }
                for step in self.steps
            ],
        }


def level(value: float, scale: float) -> int:
    """-3 to 3: how strongly a value shows on its scale.

    >>> [level(value, 1.0) for value in (-0.9, -0.05, 0.2, 0.5)]
    [-3, 0, 1, 2]
    """
    if not scale:
        return 0
    depth = sum(abs(value) / scale >= bound for bound in LEVELS)
    return depth if value > 0 else -depth


def style_of(depth: int) -> str:
    """The rich style of a level."""
    if not depth:
        return ""
    shade = (POSITIVE if depth > 0 else NEGATIVE)[abs(depth) - 1]
    return f"{'white' if abs(depth) == 3 else 'black'} on {shade}"
