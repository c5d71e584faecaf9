"""Compares the speed of our generation with that of transformers' `generate`, which uses a key-value cache.

    python benchmarks/decode.py --models=t5,gpt2 --beams=1,4 --rounds=5 --calls=2

Needs the extra `parity`. Both sides have the same weights and 8 prompts and generate exactly 32 new tokens in float32.
Each side runs in its own process, and they take turns. First they must generate the same tokens. Prints JSON lines, one
per side and one with the ratios:

    call_ms, cpu_ms     wall time and CPU time of a call: medians over quiet samples, in which other processes used less
                        than 0.15 cores. `quiet` is the number of quiet samples. If it is below 3, the medians are over
                        all samples; then run with --core and read cpu_ms
    tokens_per_s        new tokens of all prompts per second
    first_call_s        from the start of the process to the end of the first call, with no compilation cache
    twice_as_long       only ours: the time for 64 new tokens divided by the time for 32 (2 is linear)
"""

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path

from shapes import SHAPES
from train_step import Side

from t5x_lite.cli import HUGE_PAGES

NEW_TOKENS = 32
PROMPT = {"t5": 128, "gpt2": 32}


def compare(model: str, beams: int, arguments: argparse.Namespace, scratch: Path) -> None:
    shape = dataclasses.replace(SHAPES[model], source_length=PROMPT[model.split("-")[0]], target_length=NEW_TOKENS)
    environment = {"OMP_NUM_THREADS": "1"} if arguments.core is not None else {}
    cold = environment | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    directory = scratch / model
    flags = [str(directory), str(beams)]
    theirs = Side("decode_torch.py", shape, flags, environment)  # saves its weights for our side
    ours = Side("decode_ours.py", shape, flags, cold | {"GLIBC_TUNABLES": HUGE_PAGES})
    sides = {"t5x_lite": ours, "transformers": theirs}
    if ours.first["first_loss"] != theirs.first["first_loss"]:
        raise SystemExit(f"{model}, {beams} beams: the two sides generated different texts")
    for _ in range(arguments.rounds):
        for side in sides.values():
            side.run(arguments.calls)
    name = {"model": model, "beams": beams}
    tokens = shape.rows * NEW_TOKENS
    for side_name, side in sides.items():
        quiet = sum(others < 0.15 for others in side.samples["others"])
        values = {"call_ms": side.median("step_ms"), "cpu_ms": side.median("cpu_ms")}
        values |= {"tokens_per_s": 1e3 * tokens / side.median("step_ms"), "first_call_s": side.first["first_step_s"]}
        shown = {key: round(value, 1) for key, value in values.items()}
        print(json.dumps({**name, "side": side_name, **shown, "samples": len(side.samples["step_ms"]), "quiet": quiet}))
    ratios = {
        "call": theirs.median("step_ms") / ours.median("step_ms"),
        "cpu": theirs.median("cpu_ms") / ours.median("cpu_ms"),
        "first_call": theirs.first["first_step_s"] / ours.first["first_step_s"],
        "twice_as_long": ours.ask("long")["ratio"],
    }
    rounded = {key: round(value, 2) for key, value in ratios.items()}
    print(json.dumps({**name, "side": "ratio transformers / t5x_lite", **rounded}), flush=True)
    for side in sides.values():
        side.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="t5,gpt2", help="t5, gpt2, t5-tiny, gpt2-tiny")
    parser.add_argument("--beams", default="1,4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2, help="calls of each side per round")
    parser.add_argument("--core", type=int, help="pin everything to this core: cpu_ms stays meaningful under load")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    with tempfile.TemporaryDirectory() as scratch:
        for model in arguments.models.split(","):
            for beams in map(int, arguments.beams.split(",")):
                compare(model, beams, arguments, Path(scratch))


if __name__ == "__main__":
    main()
