"""Trains an encoder, a decoder and an encoder-decoder on the same documents in the same steps, at matched FLOPs.

    t5x-lite train --config=configs/paired.py:ARCHITECTURE --workdir=runs/paired/ARCHITECTURE
    t5x-lite train --config=configs/paired.py:ARCHITECTURE,classify --workdir=runs/classify \
        --config.init.checkpoint=runs/paired/ARCHITECTURE

ARCHITECTURE is encoder_only, decoder_only or text_to_text. The phases after pre-training are `continue`, `classify` and
`summarize` (not for encoders). `python configs/paired.py` prints the sizes. benchmarks/paired.py runs all of it.

The three models have the same layers (those of T5 1.1: gated MLPs, relative positions), width and vocabulary, and their
published objectives: masked tokens with next sentence, next tokens, span corruption. In each
step, they read the same 32 documents, and no segment holds text of two documents. metrics.jsonl holds a hash of the
documents.

Depth is what differs. It is chosen so that the models need the same FLOPs per document as the decoder with `DEPTH`
layers. The numbers of parameters then differ, because a token of an encoder-decoder passes through only one of its two
stacks (Raffel et al. 2020, §3.2.2), and because an encoder computes logits only for masked tokens. No depth matches
both. `--config=configs/paired.py:ARCHITECTURE,pretrain,match=parameters` matches the parameters instead.
"""

from t5x_lite import config
from t5x_lite.models.presets import PRESETS

DEPTH = 4  # layers of the decoder
WIDTH, HEADS, MLP, VOCABULARY = 128, 4, 256, 4096
DOCUMENTS, LENGTH, TARGETS_LENGTH = 32, 128, 48
ROWS = {"encoder_only": 24, "decoder_only": 24, "text_to_text": 20}  # about 1 to 2% of the tokens do not fit
HIDDEN, SENTINELS = 0.15, 0.05  # shares of a document: hidden tokens; sentinels, one for three hidden tokens
PRESET = {"encoder_only": "bert_tiny", "decoder_only": "gpt2_tiny", "text_to_text": "t5_tiny"}
SAME = (
    "norm", "norm_position", "norm_epsilon", "activation", "gated_mlp", "attention_bias", "mlp_bias", "positions",
    "embedding_norm", "dropout_rate", "attention_dropout_rate", "dropout_hidden", "dropout_broadcasts_length",
    "tie_embeddings", "d_model", "num_heads", "head_dim", "d_ff",
)  # fmt: skip
STEPS = {"pretrain": 400, "continue": 200, "classify": 150, "summarize": 150}
PHASES = {name: tuple(STEPS) for name in PRESET} | {"encoder_only": ("pretrain", "continue", "classify")}
OPTIMIZER = {  # and the peak of its learning rate; Adafactor's is relative to a parameter's scale
    **dict.fromkeys(("pretrain", "continue"), ("adamw", 2e-3)),
    **dict.fromkeys(("classify", "summarize"), ("adafactor", 0.02)),
}

# Sizes ----------------------------------------------------------------------------------------------------------------


def parameters(architecture: str, depth: int) -> int:
    """Returns the number of parameters in matrices."""
    attention, mlp = 4 * WIDTH * WIDTH, 3 * WIDTH * MLP
    stacks = {"encoder_only": attention + mlp, "decoder_only": attention + mlp, "text_to_text": 3 * attention + 2 * mlp}
    heads = {"encoder_only": 2 * WIDTH * WIDTH}  # of masked tokens, and the pooler
    return depth * stacks[architecture] + heads.get(architecture, 0) + VOCABULARY * WIDTH


def flops(architecture: str, depth: int) -> float:
    """Returns the FLOPs of the forward pass per token of a document, without the products of queries and keys."""
    attention, mlp, table = 4 * WIDTH * WIDTH, 3 * WIDTH * MLP, VOCABULARY * WIDTH
    if architecture == "text_to_text":
        inputs, targets = 1 - HIDDEN + SENTINELS, HIDDEN + SENTINELS
        cross = attention / 2 * inputs + attention / 2 * targets  # keys and values of inputs, queries of targets
        return 2 * (depth * ((attention + mlp) * (inputs + targets) + cross) + table * targets)
    predicted = HIDDEN if architecture == "encoder_only" else 1
    return 2 * (depth * (attention + mlp) + table * predicted)


