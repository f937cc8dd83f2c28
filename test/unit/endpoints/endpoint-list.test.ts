import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { parseEndpointList, parseIpPort, type ParsedList } from '../../../src/endpoints/endpoint-list.ts';
import { parseFile, parseInline } from '../../../src/endpoints/static-endpoints.ts';
import { aSpec } from '../../support/endpoints.ts';

const PORTS = { kvPort: 5557, replayPort: 5558 };

function parseYaml(text: string): ParsedList {
  return parseFile({ kind: 'text', text }, 'endpoints.yaml', PORTS);
}

function parseOne(fields: Record<string, unknown>): ParsedList {
  return parseInline([{ address: '10.0.0.1:8000', model: 'demo', ...fields }], PORTS, () => 'here');
}

function kvEventsOf(fields: Record<string, unknown>): unknown {
  const parsed = parseOne(fields);
  return parsed.kind === 'endpoints' ? parsed.specs[0]!.kvEvents : parsed.mistakes;
}

function mistakesOf(fields: Record<string, unknown>): readonly string[] {
  const parsed = parseOne(fields);
  return parsed.kind === 'mistakes' ? parsed.mistakes : [];
}

test('the example of the contract gives exactly what it says', () => {
  const parsed = parseYaml(`
endpoints:
  - name: pod-a
    address: 127.0.0.11:8000          # IP:port; IPv6 in brackets
    model: demo-model                 # served name; \`models: [a, b]\` for aliases
    adapters: [sql-lora]              # LoRA names, optional
    kvEvents: tcp://127.0.0.11:5557   # \`none\` = this endpoint publishes no events
    replay: tcp://127.0.0.11:5558
    dataParallelSize: 1
    labels: { zone: a }
`);
  expect(parsed).toEqual({
    kind: 'endpoints',
    specs: [
      aSpec({
        name: 'pod-a',
        address: '127.0.0.11:8000',
        models: ['demo-model'],
        adapters: ['sql-lora'],
        kvEvents: [{ endpoint: 'tcp://127.0.0.11:5557', replayEndpoint: 'tcp://127.0.0.11:5558' }],
        labels: { zone: 'a' },
      }),
    ],
  });
});

test('address and model suffice: the name is the address, events come from the usual ports of its IP', () => {
  expect(parseYaml('endpoints: [{ address: "[FD00::0:1]:8000", models: [a, b, a] }]')).toEqual({
    kind: 'endpoints',
    specs: [
      aSpec({
        name: '[fd00::1]:8000',
        address: '[fd00::1]:8000',
        models: ['a', 'b'],
        kvEvents: [{ endpoint: 'tcp://[fd00::1]:5557', replayEndpoint: 'tcp://[fd00::1]:5558' }],
      }),
    ],
  });
});

describe('addresses', () => {
  test.each([
    ['10.0.0.1:80', '10.0.0.1:80'],
    ['10.0.0.1:65535', '10.0.0.1:65535'],
    ['10.0.0.1:0080', '10.0.0.1:80'],
    ['[::1]:8000', '[::1]:8000'],
    ['[2001:DB8:0:0:0:0:0:1]:8000', '[2001:db8::1]:8000'],
    ['[::ffff:10.0.0.1]:8000', '[::ffff:10.0.0.1]:8000'],
  ])('%s is written %s', (text, canonical) => {
    expect(parseIpPort(text)).toMatchObject({ text: canonical });
  });

  test.each([
    ['10.0.0.1', 'the port is missing'],
    ['10.0.0.1:0', 'the port must be from 1 to 65535'],
    ['10.0.0.1:65536', 'the port must be from 1 to 65535'],
    ['10.0.0.1:http', 'the port must be from 1 to 65535'],
    ['10.0.0.1:', 'the port must be from 1 to 65535'],
    ['10.0.0.256:80', 'it is no IPv4 address'],
    ['10.0.1:80', 'it is no IPv4 address'],
    [':80', 'it is no IPv4 address'],
    ['0.0.0.0:80', 'it must name one machine, not all addresses of one'],
    ['[::]:80', 'it must name one machine, not all addresses of one'],
    ['::1:80', 'an IPv6 address needs brackets'],
    ['fd00::1', 'an IPv6 address needs brackets'],
    ['[fe80::1%eth0]:80', 'an IPv6 address must have no zone'],
    ['[10.0.0.1]:80', 'brackets must hold an IPv6 address'],
    ['pod-a:80', 'it must be an IP address, because Envoy compares addresses and names are not resolved'],
    ['http://10.0.0.1:80', 'the port is missing'],
  ])('%s is refused: %s', (text, why) => {
    expect(parseIpPort(text)).toBe(why);
  });
});

