"""The same parameters and prompts give the texts that transformers' `generate` writes, token for token."""

import numpy as np
import pytest
from test_models_parity import gpt2_pair, t5_pair, torched

from t5x_lite import decode
from t5x_lite.decode import Strategy
from t5x_lite.models import build

torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")

PROMPTS, LENGTH, NEW = 100, 9, 12


def prompts(side: str):
    """100 prompts of 1 to 9 tokens as our batch, padded on the right."""
    rng = np.random.default_rng(0)
    slots = np.arange(LENGTH, dtype=np.int32)
    lengths = rng.integers(1, LENGTH + 1, PROMPTS)
    return {
        f"{side}_input_tokens": rng.integers(8, 48, (PROMPTS, LENGTH)).astype(np.int32),
        f"{side}_segment_ids": (slots < lengths[:, None]).astype(np.int32),
        f"{side}_positions": np.tile(slots, (PROMPTS, 1)),
    }


def padded_left(tokens, mask):
    """A decoder's prompts as transformers wants them, with their positions' mask."""
    lengths = mask.sum(axis=1)
    rolled = [np.roll(t, LENGTH - n) for t, n in zip(tokens, lengths, strict=True)]
    return np.stack(rolled), np.arange(LENGTH) >= LENGTH - lengths[:, None]


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_greedy_and_beams_write_what_transformers_writes(family):
    if family == "gpt2":
        config, params, model = gpt2_pair(max_positions=32)
        batch = prompts("decoder")
        tokens, mask = padded_left(batch["decoder_input_tokens"], batch["decoder_segment_ids"])
    else:
        config, params, model = t5_pair("1.0" if family == "t5" else "1.1")
        batch = prompts("encoder")
        tokens, mask = batch["encoder_input_tokens"], batch["encoder_segment_ids"]
    module = build(config)
    free = decode.generate(module, params, batch, Strategy(max_tokens=NEW), eos_id=-1)["tokens"]
    rows_with = [(np.asarray(free) == token).any(axis=(1, 2)).mean() for token in range(48)]
    eos_id = int(np.argmin(np.abs(np.array(rows_with) - 0.5)))  # so that about half of the texts end
    ended = 0
    for beams, alpha, least in ((1, 0.0, 0), (4, 1.0, 3)):
        expected = model.generate(
            torched(tokens), attention_mask=torched(mask), max_new_tokens=NEW, min_new_tokens=least, num_beams=beams,
            do_sample=False, length_penalty=alpha, early_stopping="never", eos_token_id=eos_id, pad_token_id=0,
            decoder_start_token_id=0,
        ).numpy()[:, LENGTH if family == "gpt2" else 1 :]  # fmt: skip
        strategy = Strategy(max_tokens=NEW, min_tokens=least, beams=beams, length_penalty=alpha, length_offset=0)
        out = decode.generate(module, params, batch, strategy, eos_id=eos_id)
        lengths = np.asarray(out["lengths"])[:, 0]
        for row, text in enumerate(expected):
            stop = np.flatnonzero(text == eos_id)
            text = text[: stop[0]] if len(stop) else text
            assert np.asarray(out["tokens"])[row, 0, : lengths[row]].tolist() == text.tolist(), (beams, alpha, row)
        ended += int((lengths < NEW).sum())
    assert 20 < ended < 180, eos_id  # texts that end, and such that are cut
