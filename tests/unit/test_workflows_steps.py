# SPDX-License-Identifier: Apache-2.0
"""What determines the result of a stage, and what does not."""

import pytest

from tfq import artifacts, workflows
from tfq.backends.qemu import sysroot
from tfq.backends.qemu.sysroot_build import Sysroot
from tfq.config import DataConfig, RunConfig
from tfq.store import StageStore
from tfq.workflows import run as run_module
from tfq.workflows.run import Loaded, Run, _compressed


def compressed_to(model):
    return workflows.Compressed(model=model, user_model=None, details={"sparsity": {}})


def run_of(model, out):
    config = RunConfig(model=str(model), data=DataConfig(source="digits"), out=str(out))
    return Run(config=config, out=out, store=StageStore(out), allow_code=True)


def test_a_renamed_model_reuses_the_result_under_its_own_name(tmp_path, monkeypatch):
    monkeypatch.setattr(workflows, "load", lambda config, allow_code: "model")
    monkeypatch.setattr(workflows, "compress", lambda model, config, allow_code: compressed_to(f"compressed {model}"))
    monkeypatch.setattr(workflows, "save_keras", lambda model, path: artifacts.write_text(path, model))
    out = tmp_path / "out"
    out.mkdir()
    resumed = []
    for name in ("one", "other"):
        (tmp_path / f"{name}.h5").write_bytes(b"weights")
        run = run_of(tmp_path / f"{name}.h5", out)
        _, result = _compressed(run, Loaded(run.config, allow_code=run.allow_code))
        resumed.append(result.resumed)
        assert (out / f"{name}_pruned_qat.h5").read_text() == "compressed model"
    assert resumed == [False, True]


def test_the_stages_result_of_a_trusted_model_loads_with_code(tmp_path, monkeypatch):
    allowed = []
    monkeypatch.setattr(workflows, "load", lambda config, allow_code: allowed.append(allow_code) or "model")
    monkeypatch.setattr(workflows, "compress", lambda model, config, allow_code: compressed_to(model))
    monkeypatch.setattr(workflows, "save_keras", lambda model, path: artifacts.write_text(path, model))
    (tmp_path / "one.h5").write_bytes(b"weights")
    run = run_of(tmp_path / "one.h5", tmp_path)
    compressed, _ = _compressed(run, Loaded(run.config, allow_code=run.allow_code))
    assert compressed.model == "model"
    assert allowed == [True, True]


@pytest.mark.parametrize("what", ["cores", "cpu", "emulator"])
def test_a_measurement_is_of_its_machine(what, tmp_path, monkeypatch):
    emulator = {"directory": tmp_path, "cpus": ("cortex-a53",)}
    monkeypatch.setattr(sysroot, "find", lambda: Sysroot(**emulator, qemu="7.2"))
    before = run_module._machine("local", "qemu:cortex-a53")
    assert run_module._machine("local", "qemu:cortex-a53") == before
    if what == "cores":
        monkeypatch.setattr(run_module.os, "sched_getaffinity", lambda pid: set(range(99)))
    elif what == "cpu":
        monkeypatch.setattr(run_module, "cpu", lambda: {"model": "another"})
    else:
        monkeypatch.setattr(sysroot, "find", lambda: Sysroot(**emulator, qemu="8.0"))
    assert run_module._machine("local", "qemu:cortex-a53") != before
