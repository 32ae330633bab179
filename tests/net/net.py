#!/usr/bin/env python3
"""The network of a Debian system (tests/disk/make-image): slirp, tap, passt, and two VMs on a UNIX socket, each really used.
Prints TAP.

  net.py --skep PROGRAM --cache DIRECTORY [--slow N] [--suite quick|long | TEST ...]

All of it happens in a network namespace of its own with a DNS server, an HTTP server and an iperf3 of its own, so that
nothing depends on the host's network and nothing of it is touched. Takes root, as building the image does.
"""

import hashlib
import http.server
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / 'disk')]

import child  # noqa: E402
from disk import Failure, Guest, arguments, image, run_tests  # noqa: E402

TAP_HOST, TAP_GUEST = '10.77.0.1', '10.77.0.2'
UPLINK, GATEWAY = '192.0.2.1', '192.0.2.9'
NAME = 'host.skep.test'
IPERF_PORT = 5201
CHUNK = 1 << 20


def prepare():
    """The namespace: lo, a tap, an uplink with a default route for passt to copy, a resolv.conf that names us."""
    resolv = tempfile.NamedTemporaryFile('w', prefix='skep-resolv-', delete=False)
    resolv.write('nameserver 127.0.0.1\n')
    resolv.close()
    os.chmod(resolv.name, 0o644)
    target = os.path.realpath('/etc/resolv.conf')
    for command in ('ip link set lo up',
                    'ip tuntap add dev tap0 mode tap', f'ip addr add {TAP_HOST}/24 dev tap0', 'ip link set tap0 up',
                    'ip link add up0 type veth peer name up1', f'ip addr add {UPLINK}/24 dev up0',
                    'ip link set up0 up', 'ip link set up1 up', f'ip route add default via {GATEWAY}',
                    f'mount --bind {resolv.name} {target}'):
        done = subprocess.run(command.split(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0:
            raise Failure(f'{command}: {done.stdout.decode().strip()}')
    os.unlink(resolv.name)


def chunk(number):
    return random.Random(number).randbytes(CHUNK)


class Server(http.server.BaseHTTPRequestHandler):
    """GET /N: N MiB that never repeat. PUT: its checksum is in server.got."""
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        count = int(self.path[1:])
        self.send_response(200)
        self.send_header('Content-Length', str(count * CHUNK))
        self.end_headers()
        for number in range(count):
            self.wfile.write(chunk(number))

    def do_PUT(self):
        left, digest = int(self.headers['Content-Length']), hashlib.md5()
        if self.headers.get('Expect') == '100-continue':
            self.send_response_only(100)
            self.end_headers()
        while left > 0:
            part = self.rfile.read(min(left, CHUNK))
            if not part:
                return
            digest.update(part)
            left -= len(part)
        self.server.got = digest.hexdigest()
        self.send_response(201)
        self.send_header('Content-Length', '0')
        self.end_headers()

    handle_expect_100 = lambda self: True  # noqa: E731
    log_message = lambda *_: None  # noqa: E731


class Server6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


def serve_http(where=('127.0.0.1', 0), kind=http.server.ThreadingHTTPServer):
    server = kind(where, Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def serve_dns():
    """Answers every question of type A by 10.0.2.2 if it is for NAME, else by NXDOMAIN; other types: no such record."""
    port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    port.bind(('127.0.0.1', 53))

    def loop():
        while True:
            query, client = port.recvfrom(4096)
            end = 12
            labels = []
            while query[end]:
                labels.append(query[end + 1:end + 1 + query[end]].decode())
                end += 1 + query[end]
            kind = struct.unpack('>H', query[end + 1:end + 3])[0]
            known = '.'.join(labels).lower() == NAME
            answer = b'\xc0\x0c' + struct.pack('>HHIH', 1, 1, 60, 4) + socket.inet_aton('10.0.2.2')
            hit = known and kind == 1
            port.sendto(query[:2] + struct.pack('>HHHHH', 0x8180 if known else 0x8183, 1, int(hit), 0, 0) +
                        query[12:end + 5] + (answer if hit else b''), client)

    threading.Thread(target=loop, daemon=True).start()


class Iperf:
    """iperf3 on the host's side; each test connects once."""

    def __enter__(self):
        self.process = child.popen(['iperf3', '-s', '-p', str(IPERF_PORT)], stdout=subprocess.DEVNULL)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def iperf(guest, where, options=''):
    """Moves data for two seconds; Mbit/s at the receiver."""
    got = json.loads(guest.ssh(f'iperf3 -J -t 2 -c {where} -p {IPERF_PORT} {options}', 60))
    rate = got.get('end', {}).get('sum_received', {}).get('bits_per_second', 0) / 1e6
    if 'error' in got or rate < 1:
        raise Failure(f'iperf3 {options} to {where}: {got.get("error")}, {rate:.3f} Mbit/s')
    return rate


def note(text):
    print(f'# {text}', flush=True)


def both_ways(guest, where, what):
    note(f'{what}: {iperf(guest, where):.0f} Mbit/s out, {iperf(guest, where, "-R"):.0f} in')


def check_equal(what, got, wanted):
    if got != wanted:
        raise Failure(f'{what}: {got!r} instead of {wanted!r}')


def slirp(guest):
    """IPv4, IPv6, DNS, TCP both ways, on the NIC that is there in every test."""
    four, six = serve_http(), serve_http(('::1', 0), Server6)
    wanted = hashlib.md5(chunk(0)).hexdigest()
    for url in (f'10.0.2.2:{four.server_address[1]}', f'{NAME}:{four.server_address[1]}', f'[fec0::2]:{six.server_address[1]}'):
        check_equal(url, guest.ssh(f"curl -sSf -m 60 'http://{url}/1' | md5sum").split()[0], wanted)
    text = guest.ssh('getent hosts nobody.skep.test', check=False)
    check_equal('a name that does not exist', text.strip(), '')
    guest.ssh('ping -c 2 -W 5 10.0.2.2 && ping -c 2 -W 5 fec0::2')
    both_ways(guest, '10.0.2.2', 'slirp')
    for server in (four, six):
        server.shutdown()


def tap(guest):
    """The guest and the host's stack on one wire; ssh goes that way too."""
    guest.ssh(f'ip addr add {TAP_GUEST}/24 dev enp0s6')
    guest.ssh(f'ping -c 3 -i 0.2 -s 1400 -W 5 {TAP_HOST}')
    both_ways(guest, TAP_HOST, 'tap')


class Passt:
    def __init__(self, work):
        work.chmod(0o777)  # it gives up root
        self.path = work / 'passt'
        self.log = (work / 'passt.txt').open('wb')

    def __enter__(self):
        self.process = subprocess.Popen(['passt', '-f', '-s', str(self.path)], stdout=self.log, stderr=subprocess.STDOUT)
        end = time.monotonic() + 20
        while not self.path.exists():
            if self.process.poll() is not None or time.monotonic() > end:
                raise Failure('passt does not start')
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()


def passt(guest):
    """An address by passt's DHCP, and the host behind its gateway."""
    server = serve_http()
    end = time.monotonic() + 30 * guest.args.slow
    while UPLINK not in guest.ssh('ip -4 addr show dev enp0s7'):
        if time.monotonic() > end:
            raise Failure('no address by DHCP from passt')
        time.sleep(0.5)
    url = f'http://{GATEWAY}:{server.server_address[1]}'
    guest.ssh(f'curl -sSf -m 60 --interface enp0s7 {url}/8 -o /dev/shm/file')
    guest.ssh(f'curl -sSf -m 60 --interface enp0s7 -T /dev/shm/file {url}/')
    digest = hashlib.md5()
    for number in range(8):
        digest.update(chunk(number))
    check_equal('8 MiB through passt and back', server.got, digest.hexdigest())
    server.shutdown()


def slirp_dies(guest):
    """The link of its NIC goes down, skep says so and lives; the other NICs do not notice."""
    children = subprocess.run(['pgrep', '-P', str(guest.process.pid), 'skep-slirp'], stdout=subprocess.PIPE, check=True)
    os.kill(int(children.stdout), signal.SIGKILL)
    guest.host, guest.port = TAP_GUEST, 22
    end = time.monotonic() + 20 * guest.args.slow
    while guest.ssh('cat /sys/class/net/enp0s4/carrier').strip() != '0':
        if time.monotonic() > end:
            raise Failure('the link of the NIC without slirp is up')
        time.sleep(0.5)
    if not re.search(r'slirp: its process was ended by signal 9.*link is down', guest.stderr()):
        raise Failure(f'skep says nothing about the process that is gone: {guest.stderr()}')


def net(args, work):
    """One guest on slirp, tap and passt."""
    serve_dns()
    with Passt(work) as peer, Iperf(), \
            Guest(args, work, args.image / 'disk.img', ',snapshot=on', cpus=2, name='net',
                  more=['-s', '6,virtio-net,tap=tap0', '-s', f'7,virtio-net,unix:{peer.path}']) as guest:
        guest.wait()
        slirp(guest)
        tap(guest)
        passt(guest)
        slirp_dies(guest)
        guest.end()


def pair(args, work):
    """Two VMs on one socket: ping, iperf3 both ways; one goes, the other's link is down; it comes back, and so does the link."""
    wire = work / 'wire'
    first, second = work / 'first', work / 'second'
    first.mkdir()
    second.mkdir()

    def vm(where, options):
        return Guest(args, where, args.image / 'disk.img', ',snapshot=on', name=where.name,
                     more=['-s', f'6,virtio-net,unix:{wire}{options}'])

    with vm(first, ',listen') as one:
        end = time.monotonic() + 20 * args.slow
        while not wire.exists() and time.monotonic() < end:
            time.sleep(0.05)
        with vm(second, '') as two:
            one.wait()
            two.wait()
            one.ssh('ip addr add 10.88.0.1/24 dev enp0s6')
            two.ssh('ip addr add 10.88.0.2/24 dev enp0s6')
            one.ssh('ping -c 3 -W 10 10.88.0.2')
            two.ssh('ping -c 3 -i 0.2 -s 1400 10.88.0.1')
            one.ssh(f'iperf3 -s -D -p {IPERF_PORT}')
            both_ways(two, '10.88.0.1', 'pair')
            two.ssh(f'iperf3 -s -D -p {IPERF_PORT}')
            both_ways(one, '10.88.0.2', 'pair, from the other side')
            two.end()
        check_equal('the link without a peer', one.ssh('cat /sys/class/net/enp0s6/carrier').strip(), '0')
        with vm(second, '') as two:
            two.wait()
            two.ssh('ip addr add 10.88.0.2/24 dev enp0s6')
            one.ssh('ip addr replace 10.88.0.1/24 dev enp0s6')
            two.ssh('ping -c 3 -W 10 10.88.0.1')
            two.end()
        one.end()


def gigabyte(args, work):
    """1 GiB to the guest's disk and back."""
    spare = work / 'spare.img'
    with spare.open('wb') as f:
        f.truncate(1536 << 20)
    server = serve_http()
    url = f'http://10.0.2.2:{server.server_address[1]}'
    digest = hashlib.md5()
    for number in range(1024):
        digest.update(chunk(number))
    with Guest(args, work, args.image / 'disk.img', ',snapshot=on', cpus=2, name='gigabyte',
               more=['-s', f'6,virtio-blk,{spare}']) as guest:
        guest.wait()
        guest.ssh('mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt', 120)
        began = time.monotonic()
        guest.ssh(f'curl -sSf {url}/1024 -o /mnt/file', 1200)
        middle = time.monotonic()
        guest.ssh('sync; echo 3 >/proc/sys/vm/drop_caches', 300)
        check_equal('1 GiB received', guest.ssh('md5sum </mnt/file', 600).split()[0], digest.hexdigest())
        again = time.monotonic()
        guest.ssh(f'curl -sSf -T /mnt/file {url}/', 1200)
        note(f'1 GiB in {middle - began:.1f} s, out in {time.monotonic() - again:.1f} s')
        check_equal('1 GiB sent back', server.got, digest.hexdigest())
        guest.end()
    server.shutdown()


TESTS = {
    'net': (net, 'quick'),
    'pair': (pair, 'long'),
    'gigabyte': (gigabyte, 'long'),
}


def main():
    if os.geteuid() != 0:
        return run_tests(arguments(), TESTS, 'a network namespace takes root')
    missing = [program for program in ('passt', 'iperf3', 'ip', 'unshare') if not shutil.which(program)]
    if missing:
        return run_tests(arguments(), TESTS, 'no ' + ', '.join(missing))
    if os.environ.get('SKEP_TEST_NETNS') is None:
        # The image is built out here, where the packages are.
        args = arguments()
        image(args.cache)
        os.environ['SKEP_TEST_NETNS'] = '1'
        os.execvp('unshare', ['unshare', '--net', '--mount', sys.executable, *sys.argv])
    try:
        prepare()
    except Failure as failure:
        return run_tests(arguments(), TESTS, f'no network to test with: {failure}')
    return run_tests(arguments(), TESTS)


if __name__ == '__main__':
    sys.exit(main())
