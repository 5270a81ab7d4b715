"""`primecli prepare`."""

from __future__ import annotations

from primecli.generation.preparation import prepare as stage


def prepare(options: stage.PrepareOptions) -> None:
    """Reads prompt files of any layout that generate knows and writes one Parquet file in verl's layout, which generate
    and verl read as it is. Rows that are better not trained on get a mark in the column `reason`, such as duplicate or
    contaminated; --drop leaves them out. docs/data.md lists the marks and the rules behind them.

    Near duplicates are found whatever their order; prompts that differ in a number or a sign are different problems. Of
    duplicates the first is kept; where their answers differ, all of them are marked as a conflict.

    Example:

      \b
      primecli prepare train.jsonl more.parquet --contamination math500.jsonl --out prompts.parquet
      primecli generate --model $SFT --prompts prompts.parquet --n 8 --out runs/rates/generate | primecli verify
      primecli prepare prompts.parquet --pass-rate runs/rates/verify --keep 0.2 0.8 --drop --out train.parquet
    """
    stage.prepare(options)
