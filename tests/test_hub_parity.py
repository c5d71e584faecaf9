"""Random tiny transformers models of every family. Imported, they have the same outputs, hidden states, attention maps
and gradients. Exported, they give the same files again."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from t5x_lite.hub import interchange, parameters, t5gemma2_families
from t5x_lite.hub.weights import Weights
from t5x_lite.models import build, intermediates

torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity needs the extra `parity`")

LENGTHS = np.array([7, 4])
T5 = {
    "vocab_size": 48,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "dropout_rate": 0.0,
}
BERT = {
    "vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 14,
}  # fmt: skip
DISTIL = {"vocab_size": 48, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 14}
GPT2 = {"vocab_size": 48, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24}
NEO = {
    "vocab_size": 48, "max_position_embeddings": 12, "hidden_size": 16, "num_layers": 3, "num_heads": 2,
    "intermediate_size": 24, "window_size": 3, "attention_types": [[["global", "local"], 1], [["global"], 1]],
}  # fmt: skip
GPTJ = {"vocab_size": 48, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "rotary_dim": 4}
LLAMA = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
KINDS = ["full_attention", "sliding_attention", "full_attention"]
GEMMA = LLAMA | {
    "num_hidden_layers": 3, "head_dim": 8, "query_pre_attn_scalar": 5, "sliding_window": 3,
    "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5,
}  # fmt: skip
T5GEMMA = GEMMA | {"num_hidden_layers": 2}
GEMMA3 = GEMMA | {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "attn_logit_softcapping": None,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
}
GEMMA3_SHORT = GEMMA3 | {"num_hidden_layers": 2, "layer_types": GEMMA3["layer_types"][:2]}
T5GEMMA2 = GEMMA3 | {"sliding_window": 4}  # an even window has one token more behind the query than before it
MODERN = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "local_attention": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip
ELECTRA = BERT | {"embedding_size": 8}
DEBERTA = {
    **BERT, "type_vocab_size": 0, "relative_attention": True, "position_biased_input": False, "pos_att_type": "p2c|c2p",
    "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 3, "max_relative_positions": 5,
}  # fmt: skip
BART = {
    "vocab_size": 48, "d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 12,
    "dropout": 0.0,
}  # fmt: skip


def t5gemma2(encoder: dict, decoder: dict) -> dict:
    vision = {"vision_config": t5gemma2_families.NO_VISION, "mm_tokens_per_image": 1}
    return {"encoder": {"text_config": encoder} | vision, "decoder": decoder}


# name -> (class of transformers, its configuration)
MODELS = {
    "t5": ("T5ForConditionalGeneration", T5 | {"feed_forward_proj": "relu"}),
    "t5_1_1": ("T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "ul2": ("T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False}),
    "mt5": ("MT5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bert_pretraining": ("BertForPreTraining", BERT),
    "bert_mlm": ("BertForMaskedLM", BERT),
    "bert_classifier": ("BertForSequenceClassification", BERT | {"num_labels": 3}),
    "bert_regression": ("BertForSequenceClassification", BERT | {"num_labels": 1}),
    "bert_bare": ("BertModel", BERT),
    "bert_tokens": ("BertForTokenClassification", BERT | {"num_labels": 3}),
    "bert_span": ("BertForQuestionAnswering", BERT),
    "bert_choice": ("BertForMultipleChoice", BERT),
    "roberta_mlm": ("RobertaForMaskedLM", BERT | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "roberta_labels": (
        "RobertaForSequenceClassification",
        BERT | {"type_vocab_size": 1, "num_labels": 3, "problem_type": "multi_label_classification"},
    ),
    "roberta_tokens": ("RobertaForTokenClassification", BERT | {"type_vocab_size": 1, "num_labels": 3}),
    "xlm_roberta_mlm": ("XLMRobertaForMaskedLM", BERT | {"type_vocab_size": 1}),
    "xlm_roberta_classifier": ("XLMRobertaForSequenceClassification", BERT | {"type_vocab_size": 1, "num_labels": 3}),
    "camembert_mlm": ("CamembertForMaskedLM", BERT | {"type_vocab_size": 1}),
    "camembert_tokens": ("CamembertForTokenClassification", BERT | {"type_vocab_size": 1, "num_labels": 3}),
    "distilbert_mlm": ("DistilBertForMaskedLM", DISTIL),
    "distilbert_classifier": ("DistilBertForSequenceClassification", DISTIL | {"num_labels": 3}),
    "distilbert_span": ("DistilBertForQuestionAnswering", DISTIL),
    "albert_choice": ("AlbertForMultipleChoice", BERT | {"embedding_size": 8}),
    "albert_pretraining": ("AlbertForPreTraining", BERT | {"embedding_size": 8}),
    "albert_classifier": ("AlbertForSequenceClassification", BERT | {"embedding_size": 8, "num_labels": 3}),
    "electra_discriminator": ("ElectraForPreTraining", ELECTRA),
    "electra_generator": ("ElectraForMaskedLM", ELECTRA),
    "electra_classifier": ("ElectraForSequenceClassification", BERT | {"embedding_size": 16, "num_labels": 3}),
    "electra_tokens": ("ElectraForTokenClassification", ELECTRA | {"num_labels": 3}),
    "electra_span": ("ElectraForQuestionAnswering", ELECTRA),
    "electra_choice": ("ElectraForMultipleChoice", ELECTRA),
    "electra_bare": ("ElectraModel", ELECTRA),
    "deberta_mlm": ("DebertaV2ForMaskedLM", DEBERTA),
    "deberta_classifier": (
        "DebertaV2ForSequenceClassification",
        DEBERTA | {"num_labels": 3, "type_vocab_size": 2, "position_buckets": -1},
    ),
    "deberta_tokens": ("DebertaV2ForTokenClassification", DEBERTA | {"num_labels": 3, "max_relative_positions": -1}),
    "deberta_span": ("DebertaV2ForQuestionAnswering", DEBERTA),
    "deberta_choice": ("DebertaV2ForMultipleChoice", DEBERTA | {"pooler_hidden_act": "tanh"}),
    "deberta_bare": ("DebertaV2Model", BERT | {"type_vocab_size": 0}),  # learned positions, transformers' default
    "modernbert_mlm": ("ModernBertForMaskedLM", MODERN),
    "modernbert_classifier": (
        "ModernBertForSequenceClassification",
        MODERN | {"num_labels": 3, "classifier_pooling": "mean", "norm_bias": True},
    ),
    "modernbert_tokens": ("ModernBertForTokenClassification", MODERN | {"num_labels": 3}),
    "modernbert_span": ("ModernBertForQuestionAnswering", MODERN),
    "modernbert_decoder": ("ModernBertDecoderForCausalLM", MODERN),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2_untied": ("GPT2LMHeadModel", GPT2 | {"tie_word_embeddings": False}),
    "gpt_neo": ("GPTNeoForCausalLM", NEO),
    "gpt_j": ("GPTJForCausalLM", GPTJ),
    "llama": ("LlamaForCausalLM", LLAMA),
    "llama3": ("LlamaForCausalLM", LLAMA | {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", LLAMA | {"sliding_window": 3}),
    "qwen2": (
        "Qwen2ForCausalLM",
        LLAMA | {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 3, "layer_types": KINDS},
    ),
    "qwen2_yarn": ("Qwen2ForCausalLM", LLAMA | {"rope_parameters": YARN, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", LLAMA | {"head_dim": 8}),
    "olmo2": ("Olmo2ForCausalLM", LLAMA),
    "smollm3": ("SmolLM3ForCausalLM", LLAMA | {"no_rope_layers": [1, 0], "pad_token_id": 0}),
    "gemma2": ("Gemma2ForCausalLM", GEMMA),
    "gemma3": ("Gemma3ForCausalLM", GEMMA3),
    "umt5": ("UMT5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "pegasus": ("PegasusForConditionalGeneration", BART | {"scale_embedding": True, "activation_function": "relu"}),
    "marian": (
        "MarianMTModel",
        BART
        | {"scale_embedding": True, "activation_function": "swish", "pad_token_id": 47, "decoder_start_token_id": 47},
    ),
    "mbart": ("MBartForConditionalGeneration", BART | {"scale_embedding": True}),
    "m2m_100": ("M2M100ForConditionalGeneration", BART),
    "bart": ("BartForConditionalGeneration", BART | {"scale_embedding": True}),
    "bart_classifier": ("BartForSequenceClassification", BART | {"num_labels": 3}),
    "bart_regression": ("BartForSequenceClassification", BART | {"num_labels": 1}),
    "t5_classifier": ("T5ForSequenceClassification", T5 | {"num_labels": 3, "decoder_start_token_id": 0}),
    "mt5_classifier": ("MT5ForSequenceClassification", T5 | {"feed_forward_proj": "gated-gelu", "num_labels": 3}),
    "umt5_classifier": ("UMT5ForSequenceClassification", T5 | {"feed_forward_proj": "gated-gelu", "num_labels": 3}),
    "t5_encoder": ("T5EncoderModel", T5),
    "mt5_encoder": ("MT5EncoderModel", T5 | {"feed_forward_proj": "gated-gelu"}),
    "umt5_encoder": ("UMT5EncoderModel", T5 | {"feed_forward_proj": "gated-gelu"}),
    "t5gemma": ("T5GemmaForConditionalGeneration", {"encoder": T5GEMMA, "decoder": GEMMA}),
    "t5gemma_untied": (
        "T5GemmaForConditionalGeneration",
        {"encoder": GEMMA, "decoder": T5GEMMA, "tie_word_embeddings": False},
    ),
    "t5gemma2": ("T5Gemma2ForConditionalGeneration", t5gemma2(T5GEMMA2, GEMMA3_SHORT | {"sliding_window": 4})),
    "t5gemma2_odd": ("T5Gemma2ForConditionalGeneration", t5gemma2(GEMMA3_SHORT, GEMMA3)),
}
WITH_GRADIENTS = (
    "t5",
    "bart_classifier",
    "bert_pretraining",
    "gpt2",
    "electra_discriminator",
    "deberta_mlm",
    "t5gemma",
    "t5gemma2",
)


def reference(name: str):
    """Returns the random model, in evaluation mode, with noise on all parameters, so that none is 0 or 1."""
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**settings)).eval()
    model.set_attn_implementation("eager")  # only eager attention returns maps
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # Pegasus' sinusoids do not
                parameter.add_(0.1 * torch.randn_like(parameter))
        for key, buffer in model.named_buffers():
            if key == "final_logits_bias":
                buffer.add_(torch.randn_like(buffer))
    return model


def random_batch(config) -> dict[str, np.ndarray]:
    slots = np.tile(np.arange(7, dtype=np.int32), (2, 1))
    rng = np.random.default_rng(0)
    batch = {"mlm_positions": slots, "pooled_positions": np.zeros((2, 1), np.int32)}
    batch["token_type_ids"] = np.where(config.type_vocab_size > 1, slots > 2, 0).astype(np.int32)
    for side, lengths in (("encoder", LENGTHS), ("decoder", LENGTHS[::-1])):
        segments = (slots < lengths[:, None]).astype(np.int32)
        # 0 or 1 is the padding id of some families; transformers derives RoBERTa's positions from it
        batch |= {
            f"{side}_input_tokens": np.where(segments, rng.integers(3, 48, (2, 7)), 1).astype(np.int32),
            f"{side}_segment_ids": segments,
            f"{side}_positions": slots,
        }
    if config.body == "encoder_decoder":  # transformers reads the state at the last end-of-text id: T5's or BART's
        batch["decoder_segment_ids"] = batch["encoder_segment_ids"]
        batch["encoder_input_tokens"] *= batch["encoder_segment_ids"]
        batch["encoder_input_tokens"][np.arange(2), LENGTHS - 1] = 1 if config.positions.startswith("relative") else 2
    return batch


def outputs_of(model, config, batch) -> dict[str, "torch.Tensor"]:
    """Returns, by our names, each head's output, and "hidden encoder" [N + 1, …], "attention cross" [N, …], …."""
    torched = {name: torch.from_numpy(array.astype(np.int64)) for name, array in batch.items()}
    side = "decoder" if config.architecture == "decoder_only" else "encoder"
    inputs = {"input_ids": torched[f"{side}_input_tokens"], "attention_mask": torched[f"{side}_segment_ids"]}
    if config.architecture == "text_to_text":
        inputs["decoder_input_ids"] = torched["decoder_input_tokens"]
    if config.type_vocab_size > 1:
        inputs["token_type_ids"] = torched["token_type_ids"]
    if config.heads == ("multiple_choice",):  # both rows are choices of one question
        inputs = {name: array[None] for name, array in inputs.items()}
    out = model(**inputs, output_hidden_states=True, output_attentions=True)
    names = {
        "logits": config.heads[0] if config.heads else "lm", "prediction_logits": "mlm",
        "seq_relationship_logits": "nsp", "sop_logits": "nsp", "pooler_output": "pooled",
    }  # fmt: skip
    if not config.heads and config.architecture == "encoder_only":
        names["last_hidden_state"] = "hidden"
    found = {ours: out[theirs] for theirs, ours in names.items() if theirs in out}
    if "start_logits" in out:
        found["span"] = torch.stack([out["start_logits"], out["end_logits"]], dim=-1)
    for stack in ("encoder", "decoder", "cross"):
        prefix = f"{stack}_" if stack != side or (config.num_encoder_layers and config.num_decoder_layers) else ""
        if out.get(f"{prefix}attentions"):
            found[f"attention {stack}"] = torch.stack(out[f"{prefix}attentions"])
        if out.get(f"{prefix}hidden_states"):
            found[f"hidden {stack}"] = torch.stack(out[f"{prefix}hidden_states"])
    return found


