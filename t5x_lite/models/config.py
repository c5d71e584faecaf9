"""`ModelConfig`, the frozen dataclass that describes a model.

This module does not import jax, so that a config can be validated before any device is used.

The whole project uses these dimension letters as suffixes of array names:
    B batch rows      L length (queries)   M length (keys)        S source length
    D d_model         F d_ff               H heads                K head_dim
    V vocabulary      N layers             P masked positions     E examples per row   C classes
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

from t5x_lite.errors import ConfigError
from t5x_lite.heads import EMBEDDINGS, ENCODER_HEADS, EXAMPLES, MASKED, TOKENS
from t5x_lite.keys import AT_LEAST_ONE, FREE, NOT_NEGATIVE, POSITIVE, SHARE, WARN, Range, field, keys_of
from t5x_lite.lookup import unknown

ARCHITECTURES = ("text_to_text", "encoder_only", "decoder_only")
MERGED = "merged_attention"  # a body: decoder layers attend to their own text and the encoder's at once
BODIES = ("transformer", "encoder_decoder", "cbow", "elmo", MERGED)
KERNELS = ("reference", "blockwise", "pallas")  # of attention; kernel NAME is in attention_NAME.py
ATTENTION = ("auto", *KERNELS)
NORMS = ("rms", "rms_zero_centered", "layer", "layer_no_bias")
NORM_POSITIONS = ("pre", "post", "both", "output", "pre_but_first")
ATTENTION_BIASES = ("none", "all", "qkv", "out")
POSITIONS = {
    "relative": "biases on attention's logits by distance, one table for a stack (T5)",
    "relative_per_layer": "the same, one table for each layer (umT5)",
    "learned": "a table of vectors that are added to the embeddings",
    "sinusoidal": "sines and cosines that are added to the embeddings, in turn (Vaswani et al. 2017, §3.5)",
    "sinusoidal_halves": "the same, all sines before all cosines (Marian, Pegasus)",
    "sinusoidal_fairseq": "as halves, with fairseq's wavelengths (M2M-100)",
    "rotary": "rotations of queries and keys",
    "disentangled": "vectors of distances, which queries and keys multiply as they multiply tokens (DeBERTa)",
}
ROTARY_SCALINGS = ("llama3", "linear", "yarn")
ACTIVATIONS = ("relu", "gelu_tanh", "gelu_erf", "silu")
LARGEST_SCALE = 100.0  # 1 / temperature, if it is learned (Radford et al. 2021, CLIP, §2.5)
POOLINGS = ("first", "last", "mean")
INITIALIZERS = ("t5", "normal", "normal_residual", "glorot")
REMAT = ("none", "full", "attention", "dots", "dots_no_batch")
LAYERS = Range(at_least=0, at_most=1000)  # DeepNet, the deepest published transformer, has 1,000
# Each layer's kind is a letter of `layer_pattern`, which repeats over a stack's layers.
GLOBAL, LOCAL, UNPOSITIONED = "g", "l", "n"
LAYER_KINDS = {
    GLOBAL: "attends to the whole text",
    LOCAL: "attends within local_window",
    UNPOSITIONED: "attends to the whole text without positions",
}
GENERATORS = ("shared", "disentangled", "separate")
SOME = Range(above=0, at_most=1)
LORA_TARGETS = ("query", "key", "value", "out", "wi", "wi_0", "wi_1", "wo")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Holds the sizes and options of one model. `validate` raises ConfigError if values cannot work together."""

    architecture: str
    vocab_size: int = field(MISSING, "ids; unset: the vocabulary's size, rounded up to a multiple of 128", AT_LEAST_ONE)
    d_model: int = field(MISSING, "width of the hidden states", AT_LEAST_ONE)
    d_ff: int = field(MISSING, "width of the MLPs", AT_LEAST_ONE)
    num_heads: int = field(MISSING, "attention heads (of queries)", AT_LEAST_ONE)
    head_dim: int = field(MISSING, "width of an attention head", AT_LEAST_ONE)
    num_encoder_layers: int = field(0, "layers of the encoder", LAYERS)
    num_decoder_layers: int = field(0, "layers of the decoder", LAYERS)
    # parts
    module: Any = field(None, "a Flax module in place of the family's own", (), takes=("config", "constrain"))  # noqa: RUF009
    body: str = field(
        "transformer",
        "encoder_only: encoder_decoder (BART as a classifier); cbow, elmo. text_to_text: merged_attention",
        BODIES,
    )
    norm: str = field("rms", "kind of norm (layers.py: Norm)", NORMS)
    norm_position: str = field("pre", "where the norms of a block are (transformer.py: Block)", NORM_POSITIONS)
    qk_norm: str = field("none", "a norm on queries and keys, of each head or of all heads", ("none", "head", "all"))
    norm_epsilon: float = field(1e-6, "added to the variance in norms", POSITIVE)
    activation: str = field("relu", "activation of the MLPs", ACTIVATIONS)
    gated_mlp: bool = field(False, "activation(x·wi_0) * (x·wi_1) instead of activation(x·wi)")
    num_kv_heads: int = field(0, "key and value heads, shared by groups of queries (Llama); 0: num_heads", NOT_NEGATIVE)
    attention_bias: str = field("none", "attention's dense layers with biases; qkv: all but out", ATTENTION_BIASES)
    mlp_bias: bool = field(False, "biases in the MLPs")
    positions: str = field("relative", "kind of positions, see POSITIONS", tuple(POSITIONS))
    max_positions: int = field(0, "learned: rows of the table; others: longest text in training", NOT_NEGATIVE)
    position_offset: int = field(0, "learned, sinusoidal: added to positions (RoBERTa, BART, M2M-100: 2)", NOT_NEGATIVE)
    relative_buckets: int = field(32, "relative: number of buckets, a multiple of 4; disentangled: even", NOT_NEGATIVE)
    relative_max_distance: int = field(128, "all distances from this on share a relative bucket", NOT_NEGATIVE)
    rotary_dim: int = field(0, "leading dimensions of a head that are rotated (GPT-J); 0: all", NOT_NEGATIVE)
    rotary_interleaved: bool = field(False, "rotates pairs of neighbours (GPT-J), not the two halves (Llama)")
    rotary_base: float = field(10000.0, "base of the wavelengths", POSITIVE)
    rotary_factor: float = field(1.0, "factor that stretches wavelengths, see rotary_scaling", POSITIVE)
    rotary_original_positions: int = field(8192, "longest text before stretching, in tokens", AT_LEAST_ONE)
    rotary_scaling: str = field("llama3", "rule by which rotary_factor stretches wavelengths", ROTARY_SCALINGS)
    rotary_local_base: float = field(0.0, "rotary_base of the layers with a window; 0: rotary_base", NOT_NEGATIVE)
    local_window: int = field(
        0, "layers of kind l see tokens nearer than this (cbow, T5Gemma's encoder: at most so far)", NOT_NEGATIVE
    )
    layer_pattern: str = field("gl", "kinds of layers in turn: g global, l local, n global without positions")
    parallel_block: bool = field(False, "attention and MLP in parallel after one norm (GPT-J)")
    share_layers: bool = field(False, "all layers of a stack share their parameters (ALBERT)")
    embedding_dim: int = field(0, "width of the embedding tables (ALBERT); 0: d_model", NOT_NEGATIVE)
    query_dim: int = field(1, "divides q·k by sqrt(query_dim); 0: head_dim; 1: T5's initializer does", NOT_NEGATIVE)
    attention_softcap: float = field(0.0, "bounds attention's logits to ± this, by tanh; 0: no bound", NOT_NEGATIVE)
    scale_embeddings: bool = field(False, "multiplies embeddings by sqrt(d_model) (Vaswani et al. 2017, §3.4)")
    embedding_norm: bool = field(False, "a norm on the sum of the embeddings (BERT)")
    share_embeddings: bool = field(True, "encoder and decoder share one embedding table; T5Gemma: no")
    tie_embeddings: bool = field(True, "computes logits with the (decoder's) input embedding table")
    logits_scale: str = field("none", "scales the hidden states before the logits", ("none", "rsqrt_d_model"))
    logits_softcap: float = field(0.0, "bounds the logits to ± this, by tanh (Gemma 2); 0: no bound", NOT_NEGATIVE)
    logits_bias: bool = field(False, "a bias on each token's logit")
    decoder_start_id: int = field(-1, "first id the decoder reads; -1: the vocabulary's padding (T5). BART: 2")
    fairseq_marks: bool = field(False, "[CLS] before every text, two [SEP] between a pair (RoBERTa, BART)")
    type_vocab_size: int = field(0, "rows of BERT's sentence A/B table; 0: no table", NOT_NEGATIVE)
    # encoder-only heads
    heads: tuple = field((), "heads of an encoder (heads.py); unset: those the tasks need", tuple(ENCODER_HEADS))
    num_classes: int = 0  # outputs of each head with classes; not a config key, because the tasks determine it
    prediction_head: bool = field(False, "a dense layer and a norm before all heads, no pooler (ModernBERT)")
    pooling: str = field("first", "what heads of examples read: the first or last token's state, the mean", POOLINGS)
    temperature: float = field(0.05, "contrastive: cosines are divided by it", POSITIVE)
    learned_temperature: bool = field(False, "contrastive: the temperature is a parameter that begins at temperature")
    pooler_activation: str = field("tanh", "activation of the pooler", ("tanh", *ACTIVATIONS))
    # replaced-token detection (replaced_tokens.py)
    generator_layers: int = field(0, "layers of the generator that replaces tokens (ELECTRA); 0: no generator", LAYERS)
    generator_width: float = field(0.25, "share of d_model, d_ff and heads that the generator has", SOME)
    generator_embeddings: str = field(
        "shared", "of tokens, with the generator: shared (ELECTRA), disentangled (DeBERTa-v3), separate", GENERATORS
    )
    # fine-tuning
    lora_rank: int = field(0, "rank of the LoRA matrices added to dense layers; 0: no LoRA", NOT_NEGATIVE)
    lora_alpha: float = field(16.0, "scales LoRA's output by lora_alpha / lora_rank")
    lora_dropout_rate: float = field(0.0, "dropout of LoRA's inputs", SHARE)
    lora_targets: tuple = field(("query", "value"), "dense layers that get LoRA", LORA_TARGETS)
    prompt_tokens: int = field(0, "trainable vectors before a text_to_text model's inputs; 0: none", NOT_NEGATIVE)
    adapter_dim: int = field(0, "width of the adapter after each sublayer; 0: no adapters", NOT_NEGATIVE)
    # training
    dropout_rate: float = field(0.0, "dropout of embeddings and residual branches", SHARE, WARN)
    attention_dropout_rate: float = field(0.0, "dropout of attention weights", SHARE, WARN)
    classifier_dropout_rate: float = field(-1.0, "dropout of an example's pooled vector; -1: dropout_rate", None, WARN)
    dropout_hidden: bool = field(False, "dropout also inside the MLPs and after each stack (T5)", None, WARN)
    dropout_broadcasts_length: bool = field(False, "one dropout mask for all positions of a row (T5)", None, WARN)
    initializer: str = field("t5", "distribution of the initial parameters", INITIALIZERS)
    initializer_stddev: float = field(0.02, "standard deviation of the normal initializer", NOT_NEGATIVE)
    # execution: the same model at a different cost
    dtype: str = field("float32", "dtype of computation; parameters stay float32", ("float32", "bfloat16"), WARN)
    scan_layers: bool = field(False, "compiles one layer; parameters are stacked along a leading axis")
    attention: str = field("auto", "how attention is computed; auto: by the rows' lengths", ATTENTION, WARN)
    remat: str = field("none", "activations to recompute in the backward pass", REMAT, FREE)

    @property
    def stacks(self) -> tuple[str, ...]:
        """Returns the stacks of layers that the model has: encoder, decoder or both."""
        return tuple(side for side in ("encoder", "decoder") if getattr(self, f"num_{side}_layers"))

    @property
    def num_layers(self) -> int:
        return self.num_encoder_layers + self.num_decoder_layers

    def layer_kinds(self, layers: int) -> str:
        """Returns the kinds of the layers of a stack with `layers` layers, one letter of LAYER_KINDS for each. Without
        a window, local layers are global."""
        kinds = (self.layer_pattern * layers)[:layers]
        return kinds if self.local_window else kinds.replace(LOCAL, GLOBAL)

    @property
    def table_dim(self) -> int:
        """Returns the number of columns of the embedding tables."""
        return self.embedding_dim or self.d_model

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def has_added(self) -> bool:
        """Returns whether the model has added parameters: LoRA, adapters or a prompt.

        By default, only the added parameters and the heads are trained; the rest of the model is frozen.
        """
        return self.lora_rank > 0 or self.adapter_dim > 0 or self.prompt_tokens > 0

    @property
    def has_dropout(self) -> bool:
        return max(self.dropout_rate, self.attention_dropout_rate, self.head_dropout_rate) > 0

    @property
    def head_dropout_rate(self) -> float:
        """Returns the dropout rate of an example's pooled vector, which the heads for whole examples read."""
        return self.dropout_rate if self.classifier_dropout_rate == -1 else self.classifier_dropout_rate

    @property
    def pooled_heads(self) -> tuple[str, ...]:
        """Returns the heads that read one vector per example: the pooled hidden state of the example's first token."""
        return self.heads_that_read(EXAMPLES)

    def heads_that_read(self, states: str) -> tuple[str, ...]:
        """Returns the heads that read `states` (TOKENS, MASKED, … of heads.py), in the order of heads.py."""
        return tuple(name for name, head in ENCODER_HEADS.items() if name in self.heads and head.reads == states)

    @property
    def has_generator(self) -> bool:
        """Returns whether a generator replaces masked tokens, and the head rtd detects them (replaced_tokens.py)."""
        return self.generator_layers > 0 and {"mlm", "rtd"} <= {*self.heads}

    @property
    def has_classes(self) -> bool:
        """Returns whether at least one head has num_classes outputs."""
        return any(ENCODER_HEADS[head].has_classes for head in self.heads)

    def validate(self) -> "ModelConfig":
        """Returns self. Raises ConfigError if a field is not valid; the message says what is allowed."""
        if self.architecture not in ARCHITECTURES:
            raise ConfigError(unknown("model.architecture", self.architecture, ARCHITECTURES))
        for name, key in MODEL_KEYS.items():
            key.check(f"model.{name}", getattr(self, name))
        if not 0 <= self.head_dropout_rate < 1:
            what = f"model.classifier_dropout_rate={self.classifier_dropout_rate}"
            raise ConfigError(f"{what}; it must be at least 0 and below 1, or -1 to use model.dropout_rate")
        lacks = {"encoder_only": "num_decoder_layers", "decoder_only": "num_encoder_layers"}.get(self.architecture)
        lacks = None if self.body == "encoder_decoder" else lacks
        for name in ("num_encoder_layers", "num_decoder_layers"):
            if (getattr(self, name) > 0) == (name == lacks):
                allowed = "0" if name == lacks else "at least 1"
                raise ConfigError(f"model.{name}={getattr(self, name)}; a {self.architecture} model needs {allowed}")
        for target in self.lora_targets:
            if self.lora_rank and target in (("wi",) if self.gated_mlp else ("wi_0", "wi_1")):
                layers = "wi_0, wi_1 and wo" if self.gated_mlp else "wi and wo"
                raise ConfigError(f"model.lora_targets has {target!r}; this model's MLPs have {layers}")
        if not self.layer_pattern or set(self.layer_pattern) - set(LAYER_KINDS):
            kinds = ", ".join(f"{letter} ({meaning})" for letter, meaning in LAYER_KINDS.items())
            raise ConfigError(f"model.layer_pattern={self.layer_pattern!r}; it must consist of the letters {kinds}")
        if UNPOSITIONED in self.layer_pattern and self.positions != "rotary":
            what = f"model.layer_pattern={self.layer_pattern!r} with model.positions={self.positions!r}"
            raise ConfigError(f"{what}; only rotary models can have layers without positions ({UNPOSITIONED})")
        if self.norm_position == "pre_but_first" and self.scan_layers:
            why = "its first layer lacks a norm, and scanned layers all have the same parameters"
            raise ConfigError(f"model.scan_layers=True with norm_position=pre_but_first: {why}; set scan_layers=False")
        if self.parallel_block and self.norm_position != "pre":
            raise ConfigError(f"model.norm_position={self.norm_position!r}; it must be pre with model.parallel_block")
        if self.lora_rank and not self.lora_targets:
            what = f"model.lora_rank={self.lora_rank}, but model.lora_targets is empty"
            raise ConfigError(f"{what}; name some layers of {', '.join(LORA_TARGETS)}")
        for name, usual in (("prompt_tokens", 0), ("share_embeddings", True)):
            if (value := getattr(self, name)) != usual and self.architecture != "text_to_text":
                what = f"model.{name}={value}; it must be {usual} for {self.architecture}"
                raise ConfigError(f"{what}: only text_to_text models can have a trainable prompt, or two tables")
        if self.num_heads % self.kv_heads:
            what = f"model.num_heads={self.num_heads} is not divisible by"
            raise ConfigError(f"{what} model.num_kv_heads={self.num_kv_heads}")
        if self.positions == "rotary" and (self.rotary_dim > self.head_dim or (self.rotary_dim or self.head_dim) % 2):
            raise ConfigError(
                f"model.rotary_dim={self.rotary_dim}, model.head_dim={self.head_dim}; rotary_dim (0: head_dim) must be "
                "even and at most head_dim"
            )
        if self.positions == "learned" and self.max_positions < 1:
            raise ConfigError("model.max_positions=0; learned positions need a table of at least 1 row")
        buckets, distance = self.relative_buckets, self.relative_max_distance
        if self.positions.startswith("relative") and (buckets < 4 or buckets % 4 or distance <= buckets // 2):
            raise ConfigError(
                f"model.relative_buckets={buckets}, relative_max_distance={distance}; "
                "relative_buckets must be a multiple of 4, and relative_max_distance above half of it (T5: 32, 128)"
            )
        if self.positions == "disentangled" and (buckets < 4 or buckets % 2 or distance < buckets // 2):
            raise ConfigError(
                f"model.relative_buckets={buckets}, relative_max_distance={distance}; with disentangled positions, "
                "relative_buckets must be even, from 4 to twice relative_max_distance (DeBERTa-v3: 512, 512)"
            )
        if self.positions == "disentangled" and self.architecture != "encoder_only":
            raise ConfigError(f"model.positions='disentangled' is for encoder_only models, not {self.architecture}")
        if self.positions.startswith("sinusoidal") and (self.d_model % 2 or self.d_model < 4):
            raise ConfigError(f"model.d_model={self.d_model}; sinusoidal positions need an even d_model from 4 on")
        self._validate_merged()
        if self.generator_layers:
            from t5x_lite.models import generator  # few models have one

            generator.validate(self)
        self._validate_heads()
        return self

    def _validate_heads(self) -> None:
        """Raises ConfigError if the heads of an encoder, or what only its heads read, cannot work with other fields."""
        refused = {"transformer": (), MERGED: (), "encoder_decoder": (TOKENS, MASKED, EMBEDDINGS)}.get(
            self.body, (TOKENS, EMBEDDINGS)
        )
        misfit = self.architecture != "encoder_only" or self.d_model % 2 or any(map(self.heads_that_read, refused))
        if refused and misfit:
            raise ConfigError(
                f"model.body={self.body!r} is for encoder_only models with an even d_model and without the heads "
                f"{', '.join(name for name, head in ENCODER_HEADS.items() if head.reads in refused)}; "
                f"this model has architecture={self.architecture}, d_model={self.d_model}, heads={self.heads}"
            )
        if self.body == "encoder_decoder" and self.decoder_start_id < 0:
            raise ConfigError(f"model.decoder_start_id={self.decoder_start_id}; body=encoder_decoder needs an id")
        if self.heads and self.architecture != "encoder_only":
            raise ConfigError(f"model.heads={self.heads}; only encoder_only models have heads, not {self.architecture}")
        if self.learned_temperature and self.temperature <= 1 / LARGEST_SCALE:
            what = f"model.temperature={self.temperature} with model.learned_temperature=True"
            raise ConfigError(f"{what}; it must be above {1 / LARGEST_SCALE}, the lowest that is learned")
        if self.has_classes and self.num_classes < 2:
            raise ConfigError(f"model.num_classes={self.num_classes}; classification needs at least 2")

    def _validate_merged(self) -> None:
        """Raises ConfigError if the body is `merged_attention`, and another field cannot work with it."""
        if self.body != MERGED:
            return
        if self.architecture != "text_to_text":
            raise ConfigError(f"model.body={MERGED!r} is for text_to_text models, not {self.architecture}")
        if self.positions.startswith("relative"):
            what = f"model.positions={self.positions!r} with model.body={MERGED!r}"
            raise ConfigError(f"{what}: no distance is defined between the two texts; use rotary positions (T5Gemma 2)")
        if self.attention not in ("auto", "reference"):
            why = "only the reference kernel attends to two texts at once"
            raise ConfigError(f"model.attention={self.attention!r} with model.body={MERGED!r}: {why}; use auto")


MODEL_KEYS = keys_of(ModelConfig)


def upgraded(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns stored fields of a ModelConfig, or stored keys of a run's model, under their present names.

    Before 0.2, attention_bias, initializer and query_dim had further booleans beside them, and final_norm was true.

    >>> upgraded({"attention_bias": False, "attention_out_bias": True, "scale_attention": True, "final_norm": True})
    {'attention_bias': 'out', 'query_dim': 0}
    """
    out = dict(fields)
    every, output = out.get("attention_bias"), out.pop("attention_out_bias", None)
    if isinstance(every, bool) or output:
        out["attention_bias"] = "all" if every else "out" if output else "none"
    if out.pop("scale_residual_init", None) and out.get("initializer") == "normal":
        out["initializer"] = "normal_residual"
    if (scaled := out.pop("scale_attention", None)) is not None:
        out["query_dim"] = (out.get("query_dim") or 0) if scaled else 1
    if out.get("final_norm", False) in (True, None):
        del out["final_norm"]
    return out
