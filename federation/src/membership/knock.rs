//! Knocking on a room that is elsewhere: a template from a server in it, our knock sent there, and what it tells of the
//! room kept for the user.

use hearth_dag::{RoomRules, VerifiedPdu};
use hearth_rooms::{Knock, MembershipError, OutOfBand, WriteError};
use hearth_store::Commit;
use ruma::OwnedServerName;
use serde_json::value::RawValue;

use super::{
    JOIN_TIME, Parts, RemoteRoomError, RemoteRooms,
    asking::{Asking, candidates},
    template::CheckedTemplate,
};

impl RemoteRooms {
    /// A user of ours asks to be let into a room, here if the room is here.
    pub async fn knock(&self, knock: Knock, via: Vec<OwnedServerName>) -> Result<(), RemoteRoomError> {
        let here = {
            let knock = &knock;
            self.parts.policy.signing(|rooms| async move { rooms.knock(knock, Commit::new()).await }).await
        };
        match here {
            Err(MembershipError::Write(WriteError::NotResident | WriteError::UnknownRoom)) => {}
            done => return Ok(done.map(drop)?),
        }
        let parts = self.parts.clone();
        self.run(async move {
            let knocking = tokio::time::timeout(JOIN_TIME, parts.knock_elsewhere(&knock, &via));
            knocking.await.unwrap_or(Err(RemoteRoomError::Timeout))
        })
        .await
    }
}

impl Parts {
    async fn knock_elsewhere(&self, knock: &Knock, via: &[OwnedServerName]) -> Result<(), RemoteRoomError> {
        let _entry = self.entries.of(&knock.room).await;
        let servers = candidates(&self.federation, &self.rooms, &knock.room, &knock.user, via).await?;
        let all = RoomRules::all().into_iter();
        let versions: Vec<_> =
            all.filter(|rules| rules.knocking).map(|rules| rules.version.clone()).collect();
        let client = self.client_for(knock.user.server_name());
        let mut asking = Asking::new(servers, |server| {
            let (client, versions) = (&client, &versions);
            async move { client.make_knock(&server, &knock.room, &knock.user, versions).await }
        });
        while let Some((server, template)) = asking.next().await {
            let content = knock.profile.member_content("knock", knock.reason.as_deref());
            let made =
                CheckedTemplate::check(&template, &knock.room, &knock.user, "knock").and_then(|checked| {
                    Ok((checked.rules, checked.build(self, &knock.room, &knock.user, content)?))
                });
            let (rules, pdu) = match made {
                Ok(made) => made,
                Err(why) => {
                    asking.failures.unusable(&server, &why);
                    continue;
                }
            };
            match client.send_knock(&server, &knock.room, pdu.event_id(), pdu.json()).await {
                Ok(state) => {
                    let state = state
                        .into_iter()
                        .filter_map(|event| RawValue::from_string(event.get().to_owned()).ok());
                    let told = OutOfBand {
                        room_id: knock.room.clone(),
                        version: rules.version.clone(),
                        event: VerifiedPdu::built_here(pdu),
                        state: state.collect(),
                    };
                    self.rooms.receive_out_of_band(&told).await?;
                    return Ok(());
                }
                Err(error) => asking.failures.note(&server, error),
            }
        }
        Err(asking.failures.into_error())
    }
}
