"""The marks of all prompts: everything that `prepare` does between reading and writing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from primecli.errors import InputError, UsageError
from primecli.files import Json
from primecli.generation.preparation import answers, duplicates, output, rows, rules
from primecli.generation.preparation.contamination import Benchmark, Hits, find_hits
from primecli.generation.preparation.pass_rates import read_pass_rates
from primecli.generation.preparation.words import Common, Vocabulary, Words, without_common
from primecli.generation.prompts import PromptColumns

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from primecli.generation.preparation.prepare import PrepareOptions, PrepareRun
    from primecli.shards.parquet import Shard

REASONS = (
    "empty",
    "too_long",
    "no_answer",
    "unreadable_answer",
    "multiple_choice",
    "figure",
    "proof",
    "duplicate",
    "conflict",
    "contaminated",
    "not_sampled",
    "too_hard",
    "too_easy",
)
"""All marks, in the order in which a row lists them."""

MANY = 50_000  # prompts, from which on it takes long enough to say what is being done

RATE_ROUNDING = 1e-6  # rewards are float32, so a mean of 0.2 may be stored as 0.20000000298


@dataclass(slots=True)
class Marks:
    """The marks of the prompts.

    flags: (D,) int32: the reasons of each prompt, a bit for each, in the order of REASONS.
    examples: for each reason, the first few prompts with it, in words.
    duplicate_of: the number of the prompt that each duplicate repeats.
    contaminated_by, shares, words: of each prompt with words of a benchmark: its prompt, how much of it, and the
        longest run.
    rates: the pass rate of each prompt, where it is known.
    """

    flags: np.ndarray
    examples: dict[str, list[str]] = field(default_factory=dict)
    duplicate_of: dict[int, int] = field(default_factory=dict)
    contaminated_by: dict[int, str] = field(default_factory=dict)
    shares: dict[int, float] = field(default_factory=dict)
    words: dict[int, int] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)

    def add(self, number: int, reason: str, example: str) -> None:
        """Gives a prompt a reason. example: what it is about, in words."""
        self.flags[number] |= 1 << REASONS.index(reason)
        shown = self.examples.setdefault(reason, [])
        if len(shown) < rows.SHOWN:
            shown.append(example)

    def texts(self) -> list[str | None]:
        """The reasons of each prompt as the file has them: in the order of REASONS, None for a prompt without any."""
        known = {flags: ", ".join(_names(flags)) or None for flags in set(self.flags.tolist())}
        return [known[flags] for flags in self.flags.tolist()]

    def counts(self) -> dict[str, int]:
        """How many prompts have each reason."""
        return {reason: int((self.flags >> place & 1).sum()) for place, reason in enumerate(REASONS)}


def _names(flags: int) -> list[str]:
    return [reason for place, reason in enumerate(REASONS) if flags >> place & 1]


def marked_table(run: PrepareRun, shards: Sequence[Shard]) -> tuple[pa.Table, dict[str, Json]]:
    """The table to write, and the summary of what was found. shards: with pass rates."""
    import numpy as np

    options = run.options
    prompts = rows.read(options.files, options.columns(), options.prompt_column)
    run.progress.advance(0, total=prompts.table.num_rows)
    run.says_steps = prompts.table.num_rows >= MANY
    vocabulary = Vocabulary()
    unique = duplicates.unique_texts(prompts)
    words = vocabulary.encode(_texts_once(prompts, unique))
    marks = Marks(np.zeros(prompts.table.num_rows, np.int32))
    verifiers = answers.verifier_names(*(prompts.table[name].to_pylist() for name in ("ability", "data_source")))
    _mark_texts(marks, prompts, words.lengths()[unique.of_prompt], verifiers, options.max_words)
    run.say("reading the answers")
    others = _mark_answers(marks, prompts, verifiers, run)
    words, common = _without_common(prompts, unique, words, vocabulary)
    benchmarks = _mark_contaminated(marks, prompts, unique, words, vocabulary, run)
    rates = _mark_rates(marks, prompts, shards, options)
    found = duplicates.find(
        prompts,
        unique,
        words,
        vocabulary,
        near=options.near,
        is_marked=(marks.flags != 0).tolist(),
        verifiers=verifiers,
        workers=options.workers,
        step=run.say,
    )
    _mark_duplicates(marks, prompts, found)
    table = output.table(prompts, marks, as_text=options.text, drop=options.drop)
    summary = {
        **_counts(prompts, marks, table.num_rows),
        "duplicates": {"exact": len(found.exact), "near": len(found.near)},
        "conflicts": len(found.conflicts),
        "benchmarks": benchmarks,
        "pass_rates": rates,
        "common": [_as_json(each) for each in common],
        "unchecked_verifiers": others,
        "notes": output.notes(prompts),
    }
    return table, summary


def _texts_once(prompts: rows.Prompts, unique: duplicates.Unique) -> Iterator[pa.Array]:
    """The different texts, in chunks: some sets have each prompt a hundred times."""
    import numpy as np
    import pyarrow as pa

    is_first = np.zeros(prompts.table.num_rows, bool)
    is_first[unique.first()] = True
    start = 0
    for chunk in prompts.table["text"].chunks:
        yield chunk.filter(pa.array(is_first[start : start + len(chunk)]))
        start += len(chunk)


def _mark_texts(
    marks: Marks, prompts: rows.Prompts, lengths: np.ndarray, verifiers: Sequence[str], max_words: int
) -> None:
    """Marks what the texts alone show. lengths: words of each prompt."""
    import numpy as np

    texts = prompts.table["text"]
    for number in np.flatnonzero(lengths == 0):
        marks.add(int(number), "empty", prompts.where(int(number)))
    for number in np.flatnonzero(lengths > max_words):
        marks.add(int(number), "too_long", f"{prompts.where(int(number))}: {lengths[number]:,} words")
    is_program = np.array([name == "code" for name in verifiers])
    for reason, found in (
        ("multiple_choice", rules.multiple_choice(texts)),
        ("figure", rules.needs_figure(texts)),
        ("proof", rules.asks_for_proof(texts)),
    ):
        for number in np.flatnonzero(found & ~is_program):
            marks.add(int(number), reason, prompts.where(int(number)))


def _mark_answers(marks: Marks, prompts: rows.Prompts, verifiers: Sequence[str], run: PrepareRun) -> dict[str, int]:
    """Marks answers that cannot be read. Returns how many rows go to verifiers whose answers are not looked at."""
    truths, known = (prompts.table[name].to_pylist() for name in ("ground_truth", "answer_problem"))
    answered = [
        truth if truth and truth.strip() and not problem else None for truth, problem in zip(truths, known, strict=True)
    ]
    unreadable = answers.unreadable(answered, verifiers, workers=run.options.workers, done=run.progress.advance)
    for number, (truth, problem, name) in enumerate(zip(answered, known, verifiers, strict=True)):
        if problem:
            marks.add(number, "unreadable_answer", f"{prompts.where(number)}: {problem}")
        elif truth is None:
            marks.add(number, "no_answer", prompts.where(number))
        elif why := unreadable.get((name, truth)):
            marks.add(number, "unreadable_answer", f"{prompts.where(number)}: {truth[:60]!r}: {why}")
    return dict(Counter(name for name in verifiers if name not in ("math", "code")))


def _without_common(
    prompts: rows.Prompts, unique: duplicates.Unique, words: Words, vocabulary: Vocabulary
) -> tuple[Words, list[Common]]:
    import numpy as np

    coded = prompts.table["data_source"].take(unique.first()).combine_chunks().dictionary_encode()
    return without_common(words, np.asarray(coded.indices), coded.dictionary.to_pylist(), vocabulary)


def read_benchmark(files: Sequence[Path], vocabulary: Vocabulary) -> tuple[Benchmark, list[int], list[int]]:
    """The prompts of benchmark files, each once; the number of the file of each; unreadable rows of each file.

    Raises InputError where a file has no column that prompts are looked for in.
    """
    import numpy as np

    try:
        prompts = rows.read(files, PromptColumns(), None)
    except InputError as error:
        hint = f"the prompts of a benchmark are looked for in the columns {', '.join(rows.PROMPT_COLUMNS)}"
        raise InputError(f"--contamination {error.message}", hint) from error
    unique = duplicates.unique_texts(prompts)
    words = vocabulary.encode(_texts_once(prompts, unique))
    words, _ = _without_common(prompts, unique, words, vocabulary)
    has_words = words.lengths() > 0
    numbers = unique.first()[has_words].tolist()
    names = [prompts.where(number) for number in numbers]
    texts = [prompts.text(number) for number in numbers]
    files_of = [prompts.table["file"][number].as_py() for number in numbers]
    unreadable = [file.unreadable for file in prompts.files]
    return Benchmark(names, texts, words.take(np.flatnonzero(has_words))), files_of, unreadable


def _mark_contaminated(
    marks: Marks,
    prompts: rows.Prompts,
    unique: duplicates.Unique,
    words: Words,
    vocabulary: Vocabulary,
    run: PrepareRun,
) -> list[Json]:
    """Marks prompts that hold a benchmark's prompt. Returns for each benchmark how many were found, and where."""
    import numpy as np

    options = run.options
    for number, name in enumerate(prompts.table[rows.CONTAMINATED_BY].to_pylist()):
        if name is not None:  # an earlier run has found it
            marks.contaminated_by[number] = name
            marks.add(number, "contaminated", f"{prompts.where(number)}: {name}, as found before")
    for column, found in ((rows.CONTAMINATION_SHARE, marks.shares), (rows.CONTAMINATION_WORDS, marks.words)):
        values = prompts.table[column].to_pylist()
        found.update((number, value) for number, value in enumerate(values) if value is not None)
    if not options.contamination:
        return []
    run.say("looking for the benchmarks")
    benchmark, files_of, unreadable = read_benchmark(options.contamination, vocabulary)
    first = unique.first()
    hits = _of_prompts(find_hits(words, lambda text: prompts.text(int(first[text])), benchmark, options.ngram), unique)
    marked = hits.share >= options.contamination_share - RATE_ROUNDING
    for number, item, share, longest, is_marked in zip(
        *(each.tolist() for each in (hits.prompt, hits.item, hits.share, hits.longest, marked)), strict=True
    ):
        marks.shares[number], marks.words[number] = share, longest
        if is_marked:
            marks.contaminated_by[number] = benchmark.names[item]
            example = f"{prompts.where(number)}: {share:.0%} of {benchmark.names[item]}, {longest} words in a row"
            marks.add(number, "contaminated", example)
    of_hit = np.array(files_of, np.int64)[hits.item]
    return [
        {
            "file": file.name,
            "prompts": files_of.count(place),
            "unreadable": unreadable[place],
            "found": len(np.unique(hits.item[marked & (of_hit == place)])),
            "in_prompts": int((marked & (of_hit == place)).sum()),
        }
        for place, file in enumerate(options.contamination)
    ]


