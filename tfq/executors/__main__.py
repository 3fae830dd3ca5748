# SPDX-License-Identifier: Apache-2.0
"""Run one task: the request is read from stdin, and the reply written to stdout (`call.py` describes both).

For executors that start a process for each task, such as those of batch systems. Usage: python -m tfq.executors
"""

import json
import os
import sys

from tfq.executors.worker import run_in_this_process

if __name__ == "__main__":
    replies = os.dup(1)
    os.dup2(2, 1)  # libraries print
    reply = run_in_this_process(json.load(sys.stdin))
    with os.fdopen(replies, "w") as file:
        json.dump(reply, file)
