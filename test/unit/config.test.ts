import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { parse } from 'yaml';
import {
  changedKeys,
  configTable,
  configToYaml,
  loadConfig,
  redactedConfig,
  type Config,
  type ConfigInput,
  type LoadedConfig,
  withLiveKeys,
} from '../../src/config.ts';
import { environmentName } from '../../src/config-sources.ts';

type Given = { readonly yaml?: string; readonly env?: ConfigInput['env']; readonly sets?: readonly string[] };

function load({ yaml, env = {}, sets = [] }: Given): LoadedConfig {
  return loadConfig({ file: yaml === undefined ? null : 'warmpath.yaml', readFile: () => yaml ?? '', env, sets });
}

function configOf(given: Given): Config {
  const loaded = load(given);
  if (loaded.kind === 'mistakes') throw new Error(loaded.mistakes.join('\n'));
  return loaded.config;
}

function mistakesOf(given: Given): readonly string[] {
  const loaded = load(given);
  return loaded.kind === 'mistakes' ? loaded.mistakes : [];
}

function noticesOf(given: Given): readonly string[] {
  const loaded = load(given);
  return loaded.kind === 'config' ? loaded.notices : [];
}

const STRATEGY_WORDS =
  'one of prefix-cache, random, least-request, least-busy-time, least-latency, least-kv-cache, least-utilization, throughput, power-of-two, session-affinity, aibrix-prefix-cache, prefix-cache-preble, or a mix like a:2,b';

describe('a file that changes while it is in use', () => {
  const before = configOf({});
  const after = configOf({ sets: ['log.level=debug', 'kvEvents.port=6000', 'discovery.endpoints=[]'] });

  test('only what can change at once is in effect, the rest needs a restart', () => {
    const effective = withLiveKeys(before, after);
    expect(changedKeys(before, effective)).toEqual(['discovery.endpoints', 'log.level']);
    expect(changedKeys(effective, after)).toEqual(['kvEvents.port']);
    expect(effective.log.level).toBe('debug');
    expect(effective.kvEvents.port).toBe(5557);
    expect(changedKeys(before, withLiveKeys(before, configOf({})))).toEqual([]);
  });

  test.each([
    [['discovery.mode=kubernetes'], ['discovery.mode']],
    [['discovery.file=endpoints.yaml'], ['discovery.file']],
  ])('endpoints that %j takes the place of stay until then', (sets, deciding) => {
    const listed = configOf({ sets: ['discovery.endpoints=[]'] });
    const [there, back] = [withLiveKeys(listed, configOf({ sets })), withLiveKeys(configOf({ sets }), listed)];
    expect(there).toEqual(listed);
    expect(back).toEqual(configOf({ sets }));
    expect(changedKeys(there, configOf({ sets }))).toEqual(
      expect.arrayContaining([...deciding, 'discovery.endpoints']),
    );
  });
});

