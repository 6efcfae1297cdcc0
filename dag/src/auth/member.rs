//! The rules for membership: joining, inviting, leaving, removing, banning, knocking.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ruma::{
    UserId,
    events::{StateEventType, room::member::MembershipState},
};
use serde::Deserialize;

use super::{State, membership_of, need};
use crate::{
    Create, Pdu, PowerAction, PowerLevels, Rejection, RoomRules, VerifyKey,
    canonical::{Object, Value},
    sign::decode_base64,
};

/// What the functions of this file look at.
struct Member<'a, S> {
    rules: &'a RoomRules,
    pdu: &'a Pdu,
    sender: &'a UserId,
    target: &'a UserId,
    content: Object<'a>,
    create: &'a Create,
    power: &'a PowerLevels,
    state: &'a S,
}

/// If there is no state_key property, or no membership property in content, reject. Otherwise by membership.
pub(super) fn check_member<S: State>(
    rules: &RoomRules,
    pdu: &Pdu,
    create: &Create,
    power: &PowerLevels,
    state: &S,
) -> Result<(), Rejection> {
    let target = pdu.state_key().ok_or(Rejection::MalformedMember)?;
    let target = <&UserId>::try_from(target).map_err(|_| Rejection::MalformedMember)?;
    let content = Object::parse(pdu.content_json(), false).map_err(|_| Rejection::MalformedMember)?;
    let member = Member { rules, pdu, sender: pdu.sender(), target, content, create, power, state };
    match member.content.get("membership").and_then(Value::as_str) {
        Some("join") => member.check_join(),
        Some("invite") => member.check_invite(),
        Some("leave") => member.check_leave(),
        Some("ban") => member.check_ban(),
        Some("knock") if rules.knocking => member.check_knock(),
        // Otherwise, the membership is unknown. Reject.
        _ => Err(Rejection::MalformedMember),
    }
}

