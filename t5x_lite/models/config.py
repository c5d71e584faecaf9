"""What a model is made of, as one frozen dataclass. No jax here: configs are checked before a device is.

The dimension key of the whole project, used as suffixes of array names:
    B batch rows      L length (queries)   M length attended to   S source length
    D d_model         F d_ff               H heads                K head_dim
    V vocabulary      N layers             P masked positions     E examples per row   C classes
"""

import dataclasses

from t5x_lite.errors import ConfigError
from t5x_lite.lookup import unknown

CHOICES = {
    "architecture": ("text_to_text", "encoder_only", "decoder_only"),
    "body": ("transformer", "cbow", "elmo"),
    "norm": ("rms", "layer"),
    "norm_position": ("pre", "post"),
    "activation": ("relu", "gelu_tanh", "gelu_erf", "silu"),
    "positions": ("relative", "learned", "sinusoidal", "rotary"),
    "pooler_activation": ("tanh", "relu"),
    "logits_scale": ("none", "rsqrt_d_model"),
    "initializer": ("t5", "normal", "glorot"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "full", "dots", "dots_no_batch"),
}
POOLED_HEADS = ("nsp", "classification", "multi_label", "regression", "multiple_choice", "pooled")
HEADS = ("mlm", "token_classification", "span", *POOLED_HEADS)
CLASS_HEADS = ("classification", "multi_label", "token_classification")  # with num_classes outputs

