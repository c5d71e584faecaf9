"""Names the optimizers and schedules, and defines the config keys that only some of them have.

training/optimizers.py and training/schedules.py define the optimizers and schedules, with the defaults of these keys.
"""

from typing import Any

from t5x_lite.keys import AT_LEAST_ONE, FRACTION, LENGTH, NOT_NEGATIVE, POSITIVE, SHARE, WARN, Key

OPTIMIZERS = (
    *("adamw", "adafactor", "adam", "sgd", "lion", "muon", "soap"),
    *("ademamix", "schedule_free", "prodigy", "lamb", "sophia"),
)
SCHEDULES = (
    *("constant", "linear", "cosine", "rsqrt", "inverse_sqrt", "polynomial"),
    *("wsd", "step", "one_cycle", "restarts", "piecewise"),
)
DECAYING = ("linear", "cosine", "polynomial", "one_cycle", "restarts")  # from the warm-up to the end of the run


def _own(kind: type, meaning: str, allowed: Any = None) -> Key:
    """Returns the key of a parameter that only some optimizers or schedules have, each with its own default."""
    return Key(None, f"{meaning}; unset: its own default", WARN, allowed, kind)


HYPER_PARAMETERS: dict[str, Key] = {  # below optimizer.
    "b1": _own(float, "decay of the first moment", SHARE),
    "b2": _own(float, "decay of the second moment", SHARE),
    "b3": _own(float, "ademamix: decay of the slow momentum; prodigy: of the sums of its estimate", SHARE),
    "alpha": _own(float, "ademamix: weight of the slow momentum", NOT_NEGATIVE),
    "mix_warmup_steps": _own(int, "ademamix: updates over which alpha and b3 grow", NOT_NEGATIVE),
    "epsilon": _own(float, "added to the root of the second moment", POSITIVE),
    "momentum": _own(float, "sgd, muon: decay of the momentum", SHARE),
    "nesterov": _own(bool, "sgd, muon: whether the momentum looks ahead"),
    "momentum_dtype": _own(str, "dtype in which first moments are kept", ("float32", "bfloat16")),
    "decay_exponent": _own(float, "adafactor: the second moment's decay is 1 − updates^−decay_exponent", POSITIVE),
    "min_dim_size_to_factor": _own(
        int, "adafactor: parameters with fewer rows or columns are not factored", AT_LEAST_ONE
    ),
    "gamma": _own(float, "sophia: factor of the Hessian's diagonal", POSITIVE),
    "hessian_every_steps": _own(int, "sophia: updates from one estimate of the Hessian to the next", AT_LEAST_ONE),
    "precondition_every_steps": _own(int, "soap: updates from one change of bases to the next", AT_LEAST_ONE),
    "initial_distance": _own(float, "prodigy: first estimate of the distance to the solution", POSITIVE),
}

DISTILLATION: dict[str, Key] = {  # below distill.; training/distillation.py defines the losses
    "teacher": Key("", "workdir or imported directory of the model whose outputs are targets; '': none", WARN),
    "temperature": Key(2.0, "divides both models' logits", WARN, POSITIVE),
    "logits": Key(5.0, "factor of the divergence from the teacher's predictions", WARN, NOT_NEGATIVE),
    "cosine": Key(1.0, "factor of 1 − the cosine of both models' last hidden states", WARN, NOT_NEGATIVE),
    "hidden": Key(0.0, "factor of the squared difference of all layers' hidden states", WARN, NOT_NEGATIVE),
    "targets": Key(2.0, "factor of the losses of the data's own targets", WARN, NOT_NEGATIVE),
}

SHAPE_PARAMETERS: dict[str, Key] = {  # below schedule.
    "decay_steps": _own(object, "wsd: length of the decay, in updates, '20%' or '2 epochs'", LENGTH),
    "decay": _own(str, "wsd: how it decays", ("linear", "cosine", "sqrt")),
    "power": _own(float, "polynomial: exponent", POSITIVE),
    "drop_every_steps": _own(object, "step: from drop to drop, in updates, '30%' or '2 epochs'", LENGTH),
    "drop_factor": _own(float, "step: factor of each drop", FRACTION),
    "initial_fraction": _own(float, "one_cycle: share of the peak at the first update", FRACTION),
    "cycles": _own(int, "restarts: number of decays", AT_LEAST_ONE),
    "points": _own(tuple, "piecewise: its corners, UPDATES:FACTOR: 0:0,1000:1,90%:0.1"),
}
