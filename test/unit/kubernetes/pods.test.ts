import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { createFleetBuilder, judge, readPod, type Pod, type PodOptions } from '../../../src/kubernetes/pods.ts';
import { aPod, MODEL_LABEL, type PodGiven, POD_OPTIONS } from '../../support/kubernetes.ts';

const OPTIONS: PodOptions = {
  ...POD_OPTIONS,
  targetPorts: null,
};
const EVENTS = { 'model.aibrix.ai/kv-events-enabled': 'true' };

function pod(
  given: PodGiven & { readonly uid?: string; readonly createdAt?: string; readonly terminating?: 'yes' } = {},
): Pod {
  const draft = aPod(given);
  return readPod({
    ...draft,
    metadata: {
      ...draft.metadata,
      uid: given.uid ?? 'uid-1',
      resourceVersion: '7',
      creationTimestamp: given.createdAt ?? '2026-11-21T02:14:19Z',
      ...(given.terminating === undefined ? {} : { deletionTimestamp: '2026-11-21T03:00:00Z' }),
    },
  });
}

function specsOf(given: Parameters<typeof pod>[0], options: Partial<PodOptions> = {}) {
  const verdict = judge(pod(given), { ...OPTIONS, ...options });
  if (verdict.kind === 'excluded') throw new Error(verdict.reason);
  return verdict.specs;
}

function reasonOf(given: Parameters<typeof pod>[0], options: Partial<PodOptions> = {}): string {
  const verdict = judge(pod(given), { ...OPTIONS, ...options });
  return verdict.kind === 'excluded' ? verdict.reason : 'it is an endpoint';
}

function annotated(annotations: Readonly<Record<string, string>>, labels: PodGiven['labels'] = EVENTS): PodGiven {
  const prefixed = Object.entries(annotations).map(([key, value]) => [`warmpath.dev/${key}`, value] as const);
  return { labels, annotations: Object.fromEntries(prefixed) };
}

const kvPortsOf = (given: PodGiven): (string | null)[][] =>
  specsOf(given).map(({ kvEvents }) => kvEvents.flatMap(({ endpoint, replayEndpoint }) => [endpoint, replayEndpoint]));

describe('a pod that is an endpoint', () => {
  test('gives everything an endpoint is made of', () => {
    expect(specsOf({ name: 'vllm-0', labels: { ...EVENTS, zone: 'a' } })).toEqual([
      {
        name: 'vllm-0',
        address: '10.50.0.1:8000',
        models: ['demo-model'],
        adapters: [],
        dataParallelSize: 1,
        rank: null,
        kvEvents: [{ endpoint: 'tcp://10.50.0.1:5557', replayEndpoint: 'tcp://10.50.0.1:5558' }],
        labels: { [MODEL_LABEL]: 'demo-model', zone: 'a', ...EVENTS },
        ready: true,
        incarnation: 'uid-1 0/containerd://vllm-0-0',
      },
    ]);
  });

  test.each<[string, Parameters<typeof pod>[0], boolean]>([
    ['running and ready', {}, true],
    ['not Ready', { ready: 'False' }, false],
    ['pending with an address', { phase: 'Pending' }, false],
    ['of an unknown phase', { phase: 'Unknown' }, false],
    ['terminating, although Ready', { terminating: 'yes' }, false],
  ])('%s: ready %#', (_, given, ready) => {
    expect(specsOf(given).map((spec) => spec.ready)).toEqual([ready]);
  });

  test.each<[string, string]>([
    ['10.50.0.1', '10.50.0.1:8000'],
    ['fd00::1', '[fd00::1]:8000'],
    ['2001:DB8:0:0:0:0:0:1', '[2001:db8::1]:8000'],
  ])('at %s has the address %s, also for its events', (ip, address) => {
    const [spec] = specsOf({ ip, labels: EVENTS });
    expect(spec!.address).toBe(address);
    expect(spec!.kvEvents[0]!.endpoint).toBe(`tcp://${address.replace(/8000$/, '5557')}`);
  });

  test('model names: annotation with aliases before the label', () => {
    expect(specsOf({})[0]!.models).toEqual(['demo-model']);
    expect(specsOf(annotated({ model: 'meta/Llama-3, llama' }))[0]!.models).toEqual(['meta/Llama-3', 'llama']);
  });

  test('ports: target ports of the pool, annotation, label, 8000', () => {
    const labels = { 'model.aibrix.ai/port': '9000' };
    const annotations = { 'warmpath.dev/port': '8100' };
    const portsOf = (given: PodGiven, options: Partial<PodOptions> = {}): string[] =>
      specsOf(given, options).map(({ address }) => address.split(':')[1]!);
    expect(portsOf({})).toEqual(['8000']);
    expect(portsOf({ labels })).toEqual(['9000']);
    expect(portsOf({ labels, annotations })).toEqual(['8100']);
    expect(portsOf({ labels, annotations }, { targetPorts: [8000, 8001] })).toEqual(['8000', '8001']);
  });

  test('labels of the deployment and of the fleet have names of their own', () => {
    const labels = { app: 'chat', 'ray.io/fleet': 'f1' };
    const [spec] = specsOf({ labels }, { deploymentLabel: 'app', fleetLabel: 'ray.io/fleet' });
    expect(spec!.labels).toMatchObject({ deployment: 'chat', fleet: 'f1', app: 'chat' });
    expect(specsOf({}, { deploymentLabel: 'app' })[0]!.labels).toEqual({ [MODEL_LABEL]: 'demo-model' });
  });
});

