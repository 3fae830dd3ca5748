# SPDX-License-Identifier: Apache-2.0
"""Requests to backends, and the registered backends."""

import numpy as np
import pytest
from messages import refused

from tfq.backends import (
    Backend,
    BackendKind,
    BackendResult,
    LocalBackend,
    QemuBackend,
    RunRequest,
    backend_choices,
    find_kind,
    kind_of,
    make_backend,
    timing_backend,
)
from tfq.backends.protocol import TimingBackend
from tfq.errors import BackendError, InputError

QUANTIZED = np.zeros((2, 3), np.int8)


@pytest.mark.parametrize(
    ("change", "field", "got"),
    [
        ({"model": b""}, "model", b""),
        ({"inputs": ()}, "inputs", 0),
        ({"inputs": (QUANTIZED, QUANTIZED[:1])}, "inputs", [2, 1]),
        ({"inputs": (np.zeros((0, 3), np.int8),)}, "inputs[0]", (0, 3)),
        ({"inputs": (np.int8(3),)}, "inputs[0]", "int8"),
        ({"inputs": (np.array(3, np.int8),)}, "inputs[0]", ()),
        ({"inputs": (np.array([object()]),)}, "inputs[0]", "object array"),
        ({"inputs": (np.array(["text"]),)}, "inputs[0]", "<U4 array"),
        ({"num_threads": 0}, "num_threads", 0),
        ({"num_runs": -1}, "num_runs", -1),
        ({"warmup_runs": -1}, "warmup_runs", -1),
        ({"num_workers": -1}, "num_workers", -1),
        ({"timeout_secs": -0.5}, "timeout_secs", -0.5),
        ({"timeout_secs": np.nan}, "timeout_secs", np.nan),
        ({"kernels": "xnpack"}, "kernels", "xnpack"),
    ],
)
def test_a_request_that_no_model_could_take_is_refused(change, field, got):
    with refused(InputError, field=field, got=got):
        RunRequest(**{"model": b"x", "inputs": (QUANTIZED,), **change})


def test_every_backend_is_what_its_name_says():
    # "[:ADDRESS]" describes an optional address, "ssh:[user@]host" a required one.
    names = [choice.partition("[")[0] for choice in backend_choices()]
    names = [f"{name}host" if name.endswith(":") else name for name in names]
    assert {
        "local",
        "qemu:cortex-a53",
        "qemu:cortex-a76",
        "tflm",
        "ssh:host",
        "adb",
        "ethos-u55-128",
        "ethos-u85-2048",
    } <= set(names)
    for name in names:
        backend = make_backend(name)
        assert isinstance(backend, Backend)
        assert backend.name == name
        assert find_kind(name) is backend.kind
        assert isinstance(backend, TimingBackend) == backend.kind.times
    assert isinstance(make_backend("local"), LocalBackend)
    assert isinstance(make_backend("qemu:cortex-a53"), QemuBackend)


def test_a_kind_declares_what_it_can_do():
    local, qemu = kind_of("local"), kind_of("qemu:cortex-a53")
    assert (local.how, local.times, local.counts_instructions, local.emulated) == ("measured", True, False, False)
    assert (qemu.how, qemu.times, qemu.counts_instructions, qemu.emulated) == ("emulated", False, True, True)
    with pytest.raises(BackendError) as caught:
        timing_backend(make_backend("qemu:cortex-a76"))
    assert (caught.value.field, caught.value.expected) == ("benchmark.backend", ("adb", "local", "ssh"))


@pytest.mark.parametrize("name", ["qemu:cortex-a35", "qemu", "qemu:", "gpus", "local:", "local:here", ""])
def test_an_unknown_kind_or_address_is_an_input_error(name):
    with pytest.raises(InputError) as caught:
        make_backend(name)
    assert (caught.value.field, caught.value.expected, caught.value.got) == (
        "evaluation.backend",
        backend_choices(),
        name,
    )


def test_a_typo_in_an_address_gets_a_suggestion():
    with refused(InputError, field="evaluation.backend", word="'qemu:cortex-a53'"):
        make_backend("qemu:cortex-a35")


def test_a_kind_of_free_addresses_takes_what_it_describes():
    def kind(**facts):
        return BackendKind(name="ssh", help="a board", open=lambda address: None, **facts)

    needed, optional = kind(address="HOST", needs_address=True), kind(address="HOST")
    assert needed.choices() == ("ssh:HOST",)
    assert optional.choices() == ("ssh[:HOST]",)
    assert [needed.accepts_address(address) for address in ("", "pi")] == [False, True]
    assert [optional.accepts_address(address) for address in ("", "pi")] == [True, True]
    assert needed.label("pi") == "ssh:pi"
    assert kind_of("qemu:cortex-a53").label("cortex-a53") == "cortex-a53"
    with pytest.raises(InputError) as caught:
        kind(how="emulated", times=True)
    assert caught.value.field == "times"


def test_a_result_has_a_value_or_a_reason():
    result = BackendResult(how="estimated", figures={"multiply_adds": 7})
    assert (result.outputs, result.outputs_reason) == (None, "this backend does not report it")
    with pytest.raises(BackendError):
        result.computed_outputs()
    with pytest.raises(InputError) as caught:
        BackendResult(how="measured", outputs=(QUANTIZED,), outputs_reason="none")
    assert caught.value.field == "outputs_reason"
    with pytest.raises(InputError) as caught:
        BackendResult(how="guessed")
    assert caught.value.got == "guessed"
