"""The two servers that play, and the links through which they reach each other.

* A server is a directory with two scripts, KIND-up.sh and KIND-down.sh: nothing here knows more of its kind.
* A server's name holds the port of a link, not its own: cutting the link takes it away from the others, while its own
  users still reach it. The link hands on bytes; TLS goes from server to server.
"""

import asyncio
import os
import shutil
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = {"hearth": HERE.parent, "synapse": HERE}


class Link:
    """A port that leads to another one, until it is cut."""

    def __init__(self, port, target):
        self.port = port
        self.target = target
        self._listener = None
        self._writers = set()

    async def mend(self):
        if self._listener is None:
            self._listener = await asyncio.start_server(self._lead, "127.0.0.1", self.port)

    async def cut(self):
        """Ends what runs through the link; new connections are refused."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def _lead(self, reader, writer):
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            self._writers.discard(writer)
            writer.transport.abort()
            return
        self._writers.add(far_writer)
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


class Server:
    """A homeserver in a process of its own."""

    def __init__(self, kind, label, directory, host, ports):
        client_port, federation_port, link_port = ports
        self.kind = kind
        self.label = label
        self.directory = Path(directory)
        self.url = f"http://127.0.0.1:{client_port}"
        self.name = f"{host}:{link_port}"
        self.log = self.directory / f"{kind}.log"
        self.link = Link(link_port, federation_port)
        self._arguments = [str(directory), str(client_port), str(federation_port), self.name]

    def __str__(self):
        return self.label

    async def up(self):
        await self._run("up", *self._arguments)

    async def down(self):
        await self._run("down", self._arguments[0])

    async def _run(self, what, *arguments):
        script = SCRIPTS[self.kind] / f"{self.kind}-{what}.sh"
        environment = {**os.environ, "HSB_CA_DIR": str(self.directory.parent / "ca")}
        # What the server says goes to files: a pipe would stay open as long as the server runs.
        said = self.directory.parent / f"{self.label}-{what}.log"
        with open(said, "w", encoding="utf-8") as output:
            process = await asyncio.create_subprocess_exec(
                script, *arguments, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
            )
            status = await process.wait()
        if status != 0:
            raise RuntimeError(f"{script.name} of {self.label} failed: {said.read_text(encoding='utf-8').strip()}")


async def start(kinds, directory, first_port):
    """Two fresh servers of these kinds. One is named by an address, the other by a name, both with a port."""
    directory = Path(directory).resolve()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    servers = []
    for index, (kind, host) in enumerate(zip(kinds, ("localhost", "127.0.0.1"), strict=True)):
        label = kind if kinds[0] != kinds[1] else f"{kind}-{index + 1}"
        ports = range(first_port + 3 * index, first_port + 3 * index + 3)
        servers.append(Server(kind, label, directory / label, host, ports))
    for server in servers:
        await server.link.mend()
    await asyncio.gather(*(server.up() for server in servers))
    return servers
