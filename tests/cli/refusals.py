#!/usr/bin/env python3
"""Bad input gets one clear line that names the option, what is wrong and what is right; status 4; nothing
started."""

import fcntl
import os
import re
import socket

import cli

# Arguments, and what the message has to say. What takes an engine to find is in control.py.
KERNEL = cli.KERNEL
CASES = [
    # unknown options and devices
    (['-z', 'vm0'], ['-z', 'no such option']),
    (['--bogus', 'vm0'], ['--bogus', 'no such option']),
    (['-s', '3,nosuch', 'vm0'], ['-s 3,nosuch', "'nosuch'", 'hostbridge', 'lpc']),
    (['-s', '4,virtio-scsi,disk.img', 'vm0'], ['-s 4,virtio-scsi', 'hostbridge']),
    (['-l', 'com9,stdio', 'vm0'], ['-l com9', 'com1', 'bootrom']),
    (['-l', 'tpm,passthru', 'vm0'], ['-l tpm', 'com1']),
    (['-E', 'xen', KERNEL, 'vm0'], ['-E xen', 'kvm', 'soft']),
    # slots
    (['-s', '3,hostbridge', '-s', '3,lpc', 'vm0'], ['-s 3,lpc', '0:3:0', 'hostbridge']),
    (['-s', '32,lpc', 'vm0'], ['-s 32,lpc', 'slot', '0-31']),
    (['-s', '1:2:9,lpc', 'vm0'], ['-s 1:2:9,lpc', 'function', '0-7']),
    (['-s', '300:2:0,lpc', 'vm0'], ['-s 300:2:0,lpc', 'bus', '0-255']),
    (['-s', 'lpc', 'vm0'], ['-s lpc', 'slot']),
    (['-s', '3', 'vm0'], ['-s 3', 'no device named']),
    # memory
    (['-m', '0', KERNEL, 'vm0'], ['-m 0']),
    (['-m', 'much', KERNEL, 'vm0'], ['-m much']),
    (['-m', '12Q', KERNEL, 'vm0'], ['-m 12Q']),
    (['-m', '-5', KERNEL, 'vm0'], ['-m -5']),
    (['-m', '5000T', KERNEL, 'vm0'], ['-m 5000T']),
    (['-m', '2T', KERNEL, 'vm0'], ['-m 2T', '1024G']),
    (['-m', '512K', KERNEL, 'vm0'], ['-m 512K', '1M']),
    (['-o', 'memory.size=none', KERNEL, 'vm0'], ['none']),
    # vCPUs
    (['-c', '0', 'vm0'], ['-c 0', '1', '64']),
    (['-c', '65', 'vm0'], ['-c 65', '64']),
    (['-c', '4000000000', 'vm0'], ['-c 4000000000', '64']),
    (['-c', '2,sockets=2,cores=2', 'vm0'], ['-c', 'product']),
    (['-c', 'cpus=2,dies=1', 'vm0'], ['-c', "'dies'", 'sockets']),
    (['-p', '0:x', 'vm0'], ['-p 0:x', 'vcpu:hostcpu']),
    # UUID, numbers, texts
    (['-U', 'none', 'vm0'], ['-U none', 'UUID', '8-4-4-4-12']),
    (['-g', '70000', 'vm0'], ['-g 70000', '65535']),
    (['-o', 'reboot=perhaps', KERNEL, 'vm0'], ['reboot=perhaps', 'restart']),
    (['-o', 'nothing', 'vm0'], ['-o nothing']),
    (['-o', 'a=%(b)', 'vm0'], ['a', 'b']),
    # files
    (['-k', '/nonexistent', 'vm0'], ['-k /nonexistent', 'No such file']),
    (['--kernel', '/nonexistent', 'vm0'], ['--kernel', '/nonexistent', 'No such file']),
    (['--kernel', '/', 'vm0'], ['--kernel', '/', 'directory']),
    ([KERNEL, '--initrd', '/nonexistent', 'vm0'], ['--initrd', '/nonexistent', 'No such file']),
    (['-l', 'bootrom,/nonexistent', 'vm0'], ['-l bootrom', '/nonexistent', 'No such file']),
    # the line as a whole
    ([], ['vmname']),
    (['vm0'], ['boot', '--kernel', '-l bootrom']),
    (['vm0', 'vm1'], ["'vm1'", 'name']),
    (['a/b'], ["'a/b'", 'letters']),
    (['-m'], ['-m', 'argument']),
    (['-l', 'bootrom,x', KERNEL, 'vm0'], ['--kernel', '-l bootrom']),
    (['--initrd', 'x', '-l', 'bootrom,x', 'vm0'], ['--initrd', '--kernel']),
    # bhyve's that are not here
    (['-G', '1234', 'vm0'], ['-G', 'not supported']),
    (['-f', 'name=opt/x,string=y', 'vm0'], ['-f', 'not supported']),
    (['-K', 'de', 'vm0'], ['-K', 'not supported']),
    (['-n', 'id=0,size=1G', 'vm0'], ['-n', 'not supported']),
    (['-r', 'file', 'vm0'], ['-r', 'not supported']),
    (['-l', 'bootrom,rom,vars', 'vm0'], ['-l bootrom', 'VARS']),
]


