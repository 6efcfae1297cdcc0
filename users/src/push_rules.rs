//! Push rules: the account data `m.push_rules`, in ruma's form.
//! * Nothing is stored while a user has not changed anything: then the rules are the server's own.
//! * Stored rules are read together with the predefined ones of this version, so that new ones appear by themselves.

use std::sync::Arc;

use bytes::Bytes;
use hearth_store::StoreError;
use ruma::{
    OwnedRoomId, OwnedUserId, UserId,
    push::{
        Action, ConditionalPushRule, InsertPushRuleError, NewPushRule, PatternedPushRule,
        RemovePushRuleError, RuleKind, Ruleset, SimplePushRule,
    },
};
use serde::{Deserialize, Serialize};

use crate::{ACCOUNT_DATA_MAX, PUSH_RULES, RawJson, Users, UsersError};

/// Rules that a user may have of their own.
pub const RULES_MAX: usize = 2_000;

/// The rules in force for a user.
#[derive(Clone, Debug)]
pub struct PushRules {
    /// The rules.
    pub ruleset: Arc<Ruleset>,
    /// Whether the user has changed nothing: then all who have the default rules may share one evaluation.
    pub is_default: bool,
}

/// Why push rules could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum PushRuleError {
    /// There is no such rule.
    #[error("there is no such push rule")]
    NotFound,
    /// Not what the specification allows of a rule's id or place.
    #[error("{0}")]
    Invalid(String),
    /// The rule named by `before` or `after` is not there.
    #[error("the push rule to be placed before or after does not exist")]
    UnknownNeighbour,
    /// A predefined rule cannot be removed.
    #[error("a predefined push rule cannot be removed")]
    Predefined,
    /// More than anybody needs.
    #[error("too many push rules")]
    TooMany,
    /// The store.
    #[error(transparent)]
    Users(#[from] UsersError),
}

#[derive(Serialize, Deserialize)]
struct Content {
    #[serde(default)]
    global: Ruleset,
}

impl Users {
    /// The rules in force for this user.
    pub async fn push_rules(&self, user: &UserId) -> Result<PushRules, StoreError> {
        let key: Arc<str> = user.as_str().into();
        if let Some((ruleset, is_default)) = self.inner.push_rules.get(&key) {
            return Ok(PushRules { ruleset, is_default });
        }
        let ticket = self.inner.push_rules.ticket(&key);
        let row = self.read_account_data(user, None, PUSH_RULES).await?;
        let ruleset = Arc::new(ruleset_of(user, row.as_ref().map(|row| &*row.value.0)));
        self.inner.push_rules.fill(key, (ruleset.clone(), row.is_none()), ticket);
        Ok(PushRules { ruleset, is_default: row.is_none() })
    }

    /// Adds a rule, or replaces the one of its id, and places it.
    pub async fn put_push_rule(
        &self,
        user: &UserId,
        rule: NewPushRule,
        before: Option<&str>,
        after: Option<&str>,
    ) -> Result<(), PushRuleError> {
        self.edit_push_rules(user, |rules| {
            rules.insert(rule.clone(), after, before).map_err(refused)?;
            if rules.iter().count() > RULES_MAX { Err(PushRuleError::TooMany) } else { Ok(()) }
        })
        .await
    }

    /// Removes a rule that the user made.
    pub async fn remove_push_rule(
        &self,
        user: &UserId,
        kind: RuleKind,
        rule: &str,
    ) -> Result<(), PushRuleError> {
        self.edit_push_rules(user, |rules| {
            rules.remove(kind.clone(), rule).map_err(|error| match error {
                RemovePushRuleError::ServerDefault => PushRuleError::Predefined,
                _ => PushRuleError::NotFound,
            })
        })
        .await
    }

    /// Switches a rule on or off.
    pub async fn enable_push_rule(
        &self,
        user: &UserId,
        kind: RuleKind,
        rule: &str,
        enabled: bool,
    ) -> Result<(), PushRuleError> {
        self.edit_push_rules(user, |rules| {
            rules.set_enabled(kind.clone(), rule, enabled).map_err(|_| PushRuleError::NotFound)
        })
        .await
    }

    /// Sets what a rule does.
    pub async fn set_push_rule_actions(
        &self,
        user: &UserId,
        kind: RuleKind,
        rule: &str,
        actions: Vec<Action>,
    ) -> Result<(), PushRuleError> {
        self.edit_push_rules(user, |rules| {
            rules.set_actions(kind.clone(), rule, actions.clone()).map_err(|_| PushRuleError::NotFound)
        })
        .await
    }

    /// The rules as account data.
    pub(crate) async fn push_rules_content(&self, user: &UserId) -> Result<RawJson, StoreError> {
        let rules = self.push_rules(user).await?;
        serde_json::value::to_raw_value(&rules.shown()).map_err(|error| StoreError::Corrupt {
            table: "account_data",
            key: format!("{user} {PUSH_RULES}"),
            reason: error.to_string(),
        })
    }

    async fn edit_push_rules(
        &self,
        user: &UserId,
        edit: impl Fn(&mut Ruleset) -> Result<(), PushRuleError>,
    ) -> Result<(), PushRuleError> {
        let edit = |before: Option<&[u8]>| {
            let mut rules = ruleset_of(user, before);
            edit(&mut rules)?;
            let content = serde_json::to_vec(&Content { global: rules })
                .map_err(|error| PushRuleError::Invalid(error.to_string()))?;
            if content.len() > ACCOUNT_DATA_MAX {
                return Err(PushRuleError::TooMany);
            }
            Ok(Some(Bytes::from(content)))
        };
        self.edit_account_data(user, None, PUSH_RULES, edit).await.map(drop)
    }
}

/// Rules as clients expect them: with every kind, also where there is none of it.
#[derive(Debug, Serialize)]
pub struct ShownPushRules<'a> {
    pub global: ShownRuleset<'a>,
}

/// The rules of all kinds.
#[derive(Debug, Serialize)]
pub struct ShownRuleset<'a> {
    #[serde(rename = "override")]
    override_: Vec<&'a ConditionalPushRule>,
    content: Vec<&'a PatternedPushRule>,
    room: Vec<&'a SimplePushRule<OwnedRoomId>>,
    sender: Vec<&'a SimplePushRule<OwnedUserId>>,
    underride: Vec<&'a ConditionalPushRule>,
}

impl PushRules {
    /// As they are told to clients.
    pub fn shown(&self) -> ShownPushRules<'_> {
        let rules = &self.ruleset;
        ShownPushRules {
            global: ShownRuleset {
                override_: rules.override_.iter().collect(),
                content: rules.content.iter().collect(),
                room: rules.room.iter().collect(),
                sender: rules.sender.iter().collect(),
                underride: rules.underride.iter().collect(),
            },
        }
    }
}

/// Stored rules together with the predefined ones.
fn ruleset_of(user: &UserId, stored: Option<&[u8]>) -> Ruleset {
    let predefined = Ruleset::server_default(user);
    match stored.and_then(|bytes| serde_json::from_slice::<Content>(bytes).ok()) {
        Some(Content { global: mut rules }) => {
            rules.update_with_server_default(predefined);
            rules
        }
        None => predefined,
    }
}

fn refused(error: InsertPushRuleError) -> PushRuleError {
    match error {
        InsertPushRuleError::UnknownRuleId => PushRuleError::UnknownNeighbour,
        error => PushRuleError::Invalid(error.to_string()),
    }
}
