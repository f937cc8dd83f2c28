/**
 * The map, executed: who may know whom. When a better layout shows itself, change the code, this table and
 * ARCHITECTURE.md together.
 */
import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, test } from '@jest/globals';
import {
  findCycles,
  parseSourceFile,
  reachableFrom,
  readSourceFiles,
  type SourceFile,
} from './support/source-files.ts';

type Rule = {
  /** Files (`room/file.ts`) or whole rooms (`room/`) it may import, besides those of its own room and `EVERYWHERE`. */
  readonly knows: readonly string[];
  /** Packages and node modules. */
  readonly uses: readonly string[];
};

/** Words that mean the same in every room. */
const EVERYWHERE = ['errors.ts'];

const RULES: Readonly<Record<string, Rule>> = {
  // The rim: commands and composition.
  'main.ts': { knows: ['cli/', 'wording.ts'], uses: [] },
  'cli/': {
    knows: [
      'app.ts',
      'config.ts',
      'clock.ts',
      'file-follower.ts',
      'log.ts',
      'wording.ts',
      'endpoints/',
      'load/engine-seed-file.ts',
      'kvevents/',
      'kubernetes/',
      'tokenizer/',
      'doctor/',
      'simulator/',
      'demo/',
      'replay/',
    ],
    uses: ['node:fs', 'node:fs/promises', 'node:net', 'node:readline', 'node:util'],
  },
  'app.ts': {
    knows: [
      'kubernetes/',
      'app-reporter.ts',
      'outage-watch.ts',
      'config.ts',
      'metrics.ts',
      'clock.ts',
      'log.ts',
      'endpoint-picker.ts',
      'fleet-changes.ts',
      'picking/decision-record.ts',
      'picking/strategy-choice.ts',
      'scheduling/strategy-names.ts',
      'extproc/server.ts',
      'openai/usage.ts',
      'tokenizer/',
      'prefix/',
      'kvevents/',
      'siblings/',
      'endpoints/',
      'load/',
      'admin/',
    ],
    uses: [],
  },
  'app-reporter.ts': {
    knows: [
      'metrics.ts',
      'picking/decision-record.ts',
      'admin/decision-log.ts',
      'endpoints/',
      'extproc/picker.ts',
      'extproc/server.ts',
      'kvevents/endpoint-knowledge.ts',
      'kvevents/ingest.ts',
      'kvevents/missing-publishers.ts',
      'load/',
      'prefix/prefix-index.ts',
      'tokenizer/tokenizer-ladder.ts',
      'tokenizer/sharing-tokenizer.ts',
    ],
    uses: [],
  },
  'admin/': {
    knows: ['metrics.ts', 'log.ts', 'endpoint-picker.ts', 'picking/decision-record.ts', 'extproc/picker.ts'],
    uses: ['node:http', 'node:net'],
  },

  // Words and tables.
  'errors.ts': { knows: [], uses: [] },
  'clock.ts': { knows: [], uses: [] },
  'log.ts': { knows: [], uses: [] },
  'light-signal.ts': { knows: [], uses: [] },
  'lru-map.ts': { knows: [], uses: [] },
  'outage-watch.ts': { knows: ['log.ts'], uses: [] },
  'file-follower.ts': { knows: ['log.ts'], uses: ['node:fs', 'node:fs/promises', 'node:path', 'node:timers/promises'] },
  'wording.ts': { knows: [], uses: [] },
  'config.ts': {
    knows: ['config-sources.ts', 'config-values.ts', 'scheduling/strategy-names.ts', 'wording.ts'],
    uses: ['yaml'],
  },
  'config-sources.ts': { knows: ['wording.ts'], uses: ['yaml'] },
  'config-values.ts': { knows: [], uses: ['yaml'] },
  'metrics.ts': { knows: ['endpoints/endpoint.ts', 'metric-cells.ts'], uses: ['prom-client'] },
  'metric-cells.ts': { knows: [], uses: [] },

  // Flow (a): one request.
  'extproc/': {
    knows: ['clock.ts', 'light-signal.ts', 'log.ts', 'openai/'],
    uses: [
      '@grpc/grpc-js',
      '@grpc/proto-loader',
      'selfsigned',
      'node:assert',
      'node:crypto',
      'node:fs/promises',
      'node:http2',
      'node:tls',
      'node:url',
    ],
  },
  'openai/': { knows: [], uses: ['node:buffer'] },
  'endpoint-picker.ts': {
    knows: [
      'picking/',
      'clock.ts',
      'light-signal.ts',
      'extproc/picker.ts',
      'openai/',
      'tokenizer/tokenizer.ts',
      'tokenizer/tokenizer-ladder.ts',
      'prefix/',
      'scheduling/',
      'load/',
      'endpoints/',
    ],
    uses: [],
  },
  'picking/': {
    knows: [
      'clock.ts',
      'light-signal.ts',
      'lru-map.ts',
      'extproc/picker.ts',
      'openai/',
      'tokenizer/',
      'prefix/',
      'scheduling/',
      'load/',
      'endpoints/',
    ],
    uses: [],
  },
  // The memo and the text rung hash text with the one hash there is, and remember where it went as blocks are remembered.
  'tokenizer/': {
    knows: [
      'clock.ts',
      'http/',
      'light-signal.ts',
      'log.ts',
      'lru-map.ts',
      'openai/',
      'prefix/block-hash.ts',
      'prefix/routed-prefixes.ts',
    ],
    uses: [
      '@huggingface/jinja',
      '@huggingface/tokenizers',
      'node:crypto',
      'node:fs',
      'node:fs/promises',
      'node:path',
      'node:worker_threads',
    ],
  },
  'scheduling/': { knows: ['endpoints/endpoint.ts', 'load/in-flight.ts'], uses: [] },
  'load/': {
    knows: ['clock.ts', 'file-follower.ts', 'http/', 'log.ts', 'wording.ts', 'endpoints/endpoint.ts'],
    uses: ['node:net', 'yaml'],
  },
  'http/': { knows: ['clock.ts', 'light-signal.ts'], uses: ['node:http', 'node:net', 'node:tls'] },

  // Flow (b): one KV event batch.
  'kvevents/': {
    knows: ['clock.ts', 'log.ts', 'endpoints/endpoint.ts', 'prefix/', 'tokenizer/tokenizer.ts'],
    uses: ['node:net', 'node:worker_threads'],
  },
  // Replicas among themselves: seeds and snapshots, over the gRPC port.
  'siblings/': {
    knows: ['clock.ts', 'log.ts', 'extproc/client-identity.ts', 'kvevents/ingest.ts', 'prefix/block-hash.ts'],
    uses: [
      '@grpc/grpc-js',
      '@grpc/proto-loader',
      'node:crypto',
      'node:dns/promises',
      'node:fs/promises',
      'node:os',
      'node:tls',
      'node:url',
    ],
  },
  // Slots and hashes only; the shapes of extra keys and the number of slots are the two words it shares.
  'prefix/': {
    knows: ['clock.ts', 'lru-map.ts', 'endpoints/endpoint.ts', 'tokenizer/tokenizer.ts'],
    uses: ['node:crypto'],
  },

  // Flow (c): one change of the fleet.
  'fleet-changes.ts': { knows: ['log.ts', 'endpoints/', 'kvevents/ingest.ts', 'load/'], uses: [] },
  'endpoints/': {
    knows: ['file-follower.ts', 'log.ts', 'wording.ts'],
    uses: ['node:assert', 'node:net', 'yaml'],
  },

  // Never subscribers or the index: it says which endpoints should be, others make it so.
  'kubernetes/': {
    knows: ['clock.ts', 'log.ts', 'wording.ts', 'endpoints/endpoint.ts', 'endpoints/endpoint-list.ts'],
    uses: ['@kubernetes/client-node', 'node:fs/promises', 'node:http', 'node:https', 'node:net', 'node:path', 'yaml'],
  },

  // Beside `serve`: nothing in it imports these.
  'simulator/': {
    knows: ['clock.ts', 'tokenizer/tokenizer.ts'],
    uses: ['node:crypto', 'node:http', 'node:net', 'node:timers/promises', 'zeromq'],
  },
  'replay/': {
    knows: ['clock.ts', 'prefix/', 'scheduling/', 'load/', 'endpoints/endpoint.ts'],
    uses: [],
  },
  'doctor/': {
    knows: [
      'clock.ts',
      'http/',
      'wording.ts',
      'endpoints/endpoint.ts',
      'kvevents/',
      'load/',
      'openai/request.ts',
      'tokenizer/',
    ],
    uses: ['node:crypto'],
  },
  'demo/': {
    knows: ['log.ts', 'simulator/', 'extproc/services.ts'],
    uses: [
      '@grpc/grpc-js',
      'node:child_process',
      'node:crypto',
      'node:fs',
      'node:fs/promises',
      'node:os',
      'node:path',
      'node:timers/promises',
      'node:url',
      'node:util',
      'undici',
      'yaml',
    ],
  },
};

