# SPDX-License-Identifier: Apache-2.0
"""What each rank of a contender's gang runs: `python -m pmrun.bench BINDING OPTION PLAN`, with the plan as JSON.

Rank 0 writes a JSON line for the world and one for each point to its standard output, as it has them. Invariant: an
error that was foreseen is one line on standard error and exit code 1.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from .bindings import open_binding
from .checks import WrongResult
from .measure import Plan, run


def say(line: dict[str, Any]) -> None:
    """Write one line, at once."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Be one rank."""
    name, option, text = arguments
    binding = open_binding(name, option)
    if binding.rank == 0:
        say({"kind": "world", "ranks": binding.size, "nodes": binding.nodes, "transport": binding.transport})
    try:
        run(binding, Plan(**json.loads(text)), say)
    except WrongResult as error:
        print(f"pmrun bench: wrong result: {error}", file=sys.stderr)
        return 1
    binding.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
