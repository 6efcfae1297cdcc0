//! The user directory: people are found by the beginnings of the words in their ids and display names.
//! * Every word of what is searched must begin some word of who is found; capitals and accents in one form only matter
//!   as Unicode's lower case says.
//! * Local users are found through an index of words, others among those that the caller names.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use hearth_store::{Order, StartingWith, StoreError};
use ruma::{OwnedUserId, UserId};

use crate::{Users, tables::DIRECTORY_WORDS};

/// Results of one search.
pub const SEARCH_LIMIT_MAX: usize = 100;
/// People who fit one search, from whom a caller may still choose those that the searcher is to see.
pub const CANDIDATES_MAX: usize = 2_000;
/// Words of one display name by which its owner is found.
const WORDS_MAX: usize = 16;
const WORD_BYTES_MAX: usize = 64;
/// Rows of the index looked at for one search.
const ROWS_MAX: usize = CANDIDATES_MAX;

/// Somebody whom the searcher can see, as the rooms show them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// Who.
    pub user_id: OwnedUserId,
    /// Under which name.
    pub display_name: Option<String>,
    /// With which picture.
    pub avatar_url: Option<String>,
}

/// Who was found, best first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// At most as many as asked for.
    pub people: Vec<Person>,
    /// Whether there are more.
    pub limited: bool,
}

impl Users {
    /// Searches all local users, and `others`, whom the caller knows of. Who may see whom is for the caller to mind.
    pub async fn search_people(
        &self,
        term: &str,
        others: &[Person],
        limit: usize,
    ) -> Result<Found, StoreError> {
        let wanted: Vec<String> = split(term).take(WORDS_MAX).collect();
        let Some(longest) = wanted.iter().max_by_key(|word| word.len()) else {
            return Ok(Found::default());
        };
        let limit = limit.clamp(1, CANDIDATES_MAX);
        let range = DIRECTORY_WORDS.prefix(&StartingWith((), longest));
        let rows = self.inner.store.range(&DIRECTORY_WORDS, range, Order::Forward, ROWS_MAX).await?;
        let mut limited = rows.len() == ROWS_MAX;
        let mut found: BTreeMap<(u8, OwnedUserId), Person> = BTreeMap::new();
        let mut seen = HashSet::new();
        for ((_, id), ()) in rows {
            let Ok(user_id) = UserId::parse(id) else { continue };
            if !seen.insert(user_id.clone()) {
                continue;
            }
            let profile = self.profile(&user_id).await?;
            let person = Person {
                display_name: profile.displayname().map(str::to_owned),
                avatar_url: profile.avatar_url().map(str::to_owned),
                user_id,
            };
            if let Some(rank) = person.rank(&wanted, term) {
                found.insert((rank, person.user_id.clone()), person);
            }
        }
        for person in others {
            if !seen.contains(&person.user_id)
                && let Some(rank) = person.rank(&wanted, term)
            {
                found.insert((rank, person.user_id.clone()), person.clone());
            }
        }
        limited |= found.len() > limit;
        Ok(Found { people: found.into_values().take(limit).collect(), limited })
    }
}

impl Person {
    /// How well this person is meant by the words, smaller is better; `None` if not at all.
    fn rank(&self, wanted: &[String], term: &str) -> Option<u8> {
        let own = words(&self.user_id, self.display_name.as_deref());
        if !wanted.iter().all(|word| own.iter().any(|own| own.starts_with(&**word))) {
            return None;
        }
        let exact = self.user_id == term
            || self.user_id.localpart().eq_ignore_ascii_case(term)
            || self.display_name.as_deref().is_some_and(|name| name.to_lowercase() == term.to_lowercase());
        let named = self.display_name.is_some();
        Some(if exact { 0 } else { 2 - u8::from(named) })
    }
}

/// The words by which a user is found: the whole id without its sigil, the words of the localpart and of the name.
pub(crate) fn words(user: &UserId, display_name: Option<&str>) -> BTreeSet<String> {
    let mut words: BTreeSet<String> = split(display_name.unwrap_or_default()).take(WORDS_MAX).collect();
    words.extend(split(user.localpart()).take(WORDS_MAX));
    words.insert(cut(&user.localpart().to_lowercase()));
    words.insert(cut(&user.as_str()[1..].to_lowercase()));
    words
}

/// A text's words, folded. A user id is one word.
fn split(text: &str) -> impl Iterator<Item = String> {
    let text = text.trim();
    let whole = text.starts_with('@') && text.contains(':') && !text.contains(char::is_whitespace);
    let text = text.strip_prefix('@').unwrap_or(text).to_lowercase();
    let parts: Vec<String> = if whole {
        vec![cut(&text)]
    } else {
        text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(cut).collect()
    };
    parts.into_iter()
}

fn cut(word: &str) -> String {
    word[..word.floor_char_boundary(WORD_BYTES_MAX)].to_owned()
}