describe('events', () => {
  test.each<[Record<string, unknown>, unknown]>([
    [{}, [{ endpoint: 'tcp://10.0.0.1:5557', replayEndpoint: 'tcp://10.0.0.1:5558' }]],
    [{ kvEvents: 'none' }, []],
    [{ replay: 'none' }, [{ endpoint: 'tcp://10.0.0.1:5557', replayEndpoint: null }]],
    [{ replay: 'tcp://10.0.0.1:7000' }, [{ endpoint: 'tcp://10.0.0.1:5557', replayEndpoint: 'tcp://10.0.0.1:7000' }]],
    [{ kvEvents: 'tcp://10.0.0.9:5557' }, [{ endpoint: 'tcp://10.0.0.9:5557', replayEndpoint: 'tcp://10.0.0.9:5558' }]],
    // A guessed replay socket beside an unusual publisher might belong to another pod.
    [{ kvEvents: 'tcp://10.0.0.1:6000' }, [{ endpoint: 'tcp://10.0.0.1:6000', replayEndpoint: null }]],
    [
      { dataParallelSize: 3, replay: 'tcp://10.0.0.1:5657' },
      [
        { endpoint: 'tcp://10.0.0.1:5557', replayEndpoint: 'tcp://10.0.0.1:5657' },
        { endpoint: 'tcp://10.0.0.1:5558', replayEndpoint: 'tcp://10.0.0.1:5658' },
        { endpoint: 'tcp://10.0.0.1:5559', replayEndpoint: 'tcp://10.0.0.1:5659' },
      ],
    ],
    [
      { dataParallelSize: 2, replay: 'none' },
      [
        { endpoint: 'tcp://10.0.0.1:5557', replayEndpoint: null },
        { endpoint: 'tcp://10.0.0.1:5558', replayEndpoint: null },
      ],
    ],
    [{ dataParallelSize: 2, kvEvents: 'none' }, []],
  ])('%j', (fields, expected) => {
    expect(kvEventsOf(fields)).toEqual(expected);
  });

  test('without a default port an endpoint that names none publishes no events', () => {
    const list = [
      { address: '10.0.0.1:80', model: 'm' },
      { address: '10.0.0.1:81', model: 'm' },
    ];
    const parsed = parseInline(list, { kvPort: null, replayPort: 5558 });
    expect(parsed).toMatchObject({ kind: 'endpoints', specs: [{ kvEvents: [] }, { kvEvents: [] }] });
  });

  test('where publishers connect to us, an endpoint is told by its topic unless it names a publisher', () => {
    const list = [
      { address: '10.0.0.1:80', model: 'm', dataParallelSize: 2, replay: 'tcp://10.0.0.1:5600' },
      { address: '[::1]:80', model: 'm' },
      { address: '10.0.0.3:80', model: 'm', kvEvents: 'tcp://10.0.0.3:5557' },
      { address: '10.0.0.4:80', model: 'm', kvEvents: 'none' },
    ];
    const parsed = parseInline(list, { kvPort: 'listen', replayPort: 5558 });
    expect(parsed.kind === 'endpoints' && parsed.specs.map(({ kvEvents }) => kvEvents)).toEqual([
      [
        { endpoint: 'kv@10.0.0.1:80', replayEndpoint: 'tcp://10.0.0.1:5600' },
        { endpoint: 'kv@10.0.0.1:80#1', replayEndpoint: 'tcp://10.0.0.1:5601' },
      ],
      [{ endpoint: 'kv@[::1]:80', replayEndpoint: null }],
      [{ endpoint: 'tcp://10.0.0.3:5557', replayEndpoint: null }],
      [],
    ]);
  });
});

