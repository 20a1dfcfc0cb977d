"""`python -m adabatch_jax.plan`: shows what a configuration would do, without touching data.

It takes the same arguments as adabatch_jax.train.
"""

import dataclasses
import json
import sys
import textwrap
from collections.abc import Sequence
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from adabatch_jax import train
from adabatch_jax.config.command_line import command_arguments, flags_parser, parse_arguments
from adabatch_jax.config.declarations import flag
from adabatch_jax.config.settings import AUTO, TrainConfig
from adabatch_jax.reporting.planning.scaling_efficiency import Network
from adabatch_jax.schedules.dialect_writing import WRITTEN_DIALECTS, write_schedule
from adabatch_jax.system import command_lines
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.number_texts import table_lines
from adabatch_jax.system.quantities import parse_bandwidth, parse_counts, parse_latency

if TYPE_CHECKING:
    from adabatch_jax.schedules.plan import BatchPlan

PROG = "python -m adabatch_jax.plan"


@dataclasses.dataclass(frozen=True)
class Options(train.Options):
    """Those of train, so that a command of its can be planned, and those of this command alone."""

    num_examples: int | None = flag(None, "Examples per epoch; none: the dataset's.")
    devices: str | None = flag(
        None,
        "Number of devices to lay the batches out on, or several, such as 1,4,16: what each phase "
        "has for each of them to do, and with --measure how much of them it would use; none: 1, and "
        "where updates are timed all that this machine has.",
        read=parse_counts,
    )
    divisible_by: int = flag(1, "Refuse batch sizes that are no multiple of this number.")
    memory: bool = flag(
        True, "Whether to compile a few of the updates, which takes seconds, and show their memory."
    )
    measure: bool = flag(
        False,
        "Time the updates on this machine until repeated times agree, for half a minute at most "
        "beside their compilation, and predict how long the run takes and what the growth gains.",
    )
    suggest: bool = flag(
        False,
        "Time the updates on this machine until repeated times agree, for 20 s at most beside "
        "their compilation, and propose a schedule that ends where growth stops paying.",
    )
    max_batch: int | None = flag(
        None, "Largest batch that --suggest may propose; none: the dataset's size."
    )
    devices_per_host: int = flag(
        Network.devices_per_host,
        "For predictions about several --devices: devices of a host, connected by links. This and "
        "the defaults of the next four are assumptions, about servers of eight H100s.",
        at_least=1,
    )
    link_bandwidth: str = flag(
        "450GB/s", "What each device sends to others of its host.", read=parse_bandwidth
    )
    link_latency: str = flag(
        "3us", "What a message between them takes beside its bytes.", read=parse_latency
    )
    host_bandwidth: str = flag(
        "50GB/s", "What each device sends to other hosts, such as 400Gbit/s.", read=parse_bandwidth
    )
    host_latency: str = flag(
        "15us", "What a message between hosts takes beside its bytes.", read=parse_latency
    )
    write_for: str | None = flag(
        None,
        "Print the batch schedule for another system instead: megatron, megatron-ramp or levanter.",
        choices=WRITTEN_DIALECTS,
    )
    wide: bool = flag(
        False, "Print all columns of the table, also where the terminal has no room for them."
    )
    json: bool = flag(False, "Print JSON instead of a table.")

    def __post_init__(self):
        super().__post_init__()
        if self.max_batch is not None and not self.suggest:
            raise UsageError("--max-batch: bounds what --suggest proposes; give --suggest too.")
        if self.suggest and len(self.counts) > 1:
            raise UsageError(
                f"--suggest times updates on one number of --devices, got {self.devices}."
            )
        if self.network != Network() and not (self.measure and len(self.counts) > 1):
            raise UsageError(
                "--devices-per-host, --link-... and --host-...: they are for predictions from "
                "measured times; give --measure and several numbers of --devices too."
            )
        if self.suggest and self.measure:
            raise UsageError("--suggest and --measure: give one of them, each times the updates.")

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of devices that were asked for; none where none was."""
        return () if self.devices is None else parse_counts(self.devices)

    @property
    def network(self) -> Network:
        """What connects the devices."""
        return Network(
            self.devices_per_host,
            parse_bandwidth(self.link_bandwidth),
            parse_latency(self.link_latency),
            parse_bandwidth(self.host_bandwidth),
            parse_latency(self.host_latency),
        )


def parser() -> command_lines.Parser:
    """The command's flags."""
    return flags_parser(PROG, __doc__, Options(), TrainConfig())


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the plan; returns the exit code."""
    return command_lines.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    told: list[str] = []
    options, config = parse_arguments(Options, argv, PROG, __doc__, told.append, has_open_end=True)
    num_examples = options.num_examples
    if num_examples is None and not _is_endless(options, config):
        from adabatch_jax.runs.configured_data import num_training_examples

        num_examples = num_training_examples(config)
    plan = config.plan(num_examples, options.divisible_by)
    if options.write_for is not None:
        print(write_schedule(plan, options.write_for))
        return 0
    if num_examples is None:
        told.append("No dataset is given: an endless stream, and nothing is compiled.")
    if options.suggest:
        return _suggest(options, config, plan)
    if len(options.counts) > 1:
        return _show_devices(options, config, plan)
    return _show(options, config, plan, told)


def _is_endless(options: Options, config: TrainConfig) -> bool:
    """Whether what is planned is a schedule from elsewhere, without a dataset to train on."""
    is_from_elsewhere = bool(options.schedule_flags) and config.dataset == TrainConfig.dataset
    is_endless = is_from_elsewhere and config.length.unit != "ep"
    if is_endless and (options.suggest or options.measure):
        raise UsageError(
            f"--{'suggest' if options.suggest else 'measure'}: times updates on a dataset's examples; "
            "give --dataset, or --num-examples of the default one."
        )
    return is_endless


def _show(options: Options, config: TrainConfig, plan: "BatchPlan", told: Sequence[str]) -> int:
    """Prints the plan, with costs where they are wanted."""
    has_costs = (options.memory or options.measure) and plan.num_examples is not None
    if has_costs:
        _before_compiling(options)
    else:
        _check_network(config)
    from adabatch_jax.data.row_layout import Layouts
    from adabatch_jax.reporting.planning.plan_table import (
        narrowed,
        plan_as_json,
        plan_notes,
        plan_rows,
        plan_table,
    )

    num_devices, largest = _num_devices(options), max(plan.batch_sizes)
    if num_devices > largest:
        raise UsageError(
            f"--devices: {num_devices} are more than the largest batch has examples ({largest}), "
            f"so some would never work; give at most {largest}."
        )
    layouts, costs, notes = None, None, []
    if config.microbatch_size != AUTO:
        layouts = Layouts(config.microbatch_size, num_devices)
    rows = plan_rows(config, plan, layouts)  # finds mistakes before anything is compiled
    if has_costs:
        from adabatch_jax.reporting.planning.cost_notes import cost_notes
        from adabatch_jax.reporting.planning.plan_costs import plan_costs

        costs = plan_costs(config, plan, num_devices, has_seconds=options.measure)
        layouts, notes = costs.layouts, cost_notes(config, costs)
        rows = plan_rows(config, plan, layouts, costs)
    notes = [*told, *plan_notes(config, plan, layouts), *notes]
    if options.json:
        content = plan_as_json(config, plan, num_devices, rows, notes, costs)
        print(json.dumps(content, indent=2))
        return 0
    width = None if options.wide else get_terminal_size().columns
    table, left_out = narrowed(plan_table(rows), width)
    print(*table_lines(table), sep="\n")
    if left_out:
        notes.append(f"Not shown, for want of room: {', '.join(left_out)} (--wide shows all).")
    _print_sentences(notes)
    return 0


def _show_devices(options: Options, config: TrainConfig, plan: "BatchPlan") -> int:
    """Prints what each phase has for several numbers of devices to do."""
    _check_network(config)
    from adabatch_jax.reporting.planning.devices_table import (
        devices_notes,
        devices_table,
        layout_on,
        legal_devices,
        rows_by_devices,
    )
    from adabatch_jax.reporting.planning.plan_table import plan_as_json, plan_rows

    layouts = [layout_on(config, size, n) for size in plan.batch_sizes for n in options.counts]
    layouts = [layout for layout in layouts if layout.num_devices <= layout.microbatch_size]
    if not layouts:
        raise UsageError(
            f"--devices: {min(options.counts)} are more than the largest batch has examples "
            f"({max(plan.batch_sizes)}), so some would never work; give at most that."
        )
    measured = None
    if options.measure:
        _before_compiling(options)
        from adabatch_jax.reporting.planning.plan_costs import timed_rows

        measured = timed_rows(config, layouts)
    rows = plan_rows(config, plan, layouts=None)
    for row in rows:
        on = rows_by_devices(config, row["batch_size"], options.counts, measured, options.network)
        row |= {"legal_devices": legal_devices(on), "by_devices": on}
    notes = devices_notes(config, plan, rows, measured, options.network)
    if options.json:
        content = {
            **plan_as_json(config, plan, options.counts, rows, notes, costs=None),
            "measured": measured and measured.to_dict(),
            "network": dataclasses.asdict(options.network),
        }
        print(json.dumps(content, indent=2))
        return 0
    print(*table_lines(devices_table(rows)), sep="\n")
    _print_sentences(notes)
    return 0


def _check_network(config: TrainConfig) -> None:
    """Refuses what can't fit together as far as that is known without making the network."""
    from adabatch_jax.config.own_functions import is_reference
    from adabatch_jax.data.datasets.known_datasets import KNOWN_DATASETS
    from adabatch_jax.models.registry import check_known

    known, size = KNOWN_DATASETS.get(config.dataset), config.data.image_size
    shape = (size, size, 3) if size is not None else known and known.image_shape
    if not is_reference(config.model):
        check_known(config.model, shape)