describe('precedence', () => {
  test('without anything given the defaults of the contract hold', () => {
    expect(configOf({})).toMatchObject({
      server: {
        grpcListen: '0.0.0.0:9002',
        healthListen: '0.0.0.0:9003',
        adminListen: '0.0.0.0:9090',
        tls: { certFile: null, keyFile: null, clientCaFile: null },
        bodyMaxBytes: 16 * 1024 * 1024,
        drainDelayMs: 5000,
        drainTimeoutMs: 30_000,
        failureMode: 'open',
        threads: 1,
      },
      discovery: {
        mode: 'static',
        file: null,
        endpoints: null,
        kubernetes: {
          namespace: null,
          labelSelector: 'model.aibrix.ai/name',
          inferencePool: null,
          modelLabel: 'model.aibrix.ai/name',
          portLabel: 'model.aibrix.ai/port',
          kvEventsLabel: 'model.aibrix.ai/kv-events-enabled',
          modelAdapters: 'auto',
        },
      },
      kvEvents: { enabled: true, port: 5557, replayPort: 5558, indexMaxBytes: 512 * 1024 * 1024 },
      tokenizer: { urls: [], api: 'auto', budgetMs: 50, timeoutMs: 2000, maxInFlight: 64 },
      routing: {
        strategy: 'prefix-cache',
        strategyHeader: 'routing-strategy',
        allowedStrategies: [],
        fallbackEndpoints: 2,
        destinationHeader: 'x-gateway-destination-endpoint',
        compatTargetPodHeader: false,
        mediaWeights: { gpu: 1, host: 0.75, disk: 0.25 },
      },
      log: { level: 'info' },
    });
  });

  test('the file beats the default, the environment beats the file, --set beats the environment, the last --set wins', () => {
    const yaml = 'tokenizer:\n  budgetMs: 10\n';
    const env = { WARMPATH_TOKENIZER_BUDGET_MS: '20' };
    const sets = ['tokenizer.budgetMs=30', 'tokenizer.budgetMs=40'];
    expect(configOf({ yaml }).tokenizer.budgetMs).toBe(10);
    expect(configOf({ yaml, env }).tokenizer.budgetMs).toBe(20);
    expect(configOf({ yaml, env, sets: sets.slice(0, 1) }).tokenizer.budgetMs).toBe(30);
    expect(configOf({ yaml, env, sets }).tokenizer.budgetMs).toBe(40);
  });

  test('dotted keys, empty sections and an empty file are fine', () => {
    expect(configOf({ yaml: '' }).log.level).toBe('info');
    expect(configOf({ yaml: '# nothing\n' }).log.level).toBe('info');
    expect(configOf({ yaml: 'server:\nlog.level: warn\n' }).log.level).toBe('warn');
  });
});

