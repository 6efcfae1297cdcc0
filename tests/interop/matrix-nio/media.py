"""Files: there and back, thumbnails, ranges."""

import io
import struct
import zlib

from stage import FOREIGN, cast, ok, refused, shared_room, story


def picture(width, height):
    """A PNG of this size with a colour gradient."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(
        b"\0" + bytes(c for x in range(width) for c in (x * 255 // width, y * 255 // height, (x ^ y) & 255))
        for y in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def size_of(data):
    """Width and height, read from the head of a PNG or JPEG."""
    if data.startswith(b"\x89PNG"):
        return struct.unpack(">II", data[16:24])
    assert data.startswith(b"\xff\xd8"), "neither PNG nor JPEG"
    at = 2
    while True:
        marker, length = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        at += 2 + length


async def upload(one, data, content_type, filename):
    response, _ = await one.client.upload(lambda *_: io.BytesIO(data), content_type, filename, filesize=len(data))
    return (await ok(_value(response))).content_uri


async def _value(response):
    return response


@story
async def a_picture_goes_there_and_back_with_thumbnails_and_ranges():
    anna, ben = await cast()
    original = picture(500, 250)
    mxc = await upload(anna.desk, original, "image/png", "river bank.png")
    room_id = await shared_room(anna, ben)
    content = {"msgtype": "m.image", "body": "river bank.png", "url": mxc, "info": {"w": 500, "h": 250}}
    event_id = (await ok(anna.desk.client.room_send(room_id, "m.room.message", content))).event_id
    event = await ben.phone.sees(room_id, event_id)
    got = await ok(ben.phone.client.download(event.url))
    assert got.body == original and got.content_type == "image/png", got
    assert got.filename == "river bank.png", got.filename

    _, _, server, media_id = mxc.split("/")
    small = await ok(ben.desk.client.thumbnail(server, media_id, 96, 96))
    width, height = size_of(small.body)
    assert (width, height) in ((96, 48), (192, 96)) or width / height == 2, (width, height)
    from nio import ResizingMethod

    square = await ok(ben.desk.client.thumbnail(server, media_id, 96, 96, ResizingMethod.crop))
    assert size_of(square.body) == (96, 96)

    path = f"/_matrix/client/v1/media/download/{server}/{media_id}"
    status, headers, body = await ben.desk.raw("GET", path, headers={"Range": "bytes=10-29"})
    if not FOREIGN:
        assert status == 206 and body == original[10:30], (status, body)
        assert headers["Content-Range"] == f"bytes 10-29/{len(original)}"
        assert headers["Accept-Ranges"] == "bytes"
    await refused(ben.desk.client.download(f"mxc://{server}/nothinghere"), 404, "M_NOT_FOUND")


@story
async def any_file_is_kept_byte_for_byte():
    anna, ben = await cast()
    for size in (0, 1, 70_000, 3_000_000):
        data = bytes((i * 7 + size) & 255 for i in range(min(size, 70_000))) * max(1, size // 70_000)
        mxc = await upload(anna.desk, data, "application/octet-stream", "data.bin")
        got = await ok(ben.desk.client.download(mxc))
        assert got.body == data, f"{size} bytes came back as {len(got.body)}"
    config = await ok(ben.desk.client.content_repository_config())
    assert config.upload_size > 3_000_000