def comparable(name: str, array, batch):
    """Returns the entries of an output, ours or theirs, that belong to tokens, flattened."""
    encoder, decoder = (batch[f"{side}_segment_ids"] > 0 for side in ("encoder", "decoder"))
    if name == "lm":
        return array[decoder]
    if name in ("mlm", "token_classification", "span", "rtd", "hidden"):
        return array[encoder]
    what, _, stack = name.partition(" ")
    if what == "hidden":
        return array[:, encoder if stack == "encoder" else decoder]
    if what == "attention":
        return array.swapaxes(2, 3)[:, encoder if stack == "encoder" else decoder]
    return array.reshape(2, -1)  # one row per example


@pytest.mark.parametrize("name", MODELS)
def test_outputs_gradients_and_the_way_back(name, tmp_path):
    model = reference(name)
    model.save_pretrained(tmp_path / "theirs")
    found = parameters.open_directory(tmp_path / "theirs")
    config = dataclasses.replace(found.config, dropout_rate=0.0, attention_dropout_rate=0.0)
    params, report = parameters.load(found, config, parameters.layout_for(config))
    computed = found.family.computed
    assert all(row.status in ("loaded", "transposed") or row.tensor in computed for row in report.rows), report
    batch = random_batch(config)

    def run(params):
        outputs, (hidden, attention) = intermediates.apply(build(config), params, batch)
        named = {f"hidden {k}": x for k, x in hidden.items()} | {f"attention {k}": x for k, x in attention.items()}
        return sum(weighted(head, x, jnp) for head, x in outputs.items()), outputs | named

    def weighted(name, array, np):
        """Returns a sum in which every number has a different weight."""
        flat = comparable(name, array, batch).reshape(-1)
        return (flat * np.cos(np.arange(len(flat)))).sum()

    differentiated = jax.value_and_grad(run, has_aux=True) if name in WITH_GRADIENTS else lambda p: (run(p), None)
    (_, got), gradients = jax.jit(differentiated)(params)
    theirs = outputs_of(model, config, batch)
    assert set(got) == set(theirs)
    expected = {name: array.detach().numpy() for name, array in theirs.items()}
    for output, values in expected.items():
        ours, values = (comparable(output, np.asarray(x), batch) for x in (got[output], values))
        assert np.std(values) > 1e-3
        np.testing.assert_allclose(ours, values, rtol=1e-5, atol=1e-5, err_msg=output)
    if name in WITH_GRADIENTS:
        sum(weighted(head, theirs[head], torch) for head in theirs if " " not in head).backward()
        check_gradients(gradients, model, config, tmp_path)
        model = reference(name)

    interchange.export_directory(config, params, tmp_path / "ours", family=found.family.model_type)
    theirs, ours = Weights(tmp_path / "theirs"), Weights(tmp_path / "ours")
    assert ours.shapes == theirs.shapes | {name: ours.shapes[name] for name in computed}
    of_images = {row.tensor for row in report.rows if "image" in row.reason}  # T5Gemma 2
    for tensor in theirs.shapes.keys() - of_images:
        np.testing.assert_array_equal(ours.read(tensor), theirs.read(tensor), err_msg=tensor)
    assert not any(ours.read(tensor).any() for tensor in of_images)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [MODELS[name][0]]
    again = type(model).from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert again.state_dict().keys() == model.state_dict().keys()
    for tensor, values in model.state_dict().items():
        if of_images and ("eoi_embedding" in tensor or "vision_tower" in tensor or "multi_modal" in tensor):
            continue
        np.testing.assert_array_equal(again.state_dict()[tensor], values, err_msg=tensor)
    expected = outputs_of(model.double(), config, batch)
    for output, values in outputs_of(again.double(), config, batch).items():
        # Not bit for bit: torch's sums over a vector depend on its memory address.
        np.testing.assert_allclose(values.detach(), expected[output].detach(), rtol=1e-12, atol=1e-12, err_msg=output)