describe('kinds of values', () => {
  test.each([
    ['server.bodyMaxBytes', '16 MiB', 16 * 1024 ** 2],
    ['server.bodyMaxBytes', '16MiB', 16 * 1024 ** 2],
    ['server.bodyMaxBytes', '16Mi', 16 * 1024 ** 2],
    ['server.bodyMaxBytes', '1.5 MiB', 1.5 * 1024 ** 2],
    ['server.bodyMaxBytes', '500 kB', 500_000],
    ['server.bodyMaxBytes', '2048', 2048],
    ['server.bodyMaxBytes', '1 GiB', 1024 ** 3],
    ['kvEvents.enabled', 'false', false],
    ['kvEvents.enabled', 'TRUE', true],
    ['kvEvents.enabled', '0', false],
    ['tokenizer.urls', 'http://a:1,https://b', ['http://a:1', 'https://b']],
    ['tokenizer.urls', '["http://a:1", http://b]', ['http://a:1', 'http://b']],
    ['tokenizer.urls', '', []],
    ['routing.strategyHeader', '', ''],
    ['server.tls.certFile', '', null],
    ['server.grpcListen', '[::1]:0', '[::1]:0'],
    ['server.grpcListen', 'localhost:9002', 'localhost:9002'],
    ['discovery.endpoints', '[{address: "10.0.0.1:80"}]', [{ address: '10.0.0.1:80' }]],
  ])('%s=%s is understood', (key, text, expected) => {
    const value = (config: Config): unknown =>
      key.split('.').reduce<unknown>((section, part) => (section as Record<string, unknown>)[part], config);
    expect(value(configOf({ sets: [`${key}=${text}`] }))).toEqual(expected);
    expect(value(configOf({ env: { [environmentName(key)]: text } }))).toEqual(expected);
  });

  test.each([
    ['tokenizer.budgetMs', 'abc', 'an integer from 0 to 10000'],
    ['tokenizer.budgetMs', '1.5', 'an integer from 0 to 10000'],
    ['tokenizer.budgetMs', '10001', 'an integer from 0 to 10000'],
    ['tokenizer.budgetMs', '-1', 'an integer from 0 to 10000'],
    ['tokenizer.budgetMs', '', 'an integer from 0 to 10000'],
    ['kvEvents.port', '0', 'an integer from 1 to 65535'],
    ['server.bodyMaxBytes', '16 Mo', 'a size from 1 KiB to 1 GiB'],
    ['server.bodyMaxBytes', '1', 'a size from 1 KiB to 1 GiB'],
    ['server.bodyMaxBytes', '-5 MiB', 'a size from 1 KiB to 1 GiB'],
    ['server.failureMode', 'Open', 'one of open, closed'],
    ['routing.strategy', 'fastest', STRATEGY_WORDS],
    ['routing.strategy', 'random,least-request', 'a mix without random, power-of-two, aibrix-prefix-cache'],
    ['kvEvents.enabled', 'maybe', 'true or false'],
    ['server.grpcListen', '9002', 'host:port, an IPv6 host in brackets'],
    ['server.grpcListen', '0.0.0.0:65536', 'host:port, an IPv6 host in brackets'],
    ['server.grpcListen', '::1:9002', 'host:port, an IPv6 host in brackets'],
    ['routing.destinationHeader', 'X-Up', 'a lower-case HTTP header name'],
    ['routing.destinationHeader', 'a\r\nb', 'a lower-case HTTP header name'],
    [
      'tokenizer.urls',
      'http://a/?b=c',
      'a list, each entry an http:// or https:// URL without user, query and fragment',
    ],
    ['tokenizer.auth.header', 'content-length', 'a lower-case HTTP header name that HTTP does not use itself'],
    ['tokenizer.urls', 'ftp://a', 'a list, each entry an http:// or https:// URL without user, query and fragment'],
    ['routing.mediaWeights.host', '1.01', 'a number from 0 to 1'],
    ['routing.mediaWeights.host', '-0.5', 'a number from 0 to 1'],
    ['routing.mediaWeights.host', 'half', 'a number from 0 to 1'],
    ['discovery.endpoints', '[', 'YAML without aliases'],
    ['discovery.endpoints', '[&a x, *a]', 'YAML without aliases'],
  ])('%s=%j is a mistake', (key, text, expected) => {
    const got = JSON.stringify(text);
    expect(mistakesOf({ sets: [`${key}=${text}`] })).toEqual([`${key} must be ${expected}, got ${got} (--set)`]);
  });

  test.each([
    'app=vllm',
    ' app == vllm , tier != x',
    'app in (a, b),!gone,has',
    'example.com/app notin(a)',
    'app=',
    'app in ()',
    'gpu>3, mem < 5',
    '! gone',
  ])('the label selector %j is understood', (selector) => {
    const { discovery } = configOf({ sets: [`discovery.kubernetes.labelSelector=${selector}`] });
    expect(discovery.kubernetes.labelSelector.trim()).toBe(selector.trim());
  });

  test.each(['a b', 'app=a b', ',', 'app=a,', 'x/y/z=1', '-a=b', `${'a'.repeat(64)}=x`, `a=${'b'.repeat(64)}`, '!a=b'])(
    'the label selector %j is a mistake, as it is for an API server',
    (selector) => {
      expect(mistakesOf({ sets: [`discovery.kubernetes.labelSelector=${selector}`] })).toEqual([
        expect.stringMatching(/^discovery\.kubernetes\.labelSelector must be a Kubernetes label selector, got /),
      ]);
    },
  );

  test.each(['app in a', 'app in (a', 'app>x', 'a=b=c', 'a&limit=0', '(a)', '!'])('so is %j', (selector) => {
    expect(mistakesOf({ sets: [`discovery.kubernetes.labelSelector=${selector}`] })).toHaveLength(1);
  });

  test('a value of the wrong YAML type is a mistake, not a conversion', () => {
    expect(mistakesOf({ yaml: 'tokenizer: { budgetMs: [1], urls: 3 }\nlog:\n  level: { a: 1 }\n' })).toEqual([
      'tokenizer.budgetMs must be an integer from 0 to 10000, got [1] (warmpath.yaml:1)',
      'tokenizer.urls must be a list, each entry an http:// or https:// URL without user, query and fragment, got 3 (warmpath.yaml:1)',
      'log.level must be one of debug, info, warn, error, got {"a":1} (warmpath.yaml:3)',
    ]);
  });
});

