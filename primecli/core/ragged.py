"""Ragged rows (flat values and lengths, as Arrow stores lists), padded (B, T) tensors, and batches of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def response_mask(lengths: Tensor) -> Tensor:
    """True at the first `lengths[i]` positions of row i.

    lengths: (B,), tokens. Returns (B, max(lengths)) bool.

    >>> response_mask(torch.tensor([1, 3]))
    tensor([[ True, False, False],
            [ True,  True,  True]])
    """
    width = int(lengths.max()) if lengths.numel() else 0
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]


def pad(values: Tensor, lengths: Tensor, fill: float = 0) -> Tensor:
    """Flat values to rows, padded on the right.

    values: (N,), row after row; lengths: (B,), tokens, N in total.
    Returns (B, max(lengths)) of the dtype of `values`.

    >>> pad(torch.tensor([7, 8, 9]), torch.tensor([1, 2]))
    tensor([[7, 0],
            [8, 9]])
    """
    mask = response_mask(lengths)
    padded = values.new_full(mask.shape, fill)
    padded[mask] = values
    return padded


def unpad(padded: Tensor, mask: Tensor) -> Tensor:
    """The values under the mask, row after row: the inverse of `pad`.

    padded: (B, T); mask: (B, T) bool. Returns (N,).

    >>> unpad(torch.tensor([[7, 0], [8, 9]]), torch.tensor([[True, False], [True, True]]))
    tensor([7, 8, 9])
    """
    return padded[mask]


def row_sums(values: Tensor, lengths: Tensor) -> Tensor:
    """The sum of each row's values, which depends on no other row.

    values: (N,), row after row; lengths: (B,), N in total. Returns (B,).

    >>> row_sums(torch.tensor([7, 8, 9]), torch.tensor([1, 2]))
    tensor([ 7, 17])
    """
    return pad(values, lengths).sum(-1)


def micro_batches(lengths: Sequence[int], micro_batch_tokens: int) -> Iterator[list[int]]:
    """Groups rows into batches of at most `micro_batch_tokens` tokens each, padding included.

    Rows are taken from the longest to the shortest, so the rows of a batch have similar lengths, and if the first batch
    fits into memory, all do. A row that is longer than the budget gets a batch of its own.

    lengths: tokens of each row. Yields lists of row numbers; each row comes once.

    >>> list(micro_batches([2, 9, 3, 4], micro_batch_tokens=10))
    [[1], [3, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batch: list[int] = []
    for row in order:
        longest = lengths[batch[0]] if batch else lengths[row]
        if batch and longest * (len(batch) + 1) > micro_batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def packed_batches(
    prompts: Sequence[int], prompt_lengths: Sequence[int], response_lengths: Sequence[int], micro_batch_tokens: int
) -> Iterator[list[int]]:
    """Groups rows into batches of at most `micro_batch_tokens` tokens each, counting a prompt that rows share once.

    The rows of a prompt stay together as far as the budget allows, and the longest row is in the first batch. A row
    that is longer than the budget gets a batch of its own.

    prompts: for each row a number that is the same for the same prompt. prompt_lengths, response_lengths: tokens of
    each row's prompt and response. Yields lists of row numbers; each row comes once.

    >>> list(packed_batches([0, 0, 1, 0], [5, 5, 1, 5], [3, 2, 2, 2], micro_batch_tokens=10))
    [[0, 1], [3, 2]]
    """
    members: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        members.setdefault(prompt, []).append(row)
    for rows in members.values():
        rows.sort(key=lambda row: (-response_lengths[row], row))
    longest_first = sorted(
        members.values(), key=lambda rows: (-prompt_lengths[rows[0]] - response_lengths[rows[0]], rows[0])
    )
    batch: list[int] = []
    tokens = 0
    for rows in longest_first:
        has_prompt = False  # whether the batch holds the prompt already
        for row in rows:
            added = response_lengths[row] + (0 if has_prompt else prompt_lengths[row])
            if batch and tokens + added > micro_batch_tokens:
                yield batch
                batch, tokens = [], 0
                added = response_lengths[row] + prompt_lengths[row]
            batch.append(row)
            tokens += added
            has_prompt = True
    if batch:
        yield batch
