//! What the runs found, told by itself.

use std::time::Duration;

use hearth_rooms::Status;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    network::Net,
    node::Node,
    world::{name, server::tokio_clock},
};

const SERVERS: [&str; 3] = ["a.test", "b.test", "c.test"];

fn part(net: &Net, one: &str, other: &str) {
    net.cuts(one, other);
    net.cuts(other, one);
}

/// Who asks for what lies between its end of the room and an event of another end is told everything from the beginning
/// on. None of it is new: taken for the end of a fork, the beginning of a room is a state in which nobody is there, and
/// where one has to be invited nobody gets in again.
#[tokio::test(start_paused = true)]
async fn the_beginning_of_a_room_is_no_new_end_of_it() {
    let (net, clock, mut nodes) = (Net::new(0, false), tokio_clock(), Vec::new());
    for server in SERVERS {
        nodes.push(Node::new(&net, &clock, server, 0).await);
    }
    for node in &nodes {
        node.knows_the_keys_of(&SERVERS).await;
    }
    let room = nodes[0].creates_a_room("10").await;
    for place in [1, 2] {
        nodes[place].joins("u0", &room, vec![name("a.test")]);
        assert_eq!(nodes[place].joined().await, Some(true));
        sleep(Duration::from_secs(5)).await;
    }
    let [a, b, c] = &nodes[..] else { unreachable!() };
    let says = async |node: &Node| {
        let body = json!({ "msgtype": "m.text", "body": node.name });
        node.sends(&node.user("u0"), &room, "m.room.message", "", body).await.unwrap()
    };
    let levels = a.power_levels(&room, &b.user("u0"), 100).await.unwrap();
    a.sends(&a.user("u0"), &room, "m.room.power_levels", "", levels).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let held = c.events(&room).await;
    part(&net, "a.test", "c.test");
    part(&net, "b.test", "c.test");
    says(c).await;
    let rule = json!({ "join_rule": "invite" });
    b.sends(&b.user("u0"), &room, "m.room.join_rules", "", rule).await.unwrap();
    says(b).await;
    sleep(Duration::from_millis(50)).await;
    let end = says(a).await;
    sleep(Duration::from_millis(50)).await;
    // The one who holds all of the room tells what lies between.
    net.heals();
    part(&net, "b.test", "c.test");
    sleep(Duration::from_secs(8)).await;
    assert_eq!(c.status(&room, &end).await, Some(Status::Accepted));
    for event in held {
        assert_eq!(
            c.status(&room, &event.header.event_id).await,
            Some(event.status()),
            "{}",
            event.pdu.json()
        );
    }
    net.heals();
    sleep(Duration::from_secs(60)).await;
    let state = a.state(&room).await;
    for node in [b, c] {
        assert!(node.is_resident(&room).await && a.sees(&room, &node.name).await);
        assert_eq!(node.state(&room).await, state);
    }
}
