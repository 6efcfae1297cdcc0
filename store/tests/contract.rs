//! Every promise of the store, on every engine.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

#[path = "../contract/mod.rs"]
mod contract;

macro_rules! promises {
    ($($module:ident: $($promise:ident),+ $(,)?;)+) => {
        mod memory {
            $(mod $module { $(
                #[tokio::test]
                async fn $promise() {
                    crate::contract::$module::$promise(crate::contract::Place::Memory.open().await).await;
                }
            )+ })+
        }
        mod sled {
            $(mod $module { $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    let place = crate::contract::Place::directory();
                    crate::contract::$module::$promise(place.open().await).await;
                }
            )+ })+
        }
    };
}

promises! {
    reads:
        keys_come_back_in_the_order_of_their_values,
        a_range_is_read_from_both_ends_with_a_limit,
        ranges_narrow_by_beginnings_of_keys,
        a_batch_of_keys_keeps_its_order,
        strings_that_begin_alike_are_a_range,
        a_row_that_does_not_decode_names_its_table_and_key;
    commits:
        all_of_a_commit_happens_or_nothing,
        the_last_write_to_a_key_holds,
        a_precondition_that_fails_is_a_conflict,
        preconditions_see_what_was_submitted_before,
        what_builds_on_a_refused_commit_is_refused,
        merged_commits_are_one,
        a_commit_survives_as_bytes,
        past_the_bounds_nothing_is_written,
        a_commit_without_rows_checks_its_preconditions,
        one_of_many_rivals_wins;
    positions:
        positions_only_grow_in_the_order_of_submission,
        slots_are_filled_in_keys_and_values,
        descending_slots_are_filled,
        a_refused_commit_shows_no_position,
        a_reader_up_to_the_watermark_misses_nothing,
        what_is_answered_is_below_the_watermark,
        waiting_for_a_position_ends_when_it_is_durable,
        a_precondition_on_an_open_position_is_refused,
        a_slot_inside_a_record_is_refused;
    wakes:
        a_watcher_learns_topics_and_positions_in_order,
        who_says_what_it_waits_for_learns_only_that,
        a_refused_commit_wakes_nobody,
        mutable_keys_are_told,
        the_keys_of_mutable_rows_are_carried_and_not_stored,
        a_slow_watcher_is_told_that_it_missed_something,
        a_watcher_ends_with_the_store;
    jobs:
        a_deleted_range_is_gone_and_its_neighbours_are_not,
        a_range_is_deleted_with_the_commit_that_says_so,
        staged_rows_stay_after_the_flip,
        what_is_staged_and_dropped_is_deleted,
        a_flip_that_conflicts_leaves_nothing_behind;
    chunks:
        a_long_value_comes_back,
        long_values_lie_where_their_positions_put_them,
        a_shorter_value_leaves_no_pieces_behind,
        ranges_see_long_values_once,
        a_long_value_can_be_a_precondition,
        a_reader_never_sees_half_of_an_overwriting;
}

mod on_disk {
    use crate::contract::persistence;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_committed_is_there_after_reopening() {
        persistence::what_was_committed_is_there_after_reopening().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn positions_go_on_after_reopening() {
        persistence::positions_go_on_after_reopening().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn deleting_goes_on_after_reopening() {
        persistence::deleting_goes_on_after_reopening().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn staged_rows_without_a_flip_are_swept_on_opening() {
        persistence::staged_rows_without_a_flip_are_swept_on_opening().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn closing_finishes_what_is_queued_and_refuses_the_rest() {
        persistence::closing_finishes_what_is_queued_and_refuses_the_rest().await;
    }
}