describe('KV events', () => {
  test.each<[string, PodGiven, (string | null)[][]]>([
    ['not without label or annotation', {}, [[]]],
    ['not with the label false', { labels: { 'model.aibrix.ai/kv-events-enabled': 'false' } }, [[]]],
    [
      'not with the label false and a port',
      annotated({ 'kv-events-port': '6000' }, { ...EVENTS, 'model.aibrix.ai/kv-events-enabled': 'false' }),
      [[]],
    ],
    ['not with the annotation none', annotated({ 'kv-events-port': 'none' }), [[]]],
    ['usual ports with the label', { labels: EVENTS }, [['tcp://10.50.0.1:5557', 'tcp://10.50.0.1:5558']]],
    [
      'a port alone says that there are events',
      annotated({ 'kv-events-port': '6000' }, {}),
      [['tcp://10.50.0.1:6000', null]],
    ],
    [
      'both ports',
      annotated({ 'kv-events-port': '6000', 'kv-replay-port': '6100' }),
      [['tcp://10.50.0.1:6000', 'tcp://10.50.0.1:6100']],
    ],
    ['no replay', annotated({ 'kv-replay-port': 'none' }), [['tcp://10.50.0.1:5557', null]]],
    [
      'one source per rank behind one port',
      annotated({ 'data-parallel-size': '2', 'kv-replay-port': '5600' }),
      [['tcp://10.50.0.1:5557', 'tcp://10.50.0.1:5600', 'tcp://10.50.0.1:5558', 'tcp://10.50.0.1:5601']],
    ],
    [
      'one rank per port',
      annotated({ port: '8000,8001', 'kv-replay-port': '5600' }),
      [
        ['tcp://10.50.0.1:5557', 'tcp://10.50.0.1:5600'],
        ['tcp://10.50.0.1:5558', 'tcp://10.50.0.1:5601'],
      ],
    ],
    [
      'ranks spread over ports',
      annotated({ port: '8000,8001', 'data-parallel-size': '4', 'kv-replay-port': 'none' }),
      [
        ['tcp://10.50.0.1:5557', null, 'tcp://10.50.0.1:5558', null],
        ['tcp://10.50.0.1:5559', null, 'tcp://10.50.0.1:5560', null],
      ],
    ],
  ])('%s', (_, given, wanted) => {
    expect(kvPortsOf(given)).toEqual(wanted);
  });

  test('ranks are counted with their address, whether they publish or not', () => {
    const sizesOf = (annotations: Record<string, string>): readonly number[] =>
      specsOf(annotated(annotations)).map(({ dataParallelSize }) => dataParallelSize);
    expect(sizesOf({ port: '8000,8001', 'data-parallel-size': '4', 'kv-replay-port': 'none' })).toEqual([2, 2]);
    expect(sizesOf({ 'data-parallel-size': '3', 'kv-events-port': 'none' })).toEqual([3]);
  });

  test('switched off as a whole', () => {
    expect(specsOf({ labels: EVENTS }, { kvPort: null })[0]!.kvEvents).toEqual([]);
  });

  test('where publishers connect to us, a pod is told by its topic unless it has an event port', () => {
    const annotations = { 'warmpath.dev/port': '8000,8001', 'warmpath.dev/kv-replay-port': '5600' };
    const listen = { kvPort: 'listen' } as const;
    expect(specsOf({ labels: EVENTS, annotations }, listen).map(({ kvEvents }) => kvEvents)).toEqual([
      [{ endpoint: 'kv@10.50.0.1:8000', replayEndpoint: 'tcp://10.50.0.1:5600' }],
      [{ endpoint: 'kv@10.50.0.1:8001#1', replayEndpoint: 'tcp://10.50.0.1:5601' }],
    ]);
    const bound = specsOf({ labels: EVENTS, annotations: { 'warmpath.dev/kv-events-port': '5557' } }, listen);
    expect(bound[0]!.kvEvents).toEqual([{ endpoint: 'tcp://10.50.0.1:5557', replayEndpoint: null }]);
    expect(specsOf({}, listen)[0]!.kvEvents).toEqual([]);
  });
});