impl<S: State> Member<'_, S> {
    fn check_join(&self) -> Result<(), Rejection> {
        // If the only previous event is an m.room.create and the state_key is the creator, allow.
        let after_create = matches!(self.pdu.prev_events(), [only] if *only == self.create.event_id);
        if after_create && self.create.creator.as_deref() == Some(self.target) {
            return Ok(());
        }
        // If the sender does not match state_key, reject.
        self.only_for_oneself()?;
        // If the sender is banned, reject.
        let membership = membership_of(self.state, self.target);
        if membership == MembershipState::Ban {
            return Err(Rejection::Banned(self.target.to_owned()));
        }
        let join_rule = self.join_rule()?;
        let invited = matches!(membership, MembershipState::Invite | MembershipState::Join);
        match &*join_rule {
            // If the join_rule is public, allow.
            "public" => Ok(()),
            // If the join_rule is invite (or knock) then allow if membership state is invite or join.
            "invite" if invited => Ok(()),
            "knock" if invited && self.rules.knocking => Ok(()),
            "restricted" if self.rules.restricted_join_rule => self.check_restricted_join(invited),
            "knock_restricted" if self.rules.knock_restricted_join_rule => {
                self.check_restricted_join(invited)
            }
            _ => Err(Rejection::JoinRuleForbids { join_rule: join_rule.into_owned() }),
        }
    }

    fn check_restricted_join(&self, invited: bool) -> Result<(), Rejection> {
        // If membership state is join or invite, allow.
        if invited {
            return Ok(());
        }
        // If the join_authorised_via_users_server key in content is not a user with sufficient permission to invite
        // other users, reject. (That its server signed the event was checked with the signatures.)
        let authorising = self.content.get("join_authorised_via_users_server").and_then(Value::as_str);
        let authorising = authorising.ok_or(Rejection::NoAuthorisingUser)?;
        let authorising = <&UserId>::try_from(authorising).map_err(|_| Rejection::NoAuthorisingUser)?;
        if membership_of(self.state, authorising) != MembershipState::Join {
            return Err(Rejection::AuthorisingUserNotJoined);
        }
        need(PowerAction::AuthoriseJoin, self.power.user(authorising), self.power.invite())
    }

    fn check_invite(&self) -> Result<(), Rejection> {
        // If content has a third_party_invite property:
        if let Some(invite) = self.content.get("third_party_invite") {
            return self.check_third_party_invite(invite);
        }
        // If the sender's current membership state is not join, reject.
        self.sender_is_joined()?;
        // If target user's current membership state is join or ban, reject.
        match membership_of(self.state, self.target) {
            MembershipState::Join => return Err(Rejection::AlreadyJoined(self.target.to_owned())),
            MembershipState::Ban => return Err(Rejection::Banned(self.target.to_owned())),
            _ => {}
        }
        // If the sender's power level is greater than or equal to the invite level, allow.
        need(PowerAction::Invite, self.power.user(self.sender), self.power.invite())
    }

    fn check_third_party_invite(&self, invite: &Value<'_>) -> Result<(), Rejection> {
        // If target user is banned, reject.
        if membership_of(self.state, self.target) == MembershipState::Ban {
            return Err(Rejection::Banned(self.target.to_owned()));
        }
        // If content.third_party_invite does not have a signed property, or that has no mxid and token, reject.
        let token = third_party_token(invite)?;
        let signed = signed_part(invite)?;
        let mxid = signed.get("mxid").and_then(Value::as_str).ok_or(Rejection::MalformedThirdPartyInvite)?;
        // If mxid does not match state_key, reject.
        if mxid != self.target {
            return Err(Rejection::ThirdPartyInviteOfOtherUser);
        }
        // If there is no m.room.third_party_invite event in the current room state with state_key matching token,
        // reject.
        let invitation = self.state.event(&StateEventType::RoomThirdPartyInvite, token);
        let invitation = invitation.ok_or(Rejection::UnknownThirdPartyInvite)?;
        // If sender does not match sender of the m.room.third_party_invite, reject.
        if invitation.sender() != self.sender {
            return Err(Rejection::ThirdPartyInviteOfOtherSender);
        }
        // If any signature in signed matches any public key in the m.room.third_party_invite event, allow.
        if is_signed_by_any(signed, &public_keys(&invitation)) {
            Ok(())
        } else {
            Err(Rejection::UnsignedThirdPartyInvite)
        }
    }

    fn check_leave(&self) -> Result<(), Rejection> {
        // If the sender matches state_key, allow if and only if that user's current membership state is invite, join,
        // or knock.
        if self.sender == self.target {
            return match membership_of(self.state, self.target) {
                MembershipState::Join | MembershipState::Invite => Ok(()),
                MembershipState::Knock if self.rules.knocking => Ok(()),
                _ => Err(Rejection::NothingToLeave(self.target.to_owned())),
            };
        }
        // If the sender's current membership state is not join, reject.
        self.sender_is_joined()?;
        // If the target user's current membership state is ban, and the sender's power level is less than the ban
        // level, reject.
        let level = self.power.user(self.sender);
        if membership_of(self.state, self.target) == MembershipState::Ban {
            need(PowerAction::Unban, level, self.power.ban())?;
        }
        // If the sender's power level is greater than or equal to the kick level, and the target user's power level is
        // less than the sender's power level, allow.
        need(PowerAction::Kick, level, self.power.kick())?;
        self.target_is_below_sender()
    }

    fn check_ban(&self) -> Result<(), Rejection> {
        // If the sender's current membership state is not join, reject.
        self.sender_is_joined()?;
        // If the sender's power level is greater than or equal to the ban level, and the target user's power level is
        // less than the sender's power level, allow.
        need(PowerAction::Ban, self.power.user(self.sender), self.power.ban())?;
        self.target_is_below_sender()
    }

    fn check_knock(&self) -> Result<(), Rejection> {
        // If the join_rule is anything other than knock (or knock_restricted), reject.
        let join_rule = self.join_rule()?;
        let knockable = join_rule == "knock"
            || (self.rules.knock_restricted_join_rule && join_rule == "knock_restricted");
        if !knockable {
            return Err(Rejection::CannotKnock { join_rule: join_rule.into_owned() });
        }
        // If sender does not match state_key, reject.
        self.only_for_oneself()?;
        // If the sender's current membership is not ban, invite, or join, allow.
        match membership_of(self.state, self.target) {
            MembershipState::Ban => Err(Rejection::Banned(self.target.to_owned())),
            MembershipState::Invite | MembershipState::Join => {
                Err(Rejection::NoNeedToKnock(self.target.to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn only_for_oneself(&self) -> Result<(), Rejection> {
        if self.sender == self.target {
            Ok(())
        } else {
            Err(Rejection::NotTheSameUser(self.target.to_owned()))
        }
    }

    fn sender_is_joined(&self) -> Result<(), Rejection> {
        match membership_of(self.state, self.sender) {
            MembershipState::Join => Ok(()),
            _ => Err(Rejection::SenderNotJoined(self.sender.to_owned())),
        }
    }

    fn target_is_below_sender(&self) -> Result<(), Rejection> {
        if self.power.user(self.target) < self.power.user(self.sender) {
            Ok(())
        } else {
            Err(Rejection::TargetNotBelowSender)
        }
    }

    fn join_rule(&self) -> Result<Cow<'static, str>, Rejection> {
        #[derive(Deserialize)]
        struct Content<'a> {
            #[serde(borrow)]
            join_rule: Cow<'a, str>,
        }
        // NOTSPEC: without the event the rule is `invite`, as all servers have it.
        let Some(event) = self.state.event(&StateEventType::RoomJoinRules, "") else {
            return Ok("invite".into());
        };
        let content: Content<'_> = event.content_as().map_err(|_| Rejection::NoJoinRule)?;
        Ok(content.join_rule.into_owned().into())
    }
}

/// The token of a third-party invite, which names the event that made it.
pub(super) fn third_party_token<'a>(invite: &'a Value<'_>) -> Result<&'a str, Rejection> {
    signed_part(invite)?.get("token").and_then(Value::as_str).ok_or(Rejection::MalformedThirdPartyInvite)
}

fn signed_part<'a, 'b>(invite: &'a Value<'b>) -> Result<&'a Object<'b>, Rejection> {
    let signed = invite.as_object().and_then(|invite| invite.get("signed")).and_then(Value::as_object);
    signed.ok_or(Rejection::MalformedThirdPartyInvite)
}

/// All keys that an m.room.third_party_invite event names; those that are none are left out.
fn public_keys(invitation: &Pdu) -> Vec<VerifyKey> {
    let Ok(content) = Object::parse(invitation.content_json(), false) else { return Vec::new() };
    let several = content.get("public_keys").and_then(Value::as_array).unwrap_or_default();
    let several = several.iter().filter_map(|entry| entry.as_object()?.get("public_key")?.as_str());
    let one = content.get("public_key").and_then(Value::as_str);
    let decode = |key: &str| {
        let bytes = decode_base64(key).or_else(|| URL_SAFE_NO_PAD.decode(key.trim_end_matches('=')).ok())?;
        VerifyKey::new(&bytes.try_into().ok()?, None)
    };
    one.into_iter().chain(several).filter_map(decode).collect()
}

fn is_signed_by_any(signed: &Object<'_>, keys: &[VerifyKey]) -> bool {
    let mut message = String::new();
    signed.write_without(&["signatures", "unsigned"], &mut message);
    let servers = signed.get("signatures").and_then(Value::as_object);
    let signatures =
        servers.into_iter().flat_map(Object::iter).filter_map(|(_, of_server)| of_server.as_object());
    signatures
        .flat_map(Object::iter)
        .filter(|(key_id, _)| key_id.starts_with("ed25519:"))
        .filter_map(|(_, signature)| signature.as_str())
        .any(|signature| keys.iter().any(|key| key.verifies(message.as_bytes(), signature)))
}
