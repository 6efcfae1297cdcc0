// The stage for the stories: where the server is, who plays, and how to wait for what must come.
//
// * Every name carries this run's tag, so that a run may follow another on the same server.
// * Waiting is always for something seen through a client's own /sync, never for time to pass.

import "./quiet.js";
import { randomBytes } from "node:crypto";
import assert from "node:assert/strict";
import { createClient, ClientEvent, PendingEventOrdering, SyncState } from "matrix-js-sdk";

export const baseUrl = process.env.INTEROP_URL ?? "http://127.0.0.1:8008";
/** Set where the server is not Hearth: what only Hearth promises is then not asked for. */
export const foreign = Boolean(process.env.INTEROP_FOREIGN);
export const password = "a long enough password 1";
const tag = randomBytes(4).toString("hex");

/** `name`, not used by an earlier run. */
export const unique = (name) => `${name}-${tag}`;

const started = [];

/** A client that has no session. */
export const stranger = () => createClient({ baseUrl });

/** A user who registered through `m.login.dummy`, as a client asks: once to learn the flows, once with the session. */
export async function register(localpart, extra = {}) {
    const request = { username: unique(localpart), password, ...extra };
    const refusal = await refused(stranger().registerRequest(request), 401);
    assert.ok(
        refusal.data.flows.some(({ stages }) => stages.length === 1 && stages[0] === "m.login.dummy"),
        `no dummy flow in ${JSON.stringify(refusal.data)}`,
    );
    const auth = { type: "m.login.dummy", session: refusal.data.session };
    return stranger().registerRequest({ ...request, auth });
}

export const logIn = (userId, extra = {}) =>
    stranger().loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user: userId },
        password,
        ...extra,
    });

/** The client of a session, not syncing yet. */
export const clientOf = ({ user_id: userId, access_token: accessToken, device_id: deviceId }) =>
    createClient({ baseUrl, userId, accessToken, deviceId, timelineSupport: true });

/** Starts to sync and waits until the first answer is in. */
export async function start(client, options = {}) {
    const prepared = new Promise((resolve, reject) => {
        client.on(ClientEvent.Sync, (state, _, data) => {
            if (state === SyncState.Prepared) resolve();
            if (state === SyncState.Error) reject(data?.error ?? new Error("the sync failed"));
        });
    });
    started.push(client);
    await client.startClient({
        initialSyncLimit: 20,
        threadSupport: true,
        pollTimeout: 10_000,
        pendingEventOrdering: PendingEventOrdering.Detached,
        ...options,
    });
    await within(15_000, prepared, "the first sync");
    return client;
}

/** One more device of a user, syncing. */
export const device = async (userId, options = {}) => start(clientOf(await logIn(userId)), options);

/** A new user on one syncing device. */
export async function newcomer(localpart) {
    return start(clientOf(await register(localpart)));
}

/** A new user on a desk and a phone, both syncing. */
async function player(localpart) {
    const desk = await newcomer(localpart);
    return { id: desk.getUserId(), desk, phone: await device(desk.getUserId()) };
}

let playing;
/** The two who play in most stories, with two devices each. */
export function cast() {
    playing ??= Promise.all([player("alice"), player("bob")]).then(([alice, bob]) => ({ alice, bob }));
    return playing;
}

export function curtain() {
    for (const client of started) client.stopClient();
}

/** Runs `look` until it gives something true; what it threw last says why it never did. */
export async function until(what, look, timeoutMs = 10_000) {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
        let last;
        try {
            const found = await look();
            if (found) return found;
        } catch (error) {
            last = error;
        }
        if (Date.now() > deadline) throw new Error(`waited in vain: ${what}`, { cause: last });
        await new Promise((resolve) => setTimeout(resolve, 15));
    }
}

export async function within(timeoutMs, promise, what) {
    let timer;
    const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(`waited in vain: ${what}`)), timeoutMs);
    });
    try {
        return await Promise.race([promise, late]);
    } finally {
        clearTimeout(timer);
    }
}

/** The error of a request that must be refused with this status (and errcode, or one of several). */
export async function refused(promise, status, errcode) {
    let answer;
    try {
        answer = await promise;
    } catch (error) {
        assert.equal(error.httpStatus, status, `${error.httpStatus} ${error.message}`);
        if (errcode) assert.ok([errcode].flat().includes(error.errcode), `${error.errcode}, not ${errcode}`);
        return error;
    }
    assert.fail(`was not refused: ${JSON.stringify(answer)}`);
}

/** A request that the SDK has no function for. */
export async function raw(client, method, path, { body, headers } = {}) {
    const json = body !== undefined && !(body instanceof Uint8Array);
    const answer = await fetch(baseUrl + path, {
        method,
        headers: {
            ...(client && { authorization: `Bearer ${client.getAccessToken()}` }),
            ...(json && { "content-type": "application/json" }),
            ...headers,
        },
        body: json ? JSON.stringify(body) : body,
    });
    return { status: answer.status, headers: answer.headers, bytes: Buffer.from(await answer.arrayBuffer()) };
}

export const membership = (client, roomId) => client.getRoom(roomId)?.getMyMembership();

/** Waits until all these clients have this membership of their own in the room. */
export async function have(clients, roomId, wanted) {
    for (const client of clients) {
        await until(
            `${client.getUserId()} on ${client.getDeviceId()} has "${wanted}" in ${roomId}, not "${membership(client, roomId)}"`,
            () => membership(client, roomId) === wanted,
        );
    }
}

/** A room of alice's with bob in it, seen by all four devices. */
export async function sharedRoom({ alice, bob }, options = {}) {
    const { room_id: roomId } = await alice.desk.createRoom({ preset: "private_chat", invite: [bob.id], ...options });
    await have([bob.desk, bob.phone], roomId, "invite");
    await bob.desk.joinRoom(roomId);
    await have([alice.desk, alice.phone, bob.desk, bob.phone], roomId, "join");
    await until("alice sees bob in the room", () =>
        [alice.desk, alice.phone].every(
            (client) => client.getRoom(roomId).getMember(bob.id)?.membership === "join",
        ),
    );
    return roomId;
}

/** The event in what the client holds of the room: its timeline or its threads. */
export const held = (client, roomId, eventId) => client.getRoom(roomId)?.findEventById(eventId);

/** Waits for an event to reach a client through /sync. */
export const sees = (client, roomId, eventId) =>
    until(`${client.getUserId()} on ${client.getDeviceId()} sees ${eventId}`, () => {
        const event = held(client, roomId, eventId);
        return event && !event.isSending() && event;
    });

/** Gives up what could not be sent: the SDK sends nothing after it otherwise. */
export function dropUnsent(client, roomId) {
    for (const event of client.getRoom(roomId).getPendingEvents()) client.cancelPendingEvent(event);
}

/** The text messages of a client's live timeline, oldest first. */
export const texts = (client, roomId) =>
    client
        .getRoom(roomId)
        .getLiveTimeline()
        .getEvents()
        .filter((event) => event.getType() === "m.room.message")
        .map((event) => event.getContent().body);