describe('mistakes', () => {
  test.each<[Record<string, unknown>, string]>([
    [{ address: undefined }, '.address must be ip:port, got nothing'],
    [{ address: 8000 }, '.address must be ip:port, got 8000'],
    [
      { address: 'a:1' },
      '.address must be ip:port, got "a:1": it must be an IP address, because Envoy compares addresses and names are not resolved',
    ],
    [{ model: undefined }, '.model must be a text of 1 to 256 characters, got nothing'],
    [{ model: 7 }, '.model must be a text of 1 to 256 characters, got 7'],
    [{ model: 'a\nb' }, '.model must be a text of 1 to 256 characters, got "a\\nb"'],
    [{ models: ['a'] }, '.models must not be given together with model'],
    [{ model: undefined, models: [] }, '.models must have at least one name, got []'],
    [{ model: undefined, models: ['a', 3] }, '.models[1] must be a text of 1 to 256 characters, got 3'],
    [{ adapters: 'sql' }, '.adapters must be a list of names, got "sql"'],
    [{ name: '' }, '.name must be a text of 1 to 256 characters, got ""'],
    [
      { kvEvents: 'tcp://*:5557' },
      '.kvEvents must be tcp://ip:port or none, got "tcp://*:5557": * is what the engine binds, not where it can be reached',
    ],
    [{ kvEvents: 'ipc:///tmp/x' }, '.kvEvents must be tcp://ip:port or none, got "ipc:///tmp/x"'],
    [
      { kvEvents: 'tcp://0.0.0.0:5557' },
      '.kvEvents must be tcp://ip:port or none, got "tcp://0.0.0.0:5557": it must name one machine, not all addresses of one',
    ],
    [{ kvEvents: true }, '.kvEvents must be tcp://ip:port or none, got true'],
    [
      { kvEvents: 'none', replay: 'tcp://10.0.0.1:1' },
      '.replay must not be given where the endpoint publishes no events',
    ],
    [{ dataParallelSize: 0 }, '.dataParallelSize must be an integer from 1 to 256, got 0'],
    [
      { dataParallelSize: 2 },
      '.dataParallelSize must leave the ports of kvEvents (5557 to 5558) free for replay, got tcp://10.0.0.1:5558',
    ],
    [
      { dataParallelSize: 4, replay: 'tcp://10.0.0.1:5555' },
      '.replay must leave the ports of kvEvents (5557 to 5560) free for replay, got tcp://10.0.0.1:5555',
    ],
    [
      { dataParallelSize: 9, kvEvents: 'tcp://10.0.0.1:65530' },
      '.dataParallelSize must keep every port below 65536, got 65538 for the last rank',
    ],
    [{ labels: ['a'] }, '.labels must be a map of texts, got ["a"]'],
    [{ labels: { zone: { a: 1 } } }, '.labels.zone must be a text, got {"a":1}'],
    [{ adress: '10.0.0.1:80' }, '.adress is unknown, the nearest known field is address'],
    [
      { colour: 'red' },
      '.colour is unknown, known are name, address, model, models, adapters, kvEvents, replay, dataParallelSize, labels',
    ],
  ])('%j', (fields, mistake) => {
    expect(mistakesOf(fields)).toEqual([`discovery.endpoints[0]${mistake} (here)`]);
  });

  test('all of a file are told at once, with their lines', () => {
    const parsed = parseYaml(`endpoints:
  - name: a
    address: pod-a:80
    model: 3
  - 17
  - name: b
    address: 10.0.0.1:80
    modle: m
extra: 1
`);
    expect(parsed).toEqual({
      kind: 'mistakes',
      mistakes: [
        'unknown key extra, the only one is endpoints (endpoints.yaml:9)',
        'endpoints[0].address must be ip:port, got "pod-a:80": it must be an IP address, because Envoy compares addresses and names are not resolved (endpoints.yaml:3)',
        'endpoints[0].model must be a text of 1 to 256 characters, got 3 (endpoints.yaml:4)',
        'endpoints[1] must be a map of fields, got 17 (endpoints.yaml:5)',
        'endpoints[2].modle is unknown, the nearest known field is model (endpoints.yaml:8)',
        'endpoints[2].model must be a text of 1 to 256 characters, got nothing (endpoints.yaml:6)',
      ],
    });
  });

  test('two endpoints with one address, name or publisher are refused', () => {
    const parsed = parseYaml(`endpoints:
  - { name: a, address: 10.0.0.1:80, model: m }
  - { name: a, address: 10.0.0.1:80, model: m, kvEvents: none }
  - { name: c, address: 10.0.0.1:81, model: m }
`);
    expect(parsed).toEqual({
      kind: 'mistakes',
      mistakes: [
        'endpoints[1].address must differ from every other, got 10.0.0.1:80 of a (endpoints.yaml:3)',
        'endpoints[1].name must differ from every other, got "a" twice (endpoints.yaml:3)',
        'endpoints[2].kvEvents must be a publisher of its own, got tcp://10.0.0.1:5557 of a; give its address, or none (endpoints.yaml:4)',
        'endpoints[2].replay must be a publisher of its own, got tcp://10.0.0.1:5558 of a; give its address, or none (endpoints.yaml:4)',
      ],
    });
  });

  test.each([
    ['', /^endpoints\.yaml must be a map with the key endpoints, got nothing$/],
    ['- a\n', /^endpoints\.yaml must be a map with the key endpoints, got \["a"\]$/],
    ['endpoints:\n', /^endpoints must be a list of endpoints, got null \(endpoints\.yaml:1\)$/],
    ['endpoints: {a: 1}\n', /^endpoints must be a list of endpoints, got {"a":1} \(endpoints\.yaml:1\)$/],
    ['endpoints: [\n', /^endpoints\.yaml must be YAML: .* \(endpoints\.yaml:\d\)$/],
    ['endpoints: []\nendpoints: []\n', /^endpoints\.yaml must be YAML: Map keys must be unique \(endpoints\.yaml:2\)$/],
  ])('the file %j', (text, expected) => {
    const parsed = parseYaml(text);
    if (parsed.kind !== 'mistakes') throw new Error('no mistake');
    expect(parsed.mistakes).toHaveLength(1);
    expect(parsed.mistakes[0]).toMatch(expected);
  });

  test('more endpoints than the index has slots are refused', () => {
    const list = Array.from({ length: 1025 }, () => ({}));
    expect(parseEndpointList(list, { label: 'endpoints', place: () => 'f:1', ...PORTS })).toEqual({
      kind: 'mistakes',
      mistakes: ['endpoints must have at most 1024 entries, got 1025 (f:1)'],
    });
  });
});

