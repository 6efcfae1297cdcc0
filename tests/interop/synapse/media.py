"""Files: fetched from the other server whole and as thumbnails."""

import random
import struct
import zlib

from people import person, unique
from stage import scenario
from waiting import refused


def png(width, height):
    """A picture of stripes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"".join(bytes([x * 5 % 256, y * 3 % 256, 128]) for x in range(width)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def size(picture):
    """Width and height of a PNG or JPEG."""
    if picture.startswith(b"\x89PNG"):
        return struct.unpack(">II", picture[16:24])
    assert picture.startswith(b"\xff\xd8"), picture[:16]
    at = 2
    while True:
        marker, length = picture[at + 1], struct.unpack(">H", picture[at + 2 : at + 4])[0]
        if 0xC0 <= marker <= 0xC3:
            height, width = struct.unpack(">HH", picture[at + 5 : at + 9])
            return width, height
        at += 2 + length


async def upload(one, data, content_type, name):
    _, answer = await one.raw("POST", "media/v3", "upload", body=data, content_type=content_type, filename=name)
    uri = answer.decode().split('"')[3]
    assert uri.startswith(f"mxc://{one.server.name}/"), answer
    return uri.removeprefix("mxc://").split("/")


@scenario
async def files_of_the_other_server(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    data = random.randbytes(300_000)
    file = await upload(anna, data, "application/pdf", "a file.pdf")
    # The second time from what the guest kept.
    for _ in range(2):
        headers, content = await ben.raw("GET", "client/v1", "media", "download", *file)
        assert content == data, f"{len(content)} bytes"
        assert headers["Content-Type"].startswith("application/pdf"), headers
        assert "a%20file.pdf" in headers["Content-Disposition"] or "a file.pdf" in headers["Content-Disposition"], headers
    await refused(ben.raw("GET", "client/v1", "media", "download", host.name, unique("nothing")), 404)


@scenario
async def thumbnails_of_the_other_server(host, guest):
    anna, ben = await person(host, "anna"), await person(guest, "ben")
    picture = await upload(anna, png(640, 400), "image/png", "stripes.png")
    for method, asked, expected in (("crop", (32, 32), (32, 32)), ("scale", (320, 240), (320, 200))):
        query = {"width": asked[0], "height": asked[1], "method": method}
        headers, thumbnail = await ben.raw("GET", "client/v1", "media", "thumbnail", *picture, **query)
        assert headers["Content-Type"] in ("image/png", "image/jpeg"), headers
        assert size(thumbnail) == expected, (method, size(thumbnail))
    _, whole = await ben.raw("GET", "client/v1", "media", "download", *picture)
    assert size(whole) == (640, 400)