/** Synchronous arithmetic: no I/O, no clock but an injected one, no log, no metrics. They return counts, callers record them. */
const PURE = [
  'openai/',
  'picking/',
  'prefix/',
  'scheduling/',
  'kvevents/batch-applier.ts',
  'kvevents/decode.ts',
  'kvevents/decode-event.ts',
  'kvevents/engine-blocks.ts',
  'kvevents/engine-mirror.ts',
  'kvevents/engine-names.ts',
  'kvevents/event-stream.ts',
  'kvevents/map-keys.ts',
  'kvevents/msgpack-reader.ts',
  'kvevents/name-table.ts',
  'kvevents/parked-blocks.ts',
  'kvevents/source-snapshot.ts',
  'kvevents/trust.ts',
  'kvevents/warm-start.ts',
  'kubernetes/inference-objectives.ts',
  'kubernetes/inference-pool.ts',
  'kubernetes/model-adapters.ts',
  'kubernetes/objects.ts',
  'kubernetes/reflector-state.ts',
  'load/engine-profile.ts',
  'load/expected-load.ts',
  'load/in-flight.ts',
  'load/metrics-page.ts',
  'load/output-predictor.ts',
  'load/request-trace.ts',
  'extproc/answers.ts',
  'extproc/exchange.ts',
  'extproc/grpc-frames.ts',
  'extproc/message-reader.ts',
  'extproc/pieces.ts',
  'extproc/protobuf.ts',
  'extproc/request-side.ts',
  'extproc/response-side.ts',
  'http/response-reader.ts',
  'replay/',
  'tokenizer/memo-accuracy.ts',
  'tokenizer/prompt-keys.ts',
  'tokenizer/text-pieces.ts',
  'tokenizer/token-memo.ts',
  'tokenizer/tokenizer-ladder.ts',
];
const NOT_IN_PURE = [
  'log.ts',
  'metrics.ts',
  'zeromq',
  'undici',
  '@grpc/grpc-js',
  '@grpc/proto-loader',
  'yaml',
  'prom-client',
];
const PURE_NODE_MODULES = ['node:assert', 'node:buffer', 'node:crypto'];

