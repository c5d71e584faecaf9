"""Measures the memory and time of a step in four ways of fine-tuning: all parameters, LoRA (two ways) and adapters.

    python benchmarks/fine_tuning.py --preset=bert_base --rows=8 --length=128

Each way runs in its own process, in float32, with AdamW and without dropout. Prints one JSON line per way:

    trained           number of trainable parameters; trained_share is their share of all parameters
    state_mb          parameters and optimizer state between two steps
    gradients_mb      gradients of the trainable parameters
    step_mb           everything that XLA holds during a step: state, batch and intermediate results
    peak_rss_mb       peak memory of the process, with Python, XLA and its compiler
    step_ms           median time of a step
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np


def ways(gated_mlp: bool) -> dict[str, dict]:
    """Returns {way: the fields of ModelConfig that it changes}."""
    dense = ("query", "key", "value", "out", *(("wi_0", "wi_1") if gated_mlp else ("wi",)), "wo")
    return {
        "full": {},
        "lora, query and value": {"lora_rank": 8},
        "lora, all dense layers": {"lora_rank": 8, "lora_targets": dense},
        "adapters": {"adapter_dim": 32},
    }


def measure(way: str, arguments: argparse.Namespace) -> dict:
    import jax

    from t5x_lite.cluster import sharding
    from t5x_lite.models import build, presets
    from t5x_lite.training import optim, schedules, trainable
    from t5x_lite.training.parameter_groups import Groups
    from t5x_lite.training.step import abstract_params, abstract_state, init_state, make_train_step

    plain = presets.find(arguments.preset)
    changes = {"dropout_rate": 0.0, "attention_dropout_rate": 0.0, "remat": arguments.remat}
    changes |= ways(plain.gated_mlp)[way]
    if plain.architecture == "encoder_only":
        changes |= {"heads": ("classification",), "num_classes": 2}
    config = presets.preset(arguments.preset, **changes)
    arrays = random_batch(config, arguments.rows, arguments.length)
    layout = sharding.Layout(sharding.make_mesh())
    module = build(config, layout)
    boxed = abstract_params(module, arrays)
    trained = trainable.select("", boxed, has_added=config.has_added)
    schedule = schedules.make_schedule("constant", 1e-4)
    axes = trainable.split(sharding.param_axes(boxed), trained)[0]
    optimizer = optim.make_optimizer("adamw", schedule, axes, groups=Groups(weight_decay=0.01))
    target = abstract_state(module, optimizer, layout, arrays, trained)
    run = make_train_step(module, optimizer, schedule, layout, target, trainable=trained)
    memory = run.lower(target, arrays).compile().memory_analysis()
    state, step_ms = init_state(module, optimizer, layout, arrays, trainable=trained), []
    for _ in range(2 + arguments.steps):
        began_s = time.perf_counter()
        state, metrics = run(state, arrays)
        loss = float(metrics["loss"])
        step_ms.append(1e3 * (time.perf_counter() - began_s))
    trained_params = trainable.split(state.params, trained)[0]
    count, size = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (trained_params, state.params))
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "way": way,
        "preset": arguments.preset,
        "parameters": size,
        "trained": count,
        "trained_share": round(count / size, 4),
        "state_mb": megabytes(sum(leaf.nbytes for leaf in jax.tree.leaves(state))),
        "gradients_mb": megabytes(4 * count),
        "step_mb": megabytes(held + memory.temp_size_in_bytes),
        "peak_rss_mb": megabytes(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss),
        "step_ms": round(statistics.median(step_ms[2:]), 1),
        "loss": round(loss, 4),
    }


def random_batch(config, rows: int, length: int) -> dict[str, np.ndarray]:
    """Returns a batch with one example per row, without padding."""
    from t5x_lite import batch

    rng = np.random.default_rng(0)
    dims = {"B": rows, "S": length, "L": length, "P": 1, "E": 1, "Y": config.num_classes}
    arrays = batch.zeros(config.architecture, dims, config.heads)
    for name, array in arrays.items():
        if name.endswith("_tokens"):
            array[:] = rng.integers(3, config.vocab_size, array.shape)
        elif name.endswith(("segment_ids", "_weights")):
            array[:] = 1
        elif name in ("encoder_positions", "decoder_positions"):
            array[:] = np.arange(length)
    return arrays


def megabytes(size: float) -> float:
    return round(size / 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="bert_base", help="a preset in t5x_lite/models/presets.py")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--remat", default="none", help="full: recompute activations in the backward pass")
    parser.add_argument("--way", choices=ways(False), help="run only this way, in this process")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments)), flush=True)
        return
    for way in ways(False):
        subprocess.run([sys.executable, *sys.argv, f"--way={way}"], check=True)


if __name__ == "__main__":
    main()
