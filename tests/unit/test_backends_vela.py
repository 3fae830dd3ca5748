# SPDX-License-Identifier: Apache-2.0
"""Reading what Vela 5.2.0 writes: its own output, recorded for two golden models on ethos-u55-128."""

import pytest
from golden_models import changed, golden
from messages import refused

from tfq import tflite
from tfq.backends import make_backend
from tfq.backends.vela.output import OpCost, ops_on_cpu, read_op_costs, read_reasons, read_summary
from tfq.errors import BackendError, InputError

COLUMNS = (
    "experiment,network,accelerator_configuration,system_config,memory_mode,core_clock,arena_cache_size,sram_bandwidth,"
    "dram_bandwidth,on_chip_flash_bandwidth,off_chip_flash_bandwidth,weights_storage_area,feature_map_storage_area,"
    "inferences_per_second,batch_size,inference_time,passes_before_fusing,passes_after_fusing,sram_memory_used,"
    "dram_memory_used,on_chip_flash_memory_used,off_chip_flash_memory_used,nn_macs,cycles_npu,cycles_total"
)
# float_island.tflite with Vela's default memory system.
SUMMARY = (
    f"{COLUMNS}\ndefault,model,Ethos_U55_128,Ethos_U55_High_End_Embedded,Shared_Sram,500000000.0,4194304.0,3.725,3.725,"
    "3.725,0.465,Off-chip Flash,SRAM,210084.03361344538,1,4.76e-06,7,7,2.0,0.0,0.0,0.28125,2816,2131,2380\n"
)
DATABASE = """<?xml version='1.0' encoding='UTF-8'?>
<debug source="vela/model">
<table name="perf">
<![CDATA[
"id","source_id","optimised_id","operator","name","staging_usage","op_cycles","npu_cycles","mac_count","shram_ac"
24,1,17,"Conv2D","net/conv/Relu;net/conv/Conv2D_act",320,736,736,2304,0
29,1,16,"Relu","net/conv/Relu;net/conv/Conv2D",256,512,512,256,0
31,2,15,"Passthrough","tfl.dequantize",0,0,0,0,0
33,3,14,"Passthrough","net_1/wave/Sin",0,0,0,0,0
35,4,13,"Passthrough","tfl.quantize",0,0,0,0,0
37,5,12,"DepthwiseConv2D","Identity_intermediate",320,876,876,256,0
41,5,11,"Mul","Identity",80,256,7,0,0
]]>
</table>
<table name="source">
<![CDATA[
"id","operator","kernel_w","kernel_h","ofm_w","ofm_h","ofm_d","ext_key"
1,"Conv2D",1,1,8,8,4,0
2,"Dequantize",1,1,8,8,4,1
3,"Sin",1,1,8,8,4,2
4,"Quantize",1,1,8,8,4,3
5,"Mean",1,1,1,1,4,4
]]>
</table>
</debug>
"""
LOG = """Tensor 'x0' has a dynamic signature in axis 0. Setting shape axis 0 to 1 and proceeding.

Warning (supported operators) operator: QUANTIZE, ofm: 'tfl.quantize'
Reason: Operation has tensor with unsupported DataType Float32 (net_1/wave/Sin)
Feature-map dataTypes must be one of {"INT16", "INT32", "INT64", "INT8", "UINT8"}

Warning (supported operators) operator: SIN, ofm: 'net_1/wave/Sin'
Reason: Unsupported opType

Warning: No system configuration specified. Using a default of Ethos_U55_High_End_Embedded.
"""


def test_summary_has_bytes_of_the_areas_that_hold_something():
    summary = read_summary(SUMMARY, LOG)
    assert summary.memory_bytes == {"sram": 2048, "off_chip_flash": 288}
    assert (summary.cycles, summary.npu_cycles, summary.multiply_adds) == (2380, 2131, 2816)
    assert (summary.accelerator, summary.core_clock_hz) == ("Ethos_U55_128", 500_000_000)


def test_constants_that_a_memory_mode_keeps_in_sram_count_as_sram():
    # argmax_int8.tflite on Ethos_U55_Deep_Embedded, Sram_Only: Vela calls this part of the SRAM on-chip flash.
    text = SUMMARY.replace("2.0,0.0,0.0,0.28125", "0.5,0.0,0.140625,0.0")
    moved = "Info: Changing const_mem_area from Sram to OnChipFlash. This will use the same characteristics as Sram."
    assert read_summary(text, LOG).memory_bytes == {"sram": 512, "on_chip_flash": 144}
    assert read_summary(text, moved).memory_bytes == {"sram": 656, "sram.arena": 512, "sram.constants": 144}


def test_costs_of_the_parts_of_an_op_are_added_up():
    costs = read_op_costs(DATABASE)
    assert costs == {0: OpCost(cycles=736 + 512, multiply_adds=2560), 4: OpCost(cycles=876 + 256, multiply_adds=256)}
    # Oracle: Vela's summary of the same compilation.
    summary = read_summary(SUMMARY, LOG)
    assert sum(cost.cycles for cost in costs.values()) == summary.cycles
    assert sum(cost.multiply_adds for cost in costs.values()) == summary.multiply_adds


def test_ops_that_are_still_in_the_compiled_model_are_on_the_cpu():
    model = tflite.read(golden("float_island"))

    def put_on_npu(file):
        """Replace the first op by the custom op that stands for the NPU, as Vela does."""
        operator = file.subgraphs[0].operators[0]
        operator.opcodeIndex = len(file.operatorCodes)
        code = type(file.operatorCodes[0])()
        code.builtinCode, code.deprecatedBuiltinCode, code.customCode = 32, 32, b"ethos-u"
        file.operatorCodes.append(code)

    compiled = tflite.read(changed(golden("float_island"), put_on_npu))
    assert [op.index for op in ops_on_cpu(model, compiled)] == [1, 2, 3, 4]
    with refused(BackendError, got="CONV_2D"):
        ops_on_cpu(compiled, model)


def test_tensor_names_with_quotes_commas_and_newlines_are_read():
    odd = DATABASE.replace('"net_1/wave/Sin"', '"a","b",1\n2,"c"')
    assert read_op_costs(odd) == read_op_costs(DATABASE)


def test_reasons_are_found_by_output_tensor():
    reasons = read_reasons(LOG)
    assert set(reasons) == {"tfl.quantize", "net_1/wave/Sin"}
    assert reasons["net_1/wave/Sin"] == "Unsupported opType"
    assert "INT16" in reasons["tfl.quantize"] and "configuration" not in reasons["tfl.quantize"]


@pytest.mark.parametrize("change", [("perf", "other"), ("ext_key", "key"), ("24,1,", "24,x,")])
def test_another_format_of_the_database_is_refused(change):
    with refused(BackendError, word="Vela's"):
        read_op_costs(DATABASE.replace(*change))


@pytest.mark.parametrize("text", ["", COLUMNS, SUMMARY.replace("cycles_total", "cycles")])
def test_another_format_of_the_summary_is_refused(text):
    with refused(BackendError, word="Vela's"):
        read_summary(text, "")


def test_address_selects_the_memory_system():
    with_file = make_backend("ethos-u65-256:my/vela.ini:System:Mode")
    assert (with_file.file, with_file.system, with_file.mode) == ("my/vela.ini", "System", "Mode")
    named = make_backend("ethos-u65-256:System:Mode")
    assert (named.file, named.system, named.mode, named.kind.how) == ("", "System", "Mode", "estimated")
    for address in ("System", "System:", ":Mode"):
        with refused(InputError, field="evaluation.backend", got=address):
            make_backend(f"ethos-u65-256:{address}")
