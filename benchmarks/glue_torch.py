"""The torch side of `glue.py`: fine-tunes once with torch and transformers and prints the scores as one JSON line.

    python benchmarks/glue_torch.py --task=mrpc --data=GLUE --model=DIR --seed=0

Follows the recipe of configs/glue.py, but without packing: a batch has 32 shuffled examples, cut at 128 tokens and
padded to the longest. This file reads the data and computes the scores itself, without our code.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from scipy import stats
from sklearn import metrics

BATCH_EXAMPLES, MAX_LENGTH, LEARNING_RATE, WEIGHT_DECAY, WARMUP, CLIP_NORM = 32, 128, 5e-5, 0.01, 0.06, 1.0
# task: (folder, columns of the texts, column of the label)
LAYOUTS = {
    "cola": ("CoLA", (3,), 1),
    "sst2": ("SST-2", (0,), 1),
    "mrpc": ("MRPC", (3, 4), 0),
    "stsb": ("STS-B", (7, 8), 9),
    "wnli": ("WNLI", (1, 2), 3),
}


def read(data: Path, task: str, split: str) -> tuple[list[tuple[str, ...]], np.ndarray]:
    folder, texts, label = LAYOUTS[task]
    lines = (data / folder / f"{split}.tsv").read_text(encoding="utf-8-sig").split("\n")
    rows = [line.rstrip("\r").split("\t") for line in lines[task != "cola" :] if line]
    return [tuple(row[i] for i in texts) for row in rows], np.array([float(row[label]) for row in rows])


def scores(task: str, wanted: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    if task == "stsb":
        correlations = {
            "pearson": stats.pearsonr(logits[:, 0], wanted)[0],
            "spearman": stats.spearmanr(logits[:, 0], wanted)[0],
        }
        return {name: 100 * float(value) for name, value in correlations.items()}
    guesses = logits.argmax(1)
    if task == "cola":
        return {"matthews": 100 * float(metrics.matthews_corrcoef(wanted, guesses))}
    accuracy = {"accuracy": 100 * float(metrics.accuracy_score(wanted, guesses))}
    return {"f1": 100 * float(metrics.f1_score(wanted, guesses)), **accuracy} if task == "mrpc" else accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=LAYOUTS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of whole epochs")
    parser.add_argument("--bfloat16", action="store_true", help="use torch.autocast with bfloat16")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    outputs = 1 if arguments.task == "stsb" else 2
    model = transformers.AutoModelForSequenceClassification.from_pretrained(arguments.model, num_labels=outputs)
    texts, labels = read(arguments.data, arguments.task, "train")

    def batch(texts: list[tuple[str, ...]]) -> transformers.BatchEncoding:
        columns = [list(column) for column in zip(*texts, strict=True)]
        return tokenizer(*columns, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")

    def forward(inputs: transformers.BatchEncoding, **more):
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bfloat16):
            return model(**inputs, **more)

    steps = arguments.steps or arguments.epochs * -(-len(texts) // BATCH_EXAMPLES)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, -int(-WARMUP * steps // 1), steps)
    losses, order = [], []
    model.train()
    begin_s = time.time()
    for _ in range(steps):
        if not order:
            shuffled = rng.permutation(len(texts)).tolist()
            order = [shuffled[i : i + BATCH_EXAMPLES] for i in range(0, len(texts), BATCH_EXAMPLES)]
        chosen = order.pop(0)
        targets = torch.tensor(labels[chosen], dtype=torch.float32 if outputs == 1 else torch.long)
        loss = forward(batch([texts[i] for i in chosen]), labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    training_s = time.time() - begin_s
    model.eval()
    texts, labels = read(arguments.data, arguments.task, "dev")
    with torch.inference_mode():
        parts = [forward(batch(texts[i : i + 64])).logits.float().numpy() for i in range(0, len(texts), 64)]
    final = scores(arguments.task, labels, np.concatenate(parts))
    tenths = [float(part.mean()) for part in np.array_split(losses, 10)]
    print(json.dumps({"scores": final, "steps": steps, "training_s": training_s, "losses": tenths}))


if __name__ == "__main__":
    main()
