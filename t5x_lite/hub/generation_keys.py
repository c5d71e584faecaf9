"""Lists the keys of generation_config.json: those that generation.py honours, and what becomes of the others.

This module does not import jax, because a config.json may have the same keys.
"""

from collections.abc import Mapping

# generation.OPTIONS has the type and default of each.
HONOURED = (
    "max_new_tokens", "max_length", "min_new_tokens", "min_length", "num_beams", "do_sample", "temperature", "top_k",
    "top_p", "repetition_penalty", "no_repeat_ngram_size", "length_penalty", "early_stopping", "forced_bos_token_id",
    "forced_eos_token_id", "eos_token_id", "num_return_sequences", "decoder_start_token_id",
)  # fmt: skip

# These change texts in transformers, but not here; a warning names those that are set. Key -> values, besides null,
# with which it has no effect.
UNSUPPORTED: Mapping[str, tuple] = {
    **dict.fromkeys(
        ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "force_words_ids", "constraints",
         "stop_strings"), ([], {}),
    ),
    **dict.fromkeys(
        ("exponential_decay_length_penalty", "dola_layers", "top_h", "watermarking_config", "max_time",
         "assistant_ensemble_weight"), (),
    ),
    **dict.fromkeys(("renormalize_logits", "token_healing", "remove_invalid_values"), (False,)),
    **dict.fromkeys(
        ("diversity_penalty", "encoder_no_repeat_ngram_size", "penalty_alpha", "min_p", "epsilon_cutoff", "eta_cutoff"),
        (0,),
    ),
    **dict.fromkeys(("num_beam_groups", "encoder_repetition_penalty", "guidance_scale", "typical_p"), (1,)),
}  # fmt: skip

_CACHE = "decides how transformers computes the same texts"
_DRAFTS = "drafts texts that the model then verifies; the texts are those of decoding without drafts"
_OUTPUT = "chooses which results `generate` of transformers returns"

# Key -> why it has no effect.
NO_EFFECT: Mapping[str, str] = {
    **dict.fromkeys(
        ("use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile",
         "continuous_batching_config", "low_memory", "prefill_chunk_size"), _CACHE,
    ),
    **dict.fromkeys(
        ("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
         "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind",
         "target_lookbehind", "speculation_type", "use_mtp"), _DRAFTS,
    ),
    **dict.fromkeys(
        ("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
        _OUTPUT,
    ),
    "pad_token_id": "fills the rows of a batch after the end of a text",
    "bos_token_id": "begins only a text without a prompt; config.json and the tokenizer say how a text begins",
    **dict.fromkeys(
        ("_from_model_config", "_commit_hash", "_original_object_hash", "transformers_version", "trust_remote_code"),
        "says where the file comes from",
    ),
}  # fmt: skip