describe('mistakes', () => {
  test('a file that is no YAML hides no mistake made elsewhere', () => {
    const given = { yaml: 'log: [1', env: { WARMPATH_LOG_LEVEL: 'loud' }, sets: ['tokenizer.budgetMs=abc'] };
    expect(mistakesOf(given)).toEqual([
      expect.stringMatching(/^warmpath\.yaml must be YAML: /),
      'log.level must be one of debug, info, warn, error, got "loud" (WARMPATH_LOG_LEVEL)',
      'tokenizer.budgetMs must be an integer from 0 to 10000, got "abc" (--set)',
    ]);
  });

  test('a key given twice hides no other mistake of the file', () => {
    expect(mistakesOf({ yaml: 'log:\n  level: info\n  level: warn\ntokenizer:\n  budgetMs: abc\n' })).toEqual([
      'warmpath.yaml must be YAML: Map keys must be unique (warmpath.yaml:3)',
      'tokenizer.budgetMs must be an integer from 0 to 10000, got "abc" (warmpath.yaml:5)',
    ]);
  });

  test('a name is only suggested where it is like the one that was given', () => {
    expect(mistakesOf({ env: { WARMPATH_COLOUR: 'red' }, sets: ['zzz=1'] })).toEqual([
      'unknown variable WARMPATH_COLOUR, none is like it: docs/configuration.md has all of them (environment)',
      'unknown key zzz, none is like it: docs/configuration.md has all of them (--set)',
    ]);
  });

  test('all of them are told at once, each with its place', () => {
    const yaml = [
      'server:',
      '  grpcListen: nope',
      '  drainDelay: 4',
      'tokenizer:',
      '  budgetMs: abc',
      'kvEvent:',
      '  enabled: true',
    ].join('\n');
    const env = { WARMPATH_LOG_LEVEL: 'loud', WARMPATH_KV_EVENTS_PORTS: '1' };
    expect(mistakesOf({ yaml, env, sets: ['tokenizer.budget=5', 'nonsense'] })).toEqual([
      'unknown key server.drainDelay, the nearest known one is server.drainDelayMs (warmpath.yaml:3)',
      'unknown key kvEvent, the nearest known one is kvEvents (warmpath.yaml:6)',
      'unknown variable WARMPATH_KV_EVENTS_PORTS, the nearest known one is WARMPATH_KV_EVENTS_PORT (environment)',
      'unknown key tokenizer.budget, the nearest known one is tokenizer.budgetMs (--set)',
      '--set must be key=value, got "nonsense"',
      'server.grpcListen must be host:port, an IPv6 host in brackets, got "nope" (warmpath.yaml:2)',
      'tokenizer.budgetMs must be an integer from 0 to 10000, got "abc" (warmpath.yaml:5)',
      'log.level must be one of debug, info, warn, error, got "loud" (WARMPATH_LOG_LEVEL)',
    ]);
  });

  test('a wrong value is a mistake even where a later source overrides it', () => {
    expect(mistakesOf({ yaml: 'tokenizer:\n  budgetMs: abc\n', sets: ['tokenizer.budgetMs=5'] })).toHaveLength(1);
  });

  test.each([
    ['a: [1', /^warmpath\.yaml must be YAML: .+ \(warmpath\.yaml:1\)$/],
    [
      'server:\n  threads: 1\n  threads: 2\n',
      /^warmpath\.yaml must be YAML: Map keys must be unique \(warmpath\.yaml:3\)$/,
    ],
    [
      'server: { threads: 1 }\nserver.threads: 2\n',
      /^server\.threads must be given once, got it twice \(warmpath\.yaml:2\)$/,
    ],
    ['server: 5\n', /^server must be a map of keys, got 5 \(warmpath\.yaml:1\)$/],
    ['- a\n', /^the configuration must be a map of keys, got \["a"\] \(warmpath\.yaml:1\)$/],
    ['__proto__:\n  x: 1\n', /^unknown key __proto__, /],
    ['constructor: 1\n', /^unknown key constructor, /],
  ])('the file %j is a mistake', (yaml, expected) => {
    const mistakes = mistakesOf({ yaml });
    expect(mistakes).toHaveLength(1);
    expect(mistakes[0]).toMatch(expected);
  });

  test('a document whose aliases multiply is refused without being unfolded', () => {
    const levels = Array.from(
      { length: 12 },
      (_, i) =>
        `  - &l${i} [${Array(10)
          .fill(i === 0 ? 'x' : `*l${i - 1}`)
          .join(', ')}]`,
    );
    const mistakes = mistakesOf({
      yaml: `discovery:\n  endpoints:\n${levels.map((line) => `  ${line}`).join('\n')}\n`,
    });
    expect(mistakes).toEqual([expect.stringMatching(/^warmpath\.yaml must be plain YAML: .*alias/i)]);
  });

  test('a file that cannot be read is one mistake', () => {
    const loaded = loadConfig({
      file: 'gone.yaml',
      readFile: () => {
        throw new Error('ENOENT: no such file');
      },
      env: {},
      sets: [],
    });
    expect(loaded).toMatchObject({ mistakes: ['cannot read the configuration file gone.yaml: ENOENT: no such file'] });
  });

  test.each([
    [
      ['discovery.mode=kubernetes', 'discovery.file=a'],
      'discovery.file must not be given where discovery.mode is kubernetes (--set, --set)',
    ],
    [
      ['discovery.file=a', 'discovery.endpoints=[]'],
      'discovery.endpoints must not be given together with discovery.file (--set, --set)',
    ],
    [
      ['server.tls.certFile=a'],
      'server.tls.keyFile must be a file path where server.tls.certFile is set, got nothing (--set)',
    ],
    [
      ['server.tls.keyFile=a'],
      'server.tls.certFile must be a file path where server.tls.keyFile is set, got nothing (--set)',
    ],
    [
      ['server.tls.clientCaFile=a'],
      'server.tls.clientCaFile needs server.tls.certFile and server.tls.keyFile, got neither (--set)',
    ],
    [
      ['server.tls.selfSigned=true', 'server.tls.certFile=a', 'server.tls.keyFile=b'],
      'server.tls.selfSigned must be false where server.tls.certFile is set, got true (--set, --set)',
    ],
    [
      ['server.tls.certFile=a', 'server.tls.keyFile=b', 'server.tls.allowedClients=["DNS:envoy"]'],
      'server.tls.allowedClients needs server.tls.clientCaFile, got nothing (--set)',
    ],
    [
      ['server.bodiesMaxBytes=4 MiB'],
      'server.bodiesMaxBytes must be at least server.bodyMaxBytes (16777216), got 4194304 (--set)',
    ],
    [
      ['server.decisionDeadlineMs=50', 'tokenizer.budgetMs=50'],
      'server.decisionDeadlineMs must be above tokenizer.budgetMs (50), got 50 (--set)',
    ],
    [
      ['server.healthListen=127.0.0.1:9090', 'server.adminListen=127.0.0.1:9090'],
      'server.adminListen must differ from server.healthListen, got "127.0.0.1:9090" for both (--set)',
    ],
    [['tokenizer.api=local'], 'tokenizer.file must be given where tokenizer.api is local, got nothing (--set)'],
    [['tokenizer.file=a'], 'tokenizer.file needs tokenizer.api: local, got auto (--set, default)'],
    [['kvEvents.replayPort=5557'], 'kvEvents.replayPort must differ from kvEvents.port, got 5557 for both (--set)'],
    [
      ['server.adminListen=0.0.0.0:9002'],
      'server.adminListen must differ from server.grpcListen, got "0.0.0.0:9002" for both (--set)',
    ],
  ])('%j contradicts itself or asks for too much', (sets, mistake) => {
    expect(mistakesOf({ sets })).toEqual([mistake]);
  });

  test('listeners on port 0 do not collide', () => {
    const sets = ['server.grpcListen', 'server.healthListen', 'server.adminListen'].map((key) => `${key}=127.0.0.1:0`);
    expect(mistakesOf({ sets })).toEqual([]);
  });

  test('credentials of a URL appear neither in a mistake nor in what is printed', () => {
    // They would not be sent either.
    expect(mistakesOf({ sets: ['tokenizer.urls=http://me:secret@host/'] })).toEqual([
      expect.stringContaining('without user, query and fragment, got "http://***@host/"'),
    ]);
    const valid = configOf({});
    const config = { ...valid, tokenizer: { ...valid.tokenizer, urls: ['http://me:secret@host/'] } };
    expect(redactedConfig(config)).toMatchObject({ tokenizer: { urls: ['http://***@host/'] } });
    expect(configToYaml(config)).not.toContain('secret');
  });
});

