"""An experiment on the devices: its mesh and its module. Shared by train, eval and infer."""

import dataclasses

import flax.linen as nn
import jax

from t5x_lite import batch as batches
from t5x_lite import sharding, step
from t5x_lite.batch import Batch
from t5x_lite.experiment import Experiment
from t5x_lite.models import build
from t5x_lite.sharding import Layout


@dataclasses.dataclass(frozen=True)
class Runtime:
    layout: Layout
    module: nn.Module
    example: Batch  # all padding, in the shapes of training: what parameters are initialised with

    def abstract_params(self):
        """The parameters as shapes with their shardings."""
        boxed = step.abstract_params(self.module, self.example)
        return jax.tree.map(
            lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place),
            nn.meta.unbox(boxed),
            sharding.shardings(boxed, self.layout),
        )


def start(experiment: Experiment) -> Runtime:
    """Builds mesh and module; ConfigError where batch or model do not divide over the mesh, before compiling."""
    cfg = experiment.cfg
    sizes = sharding.parse_mesh(cfg.mesh, jax.device_count())
    sharding.check_batch(cfg.data.batch_rows, sizes, microbatches=cfg.train.microbatches)
    sharding.check_batch(cfg.eval.batch_rows, sizes)
    sharding.check_model(experiment.model, sizes)
    layout = Layout(sharding.make_mesh(sizes["data"], sizes["fsdp"], sizes["tensor"]))
    dims = {"B": cfg.data.batch_rows, "S": cfg.data.length, "L": cfg.data.length, "P": 1, "E": 1}
    if experiment.model.architecture == "text_to_text":
        dims["L"] = cfg.data.targets_length
    example = batches.zeros(experiment.model.architecture, dims, experiment.model.heads)
    return Runtime(layout, build(experiment.model, layout.constrain), example)
