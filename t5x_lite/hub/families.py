"""Hugging Face's model families as data: which key of theirs is which parameter and which setting of ours.

mapping.py reads each `Family` in both directions. A new family of known parts is one more entry in the module of its
architecture, and here.
"""

from t5x_lite.hub.decoder_families import GPT2, GPT_J, GPT_NEO, LLAMA
from t5x_lite.hub.encoder_families import ALBERT, BERT, DISTILBERT, ROBERTA
from t5x_lite.hub.text_to_text_families import BART, MT5, T5

FAMILIES = {
    family.model_type: family
    for family in (T5, MT5, BERT, ROBERTA, DISTILBERT, ALBERT, GPT2, GPT_NEO, GPT_J, LLAMA, BART)
}
