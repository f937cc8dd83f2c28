/** The fake against what a real kube-apiserver 1.36 answered: same requests, same statuses, bodies and ends. */
import { readFileSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { FakeApiServer } from '../../support/fake-api-server.ts';
import { aPod } from '../../support/kubernetes.ts';

type Transcript = {
  readonly name: string;
  readonly request?: string;
  readonly status?: number;
  readonly body?: readonly string[];
  readonly end?: string;
};

const TRANSCRIPTS = JSON.parse(
  readFileSync(new URL('../../fixtures/kubernetes/transcripts.json', import.meta.url), 'utf8'),
) as readonly Transcript[];

type Answer = { readonly status: number; readonly lines: readonly string[]; readonly end: string };

let server: FakeApiServer;
beforeAll(async () => {
  server = await FakeApiServer.start({ firstVersion: 289, bookmarkMs: 100, secondMs: 250 });
  // As recorded: five pods, each created and then running, and one that comes and goes.
  for (let i = 0; i < 5; i++) {
    server.store.create('pods', { metadata: { name: `p${i}`, labels: { app: 'vllm' } }, status: { phase: 'Pending' } });
    server.store.update('pods', `p${i}`, () => ({ status: { phase: 'Running', podIP: `10.50.0.${i}` } }));
  }
});
afterAll(() => server.stop());

function recorded(name: string): Transcript {
  const transcript = TRANSCRIPTS.find((one) => one.name === name);
  if (transcript === undefined) throw new Error(`no transcript ${name}`);
  return transcript;
}

/** @param path of the transcript, with shorter timeouts */
function ask(path: string, token: string | null = server.token): Promise<Answer> {
  const { hostname, port } = new URL(server.url);
  const short = path.replace(/timeoutSeconds=\d+/, 'timeoutSeconds=1');
  return new Promise((resolve, reject) => {
    const headers = token === null ? {} : { authorization: `Bearer ${token}` };
    const request = httpRequest({ hostname, port, path: short, headers, agent: false }, (response) => {
      let text = '';
      const done = (end: string): void => {
        resolve({ status: response.statusCode ?? 0, lines: text.split('\n').filter((line) => line !== ''), end });
      };
      response.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
      response.on('end', () => done('clean end'));
      response.on('error', () => done('aborted'));
    });
    request.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ECONNRESET') resolve({ status: 0, lines: [], end: 'aborted' });
      else reject(error);
    });
    request.end();
  });
}

/** What a watch event says that does not depend on the clock of the recording. */
function eventOf(line: string): object {
  const { type, object } = JSON.parse(line) as {
    type: string;
    object: { kind: string; metadata: Record<string, unknown>; status: { phase?: string } | string; code?: number };
  };
  if (type === 'ERROR') return { type, object };
  const { name, resourceVersion, deletionTimestamp, annotations } = object.metadata;
  const version = type === 'BOOKMARK' ? typeof resourceVersion : resourceVersion;
  const phase = (object.status as { phase?: string }).phase;
  return { type, kind: object.kind, name, version, phase, isTerminating: deletionTimestamp !== undefined, annotations };
}

test('every request of the recording is compared here, or is about the end of a process', () => {
  const elsewhere = [
    'watch during SIGTERM of the server',
    'connect while down',
    'during start-up: list',
    'watch during kill -9 of the server',
  ];
  const here = readFileSync(new URL(import.meta.url), 'utf8');
  const left = TRANSCRIPTS.filter(({ name }) => !elsewhere.includes(name) && !here.includes(`'${name}'`));
  expect(left.map(({ name }) => name)).toEqual([]);
});

describe('lists', () => {
  test('pages and their tokens', async () => {
    const first = recorded('list, first page');
    const answer = await ask(first.request!);
    const page = JSON.parse(answer.lines[0]!) as { metadata: { continue: string }; items: object[] };
    const wanted = JSON.parse(first.body![0]!) as typeof page;
    expect({ ...page, items: [] }).toEqual({ ...wanted, items: [] });
    expect(page.items).toMatchObject([
      { metadata: { name: 'p0', resourceVersion: '291' } },
      { metadata: { name: 'p1' } },
    ]);
    for (const name of ['list, next page', 'continue token after compaction']) {
      const next = recorded(name);
      const more = JSON.parse(
        (await ask(next.request!.replace('<token>', page.metadata.continue))).lines[0]!,
      ) as typeof page;
      expect({ ...more, items: [] }).toEqual({ ...JSON.parse(next.body![0]!), items: [] });
      expect(more.items).toMatchObject([{ metadata: { name: 'p2' } }, { metadata: { name: 'p3' } }]);
    }
  });

  test.each([
    'watch-list without resourceVersionMatch',
    'watch rv not a number',
    'no token',
    'wrong token',
    'watch, wrong token',
    'role pods list,watch: get one',
    'role, all namespaces',
    'role taken away: list',
    'service account without a role: list',
    'service account without a role: watch',
  ])('refused as recorded: %s', async (name) => {
    const { request, status, body } = recorded(name);
    if (/without a role|taken away/.test(name)) server.grants = [];
    const answer = await ask(
      request!,
      name === 'no token' ? null : name.includes('wrong token') ? 'wrong' : server.token,
    );
    server.grants = FakeApiServer.everything();
    expect(answer.status).toBe(status);
    const { details, ...said } = JSON.parse(answer.lines[0]!) as Record<string, unknown>;
    const { details: wantedDetails, ...wanted } = JSON.parse(body![0]!) as Record<string, unknown>;
    expect(said).toEqual(wanted);
    if (status === 403) expect(details).toEqual(wantedDetails);
  });
});

