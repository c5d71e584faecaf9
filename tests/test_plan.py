"""A plan's figures equal those of the program that will run, and arithmetic."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from training import start, with_dropout

from t5x_lite import cli, config, experiment, runtime
from t5x_lite.cluster.sharding import make_mesh
from t5x_lite.costs import accelerators, collectives, flops, hlo, model_flops, plan

CONFIG = Path(__file__).parent / "experiments" / "tiny.py"


def tiny(family: str, **changes):
    cfg = config.load(f"{CONFIG}:{family}")
    for key, value in changes.items():
        config.override(cfg, key.replace("__", "."), str(value))
    return experiment.resolve(cfg)


@pytest.mark.parametrize(("family", "mesh"), [("t5_tiny", "fsdp=4,tensor=2"), ("bert_tiny", "data=2,fsdp=2,tensor=2")])
def test_argument_bytes_are_the_compiled_programs_own(family, mesh):
    found = plan.make(tiny(family, mesh=mesh, model__scan_layers="true"), "v5e")
    assert sum(array["bytes"] for array in found["arrays"]) == found["bytes"]["arguments"]
    sizes = found["bytes"]
    assert sizes["peak"] >= sizes["arguments"]
    assert sizes["parameters"] + sizes["optimizer"] + sizes["batch"] + 4 == sizes["arguments"]  # 4: the step
    assert found["fits"] and found["seconds"].keys() == {"compute", "links"}  # no kernels of the accelerator are known


def test_an_average_takes_as_much_as_the_parameters_and_the_learning_rates_are_the_schedule_s():
    flags = {"schedule__name": "wsd", "schedule__decay_steps": "50%", "schedule__warmup_steps": 0}
    found = plan.make(tiny("bert_tiny", average__decay=0.9, train__total_steps=101, **flags))
    assert found["bytes"]["average"] == found["bytes"]["parameters"]
    rates, peak = found["learning_rates"], 1e-3
    assert rates[0] == rates[50] == pytest.approx(peak) and rates[100] == pytest.approx(peak / 50, rel=1e-3)
    assert list(rates) == list(range(0, 101, 5))


def test_gradients_are_of_what_learns():
    whole, lora = plan.make(tiny("bert_tiny"))["bytes"], plan.make(tiny("bert_tiny", model__lora_rank="2"))["bytes"]
    assert whole["gradients"] == whole["parameters"]
    assert 0 < lora["gradients"] < whole["gradients"] / 2
    assert lora["optimizer"] == pytest.approx(2 * lora["gradients"], abs=16)  # AdamW's two moments, and its counters


def gpt2_flops(model, rows: int, length: int) -> int:
    """Computes a step's FLOPs by hand: the forward pass, and twice as much for the backward pass."""
    B, L, D, F, V = rows, length, model.d_model, model.d_ff, model.vocab_size
    heads = model.num_heads * model.head_dim
    projections, attention, mlp = 4 * 2 * B * L * D * heads, 2 * 2 * B * L * L * heads, 2 * 2 * B * L * D * F
    return 3 * (model.num_decoder_layers * (projections + attention + mlp) + 2 * B * L * D * V)


def test_flops_are_those_of_arithmetic_and_of_the_unrolled_program():
    counted = {}
    for scan_layers in (False, True):
        for microbatches in (1, 2):
            run = start(with_dropout("gpt2", scan_layers=scan_layers), microbatches=microbatches)
            counted[scan_layers, microbatches] = flops.of_step(run.train_step, run.state, run.batch)
    model = with_dropout("gpt2")
    rows, length = run.batch["decoder_input_tokens"].shape
    assert set(counted.values()) == {counted[False, 1]}
    assert counted[False, 1] == pytest.approx(gpt2_flops(model, rows, length), rel=0.01)
    remat = start(with_dropout("gpt2", scan_layers=True, remat="full"))
    assert counted[False, 1] < flops.of_step(remat.train_step, remat.state, remat.batch) < 4 / 3 * counted[False, 1]


