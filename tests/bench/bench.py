#!/usr/bin/env python3
"""bench/: what becomes of the figures, what the command line takes, and that the benchmark program measures."""

import importlib.machinery
import importlib.util
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree

BENCH = pathlib.Path(__file__).resolve().parent.parent.parent / 'bench'
sys.path.insert(0, str(BENCH))
sys.dont_write_bytecode = True

import images  # noqa: E402
import measure  # noqa: E402
import report  # noqa: E402

ENGINES = ['native', 'soft', 'qemu']


def script(name):
    """A program of bench/ that has no .py."""
    loader = importlib.machinery.SourceFileLoader(name, str(BENCH / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


def rounds(row, *figures):
    """A round for each (native, soft, qemu), None for what is missing."""
    return [{e: {row: v} for e, v in zip(ENGINES, f) if v is not None} for f in figures]


class Figures(unittest.TestCase):
    def test_ratios_are_of_one_round(self):
        # The second round met a busy machine: all figures are three times as long, the ratios are not.
        rows = report.summary(rounds('crc', (10, 20, 80), (30, 60, 240), (10, 22, 70)), ENGINES)
        self.assertEqual(rows['crc']['native'], {'median': 10, 'min': 10, 'max': 30})
        self.assertEqual(rows['crc']['soft']['median'], 22)
        self.assertEqual(rows['crc']['soft/native'], {'median': 2, 'min': 2, 'max': 2.2})
        self.assertEqual(rows['crc']['soft/qemu'], {'median': 0.25, 'min': 0.25, 'max': 22 / 70})
        self.assertEqual(rows['crc']['qemu/native']['median'], 8)

    def test_a_round_without_the_row(self):
        rows = report.summary(rounds('crc', (10, 20, None), (10, None, 50), (None, 30, 60)), ENGINES)
        self.assertEqual(rows['crc']['soft/native']['median'], 2)
        self.assertEqual(rows['crc']['soft/qemu']['median'], 0.5)
        self.assertNotIn('loop', rows)
        self.assertNotIn('soft/native', report.summary(rounds('crc', (None, 30, 60)), ENGINES)['crc'])

    def test_geometric_mean_of_all_integer_rows(self):
        one = {e: {row: v for row in report.INTEGER} for e, v in zip(ENGINES, (1, 2, 8))}
        one['soft'][report.INTEGER[0]] = 2 * 2 ** 6
        rows = report.summary([one], ENGINES)
        self.assertTrue(math.isclose(rows['integer']['soft/native']['median'], 4))
        del one['soft'][report.INTEGER[1]]
        self.assertNotIn('soft/native', report.summary([one], ENGINES)['integer'])

    def test_the_better_boot_of_each_round(self):
        both = [{'soft': {'boot-bzimage': a, 'boot-vmlinux': b}, 'qemu': {'boot-vmlinux': c}}
                for a, b, c in ((1, 2, 4), (3, 1, 4), (9, 2, 4))]
        rows = report.summary(both, ENGINES)
        self.assertEqual(rows['boot']['soft']['median'], 1)
        self.assertEqual(rows['boot']['soft/qemu'], {'median': 0.25, 'min': 0.25, 'max': 0.5})

    def test_bars(self):
        bars = {bar[0]: bar for bar in report.BARS}
        self.assertEqual(bars['integer'][1:], (2.0, 1 / 3, None))
        for value, word in ((1.2, 'met'), (1.21, 'MISSED')):
            rows = {'memcpy': {'soft/native': {'median': value}}}
            self.assertEqual(report.verdict(rows, bars['memcpy']), (word, '<= 1.20x native'))
        for native, qemu, word in ((3, 0.4, 'met'), (3.1, 0.1, 'MISSED'), (1, 0.41, 'MISSED')):
            rows = {'gcc': {'soft/native': {'median': native}, 'soft/qemu': {'median': qemu}}}
            self.assertEqual(report.verdict(rows, bars['gcc'])[0], word)
        self.assertEqual(report.verdict({'gcc': {'soft/native': {'median': 1}}}, bars['gcc'])[0], 'not measured')
        self.assertEqual(report.verdict({}, bars['gcc'])[0], 'not measured')
        for value, word in ((20e6, 'met'), (21e6, 'MISSED')):
            self.assertEqual(report.verdict({'start': {'soft': {'median': value}}}, bars['start']), (word, '<= 20 ms'))

    def test_quantities(self):
        for row, value, text in (('crc', 0.5, '0.5 ns'), ('crc', 1234, '1.23 us'), ('gcc', 999.9e6, '1000 ms'),
                                 ('gcc', 2.5e9, '2.5 s'), ('idle', 0.3, '0.30 %'), ('rss', 9.96, '10.0 MiB'),
                                 ('timer', 20000, '50000/s'), ('scale', 1050, '1.050')):
            self.assertEqual(report.quantity(row, value), text)

    def test_table(self):
        figures = rounds('xz', (1e9, 2e9, 8e9))
        for engine, value in zip(ENGINES, (1e6, 1.1e6, 9e6)):
            figures[0][engine]['memcpy'] = value
        head, memcpy, xz = report.table(report.summary(figures, ENGINES), ENGINES).splitlines()
        self.assertRegex(head, r'\Arow +native +soft +qemu')
        self.assertRegex(memcpy, r'\Amemcpy +1 ms +1\.1 ms +9 ms +1\.10x +1\.10-1\.10 +0\.12x +9\.00x +met +<= 1\.20x native\Z')
        self.assertRegex(xz, r'\Axz +1 s +2 s +8 s +2\.00x +2\.00-2\.00 +0\.25x +8\.00x\Z')

    def test_chart(self):
        figures = rounds('memcpy', (1, 10, 100))
        figures[0]['soft']['boot-vmlinux'], figures[0]['qemu']['boot-vmlinux'] = 0.5e9, 2e9
        text = report.chart(report.summary(figures, ENGINES), 'a <CPU> & more')
        root = ElementTree.fromstring(text)
        ns = '{http://www.w3.org/2000/svg}'
        words = [''.join(t.itertext()) for t in root.iter(ns + 'text')]
        self.assertIn('a <CPU> & more', words)
        self.assertIn('memcpy', words)
        self.assertTrue(any('skep 500 ms, QEMU microvm 2 s' in w for w in words), words)
        soft, qemu = [int(r.get('width')) for r in root.iter(ns + 'rect') if r.get('height') == '9']
        self.assertEqual(qemu - soft, report.UNIT, 'ten times as long is one unit more')
        marks = [int(line.get('x1')) for line in root.iter(ns + 'line') if line.get('stroke') == 'black']
        self.assertEqual(marks, [round(report.x_of(1.2))])


class Run(unittest.TestCase):
    def run_bench(self, *args):
        return subprocess.run([sys.executable, BENCH / 'measure.py', *args], capture_output=True, text=True, timeout=30)

    def test_help_names_every_row(self):
        result = self.run_bench('-h')
        self.assertEqual((result.returncode, result.stderr), (0, ''))
        for row in report.ROWS + list(measure.GROUPS):
            self.assertIn(row, result.stdout)

    def test_what_is_refused(self):
        for args, words in ((['nosuch'], ["'nosuch'", 'bench/run -h']), (['-r', '0'], ['--rounds', 'at least 1']),
                            (['-r', 'x'], ['-r', "'x'"]), (['-e', 'soft,vax'], ["'vax'"]), (['--nosuch'], ['--nosuch'])):
            result = self.run_bench('--check', *args)
            self.assertEqual((result.returncode, result.stdout), (2, ''), args)
            for word in words:
                self.assertIn(word, result.stderr)

    def test_chosen_rows(self):
        self.assertEqual(measure.arguments([]).rows, report.ROWS)
        self.assertEqual(measure.arguments(['boot', 'crc']).rows, ['crc', 'boot-bzimage', 'boot-vmlinux'])

    def test_every_bar_has_a_row(self):
        self.assertLessEqual({bar[0] for bar in report.BARS}, set(report.ROWS) | {'integer', 'boot'})

    def test_rows_of_a_console(self):
        self.assertEqual(measure.parse_rows('x\r\nROW crc 1.500\r\nROW gcc 0.000\r\nBENCH-END\r\n'), {'crc': 1.5})

    def test_show(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, 'result.json')
            path.write_text(json.dumps({
                'engines': ENGINES, 'rounds': rounds('crc', (1, 2, 4)), 'loads': [{'before': 0.5, 'after': 2}],
                'conditions': {'cpu': 'some CPU', 'host_cpus': 2, 'when': 'today'}}))
            result = self.run_bench('--show', str(path), '--chart', f'{directory}/chart.svg')
            self.assertEqual((result.returncode, result.stderr), (0, ''))
            self.assertIn('some CPU, 2 CPUs; today; median of 1 round; load average 0.5 to 2.0', result.stdout)
            self.assertRegex(result.stdout, r'\ncrc .*2\.00x')
            self.assertIn('some CPU', pathlib.Path(directory, 'chart.svg').read_text())


class Guest(unittest.TestCase):
    def test_source_has_5000_lines(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, 'source.i')
            images.source_file(path)
            self.assertTrue(5000 <= len(path.read_text().splitlines()) < 5200)

    def test_the_program_measures(self):
        with tempfile.TemporaryDirectory() as directory:
            program = f'{directory}/rows'
            subprocess.run(['gcc', '-O1', '-pthread', '-o', program, BENCH / 'rows.c', '-lm'], check=True)
            result = subprocess.run([program, 'syscall,nosuch'], capture_output=True, text=True, timeout=30)
            self.assertRegex(result.stdout, r'\AROW syscall \d+\.\d{3}\nROW nosuch 0\.000\nBENCH-END\n\Z')
            self.assertGreater(measure.parse_rows(result.stdout)['syscall'], 10)

    def test_the_program_has_every_row(self):
        source = (BENCH / 'rows.c').read_text()
        for row in report.GUEST_ROWS + ['mix4', 'work', 'tsc-khz', 'sleep']:
            self.assertRegex(source, rf'"{re.escape(row)}"')


class Where(unittest.TestCase):
    """bench/where: what an instruction of a block is there for. The block is docs/ARCHITECTURE.md's and a return."""

    BLOCK = '''
        jumps     jmp 0x1000
        heads     lea rcx,[r10-0x40]
        heads     mov [rsp-0x70],rcx
        heads     mov rcx, [rsp-0x78]
        heads     jrcxz 0x0
        guest     add ebp,eax
        look-ups  lea r10d,[rbx+0x8]
        look-ups  shrx r10d,r10d,r15d
        look-ups  mov rcx, [r15+r10*8-0xc]
        look-ups  lea rcx,[rcx+rbx*1+0xf]
        look-ups  shrx rcx,rcx,r15
        look-ups  jrcxz 0x42
        look-ups  jmp 0x2000
        look-ups  mov r10, [r15+r10*8+0xfffff4]
        guest     add rax,[rbx+r10*1+0x8]
        registers mov rcx,[rsp+0x20]
        guest     lea r14,[r14+0x8]
        jumps     rorx rcx,r10,0x2
        jumps     movzx ecx,cx
        jumps     lea rcx,[rcx+rcx*1]
        jumps     mov rcx, [r15+rcx*8+0x17ffff4]
        jumps     lea rcx,[rcx+r10*1]
        jumps     jrcxz 0x50
        jumps     jmp 0x3000
        jumps     rorx rcx,r10,0x2
        jumps     movzx ecx,cx
        jumps     lea rcx,[rcx+rcx*1]
        jumps     jmp [r15+rcx*8+0x17ffffc]'''

    def test_classes(self):
        lines = [line.split(None, 1) for line in self.BLOCK.strip().splitlines()]
        self.assertEqual(script('where').classes([(0, text) for _, text in lines]), [kind for kind, _ in lines])

    def test_tables_lie_where_it_thinks(self):
        header = (BENCH.parent / 'engine/soft/cpu.h').read_text()
        jump = int(re.search(r'offsetof\(struct soft_tlb, jump\) == (0x[0-9a-f]+)', header).group(1), 16)
        self.assertEqual(script('where').JUMPS, jump)


if __name__ == '__main__':
    unittest.main()