def _of_prompts(hits: Hits, unique: duplicates.Unique) -> Hits:
    """The hits of all prompts, from those of the different texts."""
    import numpy as np

    members = [unique.members[text] for text in hits.prompt.tolist()]
    prompt = np.array([number for numbers in members for number in numbers], np.int64)
    of = np.repeat(np.arange(len(members)), [len(numbers) for numbers in members])
    order = np.argsort(prompt)
    of = of[order]
    return Hits(prompt[order], hits.item[of], hits.share[of], hits.longest[of])


def _mark_rates(
    marks: Marks, prompts: rows.Prompts, shards: Sequence[Shard], options: PrepareOptions
) -> dict[str, Json] | None:
    """Marks prompts by their pass rates. Returns what is known of the rates; None where there are none."""
    found = read_pass_rates(shards)
    ids = prompts.table["prompt_id"].to_pylist()
    for number, (prompt_id, rate) in enumerate(zip(ids, prompts.table[rows.PASS_RATE].to_pylist(), strict=True)):
        rate = found.rates.get(prompt_id, rate)
        if rate is not None:
            marks.rates[number] = rate
    matched = len(found.rates.keys() & set(ids))
    if shards and not matched:
        raise InputError(
            f"--pass-rate: none of the {len(found.rates)} prompts in the shards is among the {len(ids)} here",
            "sample the file that prepare has written, which has the ids, and prepare that file again",
        )
    if options.keep is not None:
        if not marks.rates:
            raise UsageError("--keep needs pass rates", "name graded shards with --pass-rate")
        _mark_difficulty(marks, prompts, options.keep)
    if not marks.rates:
        return None
    return {
        "prompts": len(marks.rates),
        "mean": sum(marks.rates.values()) / len(marks.rates),
        "of_other_prompts": len(found.rates) - matched,
        "ungraded_responses": found.ungraded,
    }


