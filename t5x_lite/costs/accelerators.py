"""Peak rates and memory of accelerators, from their makers' data sheets.

All numbers are per chip, not per board or core.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """Holds the peak rates and the memory of one device. `plan` computes a roofline from them."""

    flops: float  # per second, dense bfloat16
    memory_bytes: float
    memory_bytes_per_s: float
    link_bytes_per_s: float  # to its neighbours, over all links together, in one direction
    kinds: tuple[str, ...]  # prefixes of `jax.Device.device_kind`
    float32_flops: float  # per second, in JAX's default precision: TF32 on a GPU, one bfloat16 pass on a TPU
    measured_flops: float = 0.0  # per second, bfloat16, of large products; 0: not measured

    def rate(self, dtype: str) -> float:
        """Returns the FLOPs per second that large products of `dtype` reach: measured, or the data sheet's.

        dtype: in JAX's spelling or in XLA's.
        """
        share = self.measured_flops / self.flops if self.measured_flops else 1.0
        return share * (self.float32_flops if dtype in ("float32", "f32", "float64", "f64") else self.flops)


GB, TB, T = 1e9, 1e12, 1e12
GIB = 2**30

# TPU: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e (links: inter-chip interconnect, bidirectional figures halved).
# GPU: NVIDIA's data sheets of A100 SXM, H100 SXM and H200 SXM (links: NVLink, half of the bidirectional total).
ACCELERATORS = {
    "v4": Accelerator(275 * T, 32 * GIB, 1.228 * TB, 150 * GB, ("TPU v4",), 275 * T),
    "v5e": Accelerator(197 * T, 16 * GIB, 0.819 * TB, 100 * GB, ("TPU v5 lite", "TPU v5e"), 197 * T),
    "v5p": Accelerator(459 * T, 95 * GIB, 2.765 * TB, 300 * GB, ("TPU v5p", "TPU v5"), 459 * T),
    "v6e": Accelerator(918 * T, 32 * GIB, 1.640 * TB, 200 * GB, ("TPU v6 lite", "TPU v6e"), 918 * T),
    "a100": Accelerator(312 * T, 80 * GB, 2.039 * TB, 300 * GB, ("NVIDIA A100",), 156 * T),
    "h100": Accelerator(989 * T, 80 * GB, 3.35 * TB, 450 * GB, ("NVIDIA H100",), 494 * T),
    "h200": Accelerator(989 * T, 141 * GB, 4.8 * TB, 450 * GB, ("NVIDIA H200",), 494 * T, 790 * T),
}


def of_kind(device_kind: str) -> Accelerator | None:
    """Returns the accelerator that JAX calls `device_kind`; None if the table does not have it.

    >>> of_kind("NVIDIA H200").memory_bytes_per_s
    4800000000000.0
    """
    matches = [a for a in ACCELERATORS.values() if any(device_kind.startswith(kind) for kind in a.kinds)]
    return max(matches, key=lambda a: max(len(k) for k in a.kinds if device_kind.startswith(k)), default=None)
