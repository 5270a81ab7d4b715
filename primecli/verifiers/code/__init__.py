"""Grades programs: runs the program of a response against the tests in its ground truth.

| module | what it does |
|---|---|
| `verifier` | `CodeVerifier`: from a response to a grade; start here |
| `ground_truth` | reads the tests in a ground truth |
| `extract` | finds the program in a response |
| `run` | runs the tests, in as many sandboxes as it takes, and says which passed |
| `show` | a value as people read it, in a failure |
| `compare` | whether stdout, or a returned value, is what the data set expects |

A program runs in a sandbox (primecli/verifiers/sandbox). For stdin tests and call tests, its output comes out of there
as messages and is compared in this process, which the program cannot reach; the messages are never made into values
here. The test code of HumanEval and MBPP runs in a second sandbox, the referee, and calls the program through a pipe.

Three deadlines: `test_timeout` for one test, `program_timeout` for all tests of a program, and `pool_timeout` for
`GradingPool`, in case the other two fail.
"""
