"""Echo server, run inside a namespace: echo.py NAME PORT...

On each port, TCP and UDP: every line or datagram is answered by "<peer> <name> <what came>".
"""

import asyncio
import socket
import struct
import sys

# From linux/in.h; the socket module has it from Python 3.14 only.
_IP_PKTINFO = 8
# From asm-generic/socket.h: like SO_RCVBUF, beyond net.core.rmem_max.
_SO_RCVBUFFORCE = 33


def _answer_datagram(receiver: socket.socket, name: str) -> None:
    """Answer one datagram from the address that it was sent to.

    A host with several addresses would otherwise answer from its first one, and the sender
    would take that for silence.
    """
    data, ancillary, _, peer = receiver.recvmsg(65536, socket.CMSG_SPACE(12))
    (destination,) = (
        struct.unpack("=I4s4s", value)[2]
        for level, kind, value in ancillary
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO)
    )
    source = struct.pack("=I4s4s", 0, destination, bytes(4))
    control = [(socket.IPPROTO_IP, _IP_PKTINFO, source)]
    try:
        receiver.sendmsg([f"{peer[0]} {name} ".encode() + data], control, 0, peer)
    except OSError as error:
        print(f"answer to {peer}: {error}", file=sys.stderr, flush=True)


async def _serve(name: str, ports: list[int]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")[0]
        try:
            while line := await reader.readline():
                writer.write(f"{peer} {name} ".encode() + line)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    loop = asyncio.get_running_loop()
    for port in ports:
        await asyncio.start_server(answer, "0.0.0.0", port)
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        # A server that is kept waiting for a processor drops nothing meanwhile.
        datagrams.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        datagrams.setblocking(False)
        datagrams.bind(("0.0.0.0", port))
        loop.add_reader(datagrams, _answer_datagram, datagrams, name)
    print("ready", flush=True)
    await asyncio.Event().wait()


asyncio.run(_serve(sys.argv[1], [int(port) for port in sys.argv[2:]]))
