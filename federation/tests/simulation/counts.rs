//! What happened in runs, and how much of it there has to be: what nothing happens in shows nothing.

use std::fmt;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub sent: usize,
    pub refused: usize,
    /// Moments in which the room was forked at the server that made it.
    pub forks: usize,
    /// Events of which a server says so, counted at each server.
    pub accepted: usize,
    pub soft_failed: usize,
    pub rejected: usize,
    pub forged: usize,
    pub partitions: usize,
    /// Servers that were told to end, and began anew.
    pub restarts: usize,
    /// Servers that ended without being told, and began anew.
    pub crashes: usize,
    pub joins: usize,
    pub refused_joins: usize,
    /// Joins that a crash of their own server ended.
    pub broken_joins: usize,
    /// Moments in which a server was in the room without knowing all of its state.
    pub partial: usize,
    pub lost: usize,
    pub repeated: usize,
    /// What was acknowledged and is due at some server, counted for each.
    pub owed: usize,
    /// Runs in which all agreed before anybody said anything more.
    pub agreed_at_once: usize,
    /// Servers of which others think otherwise than they do themselves, as what put them out was not accepted by all.
    pub not_put_out_by_all: usize,
    /// The same, as state resolution took back what put them out.
    pub put_in_again: usize,
    /// The same, as the answer to their join never came.
    pub half_joined: usize,
}

macro_rules! each {
    ($do:ident) => {
        $do!(
            sent,
            refused,
            forks,
            accepted,
            soft_failed,
            rejected,
            forged,
            partitions,
            restarts,
            crashes,
            joins,
            refused_joins,
            broken_joins,
            partial,
            lost,
            repeated,
            owed,
            agreed_at_once,
            not_put_out_by_all,
            put_in_again,
            half_joined
        )
    };
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        macro_rules! sum {
            ($($field:ident),*) => { $(self.$field += other.$field;)* };
        }
        each!(sum);
    }

    /// Of at least as many seeds as are played by default.
    pub fn check(&self, seeds: u64) {
        let per_seed = |count: usize| count as f64 / seeds as f64;
        let at_least = |name: &str, count: usize, floor: f64| {
            assert!(per_seed(count) >= floor, "{name}: {:.2} a seed, less than {floor}", per_seed(count));
        };
        let at_most = |name: &str, count: usize, most: f64| {
            assert!(per_seed(count) <= most, "{name}: {:.2} a seed, more than {most}", per_seed(count));
        };
        at_least("events", self.sent, 15.0);
        at_least("forks", self.forks, 7.0);
        at_least("soft failures", self.soft_failed, 0.8);
        at_least("rejections", self.rejected, 1.5);
        at_least("partitions", self.partitions, 2.0);
        at_least("restarts", self.restarts, 0.4);
        at_least("crashes", self.crashes, 0.6);
        at_least("joins", self.joins, 1.2);
        at_least("joins that a crash ended", self.broken_joins, 0.01);
        at_least("partial state", self.partial, 1.5);
        at_least("lost", self.lost, 8.0);
        at_least("repeated", self.repeated, 4.0);
        at_least("owed", self.owed, 30.0);
        // Only where the room has moved on without an event is it soft-failed: of a hundred, not more than three.
        at_most("soft failures", self.soft_failed, 0.03 * per_seed(self.accepted));
        // What needs somebody to say more, or two views of who is there, is rare.
        at_least("runs that agree at once", self.agreed_at_once, 0.9);
        at_most("not put out by all", self.not_put_out_by_all, 0.05);
        at_most("put in again", self.put_in_again, 0.05);
        at_most("half joined", self.half_joined, 0.05);
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        macro_rules! show {
            ($($field:ident),*) => {{ $(write!(out, "{}: {}, ", stringify!($field), self.$field)?;)* }};
        }
        each!(show);
        Ok(())
    }
}