describe('environment', () => {
  test.each([
    ['server.grpcListen', 'WARMPATH_SERVER_GRPC_LISTEN'],
    ['server.tls.clientCaFile', 'WARMPATH_SERVER_TLS_CLIENT_CA_FILE'],
    ['kvEvents.indexMaxBytes', 'WARMPATH_KV_EVENTS_INDEX_MAX_BYTES'],
    ['routing.compatTargetPodHeader', 'WARMPATH_ROUTING_COMPAT_TARGET_POD_HEADER'],
  ])('%s is %s', (key, name) => expect(environmentName(key)).toBe(name));

  test('what Kubernetes sets for a Service called warmpath is no mistake, but a mistyped name is', () => {
    const links = {
      WARMPATH_SERVICE_HOST: '10.0.0.1',
      WARMPATH_SERVICE_PORT: '9002',
      WARMPATH_SERVICE_PORT_GRPC: '9002',
      WARMPATH_PORT: 'tcp://10.0.0.1:9002',
      WARMPATH_PORT_9002_TCP: 'tcp://10.0.0.1:9002',
      WARMPATH_PORT_9002_TCP_ADDR: '10.0.0.1',
      WARMPATH_CANARY_SERVICE_HOST: '10.0.0.2',
    };
    expect(mistakesOf({ env: links })).toEqual([]);
    expect(mistakesOf({ env: { WARMPATH_KV_EVENT_PORT: '5557' } })).toEqual([
      'unknown variable WARMPATH_KV_EVENT_PORT, the nearest known one is WARMPATH_KV_EVENTS_PORT (environment)',
    ]);
  });

  test.each([
    ['AIBRIX_KV_EVENT_SYNC_ENABLED', 'false', { kvEvents: { enabled: false } }],
    ['AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED', 'false', { kvEvents: { enabled: false } }],
    ['AIBRIX_USE_REMOTE_TOKENIZER', 'false', { tokenizer: { api: 'none' } }],
    ['AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER', 'True', { tokenizer: { api: 'auto' } }],
    ['AIBRIX_POD_DEPLOYMENT_LABEL', 'app/name', { discovery: { kubernetes: { deploymentLabel: 'app/name' } } }],
    ['AIBRIX_POD_RAYCLUSTERFLEET_LABEL', 'fleet', { discovery: { kubernetes: { fleetLabel: 'fleet' } } }],
    ['AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS', '200', { load: { metricsIntervalMs: 200 } }],
    ['AIBRIX_MODEL_GPU_PROFILE_CACHING_FLAG', 'false', { load: { engineProfileCaching: false } }],
    ['AIBRIX_Model_GPU_PROFILE_CACHING_FLAG', 'false', { load: { engineProfileCaching: false } }],
    ['ROUTING_ALGORITHM', 'prefix-cache', { routing: { strategy: 'prefix-cache' } }],
  ])('%s=%s is an alias and is reported', (name, value, expected) => {
    expect(configOf({ env: { [name]: value } })).toMatchObject(expected);
    expect(noticesOf({ env: { [name]: value } })).toEqual([
      expect.stringMatching(`^${name} is an alias of .*, please set WARMPATH_`),
    ]);
  });

  test('the own name beats an alias, and says so', () => {
    const env = { AIBRIX_KV_EVENT_SYNC_ENABLED: 'false', WARMPATH_KV_EVENTS_ENABLED: 'true' };
    expect(configOf({ env }).kvEvents.enabled).toBe(true);
    expect(noticesOf({ env })).toEqual([
      'AIBRIX_KV_EVENT_SYNC_ENABLED has no effect because WARMPATH_KV_EVENTS_ENABLED is set',
    ]);
  });

  test('publishers that connect, beside replicas of which they reach one', () => {
    const listen = 'kvEvents.listen=0.0.0.0:5557';
    const siblings = 'kvEvents.siblings=warmpath';
    expect(noticesOf({ sets: [listen, siblings] })).toEqual([
      'kvEvents.listen beside kvEvents.siblings: a publisher that connects reaches one replica, the others route without its events',
    ]);
    expect([...noticesOf({ sets: [listen] }), ...noticesOf({ sets: [siblings] })]).toEqual([]);
  });

  test('two aliases that disagree are a mistake, two that agree are not', () => {
    const env = { AIBRIX_USE_REMOTE_TOKENIZER: 'true', AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER: 'false' };
    expect(mistakesOf({ env })).toEqual([
      'AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER must agree with AIBRIX_USE_REMOTE_TOKENIZER, got "false" (environment)',
    ]);
    expect(mistakesOf({ env: { ...env, AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER: 'true' } })).toEqual([]);
  });

  test('a wrong value of an alias names the alias', () => {
    expect(mistakesOf({ env: { AIBRIX_USE_REMOTE_TOKENIZER: 'vllm', AIBRIX_KV_EVENT_SYNC_ENABLED: 'si' } })).toEqual([
      'AIBRIX_USE_REMOTE_TOKENIZER must be true or false, got "vllm" (environment)',
      'kvEvents.enabled must be true or false, got "si" (AIBRIX_KV_EVENT_SYNC_ENABLED)',
    ]);
  });
});

