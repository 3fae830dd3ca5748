# SPDX-License-Identifier: Apache-2.0
"""What a backend can be asked for, and which backends there are."""

import numpy as np
import pytest

from tfq.backends import RUNNERS, Backend, LocalBackend, QemuBackend, RunRequest, make_backend
from tfq.errors import InputError

CODES = np.zeros((2, 3), np.int8)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": b""}, "the model is empty"),
        ({"inputs": ()}, "no input arrays"),
        ({"inputs": (CODES, CODES[:1])}, r"the inputs hold \[2, 1\] examples"),
        ({"inputs": (np.zeros((0, 3), np.int8),)}, "at least one example"),
        ({"inputs": (np.int8(3),)}, "input 0 is a int8"),
        ({"inputs": (np.array(3, np.int8),)}, "at least one example"),
        ({"inputs": (np.array([object()]),)}, "input 0 is a object array"),
        ({"inputs": (np.array(["text"]),)}, "wanted a NumPy array of numbers"),
        ({"num_threads": 0}, "num_threads=0"),
        ({"num_runs": -1}, "num_runs=-1"),
        ({"warmup_runs": -1}, "warmup_runs=-1"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"timeout_secs": -0.5}, "timeout_secs=-0.5"),
        ({"timeout_secs": float("nan")}, "timeout_secs=nan"),
        ({"kernels": "xnpack"}, "did you mean 'xnnpack'"),
    ],
)
def test_a_request_that_no_model_could_take_is_refused(change, told):
    with pytest.raises(InputError, match=told):
        RunRequest(**{"model": b"x", "inputs": (CODES,), **change})


def test_every_runner_of_the_registry_is_what_its_name_says():
    for name in RUNNERS:
        backend = make_backend(name)
        assert isinstance(backend, Backend)
        assert backend.name == name
        assert backend.emulated == name.startswith("qemu:")
    assert isinstance(make_backend("local"), LocalBackend)
    assert isinstance(make_backend("qemu:cortex-a53"), QemuBackend)


def test_a_typo_in_a_runner_gets_a_suggestion():
    with pytest.raises(InputError, match="unknown backend 'qemu:cortex-a35': did you mean 'qemu:cortex-a53'"):
        make_backend("qemu:cortex-a35")
    with pytest.raises(InputError, match=r"choose from local, qemu:cortex-a53, qemu:cortex-a76"):
        make_backend("gpu")
