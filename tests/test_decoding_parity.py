"""The same parameters and prompts give the same texts as transformers' `generate`, token for token."""

import numpy as np
import pytest
from test_hub_parity import MODELS, reference

from t5x_lite.decoding import generate
from t5x_lite.decoding.strategy import Strategy
from t5x_lite.hub import parameters
from t5x_lite.models import build

torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")

PROMPTS, LENGTH, NEW = 100, 9, 12
# One for each kind of positions and cache, the first ones of them in all ways: what a search does with logits does not
# depend on the family that makes them, and each way is a program of its own.
ALL_WAYS, FIRST_WAYS = ("t5", "gpt2"), ("bart", "gemma3")
TEXT_TO_TEXT = ("t5", "umt5", "bart", "pegasus", "marian", "mbart", "m2m_100", "t5gemma", "t5gemma2")


def prompts(side: str):
    """Returns 100 prompts of 1 to 9 tokens as our batch, padded on the right."""
    rng = np.random.default_rng(0)
    slots = np.arange(LENGTH, dtype=np.int32)
    lengths = rng.integers(1, LENGTH + 1, PROMPTS)
    return {
        f"{side}_input_tokens": rng.integers(8, 48, (PROMPTS, LENGTH)).astype(np.int32),
        f"{side}_segment_ids": (slots < lengths[:, None]).astype(np.int32),
        f"{side}_positions": np.tile(slots, (PROMPTS, 1)),
    }


def padded_left(tokens, mask):
    """Returns a decoder's prompts padded on the left, as transformers expects, with their attention mask."""
    lengths = mask.sum(axis=1)
    rolled = [np.roll(t, LENGTH - n) for t, n in zip(tokens, lengths, strict=True)]
    return np.stack(rolled), np.arange(LENGTH) >= LENGTH - lengths[:, None]


@pytest.mark.parametrize(
    ("family", "most_ways"),
    [
        *((family, 99) for family in ALL_WAYS),
        *((family, 3) for family in FIRST_WAYS),
        *(
            pytest.param(family, 99, marks=pytest.mark.slow)
            for family in (*TEXT_TO_TEXT, "qwen3", "gemma3")
            if family not in ALL_WAYS
        ),
    ],
)
def test_greedy_and_beams_write_what_transformers_writes(family, most_ways, tmp_path, monkeypatch):
    # transformers' cache has as many layers as the encoder
    like_bart = {"max_position_embeddings": 32, "decoder_layers": 2, "forced_eos_token_id": None}
    changes = {name: {"num_decoder_layers": 2} if "t5" in name else like_bart for name in TEXT_TO_TEXT}
    changes["t5gemma"] = changes["t5gemma2"] = {}
    changes["gpt2"] = {"n_positions": 32}
    monkeypatch.setitem(MODELS, family, (MODELS[family][0], MODELS[family][1] | changes.get(family, {})))
    is_decoder = family not in TEXT_TO_TEXT
    model = reference(family)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias *= 0.1  # at full size it alone decides
    with torch.no_grad():  # otherwise each token predicts itself
        if family == "pegasus":  # otherwise only positions decide
            model.model.shared.weight.mul_(3)
        if family == "m2m_100":  # never written: transformers gives this token no position
            model.model.shared.weight[model.config.pad_token_id] = 0
        for name, parameter in model.named_parameters():
            of_a_layer = any(part.isdigit() for part in name.split("."))
            parameter.mul_((12 if family == "pegasus" else 3) if of_a_layer and parameter.ndim == 2 else 1)
    model.save_pretrained(tmp_path)
    found = parameters.open_directory(tmp_path)
    params, _ = parameters.load(found, found.config, parameters.layout_for(found.config))
    module = build(found.config)
    batch = prompts("decoder" if is_decoder else "encoder")
    tokens, mask, _ = batch.values()
    if is_decoder:
        tokens, mask = padded_left(tokens, mask)
    free = generate.generate(module, params, batch, Strategy(max_tokens=NEW), eos_id=-1)["tokens"]
    rows_with = [(np.asarray(free) == token).any(axis=(1, 2)).mean() for token in range(48)]
    eos_id = int(np.argmin(np.abs(np.array(rows_with) - 0.5)))  # so that about half of the texts end
    other = next(token for token in np.argsort(rows_with)[::-1].tolist() if rows_with[token] < 0.5 and token != eos_id)
    ended = 0
    beams = {"beams": 4, "length_penalty": 1.0, "length_offset": 0}
    ways = [
        {"beams": 1},
        {**beams, "min_tokens": 3},
        {**beams, "early_stopping": False, "length_penalty": 2.0},
        {**beams, "early_stopping": True},
        {"beams": 1, "last_token": eos_id},
        {"beams": 1, "other_ends": (other,), "min_tokens": 2},
        {**beams, "other_ends": (other, 30)},
    ]
    if not is_decoder:  # there transformers counts the padding before a prompt as text
        ways += [{**beams, "repetition_penalty": 1.7}, {"beams": 1, "no_repeat_ngram_size": 1}]
        ways += [{**beams, "no_repeat_ngram_size": 2, "first_token": 7, "last_token": eos_id}]
    names = {
        "min_tokens": "min_new_tokens", "beams": "num_beams", "first_token": "forced_bos_token_id",
        "last_token": "forced_eos_token_id", "length_offset": "", "other_ends": "",
    }  # fmt: skip
    texts = []
    ways = ways[:most_ways]
    for way in ways:
        ends = [eos_id, *way.get("other_ends", ())]
        options = {"early_stopping": "never"} | {names.get(name, name): value for name, value in way.items()}
        expected = model.generate(
            torch.from_numpy(tokens.astype(np.int64)), attention_mask=torch.from_numpy(mask.astype(np.int64)),
            max_new_tokens=NEW, do_sample=False, eos_token_id=ends, pad_token_id=0, decoder_start_token_id=0,
            **{name: value for name, value in options.items() if name},
        ).numpy()[:, LENGTH if is_decoder else 1 :]  # fmt: skip
        out = generate.generate(module, params, batch, Strategy(max_tokens=NEW, **way), eos_id=eos_id)
        lengths = np.asarray(out["lengths"])[:, 0]
        for row, text in enumerate(expected):
            stop = np.flatnonzero(np.isin(text, ends))
            text = text[: stop[0]] if len(stop) else text
            ours = np.asarray(out["tokens"])[row, 0, : lengths[row]]
            assert ours.tolist() == text.tolist(), (way, row)
        texts.append(np.asarray(out["tokens"])[:, 0].tolist())
        if len(texts) < 3:
            ended += int((lengths < NEW).sum())
    assert 20 < ended < 180, eos_id  # some texts end, some are cut
    assert len(set(map(str, texts))) == len(ways)  # each option changes some texts
