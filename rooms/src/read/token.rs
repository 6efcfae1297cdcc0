//! The tokens that clients carry: where a sync ended, and places in a room's timeline.
//! * A token holds for ever, on every node: it names positions of the store, nothing that a process remembers. What
//!   lives in memory (typing, presence) is named by the boot it belongs to; after another boot it is sent again.
//! * The token of a sync is also a place in every timeline: after all that had happened by then.

use std::{fmt, str::FromStr};

use hearth_store::StreamPosition;

use crate::ids::TimelineOrder;

/// A token that this server did not make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a token of this server")]
pub struct BadToken;

/// Where a sync ended: `s1_{epoch}_{position}_{boot}_{typing}_{presence}`, and `_{to_device}` where that is less than the
/// position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncToken {
    /// Raised when a backup is restored.
    pub epoch: u32,
    pub position: StreamPosition,
    /// Which process counted the two that follow.
    pub boot: u32,
    /// How many changes of who types had happened.
    pub typing: u64,
    /// How many changes of presence had happened.
    pub presence: u64,
    /// Messages to the device were told up to here: at most up to `position`, less where they were too many at once.
    pub to_device: StreamPosition,
}

impl fmt::Display for SyncToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, position, boot, typing, presence, to_device } = self;
        write!(f, "s1_{epoch}_{}_{boot:x}_{typing}_{presence}", position.get())?;
        match to_device < position {
            true => write!(f, "_{}", to_device.get()),
            false => Ok(()),
        }
    }
}

impl FromStr for SyncToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let mut parts = text.strip_prefix("s1_").ok_or(BadToken)?.split('_');
        let (epoch, reached) = (number(parts.next())?, position(parts.next())?);
        let token = Self {
            epoch,
            position: reached,
            boot: parts.next().and_then(|hex| u32::from_str_radix(hex, 16).ok()).ok_or(BadToken)?,
            typing: number(parts.next())?,
            presence: number(parts.next())?,
            to_device: match parts.next() {
                Some(text) => position(Some(text))?,
                None => reached,
            },
        };
        let is_whole = parts.next().is_none() && token.to_device <= reached;
        is_whole.then_some(token).ok_or(BadToken)
    }
}

/// A place in a room's timeline, right after the event of that order: `t1_{anchor}_{sub}`, or the token of a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimelineToken(pub TimelineOrder);

impl TimelineToken {
    /// The place before everything.
    pub fn start() -> Self {
        Self(TimelineOrder::START)
    }

    /// The place after everything that had happened at a position.
    pub fn at(position: StreamPosition) -> Self {
        Self(TimelineOrder::live(position))
    }

    /// The place right before an event.
    pub fn before(order: TimelineOrder) -> Self {
        match order.sub.checked_sub(1) {
            Some(sub) => Self(TimelineOrder { anchor: order.anchor, sub }),
            None => Self::at(StreamPosition::new(order.anchor.get().saturating_sub(1))),
        }
    }

    /// The place right after an event.
    pub fn after(order: TimelineOrder) -> Self {
        Self(order)
    }
}

impl fmt::Display for TimelineToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t1_{}_{}", self.0.anchor.get(), self.0.sub)
    }
}

impl FromStr for TimelineToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let Some(rest) = text.strip_prefix("t1_") else {
            return text.parse::<SyncToken>().map(|token| Self::at(token.position));
        };
        let (anchor, sub) = rest.split_once('_').ok_or(BadToken)?;
        Ok(Self(TimelineOrder { anchor: position(Some(anchor))?, sub: number(Some(sub))? }))
    }
}

fn number<T: FromStr>(text: Option<&str>) -> Result<T, BadToken> {
    // `parse` also takes a plus sign, which we never write.
    let text = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit())).ok_or(BadToken)?;
    text.parse().map_err(|_| BadToken)
}

fn position(text: Option<&str>) -> Result<StreamPosition, BadToken> {
    let number: u64 = number(text)?;
    if number > StreamPosition::MAX.get() { Err(BadToken) } else { Ok(StreamPosition::new(number)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back_as_they_were_written() {
        let token = SyncToken {
            epoch: 3,
            position: StreamPosition::new(77),
            boot: 0xdead_beef,
            typing: 9,
            presence: 0,
            to_device: StreamPosition::new(77),
        };
        assert_eq!(token.to_string(), "s1_3_77_deadbeef_9_0");
        assert_eq!(token.to_string().parse(), Ok(token));
        let behind = SyncToken { to_device: StreamPosition::new(70), ..token };
        assert_eq!(behind.to_string(), "s1_3_77_deadbeef_9_0_70");
        assert_eq!(behind.to_string().parse(), Ok(behind));
        let place = TimelineToken(TimelineOrder { anchor: StreamPosition::new(12), sub: 4 });
        assert_eq!(place.to_string().parse(), Ok(place));
        assert_eq!(token.to_string().parse(), Ok(TimelineToken::at(token.position)));
    }

    #[test]
    fn foreign_tokens_are_refused() {
        for bogus in [
            "",
            "s1",
            "s1_",
            "s1_1_2_3_4",
            "s1_1_2_3_4_5_6",
            "s1_9_8_7_6_5_4_3",
            "s1_1_-2_3_4_5",
            "s1_1_+2_3_4_5",
            "s2_1_2_3_4_5",
            "t1_1",
            "t1_1_x",
            "t1__",
            "12",
            "s1_1_99999999999999999999_1_1_1",
            "s1_1_18446744073709551615_1_1_1",
        ] {
            assert_eq!(bogus.parse::<SyncToken>(), Err(BadToken), "{bogus}");
            assert_eq!(bogus.parse::<TimelineToken>(), Err(BadToken), "{bogus}");
        }
    }
}