describe('a pod that is none says why', () => {
  test.each<[string, Parameters<typeof pod>[0]]>([
    ['phase is Succeeded', { phase: 'Succeeded' }],
    ['phase is Failed', { phase: 'Failed' }],
    ['has no IP address yet', { ip: null }],
    ['podIP must be an IP address, got "pod.example"', { ip: 'pod.example' }],
    ['has neither label model.aibrix.ai/name nor annotation warmpath.dev/model', { labels: { [MODEL_LABEL]: '' } }],
    [
      'annotation warmpath.dev/model must be served names separated by commas, got "a,,b"',
      annotated({ model: 'a,,b' }),
    ],
    [
      'label model.aibrix.ai/port must be a port from 1 to 65535, got "http"',
      { labels: { 'model.aibrix.ai/port': 'http' } },
    ],
    [
      'label model.aibrix.ai/port must be a port from 1 to 65535, got "70000"',
      { labels: { 'model.aibrix.ai/port': '70000' } },
    ],
    ['annotation warmpath.dev/port must name every port once, got "8000,8000"', annotated({ port: '8000,8000' })],
    ['annotation warmpath.dev/port must name at most 8 ports, got 9', annotated({ port: '1,2,3,4,5,6,7,8,9' })],
    [
      'annotation warmpath.dev/kv-events-port must be a port from 1 to 65535 or none, got "x"',
      annotated({ 'kv-events-port': 'x' }),
    ],
    [
      'annotation warmpath.dev/kv-replay-port must be a port from 1 to 65535 or none, got "0"',
      annotated({ 'kv-replay-port': '0' }),
    ],
    [
      'annotation warmpath.dev/data-parallel-size must be an integer from 1 to 256, got "0"',
      annotated({ 'data-parallel-size': '0' }),
    ],
    [
      'annotation warmpath.dev/data-parallel-size must be an integer from 1 to 256 and a multiple of its 2 ports, got "3"',
      annotated({ port: '8000,8001', 'data-parallel-size': '3' }),
    ],
    [
      'warmpath.dev/kv-replay-port must leave the event ports 5557 to 5557 free, got 5557',
      annotated({ 'kv-events-port': '5557', 'kv-replay-port': '5557' }),
    ],
    [
      'warmpath.dev/kv-replay-port must leave the event ports 5557 to 5558 free, got 5558',
      annotated({ 'data-parallel-size': '2' }),
    ],
    [
      'port 8000 must be for requests or for KV events, got both',
      annotated({ port: '8000', 'kv-events-port': '8000' }),
    ],
    [
      'its ports must be below 65536, got 65536 for the events of the last of 2 ranks',
      annotated({ 'kv-events-port': '65535', 'data-parallel-size': '2' }),
    ],
  ])('%s', (reason, given) => {
    expect(reasonOf(given)).toBe(reason);
  });

  test.each<[unknown]>([
    [null],
    ['pod'],
    [[]],
    [{}],
    [{ metadata: [], spec: 3, status: { conditions: {}, containerStatuses: 'x' } }],
    [{ metadata: { labels: { a: 1 } }, spec: { containers: [null, { ports: [{ containerPort: 'http' }] }] } }],
  ])('an object of any shape is read: %j', (object) => {
    expect(judge(readPod(object), OPTIONS)).toEqual({ kind: 'excluded', reason: 'has no IP address yet' });
  });
});

describe('another process behind the address has another incarnation', () => {
  const incarnation = (given: Parameters<typeof pod>[0]): string => specsOf(given)[0]!.incarnation;

  test('another pod, a restarted container', () => {
    const before = incarnation({});
    expect(incarnation({})).toBe(before);
    expect(incarnation({ ready: 'False', labels: { a: 'b' } })).toBe(before);
    expect(incarnation({ uid: 'uid-2' })).not.toBe(before);
    expect(incarnation({ restarts: 1 })).not.toBe(before);
  });

  test('a restarted sidecar is another process only where no container says that the port is its own', () => {
    const withSidecar = (restarts: number, port: number): string => {
      const draft = aPod({ containerPorts: [port] });
      const spec = { containers: [...(draft.spec as { containers: object[] }).containers, { name: 'sidecar' }] };
      const { containerStatuses } = draft.status as { containerStatuses: object[] };
      const statuses = [...containerStatuses, { name: 'sidecar', restartCount: restarts, containerID: '' }];
      const status = { ...(draft.status as object), containerStatuses: statuses };
      const verdict = judge(readPod({ ...draft, spec, status }), OPTIONS);
      return verdict.kind === 'endpoints' ? verdict.specs[0]!.incarnation : verdict.reason;
    };
    expect(withSidecar(1, 8000)).toBe(withSidecar(0, 8000));
    expect(withSidecar(1, 7000)).not.toBe(withSidecar(0, 7000));
  });
});

