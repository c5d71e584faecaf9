"""Our side of `decode.py`, which runs this file.

worker.py lists the commands. One more, `long`, returns {"ratio"}: the time for 2N new tokens divided by that for N.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from decode_prompts import checksum, prompts
from shapes import Shape
from worker import serve


def main() -> None:
    import jax

    from t5x_lite.decoding import generate
    from t5x_lite.decoding.strategy import Strategy
    from t5x_lite.hub import parameters
    from t5x_lite.models import build

    shape, directory, beams = Shape(**json.loads(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    opened = parameters.open_directory(Path(directory))
    params, _ = parameters.load(opened, opened.config, parameters.layout_for(opened.config))
    module, tokens = build(opened.config), prompts(shape)
    side = "encoder" if shape.family == "t5" else "decoder"
    positions = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1))
    batch = {
        f"{side}_input_tokens": tokens,
        f"{side}_segment_ids": np.ones_like(tokens),
        f"{side}_positions": positions,
    }

    def write(count: int) -> np.ndarray:
        strategy = Strategy(max_tokens=count, min_tokens=count - 1, beams=beams, length_penalty=1.0, length_offset=0)
        return np.asarray(generate.generate(module, params, batch, strategy, eos_id=1)["tokens"])[:, 0]

    def long(_: str) -> dict[str, float]:
        times = {}
        for count in (shape.target_length, 2 * shape.target_length):
            write(count)
            times[count] = []
            for _ in range(5):
                begin = time.perf_counter()
                write(count)
                times[count].append(time.perf_counter() - begin)
        short, twice = (statistics.median(samples) for samples in times.values())
        return {"ratio": twice / short}

    first = checksum(write(shape.target_length))
    count = sum(p.size for p in jax.tree.leaves(params))
    serve(first, count, {"step": lambda: checksum(write(shape.target_length)), "long": long})


if __name__ == "__main__":
    main()