def test_a_bare_t5gemma_has_the_same_hidden_states(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "t5gemma_bare", ("T5GemmaModel", MODELS["t5gemma"][1]))
    model = reference("t5gemma_bare")
    model.save_pretrained(tmp_path)
    found = parameters.open_directory(tmp_path)
    params, _ = parameters.load(found, found.config, parameters.layout_for(found.config))
    batch = random_batch(found.config)
    _, (hidden, _) = intermediates.apply(build(found.config), params, batch)
    expected = outputs_of(model, found.config, batch)
    for stack in ("encoder", "decoder"):
        name = f"hidden {stack}"
        ours, values = (comparable(name, np.asarray(x), batch) for x in (hidden[stack], expected[name].detach()))
        np.testing.assert_allclose(ours, values, rtol=1e-5, atol=1e-5, err_msg=name)


def test_of_a_bare_roberta_all_but_its_pooler_is_read(tmp_path, monkeypatch):
    """No other transformers class has that pooler, and our model lacks it too."""
    monkeypatch.setitem(MODELS, "roberta_bare", ("RobertaModel", MODELS["roberta_mlm"][1]))
    reference("roberta_bare").save_pretrained(tmp_path)
    found = parameters.open_directory(tmp_path)
    _, report = parameters.load(found, found.config, parameters.layout_for(found.config))
    skipped = {row.tensor for row in report.rows if row.status not in ("loaded", "transposed")}
    assert skipped == {"pooler.dense.weight", "pooler.dense.bias"}


