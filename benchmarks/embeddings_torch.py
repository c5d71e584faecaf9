"""The recipes of configs/embeddings.py in torch, for comparison: a model in Hugging Face format and STS-B.

    python benchmarks/embeddings_torch.py --model=DIR --data=GLUE --kind=scores --seeds=0,1,2

Prints Spearman's correlation of cosines and scores on the validation set, × 100, before training and for each seed.
"""

import argparse
import random
from pathlib import Path

import torch
from scipy.stats import spearmanr
from transformers import AutoModel, AutoTokenizer

PAIRS, LENGTH, RATE, TEMPERATURE, ALIKE = 64, 64, 2e-5, 0.05, 4.0


def pairs_of(file: Path) -> list[tuple[str, str, float]]:
    """Returns (first sentence, second sentence, score) of each row. (The file has quotation marks that are text.)"""
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").split("\n")[1:]]
    return [(row[7], row[8], float(row[9])) for row in rows if len(row) >= 10]


def embedded(model, tokenizer, texts: list[str]) -> torch.Tensor:
    batch = tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    mask = batch["attention_mask"][..., None]
    states = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(states, dim=-1)


def score(model, tokenizer, pairs) -> float:
    model.eval()
    with torch.no_grad():
        sides = [[embedded(model, tokenizer, list(texts)) for texts in zip(*part, strict=True)] for part in
                 ([pair[:2] for pair in pairs[i : i + 128]] for i in range(0, len(pairs), 128))]  # fmt: skip
    cosines = torch.cat([(first * second).sum(-1) for first, second in sides])
    return 100 * spearmanr(cosines.numpy(), [pair[2] for pair in pairs]).statistic


def train(model, tokenizer, pairs, kind: str, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    steps = epochs * (len(pairs) // PAIRS)
    warmup = steps // 10
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: i / warmup if i < warmup else (steps - i) / (steps - warmup)
    )
    model.train()
    for step in range(steps):
        begin = step % (len(pairs) // PAIRS) * PAIRS
        if begin == 0:
            random.shuffle(pairs)
        part = pairs[begin : begin + PAIRS]
        first, second = (embedded(model, tokenizer, [pair[side] for pair in part]) for side in (0, 1))
        if kind == "scores":
            loss = ((first * second).sum(-1) - torch.tensor([pair[2] / 5 for pair in part])).square().mean()
        else:
            logits, own = first @ second.T / TEMPERATURE, torch.arange(len(part))
            loss = sum(torch.nn.functional.cross_entropy(x, own) for x in (logits, logits.T)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kind", choices=("scores", "matches"), default="scores")
    parser.add_argument("--seeds", default="0")
    arguments = parser.parse_args()
    validation, every = (pairs_of(arguments.data / "STS-B" / f"{name}.tsv") for name in ("dev", "train"))
    pairs = [pair for pair in every if arguments.kind == "scores" or pair[2] >= ALIKE]
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    for seed in map(int, arguments.seeds.split(",")):
        torch.manual_seed(seed)
        random.seed(seed)
        model = AutoModel.from_pretrained(arguments.model)
        before = score(model, tokenizer, validation)
        train(model, tokenizer, list(pairs), arguments.kind, epochs=1 if arguments.kind == "scores" else 2)
        print(f"seed {seed}: {before:.2f} → {score(model, tokenizer, validation):.2f}", flush=True)


if __name__ == "__main__":
    main()
