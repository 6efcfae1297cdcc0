//! Joining a room that is elsewhere: a template from a server in it, our join sent there, and its answer made our room.
//! * Who waits is let in as soon as the room is known without its members; they follow (`complete.rs`).
//! * Joins of one room go one after another: whoever comes second finds the room here. A server that cannot be used is
//!   passed over for the next. Who has a place is said in `places.rs`.

use std::{collections::HashMap, time::Duration};

use hearth_dag::{Pdu, RoomRules, VerifiedPdu};
use hearth_rooms::{EnterError, EnterRoom, Join, Joined, Rooms};
use hearth_store::Commit;
use ruma::{OwnedRoomId, OwnedServerName, ServerName};

use super::{
    Parts, RemoteRoomError, RemoteRooms, Unusable,
    asking::{Asking, candidates},
    template::CheckedTemplate,
};
use crate::{
    client::{JoinAnswer, Json, RequestError, Template},
    network::NetworkError,
};

/// A join takes no longer than this, whatever the servers do.
pub const JOIN_TIME: Duration = Duration::from_secs(300);
/// Rooms that are entered at the same time: entering one keeps the store busy.
pub const JOINS_AT_ONCE: usize = 8;
/// A server that was found is not looked for longer than this.
const ASKING_TIME: Duration = Duration::from_secs(45);

impl RemoteRooms {
    /// Brings a user of ours into a room, here if the room is here, else through one of these servers or of those that
    /// are known to be in it.
    pub async fn join(&self, join: Join, via: Vec<OwnedServerName>) -> Result<OwnedRoomId, RemoteRoomError> {
        if let Joined::Here(room) = self.parts.join_here(&join).await? {
            return Ok(room);
        }
        let parts = self.parts.clone();
        self.run(async move {
            match tokio::time::timeout(JOIN_TIME, parts.join_elsewhere(&join, &via)).await {
                Ok(joined) => joined,
                Err(_) => Err(RemoteRoomError::Timeout),
            }
        })
        .await
    }
}

impl Parts {
    /// What the members that we know would refuse, all of them may allow.
    async fn join_here(&self, join: &Join) -> Result<Joined, RemoteRoomError> {
        let here = |rooms: Rooms| async move { rooms.join(join, Commit::new()).await };
        match self.policy.signing(here).await {
            Err(_) if self.was_partial(&join.room).await? => Ok(self.policy.signing(here).await?),
            done => Ok(done?),
        }
    }

    async fn join_elsewhere(
        &self,
        join: &Join,
        via: &[OwnedServerName],
    ) -> Result<OwnedRoomId, RemoteRoomError> {
        // In the line of the user first: a room is not kept from others by who waits for their own joins.
        let _of_user = self.joins.of_user(&join.user).await?;
        let _entry = self.entries.of(&join.room).await;
        // Another user may have been faster.
        if let Joined::Here(room) = self.join_here(join).await? {
            return Ok(room);
        }
        let servers = candidates(&self.federation, &self.rooms, &join.room, &join.user, via).await?;
        let versions: Vec<_> = RoomRules::all().map(|rules| rules.version.clone()).into();
        let _under_way = self.federation.joining().begin(&join.room);
        let client = self.client_for(join.user.server_name());
        let mut asking = Asking::new(servers, |server| {
            let (client, versions) = (&client, &versions);
            async move { client.make_join(&server, &join.room, &join.user, versions).await }
        });
        let until = tokio::time::Instant::now() + ASKING_TIME;
        loop {
            let Ok(next) = tokio::time::timeout_at(until, asking.next()).await else {
                return Err(RemoteRoomError::Timeout);
            };
            let Some((server, template)) = next else { return Err(asking.failures.into_error()) };
            match self.join_through(join, &server, &template).await {
                Ok(is_partial) => {
                    if is_partial {
                        self.partial.notify_one();
                    }
                    return Ok(join.room.clone());
                }
                Err(Failed::Request(error)) => asking.failures.note(&server, error),
                Err(Failed::Answer(Unusable::Enter(EnterError::Write(error)))) => return Err(error.into()),
                Err(Failed::Answer(Unusable::Store(error))) => return Err(error.into()),
                Err(Failed::Answer(why)) => asking.failures.unusable(&server, &why),
            }
        }
    }

