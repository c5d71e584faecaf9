"""Lists the Hugging Face model families. A `Family` maps their tensors and settings to our parameters and fields.

mapping.py uses each `Family` in both directions, for import and export. To add a family, define it in the module of
its architecture (such as encoder_families.py) and list it here. Our models must already have all parts that the new
family needs.
"""

from t5x_lite.hub.deberta_families import DEBERTA_V2
from t5x_lite.hub.decoder_families import GPT2, GPT_J, GPT_NEO
from t5x_lite.hub.encoder_families import ALBERT, BERT, CAMEMBERT, DISTILBERT, ELECTRA, ROBERTA, XLM_ROBERTA
from t5x_lite.hub.modernbert_families import MODERNBERT, MODERNBERT_DECODER
from t5x_lite.hub.rotary_families import GEMMA2, GEMMA3, LLAMA, MISTRAL, OLMO2, QWEN2, QWEN3, SMOLLM3
from t5x_lite.hub.t5gemma2_families import T5GEMMA2
from t5x_lite.hub.t5gemma_families import T5GEMMA
from t5x_lite.hub.text_reader_families import VARIANTS
from t5x_lite.hub.text_to_text_families import BART, MT5, T5, UMT5
from t5x_lite.hub.translation_families import M2M_100, MARIAN, MBART, PEGASUS

__all__ = ["FAMILIES", "VARIANTS"]  # VARIANTS: model_type -> families of further classes with this model_type
FAMILIES = {
    family.model_type: family
    for family in (
        *(T5, MT5, UMT5, BART, PEGASUS, MARIAN, MBART, M2M_100, T5GEMMA, T5GEMMA2),
        *(BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, DISTILBERT, ALBERT, ELECTRA, DEBERTA_V2, MODERNBERT),
        *(GPT2, GPT_NEO, GPT_J, MODERNBERT_DECODER),
        *(LLAMA, MISTRAL, QWEN2, QWEN3, OLMO2, SMOLLM3, GEMMA2, GEMMA3),
    )
}