class Refusals(cli.SkepTest):
    def test_cases(self):
        for args, wanted in CASES:
            with self.subTest(args=args):
                self.refused(args, wanted)

    def test_malformed_file_names_its_line(self):
        path = self.dir / 'conf'
        path.write_text('# a comment\n\ncpus=1\nno equals sign\n')
        self.refused(['-k', str(path), 'vm0'], ['-k', f'{path}:4'])
        path.write_text('cpus=1\na..b=2\n')
        self.refused(['-k', str(path), 'vm0'], [f'{path}:2'])

    def test_unreadable_file(self):
        path = self.dir / 'conf'
        path.write_text('cpus=1\n')
        path.chmod(0)
        if os.access(path, os.R_OK):
            path = self.dir  # root reads everything but a directory
        self.refused(['-k', str(path), 'vm0'], ['-k', str(path)])


class Devices(cli.SkepTest):
    """What a device finds wrong with its options, once for each kind of device."""

    DISKS = ('virtio-blk', 'ahci-hd', 'ahci-cd')

    def image(self, name, size):
        path = self.dir / name
        with path.open('wb') as file:
            file.truncate(size)
        return path

    def refused_device(self, conf, wanted):
        with self.subTest(conf=conf):
            self.refused(['-s', f'3,{conf}', KERNEL, 'vm0'], [f'({conf.split(",")[0]})', *wanted])

    def test_images(self):
        good, odd = self.image('good', 1 << 20), self.image('odd', 1000)
        fifo = self.dir / 'fifo'
        os.mkfifo(fifo)
        for disk in self.DISKS:
            self.refused_device(f'{disk},/nonexistent', ['/nonexistent', 'No such file'])
            self.refused_device(f'{disk},{self.dir}', [str(self.dir), 'is a directory'])
            self.refused_device(f'{disk},{odd}', [str(odd), '1000 bytes', 'multiple', '512'])
            self.refused_device(f'{disk},{fifo}', [str(fifo), 'neither a file nor a block device'])
            self.refused_device(disk, ['path', 'not set'])
            self.refused_device(f'{disk},{good},bogus=1', ['bogus', 'no such option', 'nocache', 'ser'])
            for option in ('ro=maybe', 'sectorsize=513', 'sectorsize=4096/512', 'aio=fast', 'nodelete=2x', 'snapshot=maybe',
                           'ser=' + 21 * 'x', 'fault=read:EIO:1:2:3', 'fault=read:EIO:x', 'test=power'):
                self.refused_device(f'{disk},{good},{option}', [option.split('=')[1]])
        self.refused_device(f'ahci-cd,{self.image("short", 3 * 512)}', ['1536 bytes', 'no disc', '2048'])
        self.refused_device(f'ahci-cd,{good},sectorsize=4096', ['4096', 'no disc', '2048'])
        self.refused_device('ahci', ['hd:IMAGE'])
        self.refused_device(f'ahci,hd:{good},cd:/nonexistent', ['port.1', '/nonexistent', 'No such file'])
        self.refused_device(f'ahci,hd:{good},bogus', ['port.0', 'bogus', 'no such option', 'nocache'])

    def test_no_permission(self):
        secret = self.image('secret', 1 << 20)
        secret.chmod(0)
        user = {}
        if os.access(secret, os.R_OK):  # root may read everything; nobody may not
            self.dir.chmod(0o777)
            user = {'user': 65534, 'group': 65534, 'extra_groups': []}
        for disk in self.DISKS:
            result = self.skep('-s', f'3,{disk},{secret}', '--kernel', self.guest('hello.elf'), 'vm0', **user)
            self.assertEqual((result.returncode, result.stdout), (cli.REFUSED, ''))
            self.assertRegex(result.stderr, rf'\Askep: [^\n]*{secret}: Permission denied\n\Z')
        secret.chmod(0o444)
        result = self.skep('-s', f'3,virtio-blk,{secret}', '--kernel', self.guest('hello.elf'), 'vm0', **user)
        if user or not os.access(secret, os.W_OK):
            self.assertRegex(result.stderr, rf'\Askep: [^\n]*{secret}: Permission denied; `ro` takes no right[^\n]*\n\Z')

    def test_locked_image(self):
        image = self.image('locked', 1 << 20)
        with image.open('rb') as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            self.refused_device(f'virtio-blk,{image}', [str(image), f'in use by process {os.getpid()} ('])
            fcntl.flock(file, fcntl.LOCK_EX)
            self.refused_device(f'ahci-cd,{image}', [str(image), f'in use by process {os.getpid()} ('])
        self.refused(['-s', f'3,virtio-blk,{image}', '-s', f'4,ahci-hd,{image},ro', KERNEL, 'vm0'],
                     ['pci.0.4.0 (ahci-hd)', str(image), 'in use by another device of this VM'])

    def test_function_without_function_0(self):
        """No guest will look for it: a word of warning, and it runs."""
        result = self.skep('-q', '-s', '3:1,virtio-rnd', '-s', '4:0,virtio-rnd', '-s', '4:2,virtio-rnd', '--kernel',
                           self.guest('hello.elf'), 'vm0')
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stderr, r'\Askep: pci\.0\.3\.1 \(virtio-rnd\): slot 3 has no function 0[^\n]*\n\Z')

    def test_ports(self):
        with socket.socket() as taken:
            taken.bind(('127.0.0.1', 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.refused_device(f'virtio-net,slirp,hostfwd=tcp:127.0.0.1:{port}-:22', [str(port), 'in use'])
            self.refused_device(f'virtio-console,console=tcp={port}', ['port console', str(port), 'in use'])
            self.refused_device(f'uart,tcp={port}', [str(port), 'in use'])

    def test_unknown_options(self):
        for device, known in (('virtio-net,slirp', 'hostfwd'), ('virtio-rnd', 'pcireg'), ('uart,null', 'path'),
                              ('hostbridge', 'pcireg'), ('amd_hostbridge', 'pcireg'), ('lpc', 'pcireg')):
            place = '31' if device == 'lpc' else '3'
            with self.subTest(device=device):
                self.refused(['-s', f'{place},{device},bogus=1', KERNEL, 'vm0'], ['bogus', 'no such option', known])
        self.refused_device('virtio-console', ['0 ports'])
        self.refused_device('virtio-console,a=/nonexistent/b', ['port a', '/nonexistent/b', 'No such file'])
        for disk in ('virtio-blk', 'ahci-hd', 'ahci-cd'):
            self.refused_device(f'{disk},/x,bootindex=first', ['bootindex', 'first'])

    def test_network_cards(self):
        for conf, wanted in (('bridge0', ['bridge0', 'slirp', 'tap=NAME', 'unix:PATH']),
                             ('slirp,hostfwd=22', ['hostfwd=22', 'tcp|udp']),
                             ('slirp,mtu=68', ['mtu=68', '1280']),
                             ('slirp,mac=1:2', ['mac=1:2', 'six']),
                             (f'unix:{self.dir}/nobody', ['nobody', 'listen'])):
            self.refused_device(f'virtio-net,{conf}', wanted)

    def test_tap_without_rights(self):
        self.dir.chmod(0o777)
        other = {'user': 65534, 'group': 65534, 'extra_groups': []} if os.geteuid() == 0 else {}
        result = self.skep('-s', '4,virtio-net,tap=skep-test0', '--kernel', self.guest('hello.elf'), 'vm0', **other)
        self.assertEqual((result.returncode, result.stdout), (cli.REFUSED, ''))
        self.assertRegex(result.stderr, r"\Askep: pci\.0\.4\.0 [^\n]*tap 'skep-test0'[^\n]*CAP_NET_ADMIN[^\n]*\n\Z")


class Help(cli.SkepTest):
    def test_usage_lists_every_option(self):
        result = self.skep('-h')
        self.assertEqual((result.returncode, result.stderr), (0, ''))
        for letter in 'abcCDeEgHhIklmopPqsSuUwWxYA':
            self.assertRegex(result.stdout, rf'(?m)^  -{letter}( |$)')
        for name in ('kernel', 'initrd', 'append'):
            self.assertIn(f'--{name} ', result.stdout)

    def test_devices_come_from_the_registry(self):
        pci, lpc = self.skep('-s', 'help'), self.skep('-l', 'help')
        self.assertEqual((pci.returncode, lpc.returncode), (0, 0))
        for name in ('hostbridge', 'amd_hostbridge', 'lpc', 'virtio-blk', 'virtio-console', 'virtio-rnd', 'ahci-hd',
                     'ahci-cd'):
            self.assertRegex(pci.stdout, rf'(?m)^  {name}\b')
        for name in ('com1', 'com4', 'pc-testdev', 'bootrom'):
            self.assertRegex(lpc.stdout, rf'(?m)^  {name}\b')

    def test_dump_is_a_file_for_k(self):
        line = ['-AHP', '-c', '2', '-m', '512M', '-s', '0,hostbridge', '-s', '31,lpc', '-l', 'com1,stdio', '--kernel',
                'k', '--append', 'a=b c', '-o', 'config.dump=1', 'vm0']
        first = self.skep(*line)
        self.assertEqual((first.returncode, first.stderr), (1, ''))
        self.assertIn('pci.0.31.0.device=lpc\n', first.stdout)
        (self.dir / 'conf').write_text(first.stdout)
        second = self.skep('-k', str(self.dir / 'conf'), '-o', 'config.dump=1')
        self.assertEqual(first.stdout, second.stdout)

    def test_skepctl_without_a_vm(self):
        result = self.skepctl('nosuch', 'status')
        self.assertEqual(result.returncode, 1)
        self.assertIn("'nosuch'", result.stderr)
        self.assertEqual(self.skepctl().returncode, 1)
        self.assertEqual(self.skepctl('-h').returncode, 0)
        result = self.skepctl('list')
        self.assertEqual((result.returncode, re.findall(str(self.dir), result.stdout)), (0, []))


if __name__ == '__main__':
    cli.main()
