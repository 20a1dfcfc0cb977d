"""Which fault is shown to do what by which test; `python -m tests.faults.table` prints it."""

from typing import NamedTuple


class Fault(NamedTuple):
    """One kind of fault.

    Attributes:
      fault: what goes wrong.
      outcome: what happens then.
      tests: files and names of the tests that show it, below tests/.
    """

    fault: str
    outcome: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "SIGKILL at any point: compile, update, evaluation, a line of metrics, before, in and "
        "after a save, while old checkpoints are removed",
        "the same command goes on; all rows and weights are bit for bit those of a run that "
        "nothing happened to",
        ("faults/test_kills.py::test_killed_at_every_point",),
    ),
    Fault(
        "SIGKILL just before, at and just after a change of the batch size or an epoch's end, "
        "for each policy at the end of an epoch",
        "the same",
        ("faults/test_kills.py::test_killed_around_a_change_of_the_batch_size_and_an_epochs_end",),
    ),
    Fault(
        "SIGKILL at random times, again and again",
        "the same",
        ("faults/test_kills.py::test_killed_at_random_times", "faults/test_soak.py::test_a_soak"),
    ),
    Fault(
        "SIGKILL between the last save and the report",
        "the same command writes what is missing, exit code 0",
        (
            "faults/test_kills.py::test_killed_after_the_last_save",
            "faults/test_kills.py::test_killed_before_the_report",
        ),
    ),
    Fault(
        "SIGKILL while old checkpoints are removed, or while one is saved",
        "the newest and the best are there; what was left half done is removed later",
        (
            "faults/test_kills.py::test_killed_while_checkpoints_are_removed_the_best_stays",
            "faults/test_kills.py::test_what_a_killed_clean_up_or_save_leaves_is_removed",
        ),
    ),
    Fault(
        "SIGKILL in a first compile",
        "a rerun begins again, whatever the compiler's cache was left with",
        ("faults/test_kills.py::test_killed_in_a_first_compile_that_is_not_cached",),
    ),
    Fault(
        "SIGTERM, SIGUSR1 or Ctrl-C in an update, an evaluation, a wait for data, a save",
        "the update at hand is finished and saved, exit code 143 or 130, the command that goes "
        "on is printed",
        (
            "faults/test_signals.py::test_a_signal_at_every_point",
            "faults/test_signals.py::test_a_signal_in_a_wait",
            "faults/test_signals.py::test_signals_at_random_times",
            "faults/test_signals.py::test_the_command_that_is_printed_goes_on",
        ),
    ),
    Fault(
        "a signal in the imports or the first compile",
        "nothing to save yet: the same exit codes, a rerun begins again",
        (
            "faults/test_signals.py::test_in_the_first_compile_there_is_nothing_to_save",
            "faults/test_signals.py::test_a_signal_at_the_start_ends_with_a_code_of_its_own",
        ),
    ),
    Fault(
        "a second signal",
        "it ends at once; the newest checkpoint is intact",
        ("faults/test_signals.py::test_a_second_signal_stops_at_once",),
    ),
    Fault(
        "a time limit (`--max-time`)",
        "as with SIGTERM, before the limit, exit code 143",
        ("faults/test_signals.py::test_the_time_is_up",),
    ),
    Fault(
        "a full disk in the middle of a run or at the last save",
        "exit code 5 and a sentence; older checkpoints are intact; with room again it goes on "
        "exactly",
        (
            "faults/test_storage.py::test_full_in_the_middle",
            "faults/test_storage.py::test_full_at_the_last_save_alone",
            "faults/test_storage.py::test_a_disk_that_is_really_full",
        ),
    ),
    Fault(
        "a full disk with `--on-save-error warn`",
        "it trains on; exit code 0 only if the last checkpoint could be saved",
        (
            "faults/test_storage.py::test_full_for_a_while_with_warnings",
            "faults/test_storage.py::test_full_to_the_end_in_spite_of_warnings",
        ),
    ),
    Fault(
        "a disk that is too small for a checkpoint",
        "refused before the first update, exit code 5",
        ("faults/test_storage.py::test_a_disk_that_is_too_small",),
    ),
    Fault(
        "a folder that is or becomes read-only, or is taken away",
        "exit code 5 (2 before the start) and a sentence",
        (
            "faults/test_storage.py::test_a_folder_that_became_read_only",
            "faults/test_storage.py::test_a_folder_that_is_read_only_from_the_start",
            "faults/test_storage.py::test_a_folder_of_checkpoints_that_becomes_a_file",
        ),
    ),
    Fault(
        "a folder that is moved in mid-run, or whose disk goes away",
        "exit code 5 and a sentence, nothing is written in its place; put back it goes on exactly",
        (
            "runs/test_fit.py::test_a_folder_that_is_taken_away_is_not_filled_anew",
            "faults/test_storage.py::test_a_disk_that_goes_away",
        ),
    ),
    Fault(
        "a name with backslashes, brackets, line ends, bytes that are no text, with or without a "
        "Unicode locale; a link; a relative name and a later change of the current folder",
        "works, and a shell takes the line that says how to go on",
        (
            "faults/test_storage.py::test_any_name_of_a_folder_will_do",
            "faults/test_storage.py::test_a_link_to_the_folder_will_do",
            "runs/test_fit.py::test_the_current_folder_may_change_meanwhile",
        ),
    ),
    Fault(
        "a file of a checkpoint that can't be read now: no rights, input/output error, too few "
        "descriptors, no memory, a decoder's error",
        "exit code 5, or 4 where its files are right, with the system's reason; it is not called "
        "damaged, and nothing is set aside or removed",
        (
            "faults/test_storage.py::test_what_this_user_may_not_read_is_not_damaged",
            "faults/test_storage.py::test_too_few_descriptors_from_the_start",
            "faults/test_storage.py::test_too_few_descriptors_in_the_middle",
            "runs/checkpoints/test_verifying.py::test_what_can_not_be_read_is_not_damaged",
            "runs/checkpoints/test_checkpoint_files.py::"
            "test_a_sound_one_that_can_not_be_restored_is_not_damaged",
            "runs/checkpoints/test_deleting_old.py::"
            "test_what_can_not_be_read_stays_and_takes_no_others_place",
        ),
    ),
    Fault(
        "a folder, a pipe, a device or a link to itself where a run's file belongs",
        "replaced where it says nothing, else exit code 5 names it: move it away",
        ("faults/test_damage.py::test_what_is_no_file_hangs_nothing",),
    ),
    Fault(
        "`JAX_DISABLE_JIT`",
        "the command compiles all the same, and says so; `fit` refuses",
        (
            "commands/test_doctor.py::test_what_variables_say_of_the_command_is_no_problem",
            "runs/test_fit.py::test_nothing_is_trained_that_is_not_compiled",
        ),
    ),
    Fault(
        "the newest checkpoint changed in a bit, truncated, emptied, renamed, or files of it "
        "deleted or added",
        "one line says so, and the one before it is used: exactly the same result",
        (
            "faults/test_damage.py::test_a_damaged_newest_checkpoint_is_skipped_again_and_again",
            "faults/test_damage.py::test_two_damaged_ones_are_skipped",
        ),
    ),
    Fault(
        "stray folders, files, links and copies beside the checkpoints, or another run's",
        "left out; what has a checkpoint's name is set aside, with a line of warning",
        (
            "faults/test_damage.py::test_strays",
            "faults/test_damage.py::test_a_checkpoint_of_another_run",
        ),
    ),
    Fault(
        "all checkpoints damaged or gone",
        "exit code 4, nothing is changed, and no run begins anew in their place",
        ("faults/test_damage.py::test_all_are_bad",),
    ),
    Fault(
        "arrays of another type or shape than the network's",
        "exit code 4, nothing is cast",
        ("faults/test_damage.py::test_a_state_of_another_type_is_not_cast",),
    ),
    Fault(
        "metrics torn, or with rows beyond the checkpoint; a damaged CSV file",
        "cut to the checkpoint, written anew",
        ("faults/test_damage.py::test_rows_are_put_right",),
    ),
    Fault(
        "metrics before the newest checkpoint damaged or lost, also of a finished run",
        "exit code 4 names the file, nothing is changed; with `--allow-change rows` it goes on "
        "without them, to the same weights",
        (
            "faults/test_damage.py::test_rows_that_are_lost",
            "faults/test_damage.py::test_the_lost_rows_of_a_finished_run",
        ),
    ),
    Fault(
        "a file of a run's folder, finished or stopped, edited, cut, doubled, emptied, another run's "
        "or gone",
        "what follows from the checkpoint is written anew, of a finished run with a line for each; "
        "rows before it: as above; no figure is believed that the run didn't write",
        (
            "faults/test_files_of_a_run.py::test_files_that_were_changed_at_random",
            "commands/test_train.py::"
            "test_what_a_finished_run_left_is_written_anew_where_it_was_changed",
            "commands/test_train.py::test_a_changed_row_of_a_finished_run_is_refused",
        ),
    ),
    Fault(
        "`last_checkpoint.json` damaged, gone or another run's, among checkpoints that agree",
        "set aside with a line of warning, and written anew; rows and most of the checkpoints tell "
        "whose folder it is, and where they can't, exit code 4",
        (
            "faults/test_files_of_a_run.py::test_an_odd_file_about_the_newest_checkpoint",
            "runs/folder/test_run_folder.py::test_the_rows_tell_whose_folder_it_is",
            "runs/folder/test_run_folder.py::test_what_cannot_be_told_is_refused",
        ),
    ),
    Fault(
        "NaN in the loss or a gradient",
        "exit code 3 names the first bad update; the state is never saved; a rerun without it "
        "is exact",
        (
            "faults/test_divergence.py::test_the_first_bad_update_is_named_and_never_saved",
            "faults/test_divergence.py::test_in_every_way_to_compute",
        ),
    ),
    Fault(
        "NaN with `--on-nan skip:N` or `rollback`",
        "the run goes on, and killed it goes on in the same way, up to its limit",
        (
            "faults/test_divergence.py::test_killed_around_what_is_left_out",
            "faults/test_divergence.py::test_more_than_may_be_skipped",
            "faults/test_divergence.py::test_rolling_back_twice_to_one_checkpoint",
        ),
    ),
    Fault(
        "other devices after a restart: 1, 2 or 4, sharded or not",
        "the same examples in every update, losses close",
        ("faults/test_changes.py::test_another_number_of_devices",),
    ),
    Fault(
        "other cores after a restart on a CPU",
        "the threads that the run was begun with are kept: bit for bit the same",
        ("faults/test_changes.py::test_another_number_of_cores",),
    ),
    Fault(
        "JAX's variables that change types or random numbers (`JAX_ENABLE_X64=1`, "
        "`JAX_THREEFRY_PARTITIONABLE=0`)",
        "the command has its own settings, and says so; `fit` refuses to go on with others, exit "
        "code 4, nothing is changed",
        (
            "faults/test_changes.py::test_what_the_environment_says_of_numbers_is_not_the_commands",
            "runs/test_kept_numerics.py::test_what_changes_types_or_random_numbers_is_refused",
        ),
    ),
    Fault(
        "other XLA flags, threads, precision of products, instructions or versions after a restart",
        "one line says what, and that results may be rounded differently; it is among the run's "
        "decisions",
        ("faults/test_changes.py::test_another_rounding_is_told_in_one_line_and_recorded",),
    ),
    Fault(
        "compiled programs on disk changed in a bit, cut short, renamed, or torn by a kill",
        "never run: deleted and compiled anew",
        (
            "faults/test_damage.py::test_damaged_compiled_programs_are_compiled_again",
            "training/test_compilation_cache.py::test_no_changed_entry_is_used",
        ),
    ),
    Fault(
        "another model, dataset, seed, dtype or past of the schedule",
        "exit code 4 names the setting; nothing is changed",
        ("faults/test_changes.py::test_another_past_is_refused_by_name",),
    ),
    Fault(
        "other examples under the same name: in another order, relabelled, one pixel or label "
        "changed, of the training or of the test set",
        "exit code 4 names them, also of a finished run; nothing is changed; with `--allow-change "
        "dataset` it goes on with them",
        (
            "faults/test_data.py::test_other_examples_are_refused_by_name",
            "faults/test_data.py::test_a_changed_test_set_is_refused_too",
            "faults/test_data.py::test_a_finished_run_is_compared_too",
            "faults/test_data.py::test_with_leave_the_run_goes_on_with_others",
            "runs/test_same_data.py::test_others_are_refused_by_name",
        ),
    ),
    Fault(
        "the same examples in a moved folder, in touched files, in files that were written anew",
        "it goes on: the same result",
        (
            "faults/test_data.py::test_the_same_examples_elsewhere_are_the_same",
            "runs/test_same_data.py::test_streamed_and_in_memory_in_turns",
        ),
    ),
    Fault(
        "a bit of a dataset's file flipped, the file's time as before",
        "exit code 1 names the file before the first update; prepared anew the run goes on exactly",
        ("faults/test_data.py::test_a_damaged_file_is_named_before_it_is_trained_on",),
    ),
    Fault(
        "a dataset's file exchanged before a run begins",
        "a line of warning names it; `doctor` names it too, exit code 5",
        (
            "faults/test_data.py::test_a_file_that_was_exchanged_is_named_by_a_new_run",
            "data/datasets/test_file_digests.py::test_the_doctor_compares_contents",
        ),
    ),
    Fault(
        "an edited future of the schedule, a longer run",
        "allowed and told: the result of a run that was planned so from the start",
        (
            "faults/test_changes.py::test_an_edited_future_goes_on_and_is_told",
            "faults/test_changes.py::test_a_longer_run_after_kills_is_the_longer_run",
        ),
    ),
    Fault(
        "a second process on the same folder",
        "exit code 2 names host, process and start; a dead process has no lock, whatever is left "
        "of its file",
        (
            "faults/test_changes.py::test_two_processes_on_one_folder",
            "faults/test_changes.py::test_the_lock_of_a_process_that_is_gone",
        ),
    ),
    Fault(
        "a lock that can't be had: a machine's that is gone, a disk's that knows none",
        "exit code 2; `--take-over` goes on",
        (
            "runs/folder/test_lock.py::test_who_knows_better_takes_over",
            "runs/folder/test_lock.py::test_a_disk_without_locks_is_for_who_knows_better",
        ),
    ),
    Fault(
        "an update, a batch, an evaluation or a save that hangs (`--stall-timeout`)",
        "all stacks in a file, or on stderr where Python's lock is held, exit code 42; a rerun is exact",
        (
            "faults/test_watchdog.py::test_a_stall",
            "system/test_watchdog.py::test_what_hangs_with_the_lock_is_ended_too",
        ),
    ),
    Fault(
        "SIGKILL at 20 places of a program of your own around `fit`",
        "the same program goes on; rows and weights are bit for bit those of an undisturbed run",
        ("faults/test_surroundings.py::test_kills_of_a_users_own_program",),
    ),
    Fault(
        "SIGKILL or SIGTERM while a dataset is prepared, several preparations at once",
        "all of it is there or nothing, the same bytes each time; what was left is removed later",
        (
            "faults/test_surroundings.py::test_killed_while_a_dataset_is_prepared",
            "faults/test_surroundings.py::test_prepared_by_several_at_once",
        ),
    ),
    Fault(
        "memory that runs out",
        "a sentence where Python gets to say it, exit code 1, or 5 in a save; libraries may abort; "
        "a rerun is exact",
        (
            "faults/test_surroundings.py::test_memory_that_runs_out",
            "system/test_command_lines.py::test_what_the_machine_did_is_one_sentence",
        ),
    ),
    Fault(
        "a wall clock that is set back or forward",
        "lock, time limit and watchdog don't go by it; the run is exact",
        ("faults/test_surroundings.py::test_a_clock_that_is_set",),
    ),
    Fault(
        "a copy (cp, rsync) of a folder while it is trained in, and both go on",
        "both are exact; a copy that has no whole checkpoint is refused, exit code 4",
        ("faults/test_surroundings.py::test_a_copy_of_a_live_folder_and_both_go_on",),
    ),
    Fault(
        "a user without rights, no home, any umask",
        "exit code 2 or 5 names the file, nothing is changed; files have the modes that the umask "
        "leaves",
        (
            "faults/test_surroundings.py::test_a_user_without_rights",
            "faults/test_changes.py::test_the_users_umask",
        ),
    ),
    Fault(
        "labels that are no class, pixels that aren't finite, numbers beyond 32 bits, images of "
        "another type than uint8 that nobody normalizes",
        "exit code 3 names the update; the others are refused: nothing counts as something else",
        (
            "models/test_pure_functions.py::test_a_label_that_is_no_class_is_found",
            "models/test_pure_functions.py::test_a_pixel_that_is_not_finite_is_found",
            "models/test_pure_functions.py::test_a_number_that_jax_would_cut_is_refused",
            "models/test_pure_functions.py::test_only_uint8_is_scaled_without_being_asked",
        ),
    ),
    Fault(
        "a config.json with a field twice, deep nesting, huge numbers or other types; a seed below "
        "0 or beyond 32 bits",
        "exit code 2 names it; a seed is refused alike by every part of a run",
        (
            "config/test_train_config.py::test_a_hostile_file_is_refused",
            "config/test_train_config.py::test_whatever_a_field_is_it_is_taken_or_refused",
            "models/test_pure_functions.py::test_a_seed_that_is_none_is_refused_everywhere",
        ),
    ),
    Fault(
        "an error that nobody expected",
        "a traceback and exit code 1; a rerun is exact",
        ("faults/test_watchdog.py::test_an_error_nobody_expected",),
    ),
    Fault(
        "an output that is closed, 20 columns, no terminal, no preemption service",
        "training is not affected",
        (
            "faults/test_changes.py::test_an_output_that_is_closed",
            "faults/test_changes.py::test_twenty_columns_and_no_terminal",
            "faults/test_changes.py::test_without_the_preemption_service",
        ),
    ),
    Fault(
        "on gs:// a kill between any two writes to the store, at all of them in turn",
        "the newest checkpoint never gets older, and the run ends with the bits of one in a folder",
        (
            "runs/folder/test_mirrored_folder.py::test_killed_at_any_instant_it_goes_on_to_the_same_end",
        ),
    ),
    Fault(
        "on gs:// a second process, a dead one, one that was asleep",
        "told apart by the state of an object and by beats; exit code 2, taken over after 30 s, exit "
        "code 5",
        (
            "system/test_object_store.py::test_of_many_starts_at_once_one_has_the_folder",
            "system/test_object_store.py::test_a_killed_owner_is_followed_when_it_was_silent_for_long",
            "runs/folder/test_mirrored_folder.py::test_who_lost_the_folder_commits_nothing_more",
        ),
    ),
)


def markdown() -> str:
    """The table as `adabatch_jax/runs/README.md` shows it."""
    lines = ["| fault | what happens | shown by |", "|---|---|---|"]
    for fault, outcome, tests in FAULTS:
        shown = ", ".join(f"`{test.rpartition('::')[2]}`" for test in tests)
        lines.append(f"| {fault} | {outcome} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