def _suggest(options: Options, config: TrainConfig, plan: "BatchPlan") -> int:
    """Prints a schedule that ends where growth stops paying, and why."""
    _before_compiling(options)
    from adabatch_jax.reporting.planning.plan_costs import timed_doublings
    from adabatch_jax.reporting.planning.schedule_suggestion import (
        growth_rule,
        suggest,
        timing_table,
    )

    rule = growth_rule(config.schedule, plan)
    num_devices = _num_devices(options)
    timings, left_out = timed_doublings(config, plan, rule, options.max_batch, num_devices)
    suggestion = suggest(rule, timings, left_out)
    schedule = command = None
    if suggestion.schedule is not None:
        schedule = str(suggestion.schedule)
        suggested = dataclasses.replace(config, batch_schedule=schedule)
        command = f"python -m adabatch_jax.train {command_arguments(suggested, options.config)}"
    if options.json:
        measured = [
            {
                "batch_size": size,
                "update_seconds": timing.seconds,
                "update_spread": timing.spread,
                "examples_per_second": size / timing.seconds,
            }
            for size, timing in timings.items()
        ]
        content = {
            "batch_schedule": schedule,
            "could_end_at": suggestion.ends,
            "command": command,
            "why": suggestion.why,
            "rows": measured,
        }
        print(json.dumps(content, indent=2))
        return 0
    print(*table_lines(timing_table(timings)), sep="\n")
    _print_sentences([suggestion.why])
    if schedule is not None:
        print(f"Suggested: {schedule}\n{command}")
    return 0


def _before_compiling(options: Options) -> None:
    from adabatch_jax.data.mesh import check_backend
    from adabatch_jax.training import compilation_cache
    from adabatch_jax.training.numerics import settle_for_commands

    settle_for_commands()
    compilation_cache.enable()
    check_backend(options.cpu_devices)


def _num_devices(options: Options) -> int:
    if options.devices is None and (options.measure or options.suggest):
        import jax

        return jax.local_device_count()
    return options.counts[0] if options.counts else 1


def _print_sentences(sentences: Sequence[str]) -> None:
    """Prints each on a line of its own, or on a terminal on lines that end between words."""
    for sentence in sentences:
        is_wrapped = sys.stdout.isatty()
        print(textwrap.fill(sentence, get_terminal_size().columns) if is_wrapped else sentence)


if __name__ == "__main__":
    sys.exit(main())
