"""Bounds a training step on accelerators that are not there, from the program that their compiler makes.

    python benchmarks/bounds.py --topology=h200:1 --attention=pallas gpt2 bert_base t5_base

Needs the compiler (t5x-lite[gpu] or t5x-lite[tpu]), no accelerator. Each model takes minutes and up to 5 GB. Nothing
runs: the bound is the roofline of each kernel, summed, so a real step takes longer. `t5x-lite plan` prints the same for
any config. Prints one JSON line per model:

    peak_gb, temporary_gb   of one device, by the compiler
    kernels, gb_moved       per step; every operand of a kernel is read from memory
    step_ms                 the lower bound
    mfu_bound               FLOPs that the model needs, per second of the bound, as a share of peak_tflops
    peak_tflops             bfloat16: measured with large products, or else the data sheet's
    uncounted               kernels whose FLOPs are unknown
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ADAMW = {"optimizer.name": "adamw"}
BERT = {"model.vocab_size": 30522, "data.batch_rows": 64, "data.length": 512} | ADAMW
GPT2 = {"model.vocab_size": 50257, "data.length": 1024} | ADAMW
# XLA cannot compile some products of 114 rows, T5's usual length of targets, for a GPU that is not there.
T5 = {"model.vocab_size": 32128, "data.batch_rows": 64, "data.length": 512, "data.targets_length": 128}
SCANNED = {"model.scan_layers": "true"}
MODELS = {
    "gpt2": {"model.preset": "gpt2", "data.batch_rows": 32} | GPT2,
    "gpt2_medium": {"model.preset": "gpt2_medium", "data.batch_rows": 16} | GPT2,
    "bert_base": {"model.preset": "bert_base"} | BERT,
    "bert_large": {"model.preset": "bert_large"} | BERT,
    "t5_small": {"model.preset": "t5_1_1_small"} | T5 | {"data.batch_rows": 128},
    "t5_base": {"model.preset": "t5_1_1_base"} | T5,
    "t5_large": {"model.preset": "t5_1_1_large"} | T5,
    "t5_large_scanned": {"model.preset": "t5_1_1_large"} | T5 | SCANNED,
    "llama_1b": {"model.preset": "llama_3_2_1b", "model.vocab_size": 128256, "data.batch_rows": 8, "data.length": 2048}
    | ADAMW,
}
RATES = ("dropout_rate", "attention_dropout_rate")


def bound(name: str, arguments: argparse.Namespace, text: Path) -> dict:
    """Returns the line of one model. text: a file of text, for the config needs some data."""
    flags = {"data.files": text, "data.vocabulary": "bytes", "model.dtype": "bfloat16"} | MODELS[name]
    flags |= {"model.attention": arguments.attention, "model.remat": arguments.remat}
    if arguments.dropout is not None:
        flags |= {f"model.{rate}": arguments.dropout for rate in RATES}
    if arguments.rows:
        flags["data.batch_rows"] = arguments.rows
    flags["eval.batch_rows"] = flags["data.batch_rows"]
    config = Path(__file__).parents[1] / "configs" / "quickstart.py"
    command = [sys.executable, "-m", "t5x_lite.cli", "plan", f"--config={config}", f"--topology={arguments.topology}"]
    command += ["--json", *(f"--config.{key}={value}" for key, value in flags.items())]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"model": name, "error": done.stderr.strip().splitlines()[-1]}
    plan = json.loads(done.stdout)
    sizes, measured = plan["bytes"], plan["roofline"]
    return {
        "model": name,
        "topology": arguments.topology,
        "attention": arguments.attention,
        "remat": arguments.remat,
        "rows": flags["data.batch_rows"],
        "peak_gb": round(sizes["peak"] / 1e9, 1),
        "temporary_gb": round((sizes["activations"] + sizes["gradients"]) / 1e9, 1),
        "fits": plan["fits"],
        "kernels": measured["kernels"],
        "gb_moved": round(measured["bytes"] / 1e9, 1),
        "step_ms": round(1e3 * plan["seconds"]["step"], 1),
        "mfu_bound": round(plan["mfu"], 3),
        "peak_tflops": round(plan["peak_flops"] / 1e12),
        "uncounted": measured["uncounted"],
        "compile_s": round(plan["compile_s"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), choices=MODELS, metavar="MODEL", help="default: all")
    parser.add_argument("--topology", default="h200:1")
    parser.add_argument("--attention", default="auto", help="a kernel, as in model.attention")
    parser.add_argument("--remat", default="none", help="as in model.remat")
    parser.add_argument("--dropout", type=float, help="rate; default: the preset's")
    parser.add_argument("--rows", type=int, default=0, help="rows of a batch; default: the model's")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        text = Path(directory) / "text.txt"
        text.write_text("A line of text, for there must be some data.\n" * 1000)
        for name in arguments.models:
            print(json.dumps(bound(name, arguments, text)), flush=True)


if __name__ == "__main__":
    main()