const ROOT = new URL('../', import.meta.url);
const FILES = readSourceFiles(new URL('src/', ROOT));

describe('the rooms', () => {
  test('every file belongs to a room of the table, and every room of the table exists', () => {
    expect(FILES.map(({ path }) => path).filter((path) => !(roomOf(path) in RULES))).toEqual([]);
    const rooms = new Set(FILES.map(({ path }) => roomOf(path)));
    expect(Object.keys(RULES).filter((room) => !rooms.has(room))).toEqual([]);
  });

  test('a file imports only what the table lets its room know', () => {
    expect(FILES.flatMap(forbiddenImports)).toEqual([]);
  });

  test('the table allows nothing that nobody needs', () => {
    const idle = Object.entries(RULES).flatMap(([room, { knows, uses }]) => {
      const imports = FILES.filter(({ path }) => roomOf(path) === room).flatMap((file) => file.imports);
      const isIdle = (entry: string): boolean => !imports.some((target) => matches([entry], target));
      return [...knows, ...uses].filter(isIdle).map((entry) => `${room} → ${entry}`);
    });
    expect(idle).toEqual([]);
    expect(PURE.filter((entry) => !FILES.some(({ path }) => matches([entry], path)))).toEqual([]);
  });

  test('no import goes in a circle', () => {
    expect(findCycles(FILES)).toEqual([]);
  });

  test('nothing that serve runs is a simulator, a replay, the doctor or the demo', () => {
    const served = [...reachableFrom('app.ts', FILES)];
    expect(served).toContain('extproc/server.ts');
    expect(served.filter((path) => /^(?:simulator|replay|demo|doctor|cli)\//.test(path))).toEqual([]);
  });

  test('what only computes has no I/O, no clock of its own, no log and no metrics', () => {
    expect(FILES.filter(({ path }) => matches(PURE, path)).flatMap(impurities)).toEqual([]);
  });

  test('ARCHITECTURE.md and the table name the same rooms', () => {
    const map = readFileSync(new URL('ARCHITECTURE.md', ROOT), 'utf8');
    expect(Object.keys(RULES).filter((room) => !map.includes(`\`src/${room}\``))).toEqual([]);
    const named = [...map.matchAll(/`src\/([\w./-]+)`/g)].map(([, path]) => path!);
    expect(named.filter((path) => !existsSync(new URL(`src/${path}`, ROOT)))).toEqual([]);
  });
});

describe('the large rooms', () => {
  const map = readFileSync(new URL('ARCHITECTURE.md', ROOT), 'utf8');
  const section = map.slice(map.indexOf('## Inside the large rooms'), map.indexOf('## Invariants'));
  const guides = [...section.matchAll(/^\*\*(\w+)\*\*.*\n((?:- .*\n)+)/gm)].map(([, room, text]) => [room!, text!]);

  test('of `serve` have a guide each', () => {
    const served = new Map<string, number>();
    for (const path of reachableFrom('app.ts', FILES)) served.set(roomOf(path), (served.get(roomOf(path)) ?? 0) + 1);
    const large = [...served].filter(([, nFiles]) => nFiles >= 14).map(([room]) => room.slice(0, -1));
    expect(guides.map(([room]) => room).toSorted()).toEqual(large.toSorted());
  });

  test.each(guides)('%s: its guide names every file once, and no other', (room, guide) => {
    const files = FILES.filter(({ path }) => roomOf(path) === `${room}/`).map(({ path }) =>
      path.slice(room.length + 1, -3),
    );
    expect([...guide.matchAll(/`([a-z-]+)`/g)].map(([, name]) => name!).toSorted()).toEqual(files.toSorted());
  });
});

describe('every file', () => {
  test('has no any, no default export, no console, no mutable module state, no work at import, and leaves the process to main', () => {
    expect(FILES.flatMap(({ breaches }) => breaches)).toEqual([]);
  });

  test('begins with what it is for', () => {
    const silent = FILES.filter(({ path }) => {
      const text = readFileSync(new URL(`src/${path}`, ROOT), 'utf8');
      return !text.replace(/^#!.*\n/, '').startsWith('/**');
    });
    expect(silent.map(({ path }) => path)).toEqual([]);
  });
});

describe('the checks themselves', () => {
  const breachesOf = (text: string): readonly string[] => parseSourceFile('prefix/x.ts', text).breaches;

  test.each([
    ['const x: any = 1;', 'says `any`'],
    ['export default 1;', 'has a default export'],
    ['export default function f() {}', 'has a default export'],
    ['const f = 1; export { f as default };', 'has a default export'],
    ['export const x = process.env.A;', 'touches process.env'],
    ['export const f = () => globalThis.process.exit(1);', 'touches process.exit'],
    ['export const f = () => console.log(1);', 'writes to the console'],
    ['let n = 0; export const f = () => n++;', 'has mutable module state'],
    ['start();', 'does something when imported'],
    ['if (1 < 2) start();', 'does something when imported'],
  ])('%s is found', (text, what) => {
    expect(breachesOf(text)).toEqual([`prefix/x.ts:1 ${what}`]);
  });

  test.each([
    ["import { a } from '../log.ts';", 'log.ts'],
    ["import type { A } from '../extproc/server.ts';", 'extproc/server.ts'],
    ["export type { A } from '../metrics.ts';", 'metrics.ts'],
    ["type A = import('../openai/request.ts').A;", 'openai/request.ts'],
    ["export const f = () => import('../app.ts');", 'app.ts'],
    [
      "export const f = () => new Worker(new URL('../kvevents/ingest-worker.ts', import.meta.url));",
      'kvevents/ingest-worker.ts',
    ],
    ["import { Agent } from 'undici';", 'undici'],
    ["import { readFile } from 'node:fs/promises';", 'node:fs/promises'],
    ["import x from '@grpc/grpc-js/build/src/server.js';", '@grpc/grpc-js'],
  ])('%s is an import prefix/ may not have', (text, target) => {
    expect(forbiddenImports(parseSourceFile('prefix/x.ts', text))).toEqual([`prefix/x.ts → ${target}`]);
  });

  test('a file that asks the clock or chance itself does not only compute', () => {
    const file = parseSourceFile(
      'prefix/x.ts',
      'export const f = () => Date.now() + Math.random() + new Date().getTime();',
    );
    expect(impurities(file)).toEqual(['prefix/x.ts: Date.now', 'prefix/x.ts: Math.random', 'prefix/x.ts: new Date']);
  });

  test('a circle through types is a circle', () => {
    const files = [
      parseSourceFile('a/x.ts', "import type { B } from '../b/y.ts';"),
      parseSourceFile('b/y.ts', "import { c } from './z.ts';"),
      parseSourceFile('b/z.ts', "import { a } from '../a/x.ts';"),
    ];
    expect(findCycles(files)).toEqual(['a/x.ts → b/y.ts → b/z.ts → a/x.ts']);
  });
});

function roomOf(path: string): string {
  const slash = path.indexOf('/');
  return slash < 0 ? path : path.slice(0, slash + 1);
}

function matches(patterns: readonly string[], target: string): boolean {
  return patterns.some((pattern) => (pattern.endsWith('/') ? target.startsWith(pattern) : target === pattern));
}

function forbiddenImports({ path, imports }: SourceFile): string[] {
  const room = roomOf(path);
  const rule = RULES[room] ?? { knows: [], uses: [] };
  const own = room.endsWith('/') ? [room] : [];
  const allowed = [...rule.knows, ...EVERYWHERE, ...own];
  return imports
    .filter((target) => (target.endsWith('.ts') ? !matches(allowed, target) : !rule.uses.includes(target)))
    .map((target) => `${path} → ${target}`);
}

function impurities({ path, imports, ambient }: SourceFile): string[] {
  const wrong = imports.filter(
    (target) => NOT_IN_PURE.includes(target) || (target.startsWith('node:') && !PURE_NODE_MODULES.includes(target)),
  );
  return [...wrong, ...ambient].map((what) => `${path}: ${what}`);
}
