"""peft loads the adapters that we write, and computes the same outputs."""

import dataclasses

import numpy as np
import pytest
from tiny_models import FAMILIES as TINY
from tiny_models import OTHERS, forward, random_batch, random_params

from t5x_lite.heads import HEADS
from t5x_lite.hub import interchange, peft
from t5x_lite.hub.families import FAMILIES
from t5x_lite.models import paths

pytestmark = pytest.mark.usefixtures("full_compilation")
torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity needs the extra `parity`")
library = pytest.importorskip("peft", reason="parity needs the extra `parity`")

CASES = [
    ("bert", "classification", "AutoModelForSequenceClassification"),
    ("bert", "token_classification", "AutoModelForTokenClassification"),
    ("bert", "span", "AutoModelForQuestionAnswering"),
    ("bert", "mlm", "AutoModelForMaskedLM"),
    ("roberta", "classification", "AutoModelForSequenceClassification"),
    ("roberta", "mlm", "AutoModelForMaskedLM"),
    ("distilbert", "classification", "AutoModelForSequenceClassification"),
    ("t5", "lm", "AutoModelForSeq2SeqLM"),
    ("llama", "lm", "AutoModelForCausalLM"),
]


@pytest.mark.parametrize(("name", "head", "auto"), CASES)
def test_peft_loads_the_adapter_and_computes_the_same(tmp_path, name, head, auto):
    tiny = (TINY | OTHERS)[name]
    heads = {"heads": (head,)} if tiny.architecture == "encoder_only" else {}
    heads |= {"num_classes": 3} if HEADS[head].has_classes else {}
    plain = dataclasses.replace(tiny, **heads)
    base = random_params(plain)
    family = next(f for f in FAMILIES.values() if f.model_type == name)
    interchange.export_directory(plain, base, tmp_path / "base", family=name)
    config = dataclasses.replace(plain, lora_rank=4, lora_alpha=8.0)
    flat = paths.flatten(random_params(config, seed=1))
    kept = {path: leaf for path, leaf in paths.flatten(base).items() if not path.startswith(peft.TRAINED_WHOLE)}
    params = paths.unflatten(flat | kept)
    (tmp_path / "adapter").mkdir()
    peft.write(tmp_path / "adapter", config, params, family)

    batch = random_batch(config, segments=((5,), (8,)))
    batch["mlm_positions"] = np.tile(np.arange(9, dtype=np.int32), (2, 1))
    ours = np.asarray(forward(config, params, batch)[head])
    loaded = getattr(transformers, auto).from_pretrained(tmp_path / "base")
    loaded = library.PeftModel.from_pretrained(loaded, tmp_path / "adapter").eval()
    with torch.no_grad():
        out = loaded.base_model(**inputs(config, batch))  # peft's class for question answering drops token_type_ids
    theirs = torch.stack([out.start_logits, out.end_logits], -1) if head == "span" else out.logits
    is_real = batch[f"{'encoder' if heads else 'decoder'}_segment_ids"] > 0
    if head == "classification":
        np.testing.assert_allclose(ours[:, 0], theirs.numpy(), rtol=1e-5, atol=2e-5)
    else:
        np.testing.assert_allclose(ours[is_real], theirs.numpy()[is_real], rtol=1e-5, atol=2e-5)


def inputs(config, batch) -> dict:
    def tensor(name: str):
        return torch.from_numpy(np.asarray(batch[name], np.int64))

    side = "decoder" if config.architecture == "decoder_only" else "encoder"
    found = {"input_ids": tensor(f"{side}_input_tokens"), "attention_mask": tensor(f"{side}_segment_ids")}
    if config.architecture == "text_to_text":
        found["decoder_input_ids"] = tensor("decoder_input_tokens")
    if config.type_vocab_size > 1:
        found["token_type_ids"] = tensor("token_type_ids")
    return found
