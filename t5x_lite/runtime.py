"""Puts an experiment on devices: makes its mesh, module, optimizer, loss and step for train, eval, infer and plan."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import optax

from t5x_lite import batch as batches
from t5x_lite import own_code
from t5x_lite.batch import Batch
from t5x_lite.cluster import sharding
from t5x_lite.cluster.axes import AxisRules, axis_rules
from t5x_lite.cluster.sharding import Layout
from t5x_lite.config import Config
from t5x_lite.errors import ConfigError
from t5x_lite.heads import ENCODER_HEADS, HEADS
from t5x_lite.models import build
from t5x_lite.models.projection import logits_of
from t5x_lite.recipe_keys import HYPER_PARAMETERS, SHAPE_PARAMETERS
from t5x_lite.training import losses, optim, parameter_groups, step, trainable
from t5x_lite.training.parameter_groups import Groups
from t5x_lite.training.step import LossFn, TrainState
from t5x_lite.training.trainable import Trainable

AVERAGE = "average/"  # begins the names of metrics of averaged weights

if TYPE_CHECKING:
    from t5x_lite.experiment import Experiment  # resolving names is not a part of training
    from t5x_lite.training.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class Runtime:
    """The mesh and module of an experiment."""

    layout: Layout
    module: nn.Module
    example: Batch  # all padding, in the shapes of training; the parameters are initialised with it

    def abstract_params(self):
        """Returns the shape, dtype and sharding of each parameter, without values."""
        boxed = step.abstract_params(self.module, self.example)
        return jax.tree.map(
            lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place),
            nn.meta.unbox(boxed),
            sharding.shardings(boxed, self.layout),
        )


def start(experiment: "Experiment", devices: Sequence | None = None) -> Runtime:
    """Builds the mesh and the module.

    devices: the mesh's devices; None uses all.
    Raises ConfigError, before anything compiles, if the batch or the model cannot be split evenly over the mesh.
    """
    cfg, rules = experiment.cfg, axis_rules(**experiment.cfg.rules)
    sizes = sharding.parse_mesh(cfg.mesh, jax.device_count() if devices is None else len(devices))
    check = functools.partial(check_mesh, experiment, rules)
    try:
        check(sizes)
    except ConfigError as error:
        from t5x_lite.cluster.fitting_meshes import mesh_text, meshes_that_fit

        texts = " or ".join(f"mesh={mesh_text(mesh)}" for mesh in meshes_that_fit(sizes, check))
        raise ConfigError(
            f"{error}. {f'This fits: {texts}' if texts else 'No mesh of this many devices fits'}"
        ) from None
    layout = Layout(sharding.make_mesh(devices, rules.batch, **sizes), rules)
    dims = {"B": cfg.data.batch_rows, "S": cfg.data.length, "L": cfg.data.length, "P": 1, "E": 1}
    dims["Y"] = experiment.model.num_classes
    if experiment.model.architecture == "text_to_text":
        dims["L"] = cfg.data.targets_length
    example = batches.zeros(experiment.model.architecture, dims, experiment.model.heads)
    return Runtime(layout, build(experiment.model, layout), example)


def check_mesh(experiment: "Experiment", rules: AxisRules, sizes: Mapping[str, int]) -> None:
    """Raises ConfigError unless batches, rows and model can be split evenly over such a mesh. Needs no device.

    sizes: {mesh axis: its size}.
    """
    cfg, model = experiment.cfg, experiment.model
    sharding.check_batch(cfg.data.batch_rows, sizes, rules, cfg.train.microbatches)
    sharding.check_batch(cfg.eval.batch_rows, sizes, rules)
    lengths = {"data.length": cfg.data.length}
    if model.architecture == "text_to_text":
        lengths["data.targets_length"] = cfg.data.targets_length
    sharding.check_lengths(lengths, sizes, rules)
    sharding.check_model(model, sizes, rules)


@dataclasses.dataclass(frozen=True)
class Training:
    """The train state and training step of a run. Nothing is compiled yet, and no array exists.

    state: the shapes, dtypes and shardings of the train state.
    new_state: returns a freshly initialised state.
    state_from: returns the state that begins with the given parameters.
    step: (state, batch) -> (state, metrics); see training/step.py.
    trainable: path of a parameter -> whether it is trainable.
    schedule: number of updates made so far -> learning rate.
    average: train state -> moving average of its trainable parameters; None if the run has none.
    """

    state: TrainState
    new_state: Callable[[], TrainState]
    state_from: Callable[[Any], TrainState]
    step: Callable[[TrainState, Any], tuple[TrainState, Any]]
    trainable: Trainable
    schedule: "Schedule"
    average: Callable[[TrainState], Any] | None

    def weights(self, state: TrainState) -> dict[str, Any]:
        """Returns the parameters to evaluate: {"": those of the step, "average/": their moving average, if any}.

        With a schedule-free optimizer, only {"": its average}.
        """
        if self.average is None:
            return {"": state.params}
        average = trainable.merge(self.average(state), trainable.split(state.params, self.trainable)[1])
        return {"": average} if state.average is None else {"": state.params, AVERAGE: average}

    def parameter_counts(self) -> tuple[int, int]:
        """Returns (number of all parameters, number of trainable ones)."""
        params = self.state.params
        trained = trainable.split(params, self.trainable)[0]
        return tuple(sum(p.size for p in jax.tree.leaves(tree)) for tree in (params, trained))  # type: ignore[return-value]


def make_training(experiment: "Experiment", on_devices: Runtime, loss_fn: LossFn | None = None) -> Training:
    """Returns the train state and step of an experiment. loss_fn: replaces the config's loss.

    Raises ConfigError if the user's own module, optimizer, schedule or loss returns wrong shapes (check_own_code.py).
    """
    cfg, module, layout = experiment.cfg, on_devices.module, on_devices.layout
    params = step.abstract_params(module, on_devices.example)
    groups = Groups(
        parameter_groups.parse(cfg.optimizer.groups),
        cfg.optimizer.weight_decay,
        cfg.optimizer.layer_decay,
        parameter_groups.depths_of(nn.meta.unbox(params)),
    )
    parameter_groups.check(groups.groups, nn.meta.unbox(params))
    is_trained = trainable.select(cfg.optimizer.trained, params, experiment.model.has_added, groups.groups)
    optimizer, schedule = _optimizer(cfg, trainable.split(sharding.param_axes(params), is_trained)[0], groups)
    averaging = None
    if cfg.average.decay:
        from t5x_lite.training.averages import Averaging

        averaging = Averaging(cfg.average.decay, cfg.average.every_steps)
    parts = is_trained, averaging is not None
    state = step.abstract_state(module, optimizer, layout, on_devices.example, *parts)
    new_state = functools.partial(step.init_state, module, optimizer, layout, on_devices.example, cfg.seed, *parts)
    state_from = functools.partial(step.state_from, optimizer, state, trainable=is_trained)
    train_step = step.make_train_step(
        module,
        optimizer,
        schedule,
        layout,
        state,
        loss_fn=loss_fn or make_loss(experiment, layout.batch_shards),
        outputs_fn=_outputs_fn(experiment),
        microbatches=cfg.train.microbatches,
        seed=cfg.seed,
        trainable=is_trained,
        spike_sigmas=cfg.train.spike_sigmas,
        averaging=averaging,
        weigh=_weighing(experiment),
        layer_norms=cfg.train.log_layer_norms,
    )
    from t5x_lite import check_own_code

    check_own_code.check(experiment, on_devices.module, optimizer, schedule, state, on_devices.example, is_trained)
    return Training(state, new_state, state_from, train_step, is_trained, schedule, _average(cfg, state, is_trained))


def _average(cfg: Config, state: TrainState, is_trained: Trainable) -> Callable[[TrainState], Any] | None:
    """Returns the function from a train state to the average of its trainable parameters; None if it has none."""
    if cfg.average.decay:
        return lambda state: state.average
    if cfg.optimizer.name != "schedule_free":
        return None
    from t5x_lite.training import averages

    def of_schedule_free(state: TrainState) -> Any:
        return averages.of_schedule_free(trainable.split(state.params, is_trained)[0], state.opt_state)

    places = jax.tree.map(lambda leaf: leaf.sharding, trainable.split(state.params, is_trained)[0])
    return jax.jit(of_schedule_free, out_shardings=places)


def _optimizer(cfg: Config, param_axes: Any, groups: Groups) -> tuple[optax.GradientTransformation, "Schedule"]:
    """Returns the optimizer and its schedule. param_axes: the logical axes of each trainable parameter."""
    from t5x_lite.training import schedules

    schedule = schedules.make_schedule(
        cfg.schedule.name,
        cfg.optimizer.learning_rate,
        cfg.schedule.warmup_steps,
        cfg.train.total_steps,
        cfg.schedule.final_fraction,
        **{name: cfg.schedule[name] for name in SHAPE_PARAMETERS},
    )
    optimizer = optim.make_optimizer(
        cfg.optimizer.name,
        schedule,
        param_axes,
        groups=groups,
        clip_norm=cfg.optimizer.clip_norm,
        **{name: cfg.optimizer[name] for name in HYPER_PARAMETERS},
    )
    if cfg.optimizer.unfreeze_every_steps or any(group.start for group in groups.groups):
        from t5x_lite.training import unfreezing

        optimizer = unfreezing.gradually(optimizer, cfg.optimizer.unfreeze_every_steps, groups.groups)
    if cfg.train.spike_sigmas:
        from t5x_lite.training import spikes

        optimizer = spikes.remembering(optimizer)
    return optimizer, schedule


def _weighing(experiment: "Experiment") -> Callable[[Any], Any] | None:
    """Returns the function that weighs a batch's targets as the config says; None if it says nothing."""
    loss, model = experiment.cfg.loss, experiment.model
    predicts_classes = any(HEADS[head].has_classes and HEADS[head].loss == "cross_entropy" for head in model.heads)
    if (loss.class_weights or loss.focal_gamma) and not predicts_classes:
        key = "loss.class_weights" if loss.class_weights else "loss.focal_gamma"
        raise ConfigError(f"{key} needs an encoder that predicts one class per example or word; unset it")
    if not (loss.task_weights or loss.class_weights):
        return None
    from t5x_lite.training import example_weights

    names = sorted({task.name for task in experiment.tasks})
    if loss.task_weights and len(names) == 1:
        raise ConfigError(f"loss.task_weights needs several tasks; the run trains only {names[0]!r}")
    return example_weights.weighing(
        example_weights.parse("loss.task_weights", loss.task_weights, names),
        example_weights.parse("loss.class_weights", loss.class_weights, experiment.classes),
    )