describe('what is printed', () => {
  test('the effective configuration is YAML that gives the same configuration again', () => {
    const config = configOf({
      sets: ['server.bodyMaxBytes=1 MiB', 'discovery.endpoints=[{address: a, labels: {zone: "1"}}]'],
    });
    expect(configOf({ yaml: configToYaml(config) })).toEqual(config);
    expect(parse(configToYaml(config))).toMatchObject({ server: { bodyMaxBytes: 1_048_576 } });
  });

  test('the table has one row per key with its environment name', () => {
    const rows = configTable().split('\n').slice(2);
    expect(rows).toContain(
      '| `kvEvents.indexMaxBytes` | size (bytes) | `512 MiB` | `WARMPATH_KV_EVENTS_INDEX_MAX_BYTES` | at start | hard budget of the index |',
    );
    const leaves = (value: unknown): number =>
      typeof value === 'object' && value !== null && !Array.isArray(value)
        ? Object.values(value).reduce<number>((sum, inner) => sum + leaves(inner), 0)
        : 1;
    expect(rows).toHaveLength(leaves(configOf({})));
    expect(new Set(rows.map((row) => row.split('|')[4])).size).toBe(rows.length);
  });

  test('where a value inside an inline list was written can be asked', () => {
    const loaded = load({ yaml: 'discovery:\n  endpoints:\n    - name: a\n      address: x\n' });
    expect(loaded.where('discovery.endpoints', [0, 'address'])).toBe('warmpath.yaml:4');
    expect(loaded.where('discovery.endpoints', [0, 'missing', 3])).toBe('warmpath.yaml:3');
    expect(loaded.where('log.level')).toBe('default');
  });
});

test('no text in any place makes loading throw', () => {
  const text = fc.oneof(fc.string(), fc.string({ unit: fc.constantFrom(...'server:tls.&*[]{}-? |>\n\t"\'#!<') }));
  fc.assert(
    fc.property(text, text, (yaml, value) => {
      const env = { WARMPATH_TOKENIZER_URLS: value, WARMPATH_DISCOVERY_ENDPOINTS: value };
      const loaded = load({ yaml, env, sets: [value, `log.level=${value}`] });
      expect(['config', 'mistakes']).toContain(loaded.kind);
    }),
    { numRuns: 500 },
  );
});