def _mark_difficulty(marks: Marks, prompts: rows.Prompts, keep: tuple[float, float]) -> None:
    for number in range(prompts.table.num_rows):
        rate = marks.rates.get(number)
        if rate is None:
            marks.add(number, "not_sampled", prompts.where(number))
        elif rate < keep[0] - RATE_ROUNDING:
            marks.add(number, "too_hard", f"{prompts.where(number)}: pass rate {rate:.3g}")
        elif rate > keep[1] + RATE_ROUNDING:
            marks.add(number, "too_easy", f"{prompts.where(number)}: pass rate {rate:.3g}")


def _mark_duplicates(marks: Marks, prompts: rows.Prompts, found: duplicates.Duplicates) -> None:
    marks.duplicate_of = found.of()
    for number, original in sorted(marks.duplicate_of.items()):
        marks.add(number, "duplicate", f"{prompts.where(number)} repeats {prompts.where(original)}")
    truths = prompts.table["ground_truth"]
    for number, original in found.conflicts:
        mine, other = (str(truths[each].as_py())[:60] for each in (number, original))
        example = f"{prompts.where(number)} has the answer {mine!r}, {prompts.where(original)} has {other!r}"
        marks.add(number, "conflict", example)
        marks.flags[original] |= 1 << REASONS.index("conflict")


def _counts(prompts: rows.Prompts, marks: Marks, written: int) -> dict[str, Json]:
    counted = marks.counts()
    total = prompts.table.num_rows
    return {
        "prompts": total,
        "unmarked": int((marks.flags == 0).sum()),
        "written": written,
        "files": [
            {"file": str(each.file), "rows": each.rows, "unreadable": each.unreadable, "prompt_column": each.column}
            for each in prompts.files
        ],
        "reasons": {reason: counted[reason] for reason in REASONS if counted[reason]},
        "examples": {reason: marks.examples[reason] for reason in REASONS if reason in marks.examples},
        "unreadable": list(prompts.unreadable),
    }


def _as_json(common: Common) -> Mapping[str, Json]:
    return {
        "data_source": common.source,
        "phrase": common.phrase,
        "prompts": common.prompts,
        "of": common.looked_at,
    }