def test_useful_flops_do_not_depend_on_how_the_step_computes():
    ways = [
        {},
        {"model__remat": "full", "model__scan_layers": "true"},
        {"model__attention": "blockwise", "train__microbatches": "2", "mesh": "data=2,fsdp=2,tensor=2"},
        {"loss__chunk_logits": "10000", "model__dtype": "bfloat16"},
    ]
    counted = set()
    for way in ways:
        run = tiny("gpt2_tiny", **way)
        batch = plan.abstract_batch(run, runtime.start(run).layout)
        counted.add(model_flops.of_step(run, batch))
    assert len(counted) == 1
    expected = gpt2_flops(run.model, run.cfg.data.batch_rows, run.cfg.data.length)
    assert counted.pop() == pytest.approx(expected, rel=0.01)


def test_flops_of_branches_and_loops():
    x = jnp.ones((4, 4))  # a product of two: 128

    def program(x):
        x = jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)
        x = jax.lax.fori_loop(0, 5, lambda i, x: x @ x, x)
        return jax.checkpoint(lambda x: jax.jit(jnp.matmul)(x, x))(x)

    assert flops.count(jax.make_jaxpr(program)(x)) == 128 * (2 + 5 + 1)


def test_collectives_in_a_loop_count_as_often_as_it_turns():
    mesh = make_mesh(data=8)
    split, whole = NamedSharding(mesh, PartitionSpec("data")), PartitionSpec()

    def body(x, _):
        return jax.lax.psum(x, "data") / 8, None

    def program(x):
        looped = jax.shard_map(
            lambda x: jax.lax.scan(body, x, None, length=6)[0],
            mesh=mesh,
            in_specs=whole,
            out_specs=whole,
            check_vma=False,
        )
        return looped(x)

    text = jax.jit(program).lower(jax.ShapeDtypeStruct((32,), jnp.float32)).compile().as_text()
    assert collectives.count(hlo.parse(text), 8) == {
        "all-reduce": {"count": 6, "bytes": 6 * 128, "sent_bytes": 6 * 128 * 2 * 7 / 8}
    }
    gather = jax.jit(lambda x: x * 2, in_shardings=split, out_shardings=NamedSharding(mesh, whole))
    text = gather.lower(jax.ShapeDtypeStruct((64,), jnp.bfloat16)).compile().as_text()
    (kind,) = collectives.count(hlo.parse(text), 8).items()
    assert kind[0] == "all-gather" and kind[1]["count"] == 1
    assert kind[1]["sent_bytes"] == pytest.approx(kind[1]["bytes"] * 7 / 8)


def test_the_verb_names_levers_where_memory_does_not_suffice(monkeypatch, capsys):
    small = dataclasses.replace(accelerators.ACCELERATORS["v5e"], memory_bytes=1000)
    monkeypatch.setitem(accelerators.ACCELERATORS, "v5e", small)
    for name in ("XLA_FLAGS", "JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "")
    command = ["plan", f"--config={CONFIG}:bert_tiny", "--mesh=fsdp=8", "--device=v5e", "--json"]
    assert cli.run([*command, "--config.model.scan_layers=true"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["fits"] and [lever["change"] for lever in found["levers"]] == ["model.remat=full"]
    assert [task["task"] for task in found["tasks"]] == ["tiny_animal", "tiny_corpus"]
    assert cli.run([*command[:3], "--device=v5"]) == 2
    assert "unknown device 'v5'; did you mean 'v5" in capsys.readouterr().err


def test_importing_the_package_gives_a_tpus_compiler_the_stack_it_needs():
    """The verbs, `load` and `pipeline` all import it, before jax opens the devices. A user's own size wins."""
    code = "import os, t5x_lite; print(os.environ['LIBTPU_INIT_ARGS'])"
    for before, after in {
        "": "--fibers_default_thread_stack_size=1048576",
        "--xla_a=1": "--xla_a=1 --fibers_default_thread_stack_size=1048576",
        "--fibers_default_thread_stack_size=7 --xla_a=1": "--fibers_default_thread_stack_size=7 --xla_a=1",
    }.items():
        environment = os.environ | {"LIBTPU_INIT_ARGS": before}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == after


def test_the_devices_are_found_by_the_name_jax_gives_them():
    names = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
    names |= {"NVIDIA A100-SXM4-80GB": "a100", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}
    for kind, name in names.items():
        assert accelerators.of_kind(kind) is accelerators.ACCELERATORS[name], kind
    assert accelerators.of_kind("cpu") is None