describe('watches', () => {
  test.each([
    'watch from list rv, 2 s server timeout',
    'watch-list: initial events then bookmark',
    'watch without a version',
    'watch rv=0',
    'watch version from the future',
  ])('as recorded: %s', async (name) => {
    const { request, status, body, end } = recorded(name);
    const answer = await ask(request!.replace('timeoutSeconds=2', 'timeoutSeconds=1'));
    expect(answer).toMatchObject({ status, end });
    expect(answer.lines.map(eventOf).slice(0, body!.length)).toEqual(body!.map(eventOf));
  });

  test('create, status and delete, live, from an old version, and after a compaction without a restart', async () => {
    const { request, body } = recorded('watch sees create, status, delete');
    const live = ask(request!);
    while (server.nWatches === 0) await new Promise(setImmediate);
    server.store.create('pods', { metadata: { name: 'w1', labels: { app: 'vllm' } }, status: { phase: 'Pending' } });
    server.store.update('pods', 'w1', () => ({ status: { phase: 'Running', podIP: '10.50.0.77' } }));
    server.store.update('pods', 'w1', () => ({}));
    server.store.terminate('pods', 'w1');
    server.store.delete('pods', 'w1');
    expect((await live).lines.map(eventOf)).toEqual(body!.map(eventOf));
    const cases = ['role pods list,watch: watch', 'watch from old rv after compaction, server not restarted'];
    for (const name of cases) {
      const again = recorded(name);
      expect((await ask(again.request!)).lines.map(eventOf)).toEqual(again.body!.map(eventOf));
    }
    const old = recorded('watch rv=1 (too old for the cache)');
    expect((await ask(old.request!)).lines.map(eventOf).slice(0, 3)).toEqual(old.body!.slice(0, 3).map(eventOf));
  });

  test('bookmarks come by themselves, with a version and nothing else', async () => {
    const { request, body } = recorded('bookmarks on an idle watch (70 s)');
    const { lines } = await ask(request!);
    const bookmark = JSON.parse(lines.at(-1)!) as { type: string; object: object };
    const { type, object } = JSON.parse(body!.at(-1)!) as typeof bookmark;
    expect(bookmark).toMatchObject({ type, object: { ...object, metadata: {}, spec: {}, status: {} } });
  });

  test('lists of a version and of a role', async () => {
    for (const name of ['list at an exact old rv after compaction', 'role pods list,watch: list']) {
      const page = JSON.parse((await ask(recorded(name).request!)).lines[0]!) as { items: object[]; metadata: object };
      const wanted = JSON.parse(recorded(name).body![0]!) as typeof page;
      expect(page.items).toMatchObject([{ metadata: { name: 'p0' } }]);
      expect(Object.keys(page.metadata)).toEqual(Object.keys(wanted.metadata));
    }
  });

  test('after a restart older versions are expired, in the stream and with a clean end', async () => {
    const { request, status, body, end } = recorded('after restart: watch from rv before the restart');
    server.store.create('pods', aPod({ name: 'later' }));
    await server.restart();
    const answer = await ask(request!);
    expect(answer).toMatchObject({ status, end });
    const version = (text: string): string => text.replace(/\(\d+\)/, '(…)');
    const parsed = (lines: readonly string[]): object[] => lines.map((line) => JSON.parse(version(line)) as object);
    expect(parsed(answer.lines)).toEqual(parsed(body!));
  });

  test('kill -9 aborts a watch', async () => {
    const watch = ask('/api/v1/namespaces/rec/pods?watch=1&timeoutSeconds=60&resourceVersion=0');
    while (server.nWatches === 0) await new Promise(setImmediate);
    await server.down();
    expect((await watch).end).toBe(recorded('watch during kill -9 of the server').end);
    await expect(ask('/api/v1/namespaces/rec/pods')).rejects.toMatchObject({ code: 'ECONNREFUSED' });
    await server.up();
  });
});
