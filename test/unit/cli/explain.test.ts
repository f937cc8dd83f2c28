import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { runExplain } from '../../../src/cli/explain.ts';

let folder: string;
let admin: Server;
let answer: (request: IncomingMessage, asked: unknown, response: ServerResponse) => void;
let address: string;
let body: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'warmpath-explain-'));
  body = join(folder, 'body.json');
  writeFileSync(body, '{"model": "m", "prompt": "once"}');
  writeFileSync(join(folder, 'body.txt'), 'once upon a time');
  admin = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => answer(request, JSON.parse(Buffer.concat(chunks).toString()), response));
  });
  await new Promise<void>((resolve) => admin.listen(0, '127.0.0.1', resolve));
  address = `127.0.0.1:${(admin.address() as AddressInfo).port}`;
});

afterAll(() => {
  admin.closeAllConnections();
  admin.close();
  rmSync(folder, { recursive: true });
});

async function explain(args: readonly string[], stdin = '') {
  const out: string[] = [];
  const err: string[] = [];
  const code = await runExplain(args, {
    stdout: (line) => void out.push(line),
    stderr: (line) => void err.push(line),
    stdin: (async function* () {
      yield Buffer.from(stdin);
    })(),
  });
  return { code, out: out.join('\n'), err };
}

describe('a request is explained', () => {
  test.each([['file'], ['-']])(
    'from %s, the bytes as they are, by an address with or without http://',
    async (from) => {
      let asked: unknown;
      answer = (request, question, response) => {
        asked = [request.url, question];
        response.end('{"rung":"exact"}');
      };
      const text = '{"model": "m", "prompt": "once"}';
      const args = [
        '--admin',
        from === '-' ? `http://${address}/` : address,
        '--path',
        '/v1/completions',
        from === '-' ? '-' : body,
      ];
      const { code, out, err } = await explain(args, text);
      expect([code, JSON.parse(out), err]).toEqual([0, { rung: 'exact' }, []]);
      expect(asked).toEqual(['/api/v1/explain', { path: '/v1/completions', headers: {}, body: text }]);
    },
  );

  test('a refusal is printed and is exit code 1', async () => {
    answer = (_request, _question, response) =>
      void response.writeHead(404).end('{"error":{"code":"model_not_found"}}');
    const { code, out } = await explain(['--admin', address, body]);
    expect([code, JSON.parse(out)]).toEqual([1, { error: { code: 'model_not_found' } }]);
  });
});

describe('what cannot be asked is told in one line', () => {
  test.each<[string, () => readonly string[], RegExp]>([
    [
      'no file',
      () => [],
      /^warmpath explain: expected one file with the request body, or - for the standard input, got 0$/,
    ],
    ['two files', () => ['a', 'b'], /got 2$/],
    ['no URL', () => ['--admin', 'http://', body], /--admin must be http:\/\/HOST:PORT, got "http:\/\/"$/],
    [
      'another protocol',
      () => ['--admin', 'grpc://localhost:9002', body],
      /--admin must be http:\/\/HOST:PORT, got "grpc:/,
    ],
    ['no path', () => ['--path', 'v1/completions', body], /--path must begin with \/, got "v1\/completions"$/],
    ['no such file', () => [join(folder, 'gone')], /cannot read the request body: ENOENT/],
    ['no JSON', () => [join(folder, 'body.txt')], /body\.txt must hold JSON, the body of a request: /],
    ['no JSON on the standard input', () => ['-'], /: the standard input must hold JSON, the body of a request: /],
    ['no such option', () => ['--nope'], /unknown option "--nope", expected some of --admin, --path, --help$/],
  ])('%s', async (_, args, line) => {
    const { code, out, err } = await explain(args());
    expect([code, out, err]).toEqual([2, '', [expect.stringMatching(line)]]);
  });

  test('nobody listens, or somebody else', async () => {
    const nobody = await explain(['--admin', '127.0.0.1:1', body]);
    expect([nobody.code, nobody.err]).toEqual([
      1,
      [expect.stringMatching(/^warmpath explain: no Warmpath answers at http:\/\/127\.0\.0\.1:1: .*; --admin names /)],
    ]);
    answer = (_request, _question, response) => void response.writeHead(404).end('Not Found');
    const other = await explain(['--admin', address, body]);
    expect([other.code, other.err]).toEqual([
      1,
      [`warmpath explain: http://${address} is not the admin port of a Warmpath: it answers 404 without JSON`],
    ]);
  });
});
