# SPDX-License-Identifier: Apache-2.0
"""The part of a backend that all boards share that a relay reaches."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tfq.backends import timing
from tfq.backends.protocol import Backend, BackendResult, RunRequest
from tfq.backends.worker import run_worker
from tfq.errors import warn

if TYPE_CHECKING:
    from tfq.backends.relay.board import Board
    from tfq.backends.relay.connection import Facts
    from tfq.backends.relay.transport import Transport

# A lower frequency than this fraction of the highest one is reported.
FREQUENCY_FRACTION = 0.9
_reached: set[str] = set()


class RelayBackend(Backend):
    """A board that is reached by a `Transport`. Subclasses say by which."""

    def transport(self) -> "Transport":
        """Return the way to the board."""
        raise NotImplementedError

    def unavailable(self) -> str | None:
        """Return why the board cannot be used and what to do about it, or None if it can.

        It is contacted; the answer that it can be reached is remembered until this process ends.
        """
        reason = self.kind.unavailable()
        if reason is None and self.name not in _reached:
            from tfq.backends.relay.board import unreachable

            reason = unreachable(self.transport())
            if reason is None:
                _reached.add(self.name)
        return reason

    def _board(self) -> "Board":
        from tfq.backends.relay.board import Board  # here, so that importing tfq stays fast

        return Board(self.transport())

    def assess(self, request: RunRequest) -> BackendResult:
        """Run the request on the board, as `Backend.assess` describes."""
        with self._board() as board:
            result = run_worker(
                (),
                request,
                backend=self.kind.name,
                start=board.start,
                resources=board.facts.resources,
                reports_memory=True,
            )
            notes = frequency_notes(board.facts.frequency) if request.num_runs else []
            machine = {**result.machine, **machine_facts(board.facts)}
        return dataclasses.replace(result, machine=machine, notes=(*result.notes, *notes))

    def time_models(self, request: timing.TimingRequest) -> tuple[list[timing.Timing], dict[str, Any]]:
        """Time models on the board with `timing.time_models`."""
        with self._board() as board:
            timings, machine = timing.time_models(
                (), request, backend=self.kind.name, start=board.start, resources=board.facts.resources
            )
            for note in frequency_notes(board.facts.frequency):
                warn(f"{self.kind.name}: {note}")
            return timings, {**machine, **machine_facts(board.facts)}

    def profile_ops(
        self, request: timing.TimingRequest, model: timing.TimedModel, kernels: str
    ) -> list[timing.OpEvent] | str:
        """Profile ops on the board with `timing.profile_ops`."""
        with self._board() as board:
            return timing.profile_ops(
                (), request, model, kernels, backend=self.kind.name, start=board.start, resources=board.facts.resources
            )


def machine_facts(facts: "Facts") -> dict[str, Any]:
    """Return the board's entries of a record: its model, and the CPU's governors and frequency during the run."""
    return {"board": facts.model or None, "frequency": dict(facts.frequency)}


def frequency_notes(frequency: Mapping[str, Any]) -> list[str]:
    """Return sentences about settings and events that change latencies."""
    notes = []
    governors = frequency.get("governors") or []
    if governors and governors != ["performance"]:
        notes.append(
            f"the governor {' and '.join(map(str, governors))} chooses the CPU's frequency, so latencies may vary. For "
            "repeatable latencies, set the governor performance on the board"
        )
    highest, lowest = frequency.get("highest_khz"), frequency.get("lowest_khz")
    if highest and lowest and lowest < FREQUENCY_FRACTION * highest:
        notes.append(
            f"the CPU's frequency fell from {highest / 1000:,.0f} to {lowest / 1000:,.0f} MHz during the run, so the "
            "latencies are not those of its full speed. The board may be too hot or lack power"
        )
    return notes
