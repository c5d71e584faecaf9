"""Runs tests on 8 virtual CPU devices and keeps compiled programs between runs, as compiling takes most of the time."""

import importlib.metadata
import os
from pathlib import Path

# Set before anything imports jax, which reads these once.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    " --xla_cpu_parallel_codegen_split_count=1"
)
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later versions abort on this unknown flag
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # with those flags, compiles in a third of the time
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"  # an axis that broadcasts is written out
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Two workers on two cores: threads of torch and of numpy's BLAS that wait for each other take the other worker's time.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's notes on how it partitions tiny test models

import gc

import hypothesis
import jax
import numpy as np
import promised_shapes
import pytest

from t5x_lite.decoding import generate
from t5x_lite.tasks import builtin

builtin.register()  # once, before a test replaces the registry

collect_ignore = ["run_recording_batches.py"]  # a program; collecting doctests would run it

gc.set_threshold(100_000, 50, 100)  # tracing makes many objects; collecting less often takes 5–14% off the tests' time
hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine must not fail a law
hypothesis.settings.load_profile("untimed")


@pytest.fixture
def compiled():
    """Returns the names of the functions that jax compiles during a test, in order, such as "jit(_generate)"."""
    names: list[str] = []

    def listen(event: str, duration_s: float, **labels: str) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(labels["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def checked_texts(monkeypatch):
    """The dtypes and shapes of all texts that are generated in a test are those that `generate` promises."""
    plain = generate.generate

    def checked(module, params, batch, strategy, **options):
        out = plain(module, params, batch, strategy, **options)
        prompts = batch[generate.PROMPT[module.config.architecture][0]]
        promised_shapes.assert_shapes(promised_shapes.TEXTS, {"prompts": np.asarray(prompts)} | out)
        assert out["tokens"].shape[1] == strategy.texts
        return out

    monkeypatch.setattr(generate, "generate", checked)


@pytest.fixture(scope="module")
def full_compilation():
    """Compiles as users do, for tests against published numbers. Shares no program with the other tests."""
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()
