# SPDX-License-Identifier: Apache-2.0
"""Share the examples of a command among the workers of the executor in its config."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tfq import artifacts
from tfq.config import RunConfig
from tfq.executors import Distribution, distributed, open_executor


@contextlib.contextmanager
def on_executor(config: RunConfig) -> Iterator[Distribution | None]:
    """Share the examples of what runs inside among the workers of `config.executor`; None if it names none.

    Raises:
        InputError: The executor is not installed, or its address is wrong.
        TfqError: It cannot be started.
    """
    settings = config.executor
    if not settings.name:
        yield None
        return
    with contextlib.ExitStack() as stack:
        # Without an output directory there is nothing to resume from.
        out = artifacts.make_out_dir(config.out) if config.out else Path(stack.enter_context(_temporary()))
        executor = stack.enter_context(open_executor(settings.name, num_workers=settings.num_workers or None))
        yield stack.enter_context(distributed(executor, out, num_shards=settings.num_shards))


def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tfq-")