describe('the fleet', () => {
  const build = createFleetBuilder(OPTIONS);
  const none = new Map<string, readonly string[]>();

  test('endpoints, and the others with their reasons', () => {
    const { specs, excluded } = build([pod({ name: 'a' }), pod({ name: 'b', ip: null, uid: 'uid-b' })], none);
    expect(specs.map(({ name }) => name)).toEqual(['a']);
    expect(excluded).toEqual([{ name: 'b', reason: 'has no IP address yet' }]);
  });

  test('adapters of a pod', () => {
    const one = pod({ name: 'a' });
    expect(build([one], new Map([['a', ['sql']]])).specs[0]!.adapters).toEqual(['sql']);
    expect(build([one], none).specs[0]!.adapters).toEqual([]);
  });

  test('a pod that did not change is not judged again', () => {
    const one = pod({ name: 'a' });
    expect(build([one], none).specs[0]).toBe(build([one], none).specs[0]);
  });

  test.each<[string, Parameters<typeof pod>[0], Parameters<typeof pod>[0], string]>([
    ['the younger', { name: 'old' }, { name: 'new', uid: 'u2', createdAt: '2026-11-21T02:15:00Z' }, 'new'],
    [
      'the one that stays',
      { name: 'old', terminating: 'yes' },
      { name: 'new', uid: 'u2', createdAt: '2026-11-20T00:00:00Z' },
      'new',
    ],
  ])('of two pods with one address %s has it, in whatever order they are listed', (_, a, b, winner) => {
    for (const pods of [
      [pod(a), pod(b)],
      [pod(b), pod(a)],
    ]) {
      const { specs, excluded } = build(pods, none);
      expect(specs.map(({ name }) => name)).toEqual([winner]);
      expect(excluded).toEqual([{ name: 'old', reason: `its address 10.50.0.1:8000 is that of pod ${winner}` }]);
    }
  });

  test('two pods of one node with one publisher: the first stays, the second says why not', () => {
    const first = pod({ name: 'a', labels: EVENTS });
    const second = pod({
      name: 'b',
      uid: 'u2',
      createdAt: '2026-11-21T02:15:00Z',
      labels: { ...EVENTS, 'model.aibrix.ai/port': '8001' },
    });
    for (const pods of [
      [first, second],
      [second, first],
    ]) {
      const { specs, excluded } = build(pods, none);
      expect(specs.map(({ name }) => name)).toEqual(['a']);
      expect(excluded).toEqual([{ name: 'b', reason: 'its KV event publisher tcp://10.50.0.1:5557 is that of pod a' }]);
    }
  });

  test('however many ranks of one node overlap: one publisher, one pod, the same ones in whatever order they are listed', () => {
    const aRankedPod = fc.record({ first: fc.nat(7), nRanks: fc.integer({ min: 1, max: 4 }), day: fc.nat(3) });
    fc.assert(
      fc.property(
        fc.array(aRankedPod, { minLength: 2, maxLength: 8 }),
        fc.infiniteStream(fc.nat(99)),
        (given, chance) => {
          const pods = given.map(({ first, nRanks, day }, index) =>
            pod({
              name: `p${index}`,
              uid: `u${index}`,
              createdAt: `2026-11-2${day}T00:00:00Z`,
              labels: { ...EVENTS, 'model.aibrix.ai/port': String(8000 + index) },
              annotations: {
                'warmpath.dev/kv-events-port': String(5000 + first),
                'warmpath.dev/kv-replay-port': 'none',
                'warmpath.dev/data-parallel-size': String(nRanks),
              },
            }),
          );
          const { specs, excluded } = build(pods, none);
          const publishers = specs.flatMap(({ kvEvents }) => kvEvents.map(({ endpoint }) => endpoint));
          expect(new Set(publishers).size).toBe(publishers.length);
          expect(specs.length + excluded.length).toBe(pods.length);
          const shuffled = pods
            .map((one) => ({ one, at: chance.next().value }))
            .sort((a, b) => a.at - b.at)
            .map(({ one }) => one);
          expect(new Set(build(shuffled, none).specs)).toEqual(new Set(specs));
        },
      ),
      { numRuns: 200 },
    );
  });
});
