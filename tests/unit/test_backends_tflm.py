# SPDX-License-Identifier: Apache-2.0
"""Reading the allocations that TensorFlow Lite Micro lists, recorded from the tflite-micro wheel."""

import pytest

from tfq.backends.target.tflm import TOO_SMALL, read_allocations

# digits_int8.tflite, tflite-micro 0.dev20261023182759.
RECORDED = (
    "[RecordingMicroAllocator] Arena allocation total 5392 bytes\r\n"
    "[RecordingMicroAllocator] Arena allocation head 2304 bytes\r\n"
    "[RecordingMicroAllocator] Arena allocation tail 3088 bytes\r\n"
    "[RecordingMicroAllocator] 'TfLiteEvalTensor data' used 504 bytes with alignment overhead (requested 504 bytes for "
    "21 allocations)\r\n"
    "[RecordingMicroAllocator] 'NodeAndRegistration struct' used 576 bytes with alignment overhead (requested 576 "
    "bytes for 9 NodeAndRegistration structs)\r\n"
)


def test_allocations_are_itemized_and_add_up():
    memory = read_allocations(RECORDED)
    assert memory["arena"] == 5392 == memory["arena.head"] + memory["arena.tail"]
    items = {name: size for name, size in memory.items() if name.startswith("arena.tail.")}
    assert items["arena.tail.NodeAndRegistration struct"] == 576
    assert sum(items.values()) == memory["arena.tail"]


def test_missing_total_is_an_error():
    with pytest.raises(ValueError):
        read_allocations(RECORDED.replace("total 5392", "total ?"))


def test_only_messages_about_a_small_arena_make_it_grow():
    assert TOO_SMALL.search("Failed to allocate tail memory. Requested: 24, available 16, missing: 8")
    assert not TOO_SMALL.search("Didn't find op for builtin opcode 'SELECT'")