test('an empty list and no list at all are no endpoints', () => {
  expect(parseYaml('endpoints: []')).toEqual({ kind: 'endpoints', specs: [] });
  expect(parseInline(null, PORTS)).toEqual({ kind: 'endpoints', specs: [] });
});

test('any value is parsed or refused, never thrown at, and what is accepted has distinct canonical addresses', () => {
  const value = fc.oneof(
    fc.constantFrom('10.0.0.1:80', '[::1]:80', 'none', 'tcp://10.0.0.1:5557', 'm', ['m'], 1, 2, null),
    fc.jsonValue(),
  );
  const entry = fc.record(
    {
      name: value,
      address: value,
      model: value,
      models: value,
      adapters: value,
      kvEvents: value,
      replay: value,
      dataParallelSize: value,
      labels: value,
    },
    { requiredKeys: ['address'] },
  );
  fc.assert(
    fc.property(fc.oneof(fc.jsonValue(), fc.array(entry)), (list) => {
      const parsed = parseInline(list, PORTS);
      if (parsed.kind === 'mistakes') return expect(parsed.mistakes.length).toBeGreaterThan(0);
      for (const { address, models } of parsed.specs) {
        expect(parseIpPort(address)).toMatchObject({ text: address });
        expect(models.length).toBeGreaterThan(0);
      }
      return expect(new Set(parsed.specs.map(({ address }) => address)).size).toBe(parsed.specs.length);
    }),
  );
});
