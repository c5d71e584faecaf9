"""A roofline's bytes and FLOPs are those computed by hand, and the compiler's descriptions of GPUs are accepted."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding
from test_plan import tiny

from t5x_lite.costs import accelerators, hlo, plan, roofline, topology
from t5x_lite.errors import ConfigError

H200 = accelerators.ACCELERATORS["h200"]

# A product [8, 16] × [16, 4], four turns of a loop, one of two branches, an update in place, and a kernel that says its
# FLOPs. FileNames: a library calls the line of ours.
HLO = """HloModule hand, is_scheduled=true

FileNames
1 "PACKAGE/models/layers.py"
2 "/x/site-packages/lib/norm.py"

FunctionNames
1 "Dense.<locals>.__call__"
2 "norm"

FileLocations
1 {file_name_id=1 function_name_id=1 line=12 end_line=12 column=2 end_column=9}
2 {file_name_id=2 function_name_id=2 line=3 end_line=3 column=2 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}

%product_computation (a: bf16[8,16], b: bf16[16,4]) -> bf16[8,4] {
  %a = bf16[8,16]{1,0} parameter(0)
  %b = bf16[16,4]{1,0} parameter(1)
  ROOT %dot.1 = bf16[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%update_computation (c: f32[100,4], d: f32[4], i: s32[]) -> f32[100,4] {
  %c = f32[100,4]{1,0} parameter(0)
  %d = f32[4]{0} parameter(1)
  %i = s32[] parameter(2)
  %row = f32[1,4]{1,0} bitcast(%d)
  %zero = s32[] constant(0)
  ROOT %dus = f32[100,4]{1,0} dynamic-update-slice(%c, %row, %i, %zero)
}

%body (state: (s32[], f32[100,4])) -> (s32[], f32[100,4]) {
  %state = (s32[], f32[100,4]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%state), index=0
  %stack = f32[100,4]{1,0} get-tuple-element(%state), index=1
  %value = f32[4]{0} broadcast(%n), dimensions={}
  %fusion.2 = f32[100,4]{1,0} fusion(%stack, %value, %n), kind=kLoop, calls=%update_computation
  ROOT %next = (s32[], f32[100,4]{1,0}) tuple(%n, %fusion.2)
}

%condition (state: (s32[], f32[100,4])) -> pred[] {
  %state.1 = (s32[], f32[100,4]{1,0}) parameter(0)
  %n.1 = s32[] get-tuple-element(%state.1), index=0
  %four = s32[] constant(4)
  ROOT %less = pred[] compare(%n.1, %four), direction=LT
}

%yes (p: f32[10]) -> f32[10] {
  %p = f32[10]{0} parameter(0)
  %twice = f32[10]{0} add(%p, %p), metadata={op_name="add" stack_frame_id=2}
  ROOT %again = f32[10]{0} negate(%twice)
}

%no (q: f32[10]) -> f32[10] {
  ROOT %q = f32[10]{0} parameter(0)
}

ENTRY %main (x: bf16[8,16], y: bf16[16,4], z: (s32[], f32[100,4]), v: f32[10], flag: pred[]) -> f32[10] {
  %x = bf16[8,16]{1,0} parameter(0)
  %y = bf16[16,4]{1,0} parameter(1)
  %z = (s32[], f32[100,4]{1,0}) parameter(2)
  %v = f32[10]{0} parameter(3)
  %flag = pred[] parameter(4)
  %fusion.1 = bf16[8,4]{1,0} fusion(%x, %y), kind=kCustom, calls=%product_computation, metadata={stack_frame_id=2}
  %loop = (s32[], f32[100,4]{1,0}) while(%z), condition=%condition, body=%body
  %call = bf16[8,4]{1,0} custom-call(%fusion.1), custom_call_target="kernel", metadata={op_name="a/heads_flops_77/b"}
  %strange = bf16[8,4]{1,0} custom-call(%call), custom_call_target="strange"
  ROOT %cond = f32[10]{0} conditional(%flag, %v, %v), true_computation=%yes, false_computation=%no
}
"""


def test_bytes_flops_and_times_by_hand():
    text = HLO.replace("PACKAGE", str(hlo.PACKAGE))
    measured = roofline.measure(hlo.parse(text), H200)
    product = {"kernels": 1, "bytes": 2 * (8 * 16 + 16 * 4 + 8 * 4), "flops": 2 * 8 * 16 * 4}
    update = 4 * (16 + 16 + 4 + 4)  # four turns: reads the value and the number (also as the operand), writes a row
    value = 4 * (4 + 16)
    kinds = {name: {key: kind[key] for key in product} for name, kind in measured["by_kind"].items()}
    assert kinds["product"] == product
    assert kinds["kernel"] == {"kernels": 1, "bytes": 2 * 2 * 32, "flops": 77}
    assert kinds["strange"] == {"kernels": 1, "bytes": 2 * 2 * 32, "flops": 0}
    assert kinds["copy"] == {"kernels": 4, "bytes": value, "flops": 0}
    branch = (10 + 10 + 10) * 4 + (10 + 10) * 4
    assert kinds["elementwise"]["kernels"] == 4 + 2
    assert kinds["elementwise"]["bytes"] == pytest.approx(update + branch, abs=4 * 4)
    for key in product:
        assert measured[key] == sum(kind[key] for kind in kinds.values())
    assert measured["uncounted"] == {"strange": 1}
    bandwidth = H200.memory_bytes_per_s
    assert measured["memory_s"] == pytest.approx(measured["bytes"] / bandwidth)
    compute_s = (product["flops"] + 77 / roofline.FUSED_ATTENTION) / H200.measured_flops
    assert measured["compute_s"] == pytest.approx(compute_s)
    assert measured["seconds"] == pytest.approx(measured["bytes"] / bandwidth)  # so small: memory bounds every kernel
    sources = {sink["source"]: sink for sink in measured["sinks"]}
    ours = sources["models/layers.py:12 (Dense.__call__)"]  # the innermost line that is not a library's
    assert (ours["kernels"], ours["flops"]) == (2, product["flops"])


def test_a_slow_product_is_bound_by_compute():
    big = HLO.replace("8,16", "8192,8192").replace("16,4]", "8192,8192]").replace("8,4]", "8192,8192]")
    seconds = roofline.measure(hlo.parse(big), H200)["by_kind"]["product"]["seconds"]
    assert seconds == pytest.approx(2 * 8192**3 / 790e12)
    exact = big.replace("bf16", "f32")
    seconds = roofline.measure(hlo.parse(exact), H200)["by_kind"]["product"]["seconds"]
    assert seconds == pytest.approx(2 * 8192**3 / (790e12 * 494 / 989))


def test_windows_of_a_tpus_products_count_without_padding():
    """[8, 1024, 768] × [12, 768, 64]: the axis of heads is a window of 12 that meets the one row of the input once."""
    line = (
        "  ROOT %c = bf16[8,1024,12,64]{3,1,2,0} convolution(%a, %b), "
        "window={size=1x12 pad=0_0x11_11 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f"
    )
    text = f"""HloModule m

ENTRY %main (a: bf16[8,1024,768,1], b: bf16[12,64,768,1]) -> bf16[8,1024,12,64] {{
  %a = bf16[8,1024,768,1]{{2,1,3,0:T(8,128)(2,1)S(1)}} parameter(0)
  %b = bf16[12,64,768,1]{{2,1,3,0:T(8,128)(2,1)}} parameter(1)
{line}
}}
"""
    measured = roofline.measure(hlo.parse(text), accelerators.ACCELERATORS["v5e"])
    assert measured["flops"] == 2 * 8 * 1024 * 768 * 12 * 64
    assert measured["bytes"] == 2 * (12 * 64 * 768 + 8 * 1024 * 12 * 64)  # a lies in the core's own memory


def test_of_a_masked_array_a_gather_reads_its_entries_alone():
    """8 of 100 rows of 4 numbers, behind a mask of 100 × 4 bytes; the kernel writes 8 rows."""
    text = """HloModule masked

%kernel (x: f32[100,4], mask: pred[100,4], ids: s32[8,1]) -> f32[8,4] {
  %x = f32[100,4]{1,0} parameter(0)
  %mask = pred[100,4]{1,0} parameter(1)
  %ids = s32[8,1]{1,0} parameter(2)
  %low = f32[] constant(-inf)
  %lows = f32[100,4]{1,0} broadcast(%low), dimensions={}
  %masked = f32[100,4]{1,0} select(%mask, %x, %lows)
  ROOT %rows = f32[8,4]{1,0} gather(%masked, %ids), offset_dims={1}, slice_sizes={1,4}
}

ENTRY %main (x.1: f32[100,4], mask.1: pred[100,4], ids.1: s32[8,1]) -> f32[8,4] {
  %x.1 = f32[100,4]{1,0} parameter(0)
  %mask.1 = pred[100,4]{1,0} parameter(1)
  %ids.1 = s32[8,1]{1,0} parameter(2)
  ROOT %fusion = f32[8,4]{1,0} fusion(%x.1, %mask.1, %ids.1), kind=kLoop, calls=%kernel
}
"""
    assert roofline.measure(hlo.parse(text), H200)["bytes"] == 8 * 4 * 4 + 8 * 4 + 8 * 4 + 8 * 4 * 4


def test_a_program_that_xla_compiled():
    """A scan's body counts once per iteration, and the lines of code are this file's."""

    def program(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=5)[0]

    shape = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    text = jax.jit(program).lower(shape, shape).compile().as_text()
    measured = roofline.measure(hlo.parse(text), H200)
    assert measured["flops"] == 5 * 2 * 256**3 and not measured["uncounted"]
    assert measured["bytes"] >= 5 * 3 * 4 * 256**2
    # A compilation cache may hold the program of another checkout, so only the file's name is certain.
    assert any(Path(__file__).name in sink["source"] for sink in measured["sinks"])


# The compilers of accelerators ---------------------------------------------------------------------------------------

gpu = pytest.mark.skipif(importlib.util.find_spec("jax_plugins") is None, reason="needs t5x-lite[gpu]")


@gpu
@pytest.mark.parametrize("kind", topology.GPUS)
def test_xla_compiles_for_each_gpu(kind):
    (device,) = topology.devices(f"{kind}:1")
    assert accelerators.of_kind(device.device_kind) is accelerators.ACCELERATORS[kind]
    shape = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=SingleDeviceSharding(device))
    program = hlo.parse(jax.jit(lambda x: x @ x).lower(shape).compile().as_text())
    measured = roofline.measure(program, accelerators.ACCELERATORS[kind])
    assert measured["flops"] == 2 * 256**3 and not measured["uncounted"]


@gpu
def test_a_plan_for_gpus_bounds_the_step():
    run = tiny("gpt2_tiny", model__attention="pallas", mesh="data=2", data__length=128)
    found = plan.make(run, "h200", topology.devices("h200:2"))
    measured = found["roofline"]
    assert found["seconds"]["step"] >= max(measured["compute_s"], measured["memory_s"], found["seconds"]["links"])
    assert not measured["uncounted"] and 0 < found["mfu"] < 1
    kernel = next(kind for name, kind in measured["by_kind"].items() if "triton" in name)
    assert kernel["kernels"] == 3 and kernel["flops"] > 0  # a layer's: heads, d_query, d_key_value


@pytest.mark.parametrize("text", ["h200", "h200:", "h200:two", "gtx:1"])
def test_unknown_topologies_say_what_is_allowed(text):
    with pytest.raises(ConfigError, match=r"h200:8.*pip install 't5x-lite\[(gpu|tpu)\]'"):
        topology.devices(text)
