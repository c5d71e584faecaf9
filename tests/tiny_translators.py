"""Tiny translators in transformers' format: random models with tiny tokenizers, one for each family."""

import json
from pathlib import Path
from typing import Any

from test_tokenizer_directories import in_languages, nllb, pegasus, sentencepiece_model

from t5x_lite.data import languages

M2M_CODES = [f"__{code}__" for code in languages.M2M_100["m2m100"]]


def ids_of(models: list[bytes], first: list[str], last: list[str]) -> str:
    """The contents of a vocab.json with the pieces of SentencePiece models."""
    import sentencepiece

    processors = [sentencepiece.SentencePieceProcessor(model_proto=model) for model in models]
    pieces = [
        p.id_to_piece(i) for p in processors for i in range(len(p)) if not p.is_control(i) and not p.is_unknown(i)
    ]
    return json.dumps({piece: i for i, piece in enumerate(dict.fromkeys([*first, *pieces, *last]))})


def m2m_100_files(directory: Path, **settings: Any) -> None:
    model = sentencepiece_model(vocab_size=60)
    (directory / "sentencepiece.bpe.model").write_bytes(model)
    (directory / "vocab.json").write_text(ids_of([model], ["<s>", "<pad>", "</s>", "<unk>"], []))
    named = {"tokenizer_class": "M2M100Tokenizer", "additional_special_tokens": M2M_CODES}
    write_json(directory / "tokenizer_config.json", named | settings)


def marian_files(directory: Path, **settings: Any) -> None:
    models = [sentencepiece_model(vocab_size=size) for size in (60, 45)]
    for name, model in zip(("source.spm", "target.spm"), models, strict=True):
        (directory / name).write_bytes(model)
    (directory / "vocab.json").write_text(ids_of(models, ["</s>", "<unk>"], [">>fra<<", ">>deu<<", "<pad>"]))
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "MarianTokenizer"} | settings)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def json_files(tokenizer: Any, name: str):
    def files(directory: Path, **settings: Any) -> None:
        tokenizer.save(str(directory / "tokenizer.json"))
        write_json(directory / "tokenizer_config.json", {"tokenizer_class": name} | settings)

    return files


def translator(family: str, directory: Path, **settings: Any) -> tuple[Any, Any]:
    """Writes a random model with its tokenizer, and returns both as transformers loads them.

    settings: further keys of tokenizer_config.json.
    """
    import torch
    import transformers

    codes = ["en_XX", "de_DE", "ro_RO"]
    kind, files, more = {
        "nllb": ("M2M100", json_files(nllb(), "NllbTokenizer"), {"decoder_start_token_id": 2}),
        "mbart": ("MBart", json_files(in_languages(codes), "MBartTokenizer"), {}),
        "mbart50": ("MBart", json_files(in_languages(codes), "MBart50Tokenizer"), {"decoder_start_token_id": 2}),
        "m2m_100": ("M2M100", m2m_100_files, {"decoder_start_token_id": 2}),
        "marian": ("Marian", marian_files, {}),
        "pegasus": ("Pegasus", json_files(pegasus(), "PegasusTokenizer"), {}),
    }[family]
    directory.mkdir(exist_ok=True)
    files(directory, **settings)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    if family in ("marian", "mbart"):
        start = tokenizer.convert_tokens_to_ids("<pad>" if family == "marian" else "ro_RO")
        more = {"decoder_start_token_id": start}
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64,
        forced_eos_token_id=None, **ids, **more,
    )  # fmt: skip
    name = {"M2M100": "M2M100ForConditionalGeneration", "Marian": "MarianMTModel"}
    torch.manual_seed(0)
    model = getattr(transformers, name.get(kind, f"{kind}ForConditionalGeneration"))(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.ndim == 2:  # sinusoids need no gradient
                parameter.normal_(0, 2.0 if "encoder_attn" in name else 0.4)  # the output depends on the input
        model.model.shared.weight[tokenizer.all_special_ids] *= 0.2  # so that texts are more than special tokens
        model.model.shared.weight[config.pad_token_id] = 0  # never written, as bad_words_ids of Marian's files says
    model.save_pretrained(directory)
    return model, tokenizer
