"""What accelerators can compute at most, by the makers' data sheets."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Peak:
    """Dense peak rates, without sparsity, in FLOP/s.

    Attributes:
      bfloat16: of matrix units in bfloat16.
      float32: of the units that XLA computes float32 convolutions with by default: TF32 on
        NVIDIA's, one pass of bfloat16 on TPUs.
      source: where the figures are from.
    """

    bfloat16: float
    float32: float
    source: str


# By the beginning of JAX's `device_kind`; the longest that fits counts.
_PEAKS = {
    "NVIDIA H200": Peak(989.4e12, 494.7e12, "NVIDIA H200 data sheet"),
    "NVIDIA H100 80GB HBM3": Peak(989.4e12, 494.7e12, "NVIDIA H100 data sheet, SXM"),
    "NVIDIA H100 PCIe": Peak(756e12, 378e12, "NVIDIA H100 data sheet, PCIe"),
    "NVIDIA H100 NVL": Peak(835.5e12, 417.5e12, "NVIDIA H100 data sheet, NVL"),
    "NVIDIA A100": Peak(312e12, 156e12, "NVIDIA A100 data sheet"),
    "NVIDIA L4": Peak(121e12, 60e12, "NVIDIA L4 data sheet"),
    "TPU v4": Peak(275e12, 275e12, "Google Cloud, TPU v4"),
    "TPU v5 lite": Peak(197e12, 197e12, "Google Cloud, TPU v5e"),
    "TPU v5e": Peak(197e12, 197e12, "Google Cloud, TPU v5e"),
    "TPU v5p": Peak(459e12, 459e12, "Google Cloud, TPU v5p"),
    "TPU v5": Peak(459e12, 459e12, "Google Cloud, TPU v5p"),
    "TPU v6 lite": Peak(918e12, 918e12, "Google Cloud, TPU v6e"),
    "TPU v6e": Peak(918e12, 918e12, "Google Cloud, TPU v6e"),
}


def peak_of(device_kind: str) -> Peak | None:
    """Returns the peak rates of a device, or None for one that isn't in the table.

    >>> peak_of("NVIDIA H100 80GB HBM3").bfloat16, peak_of("cpu")
    (989400000000000.0, None)
    >>> peak_of("TPU v5 lite").source
    'Google Cloud, TPU v5e'
    """
    fitting = [kind for kind in _PEAKS if device_kind.startswith(kind)]
    return _PEAKS[max(fitting, key=len)] if fitting else None
