"""Prints a table of what each device holds and sends, in GiB, for 1 to 1,024 devices: `python benchmarks/scaling.py`.

The model is T5 11B. Each device has 4 rows of 512 + 114 tokens; up to 256 devices share the parameters. The training
step is compiled, but never run.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

MOST_FSDP = 256
PER_DEVICE = 4
FLAGS = {
    "model.preset": "t5_11b",
    "model.vocab_size": 32128,
    "model.scan_layers": "true",
    "model.remat": "full",
    "model.dtype": "bfloat16",
    "data.vocabulary": "bytes",
    "data.length": 512,
    "data.targets_length": 114,
}
GIB = 2**30


def plan(devices: int, text: Path) -> dict:
    fsdp = min(devices, MOST_FSDP)
    rows = PER_DEVICE * devices
    flags = FLAGS | {"data.files": text, "data.batch_rows": rows, "eval.batch_rows": rows}
    command = [sys.executable, "-m", "t5x_lite.cli", "plan", f"--mesh=data={devices // fsdp},fsdp={fsdp}", "--json"]
    config = Path(__file__).parents[1] / "configs" / "quickstart.py"
    command += [f"--config={config}", "--device=v5p", *(f"--config.{key}={value}" for key, value in flags.items())]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        text = Path(directory) / "text.txt"
        text.write_text("A line of text, for there must be some data.\n" * 1000)
        print("| devices | parameters | optimizer | gradients | the rest | sent | compiling |")
        print("|---|---|---|---|---|---|---|")
        for devices in (2**n for n in range(11)):
            planned = plan(devices, text)
            sizes = planned["bytes"]
            sent = sum(kind["sent_bytes"] for kind in planned["collectives"].values())
            cells = [sizes["parameters"], sizes["optimizer"], sizes["gradients"], sizes["activations"], sent]
            shown = " | ".join(f"{size / GIB:.2f}" for size in cells)
            print(f"| {devices} | {shown} | {planned['compile_s']:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