LORA_TARGETS = ("query", "key", "value", "out", "wi", "wi_0", "wi_1", "wo")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of one model. `validate` raises ConfigError on what cannot work."""

    architecture: str
    vocab_size: int
    d_model: int
    d_ff: int
    num_heads: int
    head_dim: int
    num_encoder_layers: int = 0
    num_decoder_layers: int = 0
    # parts
    body: str = "transformer"  # of an encoder also cbow or elmo: the ancestors, for comparison
    norm: str = "rms"
    norm_position: str = "pre"
    norm_epsilon: float = 1e-6
    activation: str = "relu"
    gated_mlp: bool = False  # activation(x·wi_0) * (x·wi_1)
    num_kv_heads: int = 0  # of keys and values, each for a group of heads (Llama); 0: num_heads
    attention_bias: bool = False  # in the dense layers of attention
    attention_out_bias: bool = False  # in its output alone (GPT-Neo)
    mlp_bias: bool = False
    positions: str = "relative"
    max_positions: int = 0  # learned: rows of the table; rotary: the longest text it was trained on
    position_offset: int = 0  # learned: rows of the table before that of position 0 (RoBERTa, BART: 2)
    relative_buckets: int = 32
    relative_max_distance: int = 128
    rotary_dim: int = 0  # of head_dim, the first that are turned (GPT-J); 0: all
    rotary_interleaved: bool = False  # pairs of neighbours (GPT-J); else the two halves (Llama)
    rotary_base: float = 10000.0
    rotary_factor: float = 1.0  # Llama 3.1: wavelengths beyond its original_positions are stretched so far
    rotary_original_positions: int = 8192
    local_window: int = 0  # every second layer sees so many latest tokens only (GPT-Neo); CBOW: neighbours on each side
    parallel_block: bool = False  # attention and MLP side by side behind one norm (GPT-J)
    share_layers: bool = False  # all layers of a stack are one (ALBERT)
    embedding_dim: int = 0  # of the embedding tables where it is not d_model (ALBERT)
    scale_attention: bool = False  # divide q·k by sqrt(head_dim); T5 folds it into its initialiser
    scale_embeddings: bool = False  # multiply embeddings by sqrt(d_model) (Vaswani et al. 2017, §3.4)
    embedding_norm: bool = False  # a norm on the sum of embeddings (BERT)
    final_norm: bool = True  # a norm after the last layer of a pre-norm stack
    tie_embeddings: bool = True  # logits from the input embedding table
    logits_scale: str = "none"
    logits_bias: bool = False
    decoder_start_id: int = -1  # what a decoder reads first; -1: the vocabulary's pad (T5). BART: 2
    fairseq_marks: bool = False  # texts of both stacks begin with [CLS], pairs have two [SEP] between (RoBERTa, BART)
    type_vocab_size: int = 0  # BERT's sentence A/B table
    # encoder-only heads
    heads: tuple[str, ...] = ()  # of HEADS
    num_classes: int = 0  # of the heads in CLASS_HEADS
    pooler_activation: str = "tanh"
    # fine-tuning
    lora_rank: int = 0  # of the matrices added to dense layers (models/lora.py); 0: none
    lora_alpha: float = 16.0  # they are scaled by lora_alpha / lora_rank
    lora_dropout_rate: float = 0.0  # of what they read
    lora_targets: tuple = ("query", "value")  # names of the layers: query key value out wi wi_0 wi_1 wo
    prompt_tokens: int = 0  # learned vectors that begin every text of a text-to-text model's encoder; 0: none
    adapter_dim: int = 0  # width of the adapters behind each sublayer (models/adapter.py); 0: none
    # training
    dropout_rate: float = 0.0  # embeddings, residual branches
    attention_dropout_rate: float = 0.0  # attention weights
    classifier_dropout_rate: float = -1.0  # of the vector that classifies an example; -1: dropout_rate
    dropout_hidden: bool = False  # dropout_rate also on the MLP's hidden layer and a stack's output (T5)
    dropout_broadcasts_length: bool = False  # T5: one mask for all positions of a row, for all queries of a head
    initializer: str = "t5"
    initializer_stddev: float = 0.02  # "normal" initialiser
    scale_residual_init: bool = False  # "normal" divided by sqrt(2·layers) on residual branches (GPT-2)
    # execution: same numbers, other cost
    dtype: str = "float32"  # compute; parameters are always float32
    scan_layers: bool = False  # one compiled layer, parameters stacked on a leading axis
    remat: str = "none"

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
        return tuple(head for head in self.heads if head in POOLED_HEADS)

    def validate(self) -> "ModelConfig":
        """Returns self; raises ConfigError naming the field, what it got and what is allowed."""
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise ConfigError(unknown(f"model.{field}", getattr(self, field), allowed))
        for head in self.heads:
            if head not in HEADS:
                raise ConfigError(unknown("model.heads entry", head, HEADS))
        for field in ("vocab_size", "d_model", "d_ff", "num_heads", "head_dim"):
            if getattr(self, field) < 1:
                raise ConfigError(f"model.{field}={getattr(self, field)}; it must be at least 1")
        for field in ("dropout_rate", "attention_dropout_rate", "lora_dropout_rate"):
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(f"model.{field}={getattr(self, field)}; it must be in [0, 1)")
        if not 0 <= self.head_dropout_rate < 1:
            raise ConfigError(
                f"model.classifier_dropout_rate={self.classifier_dropout_rate}; it must be in [0, 1), or -1: as "
                "model.dropout_rate"
            )
        wants = {"text_to_text": (1, 1), "encoder_only": (1, 0), "decoder_only": (0, 1)}[self.architecture]
        for field, wanted in zip(("num_encoder_layers", "num_decoder_layers"), wants, strict=True):
            if (getattr(self, field) > 0) != bool(wanted):
                need = "at least 1" if wanted else "0"
                raise ConfigError(f"model.{field}={getattr(self, field)}; a {self.architecture} model needs {need}")
        for target in self.lora_targets:
            if target not in LORA_TARGETS:
                raise ConfigError(unknown("model.lora_targets entry", target, LORA_TARGETS))
            if self.lora_rank and target in (("wi",) if self.gated_mlp else ("wi_0", "wi_1")):
                there = "wi_0, wi_1 and wo" if self.gated_mlp else "wi and wo"
                raise ConfigError(f"model.lora_targets has {target!r}; this model's MLPs have {there}")
        if self.lora_rank and not self.lora_targets:
            raise ConfigError(f"model.lora_rank={self.lora_rank} without model.lora_targets; name some layers")
        if self.prompt_tokens and self.architecture != "text_to_text":
            raise ConfigError(
                f"model.prompt_tokens={self.prompt_tokens}; only text_to_text models have learned prompts"
            )
        for field in ("lora_rank", "adapter_dim", "prompt_tokens"):
            if getattr(self, field) < 0:
                raise ConfigError(f"model.{field}={getattr(self, field)}; it must be at least 0, which is none")
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
            self.architecture != "encoder_only"
            or {"token_classification", "span"} & set(self.heads)
            or self.d_model % 2
        ):
            raise ConfigError(
                f"model.body={self.body!r} is of encoder_only models with an even d_model, without the heads "
                f"token_classification and span; it is {self.architecture}, d_model={self.d_model}, heads={self.heads}"
            )
        if self.heads and self.architecture != "encoder_only":
            raise ConfigError(f"model.heads={self.heads}; heads belong to encoder_only, not {self.architecture}")
        if set(CLASS_HEADS) & set(self.heads) and self.num_classes < 2:
            raise ConfigError(f"model.num_classes={self.num_classes}; classification needs at least 2")
        return self
