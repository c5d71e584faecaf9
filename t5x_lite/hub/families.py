"""Lists the Hugging Face model families. A `Family` maps their tensors and settings to our parameters and fields.

mapping.py uses each `Family` in both directions, for import and export. To add a family, define it in the module of
its architecture (such as encoder_families.py) and list it here. Our models must already have all parts that the new
family needs.
"""

from t5x_lite.hub.decoder_families import GPT2, GPT_J, GPT_NEO, LLAMA
from t5x_lite.hub.encoder_families import ALBERT, BERT, DISTILBERT, ROBERTA
from t5x_lite.hub.text_to_text_families import BART, MT5, T5

FAMILIES = {
    family.model_type: family
    for family in (T5, MT5, BERT, ROBERTA, DISTILBERT, ALBERT, GPT2, GPT_NEO, GPT_J, LLAMA, BART)
}
