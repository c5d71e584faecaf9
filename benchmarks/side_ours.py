"""Our side of `train_step.py`: only the project's model, loss, optimizer and step.

train_step.py runs this file; worker.py lists the commands.
"""

import numpy as np
from shapes import Shape, batch
from worker import ACCELERATOR_PEAK_SIZE, PEAK_SIZE, arguments, serve


def model_config(shape: Shape, **changes):
    from t5x_lite.models import presets

    sizes = (shape.d_model, shape.num_heads, shape.num_layers)
    changes |= {"vocab_size": shape.vocab_size, "dropout_rate": 0.0, "attention_dropout_rate": 0.0}
    if shape.family == "t5":
        gelu = {"gated_mlp": True, "activation": "gelu_tanh"}
        return presets.t5(*sizes, shape.head_dim, shape.d_ff, **gelu, **changes)
    family = {"bert": presets.bert, "gpt2": presets.gpt2}[shape.family]
    heads = {"heads": ("mlm",)} if shape.family == "bert" else {}
    return family(*sizes, d_ff=shape.d_ff, head_dim=shape.head_dim, **heads, **changes)


def main() -> None:
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    from t5x_lite.cluster import sharding
    from t5x_lite.models import build
    from t5x_lite.training import optim, schedules
    from t5x_lite.training.parameter_groups import Groups
    from t5x_lite.training.step import abstract_params, abstract_state, init_state, make_train_step

    asked = arguments()
    shape, layout = asked.shape, sharding.Layout(sharding.make_mesh())
    config = model_config(shape, dtype=asked.dtype, attention=asked.attention or "auto")
    module, arrays = build(config, layout), batch(shape)
    schedule = schedules.make_schedule("constant", 1e-4)
    axes = sharding.param_axes(abstract_params(module, arrays))
    optimizer = optim.make_optimizer("adamw", schedule, axes, groups=Groups(weight_decay=0.01))
    train_step = make_train_step(module, optimizer, schedule, layout, abstract_state(module, optimizer, layout, arrays))
    state = init_state(module, optimizer, layout, arrays)

    def step() -> jax.Array:
        nonlocal state
        state, metrics = train_step(state, arrays)
        return metrics["loss"]

    def save(path: str) -> None:
        np.savez(path, **{name: np.asarray(value) for name, value in flatten_dict(state.params, sep="/").items()})

    size = PEAK_SIZE if jax.default_backend() == "cpu" else ACCELERATOR_PEAK_SIZE
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((size, size), np.float32), asked.dtype)
    multiply = jax.jit(jnp.matmul)

    def product() -> float:
        multiply(matrix, matrix).block_until_ready()
        return 0.0

    first_loss = float(step())
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    serve(first_loss, parameters, {"step": step, "product": product, "save": save}, size)


if __name__ == "__main__":
    main()