def depth(architecture: str, match: str = "flops") -> int:
    """Returns the number of layers (of each stack) that comes nearest to the decoder's FLOPs or parameters."""
    cost = {"flops": flops, "parameters": parameters}
    if match not in cost:
        raise config.ConfigError(f"match={match!r} of paired.py; allowed: {', '.join(cost)}")
    wanted = cost[match]("decoder_only", DEPTH)
    return min(range(1, 4 * DEPTH), key=lambda layers: abs(cost[match](architecture, layers) - wanted))


def table(match: str) -> list[str]:
    """Returns the lines of a Markdown table of the sizes."""
    lines = [
        f"| matched by {match} | layers | parameters | FLOPs per token of a document (forward) | to the decoder's |",
        "|---|---|---|---|---|",
    ]
    for name in PRESET:
        layers = depth(name, match)
        per_token, share = flops(name, layers), flops(name, layers) / flops("decoder_only", DEPTH)
        stacks = f"{layers} + {layers}" if name == "text_to_text" else str(layers)
        size = f"{parameters(name, layers) / 1e6:.2f} M"
        lines.append(f"| {name} | {stacks} | {size} | {per_token / 1e6:.2f} M | {share:.2f} |")
    return lines


# Configs --------------------------------------------------------------------------------------------------------------


def get_config(arguments: str = "decoder_only"):
    given = arguments.split(",")
    architecture, phase, match = given + ["decoder_only", "pretrain", "match=flops"][len(given) :]
    if architecture not in PRESET:
        raise config.ConfigError(f"architecture {architecture!r} of paired.py; allowed: {', '.join(PRESET)}")
    if phase not in PHASES[architecture]:
        allowed = ", ".join(PHASES[architecture])
        raise config.ConfigError(f"phase {phase!r} of paired.py:{architecture}; allowed: {allowed}")
    cfg = config.base()
    cfg.model.preset = PRESET[architecture]
    for name in SAME:
        cfg.model[name] = getattr(PRESETS["t5_tiny"], name)
    # The same initial distribution for all: T5's own would give an encoder logits with a deviation of 11.
    cfg.model.initializer, cfg.model.query_dim, cfg.model.logits_scale = "normal", 0, "none"
    layers = depth(architecture, match.removeprefix("match="))
    if architecture != "decoder_only":
        cfg.model.num_encoder_layers = layers
    if architecture != "encoder_only":
        cfg.model.num_decoder_layers = layers
    cfg.data.length, cfg.data.targets_length = LENGTH, TARGETS_LENGTH
    cfg.optimizer.name, cfg.optimizer.learning_rate = OPTIMIZER[phase]
    if cfg.optimizer.name == "adamw":
        cfg.optimizer.b2, cfg.optimizer.weight_decay = 0.98, 0.01
    cfg.schedule.name = "cosine"
    cfg.loss.z_loss = 0.0
    cfg.train.total_steps = steps = STEPS[phase]
    cfg.schedule.warmup_steps = steps // 10
    cfg.train.log_every_steps = 50
    cfg.eval.every_steps, cfg.eval.untrained, cfg.eval.batch_rows = 0, False, 64
    cfg.eval.max_decode_tokens = 32
    cfg.checkpoint.every_steps, cfg.checkpoint.keep_last = steps, 1
    if phase in ("pretrain", "continue"):
        cfg.data.mixture = "python_docs"
        cfg.data.documents_per_step, cfg.data.join_documents = DOCUMENTS, False
        cfg.data.batch_rows = ROWS[architecture]
        cfg.init.adapt = phase == "continue"
    else:
        cfg.data.mixture = f"python_docs_{phase}"
        cfg.data.batch_rows = 8
    return cfg


if __name__ == "__main__":
    for match in ("flops", "parameters"):
        print("\n".join(table(match)), end="\n\n")
