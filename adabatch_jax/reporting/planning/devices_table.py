"""A plan on several numbers of devices: what each phase has for them to do."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adabatch_jax.config.settings import AUTO, TrainConfig
from adabatch_jax.data.row_layout import BatchLayout, Layouts
from adabatch_jax.reporting.planning.scaling_efficiency import (
    Efficiency,
    Network,
    RowTimes,
    predicted_efficiency,
    range_text,
)
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.number_texts import count_text, percent_text, seconds_text
from adabatch_jax.system.quantities import bytes_text

if TYPE_CHECKING:
    from adabatch_jax.reporting.planning.repeated_timing import Timing

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What predictions are made of.

    Attributes:
      timings: of updates on one device, by rows.
      gradient_bytes: what devices tell each other in an update.
      device_kind: what was measured.
    """

    timings: Mapping[int, "Timing"]
    gradient_bytes: int
    device_kind: str

    @property
    def times(self) -> RowTimes:
        """The seconds alone."""
        return RowTimes({rows: timing.seconds for rows, timing in self.timings.items()})

    def to_dict(self) -> Row:
        """As JSON values."""
        timed = [
            {"rows": rows, "update_seconds": timing.seconds, "update_spread": timing.spread}
            for rows, timing in self.timings.items()
        ]
        about = {"device_kind": self.device_kind, "gradient_bytes": self.gradient_bytes}
        return {**about, "timings": timed}


def layout_on(config: TrainConfig, batch_size: int, num_devices: int) -> BatchLayout:
    """How a batch is laid out on so many devices.

    Where the micro-batch is left to the program, which chooses it by each device's rows, the whole
    batch: its rows are the same, and so is the padding but for that of a ragged last micro-batch.
    """
    size = None if config.microbatch_size == AUTO else config.microbatch_size
    return Layouts(size, num_devices).of(batch_size)


def rows_by_devices(
    config: TrainConfig, batch_size: int, counts: Sequence[int], measured: Measured | None,
    network: Network,
) -> list[Row]:  # fmt: skip
    """What a batch gives each number of devices to do, as JSON values.

    A number is legal if each of them has an example in each (micro-)batch; with more of them the
    others compute padding. Rows per device are those of an update, padding included. The
    efficiency is predicted, and None where nothing was measured, or nothing of so few rows.
    """
    rows = []
    for count in counts:
        layout = layout_on(config, batch_size, count)
        efficiency = measured and predicted_efficiency(
            layout, measured.times, measured.gradient_bytes, network
        )
        rows.append(
            {
                "num_devices": count,
                "is_legal": count <= layout.microbatch_size,
                "rows_per_device": layout.rows_per_device * layout.num_microbatches,
                "padding_share": layout.padding_share,
                "predicted_efficiency": efficiency and dataclasses.asdict(efficiency),
            }
        )
    return rows


def legal_devices(by_devices: Sequence[Row]) -> list[int]:
    """The numbers of devices that all have something to do."""
    return [row["num_devices"] for row in by_devices if row["is_legal"]]


def devices_table(rows: Sequence[Row]) -> list[list[str]]:
    """A line for each phase and legal number of devices, below a header; 80 columns hold it.

    `rows` are those of the plan's JSON, with "by_devices" from `rows_by_devices`. Phase and batch
    stand in the first line of each phase; a column without any value is left out.
    """
    header = ["phase", "batch", "devices", "rows", "padding"]
    header += ["predicted efficiency", "predicted update"]
    lines = []
    for row in rows:
        batch = [str(row["phase"] + 1), str(row["batch_size"])]
        for on in row["by_devices"]:
            if not on["is_legal"]:
                continue
            lines.append(
                [
                    *batch,
                    count_text(on["num_devices"]),
                    count_text(on["rows_per_device"]),
                    percent_text(on["padding_share"]),
                    *_prediction_texts(on["predicted_efficiency"]),
                ]
            )
            batch = [""] * 2
    table = [header, *lines]
    shown = [n for n in range(len(header)) if any(line[n] for line in lines)]
    return [[line[n] for n in shown] for line in table]


def _prediction_texts(efficiency: Row | None) -> list[str]:
    if efficiency is None:
        return ["", ""]
    predicted = Efficiency(**efficiency)
    none_hidden = 1e3 * (predicted.compute_seconds + predicted.all_reduce_seconds)
    all_hidden = 1e3 * max(predicted.compute_seconds, predicted.all_reduce_seconds)
    return [str(predicted), range_text(f"{all_hidden:.3g}", f"{none_hidden:.3g}", "ms")]


def devices_notes(
    config: TrainConfig, plan: BatchPlan, rows: Sequence[Row], measured: Measured | None,
    network: Network,
) -> list[str]:  # fmt: skip
    """Sentences below the table."""
    notes = [f"{plan.num_steps:,} updates for {plan.num_samples:,} samples, on any number."]
    if any(not on["is_legal"] for row in rows for on in row["by_devices"]):
        notes.append("Numbers of devices that are missing are more than a phase has work for.")
    if config.microbatch_size == AUTO:
        notes.append("Rows are an update's; --microbatch-size auto cuts them as each device likes.")
    if measured is None:
        notes.append("--measure times updates here, and predicts how much of the devices is used.")
        return notes
    timed = ", ".join(
        f"{rows}: {seconds_text(timing.seconds)}" for rows, timing in measured.timings.items()
    )
    return [
        *notes,
        "Rows are those of an update on each device. Predictions reach from nothing of the "
        "all-reduce hidden behind the computation to all of it; efficiency is a share of what the "
        "devices compute by themselves at their best.",
        f"Measured on one {measured.device_kind} device, seconds by rows: {timed}. Between them is "
        "interpolated; of fewer rows nothing is said.",
        f"All-reduce of {bytes_text(measured.gradient_bytes)}: {network_text(network)}.",
    ]


def network_text(network: Network) -> str:
    """What is assumed of a network, for people.

    >>> network_text(Network())
    '8 devices per host, links of 450 GB/s and 3 us, hosts of 50 GB/s for each device and 15 us'
    """
    link, host = (f"{w / 1e9:g} GB/s" for w in (network.link_bandwidth, network.host_bandwidth))
    near, far = (f"{1e6 * a:g} us" for a in (network.link_latency, network.host_latency))
    return (
        f"{network.devices_per_host} devices per host, links of {link} and {near}, hosts of {host} "
        f"for each device and {far}"
    )
