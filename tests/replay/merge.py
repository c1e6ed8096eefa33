"""Merges captures of one device each (pcap, by tcpdump) into one pcapng, in the order of time, its interfaces named.

merge.py OUT MOST IN.pcap...: the interface bears the name of its file; of the packets the first MOST are kept.
Formats: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng.
"""

import pathlib
import struct
import sys


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def packets(file: pathlib.Path, interface: int):
    """Each packet: microseconds, interface, length on the wire, bytes. The link type is returned first."""
    data = file.read_bytes()
    magic, snap, link = struct.unpack("<I12xII", data[:24])
    assert magic == 0xA1B2C3D4, f"{file}: not a pcap of this machine's order, in microseconds"
    yield link
    at = 24
    while at < len(data):
        seconds, micros, kept, length = struct.unpack_from("<IIII", data, at)
        yield seconds * 1_000_000 + micros, interface, length, data[at + 16 : at + 16 + kept]
        at += 16 + kept


out, most, *files = sys.argv[1:]
blocks = [block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))]
merged = []
for number, file in enumerate(map(pathlib.Path, files)):
    link, *rest = packets(file, number)
    merged += rest
    name = file.stem.encode()
    blocks.append(block(1, struct.pack("<HHIHH", link, 0, 262144, 2, len(name)) + padded(name) + bytes(4)))
for micros, interface, length, data in sorted(merged, key=lambda packet: packet[0])[: int(most)]:
    head = struct.pack("<IIIII", interface, micros >> 32, micros & 0xFFFFFFFF, len(data), length)
    blocks.append(block(6, head + padded(data)))
pathlib.Path(out).write_bytes(b"".join(blocks))
