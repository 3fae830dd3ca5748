# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C in a command."""

import signal
import sys
import time

import pytest

from tfq.cli import process


class _InterruptedWhileDeleted:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_python_drops_in_a_finalizer_still_ends_the_command(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt), process._noted_interrupts() as interrupts:
            item = _InterruptedWhileDeleted()
            del item
            time.sleep(10)
        assert time.monotonic() - start < 5
        assert len(interrupts) == 2
    finally:
        signal.signal(signal.SIGINT, before)
