"""Makes devices to compile for on a machine that does not have them, with the accelerator's own compiler.

A TPU's compiler knows every TPU. A GPU's compiler needs a description of the GPU: how many blocks of threads fit, and
when to split a product.
"""

import dataclasses
import re
from typing import Any

from t5x_lite.costs.accelerators import ACCELERATORS
from t5x_lite.errors import ConfigError, first_line

KIB, MIB = 2**10, 2**20


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Holds what XLA asks about a GPU, besides its memory and bandwidth (accelerators.py).

    cores: streaming multiprocessors.  alus: float32 units of a core.  clock_ghz: the highest clock.
    l2_bytes, core_bytes, block_bytes: the second-level cache, and the shared memory of a core and of a block.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    alus: int
    clock_ghz: float
    l2_bytes: int
    core_bytes: int
    block_bytes: int


# NVIDIA's data sheets, and the architecture papers of A100 and H100 (tables of full chips and products).
# Shared memory: CUDA C++ Programming Guide, table of technical specifications per compute capability.
_HOPPER = {"capability": (9, 0), "cores": 132, "alus": 128, "clock_ghz": 1.98, "l2_bytes": 50 * MIB}
_HOPPER |= {"core_bytes": 228 * KIB, "block_bytes": 227 * KIB}
GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 40 * MIB, 164 * KIB, 163 * KIB),
    "h100": Gpu("NVIDIA H100 80GB HBM3", **_HOPPER),
    "h200": Gpu("NVIDIA H200", **_HOPPER),
}
# The limits of all GPUs from compute capability 8.0 on (same table), and the versions of the libraries for which XLA
# may choose kernels.
COMMON = """gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  driver_version: "13.0.0"  runtime_version: "12.8.0"  compile_time_toolkit_version: "12.8.0"  dnn_version: "9.10.0"
"""
VERSIONS = """platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 8 patch: 0 }
"""


def devices(text: str) -> Any:
    """Returns devices to compile for: a TPU slice such as "v5e:4x8", 8 GPUs "h200:8", or 2 hosts of 8 GPUs "h200:2x8".

    This needs the accelerator's compiler, but no accelerator. Raises ConfigError if `text` names no such devices, or if
    the compiler is not installed.
    """
    from jax.experimental import topologies

    kind, _, shape = text.partition(":")
    try:
        if kind not in GPUS:
            return topologies.get_topology_desc(text, "tpu").devices
        if not re.fullmatch(r"(\d+x)?\d+", shape):
            raise ValueError(f"{shape!r} is not a number of GPUs")
        hosts, _, count = shape.rpartition("x")
        shape = f"1x{hosts or 1}x{count}"
        return topologies.get_topology_desc(platform="cuda", target_config=description(kind), topology=shape).devices
    except Exception as error:
        compiler = "a GPU's compiler: pip install 't5x-lite[gpu]'"
        if kind not in GPUS:
            compiler = "the TPU's compiler: pip install 't5x-lite[tpu]'"
        raise ConfigError(
            f"--topology={text}: {first_line(error)}; write for example h200:8, h100:2x8, a100:8, v5e:4x8, v4:2x2x4, "
            f"v5p:2x2x2 or v6e:4x4, and install {compiler}"
        ) from error


def description(kind: str) -> str:
    """Returns the description of a GPU that XLA's compiler reads: a GpuTargetConfigProto as text.

    kind: a key of GPUS.
    """
    gpu, accelerator = GPUS[kind], ACCELERATORS[kind]
    major, minor = gpu.capability
    features = "ACCELERATED_FEATURES" if major >= 9 else "NONE"  # XLA compiles for sm_90a, not only for sm_90
    return (
        f"{COMMON}"
        f"  core_count: {gpu.cores}  fpus_per_core: {gpu.alus}  clock_rate_ghz: {gpu.clock_ghz}\n"
        f"  shared_memory_per_core: {gpu.core_bytes}  shared_memory_per_block_optin: {gpu.block_bytes}\n"
        f"  l2_cache_size: {gpu.l2_bytes}  memory_bandwidth: {accelerator.memory_bytes_per_s:.0f}\n"
        f"  device_memory_size: {accelerator.memory_bytes:.0f}\n"
        f"  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {features} }}\n"
        f'  name: "{gpu.name}"\n}}\n{VERSIONS}device_description_str: "{gpu.name}"\n'
    )
