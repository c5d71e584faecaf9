"""What a model is made of, as one frozen dataclass. No jax here: configs are checked before a device is.

The dimension key of the whole project, used as suffixes of array names:
    B batch rows      L length (queries)   M length attended to   S source length
    D d_model         F d_ff               H heads                K head_dim
    V vocabulary      N layers             P masked positions     E examples per row   C classes
"""

import dataclasses
from dataclasses import MISSING
from typing import Any

from t5x_lite.errors import ConfigError
from t5x_lite.heads import ENCODER_HEADS, EXAMPLES, TOKENS
from t5x_lite.keys import AT_LEAST_ONE, FREE, NOT_NEGATIVE, POSITIVE, SHARE, WARN, field, keys_of
from t5x_lite.lookup import unknown

ARCHITECTURES = ("text_to_text", "encoder_only", "decoder_only")
BODIES = ("transformer", "cbow", "elmo")
REMAT = ("none", "full", "dots", "dots_no_batch")
LORA_TARGETS = ("query", "key", "value", "out", "wi", "wi_0", "wi_1", "wo")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of one model. `validate` raises ConfigError on what cannot work."""

    architecture: str
    vocab_size: int = field(MISSING, "ids; unset: the vocabulary's, rounded up to a multiple of 128", AT_LEAST_ONE)
    d_model: int = field(MISSING, "width of the hidden states", AT_LEAST_ONE)
    d_ff: int = field(MISSING, "width of the MLPs", AT_LEAST_ONE)
    num_heads: int = field(MISSING, "attention heads, of queries", AT_LEAST_ONE)
    head_dim: int = field(MISSING, "width of a head", AT_LEAST_ONE)
    num_encoder_layers: int = field(0, "layers of the encoder", NOT_NEGATIVE)
    num_decoder_layers: int = field(0, "layers of the decoder", NOT_NEGATIVE)
    # parts
    module: Any = field(None, "a Flax module in place of the family's own", (), takes=("config", "constrain"))  # noqa: RUF009
    body: str = field("transformer", "of an encoder also cbow or elmo: its ancestors, for comparison", BODIES)
    norm: str = field("rms", "kind of norm", ("rms", "layer"))
    norm_position: str = field("pre", "before each sublayer, or after it", ("pre", "post"))
    norm_epsilon: float = field(1e-6, "added to the variance", POSITIVE)
    activation: str = field("relu", "of the MLPs", ("relu", "gelu_tanh", "gelu_erf", "silu"))
    gated_mlp: bool = field(False, "activation(x·wi_0) * (x·wi_1) in place of activation(x·wi)")
    num_kv_heads: int = field(0, "heads of keys and values, grouped (Llama); 0: num_heads", NOT_NEGATIVE)
    attention_bias: bool = field(False, "biases in the dense layers of attention")
    attention_out_bias: bool = field(False, "a bias in attention's output alone (GPT-Neo)")
    mlp_bias: bool = field(False, "biases in the MLPs")
    positions: str = field("relative", "kind of positions", ("relative", "learned", "sinusoidal", "rotary"))
    max_positions: int = field(0, "learned: rows of the table; rotary: longest text in training", NOT_NEGATIVE)
    position_offset: int = field(0, "learned: rows of the table before position 0's (RoBERTa, BART: 2)", NOT_NEGATIVE)
    relative_buckets: int = field(32, "of relative positions; a multiple of 4", NOT_NEGATIVE)
    relative_max_distance: int = field(128, "tokens, from which on all distances share a bucket", NOT_NEGATIVE)
    rotary_dim: int = field(0, "of head_dim, the first that are turned (GPT-J); 0: all", NOT_NEGATIVE)
    rotary_interleaved: bool = field(False, "turns pairs of neighbours (GPT-J); else the two halves (Llama)")
    rotary_base: float = field(10000.0, "of the wavelengths", POSITIVE)
    rotary_factor: float = field(1.0, "Llama 3.1: stretches the longest wavelengths by this", POSITIVE)
    rotary_original_positions: int = field(8192, "tokens of its texts before it was stretched", AT_LEAST_ONE)
    local_window: int = field(0, "tokens each second layer sees (GPT-Neo); CBOW: on each side", NOT_NEGATIVE)
    parallel_block: bool = field(False, "attention and MLP side by side behind one norm (GPT-J)")
    share_layers: bool = field(False, "one layer for a whole stack (ALBERT)")
    embedding_dim: int = field(0, "width of the embedding tables (ALBERT); 0: d_model", NOT_NEGATIVE)
    scale_attention: bool = field(False, "divides q·k by sqrt(head_dim); T5 folds it into its initializer")
    scale_embeddings: bool = field(False, "multiplies embeddings by sqrt(d_model) (Vaswani et al. 2017, §3.4)")
    embedding_norm: bool = field(False, "a norm on the sum of embeddings (BERT)")
    final_norm: bool = field(True, "a norm behind the last layer of a pre-norm stack")
    tie_embeddings: bool = field(True, "logits from the input embedding table")
    logits_scale: str = field("none", "of what the logits are made from", ("none", "rsqrt_d_model"))
    logits_bias: bool = field(False, "a bias for each token's logit")
    decoder_start_id: int = field(-1, "first id a decoder reads; -1: the vocabulary's pad (T5). BART: 2")
    fairseq_marks: bool = field(False, "[CLS] before every text, two [SEP] in pairs (RoBERTa, BART)")
    type_vocab_size: int = field(0, "rows of BERT's sentence A/B table; 0: no table", NOT_NEGATIVE)
    # encoder-only heads
    heads: tuple = field((), "of encoders, by heads.py; unset: those that the tasks need", tuple(ENCODER_HEADS))
    num_classes: int = 0  # outputs of the heads that have classes: the tasks decide
    pooler_activation: str = field("tanh", "of the layer that pools an example", ("tanh", "relu"))
    # fine-tuning
    lora_rank: int = field(0, "of the matrices added to dense layers (LoRA); 0: none", NOT_NEGATIVE)
    lora_alpha: float = field(16.0, "they are scaled by lora_alpha / lora_rank")
    lora_dropout_rate: float = field(0.0, "dropout of what they read", SHARE)
    lora_targets: tuple = field(("query", "value"), "layers they are added to", LORA_TARGETS)
    prompt_tokens: int = field(0, "learned vectors before a text-to-text model's inputs; 0: none", NOT_NEGATIVE)
    adapter_dim: int = field(0, "width of the adapters behind each sublayer; 0: none", NOT_NEGATIVE)
    # training
    dropout_rate: float = field(0.0, "dropout of embeddings and residual branches", SHARE, WARN)
    attention_dropout_rate: float = field(0.0, "dropout of attention weights", SHARE, WARN)
    classifier_dropout_rate: float = field(-1.0, "of an example's vector; -1: dropout_rate", None, WARN)
    dropout_hidden: bool = field(False, "dropout also in the MLPs and after a stack (T5)", None, WARN)
    dropout_broadcasts_length: bool = field(False, "one mask for all positions of a row (T5)", None, WARN)
    initializer: str = field("t5", "of parameters", ("t5", "normal", "glorot"))
    initializer_stddev: float = field(0.02, "of the normal initializer", NOT_NEGATIVE)
    scale_residual_init: bool = field(False, "divides residual branches' by sqrt(2·layers) (GPT-2)")
    # execution: the same numbers at another cost
    dtype: str = field("float32", "of computation; parameters are always float32", ("float32", "bfloat16"), WARN)
    scan_layers: bool = field(False, "compiles one layer, with parameters stacked on a leading axis")
    remat: str = field("none", "activations to compute again in the backward pass", REMAT, FREE)

    @property
    def num_layers(self) -> int:
        return self.num_encoder_layers + self.num_decoder_layers

    @property
    def table_dim(self) -> int:
        """Columns of the embedding tables."""
        return self.embedding_dim or self.d_model

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def has_added(self) -> bool:
        """Whether it has parameters that are added to a model to be trained alone."""
        return self.lora_rank > 0 or self.adapter_dim > 0 or self.prompt_tokens > 0

    @property
    def has_dropout(self) -> bool:
        return max(self.dropout_rate, self.attention_dropout_rate, self.head_dropout_rate) > 0

    @property
    def head_dropout_rate(self) -> float:
        """Of the vector that classifies an example."""
        return self.dropout_rate if self.classifier_dropout_rate == -1 else self.classifier_dropout_rate

    @property
    def pooled_heads(self) -> tuple[str, ...]:
        """The heads that read one vector per example, the pooled hidden state of its first token."""
        return self.heads_that_read(EXAMPLES)

    def heads_that_read(self, states: str) -> tuple[str, ...]:
        """The heads that read these hidden states (TOKENS, MASKED or EXAMPLES of heads.py), in heads.py's order."""
        return tuple(name for name, head in ENCODER_HEADS.items() if name in self.heads and head.reads == states)

    @property
    def has_classes(self) -> bool:
        """Whether a head has num_classes outputs."""
        return any(ENCODER_HEADS[head].has_classes for head in self.heads)

    def validate(self) -> "ModelConfig":
        """Returns self; raises ConfigError naming the field, what it got and what is allowed."""
        if self.architecture not in ARCHITECTURES:
            raise ConfigError(unknown("model.architecture", self.architecture, ARCHITECTURES))
        for name, key in MODEL_KEYS.items():
            key.check(f"model.{name}", getattr(self, name))
        if not 0 <= self.head_dropout_rate < 1:
            raise ConfigError(
                f"model.classifier_dropout_rate={self.classifier_dropout_rate}; it must be in [0, 1), or -1: as "
                "model.dropout_rate"
            )
        wants = {"text_to_text": (1, 1), "encoder_only": (1, 0), "decoder_only": (0, 1)}[self.architecture]
        for name, wanted in zip(("num_encoder_layers", "num_decoder_layers"), wants, strict=True):
            if (getattr(self, name) > 0) != bool(wanted):
                need = "at least 1" if wanted else "0"
                raise ConfigError(f"model.{name}={getattr(self, name)}; a {self.architecture} model needs {need}")
        for target in self.lora_targets:
            if self.lora_rank and target in (("wi",) if self.gated_mlp else ("wi_0", "wi_1")):
                there = "wi_0, wi_1 and wo" if self.gated_mlp else "wi and wo"
                raise ConfigError(f"model.lora_targets has {target!r}; this model's MLPs have {there}")
        if self.lora_rank and not self.lora_targets:
            raise ConfigError(f"model.lora_rank={self.lora_rank} without model.lora_targets; name some layers")
        if self.prompt_tokens and self.architecture != "text_to_text":
            raise ConfigError(
                f"model.prompt_tokens={self.prompt_tokens}; only text_to_text models have learned prompts"
            )
        if self.num_heads % self.kv_heads:
            raise ConfigError(
                f"model.num_heads={self.num_heads} is not divisible by model.num_kv_heads={self.num_kv_heads}"
            )
        if self.positions == "rotary" and (self.rotary_dim > self.head_dim or (self.rotary_dim or self.head_dim) % 2):
            raise ConfigError(
                f"model.rotary_dim={self.rotary_dim} of head_dim={self.head_dim}; it must be even, and no larger"
            )
        if self.positions == "learned" and self.max_positions < 1:
            raise ConfigError("model.max_positions=0; learned positions need a table of at least 1 row")
        if self.positions == "relative" and (
            self.relative_buckets < 4
            or self.relative_buckets % 4
            or self.relative_max_distance <= self.relative_buckets // 2
        ):
            raise ConfigError(
                f"model.relative_buckets={self.relative_buckets}, relative_max_distance={self.relative_max_distance}; "
                "the buckets must be a multiple of 4, the distance more than half of them (T5: 32, 128)"
            )
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ConfigError(f"model.d_model={self.d_model}; sinusoidal positions need an even one")
        if self.body != "transformer" and (
            self.architecture != "encoder_only" or self.heads_that_read(TOKENS) or self.d_model % 2
        ):
            raise ConfigError(
                f"model.body={self.body!r} is for encoder_only models with an even d_model, without the heads "
                f"{' and '.join(name for name, head in ENCODER_HEADS.items() if head.reads == TOKENS)}; "
                f"this one is {self.architecture}, d_model={self.d_model}, heads={self.heads}"
            )
        if self.heads and self.architecture != "encoder_only":
            raise ConfigError(f"model.heads={self.heads}; heads belong to encoder_only, not {self.architecture}")
        if self.has_classes and self.num_classes < 2:
            raise ConfigError(f"model.num_classes={self.num_classes}; classification needs at least 2")
        return self


MODEL_KEYS = keys_of(ModelConfig)
