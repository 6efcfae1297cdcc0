"""What is said: messages, redactions, reactions and state, both ways."""

from people import person, shared_room
from stage import scenario
from waiting import refused, until


@scenario
async def messages_both_ways(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    said = []
    for number in range(6):
        for speaker, hearer in ((anna, ben), (ben, anna)):
            text = f"{number} from {speaker.id}"
            event_id = await speaker.says(room, text)
            await speaker.sees(room, event_id)
            event = await hearer.sees(room, event_id)
            assert (event["sender"], event["content"]["body"]) == (speaker.id, text), event
            said.append(text)
    # Each was heard before the next was said: nobody can have them in another order, or twice.
    for one in (anna, ben):
        assert one.texts(room) == said, one.texts(room)


@scenario
async def many_messages_at_once(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    texts = {one: [f"{number} from {one.id}" for number in range(20)] for one in (anna, ben)}
    for number in range(20):
        for one in (anna, ben):
            await one.says(room, texts[one][number])
    for one, other in ((anna, ben), (ben, anna)):
        await until(lambda: f"{one.id} hears all of {other.id}: {one.texts(room)}", lambda: set(texts[other]) <= set(one.texts(room)))
        heard = [text for text in one.texts(room) if text in texts[other]]
        assert heard == texts[other], heard


@scenario
async def odd_contents(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    content = {
        "msgtype": "m.text",
        "body": "\u0000 \u001f \u2028 ü 語 🦀 \"\\/ <b>",
        "😀 key": [1, -1, 9007199254740991, -9007199254740991, True, None, "", {}, []],
        "nested": {"a": {"b": {"c": ["d", {"e": "f"}]}}},
    }
    for speaker, hearer in ((anna, ben), (ben, anna)):
        event = await hearer.sees(room, await speaker.send(room, "org.example.odd", content))
        assert event["content"] == content, event


@scenario
async def redactions_both_ways(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    for speaker, hearer in ((anna, ben), (ben, anna)):
        said = await speaker.says(room, "not meant so")
        await hearer.sees(room, said)
        redaction = await speaker.redact(room, said, "sorry")
        await hearer.sees(room, redaction)
        for one in (speaker, hearer):
            await until(f"what {speaker.id} took back is gone for {one.id}", lambda: _is_gone(one, room, said))
            event = await one.event(room, said)
            assert event["unsigned"]["redacted_because"]["event_id"] == redaction, event


async def _is_gone(one, room, event_id):
    return (await one.event(room, event_id))["content"] == {}


@scenario
async def a_moderator_redacts(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    carl = await person(host, "carl")
    room = await shared_room(anna, carl, ben)
    said = await carl.says(room, "unheard of")
    await ben.sees(room, said)
    await ben.sees(room, await anna.gives_power(room, ben, 50))
    await ben.redact(room, said)
    for one in (anna, ben, carl):
        await until(f"the redacted is gone for {one.id}", lambda: _is_gone(one, room, said))


@scenario
async def reactions_both_ways(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    for speaker, hearer in ((anna, ben), (ben, anna)):
        said = await speaker.says(room, "who is in?")
        await hearer.sees(room, said)
        relation = {"rel_type": "m.annotation", "event_id": said, "key": "👍"}
        reaction = await hearer.send(room, "m.reaction", {"m.relates_to": relation})
        event = await speaker.sees(room, reaction)
        assert event["content"]["m.relates_to"] == relation, event
        related = await speaker.call("GET", "rooms", room, "relations", said, "m.annotation", version="v1")
        assert [event["event_id"] for event in related["chunk"]] == [reaction], related


@scenario
async def edits_replace(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    for speaker, hearer in ((anna, ben), (ben, anna)):
        said = await speaker.says(room, "helo")
        new = {"msgtype": "m.text", "body": "hello"}
        relation = {"rel_type": "m.replace", "event_id": said}
        edit = await speaker.send(room, "m.room.message", {**new, "m.new_content": new, "m.relates_to": relation})
        await hearer.sees(room, edit)
        event = await hearer.event(room, said)
        assert event["unsigned"]["m.relations"]["m.replace"]["event_id"] == edit, event


@scenario
async def state_both_ways(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    room = await shared_room(anna, ben)
    await refused(ben.sets(room, "m.room.topic", {"topic": "mine"}), "M_FORBIDDEN")
    await ben.sees(room, await anna.gives_power(room, ben, 50))
    for speaker, hearer in ((anna, ben), (ben, anna)):
        topic = {"topic": f"of {speaker.id}"}
        await hearer.sees(room, await speaker.sets(room, "m.room.topic", topic))
        assert topic.items() <= (await hearer.state(room, "m.room.topic")).items()
        await hearer.sees(room, await speaker.sets(room, "org.example.thing", {"by": speaker.id}, "key/with ü"))
    assert await anna.full_state(room) == await ben.full_state(room)
