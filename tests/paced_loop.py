"""A stage that does nothing but what a loop can see of it, to test when an asynchronous loop runs what."""

from __future__ import annotations

import stat
from pathlib import Path

# It needs its model's weights, and makes a checkpoint's. The update of iteration 1 and the sampling for iteration 2
# each wait for the other to begin, so that the loop ends only if they run together.
STAGE = """#!/bin/bash
set -eu
stage=$1; shift
name=; model=; checkpoint=
while [ $# -gt 0 ]; do
  case $1 in
    --step) name=$2 ;;
    --model | --policy) model=$2 ;;
    --checkpoint) checkpoint=$2 ;;
    --out) [ -n "$name" ] || name=eval-$(basename "$(dirname "$2")") ;;
  esac
  shift
done
wait_for() { for _ in {1..200}; do grep -q "^begin $1\\$" LOG && return; sleep 0.05; done; exit 1; }
[ -z "$model" ] || cat "$model/model.safetensors" > /dev/null
case $stage in
  generate) echo "begin generate $name" >> LOG
    if [ "$name" = 2 ]; then wait_for "update-policy 1"; else sleep 0.1; fi
    echo "end generate $name" >> LOG ;;
  update-policy) cat > /dev/null
    name=$(basename "$checkpoint")
    echo "begin update-policy $name" >> LOG
    [ "$name" != 1 ] || wait_for "generate 2"
    mkdir -p "$checkpoint"; echo > "$checkpoint/model.safetensors"
    echo "end update-policy $name" >> LOG ;;
  report) mkdir -p run; touch run/report.html ;;
  *) cat > /dev/null ;;
esac
"""


class PacedLoop:
    """The stage, as a command, and what it has logged. directory: where both are."""

    def __init__(self, directory: Path) -> None:
        self.stage = directory / "stage"
        self._log = directory / "log"
        self.stage.write_text(STAGE.replace("LOG", str(self._log)))
        self.stage.chmod(stat.S_IRWXU)

    def check_order(self, iterations: int) -> None:
        """Asserts that an asynchronous loop that evaluates every policy has done all in order, as early as it may."""
        log = self._log.read_text().splitlines()
        sampling = ["1"]
        for number in range(iterations + 1):
            sampling += [f"eval-{number}", str(number + 2)]
        expected = [each for each in sampling if not each.isdigit() or int(each) <= iterations]
        found = [line.replace(" generate", "") for line in log if "generate" in line]
        assert found == [f"{event} {name}" for name in expected for event in ("begin", "end")]  # one at a time
        found = [line.replace(" update-policy", "") for line in log if "update-policy" in line]
        assert found == [f"{event} {number + 1}" for number in range(iterations) for event in ("begin", "end")]
        for number in range(2, iterations + 1):
            assert log.index(f"begin update-policy {number}") > log.index(f"end generate {number}")
        for number in range(3, iterations + 1):
            assert log.index(f"begin generate {number}") > log.index(f"end update-policy {number - 2}")
