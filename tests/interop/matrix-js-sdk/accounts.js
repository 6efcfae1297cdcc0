// Registering, logging in and out, devices, refresh tokens, passwords, one's own settings.
import test from "node:test";
import assert from "node:assert/strict";
import { cast, clientOf, foreign, logIn, newcomer, password, refused, register, start, stranger, unique, until } from "./stage.js";

test("two users register, each on two devices", async () => {
    const { alice, bob } = await cast();
    for (const { id, desk, phone } of [alice, bob]) {
        assert.notEqual(desk.getDeviceId(), phone.getDeviceId());
        for (const client of [desk, phone]) {
            const me = await client.whoami();
            assert.equal(me.user_id, id);
            assert.equal(me.device_id, client.getDeviceId());
        }
    }
});

test("a user name is taken once, and wrong ones are refused", async () => {
    const { alice } = await cast();
    const taken = alice.desk.getUserIdLocalpart();
    await refused(stranger().registerRequest({ username: taken, password }), 400, "M_USER_IN_USE");
    assert.equal(await stranger().isUsernameAvailable(taken), false);
    assert.equal(await stranger().isUsernameAvailable(unique("nobody-yet")), true);
    await refused(stranger().registerRequest({ username: "No Spaces", password }), 400, "M_INVALID_USERNAME");
});

test("registration may leave the login out", async () => {
    const answer = await register("quiet", { inhibit_login: true });
    assert.ok(answer.user_id);
    assert.equal(answer.access_token, undefined);
});

test("logging in needs the right password and names the device", async () => {
    const { alice } = await cast();
    const { flows } = await stranger().loginFlows();
    assert.ok(flows.some(({ type }) => type === "m.login.password"));
    await refused(logIn(alice.id, { password: "wrong" }), 403, "M_FORBIDDEN");
    await refused(logIn(`@${unique("nobody")}:${alice.desk.getDomain()}`), 403, "M_FORBIDDEN");

    const session = await logIn(alice.desk.getUserIdLocalpart(), {
        device_id: "TABLET",
        initial_device_display_name: "alice's tablet",
    });
    assert.equal(session.device_id, "TABLET");
    const { devices } = await alice.desk.getDevices();
    assert.equal(devices.length, 3);
    assert.equal(devices.find(({ device_id }) => device_id === "TABLET").display_name, "alice's tablet");
    await alice.desk.setDeviceDetails("TABLET", { display_name: "renamed" });
    assert.equal((await alice.desk.getDevice("TABLET")).display_name, "renamed");

    // The same device again: its earlier token ends, as the specification asks (and Synapse does not).
    const again = await logIn(alice.id, { device_id: "TABLET" });
    if (!foreign) await refused(clientOf(session).whoami(), 401, "M_UNKNOWN_TOKEN");
    const tablet = clientOf(again);
    assert.equal((await tablet.whoami()).device_id, "TABLET");
    await tablet.logout();
    await refused(tablet.whoami(), 401, "M_UNKNOWN_TOKEN");
    assert.equal((await alice.desk.getDevices()).devices.length, 2);
});

test("a request without a token is told so", async () => {
    await refused(stranger().whoami(), 401, "M_MISSING_TOKEN");
});

test("a refresh token gives new tokens, and is spent once they are used", async () => {
    const { alice } = await cast();
    const session = await logIn(alice.id, { refresh_token: true });
    assert.ok(session.refresh_token, "no refresh token was given");
    const old = clientOf(session);
    await old.whoami();

    // An answer that never arrived can be asked for again.
    await stranger().refreshToken(session.refresh_token);
    const fresh = await stranger().refreshToken(session.refresh_token);
    assert.notEqual(fresh.access_token, session.access_token);
    assert.notEqual(fresh.refresh_token, session.refresh_token);
    const renewed = clientOf({ ...session, ...fresh });
    assert.equal((await renewed.whoami()).device_id, session.device_id);
    if (!foreign) await refused(stranger().refreshToken(session.refresh_token), 401, "M_UNKNOWN_TOKEN");

    // The new refresh token works too; one that was never given does not.
    const fresher = await stranger().refreshToken(fresh.refresh_token);
    assert.equal((await clientOf({ ...session, ...fresher }).whoami()).user_id, alice.id);
    await refused(stranger().refreshToken("made-up"), 401, "M_UNKNOWN_TOKEN");
    await clientOf({ ...session, ...fresher }).logout();
    await refused(stranger().refreshToken(fresher.refresh_token), 401, "M_UNKNOWN_TOKEN");
});