def test_a_classifier_starts_from_a_discriminator(tmp_path):
    reference("electra_discriminator").save_pretrained(tmp_path)
    found = parameters.open_directory(tmp_path)
    assert found.config.heads == ("rtd",)
    config = dataclasses.replace(found.config, heads=("classification",), num_classes=3)
    params, report = parameters.load(found, config, parameters.layout_for(config))
    assert params["classification"]["kernel"].shape == (16, 3) and "rtd" not in params
    fresh = {row.ours.split("/")[0] for row in report.rows if row.status == "fresh"}
    skipped = {row.tensor.split(".")[0] for row in report.rows if row.status == "skipped"}
    assert fresh == {"classification", "pooler"} and skipped == {"discriminator_predictions"}


def test_of_a_published_deberta_all_but_heads_that_transformers_cannot_read_is_read(tmp_path):
    """Files of DeBERTa-v3 hold both its heads, but its config.json says nothing of them."""
    reference("deberta_mlm").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "architectures"}))
    tensors = {n: x for n, x in load_file(tmp_path / "model.safetensors").items() if n.startswith("deberta.")}
    heads = {
        "lm_predictions.lm_head.dense.weight", "mask_predictions.classifier.bias",
        "deberta.embeddings.position_embeddings.weight",
    }  # fmt: skip
    save_file(tensors | {name: np.ones((2, 2), np.float32) for name in heads}, tmp_path / "model.safetensors")
    found = parameters.open_directory(tmp_path)
    _, report = parameters.load(found, found.config, parameters.layout_for(found.config))
    assert found.config.heads == ()
    assert {row.tensor for row in report.rows if row.status not in ("loaded", "transposed")} == heads


def check_gradients(gradients, model, config, tmp_path):
    """Their gradients, written and read as if they were parameters, equal ours."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros(()) if parameter.grad is None else parameter.grad)  # None: of images
    model.save_pretrained(tmp_path / "gradients")
    found = parameters.open_directory(tmp_path / "gradients")
    expected, _ = parameters.load(found, config, parameters.layout_for(config))
    jax.tree_util.tree_map_with_path(
        lambda path, a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=jax.tree_util.keystr(path)),
        gradients,
        expected,
    )
