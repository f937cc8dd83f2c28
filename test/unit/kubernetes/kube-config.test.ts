import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from '@jest/globals';
import { stringify } from 'yaml';
import { loadApiAccess } from '../../../src/kubernetes/kube-config.ts';

const folder = mkdtempSync(join(tmpdir(), 'warmpath-kubeconfig-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const fixture = (name: string): Buffer => readFileSync(new URL(`../../fixtures/tls/${name}`, import.meta.url));

type Given = {
  readonly cluster?: object;
  readonly user?: object;
  readonly namespace?: string;
  readonly context?: string;
};
let nFiles = 0;

/** Path of a kubeconfig. */
function aFile(given: Given = {}): string {
  const path = join(folder, `config-${(nFiles += 1)}`);
  writeFileSync(path, textOf(given));
  return path;
}

function textOf({ cluster = {}, user = {}, namespace, context = 'here' }: Given): string {
  return stringify({
    apiVersion: 'v1',
    kind: 'Config',
    'current-context': context,
    contexts: [
      { name: 'here', context: { cluster: 'c', user: 'u', ...(namespace === undefined ? {} : { namespace }) } },
    ],
    clusters: [{ name: 'c', cluster: { server: 'https://10.0.0.1:6443/base', ...cluster } }],
    users: [{ name: 'u', user }],
  });
}

describe('a kubeconfig', () => {
  test('names the server and the namespace', async () => {
    const access = await loadApiAccess(aFile({ namespace: 'models' }));
    expect([access.server.href, access.namespace]).toEqual(['https://10.0.0.1:6443/base', 'models']);
    expect((await loadApiAccess(aFile())).namespace).toBeNull();
  });

  test('a token, and the CA of the server', async () => {
    const cluster = { 'certificate-authority-data': fixture('ca.crt').toString('base64'), 'tls-server-name': 'kube' };
    const { headers, tls } = await (await loadApiAccess(aFile({ cluster, user: { token: 't1' } }))).credentials();
    expect(headers).toEqual({ authorization: 'Bearer t1' });
    expect(tls.ca?.toString()).toBe(fixture('ca.crt').toString());
    expect(tls.servername).toBe('kube');
    expect(tls.rejectUnauthorized).toBeUndefined();
  });

  test('a client certificate, from files beside it', async () => {
    writeFileSync(join(folder, 'client.crt'), fixture('client.crt'));
    writeFileSync(join(folder, 'client.key'), fixture('client.key'));
    const user = { 'client-certificate': 'client.crt', 'client-key': 'client.key' };
    const { tls } = await (await loadApiAccess(aFile({ user }))).credentials();
    expect(tls.cert?.toString()).toBe(fixture('client.crt').toString());
    expect(tls.key?.toString()).toBe(fixture('client.key').toString());
  });

  test('name and password', async () => {
    const { headers } = await (await loadApiAccess(aFile({ user: { username: 'a', password: 'b' } }))).credentials();
    expect(headers.authorization).toBe(`Basic ${Buffer.from('a:b').toString('base64')}`);
  });

  test('without checking the server only where it says so', async () => {
    const { tls } = await (await loadApiAccess(aFile({ cluster: { 'insecure-skip-tls-verify': true } }))).credentials();
    expect(tls.rejectUnauthorized).toBe(false);
  });
});

describe('what changes counts at the next request', () => {
  test.each<[string, (path: string) => object]>([
    ['as kubeconfigs name it', () => ({ tokenFile: 'token' })],
    [
      'as a service account has it',
      (path) => ({ 'auth-provider': { name: 'tokenFile', config: { tokenFile: path } } }),
    ],
  ])('a rotated token file, %s', async (_, userOf) => {
    const token = join(folder, 'token');
    writeFileSync(token, 'first\n');
    const access = await loadApiAccess(aFile({ user: userOf(token) }));
    expect((await access.credentials()).headers).toEqual({ authorization: 'Bearer first' });
    writeFileSync(token, 'second\n');
    expect((await access.credentials()).headers).toEqual({ authorization: 'Bearer second' });
    rmSync(token);
    await expect(access.credentials()).rejects.toThrow('ENOENT');
  });

  test('a kubeconfig that is written anew', async () => {
    const path = aFile({ user: { token: 'first' } });
    const access = await loadApiAccess(path);
    await access.credentials();
    writeFileSync(path, textOf({ user: { token: 'second' } }));
    expect((await access.credentials()).headers).toEqual({ authorization: 'Bearer second' });
  });
});

test('a plug-in is one process, however many ask while it thinks', async () => {
  const counted = join(folder, 'asked');
  const token = JSON.stringify({ status: { token: 'from a plug-in', expirationTimestamp: '2001-01-01T00:00:00Z' } });
  const exec = { command: 'sh', args: ['-c', `echo >> ${counted}; echo '${token}'`] };
  const access = await loadApiAccess(aFile({ user: { exec } }));
  const all = await Promise.all([1, 2, 3].map(() => access.credentials()));
  expect(new Set(all.map(({ headers }) => headers.authorization))).toEqual(new Set(['Bearer from a plug-in']));
  expect(readFileSync(counted, 'utf8')).toBe('\n');
  await access.credentials();
  expect(readFileSync(counted, 'utf8')).toBe('\n\n');
});

describe('a kubeconfig that cannot be used says why', () => {
  test.each<[string, () => string]>([
    ['cannot read the kubeconfig FILE: ENOENT', () => join(folder, 'gone')],
    ['FILE must have a current context with a cluster, got none', () => aFile({ context: 'elsewhere' })],
    ['FILE must name a server by its URL, got "kube"', () => aFile({ cluster: { server: 'kube' } })],
    [
      'FILE must name a server that is reached without a proxy, got proxy-url',
      () => aFile({ cluster: { 'proxy-url': 'http://proxy:3128' } }),
    ],
  ])('%s', async (message, fileOf) => {
    const file = fileOf();
    await expect(loadApiAccess(file)).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringContaining(message.replace('FILE', file)),
    });
  });
});
