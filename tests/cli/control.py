#!/usr/bin/env python3
"""A running VM as its user sees it: the start line, process title, skepctl, signals, the terminal."""

import os
import pathlib
import pty
import re
import resource
import signal
import socket
import stat
import subprocess
import termios
import unittest

import cli

# What the guest pm ends with once its power button was pressed; whether it liked all that it saw then is a matter of
# its own test, which knows what this host's KVM cannot do.
BUTTON_SEEN = (0x10 << 1 | 1, 0x11 << 1 | 1)
RESET, POWEROFF, REFUSED = 0, 1, cli.REFUSED


class Control(cli.SkepTest):
    def ask(self, *args):
        result = self.skepctl(*args)
        self.assertEqual((result.returncode, result.stderr), (0, ''), args)
        return result.stdout

    def listed(self):
        """The names that skepctl list gives, but for those of other VMs on this host."""
        return [name for name in (line.split()[0] for line in self.ask('list').splitlines()) if re.match(r'vm\d', name)]

    def state(self, name='vm0'):
        return dict(line.split(' ', 1) for line in self.ask(name, 'status').splitlines())

    def test_start_line_and_names(self):
        vm = self.start_idle('vm-one', '-c', '2')
        line = self.read_until(vm.stderr, b'\n').decode()
        self.assertRegex(line, rf'\Askep: vm-one: engine {cli.Paths.engine} \(.+\), 2 vCPUs, 64 MiB; .*\^A x\r?\n\Z')
        self.assertEqual(pathlib.Path(f'/proc/{vm.pid}/cmdline').read_text().rstrip('\0'), 'skep: vm-one')
        names = {path.read_text().strip() for path in pathlib.Path(f'/proc/{vm.pid}/task').glob('*/comm')}
        self.assertLessEqual({'vcpu0', 'vcpu1'}, names)
        self.ask('vm-one', 'stop')
        self.assertEqual(vm.wait(cli.WAIT), POWEROFF)
        self.assertEqual(vm.stderr.read(), b'', 'no more than the line')

    def test_title_longer_than_the_command_line(self):
        name = 'a' * 63
        (self.dir / 'k').write_text(f'name={name}\nengine={cli.Paths.engine}\nboot.kernel={self.guest("pm.elf")}\n'
                                    'lpc.com1.path=stdio\nlpc.pc-testdev=true\nquiet=true\n')
        vm = subprocess.Popen(['x', '-kk'], executable=cli.Paths.skep, cwd=self.dir, env=self.env,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.addCleanup(vm.stdout.close)
        self.addCleanup(vm.wait)
        self.addCleanup(vm.kill)
        self.read_until(vm.stdout, b'ready for the power button')
        self.assertEqual(pathlib.Path(f'/proc/{vm.pid}/cmdline').read_text().rstrip('\0'), f'skep: {name}')

    def test_quiet(self):
        vm = self.start_idle('vm0', '-q')
        self.ask('vm0', 'stop')
        self.assertEqual(vm.wait(cli.WAIT), POWEROFF)
        self.assertEqual(vm.stderr.read(), b'')

    def test_socket_is_private_and_goes_away(self):
        vm = self.start_idle()
        sock = self.dir / 'skep' / 'vm0.sock'
        self.assertEqual(stat.S_IMODE(sock.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(sock.parent.stat().st_mode), 0o700)
        self.ask('vm0', 'stop')
        vm.wait(cli.WAIT)
        self.assertEqual(list(sock.parent.iterdir()), [])

    def test_stale_socket_is_replaced(self):
        vm = self.start_idle()
        vm.kill()
        vm.wait()
        self.assertTrue((self.dir / 'skep' / 'vm0.sock').exists())
        self.assertEqual(self.listed(), [])
        self.assertEqual(self.skepctl('vm0', 'status').returncode, 1)
        self.start_idle()
        self.assertEqual(self.state()['state'], 'running')

    def test_second_vm_of_the_name_is_refused(self):
        self.start_idle()
        second = self.skep('-E', cli.Paths.engine, '--kernel', self.guest('hello.elf'), 'vm0')
        self.assertEqual((second.returncode, second.stdout), (REFUSED, ''))
        self.assertRegex(second.stderr, r"\Askep: a VM named 'vm0' is running[^\n]+\n\Z")
        self.assertEqual(self.state()['state'], 'running', 'the first lives on')
        self.start_idle('vm1')
        self.assertEqual(self.listed(), ['vm0', 'vm1'])

    def test_status_pause_resume(self):
        vm = self.start_idle()
        status = self.state()
        self.assertEqual((status['name'], status['state'], status['engine'], status['vcpus'], status['memory'],
                          status['process']),
                         ('vm0', 'running', cli.Paths.engine, '1', str(64 << 20), str(vm.pid)))
        self.assertEqual(self.ask('vm0', 'pause'), '')
        paused = self.state()
        self.assertEqual(paused['state'], 'paused')
        self.assertEqual(self.state()['time'], paused['time'], 'time stands still')
        twice = self.skepctl('vm0', 'pause')
        self.assertEqual(twice.returncode, 1)
        self.assertIn('paused already', twice.stderr)
        self.assertIn('rip', self.ask('vm0', 'regs').lower(), 'registers can be read while it is paused')
        self.ask('vm0', 'resume')
        self.assertEqual(self.skepctl('vm0', 'resume').returncode, 1)
        cli.wait_for(lambda: float(self.state()['time']) > float(paused['time']), 'time going on')
        self.ask('vm0', 'powerbutton')
        self.assertIn(vm.wait(cli.WAIT), BUTTON_SEEN, 'the guest takes the power button after a pause')

    def test_stop_and_reset_while_paused(self):
        for command, status in (('stop', POWEROFF), ('reset', RESET)):
            vm = self.start_idle()
            self.ask('vm0', 'pause')
            self.ask('vm0', command)
            self.assertEqual(vm.wait(cli.WAIT), status)

    def test_stats_and_regs(self):
        self.start_idle('vm0', '-c', '2')
        stats = self.ask('vm0', 'stats')
        self.assertRegex(stats, r'inout\D+[1-9]')
        regs = self.ask('vm0', 'regs').lower()
        self.assertEqual(len(re.findall(r'\brip\b', regs)), 2)

    def test_powerbutton_nobody_listens_to(self):
        self.start('-l', 'com1,null', '-l', 'bootrom,' + self.spin(), 'vm0')
        cli.wait_for(lambda: self.skepctl('vm0', 'status').returncode == 0, 'the VM')
        result = self.skepctl('vm0', 'powerbutton')
        self.assertEqual(result.returncode, 1)
        self.assertIn('ACPI', result.stderr)
        self.assertEqual(self.skepctl('vm0', 'dance').returncode, 1)

    def spin(self):
        """A boot ROM that loops at the reset vector."""
        path = self.dir / 'spin.rom'
        path.write_bytes(b'\x90' * 0xff0 + b'\xeb\xfe' + b'\x90' * 14)
        return str(path)

    def test_signals(self):
        for signo in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            vm = self.start('-l', 'bootrom,' + self.spin(), 'vm0')
            cli.wait_for(lambda: self.skepctl('vm0', 'status').returncode == 0, 'the VM')
            vm.send_signal(signo)
            self.assertEqual(vm.wait(cli.WAIT), POWEROFF, signo)

    def test_sigterm_is_the_power_button(self):
        vm = self.start_idle()
        vm.send_signal(signal.SIGTERM)
        self.assertIn(vm.wait(cli.WAIT), BUTTON_SEEN)

    def test_second_sigterm_ends_it(self):
        vm = self.start_idle()
        self.ask('vm0', 'pause')  # so that the guest cannot answer the first
        vm.send_signal(signal.SIGTERM)
        self.read_until(vm.stderr, b'power button')
        self.assertEqual(self.state()['state'], 'paused')
        vm.send_signal(signal.SIGTERM)
        self.assertEqual(vm.wait(cli.WAIT), POWEROFF)

    def test_file_size_limit(self):
        """It is an error of what wanted to write, and no death by SIGXFSZ."""
        limit = 1 << 20
        result = self.skep('-E', cli.Paths.engine, '--kernel', self.guest('hello.elf'), 'vm0',
                           preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        self.assertEqual((result.returncode, result.stdout), (REFUSED, ''))
        self.assertRegex(result.stderr, 'guest memory|code cache')

    def test_restart_on_reboot(self):
        vm = self.start('-l', 'com1,stdio', '-o', 'reboot=restart', '--kernel', self.guest('reset_cf9.elf'), 'vm0')
        out = b''
        while out.count(b'reset') < 3:
            out += self.read_until(vm.stdout, b'\n')
        self.ask('vm0', 'stop')
        self.assertEqual(vm.wait(cli.WAIT), POWEROFF)

    def test_stats_at_the_end(self):
        result = self.skep('-E', cli.Paths.engine, '-q', '-o', 'stats=1', '--kernel', self.guest('hello.elf'), 'vm0')
        self.assertEqual(result.returncode, POWEROFF)
        self.assertIn('inout', result.stderr)


class Profile(cli.SkepTest):
    """What the soft engine tells those who look for hot code."""

    def setUp(self):
        if cli.Paths.engine != 'soft':
            self.skipTest('the soft engine\'s')
        super().setUp()

    def spin(self, *options):
        return self.start('-q', '-l', 'com1,stdio', *options, '--kernel', self.guest('spin.elf'), 'vm0')

    def test_profile_shows_the_hot_block(self):
        vm = self.spin('-o', f'soft.profile={self.dir}/profile')
        self.assertEqual(vm.wait(cli.WAIT), POWEROFF)
        self.assertEqual(vm.stdout.read(), b'spinning\nspun\n')
        first, _, hottest, *_ = (self.dir / 'profile').read_text().splitlines()
        samples, user, kernel = re.match(
            r'# (\d+) samples: ([\d.]+) % in translated user code, ([\d.]+) % in translated kernel code', first).groups()
        self.assertGreater(int(samples), 5)
        self.assertEqual(float(user), 0)
        self.assertGreater(float(kernel), 50)
        _, share, cpl, rip, gpa, *_ = hottest.split()
        self.assertGreater(float(share), 50)
        self.assertEqual((cpl, rip), ('0', gpa))
        self.assertTrue(0x100000 < int(rip, 16) < 0x140000, rip)

    def test_map_for_perf(self):
        vm = self.spin('-o', 'soft.perfmap=true')
        path = pathlib.Path(f'/tmp/perf-{vm.pid}.map')
        self.addCleanup(lambda: path.unlink(missing_ok=True))
        self.read_until(vm.stdout, b'spinning')
        executable = re.findall(r'r-xs .* (/\S+)', pathlib.Path(f'/proc/{vm.pid}/maps').read_text())
        self.assertEqual(executable, ['/dev/zero'], 'what perf takes for memory without a file')
        self.assertEqual(vm.wait(cli.WAIT), POWEROFF)
        lines = path.read_text().splitlines()
        self.assertGreater(len(lines), 10)
        end = {None: 0, '-cold': 0}
        for line in lines:
            start, size, cold, _ = re.fullmatch(r'([0-9a-f]+) ([0-9a-f]+) kernel(-cold)? (0x[0-9a-f]+)', line).groups()
            self.assertGreaterEqual(int(start, 16), end[cold], 'blocks lie behind each other')
            end[cold] = int(start, 16) + int(size, 16)

    def test_refused(self):
        self.refused(['-E', 'soft', '-o', 'soft.profile=/nonexistent/file', cli.KERNEL, 'vm0'],
                     ['soft.profile', '/nonexistent/file'])
        self.refused(['-E', 'soft', '-o', 'soft.perfmap=perhaps', cli.KERNEL, 'vm0'], ['soft.perfmap', 'perhaps'])


class Refusals(cli.SkepTest):
    """Those that take an engine to find; the others are in refusals.py."""

    def test_cases(self):
        for args, wanted in (
                (['--kernel', '/dev/null'], ['/dev/null']),
                (['--kernel', __file__], [__file__]),
                (['-l', 'com1,/nonexistent/tty', cli.KERNEL], ['com1', '/nonexistent/tty']),
                (['-p', '7:0', cli.KERNEL], ['-p', "'7'"]),
                (['-p', '0:1000', cli.KERNEL], ['-p', 'vCPU 0']),
                (['-o', 'x86.strictio=perhaps', cli.KERNEL], ['x86.strictio', 'perhaps']),
                (['-o', 'uuid=none', cli.KERNEL], ['none']),
                (['-o', 'pci.0.7.0.device=nosuch', cli.KERNEL], ['pci.0.7.0', 'nosuch']),
                (['-o', 'lpc.nosuch=true', cli.KERNEL], ['nosuch']),
                (['-l', 'com1,stdio', '-l', 'com2,stdio', cli.KERNEL], ['com2', 'stdio']),
                (['-m', '64M', '-o', 'memory.wired=perhaps', cli.KERNEL], ['memory.wired', 'perhaps']),
        ):
            with self.subTest(args=args):
                self.refused(['-E', cli.Paths.engine, *args, 'vm0'], wanted)


class Hostile(cli.SkepTest):
    """Clients of the control socket that do not play by the rules."""

    def connect(self):
        client = socket.socket(socket.AF_UNIX)
        self.addCleanup(client.close)
        client.connect(str(self.dir / 'skep' / 'vm0.sock'))
        client.settimeout(cli.WAIT)
        return client

    def answers(self):
        result = self.skepctl('vm0', 'status')
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_clients_that_say_nothing_keep_nobody_out(self):
        self.start_idle()
        idle = [self.connect() for _ in range(30)]
        self.answers()
        self.assertEqual(idle[0].recv(1), b'', 'the oldest was dropped')

    def test_clients_that_never_read(self):
        self.start_idle()
        for _ in range(30):
            self.connect().sendall(b'regs\n')
        self.answers()

    def test_garbage(self):
        self.start_idle()
        for garbage in (b'\0' * 100000, b'a' * 63, b'a' * 64, b'\n', b'status', b'status\0\n', b'\xff\n',
                        b'status\nstatus\n' * 1000):
            client = self.connect()
            try:
                client.sendall(garbage)
                client.shutdown(socket.SHUT_WR)
                while client.recv(4096):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass  # it hangs up on those that go on
            self.answers()

    @unittest.skipIf(os.geteuid(), 'only root can give a directory away')
    def test_somebody_elses_directory(self):
        """skepctl does not talk to what others have put where a VM's socket would be."""
        directory = self.dir / 'skep'
        directory.mkdir()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(directory / 'vm0.sock'))
            server.listen()
            os.chown(directory, 65534, 65534)
            self.assertNotIn('vm0', self.skepctl('list').stdout)
            self.assertIn('no VM named', self.skepctl('vm0', 'status').stderr)
            server.setblocking(False)
            self.assertRaises(BlockingIOError, server.accept)

    def test_a_command_in_pieces(self):
        self.start_idle()
        client = self.connect()
        for byte in b'status\n':
            client.sendall(bytes([byte]))
        self.assertEqual(client.recv(3), b'ok\n')


class Terminal(cli.SkepTest):
    """Whatever way skep goes, the terminal is as it was before."""

    def terminal(self):
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        self.addCleanup(os.close, slave)
        return master, slave, termios.tcgetattr(slave)

    def on_terminal(self, end):
        master, slave, before = self.terminal()
        with os.fdopen(os.dup(master), 'rb', buffering=0) as output:
            vm = self.start('-l', 'com1,stdio', '-l', 'com2,null', '-l', 'pc-testdev', '--kernel', self.guest('pm.elf'),
                            'vm0', stdin=slave, stdout=slave, start_new_session=True)
            self.read_until(output, b'ready for the power button')
            self.assertEqual(termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG), 0)
            end(vm, master)
            vm.wait(cli.WAIT)
        self.assertEqual(termios.tcgetattr(slave), before)
        return vm.returncode

    def test_escape(self):
        self.assertEqual(self.on_terminal(lambda vm, master: os.write(master, b'\x01x')), POWEROFF)

    def test_signals(self):
        self.assertIn(self.on_terminal(lambda vm, master: vm.send_signal(signal.SIGTERM)), BUTTON_SEEN)
        self.assertIn(self.on_terminal(lambda vm, master: vm.send_signal(signal.SIGINT)), BUTTON_SEEN)

    def test_crash(self):
        for signo in (signal.SIGABRT, signal.SIGUSR1, signal.SIGALRM, signal.SIGXCPU, signal.SIGRTMAX):
            with self.subTest(signo=signo):
                self.assertEqual(self.on_terminal(lambda vm, master: vm.send_signal(signo)), -signo)

    def test_kill(self):
        """SIGKILL leaves skep no time for anything: a child of its own does it then."""
        master, slave, before = self.terminal()
        with os.fdopen(os.dup(master), 'rb', buffering=0) as output:
            vm = self.start('-l', 'com1,stdio', '-l', 'com2,null', '-l', 'pc-testdev', '--kernel', self.guest('pm.elf'),
                            'vm0', stdin=slave, stdout=slave, start_new_session=True)
            self.read_until(output, b'ready for the power button')
            children = pathlib.Path(f'/proc/{vm.pid}/task/{vm.pid}/children').read_text().split()
            vm.kill()
            vm.wait(cli.WAIT)
            cli.wait_for(lambda: termios.tcgetattr(slave) == before, 'the terminal as it was')
        for child in children:
            cli.wait_for(lambda: not pathlib.Path(f'/proc/{child}').exists(), 'no process is left')

    def test_monitor(self):
        """^A c: skepctl's commands at a prompt."""
        master, slave, before = self.terminal()
        with os.fdopen(os.dup(master), 'rb', buffering=0) as output:
            vm = self.start('-q', '-l', 'com1,stdio', '-l', 'com2,null', '-l', 'pc-testdev', '--kernel',
                            self.guest('pm.elf'), 'vm0', stdin=slave, stdout=slave)
            self.read_until(output, b'ready for the power button')
            os.write(master, b'\x01c')
            self.read_until(output, b'(skep) ')
            for command, wanted in (('help', b'nmi  '), ('pause', b'ok'), ('status', b'state paused'),
                                    ('pause', b'paused already'), ('resume', b'ok'), ('regs', b'rip'), ('stats', b'exits'),
                                    ('nonsense', b'unknown command; there are: status pause resume powerbutton nmi reset stop stats regs')):
                os.write(master, command.encode() + b'\r')
                self.assertIn(wanted, self.read_until(output, b'\r\n(skep) '), command)
            self.assertEqual(self.skepctl('vm0', 'status').returncode, 0)
            os.write(master, b'powerbutton\r')
            self.assertIn(vm.wait(cli.WAIT), BUTTON_SEEN)
        self.assertEqual(termios.tcgetattr(slave), before)

    def test_refusal(self):
        """A device refused after the console took the terminal."""
        master, slave, before = self.terminal()
        result = subprocess.run([cli.Paths.skep, '-E', cli.Paths.engine, '-l', 'com1,stdio', '-l', 'com2,stdio',
                                 '--kernel', self.guest('hello.elf'), 'vm0'], stdin=slave, stdout=slave,
                                stderr=subprocess.PIPE, text=True, timeout=cli.WAIT, env=self.env)
        self.assertEqual(result.returncode, REFUSED)
        self.assertIn('stdio', result.stderr)
        self.assertEqual(termios.tcgetattr(slave), before)


if __name__ == '__main__':
    cli.main()