    /// Joins through one server. Says whether members are still to be told.
    async fn join_through(
        &self,
        join: &Join,
        server: &ServerName,
        template: &Template,
    ) -> Result<bool, Failed> {
        let checked = CheckedTemplate::check(template, &join.room, &join.user, "join")?;
        // Whoever lets others in is a user of the server that signs for it. Above all it is none of ours: with our own
        // signature such a join would be good without anybody having let the user in.
        if checked.authoriser.as_ref().is_some_and(|user| user.server_name() != server) {
            return Err(Unusable::Template("authorised by a user of another server").into());
        }
        let pdu = checked.build(self, &join.room, &join.user, join.content())?;
        let busy = |_| RequestError::from(NetworkError::Busy);
        let _place = self.joins.through(server).await.map_err(busy)?;
        let client = self.client_for(join.user.server_name());
        let (answer, _large) = self.joins.ask(&client, server, &join.room, &pdu).await?;
        let enter = self.read_answer(join, server, &checked, pdu, answer).await?;
        let entered = self.rooms.enter_room(enter).await.map_err(Unusable::from)?;
        if entered.dropped > 0 {
            tracing::info!(room_id = %join.room, %server, dropped = entered.dropped, "events of a join were refused");
        }
        Ok(entered.is_partial)
    }

    /// Checks all signatures of the answer to a join.
    async fn read_answer(
        &self,
        join: &Join,
        origin: &ServerName,
        template: &CheckedTemplate,
        pdu: Pdu,
        answer: JoinAnswer,
    ) -> Result<EnterRoom, Unusable> {
        let members_omitted = match (answer.members_omitted, answer.servers_in_room) {
            (false, _) => None,
            (true, Some(servers)) => Some(servers),
            (true, None) => {
                return Err(Unusable::Answer("without members and without the servers in the room"));
            }
        };
        let authorised = template.authoriser.is_some();
        let signed = answer.event.filter(|_| authorised);
        if authorised && signed.is_none() {
            return Err(Unusable::Answer("without the join that its server should have signed"));
        }
        let rules = template.rules;
        let (state, auth_chain, signed) =
            self.verified(origin, rules, answer.state, answer.auth_chain, signed).await?;
        let join_event = match signed {
            None => VerifiedPdu::built_here(pdu),
            // The id is a hash of the event where such joins are known, so it is ours with one signature more.
            Some(Some(signed)) if signed.pdu().event_id() == pdu.event_id() && !signed.is_redacted() => {
                signed
            }
            Some(_) => return Err(Unusable::Answer("with another join than ours, or without its signature")),
        };
        Ok(EnterRoom {
            room_id: join.room.clone(),
            version: rules.version.clone(),
            join: join_event,
            state,
            auth_chain,
            origin: origin.to_owned(),
            members_omitted,
        })
    }

    /// Those of the events that can be believed, each checked once however often it was told.
    async fn verified(
        &self,
        server: &ServerName,
        rules: &'static RoomRules,
        state: Vec<Json>,
        auth_chain: Vec<Json>,
        signed: Option<Json>,
    ) -> Result<(Vec<VerifiedPdu>, Vec<VerifiedPdu>, Option<Option<VerifiedPdu>>), Unusable> {
        let mut places: HashMap<bytes::Bytes, usize> = HashMap::new();
        let mut told: Vec<Json> = Vec::with_capacity(state.len() + auth_chain.len());
        let mut place = |pdu: Json| {
            let next = told.len();
            *places.entry(pdu.bytes().clone()).or_insert_with(|| {
                told.push(pdu);
                next
            })
        };
        let state: Vec<usize> = state.into_iter().map(&mut place).collect();
        let auth_chain: Vec<usize> = auth_chain.into_iter().map(&mut place).collect();
        let signed = signed.map(&mut place);
        drop(places);
        let verified = self.federation.verify_answer(server, rules, told).await?;
        let mut bad = 0;
        for error in verified.iter().filter_map(|event| event.as_ref().err()) {
            bad += 1;
            tracing::debug!(event_id = ?error.event_id, why = %error.why, "an event of a join is not believed");
        }
        if bad > 0 {
            tracing::info!(bad, of = verified.len(), "some events of a join are not believed");
        }
        let good = |places: Vec<usize>| -> Vec<VerifiedPdu> {
            places.into_iter().filter_map(|place| verified[place].as_ref().ok().cloned()).collect()
        };
        let signed = signed.map(|place| verified[place].as_ref().ok().cloned());
        Ok((good(state), good(auth_chain), signed))
    }
}

/// Why a join through one server failed.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Answer(#[from] Unusable),
}