def make_loss(experiment: "Experiment", batch_shards: int) -> LossFn:
    """Returns the config's loss: cross entropy (also per task, if there are several), or the user's own function.

    batch_shards: number of parts into which the mesh splits the rows of a batch.
    """
    loss, tasks = experiment.cfg.loss, len(experiment.tasks)
    if experiment.cfg.train.microbatches > 1 and any(ENCODER_HEADS[head].compares for head in experiment.model.heads):
        parts = f"train.microbatches={experiment.cfg.train.microbatches} with the head contrastive"
        if callable(loss.name):
            raise ConfigError(f"{parts}: loss.name must be cross_entropy; your own loss would see one part at a time")
        if experiment.cfg.optimizer.name == "sophia":
            raise ConfigError(f"{parts}: sophia would differentiate the loss of each part alone; use 1 microbatch")
    if callable(loss.name):
        own = functools.partial(own_code.called, f"loss.name={own_code.name_of(loss.name)}", loss.name)
        return lambda outputs, batch: own(logits_of(outputs), batch)
    comparing, distill = {}, experiment.cfg.distill
    if loss.embedding_sizes or loss.symmetric:
        from t5x_lite.training import contrastive

        comparing = contrastive.options(loss, experiment.model)
    chunk_tokens = -(-loss.chunk_logits // experiment.model.vocab_size) * batch_shards
    own = functools.partial(
        losses.loss_sums,
        z_loss=loss.z_loss,
        label_smoothing=loss.label_smoothing,
        tasks=tasks if tasks > 1 else 0,
        chunk_tokens=chunk_tokens,
        focal_gamma=loss.focal_gamma,
        **comparing,
        rtd_weight=loss.rtd_weight,
    )
    if not distill.teacher:
        return own
    from t5x_lite.training import distillation

    return functools.partial(distillation.loss_sums, own, distillation.weights(distill))


def _outputs_fn(experiment: "Experiment") -> Callable[..., dict[str, Any]] | None:
    """Returns the function that gives the loss the outputs it needs; None: the module's own outputs."""
    if not experiment.cfg.distill.teacher:
        return None
    from t5x_lite.training import distillation

    if experiment.model.module is not None or callable(experiment.cfg.loss.name):
        raise ConfigError("distill.teacher needs a model and a loss of this project; unset model.module and loss.name")
    return distillation.outputs if distillation.weights(experiment.cfg.distill).needs_hidden else None
