"""Prompt files in, one prompt file out: in one layout, with a mark on every row that is better not trained on.

| module | what is in it |
|---|---|
| `prepare` | the options of `primecli prepare`, and the run |
| `rows` | the prompts of all files, as Arrow columns |
| `rules` | marks that a prompt's text alone gives: empty, too long, multiple choice, needs a figure, a proof |
| `answers` | answers that the verifier cannot read, and whether two answers are the same |
| `duplicates` | exact and near duplicates, and duplicates whose answers differ |
| `near`, `alike` | which pairs are looked at, and how two prompts are compared |
| `contamination` | how much of a benchmark's prompt stands in a prompt |
| `pass_rates` | how often a prompt was solved, from graded rollout shards |
| `words` | texts as arrays of words and hashes of n-grams |
| `output`, `report` | the file that is written, and what is said about it |
"""
