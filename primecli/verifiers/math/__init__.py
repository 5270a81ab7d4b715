"""Grades mathematical answers: finds the final answer of a response and compares it with the gold answer.

| module | what it does |
|---|---|
| `verifier` | `MathVerifier`: `prepare` in the caller's process, `settle` in a worker; start here |
| | *where the answer is extracted* |
| `extract` | the final answer of a response: the last box, else what the last final-answer phrase announces |
| `extract_fallback` | for a response without either: the whole of a short one, else its last number or formula |
| | *how an answer is read* |
| `normalize` | an answer in one spelling of LaTeX |
| `spellings` | relations in ASCII, unit vectors, dots, piecewise functions and `mod`, for `normalize` |
| `characters` | typographic and foreign characters in ASCII and LaTeX, for `normalize` |
| `parts` | splits an answer into lists, intervals, sets and matrices, down to single values |
| `matrices` | explicit matrices, and what their sums, products and powers come to; vectors in i, j and k |
| `sequences` | lists with dots, and the order of named values |
| `leaf` | one single value: a choice letter, words, a time, a ratio, digits in a base, or an expression with a unit |
| `units` | cuts the unit off an expression and spells it in one way, for `leaf` |
| `measures` | the units of measurement, and what one is in another |
| `compound` | quantities in several units, and products and sums of quantities, for `leaf` |
| `clock` | times of day |
| `words` | numbers and dates in words, and the one number of a sentence, for `leaf` |
| `parse` | an expression as a tree |
| `tree` | what such a tree is made of |
| `tokens` | an expression as tokens, and the names of functions and constants, for `parse` |
| | *how two answers are compared* |
| `equal` | two answers, part by part |
| `equal_equations` | two equations, or a value and an equation |
| `equal_forms` | vectors, and sums with dots |
| `congruences` | residue classes |
| `relations` | two equations or inequalities; what an inequality says, as an interval |
| `real_sets` | sets of real numbers by their values |
| `equal_values` | two single values: letters, words, times, ratios, quantities with units |
| `equal_expressions` | two expressions: exactly, else to 200 digits at random points |
| `constants` | arbitrary constants and integer parameters, whose names do not matter |
| `evaluate` | the value of a tree, exactly or to so many digits, for `equal_expressions` |
| `equal_by_sympy` | two expressions that `parse` does not read |

`prepare` uses all of these but `equal_by_sympy`, with numbers of bounded size (`bounded=True`). What that leaves
undecided goes to a worker (`settle`), which may use sympy and far larger numbers (`bounded=False`). Nothing here
bounds its time: the deadline of a comparison by sympy is the `timeout` of `GradingPool` in primecli/verifiers/pool.py,
which is `--timeout` of `primecli verify`.
"""
