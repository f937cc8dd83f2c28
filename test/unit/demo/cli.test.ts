import { describe, expect, test } from '@jest/globals';
import { runDemo, type DemoIo } from '../../../src/cli/demo.ts';

function anIo(signal = new AbortController().signal): DemoIo & { out: string[]; err: string[] } {
  const out: string[] = [];
  const err: string[] = [];
  return { out, err, stdout: (line) => out.push(line), stderr: (line) => err.push(line), isTerminal: false, signal };
}

describe('warmpath demo', () => {
  test.each([
    [['--pods', '0'], '--pods must be an integer from 1 to 64, got "0"'],
    [['--seconds', 'long'], '--seconds must be an integer from 2 to 600, got "long"'],
    [['--colour'], 'unknown option "--colour"'],
    [['now'], 'now'],
  ])('with %j ends with code 2 and says why', async (args, message) => {
    const io = anIo();
    expect(await runDemo(args, io)).toBe(2);
    expect(io.out).toEqual([]);
    expect(io.err.join('\n')).toContain(message);
  });

  test('--help explains every option', async () => {
    const io = anIo();
    expect(await runDemo(['--help'], io)).toBe(0);
    for (const option of ['--pods', '--seconds', '--envoy', '--keep', '--json']) expect(io.out[0]).toContain(option);
  });

  test('a named Envoy that is none ends with code 1 before anything is started', async () => {
    const io = anIo();
    expect(await runDemo(['--envoy', '/nowhere/envoy'], io)).toBe(1);
    expect(io.err).toEqual([expect.stringMatching(/^warmpath demo: \/nowhere\/envoy does not run as Envoy/)]);
  });
});