test("devices are deleted with the password, one or several", async () => {
    const { alice } = await cast();
    const victims = [];
    for (const device_id of ["LOST", "STOLEN", "SOLD"]) victims.push(clientOf(await logIn(alice.id, { device_id })));

    const asked = await refused(alice.desk.deleteDevice("LOST"), 401);
    assert.ok(asked.data.session);
    assert.ok(asked.data.flows.some(({ stages }) => stages.includes("m.login.password")));
    const identifier = { type: "m.id.user", user: alice.id };
    const wrong = { type: "m.login.password", identifier, password: "wrong", session: asked.data.session };
    await refused(alice.desk.deleteDevice("LOST", wrong), 401, "M_FORBIDDEN");
    await victims[0].whoami();
    await alice.desk.deleteDevice("LOST", { ...wrong, password });
    await refused(victims[0].whoami(), 401, "M_UNKNOWN_TOKEN");
    await refused(alice.desk.getDevice("LOST"), 404, "M_NOT_FOUND");

    const asked2 = await refused(alice.desk.deleteMultipleDevices(["STOLEN", "SOLD"]), 401);
    await alice.desk.deleteMultipleDevices(["STOLEN", "SOLD"], { ...wrong, password, session: asked2.data.session });
    for (const victim of victims.slice(1)) await refused(victim.whoami(), 401, "M_UNKNOWN_TOKEN");
    assert.deepEqual(
        (await alice.desk.getDevices()).devices.map(({ device_id }) => device_id).sort(),
        [alice.desk.getDeviceId(), alice.phone.getDeviceId()].sort(),
    );
});

test("a new password logs the other devices out, and logging out everywhere ends all", async () => {
    const carol = await newcomer("carol");
    const userId = carol.getUserId();
    const other = clientOf(await logIn(userId));
    const asked = await refused(carol.setPassword(undefined, "a new long password 2"), 401);
    const auth = {
        type: "m.login.password",
        identifier: { type: "m.id.user", user: userId },
        password,
        session: asked.data.session,
    };
    await carol.setPassword(auth, "a new long password 2");
    await carol.whoami();
    await refused(other.whoami(), 401, "M_UNKNOWN_TOKEN");
    await refused(logIn(userId), 403, "M_FORBIDDEN");
    const third = clientOf(await logIn(userId, { password: "a new long password 2" }));
    await third.http.authedRequest("POST", "/logout/all");
    await refused(third.whoami(), 401, "M_UNKNOWN_TOKEN");
    await refused(carol.whoami(), 401, "M_UNKNOWN_TOKEN");
});

test("a deactivated account is gone, its name stays taken", async () => {
    const dave = await newcomer("dave");
    const asked = await refused(dave.deactivateAccount(), 401);
    await dave.deactivateAccount({
        type: "m.login.password",
        identifier: { type: "m.id.user", user: dave.getUserId() },
        password,
        session: asked.data.session,
    });
    await refused(dave.whoami(), 401, "M_UNKNOWN_TOKEN");
    await refused(logIn(dave.getUserId()), 403);
    await refused(stranger().registerRequest({ username: dave.getUserIdLocalpart(), password }), 400, "M_USER_IN_USE");
});

test("settings reach the other device: account data, tags, push rules, ignored users", async () => {
    const { alice, bob } = await cast();
    await alice.desk.http.authedRequest(
        "PUT", `/user/${encodeURIComponent(alice.id)}/account_data/org.example.setting`, undefined, { colour: "green" });
    await until("the setting on the phone", () =>
        alice.phone.getAccountData("org.example.setting")?.getContent().colour === "green");

    const { room_id: roomId } = await alice.desk.createRoom({});
    await until("the room on the phone", () => alice.phone.getRoom(roomId));
    await alice.desk.setRoomAccountData(roomId, "org.example.room", { folded: true });
    await alice.desk.setRoomTag(roomId, "m.favourite", { order: 0.25 });
    await until("room account data and tag on the phone", () => {
        const room = alice.phone.getRoom(roomId);
        return room.getAccountData("org.example.room")?.getContent().folded && room.tags["m.favourite"]?.order === 0.25;
    });
    assert.deepEqual((await alice.phone.getRoomTags(roomId)).tags, { "m.favourite": { order: 0.25 } });
    await alice.desk.deleteRoomTag(roomId, "m.favourite");
    await until("the tag is gone from the phone", () => !alice.phone.getRoom(roomId).tags["m.favourite"]);

    await alice.desk.addPushRule("global", "content", unique("cake"), { pattern: "cake", actions: ["notify"] });
    const rule = () => alice.phone.pushRules?.global.content.find(({ rule_id }) => rule_id === unique("cake"));
    await until("the push rule on the phone", () => rule()?.enabled);
    await alice.desk.setPushRuleEnabled("global", "content", unique("cake"), false);
    await until("the push rule is off on the phone", () => rule()?.enabled === false);
    await alice.desk.deletePushRule("global", "content", unique("cake"));
    await until("the push rule is gone from the phone", () => !rule());

    await alice.desk.setIgnoredUsers([bob.id]);
    await until("bob is ignored on the phone", () => alice.phone.isUserIgnored(bob.id));
    await alice.desk.setIgnoredUsers([]);
    await until("bob is heard again", () => !alice.phone.isUserIgnored(bob.id));
});

test("an expired or unknown token stops a sync, it does not hang it", async () => {
    const session = await register("gone");
    const client = clientOf(session);
    await start(client);
    let loggedOut = false;
    client.on("Session.logged_out", () => (loggedOut = true));
    await clientOf(session).logout(false);
    // The poll under way ends with its session; Synapse lets it run to its end.
    await until("the client learns that it is logged out", () => loggedOut, foreign ? 20_000 : 5_000);
});
