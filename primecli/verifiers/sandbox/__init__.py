"""The processes in which untrusted programs, and the tests that call them, run.

| module | what it does |
|---|---|
| | *in the caller's process* |
| `process` | starts a process in a sandbox, with bubblewrap or resource limits, and exchanges messages; start here |
| `referee_host` | starts the referee, hands it one job after another, and reads its reports |
| | *in the sandbox with the program* |
| `guest` | compiles the program, runs it once for each stdin test, or answers calls of its functions |
| `seccomp` | what the kernel then refuses it: system calls, and a view of other processes (Landlock) |
| `scratch` | the directory in which it may write |
| `leetcode` | the names that a class Solution finds without importing them |
| | *in the sandbox of the referee* |
| `referee` | runs the test code of HumanEval and MBPP, in which the program's functions are stand-ins |
| `names` | which names in that code are the program's, and which the tests or Python define |
| `mirror` | the program's exceptions, and what it did to the arguments of a call |
| | *in all of them* |
| `codec` | values as JSON messages, by exact type |

A process in a sandbox cannot see the files of primecli, so `process` sends it the compiled code of its modules. Those
modules import nothing but each other and the standard library, and what is loaded for every program is quick to import.

For each program `primecli.verifiers.code.run` starts a `Process` with `guest` in it. It sends stdin tests and calls
itself. For other test code it hands the pipes of that process to the referee, which asks the program and sends reports.
"""
